"""Contract: Hydra still does this. Tests of every undocumented part that ftlit uses, under Hydra 1.3 and 1.4."""

import ast
import pickle
import re
from functools import partial
from pathlib import Path

import pytest
from hydra import compose
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.errors import ConfigCompositionException, HydraException, InstantiationException, MissingConfigException
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import ReadonlyConfigError
from paths import ROOT
from split_sweep import sweep_jobs

from ftlit.recipes.config import hydra_errors, hydra_internals, hydra_sweeps
from ftlit.recipes.config.error_messages import as_user_error
from ftlit.recipes.config.hydra_errors import (
    FailedCall,
    added_again,
    chosen_twice,
    failed_call,
    group_of_replacement,
    is_bad_group_value,
    is_wrong_index,
    missing_option,
    option_of,
    rejected_name,
    rejected_override,
    run_folder_error,
    swept_value,
    unknown_of_launcher,
)
from ftlit.recipes.config.hydra_internals import (
    add_task_override,
    adopt,
    choices,
    compose_again,
    compose_defaults,
    fresh_hydra,
    group_options,
    hydra_config,
    initialize_hydra,
    instantiate,
    kept_hydra,
    own_hydra,
    read_config_file,
    run_folder_template,
    run_mode,
    set_choices,
    set_help,
    set_task_overrides,
    task_overrides,
    use_hydra_config,
)
from ftlit.recipes.config.hydra_sweeps import compose_job, composed_once, jobs_of_sweeps, launched_by, result_of_job
from ftlit.recipes.config.overrides import job_number

LINEAR = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}


@pytest.fixture
def config():
    with fresh_hydra():
        cfg = compose("train", ["scenario=large_similar", "hydra.mode=RUN"], return_hydra_config=True)
        with use_hydra_config(cfg):
            yield cfg


def error_of(*overrides: str) -> Exception:
    with fresh_hydra(), pytest.raises((HydraException, ValueError, TypeError)) as caught:
        compose("train", list(overrides))
    return caught.value


def test_no_other_module_uses_undocumented_parts():
    """The Callback class is documented; classes of hydra.errors are public."""
    private = re.compile(r"hydra\._|hydra\.core|hydra\.types|GlobalHydra|version_base|omegaconf\._|hydra\.utils import .*instantiate")
    attribute = re.compile(r"\._(get_\w+|is_\w+|value|set_\w+|content|metadata|key)\(")
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text()
        if path.name in ("hydra_internals.py", "hydra_sweeps.py", "hydra_errors.py"):
            continue
        assert not private.search(text), f"{path}: {private.search(text)}"
        if re.search(r"^(from|import) omegaconf", text, flags=re.MULTILINE):
            assert not attribute.search(text), f"{path}: {attribute.search(text)}"


def test_every_function_has_a_contract_test():
    trees = [ast.parse(Path(module.__file__).read_text()) for module in (hydra_internals, hydra_sweeps, hydra_errors)]
    functions = {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}
    tested = {node.id for node in ast.walk(ast.parse(Path(__file__).read_text())) if isinstance(node, ast.Name)}
    assert functions - tested == {"hydra_main"}  # tests/cli runs it


def test_the_hydra_of_the_surrounding_program_is_set_aside_for_a_block(config):
    before = GlobalHydra.instance().hydra
    with own_hydra():
        assert hydra_config() is None and not GlobalHydra.instance().is_initialized()
        with fresh_hydra():
            assert compose("train").recipe == "finetune"
    assert GlobalHydra.instance().hydra is before and hydra_config() == config.hydra


def test_hydra_is_initialized_for_a_block_and_restored_afterwards():
    with fresh_hydra():
        assert GlobalHydra.instance().is_initialized()
        with pytest.raises(ValueError, match="already initialized"):
            GlobalHydra.instance().initialize(GlobalHydra.instance().hydra)
        with fresh_hydra():
            assert compose("train").recipe == "finetune"
    assert not GlobalHydra.instance().is_initialized()
    with initialize_hydra():
        assert compose("train").recipe == "finetune"
    assert not GlobalHydra.instance().is_initialized()


