"""`ksupervise stop`: ask the parent of a run, wherever it runs on this machine, to save and stop."""

from __future__ import annotations

from pathlib import Path

from ksupervise.errors import KsuperviseError
from ksupervise.parent.link import ask
from ksupervise.store import RunLayout, owner_is_alive, read_owner


class NotReachable(KsuperviseError):
    """The run's owner lives elsewhere or does not answer."""

    slug = "not-reachable"


def stop(directory: Path) -> str:
    """Ask; return what to tell the user. Raises NotReachable."""
    owner = read_owner(RunLayout(directory).lock)
    name = directory.name
    if owner is None or owner_is_alive(owner) is False:
        return f"run {name} is not running"
    if ask(owner.address, {"op": "stop"}) is None:
        raise NotReachable(
            f"run {name} is supervised by process {owner.pid} on {owner.host}, which does not answer here; "
            "stop it on that machine"
        )
    return f"run {name} was asked to save and stop"
