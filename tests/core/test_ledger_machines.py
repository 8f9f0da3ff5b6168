"""The accounts of runs that go from machine to machine: named histories, as merged journals tell them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.machines import Machine

from ksupervise.core.clock import timeline
from ksupervise.core.ledger import AttemptAccount, account

Record = dict[str, Any]
HOUR = 3600.0


def steps(attempt: AttemptAccount) -> tuple[int | None, int | None, bool, int]:
    """First and last step, whether there may be more, and how many are lost."""
    return attempt.first_step, attempt.last_step, attempt.at_least, attempt.lost_steps


def killed_and_taken_over(a: Machine, b: Machine) -> list[Record]:
    """A trains from 0 to beyond 40 and is killed at 100 s; B goes on a minute later and ends at 300 s."""
    one, two = a.life(), b.life()
    last = one.committed(90, 1, 40)
    return [
        *(one.took(0), *one.trains(10, 1), one.committed(50, 1, 20), last),
        *(two.took(160), two.found_lost(161, 1, last), *two.trains(170, 2, resumed=40)),
        *(two.committed(290, 2, 90), two.ended(300, 2, 40, 100)),
    ]


@pytest.mark.parametrize("ahead", [0.0, 3 * HOUR, -3 * HOUR])
def test_of_a_machine_that_was_killed_is_shown_what_is_known(ahead: float) -> None:
    run = account(killed_and_taken_over(Machine("a"), Machine("b", ahead=ahead, up=5.0)), None)
    first, second = run.attempts
    assert steps(first) == (0, 40, True, 0)
    assert steps(second) == (40, 100, False, 0)
    assert (run.steps_executed, run.lost_steps, run.at_least) == (100, 0, True)
    assert (first.host, second.host) == ("a", "b")
    assert (first.cause, first.detail) == ("lost", "machine lost")
    assert (first.seconds, second.seconds) == pytest.approx((80, 130)), "each on its own machine's clock"


def test_what_was_committed_and_not_replicated_is_lost_as_far_as_it_is_known() -> None:
    one, two = Machine("a").life(), Machine("b").life()
    run = account(
        [
            *(one.took(0), *one.trains(10, 1), one.committed(50, 1, 20), one.committed(90, 1, 40)),
            *(two.took(160), two.found_lost(161, 1, one.committed(50, 1, 20)), *two.trains(170, 2, resumed=20)),
        ],
        None,
    )
    assert steps(run.attempts[0]) == (0, 40, True, 20)
    assert run.attempts[0].seconds == pytest.approx(80), "its own records know of more than who found it lost"


def test_a_machine_of_which_no_step_is_known_says_so() -> None:
    one, two = Machine("a").life(), Machine("b").life()
    run = account([one.took(0), *one.trains(10, 1), two.took(90), two.found_lost(91, 1, one.took(0))], None)
    assert steps(run.attempts[0]) == (None, None, True, 0)


def test_the_control_page_tells_it_all() -> None:
    """The parent was killed; the next one on the same machine reads how far the training came."""
    machine = Machine("a")
    one, two = machine.life(), machine.life()
    found = {**two.ended(160, 1, 0, 47, "parent_lost"), "ended": one.took(95)["at"]}
    run = account([one.took(0), *one.trains(10, 1), one.committed(90, 1, 40), two.took(160), found], None)
    assert steps(run.attempts[0]) == (0, 47, False, 7)
    assert run.attempts[0].seconds == pytest.approx(85)


def test_who_found_its_traces_knows_more_than_who_did_not() -> None:
    """B knew nothing of A's end. A comes back, and still has the control page."""
    a, b = Machine("a"), Machine("b", up=4.0)
    one, two, three = a.life(), b.life(), a.life()
    last = one.committed(90, 1, 40)
    story = [
        *(one.took(0), *one.trains(10, 1), last),
        *(two.took(160), two.found_lost(161, 1, last), *two.trains(170, 2, resumed=40), two.ended(200, 2, 40, 60)),
        *(three.took(260), {**three.ended(261, 1, 0, 47, "parent_lost"), "ended": one.took(95)["at"]}),
    ]
    run = account(story, None)
    assert steps(run.attempts[0]) == (0, 47, False, 7)
    assert run.attempts[0].cause == "parent_lost"


def test_nobody_corrects_the_one_who_was_there() -> None:
    one, two = Machine("a").life(), Machine("b").life()
    story = [one.took(0), *one.trains(10, 1), one.ended(90, 1, 0, 44, "preempted")]
    (attempt,) = account([*story, two.took(160), two.ended(161, 1, 0, 40, "lost")], None).attempts
    assert (attempt.cause, attempt.last_step) == ("preempted", 44)


