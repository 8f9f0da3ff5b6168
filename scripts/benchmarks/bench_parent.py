"""What the parent itself takes: memory and CPU time while it looks after a training, and its start.

Resident memory counts the pages shared with every other Python too; unique memory is what would be free without it.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from measure import WORKLOADS, Report, alternate, ended, environment, journal, ksupervise, tell, wait_for

SIZES = (30, 300)  # MB of state


def run(report: Report, folder: Path, *, quick: bool, random: random.Random) -> None:
    """Measure the start, the hook, and the parent at work."""
    pairs, seconds = (5, 10.0) if quick else (30, 60.0)
    _start(report, folder / "start", pairs, random)
    _hook(report, folder / "hook", pairs, random)
    for size in SIZES:
        tell(f"a training with {size} MB of state, {seconds:.0f} s")
        _at_work(report, folder / f"{size}", size, seconds)


def _start(report: Report, folder: Path, pairs: int, rng: random.Random) -> None:
    tell(f"start: {pairs} alternations")
    folder.mkdir()
    bare = [sys.executable, "-c", "pass"]
    for name, command, aim in (
        ("ksupervise --version, of bare Python", [ksupervise(), "--version"], ("≤", 2.5)),
        ("  python -c 'import click'", [sys.executable, "-c", "import click"], None),
        ("  ksupervise status of no run", [ksupervise(), "status", "none"], None),
    ):
        found = list(alternate(rng, pairs, lambda _: _call(bare, folder), lambda _, c=command: _call(c, folder)))  # type: ignore[misc]
        report.add(name, "×", [other / one for one, other in found], aim)
        report.raw[name.strip()] = found
        if aim:
            report.add("  bare Python", "ms", [1000 * one for one, _ in found])
            report.add("  ksupervise --version", "ms", [1000 * other for _, other in found])
    report.add("  ksupervise COMMAND → its exec", "ms", [1000 * _launch(folder / f"{n}") for n in range(pairs)])


def _call(command: Sequence[str], folder: Path, variables: dict[str, str] | None = None) -> float:
    began = time.perf_counter()
    subprocess.run(
        command,
        cwd=folder,
        env=variables or environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return time.perf_counter() - began


def _launch(folder: Path) -> float:
    """Seconds from calling ksupervise to its child's exec."""
    folder.mkdir()
    began = time.monotonic()
    _call([ksupervise(), "true"], folder)
    (launched,) = (record["mono"] for record in journal(folder) if record["event"] == "launched")
    return float(launched) - began


def _hook(report: Report, folder: Path, pairs: int, rng: random.Random) -> None:
    """An interpreter with the environment of a living run's child, beside one without."""
    tell(f"hook: {pairs} alternations")
    folder.mkdir()
    bare = [sys.executable, "-c", "pass"]
    with ended(_started([ksupervise(), "sleep", "600"], folder)) as parent:
        pid = wait_for(lambda: [r["pid"] for r in journal(folder) if r["event"] == "launched"], parent)[0]
        wait_for(lambda: Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep"), parent)
        block = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="surrogateescape")
        hooked = dict(entry.split("=", 1) for entry in block.split("\0") if "=" in entry)
        found = list(alternate(rng, pairs, lambda _: _call(bare, folder), lambda _: _call(bare, folder, hooked)))
    report.add("hook in an interpreter: more than without", "ms", [1000 * (other - one) for one, other in found])
    report.raw["hook"] = found


def _started(command: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "output.txt").open("wb") as output:
        return subprocess.Popen(
            command, cwd=folder, env=environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )


def _at_work(report: Report, folder: Path, size: int, seconds: float) -> None:
    """With a checkpoint at least every 5 s: by default a large state would hardly be persisted in so short a time."""
    folder.mkdir()
    script = [str(WORKLOADS / "mlp.py"), "--megabytes", str(size), "--epochs", "100000"]
    resident: list[float] = []
    unique: list[float] = []
    with ended(_started([ksupervise(), "--every", "5s", sys.executable, *script], folder)) as parent:
        wait_for(lambda: any(record["event"] == "committed" for record in journal(folder)), parent)
        before, commits = _cpu(parent.pid), _commits(folder)
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            time.sleep(0.2)
            memory = _memory(parent.pid)
            resident.append(memory["Rss"] / 1024)
            unique.append((memory["Private_Clean"] + memory["Private_Dirty"]) / 1024)
        minutes = (time.monotonic() - began) / 60
        cpu, commits = _cpu(parent.pid) - before, _commits(folder) - commits
        status = Path(f"/proc/{parent.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    report.add(f"{size} MB every 5 s: resident, at most", "MiB", [peak / 1024], ("≤", 40))
    report.add("  resident", "MiB", resident)
    report.add("  unique", "MiB", unique)
    report.add("  CPU time a minute", "s", [cpu / minutes])
    report.add("  checkpoints a minute", "", [commits / minutes])
    report.raw[f"{size} MB"] = {
        "resident": resident,
        "unique": unique,
        "peak_kib": peak,
        "cpu": cpu,
        "minutes": minutes,
    }


def _commits(folder: Path) -> int:
    return sum(record["event"] == "committed" for record in journal(folder))


def _cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> dict[str, int]:
    """KiB by kind, over all mappings."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(rest.split()[0]) for name, rest in (line.split(":", 1) for line in lines)}
