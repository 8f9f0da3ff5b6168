"""Settings of layers that the script changes while it trains: `model.dropout.rate = 0.1` in a callback.

A compiled step has them as they were when it was traced, an eager one as they are. So both are kept: after a resume the
step is traced with what it was traced with, and then they are set to what they had become.
"""

from __future__ import annotations

import functools
from typing import Any

_PLAIN = (bool, int, float)
_KERAS_OWN = ("built", "stop_training", "steps_per_execution")
Settings = list[dict[str, Any]]  # of each layer, what is not as it was when the fit began


class Layers:
    """The layers of one model, itself among them."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._at_begin: list[dict[str, Any]] = []
        self._traced: Settings | None = None  # None before the first step
        self._step: Any = None  # the train_function that was traced
        self._after_trace: Settings | None = None
        self._resumed = False

    def begin(self) -> None:
        """The fit begins, or its model has just been built."""
        self._at_begin = self._look()

    def put_back(self, captured: dict[str, Settings]) -> None:
        """After a resume: the settings are what they had become."""
        self._set(captured["now"])
        self._traced, self._resumed = captured["traced"], True

    def about_to_step(self) -> None:
        """The first step of this attempt is about to be taken, and traced if the step is compiled."""
        if self._traced is None:
            self._traced = self._changed()
        elif self._resumed and not getattr(self._model, "run_eagerly", False):
            self._after_trace = self._changed()
            self._set(self._traced)

    def stepped(self) -> None:
        """It was taken."""
        self._step = getattr(self._model, "train_function", None)
        if self._after_trace is not None:
            after, self._after_trace = self._after_trace, None
            self._set(after)

    def capture(self) -> dict[str, Settings]:
        """What changed, as it is and as the step was traced with."""
        if self._step is not None and getattr(self._model, "train_function", None) is not self._step:
            self._step, self._traced = self._model.train_function, self._changed()  # the script had it made anew
        return {"now": self._changed(), "traced": self._traced or []}

    def _look(self) -> list[dict[str, Any]]:
        return [
            {name: value for name, value in vars(layer).items() if type(value) in _PLAIN and _is_setting(name)}
            for layer in self._model._flatten_layers()
        ]

    def _changed(self) -> Settings:
        now = self._look()
        if len(now) != len(self._at_begin):  # a layer was built, or added: they are not to be told apart
            self._at_begin = now
        changed = [
            {name: value for name, value in layer.items() if began.get(name, value) != value}
            for layer, began in zip(now, self._at_begin, strict=True)
        ]
        return changed if any(changed) else []

    def _set(self, settings: Settings) -> None:
        layers = list(self._model._flatten_layers())
        if len(self._at_begin) != len(layers):
            return
        for number, (layer, began) in enumerate(zip(layers, self._at_begin, strict=True)):
            wanted = {**began, **(settings[number] if number < len(settings) else {})}
            for name, value in wanted.items():
                if vars(layer).get(name) != value:
                    setattr(layer, name.removeprefix("_"), value)


@functools.cache
def _is_setting(name: str) -> bool:
    """Public; not what Keras notes for itself."""
    return name == "_trainable" or (not name.startswith("_") and name not in _KERAS_OWN)
