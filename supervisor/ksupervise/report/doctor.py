"""`ksupervise doctor`: what was found out about this machine, in rows, each with a verdict and what to do about it."""

from __future__ import annotations

import re
import signal
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ksupervise.parent.doctor.examine import Ended, Findings, keeping_away
from ksupervise.parent.doctor.surroundings import Surrounding
from ksupervise.parent.room import size_text
from ksupervise.report.units import span

GOOD, LIMITED, BAD = "good", "limited", "bad"
_MARKS = {GOOD: "ok", LIMITED: "limited", BAD: "BAD"}
_SUBJECT = 18  # columns
_LEAST_WIDTH = 60
_FEW_FILES = 1000
_LIBRARIES_OPEN = 256  # descriptors; TensorFlow, its data and our own sockets take about a hundred
_SKEW = 10.0  # seconds
_SENSIBLE_YEAR = 2024
_WEIGHTY = 60.0  # seconds of sleep that are worth a word

_ELSEWHERE = "choose a local disk with --store"


@dataclass(frozen=True)
class Row:
    """One thing that was found out.

    Attributes:
        group: what it belongs to.
        subject: what it is about.
        verdict: good; limited: a run works, and loses something; bad: it is in the way of a resumable run.
        found: in words.
        remedy: what to do, "" if nothing is to be done.
    """

    group: str
    subject: str
    verdict: str
    found: str
    remedy: str = ""


def rows(findings: Findings) -> list[Row]:
    """All that is to be told, group by group."""
    parts = (_interpreter, _data, _store, _memory, _processes, _gpu, _around, _notices, _clock)
    return [row for part in parts for row in part(findings)]


def exit_code(found: Sequence[Row]) -> int:
    """1 if anything is in the way of a resumable run."""
    return int(any(row.verdict == BAD for row in found))


def as_json(found: Sequence[Row]) -> list[dict[str, str]]:
    """The rows, for programs."""
    return [asdict(row) for row in found]


def as_text(found: Sequence[Row], width: int = 80) -> str:
    """The same for people: what to know first, then what is well. `width`: columns of the terminal."""
    width = max(_LEAST_WIDTH, width)
    lines: list[str] = []
    for verdict in (BAD, LIMITED):
        for row in found:
            if row.verdict == verdict:
                lines += _entry(row, width)
    group = ""
    for row in found:
        if row.verdict == GOOD:
            if row.group != group:
                heading = _TRIED if row.group == _DATA else row.group
                lines += [""] if lines else []
                lines += textwrap.wrap(heading, width)
                group = row.group
            lines += _entry(row, width)
    return "\n".join([*lines, "", *textwrap.wrap(_closing(found), width)])


def _entry(row: Row, width: int) -> list[str]:
    """A row: its mark, its subject, the words beside them; the remedy below these."""
    margin = 2 + 9 + _SUBJECT + 1
    head = f"  {_MARKS[row.verdict]:<9}{row.subject:<{_SUBJECT}} "
    lines = textwrap.wrap(row.found, width - margin, break_on_hyphens=False) or [""]
    if row.remedy:
        lines += textwrap.wrap(f"→ {row.remedy}", width - margin, subsequent_indent="  ", break_on_hyphens=False)
    return [f"{head}{lines[0]}".rstrip(), *(" " * margin + line for line in lines[1:])]


def _closing(found: Sequence[Row]) -> str:
    bad, limited = (sum(row.verdict == verdict for row in found) for verdict in (BAD, LIMITED))
    if bad:
        more = f"; {_things(limited)} more to know" if limited else ""
        return f"{_things(bad)} {'is' if bad == 1 else 'are'} in the way of a resumable run{more}"
    return f"{_things(limited)} to know, nothing is in the way" if limited else "all is well"


def _things(count: int) -> str:
    return f"{count} thing{'' if count == 1 else 's'}"


# The interpreter ----------------------------------------------------------------------------------

_NAMED = "name the interpreter that it starts: ksupervise doctor PYTHON"
_INSIDE = "where that is a container, another host or behind sudo, put ksupervise inside"


