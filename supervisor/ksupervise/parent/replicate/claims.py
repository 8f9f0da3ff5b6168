"""Owning a run in its replicas before anything of it is brought here or trained.

Each claim is held by a process of its own, which gives the signs of life while a large checkpoint is on its way. The
run's workers then go on with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ksupervise.errors import RunBusy
from ksupervise.parent.replicate.fleet import about
from ksupervise.parent.replicate.handle import Handle, Report, listen

_FAREWELL = 5.0  # seconds that letting go may take

Say = Callable[[str], None]


class Claims:
    """Of one call of a run. `held`: there are some."""

    def __init__(self) -> None:
        self._handles: list[Handle] = []

    @property
    def held(self) -> bool:
        """The run is ours somewhere."""
        return bool(self._handles)

    def claim(self, configuration: Mapping[str, Any], say: Say) -> int | None:
        """Become the owner of the run in one place; the token there, None if it cannot be reached now.

        Raises RunBusy if somebody else owns it and lives.
        """
        last: list[Report] = []
        place = configuration["place"]

        def heard(report: Report) -> bool:
            if report["op"] == "waiting":
                say(
                    f"replica {place}: another machine had this run; waiting for a sign of life of it, "
                    "a minute as a rule"
                )
            if report["op"] in ("waiting", "beat"):
                return True
            last.append(report)
            return False

        handle = Handle(["claim"], configuration)
        self._handles.append(handle)
        whole = listen(handle, heard)
        report = last[0] if whole else {"op": "failed", "reason": "it does not answer"}
        if report["op"] == "owned":
            if report.get("line"):
                say(f"replica {place}: the run is taken over from {report['line']}")
            return int(report["token"])
        self._handles.remove(handle)
        handle.close()
        if report["op"] == "busy":
            raise RunBusy(
                f"run {configuration['name']} is being trained by {report.get('who')}: {place} shows it alive"
            )
        say(about(place, str(report.get("reason"))))
        return None

    def pass_on(self) -> None:
        """The run's workers hold it from here on."""
        for handle in self._handles:
            handle.close()
        self._handles.clear()

    def release(self) -> None:
        """Let go, so that another machine can own it at once. A place that does not answer is not waited for long."""
        for handle in self._handles:
            handle.order({"op": "finish", "seconds": _FAREWELL})
        end = time.monotonic() + _FAREWELL
        for handle in self._handles:
            listen(handle, lambda _: True, max(0.0, end - time.monotonic()))
        self.pass_on()
