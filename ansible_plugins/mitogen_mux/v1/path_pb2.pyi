from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor
IDENTITY_FIELD_NUMBER: _ClassVar[int]
identity: _descriptor.FieldDescriptor

class Secret(_message.Message):
    __slots__ = ("value",)
    VALUE_FIELD_NUMBER: _ClassVar[int]
    value: bytes
    def __init__(self, value: _Optional[bytes] = ...) -> None: ...

class Path(_message.Message):
    __slots__ = ("hops", "max_interpreters")
    HOPS_FIELD_NUMBER: _ClassVar[int]
    MAX_INTERPRETERS_FIELD_NUMBER: _ClassVar[int]
    hops: _containers.RepeatedCompositeFieldContainer[Hop]
    max_interpreters: int
    def __init__(self, hops: _Optional[_Iterable[_Union[Hop, _Mapping]]] = ..., max_interpreters: _Optional[int] = ...) -> None: ...

class Hop(_message.Message):
    __slots__ = ("ssh", "local", "become", "container", "interpreter")
    SSH_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    BECOME_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_FIELD_NUMBER: _ClassVar[int]
    INTERPRETER_FIELD_NUMBER: _ClassVar[int]
    ssh: SshHop
    local: LocalHop
    become: BecomeHop
    container: ContainerHop
    interpreter: str
    def __init__(self, ssh: _Optional[_Union[SshHop, _Mapping]] = ..., local: _Optional[_Union[LocalHop, _Mapping]] = ..., become: _Optional[_Union[BecomeHop, _Mapping]] = ..., container: _Optional[_Union[ContainerHop, _Mapping]] = ..., interpreter: _Optional[str] = ...) -> None: ...

class SshHop(_message.Message):
    __slots__ = ("host", "port", "user", "password", "private_key_file", "private_key", "private_key_passphrase", "host_key_checking", "args", "ssh_executable", "pkcs11_provider", "control_path", "timeout_seconds", "reconnection_retries", "verbosity", "password_mechanism", "late_args", "transport")
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    PASSWORD_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_KEY_FILE_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_KEY_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_KEY_PASSPHRASE_FIELD_NUMBER: _ClassVar[int]
    HOST_KEY_CHECKING_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    SSH_EXECUTABLE_FIELD_NUMBER: _ClassVar[int]
    PKCS11_PROVIDER_FIELD_NUMBER: _ClassVar[int]
    CONTROL_PATH_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RECONNECTION_RETRIES_FIELD_NUMBER: _ClassVar[int]
    VERBOSITY_FIELD_NUMBER: _ClassVar[int]
    PASSWORD_MECHANISM_FIELD_NUMBER: _ClassVar[int]
    LATE_ARGS_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    host: str
    port: int
    user: str
    password: Secret
    private_key_file: str
    private_key: Secret
    private_key_passphrase: Secret
    host_key_checking: bool
    args: _containers.RepeatedScalarFieldContainer[str]
    ssh_executable: str
    pkcs11_provider: str
    control_path: str
    timeout_seconds: int
    reconnection_retries: int
    verbosity: int
    password_mechanism: str
    late_args: _containers.RepeatedScalarFieldContainer[str]
    transport: str
    def __init__(self, host: _Optional[str] = ..., port: _Optional[int] = ..., user: _Optional[str] = ..., password: _Optional[_Union[Secret, _Mapping]] = ..., private_key_file: _Optional[str] = ..., private_key: _Optional[_Union[Secret, _Mapping]] = ..., private_key_passphrase: _Optional[_Union[Secret, _Mapping]] = ..., host_key_checking: bool = ..., args: _Optional[_Iterable[str]] = ..., ssh_executable: _Optional[str] = ..., pkcs11_provider: _Optional[str] = ..., control_path: _Optional[str] = ..., timeout_seconds: _Optional[int] = ..., reconnection_retries: _Optional[int] = ..., verbosity: _Optional[int] = ..., password_mechanism: _Optional[str] = ..., late_args: _Optional[_Iterable[str]] = ..., transport: _Optional[str] = ...) -> None: ...

class LocalHop(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BecomeHop(_message.Message):
    __slots__ = ("method", "user", "exe", "flags", "password", "argv", "prompt", "prompt_patterns", "success", "wrong_password", "missing_password", "timeout_seconds")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    EXE_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    PASSWORD_FIELD_NUMBER: _ClassVar[int]
    ARGV_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_PATTERNS_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    WRONG_PASSWORD_FIELD_NUMBER: _ClassVar[int]
    MISSING_PASSWORD_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    method: str
    user: str
    exe: str
    flags: str
    password: Secret
    argv: _containers.RepeatedScalarFieldContainer[bytes]
    prompt: bytes
    prompt_patterns: _containers.RepeatedScalarFieldContainer[str]
    success: bytes
    wrong_password: _containers.RepeatedScalarFieldContainer[bytes]
    missing_password: _containers.RepeatedScalarFieldContainer[bytes]
    timeout_seconds: int
    def __init__(self, method: _Optional[str] = ..., user: _Optional[str] = ..., exe: _Optional[str] = ..., flags: _Optional[str] = ..., password: _Optional[_Union[Secret, _Mapping]] = ..., argv: _Optional[_Iterable[bytes]] = ..., prompt: _Optional[bytes] = ..., prompt_patterns: _Optional[_Iterable[str]] = ..., success: _Optional[bytes] = ..., wrong_password: _Optional[_Iterable[bytes]] = ..., missing_password: _Optional[_Iterable[bytes]] = ..., timeout_seconds: _Optional[int] = ...) -> None: ...

class ContainerHop(_message.Message):
    __slots__ = ("method", "name", "user", "argv")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    ARGV_FIELD_NUMBER: _ClassVar[int]
    method: str
    name: str
    user: str
    argv: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, method: _Optional[str] = ..., name: _Optional[str] = ..., user: _Optional[str] = ..., argv: _Optional[_Iterable[bytes]] = ...) -> None: ...
