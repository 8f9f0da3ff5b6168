"""A tf.data iterator's own state: TensorFlow serializes it, shuffle buffer included."""

from __future__ import annotations

from typing import Any

STATE_LIMIT = 64 * 1024 * 1024  # bytes

State = Any  # a numpy array of uint8


def serialize(iterator: Any) -> State | None:
    """The state of `iterator`, None if it has none (a python function in it) or it is larger than STATE_LIMIT."""
    import numpy as np

    try:
        import tensorflow as tf

        pieces = tf.raw_ops.SerializeIterator(resource_handle=iterator._iterator_resource, external_state_policy=1)
        text = tf.io.serialize_tensor(pieces).numpy()
    except Exception:
        return None
    return np.frombuffer(text, np.uint8) if len(text) <= STATE_LIMIT else None


def deserialize(iterator: Any, state: State) -> None:
    """Put `state` into an iterator over the same pipeline."""
    import tensorflow as tf

    pieces = tf.io.parse_tensor(state.tobytes(), tf.variant)
    tf.raw_ops.DeserializeIterator(resource_handle=iterator._iterator_resource, serialized=pieces)
