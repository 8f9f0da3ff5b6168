"""What every place promises. A new kind of place joins by a class that inherits from PlaceContract."""

from __future__ import annotations

import random
import threading
import zlib
from collections.abc import Callable, Iterator

import pytest

from ksupervise.replicas.place import Arrival, Entry, NotThere, Place
from ksupervise.store import CHUNK, FileRecord

KEY = "run/g0001-1f2e3d4c/checkpoints/c1/state.bin"
BAD_KEYS = ["", "/etc/passwd", "..", "a/../../b", "a//b", "a/./b", "a/", "a\\b", "a\0b"]
Opener = Callable[[], Place]


def content(size: int, seed: int = 1) -> bytes:
    """Bytes that no shift or swap of theirs equals; a shorter one is the begin of a longer."""
    return random.Random(seed).randbytes(-(-size // 8) * 8)[:size]


def record_of(data: bytes, chunk: int = CHUNK) -> FileRecord:
    """What a manifest says about `data`."""
    digests = tuple(zlib.crc32(data[begin : begin + chunk]) for begin in range(0, len(data), chunk))
    return FileRecord("state.bin", len(data), chunk, digests)


def put(place: Place, data: bytes, key: str = KEY) -> None:
    """Write `data` in one piece."""
    place.write(key, [data], len(data))


def reused(data: bytes, size: int) -> Iterator[memoryview]:
    """`data` in pieces of one buffer, each valid until the next is asked for, as the store reads its files."""
    buffer = bytearray(size)
    for begin in range(0, len(data), size):
        piece = data[begin : begin + size]
        buffer[: len(piece)] = piece
        yield memoryview(buffer)[: len(piece)]
    buffer[:] = bytes(size)


class PlaceContract:
    """The promises. Subclasses give the fixture `opener`, which opens the same empty place each time it is called."""

    @pytest.fixture
    def place(self, opener: Opener) -> Place:
        """One that is open."""
        return opener()

    def test_an_object_comes_back(self, place: Place) -> None:
        put(place, b"0123456789")
        assert place.read(KEY) == b"0123456789"

    @pytest.mark.parametrize(
        ("begin", "length", "expected"),
        [
            (0, 4, b"0123"),
            (3, 4, b"3456"),
            (3, None, b"3456789"),
            (8, 5, b"89"),
            (10, 5, b""),
            (10, None, b""),
            (99, 5, b""),
            (3, 0, b""),
        ],
    )
    def test_a_part_of_it_can_be_read(self, place: Place, begin: int, length: int | None, expected: bytes) -> None:
        put(place, b"0123456789")
        assert place.read(KEY, begin, length) == expected

    @pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1])
    def test_any_size_comes_back(self, place: Place, size: int) -> None:
        data = content(size)
        place.write(KEY, [data[:5], b"", data[5:]] if size else [], size)
        assert place.read(KEY) == data
        assert place.read(KEY, 0, 10) == data[:10]
        assert place.entries("run/") == [Entry(KEY, size)]
        assert isinstance(place.arrival(KEY, record_of(data)), Arrival)

    def test_chunks_are_used_before_the_next_is_asked_for(self, opener: Opener) -> None:
        data = content(2 * CHUNK + 5)
        opener().write(KEY, reused(data, 1_000_000), len(data))
        for place in (opener(), opener()):  # that did not write it: it has only what is there to go by
            assert place.read(KEY) == data
            assert isinstance(place.arrival(KEY, record_of(data)), Arrival)

    def test_what_is_left_of_an_earlier_attempt_is_replaced(self, place: Place) -> None:
        put(place, b"a longer one that broke off")
        put(place, b"whole")
        assert place.read(KEY) == b"whole"
        assert place.entries("run/") == [Entry(KEY, 5)]

    @pytest.mark.parametrize("size", [10, 2 * CHUNK])
    @pytest.mark.parametrize("more", [-1, 1])
    def test_chunks_that_do_not_make_up_the_size_are_refused(self, place: Place, size: int, more: int) -> None:
        with pytest.raises(ValueError, match=rf"{size + more} came"):
            place.write(KEY, [content(size + more)], size)
        assert place.entries("run/") == []

    @pytest.mark.parametrize("size", [10, 2 * CHUNK])
    @pytest.mark.parametrize("error", [OSError(5, "the source"), KeyError("the source")])
    def test_what_the_source_raises_is_passed_on(self, place: Place, size: int, error: Exception) -> None:
        def chunks() -> Iterator[bytes]:
            yield content(size // 2)
            raise error

        with pytest.raises(type(error), match="the source") as raised:
            place.write(KEY, chunks(), size)
        assert raised.value is error
        assert place.entries("run/") == []

    def test_what_is_not_there_is_not_there(self, place: Place) -> None:
        with pytest.raises(NotThere, match=r"state\.bin"):
            place.read(KEY)
        with pytest.raises(NotThere):
            place.read(KEY, 3, 5)
        with pytest.raises(NotThere):
            place.arrival(KEY, record_of(b"x"))
        assert place.entries("run/") == []
        assert place.entries("") == []

    def test_what_lies_below_an_object_is_not_there(self, place: Place) -> None:
        put(place, b"x")
        with pytest.raises(NotThere):
            place.read(f"{KEY}/below")
        assert place.entries(f"{KEY}/") == []

    def test_create_makes_one_only(self, opener: Opener) -> None:
        first, second = opener(), opener()
        assert first.create(KEY, b"mine")
        assert not second.create(KEY, b"yours")
        assert not first.create(KEY, b"other")
        assert second.read(KEY) == b"mine"
        assert second.create(f"{KEY}.2", b"yours")

    def test_of_many_that_create_at_once_one_succeeds(self, opener: Opener) -> None:
        places = [opener() for _ in range(6)]
        if not places[0].excludes:
            pytest.skip("it does not promise that")
        start, made = threading.Barrier(len(places)), list[int]()

        def run(number: int) -> None:
            start.wait(30)
            if places[number].create(KEY, b"of %d" % number):
                made.append(number)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(len(places))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(made) == 1
        assert places[0].read(KEY) == b"of %d" % made[0]
        assert all(place.excludes for place in places)

    def test_entries_are_those_below_the_prefix_in_order(self, place: Place) -> None:
        keys = ["a/b/2", "a/b/10", "a/b.c", "ab/1", "a/b/1/x", "z"]
        for key in keys:
            put(place, key.encode(), key)
        assert place.entries("a/b/") == [Entry(key, len(key)) for key in ("a/b/1/x", "a/b/10", "a/b/2")]
        assert [entry.key for entry in place.entries("a/")] == ["a/b.c", "a/b/1/x", "a/b/10", "a/b/2"]
        assert [entry.key for entry in place.entries("")] == sorted(keys)
        assert place.entries("a/b/1/x/") == []
        with pytest.raises(ValueError, match="prefix"):
            place.entries("a/b")

    def test_what_is_removed_is_gone_and_nothing_else(self, place: Place) -> None:
        keys = [f"a/{number}/x" for number in range(30)]  # more than a client does at once
        for key in [*keys, "a/0/y"]:
            put(place, b"x", key)
        place.remove(key for key in ["a/none", *keys, "a/0/x", "b/none"])
        assert [entry.key for entry in place.entries("")] == ["a/0/y"]
        place.remove([])
        with pytest.raises(NotThere):
            place.read(keys[0])
        put(place, b"anew", keys[3])
        assert place.read(keys[3]) == b"anew"

    @pytest.mark.parametrize("chunk", [CHUNK, 1000])
    def test_it_has_arrived_when_it_is_all_there(self, opener: Opener, chunk: int) -> None:
        data = content(5000)
        place = opener()
        put(place, data)
        for each in (place, opener()):
            assert isinstance(each.arrival(KEY, record_of(data, chunk)), Arrival)

    @pytest.mark.parametrize("damage", [b"", content(4999), content(5001), content(4000) + content(1000, seed=2)])
    def test_what_is_not_as_recorded_has_not_arrived(self, opener: Opener, damage: bytes) -> None:
        data = content(5000)
        place = opener()
        put(place, data)
        put(opener(), damage)  # by another: this one thinks that its own is there
        with pytest.raises(NotThere, match="copied again"):
            place.arrival(KEY, record_of(data))

    def test_the_wrong_object_has_not_arrived(self, place: Place) -> None:
        put(place, content(5000))
        with pytest.raises(NotThere, match="copied again"):
            place.arrival(KEY, record_of(content(5000, seed=2)))

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_a_key_cannot_lead_out(self, place: Place, key: str) -> None:
        with pytest.raises(ValueError, match="key"):
            place.write(key, [b"x"], 1)
        with pytest.raises(ValueError, match="key"):
            place.create(key, b"x")
        with pytest.raises(ValueError, match="key"):
            place.read(key)
        with pytest.raises(ValueError, match="key"):
            place.arrival(key, record_of(b"x"))
        with pytest.raises(ValueError, match="key"):
            place.remove([key])
        if key:  # an empty prefix means all
            with pytest.raises(ValueError, match="key"):
                place.entries(f"{key}/")
        assert place.entries("") == []

    def test_blanks_in_keys_are_fine(self, place: Place) -> None:
        put(place, b"x", "my run/a b")
        assert place.entries("my run/") == [Entry("my run/a b", 1)]
        assert place.read("my run/a b") == b"x"

    def test_room_is_a_number_or_not_told(self, place: Place) -> None:
        room = place.room()
        assert room is None or room > 0
