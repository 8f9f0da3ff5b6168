"""`boot.zip`: our part of the child, packed at the run's start.

It holds `sitecustomize.py` and the package's child, wire, store and errors, nothing else. An upgrade of
ksupervise in mid-run changes nothing for the run, and an environment that does not have ksupervise
installed needs nothing.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from ksupervise.store import replace_file, write_fault

_PACKAGE = Path(__file__).resolve().parent.parent
_MODULES = ("__init__.py", "errors.py", "wire.py")
_ROOMS = ("child", "child/data", "store")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same bytes from the same sources


def pack(path: Path) -> None:
    """Write the archive to `path`, replacing what is there. Raises StoreUnwritable, StoreFull."""
    try:
        replace_file(path, archive())
    except OSError as error:
        raise write_fault(error, str(path)) from error


def archive() -> bytes:
    """The archive's bytes. Stored, not deflated: the child then needs no zlib to boot."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as packed:
        _add(packed, "sitecustomize.py", _PACKAGE / "child" / "boot" / "sitecustomize.py")
        for name in _MODULES:
            _add(packed, f"ksupervise/{name}", _PACKAGE / name)
        for room in _ROOMS:
            for source in sorted((_PACKAGE / room).glob("*.py")):
                _add(packed, f"ksupervise/{room}/{source.name}", source)
    return out.getvalue()


def _add(packed: zipfile.ZipFile, name: str, source: Path) -> None:
    packed.writestr(zipfile.ZipInfo(name, _EPOCH), source.read_bytes())
