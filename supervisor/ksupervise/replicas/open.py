"""What the settings made of --replica, opened; and whether these places and the store keep out of each other's way."""

from __future__ import annotations

from collections.abc import Sequence

from ksupervise.errors import UsageError
from ksupervise.replicas.clouds import CLOUDS
from ksupervise.replicas.folder import Folder
from ksupervise.replicas.objects import open_bucket
from ksupervise.replicas.place import Place
from ksupervise.store.atomic import StrPath
from ksupervise.store.mounts import holds, resolved


def open_place(text: str) -> Place:
    """The place that `text` names: the absolute path of a folder, or the URL of a bucket.

    A folder is looked at, so that this can block as all of a place's methods can; nothing is asked of a bucket yet.

    Raises:
        UsageError: the environment holds what cannot be meant.
        ReplicaUnreachable, ReplicaRefused: it cannot be used now, or as things are.
    """
    if "://" in text and not _is_bucket(text):
        raise UsageError(f"{text}: there is no such kind of replica")
    return open_bucket(text) if _is_bucket(text) else Folder(text)


def check_places(places: Sequence[str], store: StrPath) -> None:
    """Refuse a folder that is given twice, by whatever name, and one that holds the store or lies in it.

    Asks no file system that may not answer: of what lies behind such a mount links are not followed.

    Raises:
        UsageError: it names both.
    """
    home = resolved(store)
    known: dict[str, str] = {}
    for place in places:
        where = place if _is_bucket(place) else resolved(place)
        if where in known:
            raise UsageError(f"--replica {known[where]} and --replica {place} are one and the same: give it once.")
        known[where] = place
        if not _is_bucket(place) and (holds(where, home) or holds(home, where)):
            raise UsageError(
                f"--replica {place} and the store {store} lie one inside the other: what takes one takes both. Choose "
                "a folder elsewhere, on another disk or machine."
            )


def _is_bucket(text: str) -> bool:
    return text.partition("://")[0] in CLOUDS
