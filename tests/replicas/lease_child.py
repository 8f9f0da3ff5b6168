"""A machine of the lease's tests: `lease_child.py FOLDER HOLDER excludes|branches`.

It acquires with a short interval, says what came of it, and then "owner" at every check until it lost ("lost") or its
standard input ends ("released"). Who finds an owner says "busy WHERE" and leaves.
"""

from __future__ import annotations

import select
import sys
import threading

from ksupervise.replicas.folder import Folder
from ksupervise.replicas.format import Generation
from ksupervise.replicas.lease import Acquired, Lease

INTERVAL = 0.1  # seconds


def say(text: str) -> None:
    print(text, flush=True)


def wait(seconds: float) -> None:
    threading.Event().wait(seconds)


def main(folder: str, holder: str, kind: str) -> None:
    """Play the machine."""
    place = Folder(folder)
    place.excludes = kind == "excludes"
    generation = Generation(1, "1f2e3d4c", "digits")
    lease = Lease(place, generation, holder, 1, interval=INTERVAL, patience=30 * INTERVAL)
    found = lease.acquire(wait)
    if not isinstance(found, Acquired):
        say(f"busy {found.where}")
        return
    say(f"acquired {found.token}")
    while True:
        lease.beat()
        if not lease.check():
            say("lost")
            return
        say("owner")
        if select.select([sys.stdin], [], [], lease.until_beat)[0]:
            lease.release()
            say("released")
            return


if __name__ == "__main__":
    main(*sys.argv[1:4])
