"""Whatever answers in a metadata service's place, or does not: no false notice, one note, and no end."""

from __future__ import annotations

import itertools
import json
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest

from ksupervise.notices import PATIENCE as CLOSING_TAKES
from ksupervise.notices import Notice, watch
from ksupervise.notices.client import LARGEST

from .emulator import (
    HTML,
    PATIENCE,
    Asked,
    Aws,
    Azure,
    Emulator,
    Fault,
    Gcp,
    Reply,
    hang_up,
    redirect,
    says,
    stall,
    status,
)
from .helpers import QUICK, Heard

CLOUDS = {
    "aws": (Aws, "AWS_EC2_METADATA_SERVICE_ENDPOINT", "url"),
    "gcp": (Gcp, "GCE_METADATA_HOST", "host"),
    "azure": (Azure, "KSUPERVISE_AZURE_METADATA", "url"),
}
# What says that the machine may go, and not a token or a name first.
WHERE = {"aws": "meta-data/spot", "gcp": "computeMetadata", "azure": "scheduledevents"}
FLAVOR = {"Metadata_Flavor": "Google", "ETag": "1"}
FAULTS: dict[str, Fault] = {
    "portal": says(HTML, Content_Type="text/html", **FLAVOR),
    "portal that calls itself JSON": says(HTML, Content_Type="application/json", **FLAVOR),
    "10 MB": says(b'{"action": "terminate", "Events": [' + b" " * 10_000_000 + b"]}", **FLAVOR),
    "cut JSON": says(b'{"action": "termin', **FLAVOR),
    "a list": says(b'["terminate"]', **FLAVOR),
    "deep JSON": says(b"[" * 60_000, **FLAVOR),
    "binary": says(bytes(range(256)), **FLAVOR),
    "another action": says(b'{"action": ["terminate"], "Events": 7}', **FLAVOR),
    "nothing": says(b"", **FLAVOR),
    "500": status(500),
    "503": status(503),
    "401": status(401),
    "403": status(403),
    "418": status(418),
    "hangs up": hang_up,
}


@pytest.fixture(params=sorted(CLOUDS))
def cloud(request: pytest.FixtureRequest) -> Iterator[tuple[str, Emulator, dict[str, str]]]:
    name = request.param
    kind, variable, attribute = CLOUDS[name]
    emulator: Emulator = kind()
    yield name, emulator, {variable: getattr(emulator, attribute)}
    emulator.close()


def at(emulator: Aws) -> dict[str, str]:
    return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": emulator.url}


def announce(emulator: Emulator) -> None:
    """The real thing."""
    if isinstance(emulator, Aws):
        emulator.interrupt(60)
    elif isinstance(emulator, Gcp):
        emulator.put("instance/preempted", "TRUE")
    elif isinstance(emulator, Azure):
        emulator.announce("Preempt", 60)


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_false_answer_is_no_notice(cloud: tuple[str, Emulator, dict[str, str]], heard: Heard, fault: str) -> None:
    name, emulator, environ = cloud
    emulator.fault(WHERE[name], FAULTS[fault], always=True)
    heard.watch(name, environ)
    note = heard.note()
    assert note.startswith(f"{name}: ")
    assert note.isprintable()
    assert len(note) < 800
    emulator.await_asked("", 4)
    assert not heard.notices()
    assert not heard.notes(), "said once"
    emulator.mend()
    assert "answers again" in heard.note()
    announce(emulator)
    assert heard.notice().final


def test_a_portal_in_place_of_everything(cloud: tuple[str, Emulator, dict[str, str]], heard: Heard) -> None:
    name, emulator, environ = cloud
    emulator.fault("", says(HTML), always=True)
    heard.watch(name, environ)
    assert "no " in heard.note()
    emulator.await_asked("", 4)
    assert not heard.notices()


def test_a_redirect_is_never_followed(cloud: tuple[str, Emulator, dict[str, str]], heard: Heard) -> None:
    name, emulator, environ = cloud
    elsewhere = CLOUDS[name][0]()
    announce(elsewhere)
    emulator.fault("", redirect(elsewhere.url), always=True)
    heard.watch(name, environ)
    assert "redirects" in heard.note()
    emulator.await_asked("", 3)
    assert not elsewhere.asked()
    assert not heard.notices()
    elsewhere.close()


