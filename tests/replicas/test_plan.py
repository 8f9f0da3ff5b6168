"""What is copied next and what goes: for every state of here and there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksupervise.replicas.place import Arrival
from ksupervise.replicas.plan import (
    Copy,
    Item,
    Name,
    is_superseded,
    item_of,
    newest_finals,
    parse_name,
    to_remove,
    to_upload,
)

from .memory_place import new_run, put


def item(seq: int, attempt: int = 1, kind: str = "batch", fit: int = 1, branch: str = "aaaaaa") -> Item:
    text = f"{seq:012d}-a{attempt:04d}-h{branch}"
    return Item(Name(text, attempt, seq, branch), f"holder {branch}", kind, fit, seq * 10, 100, 0.0)


def uploaded(*items: Item) -> list[Copy]:
    return [Copy(each, Arrival.UPLOADED) for each in items]


def cached(*items: Item) -> list[Copy]:
    return [Copy(each, Arrival.CACHED) for each in items]


def removed(copies: list[Copy], keep: int = 2, leftovers: tuple[Name, ...] = ()) -> list[int]:
    return [name.seq for name in to_remove(copies, leftovers, keep)]


def test_a_name_is_taken_apart_and_a_strangers_is_not(tmp_path: Path) -> None:
    checkpoint = put(new_run(tmp_path), 5, attempt=3)
    name = parse_name(checkpoint.path.rpartition("/")[2])
    assert name is not None
    assert (name.attempt, name.seq) == (3, 1)
    assert item_of(name, checkpoint.manifest).order == checkpoint.manifest.order
    assert item_of(name, checkpoint.manifest).bytes == checkpoint.manifest.size
    for text in ("", "..", "owner", "1-a1-h1", name.text + "x", "x" + name.text, name.text.upper(), name.text + "\n"):
        assert parse_name(text) is None, text


def test_a_manifest_under_another_name_is_not_believed(tmp_path: Path) -> None:
    manifest = put(new_run(tmp_path), 5).manifest
    for wrong in (item(2).name, item(1, attempt=2).name):
        with pytest.raises(ValueError, match="attempt 1, number 1"):
            item_of(wrong, manifest)


def test_the_newest_is_copied_first() -> None:
    assert to_upload([item(1), item(3), item(2)], []) == item(3)


def test_newest_is_by_attempt_before_seq() -> None:
    assert to_upload([item(9, attempt=1), item(8, attempt=2)], []) == item(8, attempt=2)


def test_older_ones_are_not_copied_when_the_newest_is_there() -> None:
    assert to_upload([item(1), item(2)], cached(item(2))) is None
    assert to_upload([], []) is None


def test_final_states_follow_the_newest_each_fits_newest_only() -> None:
    local = [
        item(1, kind="final", fit=1),
        item(2, kind="final", fit=1),
        item(3, kind="final", fit=2),
        item(4, fit=3),
    ]
    assert to_upload(local, []) == local[3]
    assert to_upload(local, cached(local[3])) == local[2]
    assert to_upload(local, cached(local[3], local[2])) == local[1]
    assert to_upload(local, cached(local[3], local[2], local[1])) is None
    assert newest_finals(local) == [local[2], local[1]]


def test_a_final_state_is_not_copied_when_a_later_one_of_its_fit_is_there() -> None:
    old, new = item(1, kind="final"), item(5, attempt=2, kind="final")
    assert to_upload([item(6, attempt=2, fit=2), old], cached(item(6, attempt=2, fit=2), new)) is None
    assert to_upload([old], cached(new)) == old, "the newest here is always copied: it is this run's own"


def test_something_newer_supersedes_but_one_in_so_many_is_finished() -> None:
    local = [item(1), item(2)]
    assert is_superseded(item(1), local, [], abandoned=0, finish=3)
    assert is_superseded(item(1), local, [], abandoned=1, finish=3)
    assert not is_superseded(item(1), local, [], abandoned=2, finish=3)
    assert not is_superseded(item(1), local, [], abandoned=0, finish=1)
    assert not is_superseded(item(2), local, [], abandoned=0, finish=3)
    assert not is_superseded(item(1, kind="final"), local, cached(item(2)), abandoned=0, finish=3)


def test_the_newest_so_many_stay() -> None:
    copies = uploaded(item(4), item(3), item(2), item(1))
    assert removed(copies) == [1, 2]
    assert removed(copies, keep=1) == [1, 2, 3]
    assert removed(copies, keep=4) == []
    with pytest.raises(ValueError, match="at least one"):
        to_remove(copies, [], 0)


def test_nothing_goes_before_a_newer_one_has_left_the_machine() -> None:
    assert removed(cached(item(4), item(3), item(2), item(1)), keep=1) == []
    assert removed([Copy(item(2)), Copy(item(1))], keep=1) == [], "nobody has asked: it is not known"
    mixed = [*cached(item(4)), *uploaded(item(3)), *uploaded(item(2)), *uploaded(item(1))]
    assert removed(mixed, keep=1) == [1, 2], "3 is the last that has left the machine"


def test_final_states_stay_until_a_later_one_of_their_fit_has_left_the_machine() -> None:
    first, other, again = item(1, kind="final"), item(2, kind="final", fit=2), item(3, attempt=2, kind="final")
    later = [item(4, attempt=2, fit=3), item(5, attempt=2, fit=3)]
    assert removed(uploaded(*later, other, first)) == []
    assert removed(uploaded(*later, again, other, first)) == [1]
    assert removed([*uploaded(*later), *cached(again), *uploaded(first)]) == []


def test_leftovers_go_when_a_complete_one_follows_them() -> None:
    old, new = item(1).name, item(5).name
    assert removed(cached(item(3)), leftovers=(old, new)) == [1]
    assert removed([], leftovers=(old, new)) == []
    assert removed(cached(item(1, attempt=2)), leftovers=(new,)) == [5], "of an attempt before"


def test_two_holders_of_one_attempt_leave_each_other_alone() -> None:
    mine = [item(seq, branch="aaaaaa") for seq in (7, 8, 9)]
    theirs = [item(seq, branch="bbbbbb") for seq in (1, 2)]
    assert removed(uploaded(*mine, *theirs)) == [7]
    assert removed(uploaded(*mine), leftovers=(theirs[0].name,)) == [7]
    assert removed(uploaded(*mine, *theirs, item(10, attempt=2), item(11, attempt=2))) == [1, 2, 7, 8, 9]


ITEMS = st.builds(
    item,
    seq=st.integers(1, 12),
    attempt=st.integers(1, 3),
    kind=st.sampled_from(["batch", "epoch", "final"]),
    fit=st.integers(1, 3),
    branch=st.sampled_from(["aaaaaa", "bbbbbb"]),
)
COPIES = st.lists(
    st.builds(Copy, ITEMS, st.sampled_from([None, Arrival.CACHED, Arrival.UPLOADED])),
    unique_by=lambda copy: copy.item.name.text,
    max_size=12,
)


@given(COPIES, st.lists(ITEMS, max_size=4), st.integers(1, 4))
def test_what_stays_is_always_as_good_as_what_was(copies: list[Copy], others: list[Item], keep: int) -> None:
    leftovers = [each.name for each in others if each.name not in {copy.item.name for copy in copies}]
    gone = set(to_remove(copies, leftovers, keep))
    staying = [copy for copy in copies if copy.item.name not in gone]
    if copies:
        newest = max(copies, key=lambda copy: copy.item.order)
        assert newest in staying, "the newest complete one"
    for copy in copies:
        if copy.item.name in gone:
            assert any(each.uploaded and each.item.name.follows(copy.item.name) for each in staying)
            assert sum(each.item.name.follows(copy.item.name) for each in staying) >= min(keep, 1)
    for fit in (1, 2, 3):
        finals = [copy for copy in copies if copy.item.kind == "final" and copy.item.fit == fit]
        assert not finals or any(each in staying for each in finals), "no completed fit loses its last state"
    confirmed = [copy for copy in copies if copy.uploaded]
    assert not confirmed or any(copy.uploaded for copy in staying), "the last that has left the machine"


@given(COPIES, st.integers(1, 4))
def test_to_remove_twice_removes_nothing_more(copies: list[Copy], keep: int) -> None:
    gone = set(to_remove(copies, [], keep))
    staying = [copy for copy in copies if copy.item.name not in gone]
    assert to_remove(staying, [], keep) == []


@given(st.lists(ITEMS, unique_by=lambda each: each.name.text, max_size=10))
def test_copying_what_is_asked_for_comes_to_an_end_with_the_newest_and_all_finals(local: list[Item]) -> None:
    copies: list[Copy] = []
    while (following := to_upload(local, copies)) is not None:
        assert len(copies) <= len(local)
        copies.append(Copy(following, Arrival.UPLOADED))
    there = [copy.item for copy in copies]
    assert there[:1] == sorted(local, key=lambda each: each.order)[-1:]
    for final in newest_finals(local):
        assert any(
            each.kind == "final" and each.fit == final.fit and (each == final or each.name.follows(final.name))
            for each in there
        )


def test_a_copy_is_uploaded_only_when_the_place_said_so() -> None:
    copy = Copy(item(1))
    assert not copy.uploaded
    assert not replace(copy, arrival=Arrival.CACHED).uploaded
    assert replace(copy, arrival=Arrival.UPLOADED).uploaded
