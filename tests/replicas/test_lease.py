"""Who owns a run across machines: the rules by named histories, the objects, and two real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksupervise.replicas.claim import (
    MAX_CLAIM,
    Claim,
    UnreadableClaim,
    claim_of,
    ended_here,
    is_holder,
    listed,
    parsed,
)
from ksupervise.replicas.contest import Contest, Free, Held, Lost, Seen, Taken, Verdict, Wait
from ksupervise.replicas.lease import INTERVAL, SLOW_INTERVAL, Acquired, Busy, Lease, new_holder
from ksupervise.replicas.place import Place, ReplicaRefused, ReplicaUnreachable

from .lease_place import GENERATION, Table, View

PREFIX = GENERATION.owners
A, B, C = "node-a-1-00000000", "node-b-1-00000000", "node-c-1-00000000"
ELSEWHERE = Claim(A, "node-a", 17, 123, "pid:[1]", "another boot", 1.7e9, 20.0)


class Clock:
    """Time that passes only while somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waited = 0.0
        self.meanwhile: Callable[[], None] = lambda: None

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds
        self.waited += seconds
        self.meanwhile()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def lease(table: Table, holder: str, clock: Clock, token: int = 1, view: View | None = None) -> Lease:
    return Lease(view or View(table), GENERATION, holder, token, clock=clock)


def owning(table: Table, holder: str, clock: Clock, token: int = 1, view: View | None = None) -> Lease:
    made = lease(table, holder, clock, token, view)
    assert isinstance(made.acquire(clock.wait), Acquired)
    return made


# --- the rules: histories of looks -----------------------------------------------------------------------------------


def looks(contest: Contest, *history: tuple[float, Seen]) -> list[Verdict]:
    return [contest.observe(seen, now) for now, seen in history]


def contest(token: int = 1, patience: float | None = None) -> Contest:
    return Contest(B, token, interval=20.0, patience=patience)


def seen(token: int, beat: int = 1, holder: str = A, **more: bool) -> Seen:
    return Seen((token, holder), beat, interval=20.0, gone=more.get("gone", False), dead=more.get("dead", False))


def test_where_nobody_ever_claimed_it_is_free() -> None:
    assert looks(contest(7), (0, Seen())) == [Free(7, "")]


def test_an_owner_that_gives_a_sign_lives() -> None:
    assert looks(contest(), (0, seen(3, 5)), (10, seen(3, 5)), (20, seen(3, 6))) == [
        Wait(10.0),
        Wait(10.0),
        Taken((3, A)),
    ]


def test_an_owner_without_a_sign_for_three_intervals_is_followed() -> None:
    history = [(10.0 * step, seen(3, 5)) for step in range(7)]
    *waits, last = looks(contest(), *history)
    assert waits == [Wait(10.0)] * 6
    assert last == Free(4, "it gave no sign of life for 60 s")
    assert isinstance(looks(contest(9), *history)[-1], Free)
    assert looks(contest(9), *history)[-1] == Free(9, "it gave no sign of life for 60 s"), "the higher of both"


def test_a_token_is_above_every_one_seen_before() -> None:
    assert looks(contest(2), (0, seen(8, gone=True))) == [Free(9, "it let go")]
    assert looks(contest(20), (0, seen(8, dead=True))) == [Free(20, "its process has ended")]


def test_a_slow_announced_interval_is_waited_for() -> None:
    slow = Seen((3, A), 1, interval=100.0)
    verdicts = looks(contest(), *((50.0 * step, slow) for step in range(7)))
    assert [type(each) for each in verdicts] == [Wait] * 6 + [Free]


def test_time_in_which_we_did_not_look_kills_nobody() -> None:
    """We were stopped for an hour, or the place was away for everybody: the owner had no way to show itself."""
    verdicts = looks(contest(), (0, seen(3)), (3600, seen(3)), (7200, seen(3)))
    assert verdicts == [Wait(10.0), Wait(10.0), Wait(10.0)]
    assert looks(contest(), (0, seen(3)), (3600, seen(3)), (3601, seen(3, 2)))[-1] == Taken((3, A))