def test_a_service_that_never_answers(cloud: tuple[str, Emulator, dict[str, str]], heard: Heard) -> None:
    name, emulator, environ = cloud
    emulator.fault("", stall(emulator), always=True)
    heard.watch(name, environ, replace(QUICK, timeout=0.02, azure_first=0.02, gcp_hold=0.02))
    assert "timed out" in heard.note()
    assert not heard.notices()


def test_a_service_that_drips(aws: Aws, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece comes in time, the whole does not."""
    seconds = itertools.count(0.0, 30.0)
    slow = SimpleNamespace(monotonic=lambda: next(seconds), time=time.time)
    monkeypatch.setattr("ksupervise.notices.client.time", slow)
    aws.fault("", says(b"xxxx"), always=True)
    heard.watch("aws", at(aws))
    assert "does not end" in heard.note()


def test_a_closed_port(heard: Heard) -> None:
    emulator = Aws()
    emulator.close()
    heard.watch("aws", at(emulator))
    note = heard.note()
    assert "refused" in note
    assert "hop limit" in note, "what may help where it never answered"


def test_a_service_that_stops_and_comes_back(aws: Aws, heard: Heard) -> None:
    heard.watch("aws", at(aws))
    aws.await_asked("spot", 2)
    for _ in range(2):
        aws.fault("spot", status(500), always=True)
        note = heard.note()
        assert "HTTP 500" in note
        assert "hop limit" not in note, "it did answer"
        aws.mend()
        assert "answers again" in heard.note()


def test_one_failure_is_not_worth_a_word(aws: Aws, heard: Heard) -> None:
    heard.watch("aws", at(aws))
    for _ in range(3):
        aws.fault("spot", status(500))
        aws.fault("spot", status(500))
        aws.await_asked("spot", 5)
    assert not heard.notes()


def test_an_answer_of_just_the_largest_size(aws: Aws, heard: Heard) -> None:
    aws.interrupt(60)
    aws.documents["spot/instance-action"] = aws.documents["spot/instance-action"].ljust(LARGEST)
    heard.watch("aws", at(aws))
    assert heard.notice().final


@pytest.mark.parametrize("seconds", [10.0, 600.0])
def test_closing_is_prompt_while_a_request_hangs(
    cloud: tuple[str, Emulator, dict[str, str]], heard: Heard, seconds: float
) -> None:
    name, emulator, environ = cloud
    emulator.fault("", stall(emulator), always=True)
    patient = replace(QUICK, timeout=seconds, azure_first=seconds, gcp_hold=seconds)
    made = heard.watch(name, environ, patient)
    emulator.await_first("")
    threads = [ear._thread for ear in made._ears]
    began = time.monotonic()
    made.close()
    assert time.monotonic() - began < CLOSING_TAKES + 5
    assert not any(thread.is_alive() for thread in threads), "hung up, not only left behind"
    made.close()
    assert heard.notes() == []


def test_nothing_is_told_after_closing(aws: Aws, heard: Heard) -> None:
    """Not even what an answer says that was already on its way."""
    answered = threading.Event()

    def late(_: Asked) -> Reply:
        answered.wait(PATIENCE)
        return Reply(200, json.dumps({"action": "terminate", "time": aws.moment(60)}).encode())

    aws.fault("spot", late)
    made = heard.watch("aws", at(aws))
    aws.await_first("spot")
    made.closing.set()
    answered.set()
    for ear in made._ears:
        ear.join(PATIENCE)  # without hanging up: the answer does arrive
    assert heard.notices() == []


def test_a_loop_that_raises_is_told_again(aws: Aws, heard: Heard) -> None:
    came: list[Notice] = []
    enough = threading.Event()

    def tell(notice: Notice) -> None:
        came.append(notice)
        if len(came) < 3:
            raise RuntimeError("not ready")
        enough.set()

    aws.interrupt(60)
    heard.keep(watch("aws", tell=tell, note=print, environ=at(aws), pace=QUICK))
    assert enough.wait(PATIENCE)
    aws.await_asked("spot", 3)
    assert len(came) == 3, "and not once it was heard"


def test_nobody_to_tell_that_it_fails(aws: Aws, heard: Heard) -> None:
    noted = threading.Event()

    def note(_: str) -> None:
        noted.set()
        raise RuntimeError("nobody listens")

    came: queue.Queue[Notice] = queue.Queue()
    aws.fault("", status(500), always=True)
    heard.keep(watch("aws", tell=came.put, note=note, environ=at(aws), pace=QUICK))
    assert noted.wait(PATIENCE)
    aws.interrupt(60)
    aws.mend()
    assert came.get(timeout=PATIENCE).final
