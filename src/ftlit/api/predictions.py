"""`predict`: the command `ftlit predict` as a function."""

import warnings
from collections.abc import Iterable
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING

from ftlit.api.words import AnyPath
from ftlit.errors import UserError, closest_path, shorten
from ftlit.plain_arguments import plain_arguments

if TYPE_CHECKING:
    from ftlit.inference.prediction import Prediction
    from ftlit.inference.prior import Prior


@plain_arguments
def predict(
    run: AnyPath,
    paths: AnyPath | Iterable[AnyPath],
    *,
    batch_size: int = 64,
    workers: int | None = None,
    prior: "Prior | None" = None,
) -> dict[str, "Prediction"]:
    """Predict the classes of files: `ftlit predict` as a function. A GPU is used if there is one.

    `ftlit.load(run)` predicts images or texts in memory.

    Args:
        run: folder of a run, or a checkpoint.
        paths: an image, a folder of images, or a csv file of paths or texts; or several of these.
        batch_size: number of inputs that run together.
        workers: number of processes that read images; `None`: by the number of images and cores.
        prior: class frequencies, see `Network.with_prior`.

    Returns:
        Name of an input, as a path below those given -> its prediction. A file that cannot be read is left out, with a warning.

    Raises:
        UserError: a run that cannot be loaded, or a path that does not exist.
    """
    return predicted(run, paths, batch_size=batch_size, workers=workers, prior=prior, stacklevel=3)


def predicted(
    run: AnyPath,
    paths: AnyPath | Iterable[AnyPath],
    *,
    batch_size: int = 64,
    workers: int | None = None,
    prior: "Prior | None" = None,
    stacklevel: int,
) -> dict[str, "Prediction"]:
    """As `predict`, with the place in the calling code that the warning names, see `warnings.warn`."""
    from ftlit.data.tokens import TextSpec  # here, so that the other functions start fast
    from ftlit.inference.load_network import load
    from ftlit.inference.network_inputs import NamedInputs
    from ftlit.inference.predict import rows_of

    network = load(fspath(run))
    network = network if prior is None else network.with_prior(prior)
    places = [fspath(path) for path in ([paths] if isinstance(paths, str | PathLike) else paths)]
    spec = network.backbone.input_spec
    if missing := None if isinstance(spec, TextSpec) else next((path for path in places if not Path(path).exists()), None):
        near = closest_path(Path(missing))
        advice = f"did you mean {str(near)!r}?" if near else "give an image, a folder of images, or a csv file with their paths"
        raise UserError(f"there is no file or folder {missing!r}: {advice}")
    examples = NamedInputs(places, spec)
    found: dict[str, Prediction] = {}
    failed: list[str] = []
    for name, result in rows_of(network, examples, batch_size, workers):
        if isinstance(result, str):
            failed.append(f"{name} ({result})")
        else:
            found[name] = result
    if failed:
        warnings.warn(f"{len(failed)} of {len(examples)} have no prediction: {shorten(failed, most=3)}", stacklevel=stacklevel)
    return found
