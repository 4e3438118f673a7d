"""The command `ftlit`: train, advise, predict, embed, report, export, and the store of features."""

import runpy
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ftlit.cli import search_current_folder
from ftlit.cli.command_list import describe_commands, describe_versions
from ftlit.cli.deferred_imports import defer_imports, quick_imports
from ftlit.cli.first_checks import check_inputs, check_output, check_run, print_loading
from ftlit.cli.output import one_line_warnings, robust_output
from ftlit.cli.parsers import (
    ACTIONS,
    cache_parser,
    consolidate_parser,
    demo_parser,
    embed_parser,
    export_parser,
    predict_parser,
    report_parser,
)
from ftlit.errors import UserError, named_options, one_line, unknown
from ftlit.files import disk_error, shared_memory_error
from ftlit.lit.stop_signals import INTERRUPTED_STATUS, owned_signals
from ftlit.recipes.processes.process_state import process_state
from ftlit.run_folder import existing_run


def main() -> None:
    """Run the subcommand that the command line names. Exit status 2 for an unknown one, and for an error of the user; where nobody reads
    stdout any more, training goes on, and other commands end.
    """
    with robust_output(end_unread=True):
        command = sys.argv[1] if len(sys.argv) > 1 else "--help"
        if command in ("-h", "--help"):
            print(describe_commands())
        elif command == "--version":
            print(describe_versions())
        else:
            _run(command, sys.argv[2:])


