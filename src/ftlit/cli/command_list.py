"""The list of commands and the versions that `ftlit --help` and `ftlit --version` print."""

import platform

from ftlit import __version__
from ftlit.cli.help_layout import paragraph, two_columns
from ftlit.installed import package_version

COMMAND_ROWS = (
    ("ftlit train [GROUP=OPTION ...]", "fine-tune a pretrained network"),
    ("ftlit advise [GROUP=OPTION ...]", "measure, without training, whether to fit a linear probe or to fine-tune, and at which cut"),
    ("ftlit predict RUN PATH ...", "predict the classes of images, or draw the probability of a class over each image"),
    ("ftlit embed RUN_OR_BACKBONE PATH ... --out FILE", "write the features of images to a file"),
    ("ftlit report FOLDER", "write the report of a run again, or the table of a sweep"),
    ("ftlit export RUN --to FORMAT", "export the network of a run for use without ftlit"),
    ("ftlit consolidate RUN", "make a plain checkpoint of the folder of shards that trainer=fsdp2 writes"),
    ("ftlit demo RUN", "show a page that predicts the pictures dropped on it"),
    ("ftlit cache list | verify | prune", "list, check or remove stored features"),
    ("ftlit --version", "versions of ftlit, Python, torch, torchvision, Lightning and Hydra"),
)
LIBRARIES = ("torch", "torchvision", "lightning", "hydra-core")


def describe_commands() -> str:
    """A line for each command."""
    last = paragraph("ftlit COMMAND --help explains a command, its options and their defaults.")
    return "\n\n".join(["usage: ftlit COMMAND ...", two_columns("Commands", COMMAND_ROWS), last])


def describe_versions() -> str:
    """The version of this program and those of the libraries that decide what it does, in one line."""
    libraries = ", ".join(f"{name} {package_version(name)}" for name in LIBRARIES)
    return f"ftlit {__version__} (Python {platform.python_version()}, {libraries})"
