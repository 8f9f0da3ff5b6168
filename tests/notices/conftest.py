"""Emulators, ears for what is told, and proxies that nobody may use."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from .emulator import Aws, Azure, Gcp
from .helpers import Heard


@pytest.fixture(autouse=True)
def proxies_that_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks a proxy fails here."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def heard() -> Iterator[Heard]:
    heard = Heard()
    yield heard
    heard.close()


@pytest.fixture
def aws() -> Iterator[Aws]:
    emulator = Aws()
    yield emulator
    emulator.close()


@pytest.fixture
def gcp() -> Iterator[Gcp]:
    emulator = Gcp()
    yield emulator
    emulator.close()


@pytest.fixture
def azure() -> Iterator[Azure]:
    emulator = Azure()
    yield emulator
    emulator.close()
