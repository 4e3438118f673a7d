"""Invariant 11: every option of every config group composes and binds to the signature of its target; and which overlay wins."""

import inspect
from itertools import product
from pkgutil import resolve_name

import pytest
import torch
from composed_configs import EVERY, NEEDED, OPTIONS, SHAPES, composed, option, shape_of
from hydra.utils import get_object
from lightning.pytorch import Trainer
from omegaconf import OmegaConf
from paths import CONF

import ftlit
from ftlit.cli.train import RECIPES
from ftlit.finetuning.lr_schedule import Rates
from ftlit.finetuning.schedule import Schedule
from ftlit.models.backbone import Backbone
from ftlit.models.heads import PooledHead
from ftlit.recipes.checks.validate import REGISTRIES, bind
from ftlit.recipes.config.hydra_internals import fresh_hydra, instantiate
from ftlit.recipes.config.option_names import overlay_groups
from ftlit.zoo.torchvision_nets import available

# Groups that scenarios override.
OVERRIDDEN = ("head", "schedule", "optimizer", "lr_scheduler")
LAYERS = ("stem", "layer1")
# Arguments with which the recipe calls an option of a group.
CALLED_WITH = {
    "backbone": {},
    "data": {"input_spec": ftlit.InputSpec()},
    "head": {"in_features": 4, "num_classes": 3},
    "loss": {"counts": [2, 1, 1]},
    "schedule": {"layers": LAYERS},
    "trainer": {"callbacks": [], "logger": []},
}


@pytest.fixture(autouse=True)
def hydra():
    """Initialize Hydra as the command line does, for one test."""
    with fresh_hydra():
        yield


@pytest.mark.parametrize(("group", "name"), SHAPES)
def test_every_option_of_every_group_composes_and_binds(group, name):
    cfg = option(group, name)
    bind(cfg)
    OmegaConf.to_container(cfg, resolve=True)  # every ${...} resolves
    assert cfg.recipe in RECIPES


@pytest.mark.parametrize(("group", "name"), [pair for pair in SHAPES if pair[0] in CALLED_WITH])
def test_every_option_can_be_called_as_the_recipe_calls_it(group, name):
    node = option(group, name)[group]
    arguments = {str(key): node[key] for key in node if not str(key).startswith("_")}
    assert not set(arguments) & set(CALLED_WITH[group])
    inspect.signature(get_object(node["_target_"])).bind(**arguments, **CALLED_WITH[group])


def test_a_backbone_of_torchvision_is_the_network_that_its_option_names():
    same = [name for name in OPTIONS["backbone"] if shape_of("backbone", name) == shape_of("backbone", "alexnet")]
    assert len(same) > 70 and set(same) <= set(available())
    assert option("backbone", "resnet18").backbone == {**option("backbone", "alexnet").backbone, "name": "resnet18"}


@pytest.mark.parametrize("name", OPTIONS["head"])
def test_a_head_maps_features_to_logits(name):
    head = instantiate(option("head", name).head, in_features=4, num_classes=3)
    features = torch.randn(2, 4, 3, 3) if getattr(head, "takes_map", False) else torch.randn(2, 4)
    assert head(features).shape == (2, 3)


@pytest.mark.parametrize("name", OPTIONS["loss"])
def test_a_loss_maps_logits_and_targets_to_a_number(name):
    loss = instantiate(option("loss", name).loss, counts=[2, 1, 1])
    assert loss(torch.randn(4, 3), torch.eye(3)[[0, 0, 1, 2]]).ndim == 0


@pytest.mark.parametrize("name", OPTIONS["schedule"])
def test_a_schedule_option_builds_a_schedule_from_layers(name):
    made = instantiate(option("schedule", name).schedule, layers=LAYERS)
    assert isinstance(made, Schedule) and made.stages[0].epoch == 0


@pytest.mark.parametrize(("optimizer", "scheduler"), list(product(OPTIONS["optimizer"], OPTIONS["lr_scheduler"])))
def test_an_optimizer_is_built_from_groups_and_a_scheduler_from_the_optimizer(optimizer, scheduler):
    of_optimizer, of_scheduler = option("optimizer", optimizer).optimizer, option("lr_scheduler", scheduler).lr_scheduler
    made = instantiate(of_optimizer)([{"params": [torch.nn.Parameter(torch.ones(2))], "name": "a"}])
    assert isinstance(made, torch.optim.Optimizer) and made.param_groups[0]["lr"] == of_optimizer.lr
    rates = instantiate(of_scheduler)(made, steps=20, epochs=2)
    assert isinstance(rates, Rates) and rates.config["interval"] == of_scheduler.unit


@pytest.mark.parametrize("name", ["auto", "cpu", "ddp_cpu"])
def test_a_trainer_that_needs_no_gpu_can_be_built(name):
    trainer = instantiate(
        composed(f"trainer={name}", "trainer.accelerator=cpu", "trainer.precision=32-true").trainer, callbacks=[], logger=[]
    )
    assert isinstance(trainer, Trainer) and trainer.max_epochs == composed(f"trainer={name}").trainer.max_epochs


