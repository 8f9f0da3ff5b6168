"""Fixtures of the store's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ksupervise.store import CheckpointStore, RunLayout

from .helpers import RUN

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A run's directory with everything in it."""
    directory = tmp_path / "store" / "run"
    RunLayout(directory).create()
    return directory


@pytest.fixture
def store(root: Path) -> CheckpointStore:
    """An empty local store."""
    return CheckpointStore(root, RUN)
