from mitogen_mux.v1 import jobs_pb2 as _jobs_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Manifest(_message.Message):
    __slots__ = ("entries", "module", "loader", "profile", "preload", "real_path")
    class Entry(_message.Message):
        __slots__ = ("path", "sha256", "size")
        PATH_FIELD_NUMBER: _ClassVar[int]
        SHA256_FIELD_NUMBER: _ClassVar[int]
        SIZE_FIELD_NUMBER: _ClassVar[int]
        path: str
        sha256: bytes
        size: int
        def __init__(self, path: _Optional[str] = ..., sha256: _Optional[bytes] = ..., size: _Optional[int] = ...) -> None: ...
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    MODULE_FIELD_NUMBER: _ClassVar[int]
    LOADER_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    PRELOAD_FIELD_NUMBER: _ClassVar[int]
    REAL_PATH_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[Manifest.Entry]
    module: str
    loader: str
    profile: str
    preload: _containers.RepeatedScalarFieldContainer[str]
    real_path: bool
    def __init__(self, entries: _Optional[_Iterable[_Union[Manifest.Entry, _Mapping]]] = ..., module: _Optional[str] = ..., loader: _Optional[str] = ..., profile: _Optional[str] = ..., preload: _Optional[_Iterable[str]] = ..., real_path: bool = ...) -> None: ...

class OfferRequest(_message.Message):
    __slots__ = ("payload", "manifest", "inputs")
    class Input(_message.Message):
        __slots__ = ("path", "dev", "ino", "size", "mtime_ns", "ctime_ns", "directory", "absent")
        PATH_FIELD_NUMBER: _ClassVar[int]
        DEV_FIELD_NUMBER: _ClassVar[int]
        INO_FIELD_NUMBER: _ClassVar[int]
        SIZE_FIELD_NUMBER: _ClassVar[int]
        MTIME_NS_FIELD_NUMBER: _ClassVar[int]
        CTIME_NS_FIELD_NUMBER: _ClassVar[int]
        DIRECTORY_FIELD_NUMBER: _ClassVar[int]
        ABSENT_FIELD_NUMBER: _ClassVar[int]
        path: str
        dev: int
        ino: int
        size: int
        mtime_ns: int
        ctime_ns: int
        directory: bool
        absent: bool
        def __init__(self, path: _Optional[str] = ..., dev: _Optional[int] = ..., ino: _Optional[int] = ..., size: _Optional[int] = ..., mtime_ns: _Optional[int] = ..., ctime_ns: _Optional[int] = ..., directory: bool = ..., absent: bool = ...) -> None: ...
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    manifest: Manifest
    inputs: _containers.RepeatedCompositeFieldContainer[OfferRequest.Input]
    def __init__(self, payload: _Optional[bytes] = ..., manifest: _Optional[_Union[Manifest, _Mapping]] = ..., inputs: _Optional[_Iterable[_Union[OfferRequest.Input, _Mapping]]] = ...) -> None: ...

class OfferReply(_message.Message):
    __slots__ = ("missing",)
    MISSING_FIELD_NUMBER: _ClassVar[int]
    missing: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, missing: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Blob(_message.Message):
    __slots__ = ("sha256", "data", "last")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    data: bytes
    last: bool
    def __init__(self, sha256: _Optional[bytes] = ..., data: _Optional[bytes] = ..., last: bool = ...) -> None: ...

class UploadReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