def test_what_others_enter_for_it_does_not_make_it_last_longer() -> None:
    """Its child saved once more after its parent had died, and the next parent found that."""
    one, two = Machine("a").life(), Machine("b", ahead=HOUR).life()
    story = [one.took(0), *one.trains(10, 1), one.committed(90, 1, 40)]
    found = [two.took(160), two.committed(161, 1, 44), two.found_lost(162, 1, story[-1])]
    (attempt,) = account([*story, *found], None).attempts
    assert attempt.seconds == pytest.approx(80)
    assert steps(attempt) == (0, 44, True, 0)


def the_loser_ends_itself(a: Machine, b: Machine) -> list[Record]:
    """A is paused at 100 s, B takes over at 160 s and trains until 300 s; A wakes at 250 s, saves and leaves."""
    one, two = a.life(), b.life()
    last = one.committed(90, 1, 40)
    return [
        *(one.took(0), *one.trains(10, 1), last),
        *(one.superseded(250), one.committed(252, 1, 44), one.ended(255, 1, 0, 44, "preempted")),
        one.says("verdict", 256, state="preempted", exit=75),
        *(two.took(160), two.found_lost(161, 1, last), *two.trains(170, 2, resumed=40), two.ended(300, 2, 40, 100)),
    ]


@pytest.mark.parametrize("ahead", [0.0, 3 * HOUR, -3 * HOUR])
def test_the_one_who_was_there_knows_how_it_ended(ahead: float) -> None:
    story = the_loser_ends_itself(Machine("a"), Machine("b", ahead=ahead, up=7.0))
    run = account(story, None)
    loser, winner = run.attempts
    (ended,) = (record for record in story if record["event"] == "attempt_ended" and record["life"] == "a1")
    assert (loser.cause, loser.detail, loser.ended) == ("preempted", "preempted", ended["at"])
    assert steps(loser) == (0, 44, False, 4)
    assert (loser.seconds, winner.seconds) == pytest.approx((245, 130))
    assert not run.at_least


def test_two_that_trained_side_by_side_are_no_fault_of_the_clocks() -> None:
    run = account(the_loser_ends_itself(Machine("a"), Machine("b")), None)
    assert run.clock_flags == ()
    begun = [attempt.span[0] for attempt in run.attempts]
    assert begun == pytest.approx([10, 170]), "the second began before the first one ended"
    assert run.goodput == 1.0, "a share never goes beyond the whole"


def test_two_machines_that_counted_alike_have_an_attempt_each() -> None:
    """The place could exclude nobody: both trained attempt 2 for a while."""
    a, b = Machine("a"), Machine("b")
    one, two, three = a.life(), a.life(), b.life()
    run = account(
        [
            *(one.took(0), *one.trains(10, 1), one.committed(40, 1, 20), one.ended(50, 1, 0, 20, "preempted")),
            *(two.took(60), *two.trains(61, 2, resumed=20), two.superseded(90), two.ended(99, 2, 20, 30, "preempted")),
            *(three.took(62), *three.trains(63, 2, resumed=20), three.ended(120, 2, 20, 60)),
        ],
        None,
    )
    assert [(each.number, each.host, each.last_step) for each in run.attempts] == [
        (1, "a", 20),
        (2, "a", 30),
        (2, "b", 60),
    ]
    assert [each.lost_steps for each in run.attempts] == [0, 10, 0]


def there_and_back(a: Machine, b: Machine) -> list[Record]:
    """A trains until 100 s, B from 200 s to 500 s, A again from 600 s to 700 s; all leave in good order."""
    one, two, three = a.life(), b.life(), a.life()
    return [
        *(one.took(0), *one.trains(0, 1), one.committed(99, 1, 10), one.ended(100, 1, 0, 10, "preempted")),
        *(two.took(200), *two.trains(200, 2, resumed=10), two.ended(500, 2, 10, 40, "preempted")),
        *(three.took(600), *three.trains(600, 3, resumed=40), three.committed(699, 3, 50), three.ended(700, 3, 40, 50)),
    ]


