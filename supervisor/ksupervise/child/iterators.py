"""A tf.data iterator's own state: TensorFlow serializes it, shuffle buffer included."""

from __future__ import annotations

from typing import Any

STATE_LIMIT = 64 * 1024 * 1024  # bytes

# Lengths of the pieces (int64), and the pieces one behind the other (uint8).
State = list[Any]


def serialize(iterator: Any) -> State | None:
    """The state of `iterator`, None if it has none (a python function in it) or it is larger than STATE_LIMIT."""
    import numpy as np

    try:
        import tensorflow as tf

        pieces = tf.raw_ops.SerializeIterator(resource_handle=iterator._iterator_resource, external_state_policy=1)
        texts = [tf.io.serialize_tensor(piece).numpy() for piece in pieces]
    except Exception:
        return None
    if sum(map(len, texts)) > STATE_LIMIT:
        return None
    lengths = np.array([len(text) for text in texts], np.int64)
    return [lengths, np.frombuffer(b"".join(texts), np.uint8)]


def deserialize(iterator: Any, state: State) -> None:
    """Put `state` into an iterator over the same pipeline."""
    import tensorflow as tf

    lengths, content = state
    text, pieces, offset = content.tobytes(), [], 0
    for length in lengths.tolist():
        pieces.append(tf.io.parse_tensor(text[offset : offset + length], tf.variant))
        offset += length
    tf.raw_ops.DeserializeIterator(resource_handle=iterator._iterator_resource, serialized=tf.stack(pieces))
