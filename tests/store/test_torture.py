"""Killed, or told EIO or ENOSPC, at every system call of one commit and of one prune.

Whatever happens: the newest checkpoint is the old one or the new one, whole; what was acknowledged is there;
what must be kept is there; the next owner sweeps and goes on.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ksupervise.store import CheckpointStore, RunLayout, to_keep

from .torture_child import BEGIN, END, RUN, big_payload, commit

if TYPE_CHECKING:
    from collections.abc import Iterable

STRACE = shutil.which("strace")
CHILD = Path(__file__).with_name("torture_child.py")
CHANGING = {"mkdir", "rename", "fsync", "write", "unlink", "rmdir"}
FAILING = CHANGING | {
    "openat",
    "close",
    "fcntl",
    "newfstatat",
    "fstat",
    "lstat",
    "stat",
    "getdents64",
    "read",
}
HARMS = ["signal=KILL", "error=EIO", "error=ENOSPC"]


@dataclass(frozen=True)
class Site:
    """The `when`-th call of that name since the process began."""

    call: str
    when: int


def why_not() -> str | None:
    """Why nothing can be traced here, if so."""
    if STRACE is None:
        return "strace is not installed"
    probe = subprocess.run([STRACE, "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    return f"strace may not trace here: {probe.stderr.strip()}" if probe.returncode else None


@pytest.fixture(scope="session", autouse=True)
def needs_strace() -> None:
    if reason := why_not():
        pytest.skip(reason)


class Rack:
    """A run to torture, fresh for every harm."""

    def __init__(self, act: str, directory: Path) -> None:
        self.act = act
        self.directory = directory
        self.template = directory / "template"
        RunLayout(self.template).create()
        store = CheckpointStore(self.template, RUN)
        for seed in [1] if act == "commit" else [1, 2, 3]:
            commit(store, seed)

    def run(self, *options: str) -> tuple[Path, subprocess.CompletedProcess[str]]:
        """Act on a copy of the run, under strace with these options."""
        assert STRACE is not None
        root = self.directory / uuid.uuid4().hex
        shutil.copytree(self.template, root / "run")
        command = [sys.executable, "-S", "-B", str(CHILD), self.act, str(root / "run"), str(root / "scratch")]
        environment = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.defpath}
        done = subprocess.run(
            [STRACE, "-f", "-qq", *options, *command],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return root / "run", done

    def sites(self) -> list[Site]:
        """Every call between the two marks that goes to a file or a descriptor."""
        log = self.directory / "log"
        root, done = self.run("-o", str(log), "-e", "trace=%file,%desc", "-e", "signal=none")
        assert done.stdout == "acked\n", done
        shutil.rmtree(root.parent)
        seen: Counter[str] = Counter()
        sites: list[Site] = []
        within = False
        for line in log.read_text().splitlines():
            match = re.match(r"\d+ +(\w+)\(", line)
            assert match, line
            seen[match[1]] += 1
            if END in line:
                break
            if within:
                sites.append(Site(match[1], seen[match[1]]))
            within = within or BEGIN in line
        return sites

    def harm(self, site: Site, how: str) -> None:
        """Harm that call, and look at what is left."""
        inject = f"inject={site.call}:{how}:when={site.when}"
        root, done = self.run("-o", "/dev/null", "-e", f"trace={site.call}", "-e", inject)
        what = f"{self.act}, {inject}: {done.returncode} {done.stdout!r} {done.stderr[-2000:]}"
        if how == "signal=KILL":
            assert done.returncode == -signal.SIGKILL, what
        else:
            assert done.returncode == 0, what
            assert done.stdout == "acked\n" or done.stdout.startswith("refused store-"), what
        check = self.check_commit if self.act == "commit" else self.check_prune
        try:
            check(CheckpointStore(root, RUN), acked=done.stdout == "acked\n", clean="error" in how)
        except Exception as error:
            raise AssertionError(what) from error
        shutil.rmtree(root.parent)

    def check_commit(self, store: CheckpointStore, *, acked: bool, clean: bool) -> None:
        newest = store.newest()
        assert newest is not None
        assert newest.manifest.seq in ((2,) if acked else (1, 2))
        if clean:
            assert os.listdir(store.layout.tmp) == [], "a refused commit cleans up after itself"
        assert_goes_on(store)

    def check_prune(self, store: CheckpointStore, *, acked: bool, clean: bool) -> None:
        del acked, clean  # an acknowledged prune may have left a victim that could not be looked at
        before = CheckpointStore(self.template, RUN).checkpoints()
        must_stay = [each.manifest for each in to_keep(before, 1)]
        left = [each.manifest for each in store.checkpoints()]
        assert [each for each in left if each in must_stay] == must_stay
        assert_goes_on(store)


def assert_goes_on(store: CheckpointStore) -> None:
    """The next owner finds only what is whole, sweeps, and commits."""
    assert store.damaged() == []
    store.sweep()
    assert os.listdir(store.layout.tmp) == os.listdir(store.layout.trash) == []
    for each in store.checkpoints():
        for name, buffers in big_payload(each.manifest.extra["seed"]).items():
            assert b"".join(store.read(each, name)) == b"".join(buffers)
    seq = store.next_seq()
    commit(store, seq)
    newest = store.newest()
    assert newest is not None
    assert newest.manifest.seq == seq


def torture(rack: Rack, harms: Iterable[tuple[Site, str]]) -> None:
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for _ in pool.map(lambda harm: rack.harm(*harm), harms):
            pass


@pytest.mark.parametrize("act", ["commit", "prune"])
def test_killed_at_the_calls_that_change_the_disk(act: str, tmp_path: Path) -> None:
    rack = Rack(act, tmp_path)
    sites = [site for site in rack.sites() if site.call in CHANGING]
    assert {"rename", "fsync"} <= {site.call for site in sites}
    torture(rack, [(site, "signal=KILL") for site in sites])


@pytest.mark.parametrize("act", ["commit", "prune"])
def test_refused_at_some_calls(act: str, tmp_path: Path) -> None:
    rack = Rack(act, tmp_path)
    sites = [site for site in rack.sites() if site.call in CHANGING]
    torture(rack, [(site, HARMS[1 + number % 2]) for number, site in enumerate(sites)])


@pytest.mark.parametrize("call", ["fcntl", "write"])
def test_a_file_system_without_direct_writes_will_do(call: str, tmp_path: Path) -> None:
    rack = Rack("commit", tmp_path)
    # Of fcntl the second: the first only asks. Of write the first: it is the whole block.
    site = [site for site in rack.sites() if site.call == call][call == "fcntl"]
    inject = f"inject={site.call}:error=EINVAL:when={site.when}"
    root, done = rack.run("-o", "/dev/null", "-e", f"trace={call}", "-e", inject)
    assert done.stdout == "acked\n", done
    rack.check_commit(CheckpointStore(root, RUN), acked=True, clean=True)


def test_everything_is_on_the_disk_before_it_is_published(tmp_path: Path) -> None:
    """What no SIGKILL can show: the page cache survives it. So the order of the syncs is read off."""
    rack = Rack("commit", tmp_path)
    log = tmp_path / "log"
    root, done = rack.run("-y", "-s", "0", "-o", str(log), "-e", "trace=openat,write,fsync,rename")
    assert done.stdout == "acked\n", done
    lines = [line for line in log.read_text().splitlines() if str(root) in line]
    [rename] = [number for number, line in enumerate(lines) if " rename(" in line]
    synced = [name_of(line) for line in lines[:rename] if " fsync(" in line]
    written = [name_of(line) for line in lines[:rename] if " write(" in line]
    temporary = os.path.dirname(written[0])
    names = [os.path.basename(path) for path in synced]
    assert names == ["state", "extra.json", "MANIFEST.json", os.path.basename(temporary)]
    assert set(written) == set(synced[:3]), "nothing unsynced is published"
    assert [name_of(line) for line in lines[rename:] if " fsync(" in line] == [str(root / "checkpoints")]
    for path in synced[:3]:
        last = [line for line in lines[:rename] if f"<{path}>" in line and " openat(" not in line][-1]
        assert " fsync(" in last, "nothing is written after the sync"


def name_of(line: str) -> str:
    """The path of the descriptor that the call was given."""
    match = re.search(r"\(\d+<([^>]*)>", line)
    assert match, line
    return match[1]


@pytest.mark.torture
@pytest.mark.parametrize("how", HARMS)
@pytest.mark.parametrize("act", ["commit", "prune"])
def test_harmed_at_every_call(act: str, how: str, tmp_path: Path) -> None:
    rack = Rack(act, tmp_path)
    sites = [site for site in rack.sites() if how == "signal=KILL" or site.call in FAILING]
    assert len(sites) > 20
    torture(rack, [(site, how) for site in sites])