def test_a_clock_that_goes_back_does_no_harm() -> None:
    assert looks(contest(), (100, seen(3)), (50, seen(3)), (60, seen(3))) == [Wait(10.0)] * 3


def test_removing_old_signs_is_no_sign() -> None:
    verdicts = looks(contest(), (0, seen(3, 5)), (10, seen(3, 0)), (20, seen(3, 5)))
    assert verdicts == [Wait(10.0)] * 3


def test_a_claim_that_appears_while_we_watch_is_alive() -> None:
    assert looks(contest(), (0, seen(3)), (10, seen(4, 0, C)))[-1] == Taken((4, C))
    assert looks(contest(), (0, seen(3)), (10, seen(4, 1, C, gone=True)))[-1] == Free(5, "it let go")


def test_an_older_listing_neither_frees_nor_kills() -> None:
    both = looks(contest(), (0, seen(3)), (10, seen(2, 9, gone=True)), (20, Seen()), (30, seen(3)))
    assert both == [Wait(10.0)] * 4


def test_who_is_refused_a_token_has_met_somebody_alive() -> None:
    late = contest(4)
    assert looks(late, (0, Seen())) == [Free(4, "")]
    late.refused(4)
    assert looks(late, (1, Seen())) == [Taken((4, ""))], "the listing does not show it yet"
    late = contest(4)
    late.refused(4)
    assert looks(late, (1, seen(4, 0, C))) == [Taken((4, C))]
    late = contest(4)
    late.refused(4)
    assert looks(late, (1, seen(4, 0, C, gone=True))) == [Free(5, "it let go")]


def test_an_owner_loses_to_the_higher_token_and_for_good() -> None:
    owner = contest(3)
    owner.claimed(3)
    verdicts = looks(owner, (0, seen(3, 1, B)), (1, seen(4)), (2, seen(3, 1, B)), (3, Seen()))
    assert verdicts == [Held((3, B)), Lost((4, A)), Lost((4, A)), Lost((4, A))]


def test_of_two_with_one_token_the_higher_holder_wins() -> None:
    lower, higher = Contest(A, 3, interval=20.0), Contest(B, 3, interval=20.0)
    lower.claimed(3)
    higher.claimed(3)
    assert looks(lower, (0, seen(3, 1, B))) == [Lost((3, B))]
    assert looks(higher, (0, seen(3, 1, B))) == [Held((3, B))]


def test_an_owner_whose_token_was_given_away_anew_loses() -> None:
    owner = contest(3)
    owner.claimed(3)
    robbed = Seen((3, A), 1, exclusive=True)
    assert robbed.mark is not None
    assert robbed.mark < (3, B)
    assert looks(owner, (0, replace(robbed, mark=(3, ""))), (1, robbed)) == [Held((3, B)), Lost((3, A))]


def test_a_claim_of_ours_that_seemed_to_have_failed_is_ours() -> None:
    assert looks(contest(3), (0, seen(3, 0, B))) == [Held((3, B))]
    assert looks(contest(3), (0, seen(3, 0, B, gone=True))) == [Free(4, "it let go")]


# --- what others may have written ------------------------------------------------------------------------------------


