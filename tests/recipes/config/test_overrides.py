"""The command line completed for Hydra, and the lines of the plan on options of a scenario or an experiment that it replaces."""

from contextlib import nullcontext

import pytest
from hydra import compose
from hydra.types import RunMode

from ftlit.errors import UserError
from ftlit.recipes.config.check_values import check_search
from ftlit.recipes.config.hydra_internals import fresh_hydra, initialize_hydra, use_hydra_config
from ftlit.recipes.config.overrides import replaced, set_search_mode

AT_ONCE = "schedule=all_at_once takes the place of scenario=large_similar's schedule=head_then_all and of its values"


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["scenario=large_similar"], []),
        (["scenario=large_similar", "schedule=head_then_all", "head=linear_probe", "backbone=mlp"], []),
        (["schedule=all_at_once"], [f"{AT_ONCE} (schedule.epoch=2, schedule.scale=0.1, schedule.decay=0.8)"]),
        (["scenario=large_similar", "head=linear"], ["head=linear takes the place of scenario=large_similar's head=linear_probe"]),
        (["schedule=all_at_once", "schedule.scale=0.5", "schedule.decay=0.8"], [f"{AT_ONCE} (schedule.epoch=2)"]),
        (["scenario=small_similar", "experiment=pretrain_glyph"], []),
        (["~scenario", "schedule=all_at_once"], []),
    ],
)
def test_an_option_that_replaces_one_of_an_overlay_is_a_line_with_the_values_that_are_lost(words, lines):
    with initialize_hydra():
        cfg = compose("train", words, return_hydra_config=True)
        with use_hydra_config(cfg):
            assert replaced(cfg) == lines


@pytest.mark.parametrize(
    ("words", "added"),
    [
        (["hparams_search=optuna"], True),
        (["seed=1", "+hparams_search=own"], True),
        (["hparams_search=null"], False),
        (["hparams_search=optuna", "hparams_search=null"], False),
        (["-m", "hparams_search=optuna"], False),
        (["hparams_search=optuna", "hydra.mode=RUN"], False),
        (["seed=1,2"], False),
    ],
)
def test_a_search_is_a_sweep_unless_the_command_line_gives_the_mode(words, added):
    assert set_search_mode(words) == [*words, *(["hydra.mode=MULTIRUN"] if added else [])]


def test_a_rate_that_the_scenario_sets_is_not_lost_with_its_optimizer():
    with initialize_hydra():
        cfg = compose("train", ["scenario=small_similar", "optimizer=sgd"], return_hydra_config=True)
        with use_hydra_config(cfg):
            (line,) = replaced(cfg)
    assert line.startswith("optimizer=sgd takes the place of scenario=small_similar's optimizer=adamw") and "optimizer.lr" not in line


@pytest.mark.parametrize(("mode", "given", "refused"), [("RUN", False, True), ("RUN", True, False), ("MULTIRUN", False, False)])
def test_a_search_that_an_experiment_chooses_does_not_silently_become_a_single_run(mode, given, refused):
    words = ["hparams_search=drop_layers", *([f"hydra.mode={mode}"] if given else [])]
    expected = pytest.raises(UserError, match="hparams_search=drop_layers is chosen in a config file") if refused else nullcontext()
    with fresh_hydra():
        cfg = compose("train", words, return_hydra_config=True)
        cfg.hydra.mode = RunMode[mode]
        with use_hydra_config(cfg), expected:
            check_search()