def _interpreter(found: Findings) -> Iterator[Row]:
    group, start = "interpreter", found.start
    if start.fault:
        yield Row(group, "command", BAD, start.fault, "correct the command, or PATH")
    if found.refused:
        yield Row(group, "run", BAD, found.refused)
    if start.unknown:
        instead = "; examined instead: the `python` on PATH" if start.words else ""
        yield Row(group, "command", LIMITED, start.unknown + instead, f"{_NAMED}; {_INSIDE}")
    if not start.words:
        if not start.fault and not start.unknown:
            yield Row(group, "hook", BAD, "there is no interpreter to be examined", _NAMED)
        return
    yield _hook(found)
    if "python" in found.interpreter.found:
        yield from _keras(found)


def _hook(found: Findings) -> Row:
    """Whether our part arrives where the script would run."""
    words = " ".join(found.start.words)
    group, python = "interpreter", found.interpreter.found.get("python", {})
    if found.heard.hello:
        executable = str(python.get("executable", words))
        if found.heard.claimed:
            text = f"arrives in {executable} and in Keras' fit"
            return Row(group, "hook", GOOD, text)
        if not found.heard.keras or "error" in found.interpreter.found.get("keras", {"error": ""}):
            return Row(group, "hook", GOOD, f"arrives in {executable}")
        why = "; ".join(found.heard.notes) or "nobody asked us where it begins"
        return Row(group, "hook", BAD, f"arrives in {executable}, but not in Keras' fit: {why}", _TELL_US)
    away = keeping_away(found.start.words)
    if away:
        text = f"does not arrive: {_and(away)} keeps it away (PYTHONPATH or sitecustomize is not read)"
        return Row(group, "hook", BAD, text, f"leave {_and(away)} out: the run would be restarted, not resumed")
    if not python:
        text = f"`{words}` did not get as far as that: {_end_of(found.interpreter)}"
        return Row(group, "hook", BAD, text, f"try `{words} -c pass`")
    version = str(python.get("version"))
    if _version(version) < (3, 9):
        return Row(group, "hook", BAD, f"does not arrive in Python {version}", "use Python 3.10 to 3.13")
    text = f"does not arrive in {python.get('executable')}: something between takes PYTHONPATH away"
    return Row(group, "hook", BAD, text, "env -i, sudo and some modules do; put ksupervise behind them")


_TELL_US = "please report it, with this output"


def _keras(found: Findings) -> Iterator[Row]:
    group, trial = "interpreter", found.interpreter.found
    python = str(trial["python"].get("version"))
    tested = (3, 10) <= _version(python)[:2] <= (3, 13)
    yield Row(group, "Python", GOOD if tested else LIMITED, python + ("" if tested else ", which is not tested"))
    keras = trial.get("keras")
    if keras is None:
        yield Row(group, "Keras", BAD, f"its import did not come to an end: {_end_of(found.interpreter)}", _BY_HAND)
        return
    if "error" in keras:
        missing = str(keras["error"]).startswith("ModuleNotFoundError")
        yield Row(group, "Keras", BAD, keras["error"], "pip install keras tensorflow" if missing else _BY_HAND)
        return
    yield _version_of_keras(keras)
    if found.environ.get("TF_USE_LEGACY_KERAS", "") not in ("", "0", "False", "false"):
        text = "TF_USE_LEGACY_KERAS is set: tf.keras is then tf_keras, which is restarted, not resumed"
        yield Row(group, "tf_keras", LIMITED, text, "unset it, if the script uses tf.keras")
    if keras["backend"] == "tensorflow":
        yield _fit(found.interpreter, hooked=found.heard.hello)


_BY_HAND = 'try `python -c "import keras"` in that interpreter'


