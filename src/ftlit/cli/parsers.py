"""The arguments of `ftlit predict`, `embed`, `export`, `consolidate`, `demo`, `report` and `cache`, and their help."""

import argparse
import re
from collections.abc import Iterator, Mapping
from typing import NoReturn

from ftlit.errors import UserError, unknown

ACTIONS = {
    "list": "list the feature tables, most recently used first",
    "verify": "check all files of the feature tables against their checksums, and remove damaged ones",
    "prune": "remove feature tables, least recently used first",
}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are errors of the user, in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise `UserError`: what was given, and what is accepted."""
        name, found = self.prog.removeprefix("ftlit "), re.fullmatch(r"(.+): (.+)", message)
        if found and found[1] == "unrecognized arguments":
            raise self._unknown(found[2].split()[0])
        if found and found[1] == "the following arguments are required":
            raise UserError(f"{self.prog} needs {found[2].replace(', ', ' and ')}; {self.epilog or f'see {self.prog} --help'}")
        if found := re.fullmatch(r"argument (--\S+): invalid (int|float) value: '(.*)'", message):
            raise UserError(f"{name}: {found[1]} {found[3]}: give a {'whole ' if found[2] == 'int' else ''}number")
        raise UserError(f"{name}: {message}")

    def _unknown(self, word: str) -> UserError:
        """The error for a word that no argument takes."""
        if not word.startswith("-"):
            return UserError(f"{self.prog} has no argument {word!r}: leave it out, or see {self.prog} --help")
        return unknown("option", word.partition("=")[0], sorted(set(self.options())), owner=self.prog)

    def options(self) -> Iterator[str]:
        """The options, those of actions such as `ftlit cache prune` included."""
        for action in self._actions:
            yield from (flag for flag in action.option_strings if flag.startswith("--"))
            if isinstance(action.choices, Mapping):  # of actions, name -> parser
                for parser in action.choices.values():
                    yield from parser.options()


def _days(text: str) -> float:
    """A number of days, given as `30` or `30d`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)d?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of days, such as 30d")
    return float(found[1])


def predict_parser() -> _Parser:
    """The arguments of `ftlit predict`."""
    parser = _Parser(
        "ftlit predict",
        description="Predict the classes of images with the network of a run: one row per image, or with --dense one map per image.",
        epilog="example: ftlit predict runs/mine photo.png more/photos --top 3 > predictions.csv",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run, or a checkpoint")
    _add_paths(parser)
    parser.add_argument("--top", type=int, default=1, metavar="K", help="number of most probable classes to print (default: %(default)s)")
    parser.add_argument("--format", default="csv", help="csv, or jsonl: one JSON object per line (default: %(default)s)")
    _add_reading(parser)
    parser.add_argument(
        "--prior",
        metavar="PRIOR",
        help="class frequencies of the new images: balanced, train (as in the training images), or name=share,... "
        "(default: those that the network was trained for)",
    )
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="processes that predict, one per device (default: %(default)s)")
    _add_trust(parser)
    parser.add_argument(
        "--coverage",
        type=float,
        metavar="SHARE",
        help="add a column with a prediction set: classes that include the true one with about this probability, such as 0.9",
    )
    parser.add_argument("--unsure-first", action="store_true", help="print the least certain predictions first (default: input order)")
    parser.add_argument("--dense", action="store_true", help="draw the probability of a class over each image, window by window")
    parser.add_argument("--label", metavar="CLASS", help="only with --dense: the class to draw (default: the most probable one)")
    parser.add_argument(
        "--size",
        type=int,
        metavar="PX",
        help="only with --dense: resize the shorter side of each image to this many pixels (default: twice the training size)",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", default=".", help="only with --dense: the folder to write the maps to (default: current folder)"
    )
    return parser


