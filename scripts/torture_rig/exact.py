"""`scripts/torture exact`: interrupted scripts of many kinds must end as if they had been left alone.

Each case is a small Keras script: a data source, a set of callbacks, a kind of fit, and a point at which it is
interrupted. It runs once plainly and once supervised. Weights, History, evaluation, random generators and the files
that callbacks wrote must be the same, and a witness in the script counts what was really trained.
`--controls` shows the same cases under what people do without ksupervise; `--mutate` breaks ksupervise on purpose and
shows that the cases notice.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import exact_mutants
from exact_compare import KNOWN, Left, differences, exactly_once
from exact_matrix import NOT_IN_CONTROLS, POINTS, Case, chosen, lives, pruned, sampled
from kill import ZYGOTE, Live, processes_of, zygote

SCRIPT = Path(__file__).with_name("exact_cases.py")
SUPERVISOR = Path(__file__).resolve().parents[2] / "supervisor"
EVERY = "50ms"  # --every: several checkpoints an epoch
SLOW = "0.004"  # seconds a step, for the same reason
PATIENCE = 180.0  # seconds until a life counts as hanging
MOST_LIVES = 8
STAGING = 3  # wire.PHASE_STAGE
CONTROLS = ("backup", "recipe")


@dataclass
class Outcome:
    """What one case came to. `problems` is empty for a good one."""

    name: str
    control: str = ""
    problems: list[str] = field(default_factory=list)
    lives: int = 0
    planned: int = 0
    repeated: int = 0
    guarantees: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """There is more than what is documented."""
        return any(not problem.startswith(KNOWN) for problem in self.problems)


@dataclass
class Ended:
    """How the command ended, and what it said."""

    code: int
    lives: int
    output: str

    def then(self, other: Ended) -> Ended:
        """It was started again."""
        return Ended(other.code, self.lives + other.lives, self.output + other.output)


class Laboratory:
    """Runs scripts in folders of their own, warm."""

    def __init__(self, base: Path, socket: Path, seed: int, supervisor: Path) -> None:
        self.base, self.seed = base, seed
        self.script = [sys.executable, str(ZYGOTE), str(socket), str(SCRIPT)]
        self.environ = {**os.environ, "PYTHONPATH": str(supervisor), "TF_CPP_MIN_LOG_LEVEL": "3"}
        self.environ.pop("LIVES", None)

    def plain(self, case: Case, folder: Path) -> Left:
        """Without ksupervise, left alone. Raises RuntimeError if the script fails by itself."""
        folder.mkdir(parents=True)
        ended = self._life([*self.script, *case.script], folder, {}, None)
        if ended.code:
            raise RuntimeError(f"the plain script ends with {ended.code}: {_tail(ended.output)}")
        return Left.read(folder)

    def supervised(self, case: Case, folder: Path, planned: Left) -> Ended:
        """Under ksupervise, interrupted; started again where that is the user's part."""
        store = ["--store", str(folder / "store"), "--name", "job"]
        options = [*store, "--every", EVERY, "--max-failures", "10"]
        command = [sys.executable, "-m", "ksupervise", *options, *self.script, *case.script]
        environ = self._interrupting(case, planned)
        aimed = Aimed(folder, environ["LIVES"], planned) if case.point == "writing" else None
        ended = self._life(command, folder, environ, aimed)
        while ended.code in (75, -signal.SIGKILL) and ended.lives < MOST_LIVES:
            ended = ended.then(self._life(command, folder, environ, aimed))
        return ended

    def controlled(self, case: Case, folder: Path, planned: Left, control: str) -> Ended:
        """Relaunched by a loop that knows nothing, the script having been changed to help itself."""
        environ = {**self._interrupting(case, planned), "CONTROL": control}
        command = [*self.script, *case.script]
        ended = self._life(command, folder, {**environ, "LIFE": "1"}, None)
        while ended.code and ended.lives < MOST_LIVES:
            environ["LIFE"] = str(ended.lives + 1)
            ended = ended.then(self._life(command, folder, environ, None))
        return ended

    def status(self, folder: Path) -> dict[str, Any]:
        """`ksupervise status --json`."""
        command = [sys.executable, "-m", "ksupervise", "status", "--store", str(folder / "store"), "job", "--json"]
        answer = subprocess.run(command, env=self.environ, capture_output=True, check=True, timeout=PATIENCE)
        return dict(json.loads(answer.stdout))

    def _interrupting(self, case: Case, planned: Left) -> dict[str, str]:
        first = {at[:2] for at in planned.positions[:1]}
        last = max(batch for fit, epoch, batch in planned.positions if (fit, epoch) in first)
        return {"LIVES": lives(case, planned.positions, self.seed), "LAST_BATCH": str(last), "SLOW": SLOW}

    def _life(self, command: list[str], folder: Path, environ: dict[str, str], aimed: Aimed | None) -> Ended:
        """One start of the command, to its end."""
        folder.mkdir(exist_ok=True)
        with open(folder / "console", "w+b") as console:
            process = subprocess.Popen(
                command,
                env={**self.environ, **environ},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )
            (folder / "supervisor.pid").write_text(str(process.pid))
            try:
                if aimed is not None:
                    aimed.strike(process)
                code = process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                code = 124
            finally:
                _end(process, folder)
            console.seek(0)
            return Ended(code, 1, console.read().decode(errors="replace"))


