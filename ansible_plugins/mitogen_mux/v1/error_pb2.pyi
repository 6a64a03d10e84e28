from google.protobuf import any_pb2 as _any_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Error(_message.Message):
    __slots__ = ("kind", "host", "hop", "hop_name", "message", "hint", "stderr", "token", "step", "exit_code")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Error.Kind]
        UNREACHABLE: _ClassVar[Error.Kind]
        AUTH_FAILED: _ClassVar[Error.Kind]
        HOST_KEY_UNKNOWN: _ClassVar[Error.Kind]
        HOST_KEY_CHANGED: _ClassVar[Error.Kind]
        BECOME_PASSWORD_REQUIRED: _ClassVar[Error.Kind]
        BECOME_PASSWORD_WRONG: _ClassVar[Error.Kind]
        BECOME_TIMEOUT: _ClassVar[Error.Kind]
        BECOME_FAILED: _ClassVar[Error.Kind]
        INTERPRETER_MISSING: _ClassVar[Error.Kind]
        AGENT_VERSION: _ClassVar[Error.Kind]
        AGENT_DIED: _ClassVar[Error.Kind]
        FILE_CHANGED: _ClassVar[Error.Kind]
        FILE_NOT_FOUND: _ClassVar[Error.Kind]
        FILE_FAILED: _ClassVar[Error.Kind]
        TOO_LARGE: _ClassVar[Error.Kind]
        CANCELLED: _ClassVar[Error.Kind]
        TIMED_OUT: _ClassVar[Error.Kind]
        UNSUPPORTED: _ClassVar[Error.Kind]
        INTERNAL: _ClassVar[Error.Kind]
        PAYLOAD_WANTED: _ClassVar[Error.Kind]
        LOCAL_AGENT_WANTED: _ClassVar[Error.Kind]
        RUN_UNKNOWN: _ClassVar[Error.Kind]
        DRAINING: _ClassVar[Error.Kind]
        NOT_BEGUN: _ClassVar[Error.Kind]
    KIND_UNSPECIFIED: Error.Kind
    UNREACHABLE: Error.Kind
    AUTH_FAILED: Error.Kind
    HOST_KEY_UNKNOWN: Error.Kind
    HOST_KEY_CHANGED: Error.Kind
    BECOME_PASSWORD_REQUIRED: Error.Kind
    BECOME_PASSWORD_WRONG: Error.Kind
    BECOME_TIMEOUT: Error.Kind
    BECOME_FAILED: Error.Kind
    INTERPRETER_MISSING: Error.Kind
    AGENT_VERSION: Error.Kind
    AGENT_DIED: Error.Kind
    FILE_CHANGED: Error.Kind
    FILE_NOT_FOUND: Error.Kind
    FILE_FAILED: Error.Kind
    TOO_LARGE: Error.Kind
    CANCELLED: Error.Kind
    TIMED_OUT: Error.Kind
    UNSUPPORTED: Error.Kind
    INTERNAL: Error.Kind
    PAYLOAD_WANTED: Error.Kind
    LOCAL_AGENT_WANTED: Error.Kind
    RUN_UNKNOWN: Error.Kind
    DRAINING: Error.Kind
    NOT_BEGUN: Error.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    HOP_FIELD_NUMBER: _ClassVar[int]
    HOP_NAME_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    STDERR_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    kind: Error.Kind
    host: str
    hop: int
    hop_name: str
    message: str
    hint: str
    stderr: str
    token: bytes
    step: int
    exit_code: int
    def __init__(self, kind: _Optional[_Union[Error.Kind, str]] = ..., host: _Optional[str] = ..., hop: _Optional[int] = ..., hop_name: _Optional[str] = ..., message: _Optional[str] = ..., hint: _Optional[str] = ..., stderr: _Optional[str] = ..., token: _Optional[bytes] = ..., step: _Optional[int] = ..., exit_code: _Optional[int] = ...) -> None: ...

class RpcStatus(_message.Message):
    __slots__ = ("code", "message", "details")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    details: _containers.RepeatedCompositeFieldContainer[_any_pb2.Any]
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., details: _Optional[_Iterable[_Union[_any_pb2.Any, _Mapping]]] = ...) -> None: ...
