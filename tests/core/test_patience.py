"""How long a silence may last."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksupervise.core.patience import Doing, Limit, Patience, Slowest, limit, validation_limit

DEFAULT = Patience()
FIXED = Patience(fixed=20.0)
SECONDS = st.floats(0, 1e6)
SLOWEST = st.builds(Slowest, SECONDS, SECONDS, SECONDS, SECONDS)
PATIENCE = st.builds(Patience, floor=st.floats(1, 1e5), fixed=st.none() | st.floats(1, 1e5))
GIVEN = (Doing.TRAINING, Doing.VALIDATING, Doing.BETWEEN)
LEARNED = {Doing.TRAINING: "step", Doing.VALIDATING: "test_batch", Doing.BETWEEN: "between"}


@pytest.mark.parametrize(
    ("doing", "seconds"),
    [
        (Doing.STARTING, 3600),
        (Doing.FIRST, 1800),
        (Doing.TRAINING, 1800),
        (Doing.BETWEEN, 1800),
        (Doing.VALIDATING, 1800),
        (Doing.STAGING, 600),
    ],
)
def test_what_was_never_seen_is_given_long(doing: Doing, seconds: float) -> None:
    found = limit(doing, Slowest(), DEFAULT)
    assert found.idle == seconds
    assert limit(doing, Slowest(), Patience(floor=9000)).idle == 9000, "but never less than the floor"
    starting = doing is Doing.STARTING
    assert found.busy == (math.inf if starting else max(1800, 6 * seconds))
    assert found.reason == ("outside fit" if starting else "nothing was seen yet to learn from")


def test_one_that_has_trained_may_serve_or_wait_as_long_as_it_likes() -> None:
    for patience in (DEFAULT, FIXED, Patience(fixed=5000.0)):
        assert limit(Doing.OUTSIDE, Slowest(1.0, 1.0, 1.0, 1.0), patience).idle == math.inf


@pytest.mark.parametrize(
    ("doing", "word"), [(Doing.TRAINING, "step"), (Doing.VALIDATING, "batch"), (Doing.BETWEEN, "")]
)
def test_five_times_the_slowest_is_the_limit(doing: Doing, word: str) -> None:
    seen = Slowest(**{LEARNED[doing]: 100.0})
    found = limit(doing, seen, DEFAULT)
    assert (found.idle, found.busy) == (500.0, 3000.0)
    name = f"the slowest {word}" if word else "the slowest before"
    assert found.reason == f"5 times {name}, 100 s"


def test_a_quick_step_has_the_shortest_limit() -> None:
    assert limit(Doing.TRAINING, Slowest(step=0.02), DEFAULT) == Limit(300.0, 1800.0, "the shortest limit")
    assert limit(Doing.TRAINING, Slowest(step=0.02), Patience(floor=1.0)) == Limit(1.0, 1800.0, "the shortest limit")
    assert limit(Doing.TRAINING, Slowest(step=0.5), Patience(floor=1.0)).reason == "5 times the slowest step, 0.5 s"


def test_no_learned_limit_is_longer_than_an_hour_unless_one_was_seen_to_take_nearly_as_long() -> None:
    assert limit(Doing.TRAINING, Slowest(step=720.0), DEFAULT).idle == 3600.0
    assert limit(Doing.TRAINING, Slowest(step=1000.0), DEFAULT).idle == 3600.0
    assert limit(Doing.TRAINING, Slowest(step=1000.0), DEFAULT).reason == "3.6 times the slowest step, 1000 s"
    assert limit(Doing.TRAINING, Slowest(step=7200.0), DEFAULT).idle == 14400.0
    assert limit(Doing.TRAINING, Slowest(step=7200.0), DEFAULT).reason == "2 times the slowest step, 7200 s"


def test_what_is_learned_of_one_thing_says_nothing_of_another() -> None:
    everything = Slowest(100.0, 100.0, 100.0, 100.0)
    for doing in (Doing.STARTING, Doing.FIRST, Doing.STAGING, Doing.OUTSIDE):
        assert limit(doing, everything, DEFAULT) == limit(doing, Slowest(), DEFAULT)


def test_what_the_user_gave_holds_once_the_training_runs_whatever_was_learned() -> None:
    for doing in GIVEN:
        assert limit(doing, Slowest(step=9.0, test_batch=9.0), FIXED) == Limit(20.0, 20.0, "--stall")


@pytest.mark.parametrize("doing", [each for each in Doing if each not in GIVEN and each is not Doing.OUTSIDE])
def test_elsewhere_what_the_user_gave_only_makes_the_limit_longer(doing: Doing) -> None:
    assert limit(doing, Slowest(), FIXED) == limit(doing, Slowest(), DEFAULT)
    longer = limit(doing, Slowest(), Patience(fixed=5000.0))
    assert (longer.idle, longer.reason) == (5000.0, "--stall")


@pytest.mark.parametrize(
    ("longest", "floor", "seconds"),
    [(0.0, 300.0, 7200.0), (0.0, 9000.0, 9000.0), (10.0, 300.0, 600.0), (10.0, 700.0, 700.0), (400.0, 300.0, 2000.0)],
)
def test_a_whole_validation(longest: float, floor: float, seconds: float) -> None:
    found = validation_limit(Slowest(validation=longest), Patience(floor))
    assert (found.idle, found.busy) == (seconds, 6 * seconds)
    assert found.reason == (
        f"5 times the longest, {longest:.0f} s" if longest else "nothing was seen yet to learn from"
    )


def test_what_two_attempts_saw_is_the_longest_of_both() -> None:
    assert Slowest(1, 20, 3, 40).with_other(Slowest(10, 2, 30, 4)) == Slowest(10, 20, 30, 40)


@given(SLOWEST, SLOWEST)
def test_laws_of_learning(one: Slowest, other: Slowest) -> None:
    both = one.with_other(other)
    assert both == other.with_other(one)
    assert both.with_other(one) == both
    assert one.with_other(Slowest()) == one


@given(st.sampled_from(Doing), SLOWEST, PATIENCE)
def test_laws_of_a_limit(doing: Doing, seen: Slowest, patience: Patience) -> None:
    found = limit(doing, seen, patience)
    assert found.busy >= found.idle > 0
    assert found.reason
    if patience.fixed is None:
        assert found.idle >= patience.floor
        if doing in LEARNED:
            assert found.idle >= getattr(seen, LEARNED[doing]), "what was seen to come back is not given up on sooner"
    else:
        assert found.idle >= patience.fixed
    whole = validation_limit(seen, patience)
    assert whole.busy >= whole.idle >= max(patience.floor, seen.validation)


@given(st.sampled_from(Doing), SLOWEST, st.floats(1, 1e5), st.booleans())
def test_after_a_stall_a_silence_may_last_twice_as_long(
    doing: Doing, seen: Slowest, seconds: float, whole: bool
) -> None:
    """Were the judgement wrong, the next attempt must not meet it again, and the one after that."""
    later = seen.after_stall(doing, seconds, whole=whole)
    patience = Patience()
    if whole:
        assert validation_limit(later, patience).idle >= 1.99 * seconds
    elif doing in LEARNED:
        assert limit(doing, later, patience).idle >= min(1.99 * seconds, 3600.0)
    else:
        assert later == seen
    assert later.with_other(seen) == later


@given(st.sampled_from(Doing), SLOWEST, SLOWEST, PATIENCE)
def test_who_was_slower_is_given_longer(doing: Doing, one: Slowest, other: Slowest, patience: Patience) -> None:
    """Of two that were seen: before any was, the limit is a guess."""
    name = LEARNED.get(doing, "step")
    slower, quicker = sorted((one, other), key=lambda seen: float(getattr(seen, name)), reverse=True)
    if getattr(quicker, name):
        more, less = limit(doing, slower, patience), limit(doing, quicker, patience)
        assert more.idle >= less.idle
        assert more.busy >= less.busy


@given(st.sampled_from(Doing), SLOWEST, st.floats(1, 1e5), st.floats(1, 1e5))
def test_a_higher_floor_never_shortens_a_limit(doing: Doing, seen: Slowest, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert limit(doing, seen, Patience(low)).idle <= limit(doing, seen, Patience(high)).idle
    assert validation_limit(seen, Patience(low)).idle <= validation_limit(seen, Patience(high)).idle
