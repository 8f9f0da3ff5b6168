"""Who owns a run whose store itself lies on a shared file system, where an flock keeps no other machine out.

The same lease as in a replica's place, in a folder of the run's directory. A thread keeps it, for here no process of
its own does: where the file system hangs, the run's own files hang too.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from ksupervise.replicas.folder import Folder
from ksupervise.replicas.format import Generation
from ksupervise.replicas.lease import Acquired, Busy, Lease, new_holder
from ksupervise.replicas.place import ReplicaFault
from ksupervise.store.atomic import StrPath

FOLDER = "lease"  # in the run's directory
_GENERATION = Generation(
    1, "00000000", "run"
)  # the directory has one life only: what is archived takes its lease along
_JOIN = 5.0  # seconds for the thread to come back from a call

__all__ = ["FOLDER", "Acquired", "Busy", "SharedOwnership"]


class SharedOwnership:
    """One parent's ownership of one run directory.

    Attributes:
        holder: our name in the folder.
    """

    def __init__(
        self,
        run_dir: StrPath,
        lost: Callable[[str], None],
        *,
        interval: float | None = None,
        patience: float | None = None,
    ) -> None:
        """`lost(text)` is called at most once, from a thread: another machine owns the run, stop writing.

        `interval` and `patience` in seconds, as `Lease` has them. A dead owner's child may still save: `patience`
        should not be less than the time it may take.

        Raises:
            ReplicaUnreachable, ReplicaRefused: the folder cannot be looked at.
        """
        self.holder = new_holder()
        place = Folder(os.path.join(os.fspath(run_dir), FOLDER))
        self._lease = Lease(place, _GENERATION, self.holder, 1, interval=interval, patience=patience)
        self._lost = lost
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, wait: Callable[[float], None]) -> Acquired | Busy:
        """Become the owner and stay it, or find out who is; see `Lease.acquire`. The token here only counts owners.

        Raises:
            ReplicaUnreachable, ReplicaRefused, ReplicaFull: another call goes on where this one was.
        """
        found = self._lease.acquire(wait)
        if isinstance(found, Acquired):
            self._end.clear()
            self._thread = threading.Thread(target=self._keep, name="ksupervise-lease", daemon=True)
            self._thread.start()
        return found

    def release(self) -> None:
        """Let go, at once for others if the file system answers in time; else after their patience. Never raises."""
        if self._thread is None:
            return
        self._end.set()
        self._thread.join(_JOIN)
        if self._thread.is_alive():  # the file system hangs, and a lease is not for two threads
            return
        self._thread = None
        try:
            self._lease.release()
        except ReplicaFault:
            return

    def _keep(self) -> None:
        pause = 0.0
        while not self._end.wait(pause):
            try:
                if not self._lease.until_beat:
                    self._lease.beat()  # first: on NFS a directory that we changed is listed anew
                if not self._lease.check():
                    self._lost(self._lease.lost)
                    return
            except ReplicaFault:
                pass  # out of reach is not lost; what is written there fails as well, and says so
            quarter = self._lease.interval / 4  # so often a loss is looked for
            pause = min(quarter, self._lease.until_beat or quarter)
