"""invariant 11: every option of every group composes and binds to its target's signature; and an error of the user is one line."""

import inspect
import subprocess
import sys
from functools import cache
from itertools import product
from pkgutil import resolve_name

import pytest
import torch
from hydra import compose
from hydra.errors import InstantiationException
from hydra.utils import get_object
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf
from paths import CONF

import ftlit
from ftlit.cli.train import RECIPES
from ftlit.errors import UserError
from ftlit.finetuning.lr_schedule import Rates
from ftlit.finetuning.schedule import Schedule
from ftlit.models.backbone import Backbone
from ftlit.models.heads import PooledHead
from ftlit.patterns import first_match
from ftlit.recipes.config import check_values
from ftlit.recipes.config.error_messages import as_user_error
from ftlit.recipes.config.hydra_internals import fresh_hydra, instantiate
from ftlit.recipes.config.validate import REGISTRIES, bind
from ftlit.recipes.finetune import build

OPTIONS: dict[str, list[str]] = {}
for path in sorted(CONF.glob("*/*.yaml")):
    if not path.name.startswith("_"):
        OPTIONS.setdefault(path.parent.name, []).append(path.stem)
EVERY = [(group, option) for group, options in OPTIONS.items() for option in options]
# values that an option does not have, and that the user must give
NEEDED = {
    ("backbone", "timm"): ["backbone.name=resnet10t"],
    ("data", "folder"): ["data.root=photos"],
    ("data", "unlabelled"): ["data.root=photos"],
    ("data", "csv"): ["data.csv=photos.csv"],
    ("data", "text_csv"): ["data.csv=texts.csv"],
    ("backbone", "bert"): ["backbone.name=model"],
    ("data", "torchvision"): ["data.name=CIFAR10"],
    ("lr_scheduler", "any"): ["lr_scheduler.curve.scheduler._target_=torch.optim.lr_scheduler.ConstantLR"],
    ("schedule", "explicit"): ["schedule.stages=[{train: [head]}, {train: ['*'], epoch: 2}]"],
}
# the groups that scenarios override
PICKED = ("head", "schedule", "optimizer", "lr_scheduler")
# what the recipe calls an option of a group with: the plug-in contract
LAYERS = ("stem", "layer1")
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
    """Hydra as the command line has it; forgotten after each test."""
    with fresh_hydra():
        yield


@cache
def composed(*overrides: str) -> DictConfig:
    return compose("train", overrides=["paths.run=somewhere", *overrides])


def option(group: str, name: str) -> DictConfig:
    return composed(f"{group}={name}", *NEEDED.get((group, name), []))


