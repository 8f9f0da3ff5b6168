"""The random number generators that a script shares with Keras: python's, numpy's, TensorFlow's.

And where an unseeded script's `default_rng()` gets its entropy from: what it draws after a fit depends on it.
"""

from __future__ import annotations

import random
import sys
from typing import Any

from ksupervise.child import pin


def capture() -> dict[str, Any]:
    """The generators' states, plain data and arrays."""
    import numpy as np

    states: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state(), "entropy": pin.capture()}
    context = _tensorflow_context()
    if context is not None:
        generator = getattr(context, "_rng", None)
        states["tensorflow"] = [context._seed, generator.getstate() if generator is not None else None]
    return states


def put_back(states: dict[str, Any]) -> None:
    """Set the generators to captured states."""
    import numpy as np

    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    pin.put_back(states.get("entropy"))
    context = _tensorflow_context()
    if context is not None and states.get("tensorflow"):
        seed, generator = states["tensorflow"]
        if seed == context._seed and generator is not None and context._rng is not None:
            context._rng.setstate(generator)


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Nobody drew from python's or numpy's global generator between two captures."""
    ones, others = one["numpy"], other["numpy"]
    numpy_equal = ones[2:] == others[2:] and bool((ones[1] == others[1]).all())
    return one["python"] == other["python"] and numpy_equal


def seeded() -> bool:
    """The script set TensorFlow's global seed: every random operation is a function of it."""
    context = _tensorflow_context()
    return context is not None and context._seed is not None


def _tensorflow_context() -> Any:
    """TensorFlow's eager context (private: its python generator seeds each random operation)."""
    module = sys.modules.get("tensorflow.python.eager.context")
    return module.context() if module is not None and hasattr(module, "context") else None
