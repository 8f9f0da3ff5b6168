"""The counts of a pipeline's shuffles: to read them changes nothing, and put back they give the same next epoch."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from tests.keras_runs.conftest import LIMIT, ROOT

PIPELINES = (
    "single",
    "small_buffer",
    "batched_and_prefetched",
    "chained",
    "chained_through_interleave",
    "repeated_three_times",
    "repeated_endlessly",
    "repeated_then_shuffled",
    "concatenated",
    "concatenated_with_itself",
    "zipped",
    "zipped_with_itself",
    "sampled",
    "cached_before",
    "cached_after",
    "split",
    "split_once",
    "same_seeds_twice",
)


@pytest.fixture(scope="module")
def tried_out() -> dict[str, dict[str, Any]]:
    """Pipeline → what came of it."""
    command = [sys.executable, "-m", "tests.keras_runs.shuffles_script"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_every_pipeline_is_tried_out(tried_out: dict[str, dict[str, Any]]) -> None:
    assert tuple(tried_out) == PIPELINES


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_to_read_the_counts_changes_nothing(tried_out: dict[str, dict[str, Any]], pipeline: str) -> None:
    """Between two epochs, and while somebody iterates."""
    assert tried_out[pipeline]["varies"], "each epoch has an order of its own, else this shows nothing"
    assert tried_out[pipeline]["transparent"]
    assert tried_out[pipeline]["failures"] == ["", ""]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_put_back_into_a_new_pipeline_they_give_the_same_next_epochs(
    tried_out: dict[str, dict[str, Any]], pipeline: str
) -> None:
    assert tried_out[pipeline]["told"]
    assert tried_out[pipeline]["resumed"]
