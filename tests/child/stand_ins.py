"""Stand-ins for Keras' callbacks that write logs: what of them our code relies on, and no Keras."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import IO, Any


class CSVLogger:
    """As Keras' own: opens the file when a fit begins, writes a row each epoch, closes it at the end."""

    def __init__(self, filename: str, append: bool = False) -> None:
        self.filename = filename
        self.append = append
        self.append_header = True
        self.keys: list[str] | None = None
        self.csv_file: IO[str] | None = None

    def on_train_begin(self) -> None:
        if self.append and os.path.exists(self.filename):
            self.append_header = not Path(self.filename).read_text()
        self.csv_file = open(self.filename, "a" if self.append else "w")  # noqa: SIM115 - as Keras does
        self.keys = None

    def on_epoch_end(self, epoch: int, **logs: float) -> None:
        assert self.csv_file is not None
        if self.keys is None:
            self.keys = sorted(logs)
            if self.append_header:
                self.csv_file.write(",".join(["epoch", *self.keys]) + "\n")
        self.csv_file.write(",".join(str(value) for value in (epoch, *(logs.get(key, "NA") for key in self.keys))))
        self.csv_file.write("\n")

    def on_train_end(self) -> None:
        assert self.csv_file is not None
        self.csv_file.close()


class Writer:
    """Of an event file, named as TensorFlow names them."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.stream = open(path, "ab")  # noqa: SIM115 - closed by its owner

    def flush(self) -> None:
        self.stream.flush()

    def close(self) -> None:
        self.stream.close()


def event_file(folder: Path, second: int = 1000, pid: int = 0, host: str = "", number: int = 0) -> Path:
    """The path of an event file."""
    return folder / f"events.out.tfevents.{second}.{host or socket.gethostname()}.{pid or os.getpid()}.{number}.v2"


class TensorBoard:
    """As Keras' own, with writers that are made when first needed."""

    def __init__(self, log_dir: Path) -> None:
        self.log_dir = str(log_dir)
        self._writers: dict[str, Writer] = {}
        self._should_write_train_graph = True

    def write(self, kind: str, content: bytes, **name: Any) -> Path:
        """Append to the file of the writer `kind`."""
        path = event_file(Path(self.log_dir, kind), **name)
        if kind not in self._writers:
            self._writers[kind] = Writer(path)
        self._writers[kind].stream.write(content)
        return path

    def close(self) -> None:
        """As at a fit's end."""
        for writer in self._writers.values():
            writer.close()


# They are known by their class' name and by where it comes from.
for _cls in (CSVLogger, TensorBoard):
    _cls.__module__ = "keras.src.callbacks.stand_in"