def embed_parser() -> _Parser:
    """The arguments of `ftlit embed`."""
    parser = _Parser(
        "ftlit embed",
        description="Write the features of images, vectors (N, C) in float32, and their names to one file.",
        epilog="example: ftlit embed resnet18 photos more/photo.png --out features.npz",
    )
    parser.add_argument(
        "source",
        metavar="RUN_OR_BACKBONE",
        help="folder of a run, a checkpoint, or a backbone as in backbone=NAME; its options may follow: backbone.weights=FILE",
    )
    _add_paths(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write: .npz (names, features) or .parquet (name, features)")
    parser.add_argument("--cut", metavar="LAYER", help="the layer whose features are written (default: the last one of the network)")
    parser.add_argument("--pooling", default="average", metavar="NAME", help="average, max or 2x2 (default: %(default)s)")
    _add_reading(parser)
    _add_trust(parser)
    return parser


def export_parser() -> _Parser:
    """The arguments of `ftlit export`."""
    parser = _Parser(
        "ftlit export",
        description="Export the network of a run, with input specification and class names, for use without ftlit.",
        epilog="example: ftlit export runs/mine --to onnx",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run, or a checkpoint in it")
    _add_places(parser)
    parser.add_argument(
        "--to",
        required=True,
        metavar="FORMAT",
        help="torchvision or timm (a state dict with the names of this library), torch (torch.export) or onnx",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="file to write (default: export/FORMAT/<network>.safetensors, .pt2 or .onnx in the run's folder); predict.py, labels.txt, a "
        "sample and README.md are written beside it",
    )
    parser.add_argument(
        "--with-preprocessing",
        action="store_true",
        help="only torch and onnx: the file takes images of 8 bits of any size, and resizes, crops and normalises them itself",
    )
    parser.add_argument("--half", action="store_true", help="store the weights in float16, in half the space; the file computes in float32")
    _add_trust(parser)
    return parser


def consolidate_parser() -> _Parser:
    """The arguments of `ftlit consolidate`."""
    parser = _Parser(
        "ftlit consolidate",
        description="Turn a checkpoint of trainer=fsdp2, a folder of shards, into a plain checkpoint for ftlit predict, export and "
        "others. It needs memory for the weights, but no GPU.",
        epilog="example: ftlit consolidate runs/mine",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run: its best epoch, or its last step if there is none; or a checkpoint")
    parser.add_argument(
        "--out", metavar="FILE", help="file to write (default: checkpoints/best.ckpt of the run, or last-whole.ckpt beside last.ckpt)"
    )
    return parser


def demo_parser() -> _Parser:
    """The arguments of `ftlit demo`."""
    parser = _Parser(
        "ftlit demo",
        description="Serve a page on this machine (127.0.0.1). Drop a picture on it to see its classes, its class map and the nearest "
        "training images.",
        epilog="example: ftlit demo runs/mine",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run, or a checkpoint")
    _add_places(parser)
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="port of the page; 0: any that is free (default: %(default)s)")
    _add_trust(parser)
    return parser


def _add_places(parser: _Parser) -> None:
    parser.add_argument(
        "places", nargs="*", metavar="data.root=FOLDER", help="where the data of the run are now, if they were moved; or data.csv=FILE"
    )


def _add_paths(parser: _Parser) -> None:
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="images, folders of images, or csv files with a column named path (named text for a network that takes texts)",
    )


def _add_reading(parser: _Parser) -> None:
    parser.add_argument("--column", metavar="NAME", help="the column to read in csv files (default: path for images, text for texts)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images per batch (default: %(default)s)")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="number of worker processes that read images, 0 for none (default: depends on the number of images and CPU cores)",
    )


def _add_trust(parser: _Parser) -> None:
    parser.add_argument(
        "--trust", action="store_true", help="import and call the custom classes that the checkpoint names: this runs their code"
    )


def report_parser() -> _Parser:
    """The arguments of `ftlit report`."""
    parser = _Parser(
        "ftlit report",
        description="Write report.html of a run again, or the table of a sweep (sweep.md, settings.csv and others).",
        epilog="example: ftlit report runs/mine",
    )
    parser.add_argument("folder", metavar="FOLDER", help="folder of a run, or of a sweep")
    plots = "of a run: write its plots in this format too, to FOLDER/report"
    parser.add_argument(
        "--against",
        nargs="+",
        metavar="VALUE",
        help="only compare (paired): a run with the run in folder VALUE, the settings of a sweep with one, head=mlp data.per_class=5",
    )
    parser.add_argument("--plots", choices=["pdf", "svg"], action="append", default=[], help=plots)
    return parser


def cache_parser() -> _Parser:
    """The arguments of `ftlit cache` and of its actions."""
    parser = _Parser(
        "ftlit cache",
        description="Manage stored features: one feature table for each network, layer and view (the plain image or an augmented version).",
        epilog="example: ftlit cache prune --unused 30d --max-gb 10",
    )
    actions = parser.add_subparsers(dest="action")
    parsers = {name: actions.add_parser(name, help=text) for name, text in ACTIONS.items()}
    for action in parsers.values():
        action.add_argument(
            "--folder", help="folder of the stored features (default: the environment variable FTLIT_CACHE, else ~/.cache/ftlit)"
        )
    prune = parsers["prune"]
    prune.add_argument(
        "--unused", type=_days, metavar="DAYS", help="remove feature tables that were not used for this many days, given as 30 or 30d"
    )
    prune.add_argument(
        "--max-gb", type=float, metavar="GB", help="remove the least recently used feature tables until at most this many GB are left"
    )
    prune.add_argument("--all", action="store_true", help="remove all feature tables")
    return parser
