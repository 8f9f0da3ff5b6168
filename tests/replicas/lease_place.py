"""A place in memory for the lease's tests: what it did is counted, and every call can be made to fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ksupervise.replicas.format import Generation
from ksupervise.replicas.place import Arrival, Entry, NotThere
from ksupervise.store import Buffer, FileRecord

GENERATION = Generation(1, "1f2e3d4c", "digits")


class Table:
    """Objects by key, and whether one machine only can create one."""

    def __init__(self, *, excludes: bool = True) -> None:
        self.objects: dict[str, bytes] = {}
        self.excludes = excludes

    def names(self) -> list[str]:
        """What lies below the owners of the generation."""
        return sorted(key.removeprefix(GENERATION.owners) for key in self.objects)


class View:
    """One machine's way to a table. `around` is called before (False) and after (True) each call, with its name."""

    def __init__(self, table: Table, around: Callable[[str, bool], None] = lambda name, done: None) -> None:
        self.name = "memory"
        self.excludes = table.excludes
        self.calls: list[str] = []
        self._objects = table.objects
        self._around = around

    def write(self, key: str, chunks: Iterable[Buffer], size: int) -> None:
        """See `Place`."""
        data = b"".join(bytes(chunk) for chunk in chunks)
        assert len(data) == size
        self._before("write")
        self._objects[key] = data
        self._around("write", True)

    def create(self, key: str, data: bytes) -> bool:
        """See `Place`."""
        self._before("create")
        new = key not in self._objects
        if new:
            self._objects[key] = data
        self._around("create", True)
        return new

    def read(self, key: str, begin: int = 0, length: int | None = None) -> bytes:
        """See `Place`."""
        self._before("read")
        data = self._objects.get(key)
        self._around("read", True)
        if data is None:
            raise NotThere(f"{key} is not there")
        return data[begin:] if length is None else data[begin : begin + length]

    def entries(self, prefix: str) -> list[Entry]:
        """See `Place`."""
        self._before("entries")
        found = [Entry(key, len(data)) for key, data in sorted(self._objects.items()) if key.startswith(prefix)]
        self._around("entries", True)
        return found

    def remove(self, keys: Iterable[str]) -> None:
        """See `Place`."""
        self._before("remove")
        for key in keys:
            self._objects.pop(key, None)
        self._around("remove", True)

    def arrival(self, key: str, record: FileRecord) -> Arrival:
        """See `Place`."""
        raise NotImplementedError

    def room(self) -> int | None:
        """See `Place`."""
        return None

    def _before(self, name: str) -> None:
        self.calls.append(name)
        self._around(name, False)
