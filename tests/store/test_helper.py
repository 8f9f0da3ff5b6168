"""The thread beside the one that works."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest

from ksupervise.store.helper import Helper

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["thread", "alone"])
def helper(request: pytest.FixtureRequest) -> Iterator[Helper[int]]:
    before = threading.enumerate()
    made = Helper[int]("tested", alone=request.param == "alone")
    assert threading.enumerate() == before, "it starts with the first call"
    yield made
    made.close()
    assert threading.enumerate() == before
    made.close()


def test_results_come_in_order(helper: Helper[int]) -> None:
    for n in range(20):
        helper.begin(partial(int, n))
    assert [helper.result() for _ in range(20)] == list(range(20))


def test_an_error_is_raised_where_the_result_is_asked_for(helper: Helper[int]) -> None:
    helper.begin(partial(int, "no"))
    helper.begin(partial(int, "7"))
    with pytest.raises(ValueError, match="'no'"):
        helper.result()
    assert helper.result() == 7


def test_closing_waits_for_the_call_in_hand() -> None:
    helper = Helper[None]("tested")
    begun, go_on = threading.Event(), threading.Event()
    ended: list[bool] = []

    def call() -> None:
        begun.set()
        go_on.wait(10)
        sum(range(1_000_000))
        ended.append(True)

    helper.begin(call)
    begun.wait(10)
    go_on.set()
    helper.close()
    assert ended == [True]