def _version_of_keras(keras: Mapping[str, Any]) -> Row:
    version, backend = str(keras["version"]), str(keras["backend"])
    if backend != "tensorflow":
        text = f"{version} on {backend}: it is restarted, not resumed"
        return Row("interpreter", "Keras", BAD, text, "KERAS_BACKEND=tensorflow")
    text = f"{version} on TensorFlow {keras['tensorflow']}, imported in {keras['seconds']} s"
    if _version(version) < (3, 4):
        return Row("interpreter", "Keras", BAD, text, "pip install 'keras>=3.4'")
    return Row("interpreter", "Keras", GOOD, text)


_PIECES = {
    "hooked": (BAD, "CallbackList is not hooked"),
    "initial_epoch": (BAD, "fit cannot be told where to begin (_initial_epoch)"),
    "put_back": (BAD, "weights that were put back are not what they were"),
    "position": (LIMITED, "the place within an epoch is not known (epoch_iterator): an epoch's end is gone back to"),
    "build": (LIMITED, "a model cannot be built before its first batch (_symbolic_build)"),
}


def _fit(interpreter: Ended, *, hooked: bool) -> Row:
    """Our hooks in Keras, as a small model showed them; `hooked`: our part is in this interpreter at all."""
    fitted = interpreter.found.get("fit")
    if fitted is None or "error" in fitted:
        why = _end_of(interpreter) if fitted is None else fitted["error"]
        return Row("interpreter", "hooks in fit", BAD, f"a small model could not be fitted: {why}", _TELL_US)
    fitted = fitted if hooked else {**fitted, "hooked": True}  # that it did not arrive is said already
    missing = [(verdict, text) for name, (verdict, text) in _PIECES.items() if not fitted.get(name)]
    if missing:
        worst = BAD if any(verdict == BAD for verdict, _ in missing) else LIMITED
        return Row("interpreter", "hooks in fit", worst, "; ".join(text for _, text in missing), "use a newer Keras")
    text = f"all are there: a small model's {fitted['variables']} variables were taken and put back"
    return Row("interpreter", "hooks in fit", GOOD, text)


def _end_of(ended: Ended) -> str:
    """How a process ended that told too little."""
    doing = f", in: {ended.doing}" if ended.doing else ""
    if ended.code is None:
        return f"no answer within {ended.seconds:.0f} s{doing}"
    if ended.code < 0:
        return f"it was killed by {signal.Signals(-ended.code).name}{doing}"
    last = ended.err.strip().splitlines()[-1:] or [f"exit code {ended.code}"]
    return f"{last[0].strip()}{doing}"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def _and(words: Sequence[str]) -> str:
    return " and ".join(words)


# The place in the data ----------------------------------------------------------------------------

_DATA = "data"
_TRIED = "data: a place within an epoch was noted, gone back to, and the rest compared"
_SOURCES = {
    "source arrays": "numpy arrays",
    "source dataset": "tf.data",
    "source augmented": "tf.data, random map",
    "source from_generator": "from_generator",
    "source pydataset": "PyDataset",
    "source workers": "PyDataset, workers",
    "source generator": "generator",
    "unseeded arrays": "arrays, no seed",
    "unseeded dataset": "tf.data, no seed",
}
_SEED = "keras.utils.set_random_seed(N) in the script, or --seed N: then it is exact"


def _data(found: Findings) -> Iterator[Row]:
    tried = [
        _source(subject, found.interpreter.found[name], seeded=name.startswith("source"))
        for name, subject in _SOURCES.items()
        if name in found.interpreter.found
    ]
    last = tried[-2:]
    if len(last) == 2 and all(row.remedy == _SEED for row in last) and last[0].found == last[1].found:
        text = last[0].found.replace(" (the script sets no seed)", "")
        tried[-2:] = [replace(last[0], subject="no seed", found=f"if the script sets none: {text}")]  # once is enough
    yield from tried


def _source(subject: str, result: Mapping[str, Any], *, seeded: bool) -> Row:
    if "error" in result:
        text = f"there is no place within an epoch to go back to, but its end: {result['error']}"
        return Row(_DATA, subject, LIMITED, text)
    guarantee = str(result["guarantee"])
    if not result["same"]:
        exact = guarantee.startswith("exact")
        text = f"promised is: {guarantee}; but the batches after it were others" if exact else guarantee
        return Row(_DATA, subject, BAD if exact else LIMITED, text, _TELL_US if exact else "" if seeded else _SEED)
    if guarantee.startswith("exact") and not guarantee.startswith("exactly once"):
        return Row(_DATA, subject, GOOD, guarantee)
    return Row(_DATA, subject, LIMITED, guarantee, "" if seeded else _SEED)


