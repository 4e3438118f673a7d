"""The command `ftlit`: what train.py does, from anywhere."""

import runpy
import sys
from importlib.util import find_spec

from ftlit.errors import unknown

USAGE = """usage: ftlit train [GROUP=OPTION ...] [NAME=VALUE ...]

  train   fine-tune a pretrained network; `ftlit train --help` lists groups and options"""


def main() -> None:
    """Run the subcommand that `sys.argv` names. Exit status 2 where there is none such."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(USAGE)
    elif command == "train":
        train(sys.argv[2:])
    else:
        print(f"ftlit: {unknown('command', command, ['train'])}", file=sys.stderr)
        sys.exit(2)


def train(arguments: list[str]) -> None:
    """The same main as train.py's. The file's own path stands in `sys.argv[0]`, so that other processes of a run can start it again."""
    spec = find_spec("ftlit.recipes.main")
    assert spec is not None and spec.origin is not None
    sys.argv = [spec.origin, *arguments]
    runpy.run_path(spec.origin, run_name="__main__")
