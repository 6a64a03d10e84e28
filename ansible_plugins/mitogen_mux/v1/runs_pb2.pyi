from mitogen_mux.v1 import jobs_pb2 as _jobs_pb2
from mitogen_mux.v1 import path_pb2 as _path_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodeState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NODE_STATE_UNSPECIFIED: _ClassVar[NodeState]
    IDLE: _ClassVar[NodeState]
    DIALING: _ClassVar[NodeState]
    AUTHENTICATING: _ClassVar[NodeState]
    BOOTSTRAPPING: _ClassVar[NodeState]
    READY: _ClassVar[NodeState]
    DRAINING: _ClassVar[NodeState]
    CLOSED: _ClassVar[NodeState]
    FAILED: _ClassVar[NodeState]
NODE_STATE_UNSPECIFIED: NodeState
IDLE: NodeState
DIALING: NodeState
AUTHENTICATING: NodeState
BOOTSTRAPPING: NodeState
READY: NodeState
DRAINING: NodeState
CLOSED: NodeState
FAILED: NodeState

class AttachRequest(_message.Message):
    __slots__ = ("pid", "start_time", "environ", "cwd", "user", "core_version", "persist_seconds", "persist_become", "max_interpreters")
    PID_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    ENVIRON_FIELD_NUMBER: _ClassVar[int]
    CWD_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    CORE_VERSION_FIELD_NUMBER: _ClassVar[int]
    PERSIST_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PERSIST_BECOME_FIELD_NUMBER: _ClassVar[int]
    MAX_INTERPRETERS_FIELD_NUMBER: _ClassVar[int]
    pid: int
    start_time: int
    environ: _containers.RepeatedCompositeFieldContainer[_jobs_pb2.Variable]
    cwd: str
    user: str
    core_version: str
    persist_seconds: int
    persist_become: bool
    max_interpreters: int
    def __init__(self, pid: _Optional[int] = ..., start_time: _Optional[int] = ..., environ: _Optional[_Iterable[_Union[_jobs_pb2.Variable, _Mapping]]] = ..., cwd: _Optional[str] = ..., user: _Optional[str] = ..., core_version: _Optional[str] = ..., persist_seconds: _Optional[int] = ..., persist_become: bool = ..., max_interpreters: _Optional[int] = ...) -> None: ...

class AttachReply(_message.Message):
    __slots__ = ("run", "version", "daemon_pid", "stage1", "stage1_local", "agent_socket", "agent_name")
    RUN_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DAEMON_PID_FIELD_NUMBER: _ClassVar[int]
    STAGE1_FIELD_NUMBER: _ClassVar[int]
    STAGE1_LOCAL_FIELD_NUMBER: _ClassVar[int]
    AGENT_SOCKET_FIELD_NUMBER: _ClassVar[int]
    AGENT_NAME_FIELD_NUMBER: _ClassVar[int]
    run: str
    version: str
    daemon_pid: int
    stage1: str
    stage1_local: str
    agent_socket: str
    agent_name: str
    def __init__(self, run: _Optional[str] = ..., version: _Optional[str] = ..., daemon_pid: _Optional[int] = ..., stage1: _Optional[str] = ..., stage1_local: _Optional[str] = ..., agent_socket: _Optional[str] = ..., agent_name: _Optional[str] = ...) -> None: ...

class DetachRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class DetachReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResetRequest(_message.Message):
    __slots__ = ("run", "host", "path", "account")
    RUN_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    run: str
    host: str
    path: _path_pb2.Path
    account: str
    def __init__(self, run: _Optional[str] = ..., host: _Optional[str] = ..., path: _Optional[_Union[_path_pb2.Path, _Mapping]] = ..., account: _Optional[str] = ...) -> None: ...

class ResetReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("run", "hosts")
    RUN_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    run: str
    hosts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, run: _Optional[str] = ..., hosts: _Optional[_Iterable[str]] = ...) -> None: ...

class ReleaseReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ("stacks",)
    STACKS_FIELD_NUMBER: _ClassVar[int]
    stacks: bool
    def __init__(self, stacks: bool = ...) -> None: ...

