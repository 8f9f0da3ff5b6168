"""The two ages against poison: whatever the cadence and the clock, one old enough is there, and few are kept for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksupervise.store import Checkpoint, Manifest, Retention, to_keep, why_kept

from .helpers import RUN, at

AGES = (600.0, 3600.0)
RETENTION = Retention(newest=2, ages=AGES)
GAPS = st.sampled_from([2.0, 30.0, 59.0, 120.0, 299.0, 601.0, 1000.0, 5000.0])


def made(seq: int, clock: float) -> Checkpoint:
    """Number `seq`, by that clock."""
    return Checkpoint(str(seq), Manifest(RUN, seq, 1, "h", at(seq), "interval", clock, ()))


def history(gaps: list[float], jumps: dict[int, float]) -> list[tuple[float, list[tuple[float, Checkpoint]]]]:
    """A commit after each gap, each followed by a prune: true time now, and what is kept with its true time.

    `jumps`: before commit number n the clock is set by so many seconds, without any time passing.
    """
    now = shift = 0.0
    kept: list[Checkpoint] = []
    true: dict[str, float] = {}
    states = []
    for seq, gap in enumerate([0.0, *gaps]):
        now += gap
        shift += jumps.get(seq, 0.0)
        kept = to_keep([made(seq, 1e9 + now + shift), *kept], RETENTION)
        true[str(seq)] = now
        states.append((now, [(true[each.path], each) for each in kept]))
    return states


@given(st.lists(GAPS | st.integers(0, 4000).map(float), max_size=150))
def test_one_that_is_old_enough_and_not_too_old(gaps: list[float]) -> None:
    longest = max(gaps, default=0.0)
    for now, kept in history(gaps, {}):
        assert len(kept) <= RETENTION.newest + 2 * len(AGES)
        for age in AGES:
            if now >= age:
                assert any(age <= now - then <= 2 * age + longest for then, _ in kept)


def test_at_a_steady_cadence_it_is_never_missed() -> None:
    """A day, a checkpoint each minute: the worst ages seen are as promised, and no worse than they must be."""
    states = history([60.0] * 1440, {})
    for age in AGES:
        ages = [min((now - then for then, _ in kept if now - then >= age), default=-1.0) for now, kept in states]
        steady = ages[len(ages) // 2 :]
        assert age <= min(steady)
        assert max(steady) <= 2 * age + 60.0
    assert max(len(kept) for _, kept in states) <= 6


BACK = st.dictionaries(st.integers(0, 100), st.sampled_from([-5.0, -100.0, -3000.0, -1e6]), max_size=4)


@given(st.lists(GAPS, max_size=100), BACK)
def test_a_clock_that_is_put_back_loses_none(gaps: list[float], jumps: dict[int, float]) -> None:
    for now, kept in history(gaps, jumps):
        assert len(kept) <= RETENTION.newest + 2 * len(AGES)
        for age in AGES:
            assert now < age or any(now - then >= age for then, _ in kept)


ANY = st.dictionaries(st.integers(0, 40), st.sampled_from([-1e6, -100.0, 100.0, 3000.0, 1e6]), max_size=4)


@given(st.lists(GAPS, min_size=1, max_size=100), ANY)
def test_a_clock_that_is_put_forward_is_got_over(gaps: list[float], jumps: dict[int, float]) -> None:
    """It looks as if time had passed. An age later all is well again."""
    states = history(gaps, jumps)
    jumped = [states[seq][0] for seq in jumps if seq < len(states)]
    for now, kept in states:
        assert len(kept) <= RETENTION.newest + 2 * len(AGES)
        for age in AGES:
            settled = all(then > now or now - then >= age + max(gaps) for then in jumped)
            assert not settled or now < age or any(now - then >= age for then, _ in kept)


@pytest.mark.parametrize(
    ("clocks", "words"),
    [
        ([0.0], ["newest, next 10 min, next 1 h"]),
        ([400.0, 300.0, 0.0], ["newest", "newest", "next 10 min, next 1 h"]),
        ([700.0, 650.0, 300.0, 0.0], ["newest", "newest", "next 10 min", "10 min, next 1 h"]),
        ([100.0, 50.0, 9000.0, 8000.0], ["newest", "newest, next 10 min, next 1 h", "", "10 min, 1 h"]),
        ([90.0, 50.0, 9e3, 8e3, 1e3], ["newest", "newest, next 10 min, next 1 h", "", "10 min", "1 h"]),
    ],
)
def test_what_is_kept_for_its_age_is_told(clocks: list[float], words: list[str]) -> None:
    listed = [made(len(clocks) - number, clock) for number, clock in enumerate(clocks)]
    assert [", ".join(reason.words for reason in reasons) for _, reasons in why_kept(listed, RETENTION)] == words
