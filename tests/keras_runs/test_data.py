"""The place in the data: gone back to exactly, each sample once; refused where the data has no such place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.keras_runs.conftest import Laboratory, Result
from tests.keras_runs.test_resume import assert_equal, assert_resumed


def checkpoints(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "store" / "job" / "checkpoints"))


@pytest.fixture(scope="module")
def plain_split(tmp_path_factory: pytest.TempPathFactory, zygote: list[str]) -> Result:
    """Left alone."""
    return Laboratory(tmp_path_factory.mktemp("split"), zygote).plain("split")


@pytest.mark.parametrize("where", ["batch:40", "validation:60"])
def test_chained_shuffles_a_split_and_a_layer_that_draws(
    laboratory: Laboratory, plain_split: Result, where: str
) -> None:
    supervised = laboratory.supervised("split", INTERRUPT=where)
    assert_equal(plain_split, supervised)
    assert_resumed(supervised, 120)
    assert supervised.events("resumed")[0]["guarantee"] in ("exact", "exact, position replayed")


def test_a_dataset_with_an_order_and_generators_of_its_own(laboratory: Laboratory) -> None:
    """What was trained is not loaded again: an item may cost more than a step."""
    plain = laboratory.plain("own_order")
    supervised = laboratory.supervised("own_order", INTERRUPT="batch:120", INSIDE="1")
    assert_equal(plain, supervised)
    assert_resumed(supervised, 320)
    (resumed,) = supervised.events("resumed")
    assert resumed["batch"] > 0
    assert resumed["guarantee"] == "exact"
    for_the_signature = plain.counted("loads1") - 320
    assert for_the_signature <= 2
    left = 320 - resumed["step"]
    assert left <= supervised.counted("loads2") <= left + for_the_signature + 1  # one stands in for what is passed over


@pytest.mark.parametrize("case", ["counted_unseeded", "counted_tfdata_unseeded"])
def test_without_a_seed_every_sample_comes_exactly_once_an_epoch(laboratory: Laboratory, case: str) -> None:
    supervised = laboratory.supervised(case, INTERRUPT="batch:120", INSIDE="1")
    assert supervised.code == 0, supervised.output
    assert_resumed(supervised, 320)
    assert supervised.result["seen"] == [1]
    (resumed,) = supervised.events("resumed")
    assert resumed["batch"] > 0
    assert resumed["guarantee"].startswith("exactly once")


def test_less_data_than_was_trained_on_is_refused_and_nothing_is_lost(
    laboratory: Laboratory, plain_built: Result
) -> None:
    """SIGTERM to the script: saved inside the second epoch, and relaunched. Then there are 3 batches, later 20 again.

    By the way: what computes it differs in the end, and that is said.
    """
    refused = laboratory.supervised(
        "built", INTERRUPT="batch:30", WITH="SIGTERM", SHRINK="96", TF_ENABLE_ONEDNN_OPTS="1"
    )
    assert refused.code == 2, refused.output
    saved = refused.events("committed")[-1]
    assert (saved["epoch"], saved["kind"]) == (1, "batch")
    assert saved["batch"] > 3
    for part in ("3 batches an epoch", "had 20", f"behind batch {saved['batch']}", "--fresh"):
        assert part in refused.output
    assert Path(saved["path"]).name in checkpoints(refused.folder)
    whole = laboratory.supervised("built", "--retry", TF_ENABLE_ONEDNN_OPTS="0")
    assert_equal(plain_built, whole)
    (resumed,) = whole.events("resumed")
    assert (resumed["step"], resumed["batch"]) == (saved["step"], saved["batch"])
    assert resumed["guarantee"] == "state exact, arithmetic differs: TF_ENABLE_ONEDNN_OPTS: 1 → 0 (exact)"
    assert whole.counted() == 80, "no step was lost"


def test_less_data_of_unknown_length_is_refused_too(laboratory: Laboratory) -> None:
    """It is noticed when it is drawn."""
    refused = laboratory.supervised("unknown_length", INTERRUPT="batch:30", WITH="SIGTERM", SHRINK="96")
    assert refused.code == 2, refused.output
    saved = refused.events("committed")[-1]
    assert (saved["epoch"], saved["kind"]) == (1, "batch")
    assert f"the data ends after 3 batches, the checkpoint was made behind {saved['batch']}" in refused.output
    assert "--fresh" in refused.output
    assert Path(saved["path"]).name in checkpoints(refused.folder)
