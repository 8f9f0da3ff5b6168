"""Callbacks of Keras' own and of the script's: log files without a gap, and nothing they do disturbs a relaunch."""

from __future__ import annotations

from tests.keras_runs.conftest import Laboratory, Result
from tests.keras_runs.test_resume import assert_equal, assert_resumed


def test_a_state_that_cannot_be_stored_is_named_once(laboratory: Laboratory, plain_built: Result) -> None:
    supervised = laboratory.supervised("odd_callback", INTERRUPT="batch:30")
    assert_equal(plain_built, supervised)
    assert_resumed(supervised, 80)
    assert supervised.output.count("not carried over a restart: Odd.get_state() (no plain data)") == 1
    assert "Odd" in supervised.output
    assert "ksupervise failed" not in supervised.output


def test_a_torn_backup_of_the_scripts_own_does_not_disturb(laboratory: Laboratory, plain_built: Result) -> None:
    """Keras would raise while it loads that."""
    supervised = laboratory.supervised("backup", INTERRUPT="batch:30", TEAR="backup")
    assert_equal(plain_built, supervised)
    assert_resumed(supervised, 80)
    assert supervised.output.count("BackupAndRestore in the script restores nothing here") == 1


def test_no_event_and_no_row_is_lost_or_there_twice(laboratory: Laboratory) -> None:
    alone = laboratory.plain("logs")
    supervised = laboratory.supervised("logs", INTERRUPT="epoch_end:40")
    assert alone.result["foreign"] == "theirs"
    tags = {row[1] for row in alone.result["events"]}
    assert {"epoch_loss", "batch_loss"} <= tags
    for name in ("csv", "events", "foreign"):
        assert supervised.result[name] == alone.result[name], name
    assert_equal(alone, supervised)
    assert_resumed(supervised, 80)