def test_the_default_backbone_needs_no_download():
    assert isinstance(instantiate(composed("backbone.weights=null").backbone), Backbone)


def test_train_yaml_lists_exactly_the_config_groups():
    entries = OmegaConf.load(CONF / "train.yaml").defaults
    named = {str(key) for entry in entries if OmegaConf.is_dict(entry) for key in entry if not str(key).startswith("override ")}
    assert named == set(OPTIONS)


def test_no_option_has_a_name_that_yaml_reads_as_a_boolean_or_null():
    assert [pair for pair in EVERY if pair[1].lower() in ("on", "off", "yes", "no", "true", "false", "null", "y", "n")] == []


@pytest.mark.parametrize("group", REGISTRIES)
def test_the_options_of_a_group_are_exactly_its_registered_parts(group):
    from ftlit.lit.datamodules import glyph_source, image_sources, text_sources  # noqa: F401  # they register

    options = [OmegaConf.load(path).get("_target_") for path in (CONF / group).glob("*.yaml")]
    targets = {resolve_name(target) for target in options if target}
    assert targets <= set(REGISTRIES[group].values()) <= targets | {PooledHead}  # built from a fitted probe, not from a config


@pytest.mark.parametrize(("scenario", "place"), list(product(OPTIONS["scenario"], range(max(len(OPTIONS[group]) for group in OVERRIDDEN)))))
def test_options_that_replace_those_of_a_scenario_compose_and_bind(scenario, place):
    chosen = {group: OPTIONS[group][place % len(OPTIONS[group])] for group in OVERRIDDEN}
    values = [value for pair in chosen.items() for value in NEEDED.get(pair, [])]
    cfg = composed(f"scenario={scenario}", *(f"{group}={name}" for group, name in chosen.items()), *values)
    bind(cfg)
    for group, name in chosen.items():
        assert cfg[group]["_target_"] == option(group, name)[group]["_target_"]


def test_the_command_line_beats_a_scenario_in_values_and_in_choices():
    scenario = composed("scenario=small_similar")
    cfg = composed("optimizer.lr=0.5", "head=mlp", "schedule=top_down", "scenario=small_similar", "trainer.max_epochs=3")
    assert scenario.optimizer.lr != 0.5 and "head_only" in scenario.schedule["_target_"] and scenario.trainer.max_epochs != 3
    assert (cfg.optimizer.lr, cfg.trainer.max_epochs) == (0.5, 3)
    assert (cfg.head["_target_"], cfg.schedule["_target_"]) == ("ftlit.models.heads.MLPHead", "ftlit.finetuning.presets.top_down")


@pytest.mark.parametrize("scenario", OPTIONS["scenario"])
def test_an_experiment_beats_every_scenario_and_the_command_line_beats_both(scenario):
    cfg = composed(f"scenario={scenario}", "experiment=pretrain_glyph")
    assert cfg.schedule == {
        "_target_": "ftlit.finetuning.presets.all_at_once",
        "scale": 1.0,
        "decay": 1.0,
        "freeze_embeddings": False,
        "freeze_layers": "",
    }
    alone = OmegaConf.load(CONF / "experiment/pretrain_glyph.yaml")
    assert {**cfg.optimizer, **alone.optimizer} == cfg.optimizer and {**cfg.trainer, **alone.trainer} == cfg.trainer
    assert cfg.recipe == "pretrain"
    assert composed(f"scenario={scenario}", "experiment=pretrain_glyph", "trainer.max_epochs=1").trainer.max_epochs == 1
    cfg = composed(f"scenario={scenario}", "experiment=pretrain_glyph", "schedule=head_only")
    assert cfg.schedule == composed("schedule=head_only").schedule


@pytest.mark.parametrize("overlay", [[], ["experiment=pretrain_glyph"], *([f"scenario={name}"] for name in OPTIONS["scenario"])])
def test_debug_beats_every_other_overlay_and_changes_nothing_else(overlay):
    cfg, fast = composed(*overlay), composed(*overlay, "debug=fast")
    assert fast.trainer.max_epochs == 3  # each stage of a scenario begins
    assert {fast.trainer[f"limit_{split}_batches"] for split in ("train", "val", "test")} == {1}
    assert fast.cache == composed("cache=none").cache  # extraction would read all images, not one batch
    assert not fast.report  # a report of one batch shows nothing
    rest = [{key: value for key, value in c.items() if key not in ("trainer", "cache", "report")} for c in (fast, cfg)]
    assert rest[0] == rest[1]


def test_a_scenario_beats_the_defaults_of_the_groups():
    cfg, plain = composed("scenario=small_similar"), composed("~scenario")
    assert plain.optimizer.lr == OmegaConf.load(CONF / "optimizer" / "adamw.yaml").lr != cfg.optimizer.lr


def test_the_groups_that_set_values_of_others_are_those_whose_files_have_the_header():
    with_header = {path.parent.name for path in CONF.glob("*/*.yaml") if "# @package _global_" in path.read_text()}
    assert with_header - {"hydra"} == set(overlay_groups())
