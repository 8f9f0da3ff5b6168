"""Google's notices, against an emulated metadata server."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ksupervise.notices import Pace
from ksupervise.notices import gcp as module
from ksupervise.notices.notice import Unavailable

from .emulator import Gcp, says, status
from .helpers import QUICK, Clock, Heard

PREEMPTED = "instance/preempted"
MAINTENANCE = "instance/maintenance-event"


def at(emulator: Gcp) -> dict[str, str]:
    return {"GCE_METADATA_HOST": emulator.host}


class Asker:
    """A source whose questions the test asks itself; each is answered at once or after one second."""

    def __init__(self, emulator: Gcp, heard: Heard, clock: Clock, *, gpu: bool = False, pace: Pace = QUICK) -> None:
        source = module.Source(heard.announcer("gcp", clock), at(emulator), pace, gpu=lambda: gpu)
        preempted, maintenance = source.questions()
        self.preempted = preempted.ask
        self.maintenance = maintenance.ask


def test_a_preemption_is_heard_by_long_poll(gcp: Gcp, heard: Heard) -> None:
    assert heard.watch("gcp", at(gcp)).names == ("gcp",)
    gcp.await_asked(PREEMPTED, 2)
    assert not heard.notices()
    gcp.put(PREEMPTED, "TRUE")
    notice = heard.notice()
    assert (notice.source, notice.final) == ("gcp", True)
    assert notice.seconds is not None
    assert 10 < notice.seconds <= 30
    gcp.await_asked(PREEMPTED, 2)
    assert not heard.notices()
    assert not heard.notes()


def test_the_polls_are_long_and_name_the_last_etag(gcp: Gcp, heard: Heard) -> None:
    heard.watch("gcp", at(gcp))
    gcp.await_asked(PREEMPTED, 3)
    first, second, third, *_ = gcp.asked(PREEMPTED)
    assert first.query["last_etag"] == "0"
    assert second.query["last_etag"] == third.query["last_etag"] != "0"
    assert all(asked.query["wait_for_change"] == "true" for asked in (first, second, third))
    assert all(asked.query["timeout_sec"] == "1" for asked in (first, second, third))
    gcp.put(PREEMPTED, "FALSE")
    gcp.await_asked(PREEMPTED, 3)
    assert gcp.asked(PREEMPTED)[-1].query["last_etag"] != third.query["last_etag"]
    assert not heard.notices()


def test_nobody_knows_how_much_is_left_of_what_was_already_so(gcp: Gcp, heard: Heard) -> None:
    gcp.put(PREEMPTED, "TRUE")
    ask = Asker(gcp, heard, Clock())
    ask.preempted()
    (notice,) = heard.notices()
    assert (notice.final, notice.seconds) == (True, None)


def test_nor_of_what_became_so_while_nobody_answered(gcp: Gcp, heard: Heard) -> None:
    ask = Asker(gcp, heard, Clock())
    ask.preempted()
    gcp.fault(PREEMPTED, status(503))
    with pytest.raises(Unavailable, match="503"):
        ask.preempted()
    gcp.put(PREEMPTED, "TRUE")
    ask.preempted()
    (notice,) = heard.notices()
    assert (notice.final, notice.seconds) == (True, None)


@pytest.mark.parametrize(("gpu", "seconds"), [(False, 60.0), (True, None)])
def test_a_stop_for_maintenance(gcp: Gcp, heard: Heard, gpu: bool, seconds: float | None) -> None:
    clock = Clock()
    ask = Asker(gcp, heard, clock, gpu=gpu)
    ask.maintenance()
    assert not heard.notices()
    gcp.put(MAINTENANCE, "TERMINATE_ON_HOST_MAINTENANCE")
    ask.maintenance()
    (notice,) = heard.notices()
    assert (notice.final, notice.seconds) == (not gpu, seconds)
    clock.now += 2800
    ask.maintenance()
    later = [(notice.final, notice.seconds) for notice in heard.notices()]
    assert later == ([(True, 800.0)] if gpu else []), "an hour ahead is advice, a quarter of an hour is final"


def test_a_migration_is_advice_and_each_one_is_news(gcp: Gcp, heard: Heard) -> None:
    ask = Asker(gcp, heard, Clock())
    for _ in range(2):
        gcp.put(MAINTENANCE, "MIGRATE_ON_HOST_MAINTENANCE")
        ask.maintenance()
        (notice,) = heard.notices()
        assert (notice.final, notice.seconds) == (False, None)
        gcp.put(MAINTENANCE, "NONE")
        ask.maintenance()
    gcp.put(MAINTENANCE, "SOMETHING_NEW")
    ask.maintenance()
    assert not heard.notices()


def test_an_answer_without_the_flavor_is_not_googles(gcp: Gcp, heard: Heard) -> None:
    gcp.fault(PREEMPTED, says(b"TRUE", ETag="1"), always=True)
    heard.watch("gcp", at(gcp))
    assert "something else answers" in heard.note()
    assert not heard.notices()


def test_an_answer_that_is_neither_true_nor_false(gcp: Gcp, heard: Heard) -> None:
    gcp.put(PREEMPTED, "maybe")
    with pytest.raises(Unavailable, match="neither"):
        Asker(gcp, heard, Clock()).preempted()
    assert not heard.notices()


@pytest.mark.parametrize("etag", ["", "a b\u00e4&last_etag=1", "x" * 5000])
def test_an_etag_is_only_a_word(gcp: Gcp, heard: Heard, etag: str) -> None:
    answer = says(b"FALSE", Metadata_Flavor="Google", ETag=etag)
    gcp.fault(PREEMPTED, answer)
    ask = Asker(gcp, heard, Clock())
    ask.preempted()
    gcp.put(PREEMPTED, "TRUE")
    ask.preempted()
    assert heard.notices()
    assert set(gcp.asked(PREEMPTED)[-1].query) == {"wait_for_change", "last_etag", "timeout_sec"}


def test_a_server_that_does_not_have_it(gcp: Gcp, heard: Heard) -> None:
    gcp.drop(PREEMPTED)
    heard.watch("gcp", at(gcp))
    assert "HTTP 404" in heard.note()
    gcp.put(MAINTENANCE, "TERMINATE_ON_HOST_MAINTENANCE")
    assert heard.notice().final, "the other question goes on"


@pytest.mark.parametrize("variable", ["GCE_METADATA_HOST", "GCE_METADATA_ROOT", "GCE_METADATA_IP"])
def test_the_variables(gcp: Gcp, heard: Heard, variable: str) -> None:
    heard.watch("gcp", {variable: gcp.host})
    gcp.await_asked(PREEMPTED)


def test_the_first_variable_wins() -> None:
    environ = {"GCE_METADATA_IP": "127.0.0.3", "GCE_METADATA_ROOT": "127.0.0.2"}
    assert module.endpoint(environ) == "http://127.0.0.2"
    assert module.endpoint({**environ, "GCE_METADATA_HOST": "127.0.0.1:80"}) == "http://127.0.0.1:80"
    assert module.endpoint({}) == "http://metadata.google.internal"


def test_a_host_that_is_none(heard: Heard) -> None:
    assert heard.watch("gcp", {"GCE_METADATA_HOST": "http://there"}).names == ()
    assert "GCE_METADATA_HOST" in heard.note()


def test_a_poll_may_take_as_long_as_it_is_held(gcp: Gcp, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is longer than a connection may, or any other answer."""
    monkeypatch.setattr("ksupervise.notices.client.CONNECT", 0.5)
    ask = Asker(gcp, heard, Clock(), pace=replace(QUICK, timeout=0.9))
    ask.preempted()
    ask.preempted()
    assert len(gcp.asked(PREEMPTED)) == 2
