"""Law 1, inside Keras: what a script finds out around, within and after its fits is what it is without us."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.process.helpers import PREFIX, PYTHON, Place

from .compare import Both, Ended, Needed, assert_only, module_of_ours, only_more

pytestmark = [
    pytest.mark.keras,
    pytest.mark.skipif(sys.platform != "linux", reason="the script reads /proc"),
]

SCRIPT = Path(__file__).with_name("keras_script.py")
TRAINING = ("on_epoch_begin", "on_epoch_end", "on_train_batch_begin", "on_train_batch_end", "on_train_end")
TESTING = ("on_test_begin", "on_test_batch_begin", "on_test_batch_end", "on_test_end")
LOOKS = [
    *("before fit", "after fit", "after fits that raised"),
    *(f"in {moment}" for moment in ("on_train_begin", *TRAINING, *TESTING)),
]
HOOKED = ("on_train_begin", "on_train_end")
OURS = ("memfd:ksupervise-slot", "/live", "/stacks.txt", "/lock", "pipe:", "socket:")

_PARTS = "our part of the child, and what of the standard library it needs"
_HELD = "control page, slots, lock, our ends of the script's pipes, the link; out of the way of the script's numbers"
_NOTED = "Slurm and systemd signal parent and child at once: it is noted, the next batch saves and leaves"
_GOODBYE = "saying goodbye; and weakref.finalize's own, which comes with the first one in the process"
_FRAME = "a fit that was complete must not call the script's callbacks: somebody has to stand before them"
_HOOKED = "another function, which looks like Keras' own to all but who looks inside"


def _is_held(target: str) -> bool:
    return any(part in target for part in OURS)


def _one_frame_more(plain: Sequence[object], ours: Sequence[object]) -> bool:
    """Of the hooked method, in Keras' own file; all others are the same."""
    more = [frame for frame in ours if frame not in plain]
    rest = [frame for frame in ours if frame in plain]
    return rest == plain and len(more) == 1 and "callback_list.py" in str(more) and str(more).count("on_train_") == 1


def _one_frame_more_is_shown(plain: str, ours: str) -> bool:
    """The same in a formatted traceback."""
    return _one_frame_more(*(re.split(r"^(?=  File )", text, flags=re.MULTILINE) for text in (plain, ours)))


NEEDED = {
    **{f"atexit {when}": Needed(_GOODBYE, lambda plain, ours: plain < ours <= plain + 2) for when in LOOKS},
    **{
        f"descriptors {when}": Needed(_HELD, only_more(lambda name: any(map(name.__contains__, OURS))))
        for when in LOOKS
    },
    **{f"modules {when} fit": Needed(_PARTS, only_more(module_of_ours)) for when in ("before", "after")},
    **{f"SIGTERM in {moment}": Needed(_NOTED, lambda plain, ours: plain != ours) for moment in TRAINING},
    **{f"stack in {name}": Needed(_FRAME, _one_frame_more) for name in HOOKED},
    **{f"traceback whole {name}": Needed(_FRAME, _one_frame_more_is_shown) for name in HOOKED},
    **{f"{name} closure": Needed(_HOOKED, lambda plain, ours: plain == 0 < ours) for name in HOOKED},
    **{f"{name} inner": Needed(_HOOKED, lambda plain, ours: plain != ours) for name in HOOKED},
    **{f"{name} globals": Needed(_HOOKED, lambda plain, ours: plain != ours) for name in HOOKED},
}

# Asked for by tests of their own, so that each has its name.
APART = {
    "class": ("class ", *(f"{name} " for name in HOOKED)),
    "tracebacks": ("traceback ", "stack "),
    "forks": ("forked in ",),
    "raised": ("SIGTERM after fits that raised", "sigterm after ", "forked after fits"),
    "containers": ("contain",),
    "kept": ("left ",),
}

Runs = tuple[Ended, Ended, Place]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The script run plainly and supervised: once for all that is asked here."""
    place = Place(tmp_path_factory.mktemp("keras"))
    plain, supervised = Both(place).run([PYTHON, str(SCRIPT)], env={"KERAS_HOME": str(place.root)})
    yield plain, supervised, place
    place.close()


def _check(runs: Runs, group: str | None) -> None:
    """Nothing of that group differs but what is needed."""
    wanted = APART[group] if group else ()
    others = tuple(name for names in APART.values() for name in names)

    def is_asked(name: str) -> bool:
        return name.startswith(wanted) if group else not name.startswith(others)

    plain, supervised, _ = runs
    needed = {name: reason for name, reason in NEEDED.items() if is_asked(name)}
    facts = [{name: value for name, value in run.facts.items() if is_asked(name)} for run in (plain, supervised)]
    assert facts[0]
    assert_only(needed, *facts, by_chance=frozenset())


def test_nothing_else_differs(runs: Runs) -> None:
    """Threads, signals, warnings, models, callbacks, History, weights and random numbers, in and after fits."""
    _check(runs, None)


def test_the_hooked_class_looks_as_it_was(runs: Runs) -> None:
    """Names, signatures, sources, annotations, lines of CallbackList and of its methods."""
    _check(runs, "class")


def test_tracebacks_and_stacks_are_as_they_were(runs: Runs) -> None:
    """A callback that raises, in each moment, with Keras' filter and without; the stack seen from inside one."""
    _check(runs, "tracebacks")


def test_a_process_forked_inside_a_fit_can_be_terminated(runs: Runs) -> None:
    """Pools of data workers are ended by SIGTERM."""
    _check(runs, "forks")


def test_a_fit_that_raised_leaves_sigterm_as_it_was(runs: Runs) -> None:
    """Else nothing but SIGKILL would end the rest of the script."""
    _check(runs, "raised")


def test_nothing_is_kept_alive(runs: Runs) -> None:
    """A script that trains many models has memory for one."""
    _check(runs, "kept")


def test_what_is_printed_is_the_same(runs: Runs) -> None:
    """All of it, the last uncaught traceback too. The second attempt, which that brings about, says nothing."""
    plain, supervised, place = runs
    theirs = [line for line in supervised.err.splitlines() if not line.startswith(PREFIX)]
    assert theirs == plain.err.splitlines()
    assert b"ZeroDivisionError" in plain.err
    assert (place.run_dir / "attempts" / "001" / "output.log").read_bytes() == plain.err
    assert supervised.out == plain.out == b""


def test_our_part_was_at_work(runs: Runs) -> None:
    """Else all of the above would say little."""
    _, _, place = runs
    assert len(place.events("claimed")) == 1
    assert len(place.events("fit_began")) > 20
    assert len(place.events("committed")) > 5
    assert [note for note in place.events("note") if "ksupervise failed" in note["text"]] == []
