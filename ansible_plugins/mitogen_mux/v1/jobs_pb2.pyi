from mitogen_mux.v1 import path_pb2 as _path_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunRequest(_message.Message):
    __slots__ = ("request", "body")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    request: Request
    body: Body
    def __init__(self, request: _Optional[_Union[Request, _Mapping]] = ..., body: _Optional[_Union[Body, _Mapping]] = ...) -> None: ...

class Body(_message.Message):
    __slots__ = ("step", "data", "last")
    STEP_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    step: int
    data: bytes
    last: bool
    def __init__(self, step: _Optional[int] = ..., data: _Optional[bytes] = ..., last: bool = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("run", "host", "path", "steps", "name", "follow", "judged")
    RUN_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    JUDGED_FIELD_NUMBER: _ClassVar[int]
    run: str
    host: str
    path: _path_pb2.Path
    steps: _containers.RepeatedCompositeFieldContainer[Step]
    name: str
    follow: Follow
    judged: bool
    def __init__(self, run: _Optional[str] = ..., host: _Optional[str] = ..., path: _Optional[_Union[_path_pb2.Path, _Mapping]] = ..., steps: _Optional[_Iterable[_Union[Step, _Mapping]]] = ..., name: _Optional[str] = ..., follow: _Optional[_Union[Follow, _Mapping]] = ..., judged: bool = ...) -> None: ...

class Follow(_message.Message):
    __slots__ = ("request", "steps")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    request: str
    steps: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, request: _Optional[str] = ..., steps: _Optional[_Iterable[int]] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("module", "command", "put", "get", "folder", "ticket", "guards")
    MODULE_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    PUT_FIELD_NUMBER: _ClassVar[int]
    GET_FIELD_NUMBER: _ClassVar[int]
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    GUARDS_FIELD_NUMBER: _ClassVar[int]
    module: Module
    command: Command
    put: Put
    get: Get
    folder: Folder
    ticket: Ticket
    guards: _containers.RepeatedCompositeFieldContainer[Guard]
    def __init__(self, module: _Optional[_Union[Module, _Mapping]] = ..., command: _Optional[_Union[Command, _Mapping]] = ..., put: _Optional[_Union[Put, _Mapping]] = ..., get: _Optional[_Union[Get, _Mapping]] = ..., folder: _Optional[_Union[Folder, _Mapping]] = ..., ticket: _Optional[_Union[Ticket, _Mapping]] = ..., guards: _Optional[_Iterable[_Union[Guard, _Mapping]]] = ...) -> None: ...

class Guard(_message.Message):
    __slots__ = ("step", "field", "value", "unequal")
    STEP_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    UNEQUAL_FIELD_NUMBER: _ClassVar[int]
    step: int
    field: str
    value: str
    unequal: bool
    def __init__(self, step: _Optional[int] = ..., field: _Optional[str] = ..., value: _Optional[str] = ..., unequal: bool = ...) -> None: ...

class Module(_message.Message):
    __slots__ = ("payload", "params", "name", "environment", "process", "rlimit_nofile", "logging", "input", "glance", "secrets")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    RLIMIT_NOFILE_FIELD_NUMBER: _ClassVar[int]
    LOGGING_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    GLANCE_FIELD_NUMBER: _ClassVar[int]
    SECRETS_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    params: bytes
    name: str
    environment: _containers.RepeatedCompositeFieldContainer[Variable]
    process: Process
    rlimit_nofile: int
    logging: bool
    input: str
    glance: bool
    secrets: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, payload: _Optional[bytes] = ..., params: _Optional[bytes] = ..., name: _Optional[str] = ..., environment: _Optional[_Iterable[_Union[Variable, _Mapping]]] = ..., process: _Optional[_Union[Process, _Mapping]] = ..., rlimit_nofile: _Optional[int] = ..., logging: bool = ..., input: _Optional[str] = ..., glance: bool = ..., secrets: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("argv", "plain", "has_body", "tty", "process", "remember", "discovery")
    ARGV_FIELD_NUMBER: _ClassVar[int]
    PLAIN_FIELD_NUMBER: _ClassVar[int]
    HAS_BODY_FIELD_NUMBER: _ClassVar[int]
    TTY_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    REMEMBER_FIELD_NUMBER: _ClassVar[int]
    DISCOVERY_FIELD_NUMBER: _ClassVar[int]
    argv: _containers.RepeatedScalarFieldContainer[bytes]
    plain: bytes
    has_body: bool
    tty: bool
    process: Process
    remember: bool
    discovery: Discovery
    def __init__(self, argv: _Optional[_Iterable[bytes]] = ..., plain: _Optional[bytes] = ..., has_body: bool = ..., tty: bool = ..., process: _Optional[_Union[Process, _Mapping]] = ..., remember: bool = ..., discovery: _Optional[_Union[Discovery, _Mapping]] = ...) -> None: ...

class Discovery(_message.Message):
    __slots__ = ("prefer",)
    PREFER_FIELD_NUMBER: _ClassVar[int]
    prefer: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, prefer: _Optional[_Iterable[str]] = ...) -> None: ...

class Process(_message.Message):
    __slots__ = ("cwd", "environ")
    CWD_FIELD_NUMBER: _ClassVar[int]
    ENVIRON_FIELD_NUMBER: _ClassVar[int]
    cwd: bytes
    environ: _containers.RepeatedCompositeFieldContainer[Variable]
    def __init__(self, cwd: _Optional[bytes] = ..., environ: _Optional[_Iterable[_Union[Variable, _Mapping]]] = ...) -> None: ...

