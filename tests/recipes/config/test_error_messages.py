"""A user error is one line that names the accepted values; a fault of the program keeps its traceback."""

import re
import sys

import pytest
import warm
from composed_configs import NEEDED, composed, error_text
from hydra import compose
from hydra.errors import ConfigCompositionException, InstantiationException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError

from ftlit.data.images import BadImage
from ftlit.errors import UserError
from ftlit.patterns import first_match
from ftlit.recipes.checks.early_checks import check_early
from ftlit.recipes.checks.validate import bind
from ftlit.recipes.config import hydra_internals
from ftlit.recipes.config.error_messages import as_user_error
from ftlit.recipes.config.hydra_internals import fresh_hydra, use_hydra_config
from ftlit.recipes.config.option_names import lacks_argument


@pytest.fixture(autouse=True)
def hydra():
    """Initialize Hydra as the command line does, for one test."""
    with fresh_hydra():
        yield


@pytest.mark.parametrize(("group", "name"), NEEDED)
def test_a_missing_required_value_is_an_error_that_names_it(group, name, monkeypatch):
    required = NEEDED[group, name][0].partition("=")[0]
    assert error_text(monkeypatch, f"{group}={name}") == f"{required} has no value: give {required}=..."


@pytest.mark.parametrize("chosen", ["data=colours", "the chosen data"])  # the second: of a config file, or of Python
@pytest.mark.parametrize(("name", "value"), [("per_class", "null"), ("augment", "none"), ("seed", "${seed}")])
def test_a_custom_option_without_a_value_that_built_in_ones_share_says_how_to_take_it(chosen, name, value):
    line = str(lacks_argument("data", chosen, "my_data.colours", name, ["images"]))
    assert line.startswith(
        f"{chosen} does not accept '{name}' (accepted: images): add the argument {name} to my_data.colours, and the line "
        f"`{name}: {value}` to its config file (docs/extending.md#"
    )
    assert lacks_argument("data", chosen, "my_data.colours", "image", ["images"]) is None
    assert lacks_argument("data", chosen, "ftlit.lit.datamodules.image_sources.unlabelled_data", name, ["root"]) is None
    assert lacks_argument("data", chosen, None, name, ["root"]) is None
    assert lacks_argument("head", "head=mine", "my_heads.Wide", "hidden", ["width"]) is None


def own_backbone(width=1): ...


def test_a_shared_value_of_a_custom_part_that_the_command_line_does_not_name_says_how_to_take_it(tmp_path, monkeypatch):
    (tmp_path / "experiment").mkdir()
    part = f"{{_target_: {__name__}.own_backbone, width: 2}}"
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "mine.yaml").write_text(part)
    (tmp_path / "experiment" / "wide.yaml").write_text("# @package _global_\ndefaults: [{override /backbone: mine}]\n")
    search = f"hydra.searchpath=[file://{tmp_path}]"
    message = error_text(monkeypatch, search, "experiment=wide", "backbone.cut=a")
    assert message.startswith(
        f"the chosen backbone does not accept 'cut' (accepted: width): add the argument cut to {__name__}.own_backbone, and the line `cut:"
    )


def test_a_shared_value_of_a_custom_part_in_a_config_of_the_users_own_says_how_to_take_it():
    cfg = composed()
    cfg.backbone = OmegaConf.create(f"{{_target_: {__name__}.own_backbone, cut: a}}")
    with pytest.raises(UserError, match=r"^the chosen backbone does not accept 'cut' \(accepted: width\): add the argument cut to "):
        bind(cfg)


@pytest.mark.parametrize(
    ("words", "meant"),
    [(("head._target_=torch.nn.Linear", "+head.biass=false"), "+head.bias"), (("head=mlp", "+head.hiden=[5]"), "head.hidden")],
)
def test_an_argument_that_the_config_does_not_hold_is_proposed_with_the_plus_that_it_needs(monkeypatch, words, meant):
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    cfg = compose("train", overrides=["paths.run=somewhere", *words], return_hydra_config=True)
    with use_hydra_config(cfg), pytest.raises(UserError, match=re.escape(f"did you mean '{meant}'?")):
        bind(cfg)