@pytest.mark.parametrize("ahead", [0.0, 3 * HOUR, -3 * HOUR, 48 * HOUR])
def test_there_and_back_takes_as_long_as_the_first_machine_says(ahead: float) -> None:
    run = account(there_and_back(Machine("a"), Machine("b", ahead=ahead, up=3.0)), None)
    assert [attempt.seconds for attempt in run.attempts] == pytest.approx([100, 300, 100])
    assert run.attempts[-1].span[2] == pytest.approx(700), "by the clock of the machine that began and ended it"
    assert run.goodput == pytest.approx(500 / 700)
    if ahead:
        (flag,) = run.clock_flags
        assert flag.startswith("the clocks of a and b differ by ")
    else:
        assert run.clock_flags == ()


def test_a_machine_that_comes_back_after_a_reboot() -> None:
    """Its monotonic clock began anew; its wall clock did not."""
    a, b = Machine("a"), Machine("b", ahead=HOUR)
    story = there_and_back(a, b)
    again = [{**r, "mono": r["mono"] - 1590, **({"boot": "new"} if "boot" in r else {})} for r in story[-6:]]
    run = account([*story[:-6], *again], None)
    assert [attempt.seconds for attempt in run.attempts] == pytest.approx([100, 300, 100])
    assert run.attempts[-1].span[2] == pytest.approx(700)
    assert len(run.clock_flags) == 1
    assert "of a and b differ" in run.clock_flags[0]


def test_a_machine_that_slept_meanwhile_is_not_taken_for_two_that_differ() -> None:
    """A was suspended while B trained: A's monotonic clock stood still."""
    story = there_and_back(Machine("a"), Machine("b"))
    again = [{**r, "mono": r["mono"] - 490} for r in story[-6:]]
    run = account([*story[:-6], *again], None)
    assert run.clock_flags == ("the machine was suspended, or its clock set forward, by 490 s",)
    assert [attempt.seconds for attempt in run.attempts] == pytest.approx([100, 300, 100])


def test_a_clock_that_was_set_back_on_one_machine_is_still_told_of() -> None:
    a, b = Machine("a"), Machine("b")
    one, two = a.life(), b.life()
    late = Machine("a", ahead=-HOUR)
    story = [one.took(0), *one.trains(1, 1), {**late.life().ended(100, 1, 0, 10, "preempted"), "life": one.name}]
    run = account([*story, two.took(5000), *two.trains(5001, 2, resumed=10)], None)
    assert "the wall clock was set back by 3600 s" in run.clock_flags


def test_an_open_attempt_elsewhere_lasts_no_longer_than_it_was_heard_of() -> None:
    """Whoever asks does not know how it goes on, and has another clock."""
    one, two = Machine("a").life(), Machine("b", ahead=-HOUR).life()
    story = [one.took(0), *one.trains(0, 1), one.committed(50, 1, 10), one.ended(60, 1, 0, 10, "preempted")]
    story += [two.took(100), *two.trains(100, 2, resumed=10), two.committed(150, 2, 30)]
    last = account(story, None).attempts[-1]
    assert last.ended is None
    assert last.seconds == pytest.approx(50)
    assert steps(last) == (10, 30, True, 0)


def test_an_attempt_in_hand_lasts_until_now() -> None:
    one = Machine("a").life()
    story = [one.took(0), *one.trains(0, 1), one.committed(50, 1, 10)]
    (attempt,) = account(story, one.took(75)["at"]).attempts
    assert attempt.seconds == pytest.approx(75)
    assert (attempt.at_least, attempt.last_step) == (False, None)


def test_a_journal_that_was_cut_short_is_read_all_the_same() -> None:
    """Only its last lines travel: nobody knows which machine began, and when."""
    story = killed_and_taken_over(Machine("a"), Machine("b"))
    run = account(story[3:], None)
    assert [(each.number, each.last_step) for each in run.attempts] == [(1, 40), (2, 100)]


STORIES = (killed_and_taken_over, the_loser_ends_itself, there_and_back)


@given(st.data(), st.sampled_from(STORIES), st.sampled_from([0.0, 2 * HOUR, -2 * HOUR]))
def test_the_order_of_arrival_changes_nothing(data: st.DataObject, story: Any, ahead: float) -> None:
    records: list[Record] = story(Machine("a"), Machine("b", ahead=ahead, up=9.0))
    mixed = data.draw(st.permutations(records))
    assert account(mixed, None) == account(records, None)
    line = timeline(mixed)
    told = [record for life in line.lives for record in life.records]
    assert sorted(map(str, told)) == sorted(map(str, records))
    times = iter(line.times)
    spans = [[next(times) for _ in life.records] for life in line.lives]
    assert all(earlier <= later for span in spans for earlier, later in itertools.pairwise(span))
    for life, before, after in zip(line.lives, spans, spans[1:], strict=False):
        assert after[0] >= (before[0] if life.superseded else before[-1])