def _end(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Nothing of a life that hangs, or was left by its parent, may disturb what follows for long."""
    if process.poll() is None:
        process.kill()
        process.wait()
        for pid in processes_of(folder / "store" / "job"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Aimed:
    """A kill from outside while a stage is being written: no code of the script runs then."""

    def __init__(self, folder: Path, told: str, planned: Left) -> None:
        self._folder, self._run = folder, folder / "store" / "job"
        at = tuple(map(int, told.partition("@")[2].partition("/")[0].split(":")))
        self._step = sum(1 for position in planned.positions if position < at)
        self._live = Live(self._run)
        self._done = False

    def strike(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for the moment, and kill the trainer."""
        end = time.monotonic() + PATIENCE
        while not self._done and process.poll() is None and time.monotonic() < end:
            words = self._live.look(1)
            if words is None:
                time.sleep(0.01)
            elif words[16] == STAGING and words[20] >= self._step and self._something_to_go_back_to():
                self._done = True
                self._kill()
            else:
                time.sleep(0.0002)

    def _something_to_go_back_to(self) -> bool:
        with contextlib.suppress(OSError):
            return any(True for _ in os.scandir(self._run / "checkpoints"))
        return False

    def _kill(self) -> None:
        claimed = _events(self._folder, "claimed")
        with contextlib.suppress(ProcessLookupError):
            os.kill(claimed[0]["pid"], signal.SIGKILL)
        with open(self._folder / "ends", "a") as stream:
            stream.write("1 writing\n")


def _events(folder: Path, name: str) -> list[dict[str, Any]]:
    with contextlib.suppress(OSError):
        lines = (folder / "store" / "job" / "journal.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines if name in line]
        return [record for record in records if record["event"] == name]
    return []


def _tail(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    return " | ".join(line.strip()[:200] for line in lines[-3:])


class References:
    """What the scripts compute if they are left alone, each run once."""

    def __init__(self, laboratory: Laboratory) -> None:
        self._laboratory = laboratory
        self._lock = threading.Lock()
        self._known: dict[tuple[str, ...], concurrent.futures.Future[Left]] = {}
        self._runs = 0

    def of(self, case: Case) -> Left:
        """The plain run of the case's script."""
        with self._lock:
            mine = case.script not in self._known
            future = self._known.setdefault(case.script, concurrent.futures.Future())
        if mine:
            try:
                future.set_result(self.again(case))
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def again(self, case: Case) -> Left:
        """One more plain run."""
        with self._lock:
            self._runs += 1
            folder = self._laboratory.base / f"plain{self._runs}"
        try:
            return self._laboratory.plain(case, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class Judge:
    """Runs cases and says what is wrong with them."""

    def __init__(self, laboratory: Laboratory, references: References, *, keep: bool) -> None:
        self.laboratory, self.references, self._keep = laboratory, references, keep

    def case(self, case: Case, control: str = "") -> Outcome:
        """One row of the table."""
        outcome = Outcome(case.name, control)
        began = time.monotonic()
        folder = self.laboratory.base / "-".join((*case.name.split("/"), *([control] if control else [])))
        folder.mkdir()
        try:
            self._run(case, folder, outcome)
        except Exception as error:
            outcome.problems.append(f"{type(error).__name__}: {error}")
        finally:
            if not (outcome.failed and self._keep):
                shutil.rmtree(folder, ignore_errors=True)
        outcome.seconds = round(time.monotonic() - began, 1)
        return outcome

    def _run(self, case: Case, folder: Path, outcome: Outcome) -> None:
        planned = self.references.of(case)
        outcome.planned = planned.executed
        if outcome.control:
            ended = self.laboratory.controlled(case, folder, planned, outcome.control)
        else:
            ended = self.laboratory.supervised(case, folder, planned)
        outcome.lives = ended.lives
        if ended.code:
            outcome.problems.append(f"exit code {ended.code}: {_tail(ended.output)}")
            return
        found = Left.read(folder)
        outcome.repeated = found.executed - planned.executed
        outcome.problems += self._of_the_end(case, planned, found)
        outcome.problems += _of_the_interruption(case, folder)
        if not outcome.control:
            self._of_the_accounts(folder, planned, found, outcome)

    def _of_the_end(self, case: Case, planned: Left, found: Left) -> list[str]:
        wrong = differences(planned, found, seeded=case.seeded)
        if not case.seeded:
            wrong += exactly_once(found)
        elif wrong:
            by_itself = differences(planned, self.references.again(case), seeded=True)
            if by_itself:
                wrong.append(f"THE RIG'S: the plain script differs from itself: {'; '.join(by_itself)}")
        return wrong

    def _of_the_accounts(self, folder: Path, planned: Left, found: Left, outcome: Outcome) -> None:
        status, say = self.laboratory.status(folder), outcome.problems.append
        outcome.lives = len(status["attempts"])
        outcome.guarantees = [str(record.get("guarantee")) for record in _events(folder, "resumed")]
        lost, executed = status["lost_steps"], status["steps_executed"]
        if status["state"] != "completed":
            say(f"the run is {status['state']}")
        if found.executed != planned.executed + lost:
            say(f"{found.executed} steps counted, {planned.executed} planned and {lost} lost by the journal")
        if executed != planned.executed + lost:
            say(f"{executed} steps executed by the journal, {planned.executed} planned and {lost} lost")
        for attempt in status["attempts"][1:]:
            if attempt["first_step"] is not None and not attempt["resumed_from"]:
                say(f"attempt {attempt['number']} began from nothing")
        if not any(attempt["resumed_from"] for attempt in status["attempts"]):
            say("no attempt resumed from a checkpoint")
        left = [path.name for path in (folder / "store" / "job" / "tmp").glob("*")]
        if left:
            say(f"left in tmp/: {left}")


def _of_the_interruption(case: Case, folder: Path) -> list[str]:
    ends = folder / "ends"
    happened = len(ends.read_text().splitlines()) if ends.exists() else 0
    intended = len(POINTS[case.point])
    return [] if happened == intended else [f"THE RIG'S: interrupted {happened} times instead of {intended}"]


# The table


class Table:
    """Prints rows as they come, and the summary."""

    def __init__(self, total: int, seed: int, *, as_json: bool) -> None:
        self.outcomes: list[Outcome] = []
        self._total, self._seed, self._as_json = total, seed, as_json
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """A line for people: not to stdout where that is for machines."""
        print(text, file=sys.stderr if self._as_json else sys.stdout, flush=True)

    def add(self, outcome: Outcome) -> None:
        """One more row."""
        self.outcomes.append(outcome)
        mark = "ok    " if not outcome.failed else "LOSES " if outcome.control else "DIFFER"
        name = f"{outcome.name} [{outcome.control}]" if outcome.control else outcome.name
        facts = f"{outcome.lives} lives, {outcome.repeated:+d} steps, {outcome.seconds:.0f} s"
        said = f"; {' / '.join(dict.fromkeys(outcome.guarantees))}" if outcome.guarantees else ""
        self.say(f"{len(self.outcomes):>4}/{self._total} {mark} {name:<58} {facts}{said}")
        for problem in outcome.problems:
            self.say(f"               {problem}")

    def end(self) -> int:
        """The summary; the exit code."""
        ours = [outcome for outcome in self.outcomes if not outcome.control]
        failed = [outcome for outcome in ours if outcome.failed]
        seconds = time.monotonic() - self._began
        for outcome in failed:
            self.say(f"FAILED: scripts/torture exact --only '^{outcome.name}$' --seed {self._seed}")
        for control in CONTROLS:
            self._end_control([outcome for outcome in self.outcomes if outcome.control == control])
        repeated = sum(outcome.repeated for outcome in ours)
        self.say(
            f"exact torture: {len(ours) - len(failed)} exact, {len(failed)} not, "
            f"{sum(outcome.lives for outcome in ours)} lives, {repeated} steps repeated, {seconds:.0f} s"
        )
        if self._as_json:
            facts = {"seed": self._seed, "seconds": round(seconds, 1), "failed": len(failed)}
            print(json.dumps({**facts, "cases": [asdict(outcome) for outcome in self.outcomes]}))
        return 1 if failed else 0

    def _end_control(self, outcomes: list[Outcome]) -> None:
        if not outcomes:
            return
        losing = [outcome for outcome in outcomes if outcome.failed]
        kinds = Counter(kind for outcome in losing for kind in {p.split(" ")[0] for p in outcome.problems})
        told = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common(6))
        repeated = sum(outcome.repeated for outcome in outcomes)
        self.say(
            f"control {outcomes[0].control}: {len(outcomes) - len(losing)} of {len(outcomes)} exact, "
            f"{repeated} steps repeated; what is lost: {told}"
        )


def torture(base: Path, cases: Sequence[Case], args: argparse.Namespace) -> int:
    """All cases, and their controls; the exit code."""
    kinds = ["", *CONTROLS] if args.controls else [""]
    rows = [(case, kind) for case in cases for kind in kinds if not kind or case.point not in NOT_IN_CONTROLS]
    table = Table(len(rows), args.seed, as_json=args.json)
    table.say(f"{len(cases)} cases, seed {args.seed}")
    with zygote(base) as socket, concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        laboratory = Laboratory(base, socket, args.seed, args.supervisor)
        judge = Judge(laboratory, References(laboratory), keep=args.keep)
        futures = [pool.submit(judge.case, *row) for row in rows]
        try:
            for future in concurrent.futures.as_completed(futures):
                table.add(future.result())
        finally:
            pool.shutdown(cancel_futures=True)
    return table.end()


class Hunt:
    """Breaks ksupervise in one place at a time, and looks for a case that notices."""

    def __init__(self, base: Path, socket: Path, args: argparse.Namespace) -> None:
        self._base, self._socket, self._args = base, socket, args
        whole = Laboratory(base, socket, args.seed, args.supervisor)
        self._references = References(whole)
        self._whole = Judge(whole, self._references, keep=args.keep)
        self._sound: dict[str, list[str]] = {}

    def of(self, number: int, mutant: exact_mutants.Mutant) -> str:
        """Who noticed; "" if nobody did."""
        folder = self._base / f"mutant{number}"
        folder.mkdir()
        try:
            stale = mutant.apply(self._args.supervisor, folder / "supervisor")
            if stale:
                return f"STALE: {stale}"
            broken = Laboratory(folder, self._socket, self._args.seed, folder / "supervisor")
            return self._noticed(mutant, Judge(broken, self._references, keep=self._args.keep))
        finally:
            if not self._args.keep:
                shutil.rmtree(folder, ignore_errors=True)

    def _noticed(self, mutant: exact_mutants.Mutant, judge: Judge) -> str:
        doubts = []
        for name in mutant.cases:
            problems = judge.case(Case(*name.split("/"))).problems
            if not problems or any("THE RIG'S" in problem for problem in problems):
                continue
            if not self._problems_if_whole(name):
                return f"noticed by {name}: {problems[0][:110]}"
            doubts.append(name)
        return f"SURVIVED {', '.join(mutant.cases)}" + (f" (not exact anyway: {', '.join(doubts)})" if doubts else "")

    def _problems_if_whole(self, name: str) -> list[str]:
        """A case proves something only if it is exact with all of ksupervise."""
        if name not in self._sound:
            self._sound[name] = self._whole.case(Case(*name.split("/"))).problems
        return self._sound[name]


def mutate(base: Path, args: argparse.Namespace) -> int:
    """Break ksupervise in one place at a time: some case must notice; the exit code."""
    mutants = [mutant for mutant in exact_mutants.MUTANTS if not args.only or mutant.matches(args.only)]
    told: dict[str, str] = {}
    stream = sys.stderr if args.json else sys.stdout
    with zygote(base) as socket, concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        hunt = Hunt(base, socket, args)
        futures = {pool.submit(hunt.of, number, mutant): mutant.name for number, mutant in enumerate(mutants)}
        try:
            for future in concurrent.futures.as_completed(futures):
                told[futures[future]] = future.result()
                print(f"{len(told):>3}/{len(mutants)} {futures[future]:<48} {future.result()}", file=stream, flush=True)
        finally:
            pool.shutdown(cancel_futures=True)
    left = [name for name, text in told.items() if not text.startswith("noticed")]
    print(f"mutations: {len(told) - len(left)} of {len(told)} noticed", file=stream)
    if args.json:
        print(json.dumps({"seed": args.seed, "survived": left, "mutations": told}))
    return 1 if left else 0


def main() -> int:
    """Run, print, and return 1 if anything differed."""
    parser = argparse.ArgumentParser(prog="scripts/torture exact", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=None, help="a sample of so many cases (default: the pruned matrix)")
    parser.add_argument("--seed", type=int, default=None, help="chooses the sample and the moments")
    parser.add_argument("--only", metavar="REGEX", help="cases whose source/callbacks/variant/point it matches")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--controls", action="store_true", help="also with BackupAndRestore, and with the recipe")
    parser.add_argument("--mutate", action="store_true", help="break ksupervise on purpose: the cases must notice")
    parser.add_argument(
        "--supervisor", type=Path, default=SUPERVISOR, metavar="DIR", help="another ksupervise's folder"
    )
    parser.add_argument("--list", action="store_true", help="print the cases' names")
    parser.add_argument("--keep", action="store_true", help="leave the folders of cases that differ")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.seed is None:
        args.seed = 1 if args.mutate else random.SystemRandom().randrange(10**6)
    cases = pruned() if args.runs is None else sampled(args.runs, args.seed)
    if args.only and not args.mutate:
        cases = chosen(args.only, cases)
        if not cases:
            parser.error(f"no case matches {args.only!r}")
    if args.list:
        print("\n".join(case.name for case in cases))
        return 0
    base = Path(tempfile.mkdtemp(prefix="exact-"))
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # what is below is to be tidied up
    try:
        return mutate(base, args) if args.mutate else torture(base, cases, args)
    finally:
        if args.keep:
            print(f"kept: {base}", file=sys.stderr)
        else:
            shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    raise SystemExit(main())