@pytest.mark.parametrize("values", ["backbone: resnet18", "defaults: [{override /backbone: mlp}]", "seed: 3"])
def test_an_experiment_whose_values_nothing_would_read_names_the_missing_line(tmp_path, monkeypatch, values):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_text(values)
    words = (f"hydra.searchpath=[file://{tmp_path}]", "experiment=own")
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    with pytest.raises(Exception) as caught:
        cfg = compose("train", overrides=["paths.run=somewhere", *words], return_hydra_config=True)
        with use_hydra_config(cfg):
            check_early(cfg)
    line = "the values of experiment=own would have no effect, because experiment/own.yaml does not begin with '# @package _global_': add"
    assert str(as_user_error(caught.value)).startswith(line)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            "defaults: [/schedule: top_down]",
            "a config file chooses schedule a second time: write `- override /schedule: NAME` in its defaults",
        ),
        (
            "defaults: [override schedule: top_down]",
            "experiment/own.yaml has `override schedule: ...` without a slash: write `ov",
        ),
        ("defaults: [override /debug: fast]", "experiment/own.yaml cannot choose debug: give debug=... on the command line, and leave the"),
        (
            "defaults: [override /schedul: top_down]",
            "experiment/own.yaml has `override /schedul: ...`, but there is no config group '",
        ),
    ],
)
def test_a_wrong_entry_in_the_defaults_list_of_an_experiment_names_the_right_one(content, line, tmp_path, monkeypatch):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_text(f"# @package _global_\n{content}\n")
    assert error_text(monkeypatch, f"hydra.searchpath=[file://{tmp_path}]", "experiment=own").startswith(line)


