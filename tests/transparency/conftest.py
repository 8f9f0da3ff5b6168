"""Fixtures of the tests that the script cannot tell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.process.helpers import Place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A place with a store of its own; no process of it survives the test."""
    here = Place(tmp_path)
    yield here
    here.close()
