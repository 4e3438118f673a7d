"""Overrides: the plan lists options of a scenario or experiment that are replaced."""

from contextlib import nullcontext

import pytest
from hydra import compose
from hydra._internal.config_repository import ConfigRepository
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from ftlit.errors import UserError
from ftlit.recipes.checks.check_values import check_search
from ftlit.recipes.config.hydra_internals import fresh_hydra, initialize_hydra, use_hydra_config
from ftlit.recipes.config.overrides import replaced

AT_ONCE = "schedule=all_at_once replaces schedule=head_then_all of scenario=large_similar, whose values no longer apply"


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (["scenario=large_similar"], []),
        (["scenario=large_similar", "schedule=head_then_all", "head=linear_probe", "backbone=mlp"], []),
        (["schedule=all_at_once"], [f"{AT_ONCE} (schedule.epoch=2, schedule.scale=0.1, schedule.decay=0.8)"]),
        (["scenario=large_similar", "head=linear"], ["head=linear replaces head=linear_probe of scenario=large_similar"]),
        (["schedule=all_at_once", "schedule.scale=0.5", "schedule.decay=0.8"], [f"{AT_ONCE} (schedule.epoch=2)"]),
        (
            ["scenario=large_similar", "lr_scheduler=constant"],
            ["lr_scheduler=constant replaces lr_scheduler=cosine of scenario=large_similar"],
        ),
        (["scenario=small_similar", "experiment=pretrain_glyph"], []),
        (["debug=fast", "cache=auto"], ["cache=auto replaces cache=none of debug=fast"]),
        (["debug=fast", "scenario=small_similar"], ["scenario=small_similar replaces scenario=large_similar of debug=fast"]),
        (["~scenario", "schedule=all_at_once"], []),
    ],
)
def test_the_plan_lists_replaced_options_and_the_values_that_are_lost(overrides, lines):
    with initialize_hydra():
        cfg = compose("train", overrides, return_hydra_config=True)
        with use_hydra_config(cfg):
            assert replaced(cfg) == lines


def test_a_lost_value_within_another_one_is_listed_by_its_full_name(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "small.yaml").write_text("""# @package _global_
defaults: [{override /backbone: small}, {override /lr_scheduler: cosine}]
backbone: {cut: layer3}
""")
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "small.yaml").write_text("{_target_: ftlit.load_backbone, name: resnet18, input_spec: {size: 64}}")
    overrides = ["experiment=small", "backbone=resnet34", "lr_scheduler=constant"]
    with initialize_hydra():
        loader = GlobalHydra.instance().config_loader()
        loader.get_search_path().prepend("test", f"file://{tmp_path}")  # as --config-dir does
        loader.repository = ConfigRepository(loader.get_search_path())
        cfg = compose("train", overrides, return_hydra_config=True)
        with use_hydra_config(cfg):
            replaced_backbone, replaced_scheduler = sorted(line for line in replaced(cfg) if "experiment=small" in line)
    assert replaced_backbone.endswith("no longer apply (backbone.name=resnet18, backbone.input_spec.size=64)")  # the cut does
    assert replaced_scheduler == "lr_scheduler=constant replaces lr_scheduler=cosine of experiment=small"


def test_a_learning_rate_of_the_scenario_survives_another_optimizer():
    with initialize_hydra():
        cfg = compose("train", ["scenario=small_similar", "optimizer=sgd"], return_hydra_config=True)
        with use_hydra_config(cfg):
            (line,) = replaced(cfg)
    assert line.startswith("optimizer=sgd replaces optimizer=adamw of scenario=small_similar") and "optimizer.lr" not in line


@pytest.mark.parametrize(("mode", "given", "is_error"), [("RUN", False, True), ("RUN", True, False), ("MULTIRUN", False, False)])
def test_a_search_from_a_config_file_runs_as_a_single_run_only_on_request(mode, given, is_error):
    overrides = ["hparams_search=drop_layers", *([f"hydra.mode={mode}"] if given else [])]
    expected = pytest.raises(UserError, match="=drop_layers in a config file does not start a sweep") if is_error else nullcontext()
    with fresh_hydra():
        cfg = compose("train", overrides, return_hydra_config=True)
        cfg.hydra.mode = RunMode[mode]
        with use_hydra_config(cfg), expected:
            check_search()