def test_arguments_of_the_call_override_those_of_the_config():
    made = instantiate(OmegaConf.create(LINEAR), out_features=5)
    assert made.weight.shape == (5, 2)


def test_a_partial_target_is_a_functools_partial_that_can_be_pickled():
    made = instantiate(OmegaConf.create({**LINEAR, "_partial_": True}), 4)
    assert type(made) is partial and made.args == (4,) and made.keywords == {"in_features": 2, "out_features": 3}
    assert pickle.loads(pickle.dumps(made)).func is made.func


def test_hydra_config_is_the_config_of_the_program_and_a_block_can_replace_it(config):
    assert choices()["scenario"] == "large_similar" and task_overrides() == ["scenario=large_similar"]
    assert list(hydra_config().overrides.hydra) == ["hydra.mode=RUN"]
    with use_hydra_config(compose("train", [], return_hydra_config=True)):
        assert choices()["scenario"] == "auto" and task_overrides() == []
    assert choices()["scenario"] == "large_similar"


def test_the_template_of_the_run_folder_is_not_resolved(config):
    assert run_folder_template().startswith("${paths.runs}/${now:")


def test_compose_again_composes_the_config_of_the_program_with_other_overrides(config):
    again = compose_again(["seed=5"], with_hydra=True)
    assert again.seed == 5 and again.hydra.runtime.choices["scenario"] == "auto" and "hydra" not in compose_again([])


def test_a_composed_config_with_its_hydra_node_becomes_that_of_the_program(config):
    adopted = adopt(compose_again(["scenario=small_similar"], with_hydra=True))
    assert choices()["scenario"] == "small_similar" and "hydra" not in adopted


def test_outside_of_a_program_hydra_config_is_none(monkeypatch):
    from hydra.core.hydra_config import HydraConfig

    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    assert hydra_config() is None and run_mode() is None


@pytest.mark.parametrize(("overrides", "mode"), [(["hydra.mode=RUN"], "RUN"), (["hydra.mode=MULTIRUN"], "MULTIRUN"), ([], None)])
def test_run_mode_is_read_from_the_config(overrides, mode):
    with fresh_hydra(), use_hydra_config(compose("train", overrides, return_hydra_config=True)):
        assert run_mode() == mode


def test_choices_and_task_overrides_of_the_read_only_config_can_be_changed(config):
    with pytest.raises(ReadonlyConfigError):
        hydra_config().runtime.choices = {}
    set_choices(OmegaConf.create({"scenario": "small_similar"}))
    add_task_override("resume=true")
    assert choices()["scenario"] == "small_similar" and task_overrides() == ["scenario=large_similar", "resume=true"]
    set_task_overrides(["seed=1"])
    assert task_overrides() == ["seed=1"]
    with open_dict(config):
        config.recipe = "probe"  # the part of the task stays writable


def test_the_basic_sweeper_splits_overrides_into_jobs():
    assert sweep_jobs(["a=1,2", "b='x,y'", "c=[3,4]"]) == [["a=1", "b='x,y'", "c=[3,4]"], ["a=2", "b='x,y'", "c=[3,4]"]]


def test_a_group_lists_its_options(config):
    assert {"linear", "mlp", "conv", "linear_probe"} <= set(group_options("head"))


def test_a_config_file_is_read_with_its_parents_and_overrides(config):
    file = read_config_file("scenario/large_similar")
    assert file is not None and file.overrides["head"] == "linear_probe" and file.parents == []
    assert read_config_file("scenario/auto").parents == ["large_similar"]
    assert read_config_file("train").parents == [] and "${" in read_config_file("paths/default").values["run"]
    assert read_config_file("scenario/none") is None


def test_without_an_initialized_hydra_no_config_file_is_read():
    assert read_config_file("scenario/large_similar") is None


def test_the_message_for_a_missing_option_names_group_and_option():
    error = error_of("head=mpl")
    assert isinstance(error, MissingConfigException) and missing_option(str(error)) == ("head", "mpl") and "mlp" in error.options
    assert missing_option("something else") is None
    assert missing_option(str(error_of("backbone=run/checkpoints/best.ckpt"))) == ("backbone", "run/checkpoints/best.ckpt")
    assert missing_option(str(error_of("hydra/launcher=jobs"))) == ("hydra/launcher", "jobs")