def _run(command: str, arguments: list[str]) -> None:
    try:
        if command not in COMMANDS:
            raise unknown("command", command, COMMANDS, owner="ftlit")
        run = COMMANDS[command]
        defer_imports()
        with named_options(), nullcontext() if run in (train, advise) else owned_signals():  # training owns them itself
            run(arguments)
    except KeyboardInterrupt:
        print("ftlit: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED_STATUS)
    except (UserError, OSError, RuntimeError) as error:
        text = error if isinstance(error, UserError) else disk_error(error) or shared_memory_error(error, "--workers 0")
        if text is None:
            raise
        print(f"ftlit: {text}", file=sys.stderr)
        sys.exit(2)


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
        raise UserError(f"ftlit advise always runs recipe=advise: leave {other} out, or use ftlit train")
    train([*arguments, "recipe=advise"])


@one_line_warnings()
def predict(arguments: list[str]) -> None:
    """Print a row for each image, or draw a map over it. Raises `SystemExit` with status 1 where some have no prediction."""
    check_output(arguments)
    parser = predict_parser()
    given = parser.parse_intermixed_args(arguments)
    if given.trust:
        search_current_folder()
    check_run(given.run, given.paths)
    check_inputs(given.paths)
    print_loading(given.run)
    with quick_imports():  # here, so that --help stays fast
        import ftlit.inference.dense_map
        import ftlit.inference.predict
        import ftlit.inference.prior
    for flag, is_given in (("--coverage", given.coverage is not None), ("--unsure-first", given.unsure_first)):
        if given.dense and is_given:
            parser.error(f"{flag} has no effect with --dense: leave one of them out")
    prior = None if given.prior is None else ftlit.inference.prior.parse_prior(given.prior)
    if given.dense:
        options = {"label": given.label, "size": given.size, "out": given.out, "trust": given.trust, "prior": prior}
        ftlit.inference.dense_map.predict_dense(given.run, given.paths, **options)
        return
    if given.label is not None or given.size is not None or given.out != ".":
        parser.error("--label, --size and --out need --dense")
    fields = ("format", "top", "batch_size", "workers", "trust", "column", "coverage", "unsure_first")
    how = ftlit.inference.predict.PredictOptions(**{name: getattr(given, name) for name in fields}, prior=prior)
    if ftlit.inference.predict.predict(given.run, given.paths, how, _rows_by(given.devices)):
        sys.exit(1)


def embed(arguments: list[str]) -> None:
    """Write the features of images to a file. Raises `SystemExit` with status 1 where some have none."""
    given = embed_parser().parse_intermixed_args(arguments)
    if given.trust:
        search_current_folder()
    check_inputs(given.paths)
    print_loading(given.source)
    with quick_imports():  # here, so that --help stays fast
        from ftlit.cli.sources import network_and_paths
        from ftlit.inference.embed import EmbedOptions
        from ftlit.inference.embed import embed as write_features

    options = EmbedOptions(given.out, given.cut, given.pooling, given.batch_size, given.workers, given.column)
    if write_features(*network_and_paths(given.source, given.paths, trust=given.trust), options):
        sys.exit(1)


def export(arguments: list[str]) -> None:
    """Write a run's network to a file that needs no ftlit, and print its use. `SystemExit` with status 1 where it predicts otherwise."""
    given = export_parser().parse_intermixed_args(arguments)
    if given.places and not given.with_preprocessing:
        raise UserError(f"{given.places[0]!r} has no effect without --with-preprocessing: leave it out, or add this option")
    if given.trust:
        search_current_folder()
    existing_run(given.run)
    print_loading(given.run)
    with quick_imports():  # here, so that --help stays fast
        from ftlit.export.hand_over import hand_over
        from ftlit.export.images_to_logits import Variant
        from ftlit.recipes.resuming.stored_data import moved_photos, places_of

    if sys.stderr.isatty():  # before seconds of silence
        print(f"exporting {given.run} (--to {given.to}), then comparing the file with the run", file=sys.stderr)
    moved = partial(moved_photos, places=places_of(given.places, "ftlit export")) if given.places else None
    found = hand_over(given.run, given.to, given.out, Variant(given.with_preprocessing, given.half), trust=given.trust, moved=moved)
    print(found.path, found.usage, sep="\n")
    if found.agreement is not None:
        print(*(f"ftlit: {line}" for line in found.agreement.messages()), sep="\n", file=sys.stderr)
        if not found.agreement.enough:
            sys.exit(1)


def consolidate(arguments: list[str]) -> None:
    """Write a plain checkpoint of a folder of shards, and print its path."""
    given = consolidate_parser().parse_args(arguments)
    from ftlit.lit.sharding.consolidate import consolidate as write_plain  # here, so that --help stays fast

    print(write_plain(given.run, given.out))


def demo(arguments: list[str]) -> None:
    """Serve a page that predicts the pictures dropped on it, until Ctrl-C."""
    given = demo_parser().parse_intermixed_args(arguments)
    if not 0 <= given.port <= 65535:
        raise UserError(f"--port {given.port}: give a whole number from 0 (any that is free) to 65535")
    if given.trust:
        search_current_folder()
    existing_run(given.run)
    print_loading(given.run)
    from ftlit.demo.server import check_packages, serve  # here, so that --help stays fast
    from ftlit.inference.load_network import load
    from ftlit.recipes.resuming.stored_data import places_of, train_examples

    check_packages()
    places = places_of(given.places, "ftlit demo")
    network = load(given.run, trust=given.trust)
    train, why = train_examples(Path(given.run).expanduser(), network, places)
    if train is None and places:
        raise UserError(f"the training images of {given.run} are not found: {why}")
    if train is None:
        print(f"ftlit: no training images are shown: {why}", file=sys.stderr)
    serve(network, train, given.run, given.port, why)


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
    given = report_parser().parse_args(arguments)
    from ftlit.cli.reports import report_again  # here, so that --help stays fast

    report_again(Path(given.folder).expanduser(), plots=given.plots, against=given.against)


def cache(arguments: list[str]) -> None:
    """List, check or remove stored features. Raises `SystemExit` with status 1 where a check found damage."""
    if arguments and not arguments[0].startswith("-") and arguments[0] not in ACTIONS:
        raise unknown("action", arguments[0], ACTIONS, owner="ftlit cache")
    parser = cache_parser()
    given = parser.parse_args(arguments)
    if given.action is None:
        parser.error(f"give an action: {', '.join(ACTIONS)}")
    if given.folder is not None and not Path(given.folder).expanduser().is_dir():
        parser.error(f"there is no folder {given.folder}")
    if given.action == "prune" and not given.all and given.unused is None and given.max_gb is None:
        parser.error("say what to remove with --unused 30d, --max-gb 10 or --all")
    if given.action == "prune" and given.max_gb is not None and given.max_gb < 0:
        parser.error(f"--max-gb {given.max_gb:g}: give 0 or more")
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


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "advise": advise,
    "predict": predict,
    "embed": embed,
    "report": report,
    "export": export,
    "consolidate": consolidate,
    "demo": demo,
    "cache": cache,
}


if __name__ == "__main__":
    main()
