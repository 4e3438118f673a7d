"""The command `ftlit`: train, advise, predict, report, export, and the store of features."""

import argparse
import os
import platform
import re
import runpy
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from ftlit import __version__
from ftlit.errors import UserError, one_line, unknown
from ftlit.files import disk_error
from ftlit.installed import package_version
from ftlit.recipes.run.process_state import process_state

USAGE = """usage: ftlit COMMAND ...

  train [GROUP=OPTION ...] [NAME=VALUE ...]   fine-tune a pretrained network; `ftlit train --help` lists groups and options
  advise [GROUP=OPTION ...] [NAME=VALUE ...]  measure which scenario suits these images, without training
  predict RUN PATH ... [--dense]              predict images with a run's network, or map a class over them; `ftlit predict --help`
  report FOLDER                               write the report of a run, or the table of a sweep, again
  export RUN --to torchvision|torch|onnx      write a run's network for programs without ftlit; `ftlit export --help`
  cache list | verify | prune                 list, check or remove stored features; `ftlit cache --help`
  --version                                   versions of ftlit, Python and the libraries below it"""
LIBRARIES = ("torch", "torchvision", "lightning", "hydra-core")


def main() -> None:
    """Run the subcommand that the command line names. Exit status 2 for an unknown one, and for an error of the user."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(USAGE)
        return
    if command == "--version":
        print(describe_versions())
        return
    try:
        if command not in COMMANDS:
            raise unknown("command", command, COMMANDS)
        COMMANDS[command](sys.argv[2:])
        sys.stdout.flush()
    except BrokenPipeError:
        _end_unread()
    except (UserError, OSError) as error:
        text = error if isinstance(error, UserError) else disk_error(error)
        if text is None:
            raise
        print(f"ftlit: {text}", file=sys.stderr)
        sys.exit(2)


def describe_versions() -> str:
    """The version of this program and those of the libraries that decide what it does, in one line."""
    libraries = ", ".join(f"{name} {package_version(name)}" for name in LIBRARIES)
    return f"ftlit {__version__} (Python {platform.python_version()}, {libraries})"


def _end_unread() -> NoReturn:
    """Exit where nobody reads stdout any more, as in `ftlit predict ... | head`: with the status of a program that SIGPIPE ended."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout once more at exit
    sys.exit(128 + 13)


def train(arguments: list[str]) -> None:
    """Run ftlit/cli/train.py as a program, with its path as `sys.argv[0]`, so that other processes of a run can start it again."""
    spec = find_spec("ftlit.cli.train")
    assert spec is not None and spec.origin is not None
    with process_state(argv=[spec.origin, *arguments]):
        runpy.run_path(spec.origin, run_name="__main__")


def advise(arguments: list[str]) -> None:
    """Train with `recipe=advise`, which trains nothing. Raises `UserError` for another recipe."""
    other = next((word for word in arguments if word.startswith("recipe=")), None)
    if other:
        raise UserError(f"ftlit advise is recipe=advise: leave {other} out, or give it to ftlit train")
    train([*arguments, "recipe=advise"])


def predict(arguments: list[str]) -> None:
    """Print a row for each image, or draw a map over it. Raises `SystemExit` with status 1 where some have no prediction."""
    parser = _predict_parser()
    given = parser.parse_args(arguments)
    import ftlit.inference.predict  # here, so that --help stays fast

    if given.dense:
        options = {"label": given.label, "size": given.size, "out": given.out, "trust": given.trust}
        ftlit.inference.predict.predict_dense(given.run, given.paths, **options)
        return
    if given.label is not None or given.size is not None or given.out != ".":
        parser.error("--label, --size and --out are for --dense: give it too")
    how = ftlit.inference.predict.PredictOptions(given.format, given.top, given.batch_size, given.workers, given.trust)
    if ftlit.inference.predict.predict(given.run, given.paths, how, _rows_by(given.devices)):
        sys.exit(1)


def _predict_parser() -> "_Parser":
    parser = _Parser("ftlit predict", description="Predict images with the network of a run: a row each, or with --dense a map over each.")
    parser.add_argument("run", metavar="RUN", help="folder of a run, or a checkpoint")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="images, folders of images, csv files with a column path (of texts: text)")
    parser.add_argument("--top", type=int, default=1, metavar="K", help="the number of most probable classes to print")
    parser.add_argument("--format", default="csv", help="csv, or jsonl: one JSON object per line")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images per batch")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read images")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="processes that predict, one per device")
    parser.add_argument("--trust", action="store_true", help="call the custom classes that the checkpoint names")
    parser.add_argument("--dense", action="store_true", help="draw the probability of a class over each image, window by window")
    parser.add_argument("--label", metavar="CLASS", help="--dense: the class to draw; by default the most probable one")
    parser.add_argument("--size", type=int, metavar="PX", help="--dense: the shorter side of the image; by default twice that of training")
    parser.add_argument("--out", metavar="FOLDER", default=".", help="--dense: the folder for the maps; by default the current one")
    return parser