@pytest.mark.parametrize(
    ("override", "name"),
    [("trainer.max_epoch=3", "trainer.max_epoch"), ("backbones=mlp", "backbones"), ("~nothing", "nothing"), ("sede=1", "sede")],
)
def test_the_message_for_an_unknown_name_contains_the_name(override, name):
    error = error_of(override)
    assert isinstance(error, ConfigCompositionException)
    assert rejected_name(str(error)) == name and rejected_name("something else") is None


def test_the_message_for_a_replacement_under_another_group_names_that_group():
    messages = (
        "In 'experiment/own': Could not override 'backbone@experiment.backbone'.\nDid you mean to override backbone?",
        "In 'experiment/own': Invalid Defaults List override '/backbone: mlp'.\nNo earlier Group Default for 'backbone@experiment.x' "
        "exists to override.",
    )
    assert {group_of_replacement(message) for message in messages} == {"experiment"} and group_of_replacement(
        str(error_of("backbones=mlp"))
    ) is None


def test_a_group_accepts_names_only():
    assert all(is_bad_group_value(error_of(word)) for word in ("scenario=null", "head=3", "data=[1,2]"))
    assert not is_bad_group_value(ValueError("other"))


def causes_of(error):
    while error is not None:
        yield error
        error = error.__cause__


def test_a_name_below_a_list_is_taken_for_its_index():
    assert any(map(is_wrong_index, causes_of(error_of("backbone.reinit.layer4=1"))))
    assert not any(map(is_wrong_index, causes_of(error_of("head=3")))) and not is_wrong_index(ValueError("other"))


def raised_by(config):
    with pytest.raises(Exception) as caught:
        instantiate(config)
    return caught.value


def test_a_failed_call_has_the_node_the_cause_and_the_modules_of_the_traceback():
    cfg = OmegaConf.create(
        {"head": {**LINEAR, "out_features": "many"}, "rules": {"_target_": "ftlit.patterns.first_match", "rules": [], "names": 5}}
    )
    call = failed_call(raised_by(cfg.head))
    assert call is not None and call.node == "head" and isinstance(call.cause, TypeError)
    assert call.modules and all(name.startswith("torch.") for name in call.modules)
    in_ftlit = failed_call(raised_by(cfg.rules))
    assert in_ftlit is not None and in_ftlit.node == "rules" and in_ftlit.modules[-1] == "ftlit.patterns"


def test_a_target_that_cannot_be_imported_or_called_is_a_failed_call():
    call = failed_call(raised_by(OmegaConf.create({"a": {"_target_": "no_such_module.x"}}).a))
    assert call is not None and call.node == "a" and isinstance(call.cause, ImportError)
    call = failed_call(raised_by(OmegaConf.create({"a": {"_target_": "math.pi"}}).a))
    assert call is not None and call.node == "a"
    assert failed_call(ValueError("no call")) is None and failed_call(InstantiationException("text")) is not None


def test_the_help_is_made_from_the_composed_config():
    set_help(lambda cfg: f"{cfg.recipe} {cfg.hydra.job.name} {choices()['head']}")
    with fresh_hydra():
        cfg = compose("train", ["recipe=probe", "head=mlp"], return_hydra_config=True)
        with use_hydra_config(cfg):
            assert cfg.hydra.help.template == "probe train mlp"


def test_defaults_are_composed_from_the_own_files_only_and_leave_hydra_as_it_was(tmp_path):
    (tmp_path / "head").mkdir()
    (tmp_path / "head/mine.yaml").write_text("_target_: mine.Head\n")
    with initialize_hydra():
        before = GlobalHydra.instance().hydra
        cfg = compose_defaults({"head": "mine", "trainer": "cpu", "pretrain": None})
        assert GlobalHydra.instance().hydra is before
    assert "head" not in cfg and cfg.trainer.accelerator == "cpu" and cfg.get("pretrain") is None and cfg.seed == 0
    assert not GlobalHydra.instance().is_initialized()