# The store ----------------------------------------------------------------------------------------

_LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "apfs", "jfs", "virtiofs"})
_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "lustre", "ceph", "gpfs", "beegfs", "9p", "afs", "ocfs2", "gfs2", "wekafs"}
)


def _store(found: Findings) -> Iterator[Row]:
    group, disk = "store", found.disk.found
    if found.disk.code is None:
        waited = f"{found.store} did not answer within {found.disk.seconds:.0f} s (asked for: {found.disk.doing})"
        yield Row(group, "answer", BAD, waited, f"is its server there? Else {_ELSEWHERE}")
        return
    place, write = disk.get("place", {}), disk.get("write", {})
    if "error" in place or "error" in write or "place" not in disk:
        why = place.get("error") or write.get("error") or _end_of(found.disk)
        yield Row(group, "writing", BAD, f"{found.store} cannot be written: {why}", "choose a place with --store")
    else:
        made = "" if place["exists"] else f" (it will be made in {place['folder']})"
        yield Row(group, "writing", GOOD, f"{found.store} can be written{made}")
    if disk.get("kind", {}).get("type"):
        yield _file_system(disk["kind"], found.surroundings)
    yield from _abilities(disk)
    if "room" in disk and "error" not in disk["room"]:
        yield from _room(disk["room"], disk.get("run", {}), found.settings.keep)
    yield from _run(disk.get("run", {}))


def _file_system(kind: Mapping[str, Any], around: Sequence[Surrounding]) -> Row:
    name, point = str(kind["type"]), kind["point"]
    text = f"{name}, mounted at {point}"
    if name in _LOCAL:
        return Row("store", "file system", GOOD, text)
    if name in ("tmpfs", "ramfs"):
        lost = f"{text}: it is memory, and gone when the machine goes"
        return Row("store", "file system", LIMITED, lost, "choose a disk with --store")
    if name == "overlay":
        where = "the container" if any(each.name in ("container", "Kubernetes") for each in around) else "its mount"
        return Row("store", "file system", LIMITED, f"{text}: it goes with {where}", "put --store on a volume")
    if name == "fuse.drive":
        late = f"{text}: Google Drive says that it has a file long before it is uploaded"
        return Row("store", "file system", LIMITED, late, "put --store on the local disk, copy what matters to Drive")
    if name in _NETWORK:
        outage = f"{text}: over a network; while that is out nothing is committed, and training goes on"
        return Row("store", "file system", LIMITED, outage, "start a run on one machine at a time")
    if name.startswith("fuse"):
        served = f"{text}: served by a program, and gone or hung with it"
        return Row("store", "file system", LIMITED, served, f"if it is not local: {_ELSEWHERE}")
    return Row("store", "file system", LIMITED, f"{text}: of a kind that is not known here; what is below was tried")


def _abilities(disk: Mapping[str, Mapping[str, Any]]) -> Iterator[Row]:
    """What was tried in a folder of ours."""
    group = "store"
    if "lock" in disk:
        error = disk["lock"].get("error")
        text = f"two ksupervise could own one run: {error}" if error else "file locks keep others out"
        yield Row(group, "locks", BAD if error else GOOD, text, _ELSEWHERE if error else "")
    if "rename" in disk:
        error = disk["rename"].get("error")
        bad = f"a synced folder cannot be published by one rename: {error}"
        text = bad if error else "a synced folder is published by one rename"
        remedy = f"a power cut may cost the newest checkpoint; {_ELSEWHERE}" if error else ""
        yield Row(group, "commit", LIMITED if error else GOOD, text, remedy)
    if "direct" in disk:
        taken = bool(disk["direct"].get("taken"))
        slower = "refused: checkpoints go through the page cache, and slow training while they are written"
        text = "taken: checkpoints are written past the page cache" if taken else slower
        yield Row(group, "O_DIRECT", GOOD if taken else LIMITED, text, "" if taken else "nothing has to be done")


