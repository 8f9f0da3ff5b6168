"""An attempt is started even where nothing can be written for it, if there is something in memory to go on from."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ksupervise.parent.launch import Attempt, launch
from ksupervise.store import RunLayout, StoreUnwritable
from ksupervise.wire import Control


def start(layout: RunLayout, lock: int, **how: Any) -> Attempt:
    seen: dict[str, Any] = {}

    def open_dialogue(number: int, control: Control, live_fd: int, outputs: Sequence[int]) -> Any:
        seen.update(control=control, live_fd=live_fd)
        return None

    return launch(1, [sys.executable, "-c", "print('trained')"], dict(os.environ), layout, lock, open_dialogue, **how)


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    layout = RunLayout(tmp_path)
    layout.create()
    (tmp_path / "attempts").rmdir()
    (tmp_path / "attempts").write_text("in the way")
    return layout


def test_a_first_attempt_that_nothing_can_be_written_for_is_not_started(layout: RunLayout, tmp_path: Path) -> None:
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    before = set(os.listdir("/proc/self/fd")) if sys.platform == "linux" else set()
    with pytest.raises(StoreUnwritable):
        start(layout, lock)
    if sys.platform == "linux":
        assert set(os.listdir("/proc/self/fd")) == before
    os.close(lock)


@pytest.mark.skipif(sys.platform != "linux", reason="memfd")
def test_a_later_one_goes_on_without_a_log(layout: RunLayout, tmp_path: Path) -> None:
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    before = set(os.listdir("/proc/self/fd"))
    attempt = start(layout, lock, without_disk=True)
    assert "attempts" in attempt.unwritten
    attempt.control["step"] = 7
    theirs = Control(attempt.live_fd)
    assert theirs["step"] == 7, "the child is handed the same page"
    theirs.close()
    assert attempt.child.pidfd is not None
    select.select([attempt.child.pidfd], [], [], 30)
    assert attempt.child.gone()
    attempt.close()
    assert set(os.listdir("/proc/self/fd")) == before
    os.close(lock)
