"""What the bits depend on besides the state, and how a difference is said."""

from __future__ import annotations

import os
import platform
import sys

import pytest

from ksupervise.child import fingerprint


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ({}, {}, ""),
        ({"CPU": "a", "keras": "3.13"}, {"keras": "3.13", "CPU": "a"}, ""),
        ({"GPU 0": "Tesla T4"}, {"GPU 0": "NVIDIA L4"}, "GPU 0: Tesla T4 → NVIDIA L4"),
        ({"GPU 0": "Tesla T4"}, {}, "GPU 0: Tesla T4 → none"),
        ({}, {"XLA_FLAGS": "--x"}, "XLA_FLAGS: none → --x"),
        (
            {"CPU": "a", "GPU 0": "T4", "keras": "3.13"},
            {"CPU": "a", "keras": "3.15", "driver": "550"},
            "GPU 0: T4 → none, keras: 3.13 → 3.15, driver: none → 550",
        ),
    ],
)
def test_what_differs_is_named(then: dict[str, str], now: dict[str, str], said: str) -> None:
    assert fingerprint.changes(then, now) == said


@pytest.mark.skipif("tensorflow" in sys.modules, reason="another test has imported it")
def test_it_is_taken_without_a_framework_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is imported for it that the script has not imported, and nothing that fails stops it."""
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # an import of it fails
    taken = fingerprint.take()
    assert taken["CPU"]
    processors = len(os.sched_getaffinity(0)) if platform.system() == "Linux" else os.cpu_count()
    assert taken["threads"] == f"{processors} processors"
    assert "keras" not in taken


@pytest.mark.parametrize("name", ["TF_ENABLE_ONEDNN_OPTS", "TF_DETERMINISTIC_OPS", "XLA_FLAGS", "NVIDIA_TF32_OVERRIDE"])
def test_the_switches_that_choose_kernels_are_in_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setenv(name, "0")
    then = fingerprint.take()
    monkeypatch.setenv(name, "1")
    assert fingerprint.changes(then, fingerprint.take()) == f"{name}: 0 → 1"
    monkeypatch.delenv(name)
    assert fingerprint.changes(then, fingerprint.take()) == f"{name}: 0 → none"


def test_it_stays_the_same_within_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert fingerprint.changes(fingerprint.take(), fingerprint.take()) == ""
