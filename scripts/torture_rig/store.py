"""`scripts/torture store`: everything that can happen to files, and what is left of the checkpoints.

Parts: `calls` (killed, or told an error, at every system call), `kill` (killed in mid-save), `powercut`, `rot` (damaged
files), `enotconn` (the mount goes away), `stage` (killed in mid-stage). Beside ours stand the same trials with what
people save with today, as controls: what is bad with them does not count. With one bad trial of ours it exits 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import store_calls
import store_controls
import store_disk
import store_enotconn
import store_kill
import store_powercut
import store_rot
import store_stage
from store_trials import Bench, Line, Verdict, end_all, mark_ours

Part = Callable[[Bench, "store_controls.Peers | None"], Iterator[Line]]
PARTS: dict[str, Part] = {
    "calls": store_calls.lines,
    "kill": store_kill.lines,
    "powercut": store_powercut.lines,
    "rot": store_rot.lines,
    "enotconn": store_enotconn.lines,
    "stage": store_stage.lines,
}
MOST = 10  # bad ones of one line that are printed
HEAD = f"{'part':<9} {'what':<34} {'trials':>6} {'good':>5} {'bad':>4}  what was found"


def main() -> int:
    """Run, print, and return 1 if anything of ours went wrong."""
    parser = argparse.ArgumentParser(prog="scripts/torture store", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=None, help="trials of each line with random ones")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", default="", metavar="PART[/TRIAL]", help=f"one of {', '.join(PARTS)}")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time")
    parser.add_argument("--keep", action="store_true", help="leave the folders of the trials")
    parser.add_argument("--quick", action="store_true", help="few trials, no controls")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    part, _, trial = args.only.partition("/")
    if part and part not in PARTS:
        parser.error(f"--only: there is no part {part!r}; there are {', '.join(PARTS)}")
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(10**6)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    base = Path(tempfile.mkdtemp(prefix="torture-store-"))
    mark_ours(base)
    bench = Bench(base, seed, args.quick, args.runs, args.only if trial else "", args.jobs)
    try:
        return torture(bench, [part] if part else list(PARTS), as_json=args.json)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        end_all(base)
        store_disk.release(base)
        if not args.keep:
            shutil.rmtree(base)


def torture(bench: Bench, parts: Sequence[str], *, as_json: bool) -> int:
    """All parts; the exit code."""
    began = time.monotonic()
    stream = sys.stderr if as_json else sys.stdout
    print(f"seed {bench.seed}\n{HEAD}", file=stream, flush=True)
    done: list[Line] = []
    with contextlib.ExitStack() as stack:
        peers = None if bench.quick else stack.enter_context(contextlib.closing(store_controls.Peers(bench.base)))
        for part in parts:
            for line in PARTS[part](bench, peers):
                if line.verdicts or line.skipped:
                    done.append(line)
                    print(row(line), file=stream, flush=True)
    if not done:
        print(f"there is no trial {bench.only!r}", file=sys.stderr)
        return 2
    return summary(done, bench, time.monotonic() - began, as_json=as_json)


def row(line: Line) -> str:
    """One line of the table."""
    trials, bad = len(line.verdicts), len(line.bad)
    what = f"  control: {line.what}" if line.control else line.what
    return f"{line.part:<9} {what:<34} {trials:>6} {trials - bad:>5} {bad:>4}  {line.found()}"


def summary(lines: Sequence[Line], bench: Bench, seconds: float, *, as_json: bool) -> int:
    """Print what is bad and how to repeat it; 1 if something of ours is."""
    ours = [verdict for line in lines if not line.control for verdict in line.verdicts]
    bad = [verdict for verdict in ours if verdict.flaw]
    if as_json:
        facts = {"seed": bench.seed, "trials": len(ours), "bad": len(bad), "seconds": round(seconds, 1)}
        print(json.dumps({**facts, "lines": [line.facts() for line in lines]}))
        return 1 if bad else 0
    for line in lines:
        if not line.control and line.bad:
            print_bad(line.bad, bench)
    controls = sum(len(line.verdicts) for line in lines if line.control)
    skipped = sum(bool(line.skipped) for line in lines)
    print(
        f"\nstore torture: {len(ours) - len(bad)} good, {len(bad)} bad, "
        f"{controls} controls, {skipped} lines skipped, {seconds:.0f} s"
    )
    return 1 if bad else 0


def print_bad(bad: Sequence[Verdict], bench: Bench) -> None:
    """Each with the command that repeats it; of many the first."""
    for verdict in bad[:MOST]:
        print(f"\nFAILED: {verdict.trial}: {verdict.flaw}")
        print(f"    scripts/torture store --seed {bench.seed} --only '{verdict.trial}'")
    if len(bad) > MOST:
        print(f"\n... and {len(bad) - MOST} more")


if __name__ == "__main__":
    raise SystemExit(main())