def test_a_word_for_several_runs_is_read_from_the_message():
    for word in ("seed=1,2", "seed=range(3)"):
        error = error_of(word)
        assert isinstance(error, ConfigCompositionException) and swept_value(" ".join(str(error).split())) == word
    assert swept_value("something else") is None


def test_a_value_that_is_added_again_is_read_from_the_message():
    error = error_of("+optimizer.lr=0.5")
    assert isinstance(error, ConfigCompositionException) and added_again(" ".join(str(error).split())) == "optimizer.lr=0.5"
    assert added_again("something else") is None


def test_a_group_that_is_chosen_twice_is_read_from_the_message():
    for words in (["+head=mlp"], ["+head=mlp", "head=linear"]):
        assert chosen_twice(" ".join(str(error_of(*words)).split())) == "head"
    assert chosen_twice("something else") is None


@pytest.mark.parametrize(("entry", "group"), [("/haed", "haed"), ("head", "experiment/head"), ("/debug", "debug")])
def test_a_defaults_list_that_overrides_no_group_is_read_from_the_message(entry, group, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/own.yaml").write_text(f"# @package _global_\ndefaults: [override {entry}: mlp]\n")
    error = error_of(f"hydra.searchpath=[file://{tmp_path}]", "experiment=own")
    assert rejected_override(" ".join(str(error).split())) == ("experiment/own", group)
    assert rejected_override("something else") is None


def test_hydra_makes_the_folder_of_a_run_where_its_error_is_known(tmp_path):
    from hydra.core.utils import _save_config

    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError) as caught:
        _save_config(OmegaConf.create({}), "config.yaml", tmp_path / "file")
    assert run_folder_error(caught.value) is caught.value and run_folder_error(FileExistsError()) is None


@pytest.mark.parametrize(
    ("words", "given", "mode", "composed"),
    [
        (["seed=3"], None, RunMode.RUN, 1),  # Hydra 1.3 composes a sweep twice
        (["seed=3"], None, RunMode.MULTIRUN, 2),  # --multirun
        (["seed=1,2"], None, RunMode.MULTIRUN, 2),
        (["seed=3", "hydra.mode=MULTIRUN"], RunMode.MULTIRUN, RunMode.MULTIRUN, 2),
    ],
)
def test_a_single_run_is_composed_once_and_equals_one_composed_twice(monkeypatch, words, given, mode, composed):
    counted = []
    with fresh_hydra():
        program = GlobalHydra.instance().hydra
        loader = program.config_loader
        later = hasattr(loader, "get_mode")  # than 1.3: the mode is read without composing
        original = loader._compose_config_from_defaults_list
        monkeypatch.setattr(loader, "_compose_config_from_defaults_list", lambda **kwargs: counted.append(1) or original(**kwargs))

        def mode_of(words: list[str]) -> RunMode | None:
            return program.get_mode("train", words, *([loader.parse_overrides("train", words)] if later else []))

        def configs() -> tuple[RunMode | None, object]:
            found = mode_of(words)
            added = [] if found else [f"hydra.mode={mode.name}"]  # as Hydra does
            return found, OmegaConf.to_container(program.compose_config("train", [*words, *added], mode))

        with composed_once():
            once = configs()
            number = len(counted)
            with pytest.raises(MissingConfigException):  # reported by the composition that follows
                mode_of(["data=unknown"])
                program.compose_config("train", ["data=unknown", "hydra.mode=RUN"], RunMode.RUN)
        assert once == configs() and once[0] == given and number == (1 if later else composed)