def _room(room: Mapping[str, Any], run: Mapping[str, Any], keep: int) -> Iterator[Row]:
    free, files, size = room.get("bytes"), room.get("files"), int(run.get("size") or 0)
    if free is None:
        yield Row("store", "room", GOOD, "the file system does not tell how much is left")
    else:
        text = f"{size_text(free)} are free"
        if size:
            text += f": room for {free // size} more checkpoints of {size_text(size)}, of which {keep} or more are kept"
        full = free == 0
        short = full or bool(size and free < 2 * size)
        verdict = BAD if full else LIMITED if short else GOOD
        yield Row("store", "room", verdict, text, "make room, or choose another disk with --store" if short else "")
    if files is not None and files < _FEW_FILES:
        text = f"{files} more files may be made (inodes); a checkpoint takes about ten"
        yield Row("store", "inodes", LIMITED if files else BAD, text, "remove small files on that disk")


def _run(run: Mapping[str, Any]) -> Iterator[Row]:
    if "error" in run:
        yield Row("store", "run", LIMITED, str(run["error"]))
    elif run.get("exists"):
        text = f"this command has a run with {run['count']} checkpoints ({size_text(run['total'])})"
        at_work = f"; it is at work, as process {run['pid']}, and was left alone" if run.get("pid") else ""
        yield Row("store", "run", GOOD, text + at_work)


# Memory -------------------------------------------------------------------------------------------


def _memory(found: Findings) -> Iterator[Row]:
    group = "memory"
    if (row := _free_memory(found)) is not None:
        yield row
    version = found.cgroup_version
    if version is None:
        why = "there are no cgroups that tell: an out-of-memory kill can only be guessed at from its SIGKILL"
        yield Row(group, "out of memory", LIMITED, why)
    elif not found.oom_counted:
        yield Row(group, "out of memory", LIMITED, f"the counter of the cgroup (version {version}) cannot be read")
    else:
        log = "error" not in found.machine.found.get("kernel log", {"error": ""})
        text = f"kills are counted by the cgroup (version {version})"
        yield Row(group, "out of memory", GOOD, text + (", named by the kernel's log" if log else ""))
    yield from _limits(found)


def _free_memory(found: Findings) -> Row | None:
    """How much may be taken; against what two copies of the state would need, if its size is known."""
    machine = found.memory
    free = [machine["MemAvailable"]] if "MemAvailable" in machine else []
    words = []
    if found.cgroup is not None:
        used, limit = found.cgroup
        free.append(limit - used)
        words.append(f"the cgroup's limit is {size_text(limit)}, {size_text(used)} of it in use")
    if "MemTotal" in machine:
        words.append(f"the machine has {size_text(machine['MemTotal'])}")
    if not free:
        return None
    swap = machine.get("SwapTotal", 0)
    words.append(f"swap {size_text(swap)}" if swap else "no swap")
    left = max(0, min(free))
    size = int(found.disk.found.get("run", {}).get("size") or 0)
    text, verdict, remedy = f"{size_text(left)} may be taken: {', '.join(words)}", GOOD, ""
    if size and left < 4 * size:
        verdict, remedy = LIMITED, "more memory: a state is then kept twice beside the training"
        copies = "one copy" if left >= 2 * size else "no copy"
        text += f". A state is {size_text(size)}: {copies} of it will fit beside the training"
    return Row("memory", "free", verdict, text, remedy)


