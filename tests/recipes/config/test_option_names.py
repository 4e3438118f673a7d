"""A misspelt name of Hydra's own config is an error with the name that was probably meant."""

import re
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name

import pytest
from composed_configs import error_text
from omegaconf import OmegaConf
from paths import CONF

from ftlit import UserError
from ftlit.cli.command_words import complete
from ftlit.recipes.checks.validate import _hints
from ftlit.recipes.config import option_names
from ftlit.recipes.config.hydra_internals import fresh_hydra
from ftlit.recipes.config.option_names import LISTS, MAPPINGS, unknown_hydra_option

TAKES_MAPPING = re.compile(r"^(\w+): null +# [^[\n]*\{\w+: ", re.MULTILINE)


@pytest.fixture(autouse=True)
def hydra():
    with fresh_hydra():
        yield


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["hydra.sweep.dri=x"], "there is no option 'hydra.sweep.dri': did you mean 'hydra.sweep.dir'? There are: "),
        (["hydra.sweper.n_trials=3"], "there is no option 'hydra.sweper': did you mean 'hydra.sweeper'? There are: "),
        (["hydra/lancher=joblib"], "there is no option 'hydra/lancher': did you mean 'hydra/launcher'? There are: "),
        (["hydra.dir=x"], "there is no option 'hydra.dir': did you mean hydra.run.dir or hydra.sweep.dir?"),
        (["hydra.mmmm=x"], "there is no option 'hydra.mmmm': to list Hydra's own options, add --cfg hydra"),
    ],
)
def test_a_misspelt_name_below_hydra_is_one_line_with_the_closest_one(overrides, line, monkeypatch):
    assert error_text(monkeypatch, *overrides).startswith(line)


@pytest.mark.parametrize("name", ["scenario.foo", "debug.x.y", "experiment.foo", "hparams_search.foo"])
def test_an_overlay_has_no_options_of_its_own(name, monkeypatch):
    overlay = name.partition(".")[0]
    text = error_text(monkeypatch, f"{name}=1")
    assert text.startswith(f"there is no option {name!r}: {overlay}=NAME has no options of its own") and "{" not in text


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["seed=1,2"], ""),
        (["data.per_class=5,10"], ""),
        (["head=mlp,linear"], ""),
        (["scenario=small_similar,large_similar"], ""),
        (["optimizer.lr=1e-3,1e-2"], ""),
        (["data.val_fraction=0,2"], "; for a number, write data.val_fraction=0.2"),
        (["head=mlp", "head.hidden=64,32"], "; for a list, give 'head.hidden=[64,32]'"),
        (["probe.l2=1,2"], "; for a list, give 'probe.l2=[1,2]'"),
        (["+optimizer.betas=0.9,0.99"], "; for a list, give '+optimizer.betas=[0.9,0.99]'"),
    ],
)
def test_several_values_without_a_sweep_are_a_list_or_a_decimal_number_only_where_the_option_takes_one(words, meant, monkeypatch):
    assert error_text(monkeypatch, *words) == f"{words[-1]} gives several values: add -m to run a sweep over them{meant}"


def test_options_that_take_a_list_although_their_default_is_none_are_known():
    found = set()
    for path in CONF.glob("*/*.yaml"):
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        if isinstance(values, dict) and isinstance(target := values.get("_target_"), str):
            hints = _hints(resolve_name(target))
            takes = {name for name, hint in hints.items() if re.search(r"list\[|Sequence\[|tuple\[", str(hint))}
            found |= {f"{path.parent.name}.{name}" for name in takes if name in values and not isinstance(values[name], list | dict)}
    assert found - {"loss.class_weights", "schedule.stages"} == set(LISTS)  # these two hold names of classes, and mappings


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("init_from.x", "init_from=..."),
        ("data.per_class.x", "data.per_class=..."),
        ("schedule.until.threshold", "'schedule.until={threshold: 2}'"),
    ],
)
def test_a_mapping_is_offered_only_where_the_option_takes_one(name, whole, monkeypatch):
    kind = "a mapping that is given as a whole" if "{" in whole else "a single value"
    meant = f"because {name.rpartition('.')[0]} is {kind}: give {whole}"
    assert error_text(monkeypatch, f"{name}=2") == f"there is no option {name!r}, {meant}"


def test_options_that_take_a_mapping_say_so_in_their_file():
    takes = {f"{path.parent.name}.{name}" for path in CONF.glob("*/*.yaml") for name in TAKES_MAPPING.findall(path.read_text())}
    assert takes == set(MAPPINGS)


@pytest.mark.skipif(find_spec("hydra_plugins.hydra_submitit_launcher") is None, reason="hydra-submitit-launcher is not installed")
@pytest.mark.parametrize("name", ["hydra.launcher.partion", "hydra.launcher.partition"])
def test_a_name_of_another_launcher_comes_with_that_launcher(name):
    meant = f"there is no option {name!r}: give hydra.launcher.partition=... with hydra/launcher=submitit_slurm"
    assert str(unknown_hydra_option(name, [])) == meant
    assert str(unknown_hydra_option(name, ["hydra/launcher=submitit_local", "head=wrong"])) == meant
    own = str(unknown_hydra_option("hydra.launcher.partion", ["hydra/launcher=submitit_slurm", "seed=1,2"]))
    assert own.startswith("there is no option 'hydra.launcher.partion': did you mean 'hydra.launcher.partition'? There are: ")


@pytest.mark.parametrize("word", ["hydra.launcher=joblib", "+hydra.sweeper=optuna", "hydra.launcher="])
def test_an_option_of_a_group_of_hydra_is_given_with_a_slash(word):
    with pytest.raises(UserError) as caught:
        complete([word])
    meant = f"hydra/{word.removeprefix('+').removeprefix('hydra.')}"
    assert str(caught.value).startswith(f"{word}: an option of a group is chosen with a slash, so give {meant}")
    assert complete(["hydra.launcher.n_jobs=2", meant])[:2] == ["hydra.launcher.n_jobs=2", meant]


def test_train_yaml_is_read_once_however_many_groups_are_checked(monkeypatch):
    read = []
    load = OmegaConf.load
    monkeypatch.setattr(OmegaConf, "load", lambda path: read.append(Path(path).name) or load(path))
    option_names._conf_file.cache_clear()
    names = [(option_names.known_names(), option_names.overlay_groups()) for _ in range(3)]
    assert read == ["train.yaml"] and names[0] == names[1] == names[2]
