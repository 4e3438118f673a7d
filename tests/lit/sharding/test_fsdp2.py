"""Invariants 5 and 6 for sharded weights: two processes with FSDP2 equal one, and resume to the bit, also where a stage freezes again."""

import os
import re
import sys

import pytest
import torch
import warm
from paths import SUPPORT

from ftlit import load
from ftlit.errors import UserError
from ftlit.lit.sharding.consolidate import consolidate
from ftlit.run_folder import is_sharded_checkpoint

pytestmark = [pytest.mark.e2e, pytest.mark.ddp]

EXACT = ["epoch"]  # in float64
SHARED = "shared position bias"  # in BEiT, of all blocks
SLOW = ["step", "metric", "lora", "accumulation and clipping"]
ENDS = {"epoch": 2, "step": 2, "metric": 2, "lora": 1, "accumulation and clipping": 2, "features": 2, SHARED: 2}


def launch(folder, devices, *cases):
    """Run tests/support/fsdp2_program.py; return its folder, and the notes of each process, by case."""
    command = [sys.executable, str(SUPPORT / "fsdp2_program.py"), str(folder), *cases]
    done = warm.run(command, env={**os.environ, "DEVICES": str(devices)}, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    return {case: [torch.load(folder / f"{case}.{rank}", weights_only=True) for rank in range(devices)] for case in cases}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(folder):
    return launch(folder, 2, *EXACT, SHARED, "features", "best", "failures", "resume")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return launch(tmp_path_factory.mktemp("one"), 1, *EXACT, SHARED, "features")


@pytest.fixture(scope="module")
def two_slowly(tmp_path_factory):
    return launch(tmp_path_factory.mktemp("two"), 2, *SLOW, "batch norm", "batch norm, ddp", "memory", "best", "little memory")


@pytest.fixture(scope="module")
def one_slowly(tmp_path_factory):
    return launch(tmp_path_factory.mktemp("one"), 1, *SLOW)


def distance(a, b):
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def largest(weights):
    return max(float(value.abs().max()) for value in weights.values())


@pytest.mark.parametrize("case", [*EXACT, SHARED])
def test_two_processes_equal_one_in_20_steps_of_sgd_through_all_stages(two, one, case):
    check_equal(case, two, one)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_the_same_of_stages_by_step_and_metric_lora_accumulation_and_clipping(two_slowly, one_slowly, case):
    check_equal(case, two_slowly, one_slowly)


def check_equal(case, two, one):
    (first, second), (alone,) = two[case], one[case]
    assert first["stages"] == second["stages"] == alone["stages"] and len(alone["stages"]) == 20
    assert set(alone["stages"]) == set(range(ENDS[case] + 1))
    for own, other, whole in zip(first["weights"], second["weights"], alone["weights"], strict=True):
        assert distance(own, other) == 0 and distance(own, whole) < 1e-10 * largest(whole)
    assert distance(alone["weights"][0], alone["weights"][-1]) > 1e-3
    assert first["logged"] == pytest.approx(alone["logged"], rel=1e-6)


@pytest.mark.slow
def test_live_batch_norms_are_those_of_ddp(two_slowly):
    """Each process has statistics of its own batches; those of the first one are validated and saved."""
    (first, second), (ddp, _) = two_slowly["batch norm"], two_slowly["batch norm, ddp"]
    for own, other, whole in zip(first["weights"], second["weights"], ddp["weights"], strict=True):
        assert distance(own, other) == 0 and distance(own, whole) < 1e-10 * largest(whole)


def test_features_are_extracted_and_the_head_is_fitted_before_sharding(two, one):
    """In float32; before training, two processes together pass each image through the lowest layer once."""
    (first, second), (alone,) = two["features"], one["features"]
    assert first["reads"] == alone["reads"] == [True, True, False]
    for own, whole in zip(first["weights"], alone["weights"], strict=True):
        assert distance(own, whole) < 1e-5 * largest(whole)
    assert first["extracted"] + second["extracted"] == 32 + 12  # train and val


def test_resuming_gives_the_bits_of_weights_and_optimizer_state(two):
    for notes in two["resume"]:
        whole = notes["all"]
        assert len(whole) > 12 and {"6", "14"} == notes.keys() - {"all"}
        assert all(distance(notes[step], whole) == 0 for step in notes)


def test_the_best_checkpoint_is_a_plain_file_and_the_last_one_a_folder_of_shards(two, folder):
    first, second = two["best"]
    assert (folder / "best.ckpt").is_file() and is_sharded_checkpoint(folder / "end.ckpt")
    assert first["metrics"] == second["metrics"] and len(first["metrics"]) == 2
    assert distance(first["weights"], first["after"]) == 0  # the last checkpoint was loaded again, after the best


def test_an_error_of_one_process_is_that_of_both(two):
    first, second = two["failures"]
    assert first == second and first["write"] == "WriteError: process 1: cannot write shard-00001-of-00002.ckpt: the disk is full"
    assert re.match(r"UserError: process 1: .*damaged.ckpt/shard-00001-of-00002.ckpt is damaged", first["read"])


@pytest.mark.slow
def test_a_best_checkpoint_that_does_not_fit_into_memory_is_a_folder_of_the_same_weights(two_slowly):
    plain, sharded = two_slowly["best"][0], two_slowly["little memory"][0]
    assert plain["metrics"] == sharded["metrics"] and [plain["is file"], sharded["is file"]] == [True, False]
    assert distance(plain["after"], sharded["after"]) == 0


@pytest.mark.slow
def test_another_number_of_processes_reads_the_same_weights(two, folder):
    (alone,) = launch(folder, 1, "reread")["reread"]
    assert alone == pytest.approx(two["best"][0]["metrics"]["end.ckpt"], rel=1e-5)


def test_a_consolidated_checkpoint_holds_the_weights_at_the_end(two, folder):
    with pytest.raises(UserError, match=r"end.ckpt is a folder of shards.* run ftlit consolidate .*end.ckpt"):
        load(folder / "end.ckpt")
    written = consolidate(folder / "end.ckpt")
    content = torch.load(written, weights_only=True)
    assert written == folder / "end-whole.ckpt" and "optimizer_states" not in content
    assert distance(content["state_dict"], two["best"][0]["after"]) == 0


@pytest.mark.slow
def test_memory_is_as_predicted(two_slowly):
    """The first process holds the largest shards: 5 and 3 rows do not divide by 2."""
    first, second = two_slowly["memory"]
    assert first["found"] == first["predicted"] and all(a < b for a, b in zip(second["found"], first["found"], strict=True))
