"""Azure's notices, against emulated Scheduled Events."""

from __future__ import annotations

from typing import Any

import pytest

from ksupervise.notices import azure as module
from ksupervise.notices.client import Answer
from ksupervise.notices.notice import Unavailable

from .emulator import Azure, says, status
from .helpers import QUICK, Clock, Heard

EVENTS = "scheduledevents"


def at(emulator: Azure) -> dict[str, str]:
    return {"KSUPERVISE_AZURE_METADATA": emulator.url}


def asker(emulator: Azure, heard: Heard, clock: Clock | None = None) -> module.Source:
    return module.Source(heard.announcer("azure", clock or Clock()), at(emulator), QUICK)


@pytest.mark.parametrize("kind", ["Preempt", "Terminate", "Reboot", "Redeploy"])
@pytest.mark.parametrize("ahead", [0.0, -7200.0])
def test_what_takes_the_machine_is_final(azure: Azure, heard: Heard, kind: str, ahead: float) -> None:
    azure.ahead = ahead
    assert heard.watch("azure", at(azure)).names == ("azure",)
    azure.await_asked(EVENTS, 2)
    assert not heard.notices()
    azure.announce(kind, 300, Description="Host server is\x1b[31m undergoing maintenance.")
    notice = heard.notice()
    assert (notice.source, notice.final) == ("azure", True)
    assert notice.seconds is not None
    assert 270 < notice.seconds <= 301
    assert kind in notice.text
    assert "undergoing maintenance" in notice.text
    assert notice.text.isprintable()
    azure.await_asked(EVENTS, 3)
    assert not heard.notices()
    assert {asked.method for asked in azure.asked()} == {"GET"}, "nothing is acknowledged"


def test_what_has_begun_leaves_no_time(azure: Azure, heard: Heard) -> None:
    heard.watch("azure", at(azure))
    azure.await_asked(EVENTS, 2)
    event = azure.announce("Preempt", 30)
    assert (heard.notice().seconds or 0) > 0
    azure.events = [{**event, "EventStatus": "Started", "NotBefore": ""}]
    assert heard.notice().seconds == 0


def test_a_freeze_is_advice(azure: Azure, heard: Heard) -> None:
    azure.announce("Freeze", 900)
    heard.watch("azure", at(azure))
    assert not heard.notice().final


def test_the_events_of_other_machines_are_not_ours(azure: Azure, heard: Heard) -> None:
    azure.announce("Preempt", 30, Resources=["trainer-1", "trainer-00", ""])
    heard.watch("azure", at(azure))
    azure.await_asked(EVENTS, 3)
    assert not heard.notices()
    azure.announce("Reboot", 600, Resources=["trainer-1", "TRAINER-0"])
    assert "Reboot" in heard.notice().text, "names are alike whatever their case"


def test_a_reboot_that_was_under_way_before_we_looked_is_over(azure: Azure, heard: Heard) -> None:
    """The machine came back and we were started again: leaving once more would go on until the list is cleared."""
    azure.announce("Reboot", None)
    ask = asker(azure, heard).questions()[0].ask
    ask()
    ask()
    assert not heard.notices()
    azure.announce("Redeploy", None)
    ask()
    assert [notice.seconds for notice in heard.notices()] == [0]


@pytest.mark.parametrize("ahead", ["", "Mon, 01 Jan 2091 00:00:00 GMT"])
def test_but_not_a_preemption(azure: Azure, heard: Heard, ahead: str) -> None:
    azure.announce("Preempt", None, NotBefore=ahead)
    asker(azure, heard).questions()[0].ask()
    assert [notice.seconds for notice in heard.notices()] == [0]


def test_next_weeks_redeploy_is_advice_until_it_is_near(azure: Azure, heard: Heard) -> None:
    clock = Clock()
    ask = asker(azure, heard, clock).questions()[0].ask
    azure.announce("Redeploy", 7 * 86400)
    ask()
    assert [notice.final for notice in heard.notices()] == [False]
    for passed in (86400, 5 * 86400):
        clock.now += passed
        azure.ahead += passed
        ask()
    assert not heard.notices()
    clock.now += 86400 - 600
    azure.ahead += 86400 - 600
    ask()
    assert [notice.final for notice in heard.notices()] == [True]


