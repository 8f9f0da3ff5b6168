"""Log files are cut back to the checkpoint: no row and no event is there twice, and nobody else's is touched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ksupervise.child import logs
from ksupervise.child.logs import CsvLog, EventLog

from .helpers import Thing
from .stand_ins import CSVLogger, TensorBoard, event_file

DEAD = 4_111_222  # pid of an earlier attempt's trainer; it lived from second 2000 to 3000


@pytest.fixture(autouse=True)
def earlier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "earlier", [(DEAD, 2000.5, 3000.5)])


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "log.csv")


def text(path: str) -> str:
    return Path(path).read_text()


def test_whose_log_it_is() -> None:
    assert isinstance(logs.of(CSVLogger("x")), CsvLog)
    assert isinstance(logs.of(TensorBoard(Path("x"))), EventLog)
    assert logs.of(Thing()) is None
    assert logs.of(type("CSVLogger", (), {})()) is None, "the script's own, of the same name"
    assert isinstance(logs.of(type("Mine", (CSVLogger,), {})("x")), CsvLog), "derived from Keras'"


# CSVLogger ----------------------------------------------------------------------------------------


def begin(logger: CSVLogger, state: dict[str, Any]) -> str:
    """A later attempt begins its fit. Returns the note."""
    log = CsvLog(logger)
    note = log.go_back(state)
    logger.on_train_begin()
    log.begun(state)
    return note


def two_epochs(path: str, append: bool = False) -> dict[str, Any]:
    """An attempt that saved behind its second epoch and died in its fourth. Returns what it saved."""
    logger = CSVLogger(path, append)
    log = CsvLog(logger)
    logger.on_train_begin()
    logger.on_epoch_end(0, loss=1, a=5)
    logger.on_epoch_end(1, loss=2, a=6)
    state = log.state()
    logger.on_epoch_end(2, loss=3, a=7)
    logger.csv_file.close()  # type: ignore[union-attr]
    return state


def test_rows_behind_the_checkpoint_are_cut_off(path: str) -> None:
    state = two_epochs(path)
    logger = CSVLogger(path)
    assert begin(logger, state) == ""
    assert logger.append is False, "as the script has it"
    logger.on_epoch_end(2, loss=3, a=7, new=9)
    logger.on_train_end()
    assert text(path) == "epoch,a,loss\n0,5,1\n1,6,2\n2,7,3\n"


def test_what_is_written_counts_before_it_is_flushed(path: str) -> None:
    logger = CSVLogger(path)
    logger.on_train_begin()
    logger.on_epoch_end(0, loss=1)
    assert CsvLog(logger).state()["size"] == len("epoch,loss\n0,1\n")
    logger.on_train_end()
    assert CsvLog(logger).state()["size"] == len("epoch,loss\n0,1\n")


def test_rows_of_an_older_training_stay_where_the_script_appends(path: str) -> None:
    Path(path).write_text("epoch,a,loss\n0,0,0\n")
    state = two_epochs(path, append=True)
    logger = CSVLogger(path, append=True)
    assert begin(logger, state) == ""
    logger.on_train_end()
    assert text(path) == "epoch,a,loss\n0,0,0\n0,5,1\n1,6,2\n"
    assert logger.append is True


def test_a_file_that_is_missing_is_said_and_begun_anew(path: str) -> None:
    state = two_epochs(path)
    os.unlink(path)
    logger = CSVLogger(path)
    assert begin(logger, state) == f"{path} is shorter than it was: rows of earlier epochs are missing"
    logger.on_epoch_end(2, loss=3, a=7)
    logger.on_train_end()
    assert "2,7,3\n" in text(path)


def test_a_file_that_is_shorter_is_said_and_gone_on_with(path: str) -> None:
    state = two_epochs(path)
    Path(path).write_text("epoch,a,loss\n")
    logger = CSVLogger(path)
    assert "shorter than it was" in begin(logger, state)
    logger.on_epoch_end(2, loss=3, a=7)
    logger.on_train_end()
    assert text(path) == "epoch,a,loss\n2,7,3\n"


def test_a_file_that_cannot_be_looked_at_is_no_matter(path: str) -> None:
    logger = CSVLogger(str(Path(path) / "nowhere"))
    log = CsvLog(logger)
    assert log.state() == {}
    assert log.go_back({}) == ""
    log.begun({})
    log.discard()


def test_the_logger_of_a_second_fit_begins_anew_as_the_script_has_it(path: str) -> None:
    """Resumed in the second fit; what the first one wrote is overwritten then, as it was without us."""
    first = CSVLogger(path)
    first.on_train_begin()
    for epoch in range(5):
        first.on_epoch_end(epoch, loss=epoch)
    first.on_train_end()
    second = CSVLogger(path)
    second.on_train_begin()
    second.on_epoch_end(0, loss=9)
    state = CsvLog(second).state()
    second.on_train_end()
    resumed = CSVLogger(path)
    begin(resumed, state)
    resumed.on_epoch_end(1, loss=8)
    resumed.on_train_end()
    assert text(path) == "epoch,loss\n0,9\n1,8\n"


def test_a_fit_that_began_and_saved_nothing_overwrites_what_it_found(path: str) -> None:
    """How long the file was when the fit first began says nothing where it was then begun anew."""
    Path(path).write_text("epoch,loss\n0,of an older run\n1,of an older run\n2,of an older run\n")
    logger = CSVLogger(path)
    at_begin = CsvLog(logger).at_begin()
    logger.on_train_begin()
    logger.on_epoch_end(0, loss=1)
    logger.on_train_end()  # killed here, with no checkpoint
    again = CSVLogger(path)
    note = begin(again, at_begin)
    again.on_epoch_end(0, loss=1)
    again.on_epoch_end(1, loss=2)
    again.on_train_end()
    assert text(path) == "epoch,loss\n0,1\n1,2\n"
    assert not note


def test_a_fit_that_began_and_saved_nothing_appends_to_what_it_found(path: str) -> None:
    Path(path).write_text("epoch,loss\n0,7\n")
    logger = CSVLogger(path, append=True)
    at_begin = CsvLog(logger).at_begin()
    logger.on_train_begin()
    logger.on_epoch_end(0, loss=1)
    logger.on_train_end()
    again = CSVLogger(path, append=True)
    assert begin(again, at_begin) == ""
    again.on_epoch_end(0, loss=1)
    again.on_train_end()
    assert text(path) == "epoch,loss\n0,7\n0,1\n"


# TensorBoard --------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    """Every file below, by path."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def foreign(folder: Path) -> dict[str, bytes]:
    """Files that are none of the run's: of other hosts, processes, times, kinds."""
    files = [
        event_file(folder / "train", 2500, DEAD, "another-host"),
        event_file(folder / "train", 2500, DEAD + 1),
        event_file(folder / "train", 2500, int(f"{DEAD}0")),
        event_file(folder / "train", 1000, DEAD),  # its pid, before its time
        event_file(folder / "train", 9000, DEAD),  # and after
        event_file(folder / "elsewhere", 2500, DEAD),
        folder / "train" / f"checkpoint.2500.host.{DEAD}.0.v2",
        folder / "train" / f"events.out.tfevents.x.host.{DEAD}.0.v2",
        folder / "train" / "plugins" / "profile" / "x.pb",
        folder / "notes.txt",
    ]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"theirs")
    return content(folder)


