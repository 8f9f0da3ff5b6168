"""The store: files that are whole or not there, checkpoints by one rename, and who owns a run.

A leaf: the standard library and `ksupervise.errors`. The parent uses it, and so does the child, from a zip.
"""

from ksupervise.store.atomic import (
    CHUNK,
    Buffer,
    FileRecord,
    read_into,
    read_verified,
    replace_file,
    sync,
    sync_dir,
    verify_file,
    write_file,
)
from ksupervise.store.checkpoint import Checkpoint, Kind, Manifest, Origin, Position
from ksupervise.store.faults import (
    DamagedCheckpoint,
    NewerFormat,
    StoreFull,
    StoreUnreadable,
    StoreUnwritable,
    read_fault,
    write_fault,
)
from ksupervise.store.layout import RunLayout
from ksupervise.store.lock import Owner, RunLock, owner_is_alive, read_owner
from ksupervise.store.probe import takes_direct_writes
from ksupervise.store.retention import (
    COMPLETED_FITS,
    Rank,
    Reason,
    Retention,
    monitored,
    retention_from_json,
    to_free,
    to_keep,
    to_thin,
    why_kept,
)
from ksupervise.store.store import CheckpointStore, Damage, Survey

__all__ = [
    "CHUNK",
    "COMPLETED_FITS",
    "Buffer",
    "Checkpoint",
    "CheckpointStore",
    "Damage",
    "DamagedCheckpoint",
    "FileRecord",
    "Kind",
    "Manifest",
    "NewerFormat",
    "Origin",
    "Owner",
    "Position",
    "Rank",
    "Reason",
    "Retention",
    "RunLayout",
    "RunLock",
    "StoreFull",
    "StoreUnreadable",
    "StoreUnwritable",
    "Survey",
    "monitored",
    "owner_is_alive",
    "read_fault",
    "read_into",
    "read_owner",
    "read_verified",
    "replace_file",
    "retention_from_json",
    "sync",
    "sync_dir",
    "takes_direct_writes",
    "to_free",
    "to_keep",
    "to_thin",
    "verify_file",
    "why_kept",
    "write_fault",
    "write_file",
]