def error_text(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> str:
    """The error that the user reads after `train.py <overrides>`."""
    monkeypatch.setattr(sys, "argv", ["train.py", *overrides])
    with pytest.raises(Exception) as caught:
        build(composed(*overrides))
    error = as_user_error(caught.value)
    assert error is not None and "\n" not in str(error)
    return str(error)


@pytest.mark.parametrize(("group", "name"), EVERY)
def test_every_option_of_every_group_composes_and_binds(group, name):
    cfg = option(group, name)
    bind(cfg)
    OmegaConf.to_container(cfg, resolve=True)  # every ${...} leads somewhere
    assert cfg.recipe in RECIPES


@pytest.mark.parametrize(("group", "name"), [pair for pair in EVERY if pair[0] in CALLED_WITH])
def test_every_option_can_be_called_as_the_recipe_calls_it(group, name):
    node = option(group, name)[group]
    arguments = {str(key): node[key] for key in node if not str(key).startswith("_")}
    assert not set(arguments) & set(CALLED_WITH[group])
    inspect.signature(get_object(node["_target_"])).bind(**arguments, **CALLED_WITH[group])


@pytest.mark.parametrize("name", OPTIONS["head"])
def test_a_head_makes_logits_of_features(name):
    head = instantiate(option("head", name).head, in_features=4, num_classes=3)
    features = torch.randn(2, 4, 3, 3) if getattr(head, "takes_map", False) else torch.randn(2, 4)
    assert head(features).shape == (2, 3)


@pytest.mark.parametrize("name", OPTIONS["loss"])
def test_a_loss_makes_a_number_of_logits_and_targets(name):
    loss = instantiate(option("loss", name).loss, counts=[2, 1, 1])
    assert loss(torch.randn(4, 3), torch.eye(3)[[0, 0, 1, 2]]).ndim == 0


@pytest.mark.parametrize("name", OPTIONS["schedule"])
def test_a_schedule_is_made_of_layers(name):
    made = instantiate(option("schedule", name).schedule, layers=LAYERS)
    assert isinstance(made, Schedule) and made.stages[0].epoch == 0


@pytest.mark.parametrize(("optimizer", "scheduler"), list(product(OPTIONS["optimizer"], OPTIONS["lr_scheduler"])))
def test_an_optimizer_is_made_of_groups_and_a_scheduler_of_the_optimizer(optimizer, scheduler):
    cfg = composed(f"optimizer={optimizer}", f"lr_scheduler={scheduler}", *NEEDED.get(("lr_scheduler", scheduler), []))
    made = instantiate(cfg.optimizer)([{"params": [torch.nn.Parameter(torch.ones(2))], "name": "a"}])
    assert isinstance(made, torch.optim.Optimizer) and made.param_groups[0]["lr"] == cfg.optimizer.lr
    rates = instantiate(cfg.lr_scheduler)(made, steps=20, epochs=2)
    assert isinstance(rates, Rates) and rates.config["interval"] == cfg.lr_scheduler.unit


@pytest.mark.parametrize("name", ["auto", "cpu", "ddp_cpu"])
def test_a_trainer_that_needs_no_gpu_can_be_built(name):
    trainer = instantiate(composed(f"trainer={name}", "trainer.accelerator=cpu").trainer, callbacks=[], logger=[])
    assert isinstance(trainer, Trainer) and trainer.max_epochs == composed(f"trainer={name}").trainer.max_epochs


def test_the_default_backbone_is_one_without_a_download():
    assert isinstance(instantiate(composed("backbone.weights=null").backbone), Backbone)


@pytest.mark.parametrize(("scenario", "place"), list(product(OPTIONS["scenario"], range(max(len(OPTIONS[group]) for group in PICKED)))))
def test_a_scenario_leaves_nothing_in_the_way_of_options_picked_instead_of_its_own(scenario, place):
    picked = {group: OPTIONS[group][place % len(OPTIONS[group])] for group in PICKED}
    values = [value for pair in picked.items() for value in NEEDED.get(pair, [])]
    cfg = composed(f"scenario={scenario}", *(f"{group}={name}" for group, name in picked.items()), *values)
    bind(cfg)
    for group, name in picked.items():
        assert cfg[group]["_target_"] == option(group, name)[group]["_target_"]


def test_every_group_is_one_that_train_yaml_knows_and_the_other_way_round():
    entries = OmegaConf.load(CONF / "train.yaml").defaults
    named = {str(key) for entry in entries if OmegaConf.is_dict(entry) for key in entry if not str(key).startswith("override ")}
    assert named == set(OPTIONS)


def test_no_option_is_called_as_yaml_calls_true_or_false():
    assert [pair for pair in EVERY if pair[1].lower() in ("on", "off", "yes", "no", "true", "false", "null", "y", "n")] == []


@pytest.mark.parametrize(("group", "name"), NEEDED)
def test_a_value_that_only_the_user_knows_is_asked_for(group, name, monkeypatch):
    wanted = NEEDED[group, name][0].partition("=")[0]
    assert error_text(monkeypatch, f"{group}={name}") == f"{wanted} has no value: give {wanted}=..."


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["trainer.max_epoch=3"], "no option 'trainer.max_epoch': did you mean 'trainer.max_epochs'?"),
        (["+trainer.max_epoch=3"], "no option 'trainer.max_epoch': did you mean 'trainer.max_epochs'?"),
        (["backbone=resnet51"], "no option of backbone 'resnet51': did you mean 'resnet50'?"),
        (["head=mlp", "head.hiden=[5]"], "no option 'head.hiden': did you mean 'head.hidden'?"),
        (["head=mlp", "+head.hiden=[5]"], "no option 'head.hiden': did you mean 'head.hidden'?"),
        (["backbones=resnet50"], "no option 'backbones': did you mean 'backbone'?"),
        (["scenaro=small_similar"], "no option 'scenaro': did you mean 'scenario'?"),
        (["sede=1"], "no option 'sede': did you mean 'seed'?"),
        (["lr=3e-4"], "no option 'lr': did you mean optimizer.lr?"),
        (["scenario=small_simlar"], "no option of scenario 'small_simlar': did you mean 'small_similar'?"),
        (["optimizer.lr=high"], "optimizer.lr='high': give a number"),
        (["head=mlp", "head.hidden=5"], "head.hidden=5: give a list, [a, b]"),
        (["head=mlp", "head.dropout=true"], "head.dropout=True: give a number"),
        (["trainer.max_epochs=2.5"], "trainer.max_epochs=2.5: give a whole number"),
        (["seed=first"], "seed='first': give a whole number"),
        (["scenario=null"], "a group takes the name of one of its options"),
        (["head=3"], "a group takes the name of one of its options"),
        (["backbone.name=3"], "backbone.name=3: give a word"),
        (["head=solved"], "head=solved is now named head=linear_probe: give head=linear_probe"),
        (["probe.strengths=[0.1]"], "probe.strengths is now named probe.l2: give probe.l2=..."),
        (["+probe.strengths=[0.1]"], "probe.strengths is now named probe.l2: give probe.l2=..."),
        (["seed=[0"], "cannot read 'seed=[0': give group=option or name=value"),
    ],
)
def test_a_wrong_name_or_type_is_one_line_with_what_would_do(overrides, line, monkeypatch):
    assert error_text(monkeypatch, *overrides).startswith(line)


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("head._target_=no_such.Module", "head._target_=no_such.Module cannot be imported: No module named 'no_such'"),
        ("head._target_=ftlit.head.MLPHead", "head._target_=ftlit.head.MLPHead cannot be imported: it is now ftlit.models.heads.MLPHead"),
        ("schedule._target_=ftlit.finetuning.presets.top_dwn", "did you mean 'ftlit.finetuning.presets.top_down'? There are: ftlit."),
        ("head._target_=torch.nn.NoSuch", "no name in torch.nn 'NoSuch'"),
        ("optimizer.lr=-1", "optimizer.lr=-1: Invalid learning rate: -1"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay=-1: Invalid weight_decay"),
        ("checkpoint=slm", "no checkpoint 'slm': did you mean 'slim'?"),
        ("report=yep", "no report 'yep': there are: True, False"),
        ("resume=1", "no resume 1: there are: True, False"),
        ("sweep.resume=trie", "no sweep.resume 'trie': did you mean 'True'?"),
        ("seed=-1", "seed=-1: give a whole number from 0 to 4294967295"),
        ("callbacks.best.monitor=val/acc", "no metric for callbacks.best.monitor, 'val/acc': did you mean 'val/accuracy'?"),
        ("trainer.limit_val_batches=0", "give 1 or more"),
        ("trainer.limit_test_batches=0.0", "give 1 or more"),
        ("trainer.precision=17", "trainer.precision=17: give "),
        ("trainer.devices=0", "trainer.devices=0: give a number of devices"),
        ("head.hiden=3", "no option 'head.hiden': the head chosen takes none: did you mean head.hidden of head=mlp?"),
        ("data.val_fraction=1.5", "val_fraction=1.5"),
        ("backbone.input_spec.size=32.0", "give a whole number of pixels"),
    ],
)
def test_a_value_that_cannot_be_is_one_line_before_training(override, meant, monkeypatch):
    assert meant in error_text(monkeypatch, override)