def test_a_claim_is_read_as_it_was_written() -> None:
    claim = claim_of(new_holder(), os.getpid(), 20.0)
    assert parsed(claim.encoded()) == claim
    more = {**json.loads(claim.encoded()), "from a later version": [1]}
    assert parsed(json.dumps(more).encode()) == claim
    assert not ended_here(claim)


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_anything_else_is_an_unreadable_claim(data: bytes) -> None:
    with pytest.raises(UnreadableClaim):
        parsed(data)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("holder", "a/b"),
        ("holder", "a.b"),
        ("holder", ""),
        ("holder", "x" * 81),
        ("host", "\x1b[2J"),
        ("host", "x" * 256),
        ("host", None),
        ("pid", 0),
        ("pid", 2**31),
        ("pid", 1.0),
        ("pid", True),
        ("start_time", -1),
        ("start_time", "1"),
        ("interval", 0),
        ("interval", 1e9),
        ("interval", float("nan")),
        ("interval", float("inf")),
        ("started", -1),
        ("started", [1]),
        ("boot_id", {}),
    ],
)
def test_a_claim_out_of_bounds_is_unreadable(name: str, value: object) -> None:
    values = json.loads(ELSEWHERE.encoded())
    assert parsed(json.dumps(values).encode()) == ELSEWHERE
    with pytest.raises(UnreadableClaim):
        parsed(json.dumps({**values, name: value}).encode())
    with pytest.raises(UnreadableClaim):
        parsed(json.dumps({key: values[key] for key in values if key != name}).encode())


@pytest.mark.parametrize("data", [b"[" * MAX_CLAIM, b'{"pid": ' + b"9" * 4000 + b"}", b"{}" + b" " * MAX_CLAIM])
def test_bombs_are_unreadable(data: bytes) -> None:
    with pytest.raises(UnreadableClaim):
        parsed(data)


@given(st.lists(st.text() | st.from_regex(r"0{0,4}[0-9]{2,9}(-[a-z-]{1,5})?\.(json|gone|[0-9]{1,13})", fullmatch=True)))
def test_any_listing_is_understood(names: list[str]) -> None:
    listing = listed(PREFIX, [PREFIX + name for name in names] + names)
    for token, holder in listing.keys:
        assert 0 <= token <= 999_999_999
        assert not holder or is_holder(holder)


def test_keys_are_understood() -> None:
    names = [
        "000007.json",
        "000007.gone",
        "000007-x.00000012",
        "000007-x.00000003",
        "000008-x-y.json",
        "000008-x-y.gone",
        "000009",
        "٠٠٠٠٠٧.json",
        "deep/000010.json",
    ]
    listing = listed(PREFIX, [PREFIX + name for name in names])
    assert listing.claims == {(7, ""), (8, "x-y")}
    assert listing.beats == {(7, "x"): 12}
    assert listing.gone == {(8, "x-y")}


def test_holders_are_fit_for_a_key_and_never_the_same() -> None:
    first, second = new_holder(), new_holder()
    assert first != second
    assert is_holder(first)
    assert str(os.getpid()) in first
    assert not is_holder("a/b")


def test_only_a_process_of_this_very_machine_is_known_to_be_dead() -> None:
    process = subprocess.Popen(["true"])
    mine = claim_of("mine", process.pid, 20.0)
    process.wait()
    assert ended_here(mine) is os.path.exists("/proc/self/ns/pid")
    assert not ended_here(replace(mine, host="another"))
    assert not ended_here(replace(mine, boot_id="another"))
    assert not ended_here(replace(mine, pids="pid:[another container]"))
    assert not ended_here(replace(mine, pid=os.getpid(), start_time=claim_of("x", os.getpid(), 1.0).start_time))


# --- the objects -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("excludes", [True, False])
def test_the_first_owns_it_and_the_second_is_told_who(clock: Clock, excludes: bool) -> None:
    table = Table(excludes=excludes)
    first = owning(table, A, clock, 7)
    assert table.names() == [f"000007-{A}.00000001", "000007.json" if excludes else f"000007-{A}.json"]
    assert clock.waited == 0, "a new run does not wait"
    clock.meanwhile = first.beat
    found = lease(table, B, clock, 7).acquire(clock.wait)
    assert isinstance(found, Busy)
    assert found.claim is not None
    assert found.claim.holder == A
    assert found.where == f"process {os.getpid()} on {os.uname().nodename}"
    assert clock.waited <= first.interval
    assert first.check()


