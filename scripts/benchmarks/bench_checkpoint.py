"""What a checkpoint costs, beside Keras' savers, other libraries and what the machine can do at all.

All ways take turns in random order, within one process: saving (`workloads/checkpoints.py`), and loading
(`workloads/loads.py`), where ksupervise's own time is read from the journal of the next attempt. A ratio is made of two
numbers of one round.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import WORKLOADS, Report, Spread, Table, finish, journal, ksupervise, spread, tell, with_workloads

QUICK, ALL = ("1", "30", "300"), ("1", "30", "300", "resnet50", "1000", "2000")
LARGE = 500e6  # bytes of state from which on fewer rounds have to do

OURS, BACKUP, COPY, WRITE = "ksupervise", "BackupAndRestore", "memcpy, warm pages", "O_DIRECT write, fsync"
READ = "read, memcpy to fresh pages"
LIMITS = (COPY, "memcpy, fresh pages", "write, fsync", WRITE, READ)
# Only the stages that are asked for: none by time.
OPTIONS = ("--every", "24h", "--overhead", "0.00001")

COLUMNS = ("stall ms", "durable ms", "CPU ms", "cost ms", "load, warm ms", "load, cold ms", "MB")
SOURCES = {"warm": "memory", "cold": "disk"}  # where ksupervise's own state comes from
NOTES = (
    "In each cell: the median (its 95 % interval). A limit: what this machine takes to move as many bytes.",
    "stall: training waits. durable: from asking until all is on the disk, and CPU: of all processes until then (ours",
    "has two); for both, training stands still. What makes peers durable is an fsync of ours, after the stall.",
    "cost: what a save takes from a training that goes on meanwhile, stall included, beside the same training without.",
    "load: until the state is back in the built model; cold: nothing of it in the page cache. ksupervise's: warm is",
    "from memory, after the child was killed; cold is from disk, after its parent was killed too. MB: on the disk.",
)


def run(report: Report, folder: Path, *, quick: bool, random: random.Random, sizes: Sequence[str] = ()) -> None:
    """Measure all ways at each size."""
    for size in sizes or (QUICK if quick else ALL):
        large = size.replace(".", "").isdigit() and float(size) * 1e6 > LARGE
        rounds = 3 if quick else 5 if large else 10
        saves = _saves(folder / f"saves-{size}", size, rounds, 0.5 if quick else 2.0, random)
        loads = _loads(folder / f"loads-{size}", size, 2 if quick else 4 if large else 8, random)
        report.raw[size] = {**saves, "loads": loads}
        _enter(report, size, saves, loads)
    report.notes += NOTES


def _saves(folder: Path, size: str, rounds: int, seconds: float, rng: random.Random) -> dict[str, Any]:
    tell(f"{_name(size)}: {rounds} rounds of saving")
    result = folder / "result.json"
    script = [str(WORKLOADS / "checkpoints.py"), str(result), str(rounds), _seed(rng), str(seconds), size]
    finish([ksupervise(), *OPTIONS, sys.executable, *script], folder, PYTHONPATH=with_workloads())
    found: dict[str, Any] = json.loads(result.read_bytes())
    return found


def _loads(folder: Path, size: str, rounds: int, rng: random.Random) -> list[dict[str, Any]]:
    """A record for each time that the training was brought back: whence, and how long each way takes then."""
    tell(f"{_name(size)}: {rounds} rounds of loading")
    result = folder / "result.jsonl"
    script = [str(WORKLOADS / "loads.py"), str(result), str(rounds), _seed(rng), size]
    finish([ksupervise(), *OPTIONS, sys.executable, *script], folder, killed=rounds, PYTHONPATH=with_workloads())
    resumed = [record for record in journal(folder) if record["event"] == "resumed"]
    # Building the model's optimizer is left out: the other ways find it built.
    ours = {record["attempt"]: record["seconds"] - record["building"] for record in resumed}
    records = [json.loads(line) for line in result.read_bytes().splitlines()]
    return [{**record, "ours": ours[record["attempt"]]} for record in records]


def _seed(rng: random.Random) -> str:
    return str(rng.randrange(2**32))


def _name(size: str) -> str:
    return "ResNet50" if size == "resnet50" else f"{size} MB"


def _enter(report: Report, size: str, saves: dict[str, Any], loads: list[dict[str, Any]]) -> None:
    peers = sorted(saves["costs"].keys() - {OURS})
    groups = [("ours", OURS), *(("peer", name) for name in peers), *(("limit", name) for name in LIMITS)]
    lines = [(f"{group:5}  {name}", _line(name, saves, loads)) for group, name in groups]
    title = f"{_name(size)}: {saves['bytes'] / 1e6:.0f} MB in {saves['variables']} variables"
    report.tables.append(Table(title, COLUMNS, lines))
    _ratios(report, _name(size), saves["saves"], saves["costs"], loads)


def _line(name: str, saves: dict[str, Any], loads: list[dict[str, Any]]) -> tuple[Spread | None, ...]:
    found = saves["saves"].get(name, [])
    writes = name not in (COPY, "memcpy, fresh pages")
    durable = [each["durable"] for each in found if writes]
    # What a limit to write stalls is what it takes to be durable, and nothing would have to wait for it.
    stall = [each["stall"] for each in found if name not in LIMITS or not writes]
    cost = [each["cost"] for each in saves["costs"].get(name, [])]
    cpu = [each["cpu"] for each in found]
    timings = (stall, durable, cpu, cost, _loading(loads, name, "warm"), _loading(loads, name, "cold"))
    size = spread([found[-1]["bytes"] / 1e6]) if durable else None
    return (*map(_milliseconds, timings), size)


def _loading(loads: list[dict[str, Any]], name: str, how: str) -> list[float]:
    """Seconds to load, `how` being "warm" or "cold"."""
    if name == OURS:
        return [each["ours"] for each in loads if each["from"] == SOURCES[how]]
    return [each["loads"][name][how] for each in loads if name in each["loads"]]


def _milliseconds(values: Sequence[float]) -> Spread | None:
    return spread([1000 * value for value in values]) if values else None


def _ratios(
    report: Report, size: str, saves: dict[str, Any], costs: dict[str, Any], loads: list[dict[str, Any]]
) -> None:
    def of(other: str, what: str) -> list[float]:
        return [a[what] / b[what] for a, b in zip(saves[OURS], saves[other], strict=True)]

    report.add(f"{size}: stall, of a memcpy to warm pages", "×", of(COPY, "stall"), ("≤", 2.5))
    report.add("  of BackupAndRestore's", "×", of(BACKUP, "stall"), ("≤", 0.1))
    report.add("  durable after, of an O_DIRECT write and fsync", "×", of(WRITE, "durable"), ("≤", 1.5))
    for source in SOURCES.values():
        ratios = [each["ours"] / each["loads"][READ]["cold"] for each in loads if each["from"] == source]
        report.add(f"  load from {source}, of a cold read and a memcpy to fresh pages", "×", ratios, ("≤", 1.3))
    cheaper = [1000 * (b["cost"] - a["cost"]) for a, b in zip(costs[OURS], costs[BACKUP], strict=True)]
    report.add("  cost to training, less than BackupAndRestore's by", "ms", cheaper)