class Variable(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: bytes
    value: bytes
    def __init__(self, name: _Optional[bytes] = ..., value: _Optional[bytes] = ...) -> None: ...

class Put(_message.Message):
    __slots__ = ("path", "has_body", "dest", "mode", "as_login")
    PATH_FIELD_NUMBER: _ClassVar[int]
    HAS_BODY_FIELD_NUMBER: _ClassVar[int]
    DEST_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    AS_LOGIN_FIELD_NUMBER: _ClassVar[int]
    path: str
    has_body: bool
    dest: bytes
    mode: int
    as_login: bool
    def __init__(self, path: _Optional[str] = ..., has_body: bool = ..., dest: _Optional[bytes] = ..., mode: _Optional[int] = ..., as_login: bool = ...) -> None: ...

class Get(_message.Message):
    __slots__ = ("source", "path")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    source: bytes
    path: str
    def __init__(self, source: _Optional[bytes] = ..., path: _Optional[str] = ...) -> None: ...

class Folder(_message.Message):
    __slots__ = ("path", "remove", "as_login")
    PATH_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    AS_LOGIN_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    remove: bool
    as_login: bool
    def __init__(self, path: _Optional[bytes] = ..., remove: bool = ..., as_login: bool = ...) -> None: ...

class Ticket(_message.Message):
    __slots__ = ("shell", "host")
    SHELL_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    shell: _containers.RepeatedScalarFieldContainer[bytes]
    host: str
    def __init__(self, shell: _Optional[_Iterable[bytes]] = ..., host: _Optional[str] = ...) -> None: ...

class ExecRequest(_message.Message):
    __slots__ = ("start", "stdin")
    class Start(_message.Message):
        __slots__ = ("ticket", "host", "command")
        TICKET_FIELD_NUMBER: _ClassVar[int]
        HOST_FIELD_NUMBER: _ClassVar[int]
        COMMAND_FIELD_NUMBER: _ClassVar[int]
        ticket: str
        host: str
        command: bytes
        def __init__(self, ticket: _Optional[str] = ..., host: _Optional[str] = ..., command: _Optional[bytes] = ...) -> None: ...
    START_FIELD_NUMBER: _ClassVar[int]
    STDIN_FIELD_NUMBER: _ClassVar[int]
    start: ExecRequest.Start
    stdin: bytes
    def __init__(self, start: _Optional[_Union[ExecRequest.Start, _Mapping]] = ..., stdin: _Optional[bytes] = ...) -> None: ...

class ExecReply(_message.Message):
    __slots__ = ("stdout", "stderr", "rc")
    STDOUT_FIELD_NUMBER: _ClassVar[int]
    STDERR_FIELD_NUMBER: _ClassVar[int]
    RC_FIELD_NUMBER: _ClassVar[int]
    stdout: bytes
    stderr: bytes
    rc: int
    def __init__(self, stdout: _Optional[bytes] = ..., stderr: _Optional[bytes] = ..., rc: _Optional[int] = ...) -> None: ...

class RunReply(_message.Message):
    __slots__ = ("output", "result", "log")
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    output: Output
    result: StepResult
    log: Log
    def __init__(self, output: _Optional[_Union[Output, _Mapping]] = ..., result: _Optional[_Union[StepResult, _Mapping]] = ..., log: _Optional[_Union[Log, _Mapping]] = ...) -> None: ...

class Output(_message.Message):
    __slots__ = ("step", "stdout", "stderr")
    STEP_FIELD_NUMBER: _ClassVar[int]
    STDOUT_FIELD_NUMBER: _ClassVar[int]
    STDERR_FIELD_NUMBER: _ClassVar[int]
    step: int
    stdout: bytes
    stderr: bytes
    def __init__(self, step: _Optional[int] = ..., stdout: _Optional[bytes] = ..., stderr: _Optional[bytes] = ...) -> None: ...

class StepResult(_message.Message):
    __slots__ = ("step", "skipped", "rc", "stdout", "stderr", "spans", "size", "sha256")
    STEP_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    RC_FIELD_NUMBER: _ClassVar[int]
    STDOUT_FIELD_NUMBER: _ClassVar[int]
    STDERR_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    step: int
    skipped: bool
    rc: int
    stdout: bytes
    stderr: bytes
    spans: Spans
    size: int
    sha256: bytes
    def __init__(self, step: _Optional[int] = ..., skipped: bool = ..., rc: _Optional[int] = ..., stdout: _Optional[bytes] = ..., stderr: _Optional[bytes] = ..., spans: _Optional[_Union[Spans, _Mapping]] = ..., size: _Optional[int] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class Spans(_message.Message):
    __slots__ = ("queue", "wire", "fork", "module")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    WIRE_FIELD_NUMBER: _ClassVar[int]
    FORK_FIELD_NUMBER: _ClassVar[int]
    MODULE_FIELD_NUMBER: _ClassVar[int]
    queue: int
    wire: int
    fork: int
    module: int
    def __init__(self, queue: _Optional[int] = ..., wire: _Optional[int] = ..., fork: _Optional[int] = ..., module: _Optional[int] = ...) -> None: ...

class Log(_message.Message):
    __slots__ = ("level", "host", "text")
    class Level(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        LEVEL_UNSPECIFIED: _ClassVar[Log.Level]
        WARNING: _ClassVar[Log.Level]
        V: _ClassVar[Log.Level]
        VVV: _ClassVar[Log.Level]
        VVVV: _ClassVar[Log.Level]
    LEVEL_UNSPECIFIED: Log.Level
    WARNING: Log.Level
    V: Log.Level
    VVV: Log.Level
    VVVV: Log.Level
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    level: Log.Level
    host: str
    text: str
    def __init__(self, level: _Optional[_Union[Log.Level, str]] = ..., host: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...