def test_a_sweep_runs_the_jobs_of_a_plan_in_its_order_with_numbers_from_0_in_batches(tmp_path):
    launched = []

    class Launcher:
        def launch(self, jobs, initial_job_idx):
            launched.append((initial_job_idx, jobs))
            return []

    with fresh_hydra():
        config = compose("train", [f"hydra.sweep.dir={tmp_path}", "hydra.sweeper.max_batch_size=2"], return_hydra_config=True)
        with jobs_of_sweeps(lambda cfg, jobs: jobs[::-1] if cfg is config else []):
            context = HydraContext(GlobalHydra.instance().config_loader(), None)
            sweeper = Plugins.instance().instantiate_sweeper(config=config, hydra_context=context, task_function=None)
            sweeper.launcher = Launcher()
            sweeper.sweep(["seed=1,2,3"])
            with jobs_of_sweeps(lambda cfg, jobs: []):  # all are done: no launcher starts
                done = Plugins.instance().instantiate_sweeper(config=config, hydra_context=context, task_function=None)
                done.launcher = Launcher()
                done.sweep(["seed=1,2,3"])
        job, numbered = compose_job(config, ["seed=3"]), compose_job(config, ["seed=3"], 7)
        with kept_hydra():
            with fresh_hydra():
                pass
            with pytest.raises(AssertionError):
                compose_job(config, ["seed=3"])
        compose_job(config, ["seed=3"])  # as before
    assert launched == [(0, [["seed=3"], ["seed=2"]]), (2, [["seed=1"]])]
    assert job.seed == 3 and job.hydra.overrides.task == ["seed=3"]
    assert OmegaConf.is_missing(job.hydra.job, "num") and numbered.hydra.job.num == 7
    assert numbered.hydra.runtime.output_dir == str(Path(config.hydra.sweep.dir, "7").absolute())
    assert Plugins.instantiate_sweeper.__module__ == "hydra.core.plugins"  # as before


def test_a_function_launches_the_jobs_and_a_word_gives_a_job_its_folder(tmp_path):
    def task(cfg):
        return cfg.seed, job_number(), Path(hydra_config().runtime.output_dir)

    def run(config, launch, jobs, first):
        assert (jobs, first) == ([["seed=1"], ["seed=2"]], 3)
        return launch([["seed=2", "hydra.sweep.subdir=7"]], initial_job_idx=0)

    with initialize_hydra():
        config = compose("train", ["hydra.mode=MULTIRUN", f"hydra.sweep.dir={tmp_path}"], return_hydra_config=True)
        context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
        with launched_by(run):
            launcher = Plugins.instance().instantiate_launcher(config=config, hydra_context=context, task_function=task)
            (returned,) = launcher.launch([["seed=1"], ["seed=2"]], initial_job_idx=3)
    assert returned.return_value == (2, 7, tmp_path / "7")
    assert Plugins.instantiate_launcher.__module__ == "hydra.core.plugins"  # as before


@pytest.mark.parametrize("score", [0.5, None])
def test_a_search_reads_the_result_of_a_job_that_no_launcher_ran(score):
    result = result_of_job(score)
    assert (result.return_value, result.status) == (score, JobStatus.COMPLETED)


def test_submitit_names_an_option_that_a_launcher_does_not_have_and_those_that_it_has(tmp_path):
    executor = pytest.importorskip("submitit").AutoExecutor(tmp_path, cluster="local")
    with pytest.raises(NameError) as caught:
        executor.update_parameters(local_timeout=3)
    name, known = unknown_of_launcher(caught.value)
    assert name == "timeout" and {"setup", "timeout_min", "cpus_per_task"} <= set(known)
    text = str(as_user_error(caught.value))
    assert text.startswith("hydra.launcher has no option 'timeout': did you mean 'timeout_min'? There are: ") and "\n" not in text
    assert unknown_of_launcher(NameError("name 'x' is not defined")) is None


def test_python_names_the_argument_that_a_function_refuses_or_lacks():
    def target(in_features, width):
        raise AssertionError

    for arguments, words, text in (
        ({"in_features": 1, "width": 2, "hight": 3}, ["+head.hight=3"], ": leave head.hight out"),
        ({"in_features": 1, "width": 2, "hight": 3}, [], ": add the argument hight to the function of head._target_"),
        ({"in_features": 1}, [], ": give +head.width=..."),
    ):
        with pytest.raises(TypeError) as caught:
            target(**arguments)
        assert option_of(FailedCall("head", caught.value, []), words) == text
    assert option_of(FailedCall("head", ValueError("unexpected keyword argument 'a'"), []), []) == ""