def test_a_fault_of_the_program_is_not_an_error_of_the_user():
    assert as_user_error(ZeroDivisionError("ours")) is None


def raised(error, cause):
    """The error of the user behind `error`, raised from `cause`."""
    try:
        raise error from cause
    except Exception as caught:
        return as_user_error(caught)


@pytest.mark.parametrize(("cause", "of_user"), [
    (TypeError("f() got an unexpected argument"), True), (ValueError("too small"), True), (FileNotFoundError("gone"), True),
    (ImportError("no module"), True), (UserError("typed wrong"), True),
    (KeyError("a"), False), (AttributeError("a"), False), (RuntimeError("a"), False), (ZeroDivisionError("a"), False),
])  # fmt: skip
def test_a_refused_argument_is_an_error_of_the_user_and_a_fault_inside_the_target_is_not(cause, of_user):
    error = raised(InstantiationException("Error in call to target 'f':\nE()\nfull_key: head"), cause)
    assert (error is not None) == of_user
    assert error is None or isinstance(cause, UserError) or str(error) == f"head: {' '.join(str(cause).split())}"


def test_a_value_error_that_comes_through_our_own_code_is_a_fault():
    try:
        first_match([("*", 1)], 5)  # a TypeError inside ftlit.patterns
    except TypeError as error:
        assert raised(InstantiationException("Error in call\nfull_key: schedule"), error) is None