@pytest.mark.parametrize(("excludes", "interval"), [(True, INTERVAL), (False, SLOW_INTERVAL)])
def test_a_sign_of_life_replaces_the_one_before(clock: Clock, excludes: bool, interval: float) -> None:
    table = Table(excludes=excludes)
    owner = owning(table, A, clock)
    assert owner.until_beat == interval
    clock.now += interval
    assert owner.until_beat == 0
    for _ in range(5):
        owner.beat()
    assert [name for name in table.names() if name[-1].isdigit()] == [f"000001-{A}.00000006"]
    assert owner.until_beat == interval


def test_who_lets_go_is_followed_at_once(clock: Clock) -> None:
    table = Table()
    first = owning(table, A, clock, 7)
    first.release()
    first.release()
    assert table.names() == [f"000007-{A}.gone", "000007.json"]
    second = lease(table, B, clock, 7)
    taken = second.acquire(clock.wait)
    assert taken == Acquired(8, f"process {os.getpid()} on {os.uname().nodename}: it let go")
    assert second.token == 8
    assert clock.waited == 0


@pytest.mark.parametrize("excludes", [True, False])
def test_who_dies_is_followed_after_patience(clock: Clock, excludes: bool) -> None:
    table = Table(excludes=excludes)
    first = owning(table, A, clock, 7)
    second = lease(table, B, clock, 12)
    taken = second.acquire(clock.wait)
    assert taken == Acquired(12, f"{taken.line}" if isinstance(taken, Acquired) else "")
    assert clock.waited == pytest.approx(max(3 * first.interval, 60.0))
    assert not first.check()
    assert "owned by process" in first.lost
    before = dict(table.objects)
    first.beat()
    assert not first.check()
    assert table.objects == before, "who lost writes nothing any more"
    assert first.until_beat > 0
    assert second.check()


@pytest.mark.skipif(not os.path.exists("/proc/self/ns/pid"), reason="elsewhere no process is known to be dead")
def test_a_dead_process_of_this_machine_is_followed_at_once(clock: Clock) -> None:
    table = Table()
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    first = Lease(View(table), GENERATION, A, 1, clock=clock, pid=process.pid)
    assert isinstance(first.acquire(clock.wait), Acquired)
    process.communicate(b"\n")
    taken = lease(table, B, clock).acquire(clock.wait)
    assert isinstance(taken, Acquired)
    assert taken.line == f"process {process.pid} on {os.uname().nodename}: its process has ended"
    assert clock.waited == 0


def test_a_check_is_one_listing(clock: Clock) -> None:
    view = View(Table())
    owner = owning(Table(), A, clock, view=view)
    view.calls.clear()
    assert owner.check()
    assert view.calls == ["entries"]


def test_unreachable_is_not_lost(clock: Clock) -> None:
    table, away = Table(), False

    def around(name: str, done: bool) -> None:
        if away:
            raise ReplicaUnreachable("the network is down")

    owner = owning(table, A, clock, view=View(table, around))
    away = True
    for act in (owner.check, owner.beat, owner.release):
        with pytest.raises(ReplicaUnreachable):
            act()
    assert not owner.lost
    assert owner.until_beat == INTERVAL / 4, "whoever waits for the next beat does not spin"
    away = False
    assert owner.check()
    owner.beat()
    assert [name for name in table.names() if name[-1].isdigit()] == [f"000001-{A}.00000003"], "a new number, always"
    owner.release()
    assert table.names() == [f"000001-{A}.gone", "000001.json"]


@pytest.mark.parametrize("name", ["entries", "create", "write"])
@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("excludes", [True, False])
def test_an_acquire_that_broke_off_goes_on(clock: Clock, name: str, done: bool, excludes: bool) -> None:
    """Also when the call that timed out had been done."""
    table, failures = Table(excludes=excludes), [name]

    def around(called: str, after: bool) -> None:
        if failures == [called] and after is done:
            failures.clear()
            raise ReplicaUnreachable("timed out")

    owner = lease(table, A, clock, 7, View(table, around))
    with pytest.raises(ReplicaUnreachable):
        owner.acquire(clock.wait)
    assert owner.acquire(clock.wait) == Acquired(7, "")
    assert owner.check()
    assert clock.waited == 0
    assert len([key for key in table.names() if key[-1].isdigit()]) == 1


