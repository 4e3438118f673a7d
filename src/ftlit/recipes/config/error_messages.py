"""Decide which errors of Hydra, and of the objects that it builds, are errors of the user, and word each in one line."""

import errno
import re
import sys
from collections.abc import Iterator

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import InterpolationKeyError, InterpolationResolutionError, OmegaConfBaseException

from ftlit.errors import UserError, one_line, unknown
from ftlit.files import disk_error, shared_memory_error, write_error
from ftlit.recipes.config import hydra_errors, hydra_internals
from ftlit.recipes.config.option_names import below_a_list, renamed_option
from ftlit.recipes.config.override_errors import composed_without, wrong_override
from ftlit.recipes.config.synonyms import chosen_synonym, run_of
from ftlit.recipes.config.syntax_errors import bad_group_value, unreadable

PLUGIN_EXTRAS = {  # options that another package brings -> the extra that installs it
    "hydra/sweeper=optuna": "sweep",
    "hydra/launcher=joblib": "sweep",
    "hydra/launcher=submitit_slurm": "slurm",
    "hydra/launcher=submitit_local": "slurm",
    "hydra/launcher=ray": "ray",
}
OUT_OF_MEMORY = (
    "not enough memory: give a smaller data.batch_size (trainer.accumulate_grad_batches keeps the effective batch size), "
    "a smaller backbone.input_spec.size or head, or trainer.precision=bf16-mixed"
)
IMAGE_FILES = ("folder", "csv", "unlabelled")  # options of data that have on_bad_image
MAX_CHARACTERS = 300  # of a message of submitit, which may hold the log of a job
NO_GPU = "torch finds no GPU: give trainer=auto or trainer=cpu"
LIGHTNING_HINTS = {  # part of a message of Lightning -> advice for the user
    "No supported gpu backend": NO_GPU,
    "CUDAAccelerator` can not run": NO_GPU,
}


def as_user_error(error: BaseException) -> UserError | None:
    """The error of the user that caused `error`, in one line; `None` for a fault of the program."""
    chain = list(_chain(error))
    for cause in chain:
        if isinstance(cause, UserError):
            return _bad_image(cause) or cause
    for cause in chain:
        if disk := disk_error(cause):
            return disk
        if isinstance(cause, OSError) and cause.errno == errno.ENAMETOOLONG:  # an option of a group is a file's name
            return UserError(f"a name is too long for a file or folder ({one_line(cause)[:100]}...): give a shorter name")
        if is_out_of_memory(cause):
            return UserError(OUT_OF_MEMORY)
        if full := shared_memory_error(cause, "data.num_workers=0"):
            return full
        if type(cause).__module__.startswith("submitit."):  # SLURM refused a job, or ended it
            return UserError(f"hydra/launcher: {one_line(cause)[:MAX_CHARACTERS]}")
        if of_launcher := hydra_errors.unknown_of_launcher(cause):
            return unknown("option", *of_launcher, owner="hydra.launcher")
        if isinstance(cause, MissingConfigException):
            return _wrong_option(cause)
        if isinstance(cause, ValueError) and str(cause).startswith("No trials are completed"):  # Optuna's
            return UserError("all trials of this search failed: their errors are printed above")
        if any(map(hydra_errors.is_wrong_index, chain)) and (below := below_a_list(sys.argv[1:], composed_without(""))):
            return below
        if isinstance(cause, ConfigCompositionException):
            return wrong_override(chain)
        if hydra_errors.is_bad_group_value(cause):
            return bad_group_value(sys.argv[1:])
        if isinstance(cause, OverrideParseException):
            return unreadable(str(cause.override))
        if call := hydra_errors.failed_call(cause):
            return _refused_arguments(call, cause)
        if isinstance(cause, OmegaConfBaseException) and str(cause.full_key or "").endswith("._target_"):
            return _no_target(str(cause.full_key).removesuffix("._target_"))
        if folder := hydra_errors.run_folder_error(cause):
            return _no_run_folder(folder)
        if isinstance(cause, InterpolationResolutionError):
            return _unresolved(cause)
        if isinstance(cause, HydraException | OmegaConfBaseException):
            return UserError(one_line(cause))
    return _misconfigured(error)


