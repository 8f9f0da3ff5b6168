"""`calls`: killed, or told an error, at every system call of what changes a store. What is done is in tests/store."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from store_controls import Peers
from store_trials import Bench, Line, Verdict, deaf
from tests.store.torture_child import ACTS
from tests.store.torture_rack import KILL, Rack, Site, trials, why_not

PART = "calls"


def lines(bench: Bench, peers: Peers | None) -> Iterator[Line]:
    """For each act one line of kills and one of errors."""
    del peers
    if reason := why_not():
        yield Line(PART, ", ".join(ACTS), skipped=reason)
        return
    # Processes with one thread each: they fork their victims.
    with ProcessPoolExecutor(bench.jobs, multiprocessing.get_context("spawn"), deaf) as pool:
        try:
            for act in ACTS:
                folder = bench.folder(f"{PART}/{act}")
                rack = Rack(act, str(folder))
                rack.prepare()
                harms = trials(pool.submit(rack.sites).result(), quick=bench.quick)
                yield _line(bench, pool, rack, "killed", [harm for harm in harms if harm[1] == KILL])
                yield _line(bench, pool, rack, "told an error", [harm for harm in harms if harm[1] != KILL])
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _line(bench: Bench, pool: ProcessPoolExecutor, rack: Rack, what: str, harms: list[tuple[Site, str]]) -> Line:
    named = {f"{PART}/{rack.act}:{site.call}:{site.when}:{how}": (site, how) for site, how in harms}
    futures = {name: pool.submit(rack.harm, *named[name]) for name in bench.chosen(named)}
    line = Line(PART, f"{rack.act}, {what}")
    for name, future in futures.items():
        try:
            said, flaw = future.result()
        except Exception as error:
            said, flaw = "broken", f"{type(error).__name__}: {error}"
        line.verdicts.append(Verdict(name, said, flaw))
    return line
