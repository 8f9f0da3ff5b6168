"""Killed, or told an error, at every system call of what changes a store.

Whatever happens: the newest checkpoint is the old one or the new one, whole; what was acknowledged is there;
what must be kept is there; the next owner sweeps and goes on. `scripts/torture store` does more of it.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

import pytest

from ksupervise.store import RunLayout

from .torture_child import ACTS
from .torture_rack import CHANGING, ERRORS, KILL, Rack, Site, judge, trials, why_not

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


@pytest.fixture(scope="module", autouse=True)
def needs_strace() -> None:
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Processes with one thread each: they fork their victims."""
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as executor:
        yield executor


@pytest.fixture
def rack(request: pytest.FixtureRequest, tmp_path: Path) -> Rack:
    """A rack for the act that the test is given, else for a commit."""
    made = Rack(getattr(request, "param", "commit"), str(tmp_path))
    made.prepare()
    return made


def torture(pool: ProcessPoolExecutor, rack: Rack, harms: Iterable[tuple[Site, str]]) -> None:
    futures = [pool.submit(rack.harm, *harm) for harm in harms]
    flaws = [flaw for _, flaw in (future.result() for future in futures) if flaw]
    assert flaws == []


every_act = pytest.mark.parametrize("rack", list(ACTS), indirect=True)


@every_act
def test_harmed_at_the_calls_that_change_the_disk(rack: Rack, pool: ProcessPoolExecutor) -> None:
    harms = trials(pool.submit(rack.sites).result(), quick=True)
    assert {"rename", "fsync"} <= {site.call for site, _ in harms}
    assert {how for _, how in harms} == {KILL, *ERRORS}
    torture(pool, rack, harms)


@pytest.mark.parametrize("call", ["fcntl", "write"])
def test_a_file_system_without_direct_writes_will_do(call: str, rack: Rack, pool: ProcessPoolExecutor) -> None:
    # Of fcntl the second: the first only asks. Of write the first: it is the whole block.
    site = [site for site in pool.submit(rack.sites).result() if site.call == call][call == "fcntl"]
    inject = f"inject={site.call}:error=EINVAL:when={site.when}"
    ran = pool.submit(rack.run, "-o", "/dev/null", "-e", f"trace={call}", "-e", inject).result()
    assert ran.said == "acked", ran
    assert judge("commit", ran, killed=False) == "acked: new"


def test_everything_is_on_the_disk_before_it_is_published(rack: Rack, pool: ProcessPoolExecutor) -> None:
    """What no SIGKILL can show: the page cache survives it. So the order of the syncs is read off."""
    log = os.path.join(rack.directory, "log")
    ran = pool.submit(rack.run, "-y", "-s", "0", "-o", log, "-e", "trace=openat,write,fsync,rename").result()
    assert ran.said == "acked", ran
    with open(log, encoding="utf-8") as file:
        lines = [line for line in file.read().splitlines() if ran.root in line]
    [rename] = [number for number, line in enumerate(lines) if " rename(" in line]
    synced = [name_of(line) for line in lines[:rename] if " fsync(" in line]
    written = [name_of(line) for line in lines[:rename] if " write(" in line]
    temporary = os.path.dirname(written[0])
    names = [os.path.basename(path) for path in synced]
    assert names == ["state", "extra.json", "MANIFEST.json", os.path.basename(temporary)]
    assert set(written) == set(synced[:3]), "nothing unsynced is published"
    assert [name_of(line) for line in lines[rename:] if " fsync(" in line] == [RunLayout(ran.root).checkpoints]
    for path in synced[:3]:
        last = [line for line in lines[:rename] if f"<{path}>" in line and " openat(" not in line][-1]
        assert " fsync(" in last, "nothing is written after the sync"


def name_of(line: str) -> str:
    """The path of the descriptor that the call was given."""
    match = re.search(r"\(\d+<([^>]*)>", line)
    assert match, line
    return match[1]


@pytest.mark.torture
@every_act
def test_harmed_at_every_call(rack: Rack, pool: ProcessPoolExecutor) -> None:
    sites = pool.submit(rack.sites).result()
    assert len(sites) > 10
    assert {site.call for site in sites} > CHANGING & {"rename", "fsync", "write"}
    torture(pool, rack, itertools.chain(trials(sites, quick=False)))
