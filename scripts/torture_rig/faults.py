"""`scripts/torture faults`: every way to go wrong that is known, and what ksupervise makes of it.

Each fault is done to a real training under a real ksupervise, at a random moment. The cause must be named rightly, the
decision must be the right one, a completed run must have the weights and the History of the undisturbed script, no
more may be lost than was trained since the last stage, and nothing may be left: no process, memory file, socket or
temporary file. With one bad run it exits 1.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from faults_list import FAULTS, UNTESTED, Fault
from faults_outside import lacking
from faults_run import STOP, ZYGOTE, Outcome, Run, environment, results, script
from kill import RECORD, Expected

_HEAD = f"{'fault':<24} {'good':>5}  {'decision':<34} {'detect':>12} {'lost':>8} {'left':>4}  found"


def main() -> int:
    """Run, print, and return 1 if anything went wrong."""
    parser = argparse.ArgumentParser(prog="scripts/torture faults", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=None, help="of each fault (default 5, with --quick 1)")
    parser.add_argument("--seed", type=int, default=None, help="of each fault's first run; each run has the next")
    parser.add_argument("--only", default="", metavar="NAME,…", help="these faults")
    parser.add_argument("--quick", action="store_true", help="each fault once")
    parser.add_argument("--cold", action="store_true", help="no forks of a warm interpreter")
    parser.add_argument("--jobs", type=int, default=4, help="runs at a time; many of them wait")
    parser.add_argument("--keep", action="store_true", help="leave the folders of bad runs")
    parser.add_argument("--list", action="store_true", help="name the faults")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    chosen = [name for name in args.only.split(",") if name]
    unknown = sorted(set(chosen) - {fault.name for fault in FAULTS})
    if unknown:
        parser.error(f"--only: there is no fault {', '.join(unknown)}; --list names them")
    if args.list:
        print("\n".join(fault.name for fault in FAULTS))
        return 0
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(10**6)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    base = Path(tempfile.mkdtemp(prefix="torture-faults-"))
    bench = Bench(base, args.runs or (1 if args.quick else 5), seed, args.jobs, cold=args.cold, keep=args.keep)
    try:
        return bench.torture(chosen, as_json=args.json)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        if args.keep and list(base.glob("*/store")):
            print(f"left: {base}", file=sys.stderr)
        else:
            shutil.rmtree(base, ignore_errors=True)


class Bench:
    """All runs."""

    def __init__(self, base: Path, runs: int, seed: int, jobs: int, *, cold: bool, keep: bool) -> None:
        self._base = base
        self._runs = runs
        self._seed = seed
        self._jobs = jobs
        self._cold = cold
        self._keep = keep
        self._zygote: Path | None = None
        self._planned: dict[str, Expected] = {}

    def torture(self, chosen: Sequence[str], *, as_json: bool) -> int:
        """The exit code."""
        began = time.monotonic()
        stream = sys.stderr if as_json else sys.stdout
        faults, untested = choose(chosen)
        print(f"seed {self._seed}, {len(faults)} faults, {self._runs} runs each", file=stream, flush=True)
        outcomes: list[Outcome] = []
        with contextlib.ExitStack() as stack:
            if not self._cold and any(fault.warm for fault in faults):
                self._zygote = stack.enter_context(zygote(self._base))
            pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(self._jobs))
            self._plan(faults, pool)
            print(_HEAD, file=stream, flush=True)
            waiting = {
                fault.name: [pool.submit(self._one, fault, self._seed + run) for run in range(self._runs)]
                for fault in faults
            }
            stack.callback(stop, pool)
            for fault in faults:
                done = [each.result() for each in waiting[fault.name]]
                outcomes += done
                print(row(fault, done), file=stream, flush=True)
        return summary(outcomes, untested, self._seed, time.monotonic() - began, as_json=as_json)

    def _plan(self, faults: Sequence[Fault], pool: concurrent.futures.Executor) -> None:
        """What the undisturbed scripts leave."""
        kinds = sorted(
            {fault.data for fault in faults if fault.state == "completed" and fault.same and not fault.script}
        )
        self._planned = dict(zip(kinds, pool.map(self._undisturbed, kinds), strict=True))

    def _undisturbed(self, data: str) -> Expected:
        fault = Fault("undisturbed", (), act="", data=data, pace=0.0)
        folder = self._base / f"undisturbed-{data}"
        folder.mkdir()
        with open(folder / "console", "wb") as console:
            subprocess.run(
                script(fault, folder, self._zygote),
                check=True,
                stdout=console,
                stderr=console,
                timeout=600,
                cwd=folder,
                env=environment(fault, folder),
            )
        return results(folder, (folder / "count").stat().st_size // RECORD.size)

    def _one(self, fault: Fault, seed: int) -> Outcome:
        folder = self._base / f"{fault.name}-{seed}"
        folder.mkdir()
        outcome = Run(fault, folder, seed, self._zygote).torment(self._planned.get(fault.data) if fault.same else None)
        if not (outcome.problems and self._keep):
            shutil.rmtree(folder, ignore_errors=True)
        return outcome


def choose(names: Sequence[str]) -> tuple[list[Fault], dict[str, str]]:
    """The faults to be done, and why others are not."""
    untested = {} if names else dict(UNTESTED)
    faults = []
    for fault in FAULTS:
        if names and fault.name not in names:
            continue
        why = lacking(fault.needs) or ("" if names else fault.only and f"{fault.only}; --only {fault.name} does it")
        if why:
            untested[fault.name] = why
        else:
            faults.append(fault)
    return faults, untested


def stop(pool: concurrent.futures.Executor) -> None:
    """What has not begun does not, and what runs ends. Nothing is left to stop but after a Ctrl-C."""
    STOP.set()
    pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def zygote(folder: Path) -> Iterator[Path]:
    """A warm zygote's socket."""
    path = folder / "zygote.sock"
    with open(folder / "zygote.log", "wb") as log:
        command = [sys.executable, str(ZYGOTE), "serve", str(path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise RuntimeError((folder / "zygote.log").read_text())
        yield path
    finally:
        process.kill()
        process.wait()


def row(fault: Fault, outcomes: Sequence[Outcome]) -> str:
    """One line of the table, and one for each bad run."""
    good = sum(not outcome.problems for outcome in outcomes)
    decisions = collections.Counter(decision(outcome) for outcome in outcomes)
    made = ", ".join(f"{count} x {words}" if len(decisions) > 1 else words for words, count in decisions.items())
    detect = [seconds for outcome in outcomes for seconds in outcome.detect]
    lost = [steps for outcome in outcomes for steps in outcome.lost]
    left = sum(len(outcome.leftovers) for outcome in outcomes)
    named = collections.Counter(name for outcome in outcomes for name in outcome.named)
    found = ", ".join(f"{count} {name}" for name, count in named.items())
    seconds = f"{statistics.median(detect):.1f} {max(detect):.1f} s" if detect else "-"
    steps = f"{statistics.median(lost):.0f} {max(lost)}" if lost else "-"
    counts = f"{good}/{len(outcomes)}"
    lines = [f"{fault.name:<24} {counts:>5}  {made:<34} {seconds:>12} {steps:>8} {left:>4}  {found}"]
    for outcome in outcomes:
        where = " ".join(filter(None, (outcome.at, outcome.options)))
        lines += [f"    BAD seed {outcome.seed} ({where}): {problem}" for problem in outcome.problems]
    return "\n".join(lines)


def decision(outcome: Outcome) -> str:
    """What was done about it."""
    codes = ", then ".join(map(str, outcome.codes))
    return f"{outcome.state or '?'} after {len(outcome.named)}, exit {codes}"


def confusion(outcomes: Sequence[Outcome]) -> collections.Counter[tuple[str, str]]:
    """How often which true cause got which name. An attempt too many, or one that is missing, is "none"."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for outcome in outcomes:
        causes, named = outcome.fault.causes, outcome.named
        for index in range(max(len(causes), len(named))):
            right = causes[index] if index < len(causes) else "none"
            name = named[index] if index < len(named) else "none"
            counts[name if name in right.split("|") else right.partition("|")[0], name] += 1
    return counts


def table(counts: collections.Counter[tuple[str, str]]) -> str:
    """True causes down, named ones across; what is off the diagonal is marked."""
    names = sorted({name for pair in counts for name in pair}, key=lambda name: (name == "none", name))
    lines = ["\ntrue cause \\ named cause: " + ", ".join(f"{number} {name}" for number, name in enumerate(names, 1))]
    width = max(map(len, names), default=0)
    lines.append(" " * (width + 4) + "".join(f"{number:>6}" for number in range(1, len(names) + 1)))
    for number, true in enumerate(names, 1):
        cells = []
        for name in names:
            count = counts[true, name]
            cells.append(f"{f'!{count}' if count and name != true else count or '.':>6}")
        lines.append(f"{number:>3} {true:<{width}}" + "".join(cells))
    return "\n".join(lines)


def summary(outcomes: list[Outcome], untested: dict[str, str], seed: int, seconds: float, *, as_json: bool) -> int:
    """Print the tables and how to repeat what is bad; 1 if anything is."""
    bad = [outcome for outcome in outcomes if outcome.problems]
    counts = confusion(outcomes)
    off = sum(count for (true, name), count in counts.items() if true != name)
    autograph = sum(outcome.autograph for outcome in outcomes)
    if as_json:
        facts = {
            "seed": seed,
            "runs": len(outcomes),
            "bad": len(bad),
            "seconds": round(seconds, 1),
            "confusion": [{"true": true, "named": name, "count": count} for (true, name), count in counts.items()],
            "off_diagonal": off,
            "autograph_files": autograph,
            "untested": untested,
            "outcomes": [outcome.facts() for outcome in outcomes],
        }
        print(json.dumps(facts))
        return 1 if bad else 0
    print(table(counts))
    print(f"{sum(counts.values())} attempts, {off} named wrongly")
    print(f"TensorFlow left {autograph} __autograph_generated_file* in the temporary directories, which is its own")
    for name, why in untested.items():
        print(f"untested: {name}: {why}")
    for outcome in bad:
        print(f"BAD: scripts/torture faults --only {outcome.fault.name} --runs 1 --seed {outcome.seed}")
    print(f"fault torture: {len(outcomes) - len(bad)} of {len(outcomes)} good, {seconds:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
