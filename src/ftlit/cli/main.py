"""The command `ftlit`: what train.py does, from anywhere; and the store of features."""

import argparse
import re
import runpy
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from ftlit.errors import UserError, one_line, unknown

USAGE = """usage: ftlit COMMAND ...

  train [GROUP=OPTION ...] [NAME=VALUE ...]   fine-tune a pretrained network; `ftlit train --help` lists groups and options
  advise [GROUP=OPTION ...] [NAME=VALUE ...]  measure which scenario suits these images, without training
  predict RUN PATH ... [--dense]              what a run's network says of images, or where in them; `ftlit predict --help`
  report FOLDER                               the page of a run, or the table of a sweep, again
  export RUN --to torchvision|torch|onnx      a run's network for programs without ftlit; `ftlit export --help`
  cache list | verify | prune                 the stored features: sizes, checks, removal; `ftlit cache --help`"""


def main() -> None:
    """Run the subcommand that `sys.argv` names. Exit status 2 where there is none such, or for a mistake."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(USAGE)
        return
    try:
        if command not in COMMANDS:
            raise unknown("command", command, COMMANDS)
        COMMANDS[command](sys.argv[2:])
    except UserError as mistake:
        print(f"ftlit: {mistake}", file=sys.stderr)
        sys.exit(2)


def train(arguments: list[str]) -> None:
    """The same main as train.py's. The file's own path stands in `sys.argv[0]`, so that other processes of a run can start it again."""
    spec = find_spec("ftlit.cli.train")
    assert spec is not None and spec.origin is not None
    sys.argv = [spec.origin, *arguments]
    runpy.run_path(spec.origin, run_name="__main__")


def advise(arguments: list[str]) -> None:
    """The same with `recipe=advise`."""
    for other in (word for word in arguments if word.startswith("recipe=")):
        raise UserError(f"ftlit advise is recipe=advise: leave {other} out, or give it to ftlit train")
    train([*arguments, "recipe=advise"])


def predict(arguments: list[str]) -> None:
    """Print a row for each image, or draw a map over it. Raises `SystemExit` with status 1 where some could not be read."""
    parser = _Parser("ftlit predict", description="What the network of a run says of images: rows, or with --dense a picture of each.")
    parser.add_argument("run", metavar="RUN", help="folder of a run, or a checkpoint")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="images, folders of them, csv files with a column path (of texts: text)")
    parser.add_argument("--top", type=int, default=1, metavar="K", help="name the K likeliest classes")
    parser.add_argument("--format", default="csv", help="csv, or jsonl: an object a line")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images that run together")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read images")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="processes that predict, each on a device of its own")
    parser.add_argument("--trust", action="store_true", help="call classes that are none of ftlit's, where the checkpoint names them")
    parser.add_argument("--dense", action="store_true", help="draw where in the image a class is, window by window")
    parser.add_argument("--label", metavar="CLASS", help="--dense: the class that is drawn; by default the likeliest")
    parser.add_argument("--size", type=int, metavar="PX", help="--dense: of the shorter side; by default twice that of the training")
    parser.add_argument("--out", metavar="FOLDER", default=".", help="--dense: of the pictures; by default the current one")
    given = parser.parse_args(arguments)
    from ftlit.inference import predict as predicting  # here, so that --help stays fast

    if given.dense:
        predicting.predict_dense(given.run, given.paths, label=given.label, size=given.size, out=given.out, trust=given.trust)
        return
    if given.label is not None or given.size is not None or given.out != ".":
        parser.error("--label, --size and --out are of --dense: give it too")
    asked = predicting.Asked(given.format, given.top, given.batch_size, given.workers, given.trust)
    if predicting.predict(given.run, given.paths, asked, _rows_by(given.devices)):
        sys.exit(1)


def export(arguments: list[str]) -> None:
    """Write a run's network to a file that needs no ftlit, print the file and how to load it."""
    parser = _Parser(
        "ftlit export", description="A run's network, with what it takes as input and its class names, in a file without ftlit."
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run, or a checkpoint in it")
    parser.add_argument("--to", required=True, metavar="FORM", help="torchvision (a state dict by its names), torch (torch.export) or onnx")
    parser.add_argument("--out", metavar="FILE", help="by default export/<network>.safetensors, .pt2 or .onnx in the run's folder")
    given = parser.parse_args(arguments)
    from ftlit.inference.export import export_run  # here, so that --help stays fast

    print(*export_run(given.run, given.to, given.out), sep="\n")


def _rows_by(devices: int) -> Callable[..., Any]:
    """What predicts: this process, or several by Lightning."""
    if devices < 1:
        raise UserError(f"--devices {devices}: give a whole number, 1 or more")
    if devices == 1:
        from ftlit.inference.predict import rows_of

        return rows_of
    from ftlit.lit.tasks.predict_in_parallel import rows_of_all  # here, so that one process needs no Lightning

    return partial(rows_of_all, devices=devices)


def report(arguments: list[str]) -> None:
    """Write the page of a run again and print its path, or the table of a sweep."""
    parser = _Parser("ftlit report", description="What a run, or a sweep, came to: report.html, or a table and its files, again.")
    parser.add_argument("folder", metavar="FOLDER", help="of a run, or of a sweep")
    folder = Path(parser.parse_args(arguments).folder).expanduser()
    from ftlit.sweeps import jobs
    from ftlit.sweeps import summary as sweep  # here, so that --help stays fast

    if jobs.is_sweep(folder) or (folder / "multirun.yaml").is_file():
        sweep.report(folder)
        return
    from ftlit.report import html as page

    print(page.write_report(folder))


def cache(arguments: list[str]) -> None:
    """List, check or remove stored features. Raises `SystemExit` with status 1 where a check found damage."""
    if arguments and not arguments[0].startswith("-") and arguments[0] not in ACTIONS:
        raise unknown("action of ftlit cache,", arguments[0], ACTIONS)
    parser = _Parser("ftlit cache", description="The store of features: a feature table for each network, cut and view.")
    actions = parser.add_subparsers(dest="action")
    parsers = {name: actions.add_parser(name, help=text) for name, text in ACTIONS.items()}
    for action in parsers.values():
        action.add_argument("--folder", help="the store; by default what FTLIT_CACHE says, else ~/.cache/ftlit")
    prune = parsers["prune"]
    prune.add_argument("--unused", type=_days, metavar="DAYS", help="all that were not used for so long: 30d")
    prune.add_argument("--max-gb", type=float, metavar="GB", help="until no more than so much is left")
    prune.add_argument("--all", action="store_true", help="all feature tables")
    given = parser.parse_args(arguments)
    if given.action is None:
        parser.error(f"give an action: {', '.join(ACTIONS)}")
    if given.folder is not None and not Path(given.folder).expanduser().is_dir():
        parser.error(f"there is no folder {given.folder}")
    from ftlit.cli import cache as stored  # here, so that --help stays fast

    if given.action == "prune":
        if not given.all and given.unused is None and given.max_gb is None:
            parser.error("say what to remove: --unused 30d, --max-gb 10, or --all")
        if given.max_gb is not None and given.max_gb < 0:
            parser.error(f"--max-gb {given.max_gb:g}: give a number from 0")
    try:
        if given.action == "prune":
            stored.prune(given.folder, unused=0.0 if given.all else given.unused, max_gb=given.max_gb)
        elif given.action == "verify":
            sys.exit(stored.verify(given.folder))
        else:
            stored.show(given.folder)
    except OSError as error:  # somebody else's files
        parser.error(one_line(error))


class _Parser(argparse.ArgumentParser):
    """Mistakes in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise `UserError`."""
        raise UserError(f"{self.prog.removeprefix('ftlit ')}: {message}")


def _days(text: str) -> float:
    """Days, as `30` or `30d`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)d?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r}: give days, 30d for instance")
    return float(found[1])


ACTIONS = {
    "list": "what is stored, the last used first",
    "verify": "read all of it and compare checksums; damaged shards are removed",
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
