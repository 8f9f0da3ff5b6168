"""`scripts/torture partition`: two machines, one bucket, and links that are cut: who owns the run, and who notices.

Each machine is a process tree with a store, a host name, a network namespace and perhaps clocks of its own. A history
cuts a link, stops or kills a machine, starts another one. A run that is cut off is taken over in bounded time, the one
that was superseded stops with the clear message as soon as it hears of it, nobody touches what is the new owner's, and
the run ends with the bits of the undisturbed job. A partition that is shorter than that changes nothing.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kill import RECORD, Expected
from lost_places import BucketReplica
from partition_net import why_not
from partition_run import (
    DRAINED,
    FAST,
    INTERVAL,
    JOB,
    LEAST_PATIENCE,
    TAKEOVER,
    WIDTH,
    Clocks,
    Machine,
    Outcome,
    Run,
)
from tests.replicas.s3_server import Fate, Server, serving

HOUR = 3600

# The histories. Each returns the machine that came to the end.


def superseded(run: Run, first: Clocks | None = None, second: Clocks | None = None) -> Machine:
    """A is cut off, B takes over; A comes back, notices and stops, and does not get the run when it is called again."""
    a, b = run.machine("a", first), run.machine("b", second)
    run.train(a, run.random.randint(1, 4))
    run.pause(0.0, INTERVAL)
    run.cut(a)
    held = run.held()
    b.start()
    run.await_takeover(b)
    run.expect_resumed(b, held)
    run.pause(0.0, 20.0)
    run.heal(a)
    run.await_superseded(a)
    a.start()
    run.await_busy(a)
    return run.finish(b)


def short(run: Run) -> Machine:
    """A is cut off for less than a takeover takes. B, called meanwhile, finds a living owner; A goes on."""
    a, b = run.machine("a"), run.machine("b")
    run.train(a, run.random.randint(1, 4))
    run.pause(0.0, INTERVAL)
    run.cut(a)
    b.start()
    run.pause(5.0, 20.0)
    run.heal(a)
    run.await_busy(b)
    run.await_goes_on(a)
    return run.finish(a)


def claiming(run: Run) -> Machine:
    """A is lost. B is cut off while it waits or claims; it goes on afterwards, by itself or when called again."""
    a, b = run.machine("a"), run.machine("b")
    run.train(a, run.random.randint(1, 4))
    a.die()
    held = run.held()
    run.say("a lost")
    b.start()
    if run.random.random() < 0.5:
        run.pause(0.0, 65.0)
    else:
        run.until(lambda: _has_claimed(run, b), "claim of b", TAKEOVER)
    run.cut(b)
    run.pause(5.0, 50.0)
    run.heal(b)
    healed = time.monotonic()
    while b.owned_since() is None and b.alive:
        time.sleep(0.1)
    for _ in range(3):
        if b.owned_since() is not None:
            break
        run.say(f"b called again, it had said: {b.last_words}")
        b.start()
        while b.owned_since() is None and b.alive:
            time.sleep(0.1)
    run.await_takeover(b, since=healed, within=TAKEOVER + 60.0)
    run.expect_resumed(b, held)
    return run.finish(b)


def rivals(run: Run) -> Machine:
    """A is lost. B and C take over at the same time, and one of them is cut off for a while: one of them trains."""
    a, b, c = run.machine("a"), run.machine("b"), run.machine("c")
    run.train(a, run.random.randint(1, 4))
    a.die()
    run.say("a lost")
    b.start()
    run.pause(0.0, 2.0)
    c.start()
    run.until(lambda: _has_claimed(run, b) or _has_claimed(run, c), "claim", TAKEOVER)
    unlucky = run.random.choice((b, c))
    run.cut(unlucky)
    run.pause(5.0, 30.0)
    run.heal(unlucky)
    run.until(lambda: b.alive != c.alive, "end of one of the rivals")
    winner, loser = (b, c) if b.alive else (c, b)
    assert loser.process is not None
    if loser.process.returncode != DRAINED:
        run.problem(f"{loser.name} left with {loser.process.returncode}: {loser.last_words}")
    run.say(f"{loser.name} left")
    run.await_takeover(winner, within=TAKEOVER + 60.0)
    return run.finish(winner)


def both(run: Run) -> Machine:
    """A is cut off and B takes over; B is cut off, too. A comes back first, and stops; B comes back, and goes on."""
    a, b = run.machine("a"), run.machine("b")
    run.train(a, run.random.randint(1, 4))
    run.cut(a)
    b.start()
    run.await_takeover(b)
    run.await_copies(b, 1)
    run.cut(b)
    run.pause(0.0, 20.0)
    run.heal(a)
    run.await_superseded(a)
    run.heal(b)
    run.await_goes_on(b)
    return run.finish(b)


def stopped(run: Run) -> Machine:
    """All of A is stopped (SIGSTOP) for longer than a takeover takes, and continued."""
    a, b = run.machine("a"), run.machine("b")
    run.train(a, run.random.randint(1, 4))
    run.pause(0.0, 5.0)
    a.signal(signal.SIGSTOP)
    run.say("a stopped")
    b.start()
    run.await_takeover(b)
    run.await_copies(b, 1)
    run.pause(0.0, 10.0)
    a.signal(signal.SIGCONT)
    run.say("a continued")
    run.await_superseded(a)
    return run.finish(b)


def newer(run: Run) -> Machine:
    """A brings a checkpoint more while B looks on, and is lost before its next sign of life: B has that one, too."""
    a, b = run.machine("a"), run.machine("b")
    run.train(a, 1)
    run.until(lambda: len(run.signs(a)) >= 2, "second sign of life of a")
    b.start()
    run.until(lambda: "waiting for a sign of life" in b.words, "look of b at a")
    signs = len(run.signs(a))
    run.await_goes_on(a)
    run.await_goes_on(a)
    a.die()
    run.say("a lost")
    held = run.held()
    if len(run.signs(a)) > signs:  # b was late: it has found a living owner
        run.await_busy(b)
        b.start()
    run.await_takeover(b)
    run.expect_resumed(b, held)
    return run.finish(b)


def unwell(run: Run) -> Machine:
    """The bucket refuses A's checkpoints for minutes, and takes its signs of life: it is alive, and stays the owner."""
    a, b = run.machine("a"), run.machine("b")
    run.train(a, 1)
    a.link.between.rule = _refuse_checkpoints
    run.say("a's uploads fail")
    run.pause(60.0, 90.0)
    for _ in range(2):
        b.start()
        run.until(lambda: not b.alive or b.owned_since() is not None, "answer for b")
        if b.owned_since() is not None:
            run.problem("b took the run from an owner that lives and can say so")
            run.await_superseded(a)
            return run.finish(b)
        run.await_busy(b)
    signs = run.signs(a)
    longest = max((after - before for before, after in itertools.pairwise(signs)), default=0.0)
    run.say(f"a's signs of life were {longest:.0f} s apart at most")
    if longest >= LEAST_PATIENCE:
        run.problem(f"a lives and could say so, and said nothing for {longest:.0f} s: it can be taken over after 60")
    a.link.between.rule = lambda _method, _path: "fine"
    run.await_goes_on(a)
    return run.finish(a)