def test_a_fault_while_an_error_of_the_user_is_handled_is_a_fault():
    try:
        try:
            raise UserError("typed wrong")
        except UserError:
            {}["missing"]
    except KeyError as error:
        assert as_user_error(error) is None


def test_a_custom_callback_may_log_a_metric_that_is_not_known():
    cfg = composed("callbacks.best.monitor=val/top5", "+callbacks.own={_target_: string.Formatter}")
    bind(cfg)
    del cfg.callbacks.own
    with pytest.raises(UserError, match="val/top5"):  # nobody is left who might
        bind(cfg)


def test_every_name_of_train_yaml_is_one_that_may_be_given():
    assert set(check_values._known_names()) == set(map(str, composed()))


def test_the_command_line_says_the_line_and_nothing_else_and_exits_with_2():
    done = subprocess.run([sys.executable, "-m", "ftlit.cli.train", "backbone=resnet51"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("ftlit: no option of backbone 'resnet51': did you mean 'resnet50'?")


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
def test_debug_beats_every_other_overlay_and_leaves_the_rest(overlay):
    cfg, fast = composed(*overlay), composed(*overlay, "debug=fast")
    assert {fast.trainer[f"limit_{split}_batches"] for split in ("train", "val", "test")} == {1}
    assert fast.cache == composed("cache=none").cache  # a pass over all images is not one batch
    assert not fast.report  # one batch leaves nothing to look at
    rest = [{key: value for key, value in c.items() if key not in ("trainer", "cache", "report")} for c in (fast, cfg)]
    assert rest[0] == rest[1]


def test_a_scenario_beats_the_defaults_of_the_groups():
    cfg, plain = composed("scenario=small_similar"), composed("~scenario")
    assert plain.optimizer.lr == OmegaConf.load(CONF / "optimizer" / "adamw.yaml").lr != cfg.optimizer.lr


@pytest.mark.parametrize("group", REGISTRIES)
def test_every_option_of_a_group_is_a_registered_part_and_every_part_has_an_option(group):
    from ftlit.lit.datamodules import glyph_source, image_sources, text_sources  # noqa: F401  # they register

    options = [OmegaConf.load(path).get("_target_") for path in (CONF / group).glob("*.yaml")]
    targets = {resolve_name(target) for target in options if target}
    assert targets <= set(REGISTRIES[group].values()) <= targets | {PooledHead}  # which results from probes of another pooling
