"""`boot.zip`: what the child is given."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import ksupervise
from ksupervise.parent import boot

PACKAGE = Path(ksupervise.__file__).parent


def packed() -> zipfile.ZipFile:
    """The archive, opened."""
    return zipfile.ZipFile(io.BytesIO(boot.archive()))


def test_the_same_sources_make_the_same_bytes() -> None:
    assert boot.archive() == boot.archive()


def test_it_holds_the_childs_part_and_nothing_else() -> None:
    files = (path for room in ("child", "store") for path in (PACKAGE / room).rglob("*.py"))
    rooms = {f"ksupervise/{path.relative_to(PACKAGE)}" for path in files if path.name != "sitecustomize.py"}
    leaves = {"sitecustomize.py", "ksupervise/__init__.py", "ksupervise/errors.py", "ksupervise/wire.py"}
    with packed() as archive:
        assert set(archive.namelist()) == rooms | leaves
        assert len(archive.namelist()) == len(rooms | leaves)


def test_it_is_stored_so_that_no_zlib_is_needed() -> None:
    with packed() as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.testzip() is None


def test_packing_replaces_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "boot.zip"
    path.write_bytes(b"an older one")
    boot.pack(path)
    assert path.read_bytes() == boot.archive()
    assert list(tmp_path.iterdir()) == [path]


def test_everything_in_it_can_be_imported_where_ksupervise_is_not_installed(tmp_path: Path) -> None:
    path = tmp_path / "boot.zip"
    boot.pack(path)
    with packed() as archive:
        names = [name[:-3].replace("/", ".").removesuffix(".__init__") for name in archive.namelist()]
    modules = [name for name in names if name != "sitecustomize"]
    program = f"import {', '.join(modules)}; print(ksupervise.__file__)"
    environment = {"PYTHONPATH": str(path), "PATH": os.environ.get("PATH", "")}
    result = subprocess.run(
        [sys.executable, "-S", "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(path)), "from the zip, with no site-packages at all"