def test_one_that_was_called_off(azure: Azure, heard: Heard) -> None:
    ask = asker(azure, heard).questions()[0].ask
    event = azure.announce("Terminate", 300)
    ask()
    azure.events = []
    ask()
    azure.events = [event]
    ask()
    assert len(heard.notices()) == 2


def test_the_first_answer_may_take_two_minutes(azure: Azure, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    source = asker(azure, heard)
    allowed: list[tuple[str, float]] = []
    honest = source._client.ask

    def ask(path: str, headers: dict[str, str], **more: Any) -> Answer:
        allowed.append((path.partition("?")[0].rpartition("/")[2], more["timeout"]))
        return honest(path, headers, timeout=QUICK.timeout)

    monkeypatch.setattr(source, "_client", type("Client", (), {"ask": staticmethod(ask), "base": ""}))
    source._pace = type(QUICK)()  # the real one
    look = source.questions()[0].ask
    azure.fault(EVENTS, status(500))
    with pytest.raises(Unavailable):
        look()
    look()
    look()
    assert [(what, seconds) for what, seconds in allowed] == [
        ("name", 10.0),
        (EVENTS, 150.0),
        (EVENTS, 150.0),
        (EVENTS, 10.0),
    ]


@pytest.mark.parametrize(
    "event",
    [
        None,
        [],
        "Preempt",
        {},
        {"EventId": 1, "EventType": "Preempt", "Resources": ["trainer-0"]},
        {"EventId": "a", "EventType": None, "Resources": ["trainer-0"]},
        {"EventId": "a", "EventType": "Preempt", "Resources": "trainer-0"},
        {"EventId": "a", "EventType": "Preempt", "Resources": [None, 3, {}]},
        {"EventId": "a", "EventType": "Party", "Resources": ["trainer-0"], "NotBefore": ""},
        {
            "EventId": "a",
            "EventType": "Preempt",
            "Resources": ["trainer-0"],
            "NotBefore": "Mon, 01 Jan 1990 00:00:00 GMT",
        },
    ],
)
def test_events_that_are_none(azure: Azure, heard: Heard, event: Any) -> None:
    azure.events = [event]
    asker(azure, heard).questions()[0].ask()
    assert not heard.notices()


@pytest.mark.parametrize("moment", [None, 5, [], "soon", "Xxx, 99 Foo 2026 25:61:00 GMT"])
def test_a_time_that_cannot_be_read_leaves_the_event(azure: Azure, heard: Heard, moment: Any) -> None:
    azure.announce("Preempt", 30, NotBefore=moment, Description=None)
    asker(azure, heard).questions()[0].ask()
    assert [(notice.final, notice.seconds) for notice in heard.notices()] == [(True, None)]


@pytest.mark.parametrize("body", [b'{"Events": null}', b"{}", b'{"Events": {"EventType": "Preempt"}}'])
def test_a_document_that_is_none(azure: Azure, heard: Heard, body: bytes) -> None:
    azure.fault(EVENTS, says(body))
    with pytest.raises(Unavailable, match="no list of events"):
        asker(azure, heard).questions()[0].ask()


@pytest.mark.parametrize("name", [b"", b"<html>", b"two\nlines", b"x" * 1000])
def test_a_name_that_is_none(azure: Azure, heard: Heard, name: bytes) -> None:
    azure.fault("compute/name", says(name))
    with pytest.raises(Unavailable, match="no name"):
        asker(azure, heard).questions()[0].ask()


def test_an_address_that_is_none(heard: Heard) -> None:
    assert heard.watch("azure", {"KSUPERVISE_AZURE_METADATA": "there"}).names == ()
    assert "KSUPERVISE_AZURE_METADATA" in heard.note()
    assert module.endpoint({}) == "http://169.254.169.254"
