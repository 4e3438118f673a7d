"""Command lines of training as Hydra needs them: flags go first, and a search is a sweep."""

import sys

import pytest
import warm
from hydra._internal.utils import get_args_parser

from ftlit.cli.command_words import FLAGS_WITH_VALUE, add_arguments, complete, set_search_mode
from ftlit.errors import UserError


@pytest.mark.parametrize(
    ("overrides", "added"),
    [
        (["hparams_search=optuna"], True),
        (["seed=1", "+hparams_search=custom"], True),
        (["hparams_search=null"], False),
        (["hparams_search=optuna", "hparams_search=null"], False),
        (["-m", "hparams_search=optuna"], False),
        (["hparams_search=optuna", "hydra.mode=RUN"], False),
        (["seed=1,2"], False),
    ],
)
def test_a_search_runs_as_a_sweep_unless_the_command_line_gives_the_mode(overrides, added):
    assert set_search_mode(overrides) == [*overrides, *(["hydra.mode=MULTIRUN"] if added else [])]


@pytest.mark.parametrize(
    "words",
    [
        *(["hparams_search=optuna", "seed=1", *flags] for flags in (["--cfg", "hydra"], ["--cfg", "job"], ["--help"], ["--info=config"])),
        ["--cfg", "job", "seed=1", "hparams_search=optuna"],
    ],
)
def test_hydra_reads_a_search_with_flags(words):
    read = get_args_parser().parse_args(complete(words))
    assert sorted(read.overrides) == ["hparams_search=optuna", "hydra.mode=MULTIRUN", "seed=1"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--epochs", "5"], "there is no option 'epochs': give trainer.max_epochs=5"),
        (["--learning-rate=0.1"], "there is no option 'learning_rate': give optimizer.lr=0.1"),
        (["--seed", "3"], "there is no flag '--seed': options have no leading dashes, so give seed=3"),
    ],
)
def test_a_flag_that_hydra_does_not_have_is_an_error_with_the_option_to_give(words, line):
    with pytest.raises(UserError) as error:
        complete(words)
    assert str(error.value) == line


@pytest.mark.parametrize(
    "flags", [["-m"], ["--config-dir", "own"], ["--config-dir=own"], ["-cd", "own", "-m"], ["--cfg", "job", "--resolve"]]
)
def test_flags_may_stand_between_overrides(flags):
    assert complete(["seed=1", *flags, "head=mlp"]) == [*flags, "seed=1", "head=mlp"]
    assert get_args_parser().parse_args(complete(["seed=1", *flags, "head=mlp"])).overrides == ["seed=1", "head=mlp"]


def test_every_flag_of_hydra_with_a_value_is_known():
    actions = get_args_parser()._actions
    takes_value = {flag for action in actions if action.option_strings and action.nargs is None for flag in action.option_strings}
    assert takes_value == set(FLAGS_WITH_VALUE)


@pytest.mark.e2e
@pytest.mark.parametrize("plus", ["", "+"])
def test_an_argument_beside_a_target_needs_no_plus_and_a_mistyped_one_is_an_error(plus, tmp_path):
    (tmp_path / "my_schedule.py").write_text("from ftlit import Schedule, Stage\n\n\ndef first(layers, start: int = 1): ...\n")
    words = ["schedule._target_=my_schedule.first", f"{plus}schedule.strat=2", "scenario=large_similar"]
    done = warm.run([sys.executable, "-m", "ftlit.cli.train", *words], cwd=tmp_path)
    assert done.returncode == 2 and f"no option 'schedule.strat': did you mean '{plus}schedule.start'?" in done.stderr
    words[1] = f"{plus}schedule.start=first"  # accepted, then checked against the annotation
    done = warm.run([sys.executable, "-m", "ftlit.cli.train", *words], cwd=tmp_path)
    assert done.returncode == 2 and "schedule.start='first': give a whole number" in done.stderr


def test_arguments_of_a_search_stay_as_they_are():
    words = ["hparams_search=optuna", "head._target_=mine.Head", "head.width=choice(1,2)"]
    assert add_arguments(words) == words


@pytest.mark.parametrize("word", ["hydra.run.dir=", "hydra.sweep.dir=''"])
def test_the_folder_of_a_run_has_a_name(word):
    with pytest.raises(UserError, match="has no value: give a folder, or hydra"):
        complete([word])


def test_a_command_line_without_words_stays():
    """It is the README's first command."""
    assert complete([]) == []


@pytest.mark.parametrize("words", [["--cfg", "job"], ["--multirun", "seed=1,2"], ["--config-dir", "own"], ["-m"], ["--info=defaults"]])
def test_flags_of_hydra_stay(words):
    assert complete(words) == words


@pytest.mark.parametrize("words", [["--cfg", "job", "-m", "seed=1,2"], ["--multirun", "--info=defaults", "seed=1,2"]])
def test_a_flag_that_shows_one_config_is_refused_in_a_sweep(words):
    with pytest.raises(UserError, match=r"^--(cfg|info=defaults) shows one config and -m starts a sweep"):
        complete(words)
