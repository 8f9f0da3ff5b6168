"""Where a fit goes on: fresh, resumed or skipped, and from which checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from ksupervise.core.resume import Mode, plan


@dataclass(frozen=True)
class Known:
    """A checkpoint as `plan` looks at it."""

    seq: int
    fit: int = 1
    epoch: int = 0
    kind: str = "epoch"
    epochs: int = 10
    stopped: bool = False
    approximate: bool = False
    thin: bool = False


def newest_first(*known: Known) -> list[Known]:
    """As a store lists them."""
    return sorted(known, key=lambda each: -each.seq)


def test_a_fit_of_which_nothing_is_known_starts_fresh() -> None:
    assert plan(1, 10, []).mode is Mode.FRESH
    assert plan(2, 10, [Known(1, fit=1)]).mode is Mode.FRESH


def test_an_open_fit_goes_on_from_its_newest_checkpoint() -> None:
    epoch, batch = Known(1, epoch=1), Known(2, epoch=1, kind="batch")
    found = plan(1, 10, newest_first(epoch, batch))
    assert (found.mode, found.checkpoint, found.refusal) == (Mode.RESUME, batch, "")


def test_a_complete_fit_is_not_trained_again() -> None:
    epoch, final = Known(1, epoch=10), Known(2, epoch=10, kind="final")
    found = plan(1, 10, newest_first(epoch, final))
    assert (found.mode, found.checkpoint) == (Mode.SKIP, final)


def test_a_fit_that_its_callbacks_ended_early_is_complete_whatever_is_asked() -> None:
    final = Known(2, epoch=4, kind="final", stopped=True)
    assert plan(1, 10, [final]).mode is Mode.SKIP
    assert plan(1, 50, [final]).mode is Mode.SKIP


def test_raised_epochs_go_on_from_the_last_epochs_own_end() -> None:
    epoch, final = Known(1, epoch=10), Known(2, epoch=10, kind="final")
    found = plan(1, 20, newest_first(epoch, final))
    assert (found.mode, found.checkpoint) == (Mode.RESUME, epoch)


def test_raised_epochs_go_on_from_the_final_state_where_no_other_was_kept() -> None:
    final = Known(2, epoch=10, kind="final")
    assert plan(1, 20, [final]).checkpoint == final


def test_raised_epochs_that_were_begun_go_on_from_where_they_are() -> None:
    known = [Known(1, epoch=10), Known(2, epoch=10, kind="final"), Known(3, epoch=12, kind="batch", epochs=20)]
    assert plan(1, 20, newest_first(*known)).checkpoint == known[2]


def test_raised_epochs_that_were_begun_and_put_back_are_complete_again() -> None:
    final = Known(2, epoch=10, kind="final")
    later = Known(3, epoch=12, kind="batch", epochs=20)
    found = plan(1, 10, newest_first(final, later))
    assert (found.mode, found.checkpoint) == (Mode.SKIP, final)


def test_fewer_epochs_than_were_trained_are_refused() -> None:
    found = plan(1, 5, [Known(1, epoch=10, kind="final")])
    assert "10 epochs" in found.refusal
    assert "asks for 5" in found.refusal
    assert found.checkpoint is None


def test_an_epoch_in_hand_counts_as_trained() -> None:
    known = [Known(1, epoch=5, kind="batch")]
    assert plan(1, 5, known).refusal
    assert not plan(1, 6, known).refusal


def test_a_later_fit_is_void_once_an_earlier_one_was_trained_further() -> None:
    first, second = Known(1, fit=1, kind="final", epoch=10), Known(2, fit=2, kind="final", epoch=10)
    further = Known(3, fit=1, kind="final", epoch=20, epochs=20)
    assert plan(2, 10, newest_first(first, second)).mode is Mode.SKIP
    assert plan(2, 10, newest_first(first, second, further)).mode is Mode.FRESH


def test_later_fits_do_not_disturb_an_earlier_one() -> None:
    first, second = Known(1, fit=1, kind="final", epoch=10), Known(2, fit=2, epoch=3)
    assert plan(1, 10, newest_first(first, second)).checkpoint == first


KNOWN = st.builds(
    Known,
    seq=st.just(0),
    fit=st.integers(1, 3),
    epoch=st.integers(0, 4),
    kind=st.sampled_from(["batch", "epoch", "final"]),
    epochs=st.integers(1, 5),
    stopped=st.booleans(),
)


@given(st.lists(KNOWN, max_size=8), st.integers(1, 3), st.integers(1, 5))
def test_laws_of_the_plan(entries: list[Known], fit: int, epochs: int) -> None:
    known = newest_first(*(replace(entry, seq=seq) for seq, entry in enumerate(entries, 1)))
    found = plan(fit, epochs, known)
    assert (found.checkpoint is None) == (found.mode is Mode.FRESH or bool(found.refusal))
    if found.checkpoint is not None:
        assert found.checkpoint.fit == fit
        assert all(other.seq < found.checkpoint.seq for other in known if other.fit < fit)
        assert found.mode is Mode.SKIP or found.checkpoint.epoch <= epochs
    if found.mode is Mode.SKIP:
        assert found.checkpoint is not None
        assert found.checkpoint.kind == "final"
    if found.mode is Mode.FRESH:
        since = max((each.seq for each in known if each.fit < fit), default=0)
        assert not [each for each in known if each.fit == fit and each.seq > since]


def test_a_thinned_fit_is_skipped_and_cannot_be_trained_further() -> None:
    final = Known(7, epoch=10, kind="final", thin=True)
    assert plan(1, 10, [final]).mode is Mode.SKIP
    assert "weights were not kept" in plan(1, 12, [final]).refusal


def test_a_fit_that_an_exception_ended_does_not_void_what_came_after_it() -> None:
    """The script caught it and went on: fit 2 has no end, fit 3 has one."""
    known = newest_first(Known(3, fit=1, epoch=10, kind="final"), Known(9, fit=3, epoch=10, kind="final"))
    assert plan(1, 10, known).mode is Mode.SKIP
    again = plan(2, 10, known, abandoned={2})
    assert (again.mode, again.unsaved) == (Mode.FRESH, True)
    assert not plan(2, 10, known).unsaved, "its final state was lost"
    assert plan(3, 10, known).mode is Mode.SKIP
    assert not plan(4, 10, known, abandoned={4}).unsaved


def approximate(seq: int, epoch: int) -> Known:
    return Known(seq, epoch=epoch, kind="batch", approximate=True)


def test_an_epochs_end_is_preferred_to_an_approximate_place_inside_the_next() -> None:
    known = newest_first(Known(4, epoch=1), approximate(5, 1), approximate(6, 1))
    found = plan(1, 10, known)
    assert (found.mode, found.checkpoint, found.passed_over) == (Mode.RESUME, known[2], known[0])


def test_an_epoch_that_was_lost_twice_goes_on_inside() -> None:
    """Attempt 1 made the epoch's end and lost the next; attempt 2 began there and lost it again."""
    known = newest_first(Known(4, epoch=1), approximate(5, 1), approximate(7, 1))
    assert plan(1, 10, known, {0: 1, 4: 1}).checkpoint == known[0]
    assert plan(1, 10, known, {0: 1, 4: 1}).passed_over is None
    assert plan(1, 10, known, {0: 3}).checkpoint == known[2], "the first epoch's losses are not this one's"


