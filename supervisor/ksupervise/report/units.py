"""Durations for people."""

from __future__ import annotations


def span(seconds: float) -> str:
    """A duration for people: `42 s`, `7 m 05 s`, `3 h 20 m`."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} m"


def brief(seconds: float) -> str:
    """A duration that may be a short one: `12 ms`, `0.85 s`, `8 s`, `2 m 05 s`."""
    if seconds < 0.1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.2g} s" if seconds < 10 else span(seconds)