def _bad_image(error: UserError) -> UserError | None:
    """The error for an image that cannot be read, with the option that leaves it out, where the data has that option."""
    images = sys.modules.get("ftlit.data.images")  # not imported here: that takes seconds
    if images is None or not isinstance(error, images.BadImage) or hydra_internals.choices().get("data") not in IMAGE_FILES:
        return None
    return UserError(f"{error}; to leave such files out, start a new run with data.on_bad_image=skip")


def _no_run_folder(error: OSError) -> UserError:
    """The error for the folder of a run that cannot be made."""
    run = run_of(str(error.filename))
    if run != error.filename:
        return UserError(f"{error.filename} is a checkpoint, but hydra.run.dir takes the folder of a run: give hydra.run.dir={run}")
    return UserError(f"{write_error(error.filename, error)}; to use another folder for the run, give hydra.run.dir=...")


def _no_target(key: str) -> UserError:
    """The error for a node, of a custom option most likely, that does not say what to build."""
    option = hydra_internals.choices().get(key)
    place = f"the file of {key}={option}" if option else key
    return UserError(
        f"{place} has no _target_: add the import path of a class or function, such as `_target_: my_package.my_module.MyClass`"
    )


def _unresolved(error: InterpolationResolutionError) -> UserError:
    """The error for a value such as `${seeed}` that refers to a value which the config does not have."""
    place = f"{error.full_key}: " if error.full_key else ""
    text = str(error).partition("\n")[0]
    if isinstance(error, InterpolationKeyError) and (found := re.search("'(.+)'", text)):
        return UserError(
            f"{place}${{{found[1]}}} refers to a value {found[1]!r}, which the config does not have: correct the name, or give a value"
        )
    cause = re.sub(r"^\w+ raised while resolving interpolation: ", "", text).strip('"')
    return UserError(f"{place}the value with ${{...}} cannot be resolved: correct it, or give another value ({cause})")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, or torch on a CPU or GPU, could not allocate memory."""
    kind = type(error).__name__
    return kind in ("MemoryError", "OutOfMemoryError") or (
        isinstance(error, RuntimeError) and any(part in str(error) for part in ("can't allocate memory", "not enough memory"))
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()  # an error can be its own cause
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__  # not the context: an error of ours that is raised while a user error is handled is a fault


def _refused_arguments(call: hydra_errors.FailedCall, error: BaseException) -> UserError | None:
    """The error of a target that does not accept its arguments. `None` for another kind of error, or one that passed through ftlit,
    which raises `UserError` for arguments.
    """
    prefix = f"cannot build {call.node}: " if call.node else ""
    if call.cause is None:
        return UserError(f"{prefix}{one_line(error)}")
    if misconfigured := _misconfigured(call.cause):
        return UserError(f"{call.node}: {misconfigured}" if call.node else str(misconfigured))
    foreign = not any(name.startswith("ftlit.") for name in call.modules)
    if isinstance(call.cause, OSError | ImportError) or (isinstance(call.cause, TypeError | ValueError) and foreign):
        return UserError(f"{prefix}{one_line(call.cause)}{hydra_errors.option_of(call, sys.argv[1:])}")
    return None


def _misconfigured(error: BaseException) -> UserError | None:
    """Lightning's error for a wrong choice, with advice where there is some."""
    exceptions = sys.modules.get("lightning.fabric.utilities.exceptions")  # not imported here: that takes seconds
    if exceptions is None or not isinstance(error, exceptions.MisconfigurationException):
        return None
    text = one_line(error)
    return UserError(next((hint for part, hint in LIGHTNING_HINTS.items() if part in text), text))


def _wrong_option(error: MissingConfigException) -> UserError:
    """`backbone=resnet51`: the closest match, then the options that Hydra lists."""
    missing = hydra_errors.missing_option(str(error))
    options = [option for option in error.options or [] if not option.startswith("_")]
    if missing is None:
        return UserError(one_line(error))
    group, option = missing
    if renamed := renamed_option(f"{group}={option}"):
        return renamed
    if known := chosen_synonym(group, option):
        return known
    if extra := PLUGIN_EXTRAS.get(f"{group}={option}"):
        return UserError(f'{group}={option} needs another package: pip install "ftlit[{extra}]"')
    return unknown("option", option, options, owner=group) if options else UserError(one_line(error))