def _limits(found: Findings) -> Iterator[Row]:
    """`ulimit`: only what is in the way, but for a core's size."""
    group, limits = "memory", found.limits
    space, files, size, core = (limits.get(name) for name in ("address space", "open files", "file size", "core"))
    if space is not None:
        text = f"ulimit -v is {size_text(space)}: TensorFlow maps far more than it uses"
        yield Row(group, "address space", LIMITED, text, "ulimit -v unlimited")
    if files is not None and files < _LIBRARIES_OPEN:
        yield Row(group, "open files", LIMITED, f"ulimit -n is {files}", "ulimit -n 1024")
    if size is not None:
        needed = int(found.disk.found.get("run", {}).get("size") or 0)
        text = f"ulimit -f is {size_text(size)}: a larger checkpoint cannot be written"
        yield Row(group, "file size", BAD if needed > size else LIMITED, text, "ulimit -f unlimited")
    if core != 0:
        most = "as large as its memory" if core is None else f"of up to {size_text(core)}"
        text = f"a crash of native code may leave a file {most} (ulimit -c)"
        yield Row(group, "core dumps", LIMITED, text, "ulimit -c 0, unless you want them")


# What the kernel allows ---------------------------------------------------------------------------


def _processes(found: Findings) -> Iterator[Row]:
    group, tried = "processes", found.machine.found
    if found.machine.code != 0:
        yield Row(group, "kernel", LIMITED, f"not all could be tried: {_end_of(found.machine)}")
    if "memfd" in tried:
        refused = tried["memfd"].get("error") or tried["memfd"].get("on_disk")
        text = "a memfd holds the state, sealed against shrinking, and outlives the script"
        if refused:
            text = f"the state is staged in files of the run's folder: {refused}"
        yield Row(group, "stage", LIMITED if refused else GOOD, text)
    yield from (
        _tried(group, subject, tried[name], good, bad)
        for name, subject, good, bad in (
            ("pidfd", "deaths", "noticed at once (pidfd)", "noticed by SIGCHLD, without a pidfd"),
            (
                "tree",
                "no orphans",
                "what the script starts is found, and dies with us (subreaper, PDEATHSIG)",
                "processes may outlive the run",
            ),
            ("terminal", "terminal", "the script gets one where we have one", "the script gets a pipe"),
        )
        if name in tried
    )


def _tried(group: str, subject: str, result: Mapping[str, Any], good: str, bad: str) -> Row:
    error = result.get("error")
    return Row(group, subject, LIMITED, f"{bad}: {error}") if error else Row(group, subject, GOOD, good)


# The GPU ------------------------------------------------------------------------------------------


def _gpu(found: Findings) -> Iterator[Row]:
    group = "GPU"
    devices = found.interpreter.found.get("devices", {})
    seen, cards = list(devices.get("gpus", ())), found.cards
    if cards:
        told = "; ".join(f"{card.name}, {card.used} of {card.memory} MiB in use" for card in cards)
        yield Row(group, "cards", GOOD, f"{told}; driver {cards[0].driver}")
    elif cards is not None:
        yield Row(group, "cards", LIMITED, "nvidia-smi does not answer, or knows no card", "see what nvidia-smi says")
    elif not seen:
        yield Row(group, "cards", GOOD, "none is seen: training is on the CPU")
    if "error" in devices:
        yield Row(group, "TensorFlow", LIMITED, f"does not tell its devices: {devices['error']}")
    elif cards and devices and not seen:
        hidden = found.environ.get("CUDA_VISIBLE_DEVICES")
        why = f": CUDA_VISIBLE_DEVICES is {hidden!r}" if hidden is not None else ""
        remedy = "pip install 'tensorflow[and-cuda]'; does the driver suit it?"
        yield Row(group, "TensorFlow", LIMITED, f"sees no card, and trains on the CPU{why}", remedy)
    elif seen:
        yield Row(group, "TensorFlow", GOOD, f"sees {', '.join(seen)}")
        yield _exact_bits(str(devices.get("deterministic", "")))


def _exact_bits(switch: str) -> Row:
    if switch.lower() in ("1", "true"):
        return Row("GPU", "exact bits", GOOD, "TF_DETERMINISTIC_OPS is set")
    text = "some kernels race: two runs differ in the last digits, with us or without, and so does a resumed one"
    return Row("GPU", "exact bits", LIMITED, text, "tf.config.experimental.enable_op_determinism() in the script")


