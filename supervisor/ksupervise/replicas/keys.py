"""Keys as paths: what may be one, and what a place does with it."""

from __future__ import annotations


def parts_of(key: str) -> list[str]:
    """The parts of an object's key, none of which can lead out of the place.

    Raises:
        ValueError: it is no key: absolute, or with an empty part, `.`, `..`, a backslash or a NUL in it.
    """
    parts = key.split("/")
    if not all(parts) or not {".", ".."}.isdisjoint(parts) or "\\" in key or "\0" in key:
        raise ValueError(f"not a key of a replica: {key[:100]!r}")
    return parts


def parts_of_prefix(prefix: str) -> list[str]:
    """The parts of a listing's prefix, which ends in "/"; none for all there is.

    Raises:
        ValueError: it is no prefix.
    """
    if not prefix:
        return []
    if not prefix.endswith("/"):
        raise ValueError(f"not a prefix, it does not end in /: {prefix[:100]!r}")
    return parts_of(prefix[:-1])
