"""EC2: spot interruptions, rebalance recommendations and the Auto Scaling group's word, by IMDSv2.

Environment: AWS_EC2_METADATA_SERVICE_ENDPOINT, AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE (IPv4 or IPv6),
AWS_EC2_METADATA_DISABLED and AWS_EC2_METADATA_V1_DISABLED mean what they mean to Amazon's own clients.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping

from ksupervise.notices.client import Answer, Client, address, glimpse, moment_of, refused
from ksupervise.notices.ear import Question
from ksupervise.notices.notice import Announcer, Unavailable, Unusable
from ksupervise.notices.pace import Pace

ENDPOINTS = {"ipv4": "http://169.254.169.254", "ipv6": "http://[fd00:ec2::254]"}
TTL = 21600  # seconds for which a token is asked; six hours is the most there is
STALE = 600.0  # seconds over: an instance that still lives then was not meant, or has been started again
_PLAIN_FOR = 300.0  # seconds without a token before one is tried for again

_SPOT = "spot/instance-action"
_REBALANCE = "events/recommendations/rebalance"
_LIFECYCLE = "autoscaling/target-lifecycle-state"
_ACTIONS = ("terminate", "stop", "hibernate")
_TOKEN = re.compile(r"[\x21-\x7e]{1,2048}", re.ASCII)


class Source:
    """What Amazon announces for this instance. Raises Unusable where it is switched off."""

    name = "aws"
    hint = (
        "In a container the service may be out of reach: the instance's metadata hop limit must be 2, or the container "
        "must use the host's network"
    )

    def __init__(self, announcer: Announcer, environ: Mapping[str, str], pace: Pace) -> None:
        if is_disabled(environ):
            raise Unusable("AWS_EC2_METADATA_DISABLED is true")
        self._announcer = announcer
        self._pace = pace
        self._client = Client(endpoint(environ))
        self._may_go_plain = environ.get("AWS_EC2_METADATA_V1_DISABLED", "").lower() != "true"
        self._token: str | None = None
        self._token_until = 0.0
        self._plain_until = 0.0
        self.place = f"the metadata service at {self._client.base}"

    def questions(self) -> tuple[Question, ...]:
        """All three in turn: they share a token."""
        return (Question(_SPOT, self._look, self._pace.aws),)

    def hang_up(self) -> None:
        """End a request under way."""
        self._client.close()

    def _look(self) -> None:
        self._spot()
        for bonus in (self._rebalance, self._lifecycle):
            with contextlib.suppress(Unavailable):  # failing at these must not slow the spot notice down
                bonus()

    def _spot(self) -> None:
        answer = self._get(_SPOT)
        if answer is None:
            self._announcer.gone("spot")
            return
        fields = answer.fields()
        action = fields.get("action")
        if action not in _ACTIONS:
            raise Unavailable(f"it answers with {glimpse(answer.text)}, which is no action")
        moment = moment_of(fields.get("time"))
        left = None if moment is None else answer.left(moment)
        if left is not None and left < -STALE:
            return
        if action == "hibernate":
            left = 0.0  # that begins with the announcement, whatever time it names
        text = f"AWS takes this spot instance back: {action}" + (f" at {fields['time']}" if left else "")
        until = None if left is None else self._announcer.clock() + left
        self._announcer.heard("spot", text, final=True, until=until)

    def _rebalance(self) -> None:
        """AWS sees a higher risk. It may never come to it, so this is nothing to leave for."""
        answer = self._get(_REBALANCE)
        time = None if answer is None else answer.fields().get("noticeTime")
        if moment_of(time) is not None:
            text = f"AWS sees an elevated risk that it takes this instance back (rebalance recommendation of {time})"
            self._announcer.heard(f"rebalance {time}", text, final=False)

    def _lifecycle(self) -> None:
        """The state that the Auto Scaling group wants; how long its hook waits is not said here."""
        answer = self._get(_LIFECYCLE)
        if answer is not None and answer.text == "Terminated":
            self._announcer.heard("lifecycle", "AWS: the Auto Scaling group terminates this instance", final=True)
        else:
            self._announcer.gone("lifecycle")

    def _get(self, path: str) -> Answer | None:
        """The answer at `path`; None for 404, by which IMDS says that there is nothing. Raises Unavailable."""
        answer = self._get_once(path)
        if answer.status == 401:  # the token is not (or no longer) good, or one is needed after all
            self._token, self._plain_until = None, 0.0
            answer = self._get_once(path)
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise refused(answer)
        return answer

    def _get_once(self, path: str) -> Answer:
        token = self._current_token()
        headers = {} if token is None else {"X-aws-ec2-metadata-token": token}
        return self._client.ask(f"/latest/meta-data/{path}", headers, timeout=self._pace.timeout)

    def _current_token(self) -> str | None:
        """A token that is still good; None where the service has none to give (IMDSv1)."""
        now = self._announcer.clock()
        if now < self._plain_until:
            return None
        if self._token is None or now >= self._token_until:
            self._token = None
            self._fetch_token(now)
        return self._token

    def _fetch_token(self, now: float) -> None:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TTL)}
        answer = self._client.ask("/latest/api/token", headers, timeout=self._pace.timeout, method="PUT")
        if answer.status in (403, 404, 405) and self._may_go_plain:
            self._plain_until = now + _PLAIN_FOR
            return
        if answer.status != 200:
            raise refused(answer)
        if not _TOKEN.fullmatch(answer.text):
            raise Unavailable(f"it answers with {glimpse(answer.text)}, which is no token")
        granted = answer.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        self._token = answer.text
        self._token_until = now + 0.9 * (int(granted) if re.fullmatch(r"\d{1,6}", granted, re.ASCII) else TTL)


def is_disabled(environ: Mapping[str, str]) -> bool:
    """Somebody has forbidden every client to use the metadata service."""
    return environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true"


def endpoint(environ: Mapping[str, str]) -> str:
    """Where the service is. Raises Unusable for an address that is none."""
    variable = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
    if given := environ.get(variable, ""):
        return address(given, variable)
    mode = environ.get(f"{variable}_MODE", "").lower() or "ipv4"
    if mode not in ENDPOINTS:
        raise Unusable(f"{variable}_MODE is neither IPv4 nor IPv6; mend or unset it")
    return ENDPOINTS[mode]