def test_values_to_search_over_are_given_without_the_place_in_hydras_config(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "hparams_search=drop_layers", "hydra.sweeper.params.x=1,2"])
    line = "hydra.sweeper.params.x=1,2: to search over values, leave out 'hydra.sweeper.params.' and give x=1,2"
    assert str(as_user_error(ConfigCompositionException("Sweeping over Hydra's configuration"))) == line


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["trainer.max_epoch=3"], "there is no option 'trainer.max_epoch': did you mean 'trainer.max_epochs'?"),
        (["+trainer.max_epoch=3"], "there is no option 'trainer.max_epoch': did you mean 'trainer.max_epochs'?"),
        (["backbone=resnet51"], "backbone has no option 'resnet51': did you mean 'resnet50'?"),
        (["head=mlp", "head.hiden=[5]"], "there is no option 'head.hiden': did you mean 'head.hidden'?"),
        (["head=mlp", "+head.hiden=[5]"], "there is no option 'head.hiden': did you mean 'head.hidden'?"),
        (
            ["head._target_=torch.nn.Linear", "head.bias=false"],
            "there is no option 'head.bias' beside head._target_: to pass it to torch.nn.Linear, give +head.bias=false",
        ),
        (
            ["optimizer._target_=torch.optim.SGD", "optimizer.momentum=0.9"],
            "there is no option 'optimizer.momentum' beside optimizer._target_: to pass it to torch.optim.SGD, give +optimizer.",
        ),
        (["backbones=resnet50"], "there is no option 'backbones': did you mean 'backbone'?"),
        (["scenaro=small_similar"], "there is no option 'scenaro': did you mean 'scenario'?"),
        (["sede=1"], "there is no option 'sede': did you mean 'seed'?"),
        (["lr=3e-4"], "there is no option 'lr': give optimizer.lr=3e-4"),
        (["data=folder", "data.root=x", "on_bad_image=skip"], "there is no option 'on_bad_image': did you mean data.on_bad_image?"),
        (["scenario=small_simlar"], "scenario has no option 'small_simlar': did you mean 'small_similar'?"),
        (["optimizer.lr='0.1'"], "optimizer.lr='0.1': give a number ('0.1' is a text: give 0.1 without quotes)"),
        (["+optimizer.lr=1"], "optimizer.lr has a value already, so + cannot add it: leave out the +, so give optimizer.lr=1"),
        (["+head=mlp"], "+ would choose a second option of head: leave out the +, so give head=mlp"),
        (["+experiment=a,b"], "experiment=a,b gives several values: add -m to run a sweep over them"),
        (["cache=no"], "cache has no option 'no': give cache=none"),
        (["optimizer.lr=high"], "optimizer.lr='high': give a number"),
        (["optimizer.fused=maybe"], "optimizer.fused='maybe': give auto or true or false or null"),
        (
            ["trainer.precision=bf17"],
            "trainer.precision='bf17': did you mean bf16? Accepted: auto or 32-true or bf16-mixed or ",
        ),
        (["cache.pixels=maybe"], "cache.pixels='maybe': give"),
        (["head=mlp", "head.hidden=5"], "head.hidden=5: give a list, such as [5]"),
        (["head=mlp", "head.dropout=true"], "head.dropout=True: give a number"),
        (["trainer.max_epochs=2.5"], "trainer.max_epochs=2.5: give a whole number"),
        (["seed=first"], "seed='first': give a whole number"),
        (["seed=1..3"], "seed='1..3': give a whole number; for a sweep over these values, give -m seed=1,2,3"),
        (
            ["trainer.max_epochs=5-7"],
            "trainer.max_epochs='5-7': give a whole number or null; for a sweep over these values, give -m trainer.max_",
        ),
        (["scenario=null"], "scenario=null: give the name of an option of scenario (auto, large_different, large_similar, small_"),
        (
            ["seed=1", "head=3"],
            "head=3: give the name of an option of head (attention, conv, linear, linear_probe, mlp)",
        ),
        (
            ["data.seed=${nowhere}"],
            "data.seed: ${nowhere} refers to a value 'nowhere', which the config does not have: correct the name, or give a value",
        ),
        (
            ["data.seed=${oc.env:NO_SUCH}"],
            "data.seed: the value with ${...} cannot be resolved: correct it, or give another value (Environment variable 'NO_SUCH' not",
        ),
        (["backbone.name=3"], "backbone.name=3: give a string"),
        (
            ["schedule=explicit", "schedule.lora.rank=4"],
            "there is no option 'schedule.lora.rank', because schedule.lora is a mapping that is given as a whole: give "
            "'schedule.lora={rank: 4}'",
        ),
        (
            ["backbone.reinit.x=1"],
            "there is no option 'backbone.reinit.x', because backbone.reinit is a single value: give backbone.reinit=...",
        ),
        (
            ["backbone.reinit.0=1"],
            "there is no option 'backbone.reinit.0', because backbone.reinit is a single value: give backbone.reinit=...",
        ),
        (["trainer=fsdp"], "trainer=fsdp was renamed: give trainer=fsdp2"),
        (["head=solved"], "head=solved was renamed: give head=linear_probe"),
        (["probe.strengths=[0.1]"], "probe.strengths was renamed: give probe.l2=..."),
        (["+probe.strengths=[0.1]"], "probe.strengths was renamed: give probe.l2=..."),
        (["seed=range(3)"], "seed=range(3) gives several values: add -m to run a sweep over them"),
        (["seed=[0"], "cannot read 'seed=[0': to give its value as text, write \"seed='[0'\"; otherwise give group=option or name=value"),
    ],
)
def test_a_wrong_name_or_type_is_one_line_with_the_accepted_form(overrides, line, monkeypatch):
    assert error_text(monkeypatch, *overrides).startswith(line)


def test_a_node_without_a_target_is_named(monkeypatch):
    node = OmegaConf.create({"head": {"hidden": [4]}})
    OmegaConf.set_struct(node, True)
    with pytest.raises(ConfigAttributeError) as caught:
        _ = node.head._target_
    monkeypatch.setattr("ftlit.recipes.config.hydra_internals.choices", lambda: {"head": "mine"})
    assert str(as_user_error(caught.value)).startswith("the file of head=mine has no _target_: add the import path of a class or function")


def test_a_fault_of_the_program_is_not_a_user_error():
    assert as_user_error(ZeroDivisionError("a fault")) is None


def raised(error, cause):
    """Raise `error` from `cause`; return the user error, or None for a fault of the program."""
    try:
        raise error from cause
    except Exception as caught:
        return as_user_error(caught)