def skewed(run: Run) -> Machine:
    """`superseded`, with wall clocks that are hours apart: A's is ahead, B's behind."""
    return superseded(run, Clocks(wall=5 * HOUR), Clocks(wall=-7 * HOUR))


def long_up(run: Run) -> Machine:
    """`superseded`, with machines that were started at other times: their monotonic clocks are weeks apart."""
    return superseded(run, Clocks(monotonic=40 * 24 * HOUR), Clocks(monotonic=24 * HOUR))


HISTORIES: Mapping[str, Callable[[Run], Machine]] = {
    "superseded": superseded,
    "short": short,
    "stopped": stopped,
    "claiming": claiming,
    "both": both,
    "rivals": rivals,
    "newer": newer,
    "unwell": unwell,
    "skewed": skewed,
    "long up": long_up,
}
QUICK = ("superseded", "short", "stopped")


def _has_claimed(run: Run, machine: Machine) -> bool:
    """It has written its claim."""
    found = [deed for deed in run.deeds.all() if deed.who == machine.name and deed.at >= machine.began]
    return any(re.fullmatch(r".*/owner/\d+\.json", deed.key) for deed in found if deed.verb == "wrote")


def _refuse_checkpoints(method: str, path: str) -> Fate:
    return "failing" if method in ("PUT", "POST") and "/checkpoints/" in path else "fine"


