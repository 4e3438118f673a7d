"""Read what Hydra's errors say: from their messages, from where they were raised, and from how the version of Hydra wraps them.

Tried with Hydra 1.3.8 and 1.4.0rc3. Each function has a contract test in tests/recipes/config/test_hydra_internals.py.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from traceback import walk_tb

from hydra.errors import InstantiationException


def missing_option(message: str) -> tuple[str, str] | None:
    """Group and option of the config file that Hydra did not find, read from the message of its `MissingConfigException`."""
    found = re.search(r"Could not find '((?:hydra/)?[^/]+)/(.+)'", message)  # an option may be a path
    return (found[1], found[2]) if found else None


def rejected_name(message: str) -> str | None:
    """The name that Hydra did not find in the config, read from the message of its `ConfigCompositionException`."""
    found = re.search(r"Could not (?:override|find|delete|delete from config\.) '([^'@=]+)", message)
    return found[1] if found else None


def group_of_replacement(message: str) -> str | None:
    """The group of the option that replaces another group's option under its own name (`backbone@experiment.backbone`), read from the
    message of a `ConfigCompositionException`: its file lacks the line `# @package _global_`.
    """
    found = re.search(r"(?:Could not override|No earlier Group Default for) '[\w/]+@(\w+)\.", message)
    return found[1] if found else None


def is_bad_group_value(error: BaseException) -> bool:
    """Whether Hydra refused something other than a name as the option of a group: `scenario=null`, `head=3`, `data=[1,2]`."""
    if isinstance(error, TypeError):  # numbers in a list of options
        modules = [str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(error.__traceback__)]
        return bool(modules) and modules[-1] in ("hydra._internal.defaults_list", "hydra.core.default_element")
    return isinstance(error, ValueError) and str(error).startswith("Config group override must be")


def is_wrong_index(error: BaseException) -> bool:
    """Whether OmegaConf took the last part of `backbone.reinit.layer4=...` as an index of a list, and found none."""
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(error.__traceback__)]
    return isinstance(error, ValueError | IndexError) and bool(modules) and modules[-1].startswith("omegaconf.")


def swept_value(message: str) -> str | None:
    """The word `name=1,2` that Hydra refuses outside of a sweep, read from the message of its `ConfigCompositionException`."""
    found = re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)' ?(?:1\. |requires)", message)
    return found[1] if found else None


def added_again(message: str) -> str | None:
    """The word `name=value` to give in place of `+name=value` where the name has a value, read from the message of a
    `ConfigCompositionException`.
    """
    found = re.search(r"An item is already at '.+?'\. Either remove \+ prefix: '(.+?)' Or add a second \+", message)
    return found[1] if found else None


def chosen_twice(message: str) -> str | None:
    """The group of which two options are chosen, by a `+` or by an entry of a defaults list without `override`, read from the message of a
    `ConfigCompositionException`.
    """
    found = re.search(r"Multiple values for ([\w/]+)\. To override a value|(?:^|\s)([\w/]+) appears more than once in the final", message)
    return (found[1] or found[2]) if found else None


def rejected_override(message: str) -> tuple[str, str] | None:
    """The config file whose defaults list overrides a group that Hydra does not find, and that group as Hydra reads it, read from the
    message of a `ConfigCompositionException`.
    """
    found = re.search(r"In '([^']+)': (?:Could not override|.*No earlier Group Default for) '([^'@]+)", message)  # 1.3 | later
    return (found[1], found[2]) if found else None


def run_folder_error(error: BaseException) -> OSError | None:
    """The error, where Hydra could not make the folder of a run or of a sweep."""
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(error.__traceback__)]
    callers = [name for name in modules if name.partition(".")[0] not in ("pathlib", "os")]
    from_hydra = bool(callers) and callers[-1].startswith(("hydra.", "hydra_plugins."))
    return error if isinstance(error, OSError) and error.filename and from_hydra else None


@dataclass(frozen=True)
class FailedCall:
    """A call of `instantiate` that failed.

    Attributes:
        node: full name of the config node, empty for the root.
        cause: what the target raised, or why it cannot be imported; `None` where Hydra refused the node itself.
        modules: names of the modules through which `cause` passed inside the target.
    """

    node: str
    cause: BaseException | None
    modules: list[str]


def failed_call(error: BaseException) -> FailedCall | None:
    """Read what Hydra adds to the error of a failed call: 1.3 wraps it, 1.4 adds a note. `None` for any other error."""
    wrapped = isinstance(error, InstantiationException)
    text = str(error) if wrapped else "\n".join(getattr(error, "__notes__", ()))
    found = re.search(r"full_key: (\S+)", text)
    if not wrapped and found is None:
        return None
    cause = error.__cause__ if wrapped else error
    modules = [str(frame.f_globals.get("__name__", "")) for frame, _ in walk_tb(cause.__traceback__ if cause else None)]
    last = max((i for i, name in enumerate(modules) if name.startswith("hydra._internal.")), default=-1)
    return FailedCall(found[1] if found else "", cause, modules[last + 1 :])


def unknown_of_launcher(error: BaseException) -> tuple[str, list[str]] | None:
    """The option of a launcher that submitit does not have, and those that it has."""
    found = re.match(r"Unknown argument '(\w+)' for executor '\w+' .*?Valid arguments: (.*)$", str(error), re.MULTILINE)
    if not isinstance(error, NameError) or found is None:
        return None
    return found[1], [*found[2].split(", "), *re.findall(r"'(\w+)': <class", str(error))]


def option_of(call: FailedCall, words: Sequence[str]) -> str:
    """What to change in the words of a command line where a target, or a function in it, refused or lacks an argument; else empty."""
    text = str(call.cause) if call.node and isinstance(call.cause, TypeError) else ""
    if found := re.search(r"unexpected keyword argument '(\w+)'", text):
        name = f"{call.node}.{found[1]}"
        given = any(word.lstrip("+").startswith(f"{name}=") for word in words)
        return f": leave {name} out" if given else f": add the argument {found[1]} to the function of {call.node}._target_"
    if found := re.search(r"missing \d+ required .*?: '(\w+)'", text):
        return f": give +{call.node}.{found[1]}=..."
    return ""
