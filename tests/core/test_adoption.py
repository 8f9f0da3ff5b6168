"""Which generation in a replica a call means, by cases."""

from __future__ import annotations

import pytest

from ksupervise.core.adoption import Choice, Local, Seen, choose, verdict

OURS = Seen(0, 2, "ours", "digest", newest=(3, 17, "h"), step=170, token=4)
OLDER = Seen(0, 1, "before", "digest", newest=(9, 99, "h"), step=990, token=9)


def chosen(
    local: Local | None, *seen: Seen, digest: str = "digest", named: bool = False, fresh: bool = False
) -> Choice:
    return choose(local, seen, digest=digest, named=named, fresh=fresh)


def test_of_an_empty_place_nothing_is_fetched() -> None:
    assert chosen(None) == chosen(Local("ours", (1, 1, "h"))) == Choice()


def test_an_empty_machine_takes_the_newest_generation_of_the_same_script() -> None:
    assert chosen(None, OLDER, OURS) == Choice(token=4, fetch=OURS)


@pytest.mark.parametrize("digest", ["other", ""])
def test_another_scripts_run_is_taken_only_by_its_name(digest: str) -> None:
    assert "another script" in chosen(None, OURS, digest=digest).refusal
    assert chosen(None, OURS, digest=digest, named=True).fetch == OURS


def test_a_script_that_nobody_could_read_matches_nothing() -> None:
    unknown = Seen(0, 1, "ours", "", newest=(1, 1, "h"))
    assert chosen(None, unknown, digest="").refusal


def test_the_place_with_the_newest_checkpoint_is_taken() -> None:
    behind = Seen(0, 2, "ours", "digest", newest=(3, 16, "h"), token=5)
    assert chosen(None, behind, Seen(1, 2, "ours", "digest", newest=(3, 17, "h"))).fetch is not None
    ahead = Seen(1, 2, "ours", "digest", newest=(4, 2, "h"), token=4)
    assert chosen(None, behind, ahead) == Choice(token=5, fetch=ahead)


def test_a_generation_without_a_checkpoint_is_somebodys_all_the_same() -> None:
    begun = Seen(0, 3, "ours", "digest", token=2)
    assert chosen(None, begun) == Choice(token=2, fetch=begun)
    assert chosen(Local("ours"), begun) == Choice(token=2)


@pytest.mark.parametrize(("newest", "fetched"), [(None, True), ((3, 16, "h"), True), ((3, 17, "h"), False)])
def test_what_is_newer_there_is_fetched(newest: tuple[int, int, str] | None, *, fetched: bool) -> None:
    found = chosen(Local("ours", newest), OLDER, OURS, digest="changed since")
    assert found == Choice(token=4, fetch=OURS if fetched else None)


def test_a_later_attempt_is_newer_though_it_began_further_back() -> None:
    assert chosen(Local("ours", (2, 400, "h")), OURS).fetch == OURS


def test_another_run_of_the_name_is_never_overwritten() -> None:
    assert "another run" in chosen(Local("mine"), OURS, named=True).refusal


def test_a_generation_that_was_given_up_elsewhere_is_not_gone_on_with() -> None:
    assert "begun anew" in chosen(Local("before", (9, 99, "h")), OLDER, OURS).refusal


def test_fresh_begins_the_next_generation() -> None:
    assert chosen(None, OLDER, OURS, fresh=True) == chosen(Local("mine"), OURS, fresh=True) == Choice()


def test_two_places_with_two_runs_are_not_guessed_between() -> None:
    assert "different runs" in chosen(None, OURS, Seen(1, 2, "theirs", "digest")).refusal


ENDED = {"event": "verdict", "state": "completed", "exit": 0}
COMMITTED = {"event": "committed", "seq": 7}


def test_the_last_word_counts_if_all_that_was_committed_came() -> None:
    assert verdict([COMMITTED, ENDED], 7) is ENDED
    assert verdict([COMMITTED, ENDED, {"event": "replica", "op": "failed"}], 8) is ENDED
    assert verdict([COMMITTED, ENDED], 6) is None, "the final state did not come"
    assert verdict([ENDED], 0) is ENDED, "a run without a checkpoint"
    assert verdict([COMMITTED], 7) is None
    for since in ("taken", "launched"):
        assert verdict([COMMITTED, ENDED, {"event": since}], 7) is None, "somebody took it on"