# Where we are -------------------------------------------------------------------------------------

_MEANS = {
    "container": (GOOD, "what is not on a volume goes with it", ""),
    "Kubernetes": (
        GOOD,
        "it sends SIGTERM, and SIGKILL after terminationGracePeriodSeconds: keep that above --grace",
        "",
    ),
    "WSL": (GOOD, "Windows ends it without a notice; then the same command goes on", ""),
    "gVisor": (LIMITED, "a sandboxed kernel; what it lacks is said above", ""),
    "Colab": (
        LIMITED,
        "it ends after 12 hours at most, and its disk with it",
        "--deadline 12h; copy what matters elsewhere",
    ),
    "Kaggle": (
        LIMITED,
        "it ends after 12 hours, and keeps /kaggle/working of a saved version only",
        "--deadline 12h, --store below /kaggle/working",
    ),
    "Jupyter": (LIMITED, "started from a notebook, which is not supported yet", "start it in a terminal"),
    "systemd": (GOOD, "KillMode=mixed and a TimeoutStopSec above --grace let it save", ""),
}


def _around(found: Findings) -> Iterator[Row]:
    for each in found.surroundings:
        if each.name == "Slurm":
            yield _slurm(each, deadline=found.settings.deadline is not None)
        else:
            verdict, text, remedy = _MEANS[each.name]
            yield Row("surroundings", each.name, verdict, f"({each.why}) {text}", remedy)


def _slurm(job: Surrounding, *, deadline: bool) -> Row:
    left = "" if job.ends is None else f" ends in {span(job.ends - time.time())}"
    text = f"{job.why}{left}"
    if deadline:
        return Row("surroundings", "Slurm", GOOD, f"{text}; --deadline is set")
    text += "; at its time limit the job is not requeued"
    return Row("surroundings", "Slurm", LIMITED, text, "--deadline a little before; `exec ksupervise …` in the script")


def _notices(found: Findings) -> Iterator[Row]:
    choice, group = found.settings.notice, "notices"
    heeded = "SIGTERM, SIGHUP and --deadline are heeded"
    if choice != "auto":
        text = f"--notice {choice}: {heeded}" if choice == "off" else f"--notice {choice} is listened to"
        yield Row(group, "notices", GOOD, text)
        return
    chosen = [finding for finding in found.notices if finding.chosen]
    for finding in chosen:
        yield Row(group, finding.source, GOOD, f"its notices are listened to: {finding.why}")
    if not chosen:
        off = [f"{each.source}: {each.why}" for each in found.notices if "neither" not in each.why]
        why = f" ({'; '.join(off)})" if off else ""
        yield Row(group, "notices", GOOD, f"no cloud is recognised{why}; {heeded}")


def _clock(found: Findings) -> Iterator[Row]:
    ahead = found.disk.found.get("clock", {}).get("ahead")
    if found.year < _SENSIBLE_YEAR:
        text = f"the wall clock says {found.year}: ages of checkpoints and --deadline HH:MM will be wrong"
        yield Row("clock", "wall clock", LIMITED, text, "set the clock")
    elif ahead is not None and abs(ahead) > _SKEW:
        side = "ahead of" if ahead > 0 else "behind"
        text = f"the store's clock is {span(abs(ahead))} {side} ours: ages will be wrong"
        yield Row("clock", "wall clock", LIMITED, text, "set both by NTP")
    else:
        agrees = " and the store agrees" if ahead is not None else ""
        yield Row("clock", "wall clock", GOOD, f"it says {found.year}{agrees}")
    if hasattr(time, "CLOCK_BOOTTIME"):
        slept = f"; slept for {span(found.suspended)} since it was booted" if found.suspended > _WEIGHTY else ""
        yield Row("clock", "suspended", GOOD, f"a machine that sleeps is noticed (CLOCK_BOOTTIME){slept}")
    else:
        yield Row("clock", "suspended", LIMITED, "a machine that sleeps is not noticed (no CLOCK_BOOTTIME)")