class GetStatusReply(_message.Message):
    __slots__ = ("version", "pid", "started_unix", "runs", "nodes", "counters", "stacks", "draining", "agents", "transfers")
    class Run(_message.Message):
        __slots__ = ("id", "pid", "core_version", "requests")
        ID_FIELD_NUMBER: _ClassVar[int]
        PID_FIELD_NUMBER: _ClassVar[int]
        CORE_VERSION_FIELD_NUMBER: _ClassVar[int]
        REQUESTS_FIELD_NUMBER: _ClassVar[int]
        id: str
        pid: int
        core_version: str
        requests: int
        def __init__(self, id: _Optional[str] = ..., pid: _Optional[int] = ..., core_version: _Optional[str] = ..., requests: _Optional[int] = ...) -> None: ...
    class Node(_message.Message):
        __slots__ = ("id", "parent", "name", "state", "jobs", "python", "blobs_bytes", "sent_bytes", "received_bytes", "round_trips", "hosts", "idle_since_unix", "memory_kib")
        ID_FIELD_NUMBER: _ClassVar[int]
        PARENT_FIELD_NUMBER: _ClassVar[int]
        NAME_FIELD_NUMBER: _ClassVar[int]
        STATE_FIELD_NUMBER: _ClassVar[int]
        JOBS_FIELD_NUMBER: _ClassVar[int]
        PYTHON_FIELD_NUMBER: _ClassVar[int]
        BLOBS_BYTES_FIELD_NUMBER: _ClassVar[int]
        SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
        RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
        ROUND_TRIPS_FIELD_NUMBER: _ClassVar[int]
        HOSTS_FIELD_NUMBER: _ClassVar[int]
        IDLE_SINCE_UNIX_FIELD_NUMBER: _ClassVar[int]
        MEMORY_KIB_FIELD_NUMBER: _ClassVar[int]
        id: str
        parent: str
        name: str
        state: NodeState
        jobs: int
        python: str
        blobs_bytes: int
        sent_bytes: int
        received_bytes: int
        round_trips: int
        hosts: _containers.RepeatedScalarFieldContainer[str]
        idle_since_unix: int
        memory_kib: int
        def __init__(self, id: _Optional[str] = ..., parent: _Optional[str] = ..., name: _Optional[str] = ..., state: _Optional[_Union[NodeState, str]] = ..., jobs: _Optional[int] = ..., python: _Optional[str] = ..., blobs_bytes: _Optional[int] = ..., sent_bytes: _Optional[int] = ..., received_bytes: _Optional[int] = ..., round_trips: _Optional[int] = ..., hosts: _Optional[_Iterable[str]] = ..., idle_since_unix: _Optional[int] = ..., memory_kib: _Optional[int] = ...) -> None: ...
    class Transfer(_message.Message):
        __slots__ = ("host", "path", "up", "done_bytes", "total_bytes", "elapsed_ms")
        HOST_FIELD_NUMBER: _ClassVar[int]
        PATH_FIELD_NUMBER: _ClassVar[int]
        UP_FIELD_NUMBER: _ClassVar[int]
        DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
        TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
        ELAPSED_MS_FIELD_NUMBER: _ClassVar[int]
        host: str
        path: str
        up: bool
        done_bytes: int
        total_bytes: int
        elapsed_ms: int
        def __init__(self, host: _Optional[str] = ..., path: _Optional[str] = ..., up: bool = ..., done_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., elapsed_ms: _Optional[int] = ...) -> None: ...
    class Counters(_message.Message):
        __slots__ = ("jobs", "dials", "goroutines", "payloads", "blobs_bytes")
        JOBS_FIELD_NUMBER: _ClassVar[int]
        DIALS_FIELD_NUMBER: _ClassVar[int]
        GOROUTINES_FIELD_NUMBER: _ClassVar[int]
        PAYLOADS_FIELD_NUMBER: _ClassVar[int]
        BLOBS_BYTES_FIELD_NUMBER: _ClassVar[int]
        jobs: int
        dials: int
        goroutines: int
        payloads: int
        blobs_bytes: int
        def __init__(self, jobs: _Optional[int] = ..., dials: _Optional[int] = ..., goroutines: _Optional[int] = ..., payloads: _Optional[int] = ..., blobs_bytes: _Optional[int] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STARTED_UNIX_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    STACKS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    version: str
    pid: int
    started_unix: int
    runs: _containers.RepeatedCompositeFieldContainer[GetStatusReply.Run]
    nodes: _containers.RepeatedCompositeFieldContainer[GetStatusReply.Node]
    counters: GetStatusReply.Counters
    stacks: str
    draining: bool
    agents: _containers.RepeatedScalarFieldContainer[str]
    transfers: _containers.RepeatedCompositeFieldContainer[GetStatusReply.Transfer]
    def __init__(self, version: _Optional[str] = ..., pid: _Optional[int] = ..., started_unix: _Optional[int] = ..., runs: _Optional[_Iterable[_Union[GetStatusReply.Run, _Mapping]]] = ..., nodes: _Optional[_Iterable[_Union[GetStatusReply.Node, _Mapping]]] = ..., counters: _Optional[_Union[GetStatusReply.Counters, _Mapping]] = ..., stacks: _Optional[str] = ..., draining: bool = ..., agents: _Optional[_Iterable[str]] = ..., transfers: _Optional[_Iterable[_Union[GetStatusReply.Transfer, _Mapping]]] = ...) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ("force",)
    FORCE_FIELD_NUMBER: _ClassVar[int]
    force: bool
    def __init__(self, force: bool = ...) -> None: ...

class StopReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