def main() -> int:
    """Run, print, and return 1 if anything went wrong."""
    parser = argparse.ArgumentParser(prog="scripts/torture partition", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=None, help=f"default: {len(HISTORIES)}, one of each history")
    parser.add_argument("--seed", type=int, default=None, help="of the first run; each run has the next")
    parser.add_argument("--only", default=None, metavar="HISTORY", help=", ".join(HISTORIES))
    parser.add_argument("--jobs", type=int, default=4, help="runs at a time; they mostly wait")
    parser.add_argument("--quick", action="store_true", help=f"few runs: {', '.join(QUICK)}")
    parser.add_argument("--keep", action="store_true", help="leave the folders of failed runs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.only is not None and args.only not in HISTORIES:
        parser.error(f"--only {args.only}: there are {', '.join(HISTORIES)}")
    if why := why_not():
        print(json.dumps({"runs": 0, "skipped": why}) if args.json else f"skipped: {why}")
        return 0
    histories = [args.only] if args.only else [*(QUICK if args.quick else HISTORIES)]
    runs = args.runs if args.runs is not None else len(histories)
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(10**6)
    plan = [(seed + index, histories[index % len(histories)]) for index in range(runs)]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    base = Path(os.path.realpath(tempfile.mkdtemp(prefix="torture-partition-")))
    try:
        return torture(base, plan, args.jobs, keep=args.keep, as_json=args.json)
    finally:
        if args.keep:
            print(f"left: {base}", file=sys.stderr)
        else:
            shutil.rmtree(base, ignore_errors=True)


def torture(base: Path, plan: Sequence[tuple[int, str]], jobs: int, *, keep: bool, as_json: bool) -> int:
    """All runs; the exit code."""
    began = time.monotonic()
    planned = plain_job(base / "plain")
    stream = sys.stderr if as_json else sys.stdout
    print(f"seed {plan[0][0]}; undisturbed: {planned.steps} steps, weights {planned.digest[:12]}", file=stream)
    outcomes: list[Outcome] = []
    with serving() as server, concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for outcome in pool.map(lambda each: one_run(base, each[0], each[1], server, planned, keep=keep), plan):
            outcomes.append(outcome)
            print(f"{len(outcomes):>4}/{len(plan)} {row(outcome)}", file=stream, flush=True)
    return summary(outcomes, time.monotonic() - began, as_json=as_json)


def plain_job(folder: Path) -> Expected:
    """Run the job without ksupervise."""
    folder.mkdir()
    (folder / "pace").write_text(FAST)
    words = ["--width", WIDTH, "--count", str(folder / "count"), "--out", str(folder / "out")]
    with open(folder / "console", "wb") as console:
        environ = {**os.environ, "TORTURE_PACE": str(folder / "pace")}
        subprocess.run(
            [sys.executable, str(JOB), *words], check=True, stdout=console, stderr=console, timeout=600, env=environ
        )
    return Expected.of(folder, (folder / "count").stat().st_size // RECORD.size)


def one_run(base: Path, seed: int, history: str, server: Server, planned: Expected, *, keep: bool) -> Outcome:
    """One, of that history."""
    folder = base / f"run{seed}"
    folder.mkdir()
    outcome = Outcome(seed, history)
    with BucketReplica.on(server, f"bucket-{seed}", random.Random(seed)) as replica:
        Run(folder, seed, replica, outcome, server).torment(HISTORIES[history], planned)
    if not (outcome.problems and keep):
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


def row(outcome: Outcome) -> str:
    """One line, and one more for each problem."""
    flaws = "".join(f"\n    FAILED: {problem}" for problem in outcome.problems)
    late = (
        f"; {outcome.late} late manifest{'s' if outcome.late != 1 else ''} under its own name" if outcome.late else ""
    )
    return (
        f"{outcome.history:<10} seed {outcome.seed}: {', '.join(outcome.story)}{late}; {outcome.seconds:.0f} s{flaws}"
    )


def summary(outcomes: Sequence[Outcome], seconds: float, *, as_json: bool) -> int:
    """Print the counts; 1 if a run failed."""
    failed = [outcome for outcome in outcomes if outcome.problems]
    taken_over = sorted(each for outcome in outcomes for each in outcome.taken_over)
    noticed = sorted(each for outcome in outcomes for each in outcome.noticed)
    if as_json:
        facts = {
            "runs": len(outcomes),
            "good": len(outcomes) - len(failed),
            "taken_over_s": taken_over,
            "noticed_s": noticed,
            "late_manifests": sum(outcome.late for outcome in outcomes),
            "seconds": round(seconds, 1),
        }
        print(json.dumps({**facts, "problems": {outcome.seed: outcome.problems for outcome in failed}}))
        return 1 if failed else 0
    for what, times in (("taken over after", taken_over), ("superseded and stopped after", noticed)):
        if times:
            print(
                f"{what}: {times[len(times) // 2]:.0f} s in the middle, {times[-1]:.0f} s at most, {len(times)} times"
            )
    for outcome in failed:
        print(f"FAILED: scripts/torture partition --runs 1 --seed {outcome.seed} --only '{outcome.history}'")
    print(f"partitions: {len(outcomes) - len(failed)} of {len(outcomes)} good, {seconds:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
