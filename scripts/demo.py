"""Train an example under ksupervise, kill it again and again, train it plainly, compare.

The child gets SIGKILL at three random moments inside fit, the parent gets SIGTERM once and is started again. Both
trainings must end with the same weights, bit for bit, and with few steps trained twice: a supervisor that starts over
after each kill would reach the same weights, too. Exit code 0 only if all of that holds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

SCRIPTS = Path(__file__).resolve().parent
EXAMPLES = {"cnn": "digits_cnn.py", "tfdata": "digits_tfdata.py"}
STEPS_PER_EPOCH = 45  # both examples: 1437 images in batches of 32
STRIKES = ["child", "child", "child", "parent"]  # SIGKILL, SIGKILL, SIGKILL, SIGTERM: in random order
RUN = "digits"  # the run's name
LIMIT = 15 * 60.0  # seconds for everything; two minutes are usual
LOOK = 0.2  # seconds between two looks at `ksupervise status`
EXIT_SAVED = 75


class Failed(Exception):
    """The demo cannot go on."""


class Screen:
    """Dated lines, and on a terminal one line at the bottom that says where the training is."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._terminal = sys.stdout.isatty()
        self._width = min(shutil.get_terminal_size().columns, 100)

    def line(self, text: str = "") -> None:
        """Print a line, with nothing added."""
        with self._lock:
            print(self._clear() + text, flush=True)

    def say(self, mark: str, text: str) -> None:
        """Print what happened, when, folded to the width."""
        first = f"{time.monotonic() - self._began:6.1f} s  {mark:<2} "
        indent = " " * len(first)
        self.line(textwrap.fill(text, self._width, initial_indent=first, subsequent_indent=indent))

    def where(self, text: str) -> None:
        """Rewrite the line at the bottom."""
        if self._terminal:
            with self._lock:
                print(f"{self._clear()}{' ' * 12}{text}"[: self._width + 8], end="", flush=True)

    def _clear(self) -> str:
        return "\r\033[K" if self._terminal else ""


@dataclass
class Interruption:
    """One strike, and what was known at that moment."""

    target: str
    attempt: int
    step: int
    checkpoint: int | None


@dataclass
class Outcome:
    """What one of the two trainings came to."""

    attempts: str
    executed: int
    lost: int
    resumed: str
    accuracy: str
    wall: float
    digest: str = ""
    updates: int = 0  # as the optimizer itself counted them: they are in the file beside the weights