def test_claims_of_the_last_few_owners_are_kept(clock: Clock) -> None:
    table = Table()
    for token in range(1, 8):
        owning(table, f"{A}-{token}", clock, token).release()
    last = owning(table, B, clock, 9)
    kept = [name for token in (5, 6, 7) for name in (f"00000{token}-{A}-{token}.gone", f"00000{token}.json")]
    assert table.names() == [*kept, f"000009-{B}.00000001", "000009.json"]
    assert last.check()


def test_a_restarted_worker_goes_on_with_its_owners_lease(clock: Clock) -> None:
    table = Table()
    first = owning(table, A, clock, 7)
    first.beat()
    again = lease(table, A, clock, 7)
    assert again.resume(7)
    again.beat()
    assert table.names() == [f"000007-{A}.00000003", "000007.json"]
    owning(table, B, clock, 8)
    third = lease(table, A, clock, 7)
    assert not third.resume(7), "taken over in between"


def test_what_dead_owners_left_is_removed(clock: Clock) -> None:
    table = Table()
    for token in (1, 2):
        owning(table, f"{A}-{token}", clock, token)
    owning(table, B, clock, 3)
    assert table.names() == ["000001.json", "000002.json", f"000003-{B}.00000001", "000003.json"]


def test_a_claim_that_is_just_being_written_is_read_once_more(clock: Clock) -> None:
    table = Table()
    table.objects[f"{PREFIX}000005.json"] = b""
    clock.meanwhile = lambda: table.objects.update(
        {
            f"{PREFIX}000005.json": ELSEWHERE.encoded(),
            f"{PREFIX}000006.json": b"" if clock.waited < 11 else ELSEWHERE.encoded(),
        }
    )
    assert lease(table, B, clock).acquire(clock.wait) == Busy("process 17 on node-a", ELSEWHERE)


@pytest.mark.parametrize("data", [b"", b"{", b"\0" * 100_000])
def test_an_unreadable_claim_is_watched_like_any_other(clock: Clock, data: bytes) -> None:
    table = Table()
    table.objects[f"{PREFIX}000005.json"] = data
    table.objects[f"{PREFIX}000005-x.00000001"] = b"1"

    def sign() -> None:
        table.objects[f"{PREFIX}000005-x.00000002"] = b"1"

    clock.meanwhile = sign
    busy = lease(table, B, clock).acquire(clock.wait)
    assert busy == Busy("a process whose claim cannot be read", None)
    clock.meanwhile = lambda: None
    taken = lease(table, B, clock).acquire(clock.wait)
    assert isinstance(taken, Acquired)
    assert taken.token == 6


def test_a_claim_of_the_highest_number_there_can_be_is_named(clock: Clock) -> None:
    table = Table()
    table.objects[f"{PREFIX}999999999.json"] = b"?"
    with pytest.raises(ReplicaRefused, match="999999999"):
        lease(table, B, clock).acquire(clock.wait)


def test_a_claim_that_was_removed_by_hand_is_made_again(clock: Clock) -> None:
    table = Table()
    owner = owning(table, B, clock, 7)
    table.objects.clear()
    assert owner.check()
    assert table.names() == ["000007.json"]
    table.objects.clear()
    other = owning(table, A, clock, 7)
    assert not owner.check(), "the token was given away meanwhile"
    assert other.check()


def test_a_claim_removed_by_hand_and_given_away_at_that_moment(clock: Clock) -> None:
    table, moments = Table(), list[Callable[[], object]]()

    def around(name: str, done: bool) -> None:
        if name == "entries" and done and moments:
            moments.pop()()

    owner = owning(table, B, clock, 7, View(table, around))
    table.objects.clear()
    moments.append(lambda: owning(table, A, clock, 7))
    assert not owner.check()


