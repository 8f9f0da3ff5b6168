"""What a user writes behind --replica, made a place."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit

from ksupervise.errors import UsageError
from ksupervise.replicas.folder import Folder
from ksupervise.replicas.objects import SCHEMES, open_bucket
from ksupervise.replicas.place import Place

_KNOWN = f"a folder, file:///FOLDER, {', '.join(f'{scheme}://BUCKET/PREFIX' for scheme in SCHEMES)}"


def open_place(text: str) -> Place:
    """The place that `text` names: a folder (relative to here, or with ~), or a URL.

    A folder is looked at, so that this can block as all of a place's methods can; nothing is asked of a bucket yet.

    Raises:
        UsageError: it names none.
        ReplicaUnreachable, ReplicaRefused: it cannot be used now, or as things are.
    """
    scheme, slashes = _scheme_of(text)
    if not text.strip():
        raise UsageError(f"--replica names no place. It can be {_KNOWN}.")
    if scheme == "file" and slashes:
        return Folder(_folder_of(text))
    if scheme in SCHEMES and slashes:
        return open_bucket(text)
    if slashes or scheme in SCHEMES:
        raise UsageError(f"--replica {scheme}:{slashes}…: there is no such kind of place. It can be {_KNOWN}.")
    return Folder(os.path.expanduser(text))


def _scheme_of(text: str) -> tuple[str, str]:
    """The scheme of a URL, and the "//" behind it if it is there."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):(//|)", text)
    return (found[1].lower(), found[2]) if found else ("", "")


def _folder_of(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise UsageError(f"--replica {url}: a folder of this machine is file:///FOLDER, with three slashes.")
    return unquote(parts.path)
