"""A mounted file system that stops answering: after the file `stuck` appeared it takes reads and keeps them.

Whoever reads from it then is in uninterruptible sleep, and no SIGKILL ends it while this process lives.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.store import fuse


class Keeper(fuse.Loopback):
    """Keeps what it was asked to read, once it is stuck."""

    stuck = Path()

    def _read(self, node: fuse.Node, body: memoryview) -> bytes:
        while self.stuck.exists():
            signal.pause()
        return super()._read(node, body)


def main() -> None:
    """BACKING MOUNTPOINT STUCK."""
    backing, mountpoint, stuck = sys.argv[1:]
    Keeper.stuck = Path(stuck)
    fuse.Loopback = Keeper  # type: ignore[misc]
    fuse.serve(os.path.abspath(backing), os.path.abspath(mountpoint), fuse.Switches())


if __name__ == "__main__":
    main()