@dataclass
class Demo:
    """The job, and all that has to be cleaned up."""

    example: str
    epochs: int
    rng: random.Random
    work: Path
    screen: Screen = field(default_factory=Screen)
    end: float = field(default_factory=lambda: time.monotonic() + LIMIT)
    process: subprocess.Popen[bytes] | None = None
    child: int = 0
    interruptions: list[Interruption] = field(default_factory=list)

    def command(self, out: str) -> list[str]:
        """The script's command line; `out` is where its results go."""
        script = SCRIPTS / "examples" / EXAMPLES[self.example]
        return ["python", str(script), "--epochs", str(self.epochs), "--out", out]

    # Under ksupervise

    def supervised(self) -> Outcome:
        """Train under ksupervise and interrupt it."""
        strikes = self._plan()
        self.screen.say("$", f"ksupervise --name {RUN} {self._shown('killed')}")
        began = time.monotonic()
        code = self._start_and_strike(strikes)
        while code == EXIT_SAVED and self.interruptions and self.interruptions[-1].target == "parent":
            self.screen.say("", "exit code 75: saved, run me again. The same command:")
            code = self._start_and_strike(strikes)
        wall = time.monotonic() - began
        if code:
            raise Failed(f"ksupervise ended with exit code {code}")
        if strikes:
            raise Failed("the training was over before all interruptions were made; try more --epochs")
        standing = self._status()
        resumed = ["start" if each["resumed_from"] is None else each["resumed_from"] for each in standing["attempts"]]
        return Outcome(
            attempts=str(len(standing["attempts"])),
            executed=standing["steps_executed"],
            lost=standing["lost_steps"],
            resumed="  ".join(map(str, resumed)),
            accuracy=self._accuracy("killed"),
            wall=wall,
        )

    def _plan(self) -> list[tuple[int, str]]:
        """(step, target), the last first: one random step in each quarter of the training's middle."""
        targets = self.rng.sample(STRIKES, len(STRIKES))
        total = self.epochs * STEPS_PER_EPOCH
        begin, width = 0.06 * total, 0.88 * total / len(targets)
        steps = [int(self.rng.uniform(begin + k * width, begin + (k + 1) * width)) for k in range(len(targets))]
        return list(zip(steps, targets, strict=True))[::-1]

    def _start_and_strike(self, strikes: list[tuple[int, str]]) -> int:
        """Start ksupervise, interrupt it as planned, and return its exit code."""
        command = ["ksupervise", "--name", RUN, *self.command("killed")]
        with self._log("killed") as log, self._running(command, log, subprocess.PIPE) as process:
            reader = threading.Thread(target=self._show_messages, args=(process,), daemon=True)
            reader.start()
            while process.poll() is None:
                self._pause()
                standing = self._status()
                if not self._inside_fit(standing):
                    self.screen.where("outside fit: importing TensorFlow, building the model …")
                    continue
                self.screen.where(f"epoch {standing['epoch'] + 1} of {self.epochs}, step {standing['step']}")
                if strikes and standing["step"] >= strikes[-1][0]:
                    self._strike(process, strikes.pop()[1])
            reader.join(5.0)
            return process.returncode

    def _inside_fit(self, standing: dict[str, Any]) -> bool:
        """The attempt in hand has made steps, and was not interrupted yet."""
        if not standing or standing["phase"] not in ("training", "validating", "staging"):
            return False
        latest = standing["attempts"][-1]
        if any(each.attempt == latest["number"] for each in self.interruptions):
            return False
        self.child = standing["child_pid"]
        return latest["ended"] is None and latest["first_step"] is not None and standing["step"] > latest["first_step"]

    def _strike(self, process: subprocess.Popen[bytes], target: str) -> None:
        time.sleep(self.rng.uniform(0.0, LOOK))  # not always right after a look
        standing = self._status()
        checkpoint = standing["checkpoint"]
        known = checkpoint["step"] if checkpoint else None
        self.interruptions.append(Interruption(target, standing["attempt"], standing["step"], known))
        name, pid = ("SIGTERM", process.pid) if target == "parent" else ("SIGKILL", standing["child_pid"])
        self.screen.say("!!", f"{name} to the {target} (process {pid}) near step {standing['step']}")
        os.kill(pid, signal.Signals[name])

    def _show_messages(self, process: subprocess.Popen[bytes]) -> None:
        """What ksupervise says; what the script writes to stderr goes to a file."""
        assert process.stderr is not None
        with self._log("killed.err") as log:
            for line in process.stderr:
                if line.startswith(b"ksupervise: "):
                    self.screen.say("", line.decode(errors="replace").strip().replace(f"{self.work}/", ""))
                else:
                    log.write(line)

    def _status(self) -> dict[str, Any]:
        """`ksupervise status --json`, empty while there is no run."""
        answer = self.ask("ksupervise", "status", RUN, "--json")
        standing: dict[str, Any] = json.loads(answer) if answer else {}
        return standing

    def ask(self, *command: str) -> str:
        """What `command` prints, nothing if it fails."""
        result = subprocess.run(command, cwd=self.work, capture_output=True, text=True, timeout=60.0, check=False)
        return result.stdout if result.returncode == 0 else ""

    # Plainly

    def plain(self) -> Outcome:
        """Train with nothing around it."""
        self.screen.say("$", self._shown("plain"))
        began = time.monotonic()
        with self._log("plain") as log, self._running(self.command("plain"), log, subprocess.STDOUT) as process:
            while process.poll() is None:
                self._pause()
                epochs = re.findall(r"Epoch (\d+)/", self._output("plain"))
                self.screen.where(f"epoch {epochs[-1]} of {self.epochs}" if epochs else "outside fit …")
        wall = time.monotonic() - began
        if process.returncode:
            raise Failed(f"the plain training ended with exit code {process.returncode}")
        return Outcome("1", 0, 0, "start", self._accuracy("plain"), wall)

    # Both

    def measure(self, outcome: Outcome, out: str) -> None:
        """Fill in what the file of final weights tells."""
        path = self.work / out / "final.weights.h5"
        answer = self.ask("python", str(SCRIPTS / "weights_digest.py"), str(path))
        if not answer:
            raise Failed(f"there are no final weights at {path}")
        outcome.digest = answer.split()[0]
        import h5py

        with h5py.File(path, "r") as file:
            outcome.updates = int(file["optimizer/vars/0"][()])

    def _shown(self, out: str) -> str:
        return " ".join(self.command(out)).replace(f"{SCRIPTS.parent}/", "")

    @contextmanager
    def _running(self, command: Sequence[str], stdout: Any, stderr: int) -> Iterator[subprocess.Popen[bytes]]:
        """`command` in a session of its own: a Ctrl-C is for us, and we stop it in good order."""
        with subprocess.Popen(
            command, cwd=self.work, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
        ) as process:
            self.process = process
            try:
                yield process
            finally:
                self._stop(process)
                self.process = None

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        """Leave nothing running: ask, then kill the parent's group and the child's."""
        if process.poll() is not None:
            return
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # an impatient second Ctrl-C must not leave it running
        process.terminate()
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            for leader in (process.pid, self.child):
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(leader, signal.SIGKILL)

    def _pause(self) -> None:
        time.sleep(LOOK)
        if time.monotonic() > self.end:
            raise Failed(f"not done after {LIMIT / 60:.0f} minutes")

    @contextmanager
    def _log(self, name: str) -> Iterator[Any]:
        with open(self.work / f"{name}.log", "ab") as stream:
            yield stream

    def _output(self, name: str) -> str:
        return (self.work / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def _accuracy(self, name: str) -> str:
        found = re.findall(r"final accuracy: (\S+)", self._output(name))
        return str(found[-1]) if found else "none printed"


def compare(demo: Demo, supervised: Outcome, plain: Outcome) -> list[str]:
    """Show both side by side; return what is wrong."""
    planned = plain.executed = plain.updates
    rows: list[tuple[str, Callable[[Outcome], str]]] = [
        ("attempts", lambda each: each.attempts),
        ("steps planned", lambda each: str(planned)),
        ("steps executed", lambda each: str(each.executed)),
        ("steps lost, trained again", lambda each: str(each.lost)),
        ("began at / resumed from", lambda each: each.resumed),
        ("final accuracy", lambda each: each.accuracy),
        ("wall time", lambda each: f"{each.wall:.0f} s"),
        ("sha256 of final weights", lambda each: each.digest[:32]),
        ("", lambda each: each.digest[32:]),
    ]
    demo.screen.line()
    demo.screen.line(f"{'':<25}  {'with ksupervise, killed':<32}  plain")
    demo.screen.line(f"{'':<25}  {'─' * 32}  {'─' * 32}")
    for label, cell in rows:
        demo.screen.line(f"{label:<25}  {cell(supervised):<32}  {cell(plain)}")
    demo.screen.line()
    return list(_faults(demo, supervised, planned, plain.digest))


def _faults(demo: Demo, supervised: Outcome, planned: int, digest: str) -> Iterator[str]:
    if supervised.digest != digest:
        yield "the final weights differ"
    resumed = supervised.resumed.split()
    if len(resumed) != len(demo.interruptions) + 1:
        yield f"{len(demo.interruptions)} interruptions, but {len(resumed)} attempts"
    for each in demo.interruptions:
        began = resumed[each.attempt] if each.attempt < len(resumed) else "start"
        if each.checkpoint and (began == "start" or int(began) < each.checkpoint):
            yield f"after attempt {each.attempt} there was a checkpoint at step {each.checkpoint}, unused: {began}"
    if supervised.executed != planned + supervised.lost:
        yield f"{supervised.executed} steps executed are not {planned} planned and {supervised.lost} lost"


def run(demo: Demo) -> int:
    """The whole demo. The exit code."""
    supervised = demo.supervised()
    demo.screen.line()
    demo.screen.line(demo.ask("ksupervise", "status", RUN).partition("attempts\n")[2].rstrip())
    demo.screen.line()
    plain = demo.plain()
    demo.measure(supervised, "killed")
    demo.measure(plain, "plain")
    faults = compare(demo, supervised, plain)
    if faults:
        demo.screen.line(f"FAILED: {'; '.join(faults)}.")
        return 1
    demo.screen.line(f"Equal, bit for bit, after {len(demo.interruptions)} interruptions. {_price(demo, supervised)}")
    return 0


def _price(demo: Demo, supervised: Outcome) -> str:
    kills = sum(each.target == "child" for each in demo.interruptions)
    lost = f"{supervised.lost} of {supervised.executed} steps were trained twice"
    return f"{lost}, {supervised.lost / kills:.0f} for each SIGKILL."


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--example", choices=sorted(EXAMPLES), default="cnn", help="which script (default cnn)")
    parser.add_argument("--epochs", type=int, default=24, metavar="N", help="5 to 40 (default 24)")
    parser.add_argument("--seed", type=int, metavar="S", help="of the random moments (default: another each time)")
    args = parser.parse_args()
    if not 5 <= args.epochs <= 40:  # fewer leave no room between the kills, more may be stopped early
        parser.error("--epochs must be from 5 to 40")
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)

    work = Path(tempfile.mkdtemp(prefix="ksupervise-demo-"))
    demo = Demo(args.example, args.epochs, random.Random(seed), work)
    demo.screen.line(
        f"{EXAMPLES[args.example]}, {args.epochs} epochs. Three SIGKILLs to the child and one SIGTERM to the parent"
    )
    demo.screen.line(
        f"at random moments (--seed {seed} aims at the same steps again), then the same training plainly.\n"
    )
    code = 0
    try:
        code = run(demo)
    except Failed as failure:
        demo.screen.line(f"\nFAILED: {failure}.")
        code = 1
    except KeyboardInterrupt:
        demo.screen.line("\ninterrupted; everything is stopped and removed")
        code = 130
    finally:
        if code == 1:
            demo.screen.line(f"What it left is in {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
