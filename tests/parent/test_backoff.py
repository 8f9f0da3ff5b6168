"""How long the next attempt waits."""

from __future__ import annotations

import random

import pytest

from ksupervise.parent.backoff import CEILING, delay


@pytest.mark.parametrize("fruitless", [0, 1])
def test_after_progress_or_a_first_failure_there_is_no_wait(fruitless: int) -> None:
    assert delay(fruitless) == 0.0


@pytest.mark.parametrize(
    ("fruitless", "most"), [(2, 2.0), (3, 4.0), (4, 8.0), (6, 32.0), (7, CEILING), (9999, CEILING)]
)
def test_the_wait_is_drawn_from_a_window_that_doubles_up_to_a_ceiling(fruitless: int, most: float) -> None:
    random.seed(1)
    waits = [delay(fruitless) for _ in range(300)]
    assert all(0 <= wait <= most for wait in waits)
    assert max(waits) > 0.9 * most
    assert min(waits) < 0.5 * most


def test_runs_felled_together_do_not_come_back_in_step() -> None:
    assert len({delay(5) for _ in range(20)}) == 20
