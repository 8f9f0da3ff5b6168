"""What both sides agree on: the control page, the slots, the messages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksupervise import wire
from ksupervise.wire import PAGE, Control, Decoder, Slot, encode, socket_address


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[int]:
    """What a memfd is where there are memfds, empty."""
    fd = os.open(tmp_path / "memory", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


# The control page ---------------------------------------------------------------------------------


@pytest.fixture
def page(memory: int) -> int:
    """A memfd of one page."""
    os.ftruncate(memory, PAGE)
    return memory


def test_what_one_side_writes_the_other_reads(page: int) -> None:
    ours, theirs = Control(page), Control(page, writable=False)
    ours["step"], ours["deadline"], ours["drain"] = 2**40, 12.5, Control.LEAVE
    assert (theirs["step"], theirs["deadline"], theirs["drain"]) == (2**40, 12.5, Control.LEAVE)
    assert isinstance(theirs.integer("step"), int)


def test_no_field_lies_upon_another(page: int) -> None:
    control = Control(page)
    names = [*Control._WORDS, *Control._TIMES]
    for number, name in enumerate(names, 1):
        control[name] = number
    assert [control[name] for name in names] == list(range(1, len(names) + 1))


def test_parent_and_child_write_to_different_cache_lines(page: int) -> None:
    parents = {"drain", "deadline", "stage_term", "commit_term", "memory_used", "memory_limit"}
    parents |= {"stage_every", "commit_every", "persist", "slowdown", "mttf", "stage_seconds"}
    places = {**Control._WORDS, **Control._TIMES}
    lines = [{place * 8 // 64 for name, place in places.items() if (name in parents) == ours} for ours in (True, False)]
    assert not lines[0] & lines[1]


def test_a_reader_cannot_write(page: int) -> None:
    with pytest.raises(TypeError):
        Control(page, writable=False)["step"] = 1


def test_an_unknown_field_is_an_error(page: int) -> None:
    with pytest.raises(KeyError):
        Control(page)["stpe"] = 1


def test_a_closed_page_is_unmapped_and_its_descriptor_is_not(page: int) -> None:
    Control(page).close()
    os.fstat(page)


# The slots ----------------------------------------------------------------------------------------


def stage(slot: Slot, seq: int, content: bytes) -> None:
    """Stage `content` as the child does."""
    slot.begin()
    slot.reserve(PAGE + len(content))
    with slot.view() as view:
        view[PAGE : PAGE + len(content)] = content
    slot.complete(seq, {"files": {"a": [PAGE, len(content)]}})


def test_a_staged_slot_is_whole(memory: int) -> None:
    slot = Slot(memory)
    stage(slot, 7, b"x" * 10_000)
    assert Slot(memory).read_description() == {"files": {"a": [PAGE, 10_000]}, "seq": 7}
    assert os.pread(memory, 10_000, PAGE) == b"x" * 10_000
    slot.close()


def test_an_empty_slot_holds_nothing(memory: int) -> None:
    assert Slot(memory).read_description() is None
    os.ftruncate(memory, PAGE)
    assert Slot(memory).read_description() is None


def test_a_slot_torn_at_any_moment_holds_nothing(memory: int) -> None:
    slot = Slot(memory)
    stage(slot, 1, b"old")
    slot.begin()
    assert slot.read_description() is None, "begun"
    with slot.view() as view:
        view[PAGE : PAGE + 3] = b"new"
    assert slot.read_description() is None, "the content is in, its completion is not"
    slot.complete(2, {"files": {}})
    assert slot.read_description() == {"files": {}, "seq": 2}


@pytest.mark.parametrize(
    ("offset", "garbage"),
    [
        (0, b"\xff" * 8),
        (8, b"\x01"),
        (8, b"\x63"),
        (24, b"\xff" * 8),
        (64, b"\xff{{{"),
        (64, b"[" * 30),
    ],
    ids=["magic", "writing", "no status", "length", "no text", "no object"],
)
def test_a_scribbled_header_holds_nothing(memory: int, offset: int, garbage: bytes) -> None:
    stage(Slot(memory), 1, b"content")
    os.pwrite(memory, garbage, offset)
    assert Slot(memory).read_description() is None


def test_a_slot_grows_and_never_shrinks(memory: int) -> None:
    slot = Slot(memory)
    slot.reserve(1)
    first = slot.size
    assert first >= PAGE
    slot.reserve(first + 1)
    second = slot.size
    assert second > first
    assert second % PAGE == 0
    view = slot.view()
    assert len(view) == second
    slot.reserve(first + 2)  # a state that grows a little stays in its mapping
    slot.reserve(10)
    assert slot.size == second
    assert slot.view().obj is view.obj


def test_a_slot_that_grows_while_its_old_content_is_looked_at(memory: int) -> None:
    slot = Slot(memory)
    slot.reserve(PAGE)
    old = slot.view()
    slot.reserve(8 * PAGE)
    slot.view()[0] = 42
    assert old[0] == 42, "the same memory, mapped twice"


@pytest.mark.skipif(sys.platform != "linux", reason="memfd")
@pytest.mark.parametrize("pages", [1, 5000])
def test_who_scribbles_on_a_guarded_slot_ends_at_it(pages: int) -> None:
    program = f"""