def dead_attempt(folder: Path) -> dict[str, Any]:
    """What an attempt that died left behind. Returns what it had saved."""
    for kind in ("train", "validation"):
        file = event_file(folder / kind, 2100, DEAD)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"kept" + b"lost")
    event_file(folder / "train", 2200, DEAD, number=1).write_bytes(b"begun after the checkpoint")
    return {
        "files": {str(event_file(folder / kind, 2100, DEAD).relative_to(folder)): 4 for kind in ("train", "validation")}
    }


def test_events_behind_the_checkpoint_are_cut_off_and_others_are_not_touched(tmp_path: Path) -> None:
    theirs = foreign(tmp_path)
    state = dead_attempt(tmp_path)
    board = TensorBoard(tmp_path)
    graph = board.write("train", b"graph", second=5000)
    log = EventLog(board)
    assert log.go_back(state) == ""
    log.begun(state)
    assert content(tmp_path) == {**theirs, **dict.fromkeys(state["files"], b"kept")}
    assert not graph.exists(), "the first attempt described the model already"
    assert board._should_write_train_graph is False
    assert board._writers == {}


def test_what_this_attempt_writes_counts_from_then_on(tmp_path: Path) -> None:
    foreign(tmp_path)
    state = dead_attempt(tmp_path)
    board = TensorBoard(tmp_path)
    log = EventLog(board)
    log.go_back(state)
    mine = str(board.write("train", b"mine", second=5000).relative_to(tmp_path))
    assert log.state() == {"files": {**state["files"], mine: 4}}
    board.close()


def test_a_fit_that_begins_describes_its_model(tmp_path: Path) -> None:
    """Nothing was saved yet: the file of the dead attempt is superseded as a whole."""
    theirs = foreign(tmp_path)
    dead_attempt(tmp_path)
    board = TensorBoard(tmp_path)
    graph = board.write("train", b"graph", second=5000)
    log = EventLog(board)
    assert log.at_begin()["files"] == {str(graph.relative_to(tmp_path)): 5}
    assert log.go_back({"files": {}}) == ""
    log.begun({"files": {}})
    board.close()
    assert content(tmp_path) == {**theirs, str(graph.relative_to(tmp_path)): b"graph"}
    assert board._should_write_train_graph is True


@pytest.mark.parametrize("left", [None, b"ke"])
def test_event_files_that_are_missing_or_shorter_are_named(tmp_path: Path, left: bytes | None) -> None:
    state = dead_attempt(tmp_path)
    name = next(iter(state["files"]))
    if left is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(left)
    note = EventLog(TensorBoard(tmp_path)).go_back(state)
    assert note == f"event files in {tmp_path} are not what they were: {name}"


def test_a_completed_fit_takes_back_what_it_wrote(tmp_path: Path) -> None:
    theirs = foreign(tmp_path)
    board = TensorBoard(tmp_path)
    board.write("train", b"graph", second=5000)
    EventLog(board).discard()
    assert content(tmp_path) == theirs
    assert board._writers == {}


def test_a_log_directory_that_is_not_there(tmp_path: Path) -> None:
    log = EventLog(TensorBoard(tmp_path / "nowhere"))
    assert log.state() == {"files": {}}
    assert log.go_back({}) == ""
    log.discard()
