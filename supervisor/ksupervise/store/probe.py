"""What the store's file system can do, found out by trying."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress

from ksupervise.store.atomic import StrPath, remove_quietly, unique


def takes_direct_writes(directory: StrPath) -> bool:
    """Files there can be written past the page cache (O_DIRECT).

    Not so on tmpfs before Linux 6.6, on many FUSE file systems, and under sandboxed kernels.
    """
    direct = getattr(os, "O_DIRECT", 0)
    if not direct:
        return False
    path = os.path.join(directory, unique("probe"))
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | direct, 0o600)
    except OSError:
        remove_quietly(path)  # some file systems create it and then refuse
        return False
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as page:
            return os.write(fd, page) == mmap.PAGESIZE
    except OSError:
        return False
    finally:
        with suppress(OSError):
            os.close(fd)
        remove_quietly(path)