import ctypes, os, resource, sys
from ksupervise.wire import PAGE, Slot

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
slot, size = Slot(int(sys.argv[1])), {pages} * PAGE
for seq in (1, 2):
    slot.begin()
    slot.reserve(PAGE + size)
    with slot.view() as view:
        view[PAGE:PAGE + size] = bytes([seq]) * size
    slot.complete(seq, {{}})
    slot.guard()
assert slot.guarded
address = ctypes.addressof(ctypes.c_char.from_buffer(slot._map))
ctypes.memset(address + PAGE + size - 1, 3, 1)
"""
    memory = os.memfd_create("slot")
    done = subprocess.run([sys.executable, "-c", program, str(memory)], check=False, timeout=30, pass_fds=[memory])
    assert done.returncode == -signal.SIGSEGV
    slot = Slot(memory)
    assert slot.read_description() == {"seq": 2}
    assert os.pread(memory, pages * PAGE, PAGE) == bytes([2]) * pages * PAGE
    os.close(memory)


@pytest.mark.skipif(sys.platform != "linux", reason="MADV_REMOVE")
def test_a_guarded_slot_gives_its_memory_back() -> None:
    memory = os.memfd_create("slot")
    slot = Slot(memory)
    stage(slot, 1, b"x" * 100 * PAGE)
    slot.guard()
    slot.empty()
    assert slot.taken == 0
    stage(slot, 2, b"new")
    slot.close()
    os.close(memory)


def test_a_description_larger_than_its_page_is_refused(memory: int) -> None:
    slot = Slot(memory)
    slot.begin()
    with pytest.raises(ValueError, match="more than a page holds"):
        slot.complete(1, {"text": "x" * PAGE})
    assert slot.read_description() is None


@pytest.mark.skipif(sys.platform != "linux", reason="MADV_DONTFORK")
def test_a_fork_sees_neither_page_nor_slots() -> None:
    program = """
import os
from pathlib import Path
from ksupervise.wire import PAGE, Control, Slot

page, memory = os.memfd_create("the-page"), os.memfd_create("the-slot")
os.ftruncate(page, PAGE)
control, slot = Control(page), Slot(memory)
slot.begin()
view = slot.view()
seen = lambda: sum(name in Path("/proc/self/maps").read_text() for name in ("the-page", "the-slot"))
assert seen() == 2
pid = os.fork()
if pid == 0:
    os._exit(seen())
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


# Messages -----------------------------------------------------------------------------------------

MESSAGES = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=20) | st.none(), max_size=4)


@given(st.lists(MESSAGES, max_size=6), st.data())
def test_messages_arrive_whole_however_they_are_cut(messages: list[dict[str, Any]], data: st.DataObject) -> None:
    stream = b"".join(map(encode, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    decoder = Decoder()
    received = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += decoder.feed(stream[start:end])
    assert received == messages


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_garbage_between_messages_is_dropped(garbage: list[bytes]) -> None:
    decoder = Decoder()
    for noise in garbage:
        assert all(isinstance(message, dict) for message in decoder.feed(noise))
    decoder.feed(b"\n")
    assert decoder.feed(encode({"op": "hello"})) == [{"op": "hello"}]


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"3", b"null", b'"text"', b'{"a":', b"\xff\xfe", b"[" * 200_000, b'{"a":' * 200_000]
)
def test_what_is_no_object_is_dropped(line: bytes) -> None:
    decoder = Decoder()
    assert decoder.feed(line + b"\n" + encode({"n": 1})) == [{"n": 1}]


def test_a_message_beyond_the_limit_is_dropped_with_its_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MESSAGE_LIMIT", 1000)
    decoder = Decoder()
    for _ in range(20):
        assert decoder.feed(b" " * 100) == [], "which would do no harm to JSON"
    assert decoder.feed(encode({"op": "leave"})) == []
    assert decoder.feed(encode({"op": "staged"})) == [{"op": "staged"}]


def test_a_long_message_is_taken_in_small_pieces() -> None:
    message = {"text": "x" * 4_000_000}
    stream = encode(message)
    decoder = Decoder()
    received = [
        found for start in range(0, len(stream), 65536) for found in decoder.feed(stream[start : start + 65536])
    ]
    assert received == [message]


def test_a_message_is_one_line() -> None:
    assert encode({"text": "two\nlines\r"}).count(b"\n") == 1


def test_an_abstract_address_begins_with_a_zero_byte() -> None:
    assert socket_address("@name") == "\0name"
    assert socket_address("/tmp/socket") == "/tmp/socket"
