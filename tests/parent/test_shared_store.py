"""A store on a file system whose flock keeps no other machine out: the lease beside it does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ksupervise.errors import RunBusy
from ksupervise.parent import owned
from ksupervise.parent.owned import OwnedRun, take
from ksupervise.replicas import lease
from ksupervise.settings import Settings
from ksupervise.store import RunLock


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A store as NFS is: each machine may have its own flock."""
    monkeypatch.setattr(owned, "has_reliable_flock", lambda path: False)
    monkeypatch.setattr(lease, "INTERVAL", 0.2)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("print()")
    return Settings(store=tmp_path / "store", name="job")


def own(settings: Settings, said: list[str] | None = None) -> OwnedRun:
    """Take it as a machine does that does not see the other's flock."""
    (settings.store / "job" / "lock").unlink(missing_ok=True)
    taken = take(settings, ["python", "train.py"], interactive=False, say=(said or []).append)
    assert isinstance(taken, OwnedRun)
    return taken


def test_a_living_owner_is_left_alone(shared: Settings) -> None:
    first = own(shared)
    with pytest.raises(RunBusy, match=str(os.getpid())):
        own(shared)
    assert not first.lost
    assert first.shared is not None
    first.shared.release()
    second = own(shared)
    assert second.shared is not None
    second.shared.release()


def test_fresh_does_not_archive_a_run_that_is_being_trained(shared: Settings) -> None:
    first = own(shared)
    with pytest.raises(RunBusy):
        own(Settings(store=shared.store, name="job", fresh=True))
    assert (shared.store / "job" / "run.json").exists()
    assert not (shared.store / owned.ARCHIVE).exists()
    assert first.shared is not None
    first.shared.release()


def test_a_local_store_has_no_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owned, "has_reliable_flock", lambda path: True)
    taken = own(Settings(store=tmp_path / "store", name="job"))
    assert taken.shared is None
    assert not (tmp_path / "store" / "job" / "lease").exists()


def test_who_finds_the_run_at_work_in_a_replica_lets_go_of_it_here(
    shared: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> None:
        raise RunBusy("another machine trains it")

    with monkeypatch.context() as patched:
        patched.setattr(owned, "_own_in_replicas", busy)
        with pytest.raises(RunBusy, match="another machine"):
            own(shared)
    lock = RunLock(shared.store / "job" / "lock")
    assert lock.acquire(), "the very lock that it held"
    lock.release()
    taken = own(shared)
    assert taken.shared is not None
    taken.shared.release()
