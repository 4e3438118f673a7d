"""Resolve `init_from`: copy the run that this one goes on from, and take its backbone, head and recipe into the config."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ftlit.errors import UserError
from ftlit.lit.trainer_internals import rank_before_trainer
from ftlit.printing import print_line
from ftlit.recipes.checks.check_values import AFFINE
from ftlit.recipes.checks.validate import bind
from ftlit.recipes.config.hydra_internals import adopt, choices, compose_again, set_task_overrides, task_overrides
from ftlit.recipes.config.literal_values import text_of
from ftlit.recipes.config.overrides import given
from ftlit.recipes.processes.launched import first_ahead
from ftlit.recipes.resuming.resume import CONFIG, StoredConfig, checkpoint_of, read_config
from ftlit.recipes.resuming.settings import resolved_settings
from ftlit.recipes.start.start_run import copy_of, copy_start, has_own_parts
from ftlit.run_folder import keeps_baseline, read_result

OWN = ("backbone", "head")  # groups that must be those of the run
RECIPE = ("schedule", "optimizer", "lr_scheduler", "average", "loss")  # groups that are those of the run without scenario=...
PROBE_SCENARIO = "scenario=small_similar"  # fits a linear probe as the baseline of a large scenario does
AUGMENTATION = ("data.augment", "data.mix", "data.views")  # `final=true` takes them, because the run was measured with them
DATA_OPTIONS = ("data.batch_size", "data.per_class", *AUGMENTATION)  # those of the run are named where they are not taken
EPOCHS = "trainer.max_epochs"
BATCHNORM = "batchnorm"
LINEAR = ("linear", "linear_probe")  # heads that can take each other's rows
NOT_TAKEN = ("_target_", "_convert_", "reinit", "class_weights", "path", "fused")  # last parts of names


@contextmanager
def start_of_run(cfg: DictConfig) -> Iterator[DictConfig]:
    """`resolve_start` for the run in a block. If the run ends before it began, the copy that was made for it is removed."""
    if cfg.init_from is None:
        yield cfg
        return
    copy = copy_of(cfg)
    is_new = not copy.exists()
    try:
        yield resolve_start(cfg)
    except BaseException:
        if is_new and not Path(cfg.paths.run, CONFIG).exists():
            shutil.rmtree(copy, ignore_errors=True)
        raise


def resolve_start(cfg: DictConfig) -> DictConfig:
    """The config with the settings of the run of `init_from` that the command line does not give, also in the overrides of this program.

    The first process copies the run; a run that is resumed reads its copy.

    Raises:
        UserError: no such run, an option that contradicts it, or another recipe.
    """
    if cfg.recipe != "finetune":
        raise UserError(f"init_from works with recipe=finetune only: leave recipe={cfg.recipe} or init_from out")
    bind(cfg)
    copy = copy_of(cfg)
    if cfg.resume and not Path(copy, CONFIG).is_file():
        checkpoint_of(cfg)  # raises where the run began without init_from, or where there is none
        raise UserError(f"resuming this run needs {copy}, which is missing: restore it, or start a new run with another hydra.run.dir=...")
    with first_ahead("init_from", cfg.rank_timeout):
        if not cfg.resume and rank_before_trainer() == 0:
            checkpoint_of(cfg)  # raises where the folder holds a run
            copy_start(Path(cfg.init_from).expanduser(), copy)
            has_own_parts(cfg, copy)  # raises where it has others than the config
    stored = read_config(copy)
    assert stored is not None
    fits_probe = _fits_probe(cfg, copy)
    words, not_taken = _words_of(stored, cfg, fits_probe=fits_probe)
    if rank_before_trainer() == 0:
        taken = ", ".join([*(f"{group}={stored.chosen.get(group)}" for group in OWN), "input_spec", *_others(words)])
        probe = "; its result was the linear probe, so the linear probe is fitted" if fits_probe else ""
        left = f"; not taken: {', '.join(not_taken)}" if not_taken else ""
        print_line(f"init_from={cfg.init_from}: from that run come {taken}{probe}{left}")
    set_task_overrides(overrides := [*words, *task_overrides()])
    return adopt(compose_again(overrides, with_hydra=True))


def _others(words: Sequence[str]) -> list[str]:
    return [word for word in words if word.lstrip("+").partition("=")[0].partition(".")[0] not in OWN]


def _fits_probe(cfg: DictConfig, copy: Path) -> bool:
    """Whether the network that was measured is a linear probe, and `final=true` fits it again instead of training layers."""
    result = read_result(copy) if cfg.get("final") and not given("scenario") and not _is_choice("schedule") else None
    return isinstance(result, dict) and keeps_baseline(result)


def _words_of(stored: StoredConfig, cfg: DictConfig, *, fits_probe: bool) -> tuple[list[str], list[str]]:
    """The words that give this config the settings of a run, and those of options of the data that are not taken.

    Args:
        stored: config of the run.
        cfg: of this one.
        fits_probe: whether the recipe is that of the linear probe of the run.

    Raises:
        UserError: the command line gives another backbone or head.
    """
    chosen, with_recipe = stored.chosen, not given("scenario")
    words = [f"scenario={chosen['scenario']}"] if with_recipe and chosen.get("scenario") else []
    groups = (*OWN, *(RECIPE if with_recipe else ()))
    if fits_probe:
        words, groups = [PROBE_SCENARIO], (*OWN, "probe")
    found = _options(words)
    for group in groups:
        option = chosen.get(group)
        if given(group) and _is_choice(group) and group in OWN and not _fits(group, option, found.get(group)):
            raise UserError(
                f"init_from={cfg.init_from} takes the {group} of that run, {group}={option}, but {group}={found.get(group)} is given: "
                f"leave {group}=... out"
            )
        if option is not None and option != found.get(group) and not _is_choice(group):
            words.append(f"{group}={option}")
    composed = compose_again([*words, *task_overrides()])
    now, before = (_leaves(OmegaConf.to_container(settings)) for settings in (resolved_settings(composed), stored.settings))
    is_affine = before.get(BATCHNORM) == AFFINE  # so is the network: it has no batch norms any more
    names = [*(group for group in groups if not _is_choice(group) or chosen.get(group) == found.get(group) or group == "backbone")]
    names += [*([EPOCHS] if with_recipe and not fits_probe else ()), *([BATCHNORM] if with_recipe or is_affine else ())]
    for name, value in before.items():
        if not any(name == own or name.startswith(f"{own}.") for own in names) or name not in now or now[name] == value:
            continue
        if name.rpartition(".")[2] in NOT_TAKEN:
            continue
        if not given(name):
            words.append(f"{name}={text_of(value)}")
        elif name.startswith("backbone.") or (name == BATCHNORM and is_affine):
            raise UserError(
                f"init_from={cfg.init_from} continues the backbone of that run, where {name} is {text_of(value)}, but it is "
                f"{text_of(now[name])} here: leave {name} out"
            )
    if reinit := [word for word in given("backbone.reinit") if not word.endswith("=[]")]:
        raise UserError(f"init_from={cfg.init_from} takes the weights of that run, so no layer begins at random: leave {reinit[0]} out")
    differing = [name for name in DATA_OPTIONS if name in now and before.get(name, now[name]) != now[name] and not given(name)]
    # null is the default of some data, which others do not accept
    taken = [name for name in differing if cfg.get("final") and with_recipe and name in AUGMENTATION and before[name] is not None]
    words += [f"{name}={text_of(before[name])}" for name in taken]
    return words, [f"{name}={text_of(before[name])}" for name in differing if name not in taken]


def _options(words: Sequence[str]) -> Mapping[str, Any]:
    """The chosen option of each group with these words before those of the command line."""
    chosen: Mapping[str, Any] = compose_again([*words, *task_overrides()], with_hydra=True).hydra.runtime.choices if words else choices()
    return chosen


def _is_choice(group: str) -> bool:
    """Whether the command line chooses an option of this group."""
    return any(word.lstrip("+").startswith(f"{group}=") for word in given(group))


def _fits(group: str, before: Any, now: Any) -> bool:
    return before is None or before == now or (group == "head" and {before, now} <= set(LINEAR))


def _leaves(node: Any, name: str = "") -> dict[str, Any]:
    """Full name -> value."""
    if not isinstance(node, dict):
        return {name: node}
    return {full: value for key, inner in node.items() for full, value in _leaves(inner, f"{name}.{key}" if name else str(key)).items()}
