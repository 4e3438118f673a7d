"""A run that ends with an error before training leaves no folder; a checkpoint that could not be loaded is not written; an accuracy on one
batch has no interval.
"""

import os

import pytest
from composed_configs import composed
from hydra import compose
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

from ftlit.errors import UserError
from ftlit.lit.sharding.fsdp2 import Fsdp2Strategy
from ftlit.recipes.build_run import build, check_sharded
from ftlit.recipes.config.hydra_internals import fresh_hydra, initialize_hydra, use_hydra_config
from ftlit.recipes.processes.job_process import remove_empty_folder
from ftlit.recipes.run_result import judged_on


@pytest.mark.parametrize(
    ("strategy", "slim", "what"),
    [
        (Fsdp2Strategy, True, "checkpoint=slim"),
        (ModelParallelStrategy, True, "checkpoint=slim"),
        (ModelParallelStrategy, False, "resume=true"),
    ],
)
def test_slim_checkpoints_are_errors_under_sharded_strategies_and_resuming_under_those_of_lightning(strategy, slim, what):
    with pytest.raises(UserError, match=f"{what} does not work with {strategy.__name__}, .* give trainer.strategy=ddp"):
        check_sharded(strategy(), slim=slim, resumes=not slim)
    check_sharded(strategy(), slim=False, resumes=False)
    check_sharded(Fsdp2Strategy(), slim=False, resumes=True)
    for supported in (DDPStrategy(), SingleDeviceStrategy()):
        check_sharded(supported, slim=True, resumes=True)


@pytest.mark.parametrize(
    ("mode", "beside", "older", "stays"),
    [("RUN", [], False, False), ("RUN", [], True, True), ("RUN", ["config.yaml"], False, True), ("MULTIRUN", [], False, True)],
)
def test_the_folder_of_a_run_is_removed_only_if_this_program_made_it_and_it_is_empty(tmp_path, mode, beside, older, stays):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in beside:
        (folder / name).touch()
    if older:
        os.utime(folder, (0, 0))
    with initialize_hydra():
        cfg = compose("train", [f"hydra.runtime.output_dir={folder}", f"hydra.mode={mode}"], return_hydra_config=True)
    with use_hydra_config(cfg):
        remove_empty_folder()
        assert folder.exists() == stays
        remove_empty_folder()


@pytest.mark.parametrize("limit", ["1.0", "1", "0.5"])
def test_only_accuracies_on_all_images_have_an_interval(limit, tmp_path):
    words = (f"trainer.limit_val_batches={limit}", f"trainer.limit_test_batches={limit}", f"paths.cache={tmp_path}")
    with fresh_hydra():
        images, _ = judged_on(build(composed("data.per_class=3", "trainer=cpu", *words)))
    assert bool(images) == (limit == "1.0")


def test_without_the_best_checkpoint_lightning_adds_none_of_its_own(tmp_path):
    with fresh_hydra():
        run = build(composed("data.per_class=3", "trainer=cpu", "callbacks.best=null", f"paths.cache={tmp_path}"))
    assert run.trainer.checkpoint_callback is None
