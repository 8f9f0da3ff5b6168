"""What a state consists of: everything that training depends on, at one moment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ksupervise.child import codec, randomness
from ksupervise.child.callbacks import Roster
from ksupervise.child.data import pipeline
from ksupervise.child.data.position import Position
from ksupervise.child.layers import Layers
from ksupervise.child.stager import EXTRA, Taken
from ksupervise.child.state import Inventory

FORMAT = 1  # of state.json


@dataclass(frozen=True)
class Moment:
    """Where training stands. `at`: the position as the manifest has it; the rest as the fit knows it."""

    at: dict[str, Any]
    origin: str
    batch_logs: Any
    logs: Any


class Capture:
    """Takes the state of one fit."""

    def __init__(
        self,
        model: Any,
        inventory: Inventory,
        layers: Layers,
        roster: Roster,
        position: Position | None,
        fingerprint: dict[str, Any],
        monitor: str | None,
        manifest: dict[str, Any],
    ) -> None:
        """`monitor`: name of the logged value that the manifest is to have. `manifest`: what else it is to have."""
        self._model = model
        self._inventory = inventory
        self._layers = layers
        self._roster = roster
        self._position = position
        self._fingerprint = fingerprint
        self._monitor = monitor
        self._manifest = manifest
        self._draws: bool | None = None

    def take(self, moment: Moment, *, handles: bool = False) -> Taken:
        """Arrays and plain state as of now, and what the manifest says of them.

        With `handles` the variables are handles that keep their values, to be copied later.
        """
        at = moment.at
        inside = at["kind"] == "batch"
        arrays = self._inventory.read(handles=handles)
        extras: dict[str, Any] = {}
        data = self._position.capture(at["batch"], inside=inside) if self._position is not None else None
        stopped = bool(getattr(self._model, "stop_training", False)) and not inside
        saved = {
            "format": FORMAT,
            "position": at,
            "stopped": stopped,
            "optimizers": self._inventory.recipe,
            "callbacks": self._roster.capture(extras),
            "randomness": codec.encode(randomness.capture(), extras, f"{EXTRA}randomness"),
            "data": codec.encode(data, extras, f"{EXTRA}data"),
            "layers": codec.encode(self._layers.capture(), extras, f"{EXTRA}layers"),
            "skipped": sorted(self._roster.skipped),
            "batch_logs": codec.encode(plain_logs(moment.batch_logs), extras, f"{EXTRA}batch_logs"),
            "logs": codec.encode(plain_logs(moment.logs), extras, f"{EXTRA}logs"),
            "fingerprint": self._fingerprint,
            "draws": self._step_draws(),
        }
        extra = {**self._manifest, "stopped": stopped, "approximate": bool(data and data["approximate"])}
        monitored = None if inside else self.monitored(moment.logs)
        if monitored is not None:
            extra["monitored"] = {self._monitor: monitored}
        return Taken({**arrays, **extras}, saved, {"position": at, "origin": moment.origin, "extra": extra})

    def look(self) -> None:
        """What takes its time and is needed once: to be done before a state is taken."""
        self._step_draws()

    def monitored(self, logs: Any) -> float | None:
        """The value that `--keep-best` watches, None if there is none."""
        value = plain_logs(logs).get(self._monitor or "")
        return value if value is not None and math.isfinite(value) else None

    def _step_draws(self) -> bool:
        """The compiled train_step draws random numbers by operations whose state nobody can see."""
        if self._draws is None:
            graphs = pipeline.graphs(getattr(self._model, "train_function", None))
            if graphs:  # compiled
                self._draws = any(map(pipeline.draws, graphs))
        return bool(self._draws)


def plain_logs(logs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Those of the logs that are numbers."""
    plain = {}
    for name, value in (logs or {}).items():
        try:
            plain[name] = float(value)
        except (TypeError, ValueError):
            continue
    return plain