def test_a_first_epoch_that_was_lost_twice_goes_on_inside() -> None:
    known = [approximate(5, 0)]
    assert plan(1, 10, known, {0: 1}).mode is Mode.FRESH
    assert plan(1, 10, known, {0: 1}).passed_over == known[0]
    found = plan(1, 10, known, {0: 2})
    assert (found.mode, found.checkpoint) == (Mode.RESUME, known[0])


def test_once_an_epoch_is_over_the_approximate_places_in_it_count_no_more() -> None:
    known = newest_first(Known(4, epoch=1), approximate(5, 1), Known(6, epoch=2))
    assert plan(1, 10, known, {4: 9}).checkpoint == known[0]


def test_a_completed_fit_is_skipped_whatever_was_approximate() -> None:
    known = newest_first(approximate(5, 9), Known(6, epoch=10), Known(7, epoch=10, kind="final"))
    assert plan(1, 10, known).mode is Mode.SKIP


def test_a_run_that_is_always_killed_in_mid_epoch_comes_to_its_end() -> None:
    """Each attempt manages one checkpoint inside an epoch, or its end if it began inside."""
    known: list[Known] = []
    begun: dict[int, int] = {}
    for seq in range(1, 30):
        start = plan(1, 3, newest_first(*known), begun).checkpoint
        came_from = 0 if start is None else start.seq
        begun[came_from] = begun.get(came_from, 0) + 1
        epoch = 0 if start is None else start.epoch
        if start is None or start.kind == "epoch":
            known.append(approximate(seq, epoch))
        elif epoch == 2:
            return
        else:
            known.append(Known(seq, epoch=epoch + 1))
    raise AssertionError("it goes in circles")