def export(arguments: list[str]) -> None:
    """Write a run's network to a file that needs no ftlit, print the file and how to load it."""
    parser = _Parser(
        "ftlit export", description="Write a run's network, its input specification and class names, for programs without ftlit."
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run, or a checkpoint in it")
    parser.add_argument(
        "--to", required=True, metavar="FORMAT", help="torchvision (a state dict with its names), torch (torch.export) or onnx"
    )
    parser.add_argument("--out", metavar="FILE", help="by default export/<network>.safetensors, .pt2 or .onnx in the run's folder")
    given = parser.parse_args(arguments)
    from ftlit.inference.export import export_run  # here, so that --help stays fast

    print(*export_run(given.run, given.to, given.out), sep="\n")


def _rows_by(devices: int) -> Callable[..., Any]:
    """The function that predicts: in this process, or in several that Lightning starts."""
    if devices < 1:
        raise UserError(f"--devices {devices}: give a whole number, 1 or more")
    if devices == 1:
        from ftlit.inference.predict import rows_of

        return rows_of
    from ftlit.lit.tasks.predict_in_parallel import rows_of_all  # here, so that one process needs no Lightning

    return partial(rows_of_all, devices=devices)


def report(arguments: list[str]) -> None:
    """Write the report of a run again and print its path, or the table of a sweep."""
    parser = _Parser("ftlit report", description="Write report.html of a run, or the table of a sweep and its files, again.")
    parser.add_argument("folder", metavar="FOLDER", help="folder of a run, or of a sweep")
    folder = Path(parser.parse_args(arguments).folder).expanduser()
    from ftlit.report import html  # here, so that --help stays fast
    from ftlit.sweeps import jobs, summary

    if jobs.is_sweep(folder) or (folder / "multirun.yaml").is_file():
        summary.report(folder)
    else:
        print(html.write_report(folder))


def cache(arguments: list[str]) -> None:
    """List, check or remove stored features. Raises `SystemExit` with status 1 where a check found damage."""
    if arguments and not arguments[0].startswith("-") and arguments[0] not in ACTIONS:
        raise unknown("action of ftlit cache,", arguments[0], ACTIONS)
    parser = _cache_parser()
    given = parser.parse_args(arguments)
    if given.action is None:
        parser.error(f"give an action: {', '.join(ACTIONS)}")
    if given.folder is not None and not Path(given.folder).expanduser().is_dir():
        parser.error(f"there is no folder {given.folder}")
    if given.action == "prune" and not given.all and given.unused is None and given.max_gb is None:
        parser.error("give what to remove: --unused 30d, --max-gb 10, or --all")
    if given.action == "prune" and given.max_gb is not None and given.max_gb < 0:
        parser.error(f"--max-gb {given.max_gb:g}: give a number from 0")
    import ftlit.cli.cache  # here, so that --help stays fast

    try:
        if given.action == "prune":
            ftlit.cli.cache.prune(given.folder, unused=0.0 if given.all else given.unused, max_gb=given.max_gb)
        elif given.action == "verify":
            sys.exit(ftlit.cli.cache.verify(given.folder))
        else:
            ftlit.cli.cache.show(given.folder)
    except OSError as error:  # files of another user
        parser.error(one_line(error))


def _cache_parser() -> "_Parser":
    parser = _Parser("ftlit cache", description="The store of features: a feature table for each network, cut and view.")
    actions = parser.add_subparsers(dest="action")
    parsers = {name: actions.add_parser(name, help=text) for name, text in ACTIONS.items()}
    for action in parsers.values():
        action.add_argument("--folder", help="folder of the store; by default FTLIT_CACHE, else ~/.cache/ftlit")
    prune = parsers["prune"]
    prune.add_argument("--unused", type=_days, metavar="DAYS", help="remove tables that were not used for this number of days: 30d")
    prune.add_argument("--max-gb", type=float, metavar="GB", help="remove those not used for the longest time, until at most this is left")
    prune.add_argument("--all", action="store_true", help="all feature tables")
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are errors of the user, in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise `UserError`."""
        raise UserError(f"{self.prog.removeprefix('ftlit ')}: {message}")


def _days(text: str) -> float:
    """A number of days, given as `30` or `30d`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)d?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r}: give days, 30d for instance")
    return float(found[1])


ACTIONS = {
    "list": "list the feature tables, the last used first",
    "verify": "read all shards, compare checksums, and remove damaged ones",
    "prune": "remove feature tables, those not used for the longest time first",
}
COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "advise": advise,
    "predict": predict,
    "report": report,
    "export": export,
    "cache": cache,
}


if __name__ == "__main__":
    main()