def test_a_claim_removed_by_hand_and_given_away_unseen(clock: Clock) -> None:
    """The lower of the two names holds the object: the higher must not go on for being higher."""
    table = Table()
    owner = owning(table, B, clock, 7)
    assert owner.check()
    table.objects.clear()
    other = owning(table, A, clock, 7)
    table.objects[f"{PREFIX}000007-{B}.00000009"] = b"1"
    assert other.check()
    assert not owner.check()


def test_two_branches_where_the_place_does_not_exclude(clock: Clock) -> None:
    """Both claimed before they saw each other: the lower one stops as soon as it does."""
    table, hidden = Table(excludes=False), Table(excludes=False)
    lower, higher = owning(table, A, clock, 7), owning(hidden, B, clock, 7)
    assert lower.check()
    assert higher.check()
    table.objects.update(hidden.objects)
    hidden.objects.update(table.objects)
    assert not lower.check()
    assert higher.check()
    assert f"000007-{A}.json" in table.names(), "the branch and its claim stay"


@pytest.mark.parametrize(
    ("holder", "token", "interval"), [("a/b", 1, 20.0), (A, 0, 20.0), (A, 10**9, 20.0), (A, 1, 1e6)]
)
def test_what_cannot_be_a_lease(clock: Clock, holder: str, token: int, interval: float) -> None:
    with pytest.raises(ValueError, match="not a lease"):
        Lease(View(Table()), GENERATION, holder, token, clock=clock, interval=interval)


def test_it_has_to_be_held(clock: Clock) -> None:
    table = Table()
    owner = lease(table, A, clock)
    for act in (owner.beat, owner.check):
        with pytest.raises(RuntimeError, match="not held"):
            act()
    owner.release()
    assert not table.objects
    owner.acquire(clock.wait)
    with pytest.raises(RuntimeError, match="already"):
        owner.acquire(clock.wait)


# --- real processes --------------------------------------------------------------------------------------------------


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@contextmanager
def machine(folder: Path, holder: str, kind: str) -> Iterator[subprocess.Popen[str]]:
    """A process that owns, or waits to own, the run in `folder`; it says a line for everything that happens to it."""
    command = [sys.executable, str(Path(__file__).with_name("lease_child.py")), str(folder), holder, kind]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("kind", ["excludes", "branches"])
def test_a_stopped_owner_comes_back_and_finds_that_it_lost(tmp_path: Path, kind: str) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(machine(tmp_path, A, kind))
        assert read_line(first) == "acquired 1"
        assert read_line(first) == "owner"
        busy = stack.enter_context(machine(tmp_path, C, kind))
        assert read_line(busy).startswith("busy process"), "while it beats nobody takes it over"
        os.kill(first.pid, signal.SIGSTOP)
        second = stack.enter_context(machine(tmp_path, B, kind))
        assert read_line(second) == "acquired 2"
        os.kill(first.pid, signal.SIGCONT)
        lines = [read_line(first)]
        while lines[-1] == "owner":  # said before it was stopped
            lines.append(read_line(first))
        assert lines[-1] == "lost"
        assert first.wait(60) == 0
        assert read_line(second) == "owner"
        assert second.stdin is not None
        second.stdin.close()
        while (line := read_line(second)) == "owner":
            pass
        assert line == "released"
        third = stack.enter_context(machine(tmp_path, A, kind))
        assert read_line(third) == "acquired 3"


def place_type_checks(view: View) -> Place:
    """The place of these tests is one, says mypy."""
    return view


def test_a_place_that_was_emptied_is_not_taken_for_the_one_that_was_claimed() -> None:
    """As a restarted worker finds it whose mount went away: an empty folder of this machine's."""
    table = Table()
    table.objects[GENERATION.record] = b"{}"
    first = Lease(View(table), GENERATION, A, 1)
    assert isinstance(first.acquire(lambda seconds: None), Acquired)
    assert Lease(View(table), GENERATION, A, 1).resume(1)
    table.objects.clear()
    with pytest.raises(ReplicaUnreachable, match="not made anew"):
        Lease(View(table), GENERATION, A, 1).resume(1)
    assert not table.objects