@pytest.mark.parametrize(("cause", "is_user_error"), [
    (TypeError("f() got an unexpected argument"), True), (ValueError("too small"), True), (FileNotFoundError("gone"), True),
    (ImportError("no module"), True), (UserError("typed wrong"), True),
    (KeyError("a"), False), (AttributeError("a"), False), (RuntimeError("a"), False), (ZeroDivisionError("a"), False),
])  # fmt: skip
def test_a_wrong_argument_is_a_user_error_and_a_fault_inside_the_target_is_not(cause, is_user_error):
    error = raised(InstantiationException("Error in call to target 'f':\nE()\nfull_key: head"), cause)
    assert (error is not None) == is_user_error
    assert error is None or isinstance(cause, UserError) or str(error) == f"cannot build head: {' '.join(str(cause).split())}"


@pytest.mark.parametrize(
    ("cause", "words", "ending"),
    [
        ("f() got an unexpected keyword argument 'hight'", ["+head.hight=3"], ": leave head.hight out"),
        ("f() got an unexpected keyword argument 'hight'", ["seed=1"], ": add the argument hight to the function of head._target_"),
        ("f() missing 1 required positional argument: 'width'", [], ": give +head.width=..."),
        ("f() missing 2 required keyword-only arguments: 'width' and 'depth'", [], ": give +head.width=..."),
        ("unsupported operand", [], "unsupported operand"),
    ],
)
def test_an_argument_that_a_target_refuses_or_lacks_is_named_as_an_option(cause, words, ending, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", *words])
    error = raised(InstantiationException("Error in call to target 'f':\nE()\nfull_key: head"), TypeError(cause))
    assert str(error).startswith(f"cannot build head: {cause}") and str(error).endswith(ending)


def test_a_type_error_inside_ftlit_is_a_fault():
    try:
        first_match([("*", 1)], 5)  # a TypeError inside ftlit.patterns
    except TypeError as error:
        assert raised(InstantiationException("Error in call\nfull_key: schedule"), error) is None


def test_a_fault_while_a_user_error_is_handled_is_a_fault():
    try:
        try:
            raise UserError("typed wrong")
        except UserError:
            {}["missing"]
    except KeyError as error:
        assert as_user_error(error) is None


@pytest.mark.e2e
def test_the_command_line_prints_only_the_message_and_exits_with_2():
    done = warm.run([sys.executable, "-m", "ftlit.cli.train", "backbone=resnet51"])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("ftlit: backbone has no option 'resnet51': did you mean 'resnet50'?")


def test_an_error_that_is_its_own_cause_is_looked_at_once():
    error = RuntimeError("unexpected pos")
    error.__cause__ = error
    assert as_user_error(error) is None


@pytest.mark.parametrize(
    ("option", "hint"), [("folder", "; to leave such files out, start a new run with data.on_bad_image=skip"), ("torchvision", "")]
)
def test_an_image_that_cannot_be_read_is_answered_with_the_option_that_leaves_it_out(option, hint, monkeypatch):
    monkeypatch.setattr(hydra_internals, "choices", lambda: {"data": option})
    assert str(as_user_error(BadImage("x.jpg cannot be read"))) == f"x.jpg cannot be read{hint}"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("run/checkpoints/last.ckpt", "{0} is a checkpoint, but hydra.run.dir takes the folder of a run: give hydra.run.dir={1}/run"),
        ("notes.txt", "cannot make the folder {0}, because a file has that name: remove or rename this file; to use another"),
    ],
)
def test_a_file_in_the_place_of_a_runs_folder_is_named(name, line, tmp_path):
    from hydra.core.utils import _save_config

    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(FileExistsError) as caught:
        _save_config(OmegaConf.create({}), "config.yaml", tmp_path / name)
    assert str(as_user_error(caught.value)).startswith(line.format(tmp_path / name, tmp_path))


def test_a_job_that_slurm_refuses_or_ends_is_one_line():
    utils = pytest.importorskip("submitit.core.utils")
    assert str(as_user_error(utils.FailedJobError("sbatch: error:\n  no partition x"))) == "hydra/launcher: sbatch: error: no partition x"
    killed = str(as_user_error(utils.UncompletedJobError("Job 7 has not produced any output (state: OUT_OF_MEMORY)\n" + "log\n" * 500)))
    assert killed.startswith("hydra/launcher: Job 7 has not produced any output (state: OUT_OF_MEMORY) log") and len(killed) < 400
