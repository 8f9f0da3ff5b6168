"""What all benchmarks share: processes to measure, medians with their spread, and the table."""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent / "examples"
WORKLOADS = HERE / "workloads"

Result = TypeVar("Result")


@dataclass(frozen=True)
class Spread:
    """A sample by its median, quartiles, and a 95 % bootstrap interval of the median."""

    median: float
    quartile1: float
    quartile3: float
    low: float
    high: float
    count: int


def spread(values: Sequence[float]) -> Spread:
    """The spread of at least one value."""
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(4000))
    return Spread(statistics.median(values), quartiles[0], quartiles[2], medians[100], medians[-101], len(values))


@dataclass(frozen=True)
class Row:
    """One line of the table. `aim`: ("≤" or "≥", bound), None for a number that only explains another."""

    what: str
    unit: str
    spread: Spread
    aim: tuple[str, float] | None = None

    @property
    def met(self) -> bool | None:
        """The median meets the aim; None where there is none."""
        if self.aim is None:
            return None
        sign, bound = self.aim
        return self.spread.median >= bound if sign == "≥" else self.spread.median <= bound


@dataclass(frozen=True)
class Table:
    """Many ways beside each other.

    `lines`: each way, with what was found of it for each of `columns`, None where there is nothing to find.
    """

    title: str
    columns: tuple[str, ...]
    lines: list[tuple[str, tuple[Spread | None, ...]]]


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, Python {platform.python_version()}, {platform.release()}"


@dataclass
class Report:
    """What a benchmark found."""

    bench: str
    quick: bool
    seed: int
    tables: list[Table] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)
    machine: str = field(default_factory=_machine)
    load: list[float] = field(default_factory=lambda: [round(os.getloadavg()[0], 2)])

    def add(self, what: str, unit: str, values: Sequence[float], aim: tuple[str, float] | None = None) -> None:
        """Add a row made of `values`; without values there is no row."""
        if values:
            self.rows.append(Row(what, unit, spread(values), aim))

    def finish(self) -> None:
        """All is measured."""
        self.load.append(round(os.getloadavg()[0], 2))

    def as_json(self) -> str:
        """For programs."""
        rows = [{**asdict(row), "met": row.met} for row in self.rows]
        tables = [asdict(table) for table in self.tables]
        return json.dumps({**vars(self), "tables": tables, "rows": rows})

    def as_text(self) -> str:
        """For people."""
        heading = f"{self.bench}{' (quick)' if self.quick else ''}: {self.machine}"
        lines = [f"{heading}; load {self.load[0]} before, {self.load[-1]} after; seed {self.seed}", ""]
        for table in self.tables:
            beside = [(way, *map(_cell, found)) for way, found in table.lines]
            lines += [*_columns([(table.title, *table.columns), *beside]), ""]
        heads = ("", "median", "quartiles", "95 % of median", "n", "aim", "")
        lines += _columns([heads, *map(_cells, self.rows)])
        return "\n".join([*lines, *([""] if self.notes else []), *self.notes])


def _columns(table: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in table]


def _cell(found: Spread | None) -> str:
    """A median with its 95 % interval, in three digits."""
    if found is None:
        return "–"
    low, high = _short(found.low), _short(found.high)
    return _short(found.median) + (f" ({low}…{high})" if low != high else "")


def _short(value: float) -> str:
    digits = 3 - len(str(int(abs(value))))
    return f"{value:.{max(0, min(2, digits))}f}"


def _cells(row: Row) -> tuple[str, ...]:
    found, unit = row.spread, f" {row.unit}" if row.unit else ""
    aim = f"{row.aim[0]} {row.aim[1]:g}{unit}" if row.aim else ""
    verdict = "" if row.met is None else "met" if row.met else "MISSED"
    if found.count == 1:
        return row.what, _number(found.median) + unit, "", "", "1", aim, verdict
    quartiles = f"{_number(found.quartile1)} … {_number(found.quartile3)}"
    interval = f"{_number(found.low)} … {_number(found.high)}"
    return row.what, _number(found.median) + unit, quartiles, interval, str(found.count), aim, verdict


def _number(value: float) -> str:
    if value and abs(value) < 0.01:
        return f"{value:.2g}"
    return f"{value:.{max(0, min(4, 4 - len(str(int(abs(value))))))}f}"


def tell(text: str) -> None:
    """Progress, for whoever waits."""
    print(text, file=sys.stderr, flush=True)


def alternate(
    rng: random.Random, pairs: int, one: Callable[[int], Result], other: Callable[[int], Result]
) -> Iterator[tuple[Result, Result]]:
    """Run both `pairs` times, in random order within each pair; both are told the pair's number."""
    for number in range(pairs):
        if rng.random() < 0.5:
            first = one(number)
            yield first, other(number)
        else:
            second = other(number)
            yield one(number), second


def environment(**more: str) -> dict[str, str]:
    """This environment without what would steer a supervisor, and with `more`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KSUPERVISE")}
    return {**kept, "TF_CPP_MIN_LOG_LEVEL": "2", **more}


def with_workloads() -> str:
    """The PYTHONPATH of a script that imports a module of ours as `workloads.NAME`."""
    return os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))


def ksupervise() -> str:
    """The installed command of the interpreter that runs us."""
    found = shutil.which("ksupervise", path=os.path.dirname(sys.executable))
    if found is None:
        raise SystemExit("bench: there is no ksupervise beside this Python; call scripts/bench")
    return found


def finish(command: Sequence[str], folder: Path, killed: int = 0, **variables: str) -> float:
    """Run a command to its end in `folder`, its output in a file there. Seconds it took; exits if it failed.

    It is run again when it was killed, at most `killed` times.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.txt").open("ab") as output:
        began = time.perf_counter()
        with ended(
            subprocess.Popen(
                command,
                cwd=folder,
                env=environment(**variables),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        ) as process:
            code = process.wait()
        took = time.perf_counter() - began
    if code == -signal.SIGKILL and killed:
        return took + finish(command, folder, killed - 1, **variables)
    if code:
        tail = (folder / "output.txt").read_text(errors="replace")[-3000:]
        raise SystemExit(f"{tail}\nbench: exit code {code}: {' '.join(command)}")
    return took


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive the block."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def journal(folder: Path) -> list[dict[str, Any]]:
    """The records of the one run in `folder`, oldest first; none as long as there is no journal."""
    records = []
    for path in folder.glob(".ksupervise/*/journal.jsonl"):
        for line in path.read_bytes().splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue  # being written
    return records


def wait_for(condition: Callable[[], Result], process: subprocess.Popen[bytes], seconds: float = 120.0) -> Result:
    """What `condition` returns once it is true; exits when `process` ends or the time is over."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"bench: waited in vain for {' '.join(map(str, process.args))}")  # type: ignore[arg-type]
        time.sleep(0.002)
    return found
