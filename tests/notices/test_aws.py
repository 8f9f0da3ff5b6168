"""EC2's notices, against an emulated IMDS."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ksupervise.notices import aws as module
from ksupervise.notices.notice import Unavailable, Unusable

from .emulator import Aws, status
from .helpers import QUICK, Clock, Heard

ENDPOINT = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
SPOT = "spot/instance-action"
REBALANCE = "events/recommendations/rebalance"
LIFECYCLE = "autoscaling/target-lifecycle-state"


def at(emulator: Aws, **more: str) -> dict[str, str]:
    return {ENDPOINT: emulator.url, **more}


def asker(emulator: Aws, heard: Heard, clock: Clock, **more: str) -> module.Source:
    return module.Source(heard.announcer("aws", clock), at(emulator, **more), QUICK)


@pytest.mark.parametrize("ahead", [0.0, 3 * 3600.0, -400 * 86400.0])
def test_a_spot_notice_has_the_seconds_of_the_servers_clock(aws: Aws, heard: Heard, ahead: float) -> None:
    aws.ahead = ahead
    assert heard.watch("aws", at(aws)).names == ("aws",)
    aws.await_asked(SPOT, 2)
    assert not heard.notices()
    aws.interrupt(120)
    notice = heard.notice()
    assert (notice.source, notice.final) == ("aws", True)
    assert notice.seconds is not None
    assert 90 < notice.seconds <= 121
    assert "terminate at 2" in notice.text
    assert not heard.notes()


def test_without_a_date_our_own_clock_has_to_do(aws: Aws, heard: Heard) -> None:
    aws.dated = False
    aws.interrupt(120, "stop")
    heard.watch("aws", at(aws))
    assert 90 < (heard.notice().seconds or 0) <= 121


def test_the_same_notice_is_told_once_and_a_nearer_one_again(aws: Aws, heard: Heard) -> None:
    aws.interrupt(120)
    heard.watch("aws", at(aws))
    first = heard.notice()
    aws.await_asked(SPOT, 3)
    aws.interrupt(300)
    aws.await_asked(SPOT, 3)
    assert not heard.notices(), "later is not news"
    aws.interrupt(30)
    second = heard.notice()
    assert second.final
    assert first.seconds is not None
    assert second.seconds is not None
    assert second.seconds < first.seconds - 50
    aws.await_asked(SPOT, 3)
    assert not heard.notices()


def test_one_that_was_taken_back_and_comes_again_is_news(aws: Aws, heard: Heard) -> None:
    aws.interrupt(120)
    heard.watch("aws", at(aws))
    heard.notice()
    del aws.documents[SPOT]
    aws.await_asked(SPOT, 2)
    aws.interrupt(500)
    assert heard.notice().final


def test_hibernation_leaves_no_time(aws: Aws, heard: Heard) -> None:
    aws.interrupt(120, "hibernate")
    heard.watch("aws", at(aws))
    assert heard.notice().seconds == 0


def test_a_rebalance_recommendation_is_advice(aws: Aws, heard: Heard) -> None:
    aws.documents[REBALANCE] = '{"noticeTime": "2026-10-26T15:55:55Z"}'
    heard.watch("aws", at(aws))
    notice = heard.notice()
    assert (notice.final, notice.seconds) == (False, None)
    assert "rebalance" in notice.text
    aws.await_asked(REBALANCE, 2)
    assert not heard.notices()


def test_the_scaling_groups_word_is_final(aws: Aws, heard: Heard) -> None:
    aws.documents[LIFECYCLE] = "InService"
    heard.watch("aws", at(aws))
    aws.await_asked(LIFECYCLE, 2)
    assert not heard.notices()
    aws.documents[LIFECYCLE] = "Terminated"
    notice = heard.notice()
    assert (notice.final, notice.seconds) == (True, None)


def test_what_fails_beside_the_spot_notice_does_not_slow_it(aws: Aws, heard: Heard) -> None:
    aws.fault(REBALANCE, status(500), always=True)
    aws.fault(LIFECYCLE, status(500), always=True)
    heard.watch("aws", at(aws))
    aws.await_asked(SPOT, 5)
    assert not heard.notes()
    aws.interrupt(60)
    assert heard.notice().final


# Tokens -------------------------------------------------------------------------------------------


def test_one_token_serves_until_shortly_before_its_end(heard: Heard) -> None:
    clock = Clock()
    aws = Aws(clock)
    ask = asker(aws, heard, clock).questions()[0].ask
    for _ in range(5):
        ask()
    assert [asked.method for asked in aws.asked("api/token")] == ["PUT"]
    clock.now += 0.95 * module.TTL
    ask()
    assert len(aws.asked("api/token")) == 2, "fetched while the old one was still good"
    tokens = {asked.headers["x-aws-ec2-metadata-token"] for asked in aws.asked("meta-data")}
    assert len(tokens) == 2
    aws.close()


def test_a_token_that_is_refused_is_replaced(aws: Aws, heard: Heard) -> None:
    ask = asker(aws, heard, Clock()).questions()[0].ask
    ask()
    aws.forget_tokens()
    aws.interrupt(60)
    ask()
    assert heard.notices()
    assert len(aws.asked("api/token")) == 2


@pytest.mark.parametrize("code", [403, 404, 405])
def test_a_service_without_tokens_is_asked_without(aws: Aws, heard: Heard, code: int) -> None:
    aws.put_status, aws.optional = code, True
    aws.interrupt(60)
    clock = Clock()
    ask = asker(aws, heard, clock).questions()[0].ask
    ask()
    assert heard.notices()
    assert len(aws.asked("api/token")) == 1, "and not at every look"
    aws.put_status, aws.optional = 200, False
    ask()
    assert len(aws.asked("api/token")) == 2, "until it wants one"


@pytest.mark.parametrize("code", [400, 401, 500, 503])
def test_a_service_that_fails_at_tokens_is_not_asked_without(aws: Aws, heard: Heard, code: int) -> None:
    aws.put_status, aws.optional = code, True
    with pytest.raises(Unavailable, match=str(code)):
        asker(aws, heard, Clock()).questions()[0].ask()
    assert not aws.asked("meta-data")


def test_no_fallback_where_it_is_forbidden(aws: Aws, heard: Heard) -> None:
    aws.put_status, aws.optional = 403, True
    with pytest.raises(Unavailable, match="refuses"):
        asker(aws, heard, Clock(), AWS_EC2_METADATA_V1_DISABLED="true").questions()[0].ask()
    assert not aws.asked("meta-data")


# Times --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "final", "least", "most"),
    [(-5, True, 0.0, 0.0), (-86400, None, None, None), (600, True, 500, 601), (3 * 86400, False, None, None)],
)
def test_times_that_are_over_or_far_away(
    aws: Aws, heard: Heard, seconds: float, final: bool | None, least: float | None, most: float | None
) -> None:
    aws.interrupt(seconds)
    asker(aws, heard, Clock()).questions()[0].ask()
    notices = heard.notices()
    assert [notice.final for notice in notices] == ([] if final is None else [final])
    if least is not None and most is not None:
        assert least <= (notices[0].seconds or 0.0) <= most


@pytest.mark.parametrize("time", ['""', "null", "12", '"soon"', '"2026-13-45T99:00:00Z"', '{"a": 1}'])
def test_a_time_that_cannot_be_read_leaves_the_notice(aws: Aws, heard: Heard, time: str) -> None:
    aws.documents[SPOT] = f'{{"action": "terminate", "time": {time}}}'
    asker(aws, heard, Clock()).questions()[0].ask()
    (notice,) = heard.notices()
    assert (notice.final, notice.seconds) == (True, None)


def test_a_notice_of_tomorrow_becomes_final_when_it_is_near(aws: Aws, heard: Heard) -> None:
    clock = Clock()
    ask = asker(aws, heard, clock).questions()[0].ask
    aws.interrupt(7200)
    ask()
    assert [notice.final for notice in heard.notices()] == [False]
    aws.ahead += 6600
    clock.now += 6600
    ask()
    (notice,) = heard.notices()
    assert notice.final
    assert 500 < (notice.seconds or 0) <= 601


# Switches -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["true", "TRUE", "True"])
def test_disabled_is_said_and_nothing_is_asked(aws: Aws, heard: Heard, value: str) -> None:
    assert heard.watch("aws", at(aws, AWS_EC2_METADATA_DISABLED=value)).names == ()
    assert "AWS_EC2_METADATA_DISABLED" in heard.note()
    assert not aws.asked()


@pytest.mark.parametrize(
    "value", ["imds", "ftp://x", "http://", "http://h:port", "http://u:p@h", "http://h/?a", "http://a b", "http://h\n"]
)
def test_an_endpoint_that_is_none_is_said(heard: Heard, value: str) -> None:
    assert heard.watch("aws", {ENDPOINT: value}).names == ()
    assert f"{ENDPOINT} is " in heard.note()


def test_the_mode_chooses_the_address() -> None:
    assert module.endpoint({}) == "http://169.254.169.254"
    assert module.endpoint({f"{ENDPOINT}_MODE": "IPv6"}) == "http://[fd00:ec2::254]"
    assert module.endpoint({f"{ENDPOINT}_MODE": "IPv6", ENDPOINT: "http://127.0.0.1:9/"}) == "http://127.0.0.1:9/"
    with pytest.raises(Unusable, match="MODE"):
        module.endpoint({f"{ENDPOINT}_MODE": "carrier pigeon"})


def test_an_endpoint_with_a_slash_at_its_end(aws: Aws, heard: Heard) -> None:
    aws.interrupt(60)
    heard.watch("aws", {ENDPOINT: aws.url + "/"}, replace(QUICK, timeout=5))
    assert heard.notice().final
