"""What `ftlit export` hands over: the file, and beside it a program that predicts without ftlit, labels, a sample, and a model card."""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError, shorten
from ftlit.export.agreement import Agreement, Photos, compare, photos_of
from ftlit.export.export_formats import ExportFormat
from ftlit.export.export_network import export, format_of, metadata_of
from ftlit.export.images_to_logits import Variant
from ftlit.export.model_card import CardFacts, accuracy_of, example_name, facts_of, model_card, stated_weights
from ftlit.export.predict_script import predict_script
from ftlit.export.program_files import ImagesToLogitsFunction
from ftlit.formatting import printable, shell_word, size_in_words
from ftlit.inference.load_network import load
from ftlit.inference.network import Network
from ftlit.plain_arguments import plain_arguments
from ftlit.run_folder import result_checkpoint

SCRIPT, LABELS, CARD, SAMPLE = "predict.py", "labels.txt", "README.md", "sample.json"
WRITER = "ftlit export"  # in the sample: the files beside it are those of an export, and may be replaced
PROBABILITY_TOLERANCE = 0.01


class HandOver(NamedTuple):
    """What was written.

    Args:
        path: of the file.
        usage: in lines, how a program loads the file, reads the names of the classes, and prepares images, and how `predict.py` is used.
        agreement: of a file that prepares images itself with `ftlit predict`; `None` for another one.
    """

    path: Path
    usage: str
    agreement: Agreement | None


@plain_arguments
def export_run(
    run: str | Path | Network,
    to: str,
    out: str | Path | None = None,
    *,
    preprocessing: bool = False,
    half: bool = False,
    trust: bool = False,
) -> tuple[Path, str]:
    """Export the result of a run, or the network of one of its checkpoints, with what a colleague without ftlit needs beside it.

    Args:
        run: its folder, or a checkpoint in it; or a network of your own, see `ftlit.Network`, on the CPU.
        to: `torchvision`, `timm`, `torch` or `onnx`; see `export`.
        out: the file, in a folder of its own; by default `export/<format>/<name of the network>` in the run's folder, or beside a
            checkpoint that lies elsewhere, with `-with-preprocessing` after the format if the file prepares images. A network of your own
            has no default.
        preprocessing: the file takes images of 8 bits of any size, and resizes, crops and normalises them; `torch` and `onnx` only.
        half: store the weights in float16.
        trust: see `ftlit.load`.

    Returns:
        The file, and in lines how a program loads it, how it reads the names of the classes in their order, what images it takes, and how
        `predict.py` beside it is used.

    Raises:
        UserError: not a run of images; a network without `out`; a folder that has such files of others, or of another exported file;
            and see `export`.
    """
    found = hand_over(run, to, out, Variant(preprocessing, half), trust=trust)
    return found.path, found.usage


def hand_over(
    run: str | Path | Network,
    to: str,
    out: str | Path | None,
    variant: Variant,
    *,
    trust: bool = False,
    moved: Callable[[Path, Network], Photos] | None = None,
) -> HandOver:
    """Do what `export_run` does, and compare a file that prepares images with `ftlit predict` on images of the run.

    Args:
        run: see `export_run`.
        to: see `export_run`.
        out: see `export_run`.
        variant: options of the file.
        trust: see `export_run`.
        moved: folder and network of the run -> its images, where they are now; `None`: where the run read them.
    """
    export_format = format_of(to, out)
    network = _network_of(run, to, out, trust=trust)
    name = re.sub(r"[^\w.-]", "_", str((network.backbone.record or {}).get("name", "network")))
    folder, is_result = (Path(out or "").expanduser().parent, False) if isinstance(run, Network) else _folder_of(run)
    own = f"{to}-with-preprocessing" if variant.preprocessing else to  # a file that takes other images does not replace the plain one
    path = folder / "export" / own / f"{name}{export_format.suffixes[0]}" if out is None else Path(out).expanduser()
    _check_beside(path)
    photos = moved(folder, network) if moved else None  # raises before the seconds of the export
    facts = facts_of(folder) if is_result else CardFacts(weights=stated_weights(network))
    agreements: list[Agreement] = []

    def beside(target: Path, written: Path, logits: ImagesToLogitsFunction) -> None:
        images = str(metadata_of(network, export_format, variant)["images"])
        (written.parent / SCRIPT).write_text(predict_script(network, export_format, target, variant), encoding="utf-8")
        (written.parent / LABELS).write_text("".join(f"{_label(name)}\n" for name in network.class_names), encoding="utf-8")
        sample = _write_sample(network, target, written.parent)
        if variant.preprocessing:
            agreements.append(compare(network, logits, photos or photos_of(folder), export_format.least_agreement or 0))
            network.to("cpu", precision="32-true")
        card = model_card(
            network,
            facts,
            file=f"{target.name}, {size_in_words(written.stat().st_size)}{', weights in float16' if variant.half else ''}",
            images=images,
            sample=sample,
            packages=packages_of(export_format),
            agreement=agreements[0].describe() if agreements else None,
        )
        (written.parent / CARD).write_text(card, encoding="utf-8")

    export(network, to, path, variant, beside)
    usage = [*_usage(network, export_format, path, variant), *([f"accuracy: {accuracy_of(facts)}"] if facts.is_final else [])]
    return HandOver(path, "\n".join(usage), agreements[0] if agreements else None)


def _network_of(run: str | Path | Network, to: str, out: str | Path | None, *, trust: bool) -> Network:
    if not isinstance(run, Network):
        return load(run, trust=trust)
    if out is None:
        example = f"export/network{format_of(to, None).suffixes[0]}"
        raise UserError(f"a Network has no run folder: give the path of the file too, as in export_run(network, {to!r}, {example!r})")
    if run.device.type != "cpu":
        raise UserError(f"the Network is on the device {run.device}, but an export needs it on the CPU: give network.to('cpu')")
    return run


def packages_of(export_format: ExportFormat) -> str:
    """The packages that `predict.py` needs, as `pip install` takes them."""
    return " ".join(dict.fromkeys(name.partition(".")[0] for name in (*export_format.packages, "numpy", "pillow")))


def _usage(network: Network, export_format: ExportFormat, path: Path, variant: Variant) -> list[str]:
    load_it = export_format.loading(network, path, repr(str(path)))
    classes = f"classes: {shorten(map(printable, network.class_names))}, in the order of the logits; {export_format.class_names(path)}"
    example = example_name(network.input_spec)
    return [
        f"{load_it}; logits = {export_format.run}",
        classes,
        f"images: {metadata_of(network, export_format, variant)['images']}",
        f"without ftlit: pip install {packages_of(export_format)}; python {shell_word(str(path.parent / SCRIPT))} {example}",
        f"beside it: {LABELS}, {SAMPLE} (the answer for {_sample_name(network.input_spec)}), {CARD} (model card)",
    ]


def _folder_of(run: str | Path) -> tuple[Path, bool]:
    """The folder of the run, or of a checkpoint outside a run; and whether the network is the result of the run."""
    given = Path(run).expanduser()
    if not given.is_file():
        return given, True
    folder = given.absolute().parent
    return (folder.parent, given.name == result_checkpoint(folder.parent).name) if folder.name == "checkpoints" else (folder, False)


def _check_beside(path: Path) -> None:
    """Raise `UserError` where a file of another program, or one that belongs to another exported file, would be replaced."""
    sample: dict[str, Any] = {}
    taken = next((name for name in (CARD, SCRIPT, LABELS, SAMPLE) if (path.parent / name).exists()), None)
    with suppress(OSError, ValueError, TypeError):
        sample = dict(json.loads((path.parent / SAMPLE).read_text(encoding="utf-8")))
    if taken is None:
        return
    if sample.get("written_by") != WRITER:
        why = "was not written by an export"
    elif (other := str(sample.get("file", path.name))) != path.name and (path.parent / other).exists():
        why = f"belongs to {other}"
    else:
        return
    raise UserError(
        f"the export writes {CARD}, {SCRIPT} and other files beside {path.name}, but {path.parent / taken} exists and {why}: give "
        f"another folder, such as {path.parent / path.suffix.removeprefix('.') / path.name}"
    )


def _label(name: str) -> str:
    return " ".join(printable(name).splitlines())


def _sample_name(spec: InputSpec) -> str:
    return "sample.npy" if spec.takes_bands else "sample.png"


def _write_sample(network: Network, target: Path, folder: Path) -> str:
    """Draw a sample, and write it with the prediction of the run. Returns what `predict.py` prints for it.

    It is drawn, not an image of the run: data of others are not handed over unasked.
    """
    spec, name = network.input_spec, _sample_name(network.input_spec)
    drawn = _drawing(spec)
    if spec.takes_bands:
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
        np.save(folder / name, mean + std * (4 * drawn - 2))
    else:
        Image.fromarray((255 * drawn).round().astype(np.uint8).transpose(1, 2, 0)).save(folder / name)
    prediction = network(folder / name)
    answer = {"label": prediction.label, "probability": prediction.probability, "probabilities": prediction.probabilities}
    content = {"written_by": WRITER, "file": target.name, "input": name, **answer, "tolerance": PROBABILITY_TOLERANCE}
    (folder / SAMPLE).write_text(json.dumps(content, indent=1), encoding="utf-8")
    return f"$ python {SCRIPT} {name}\n{name}\t{_label(prediction.label)}\t{prediction.probability:.4f}"


def _drawing(spec: InputSpec) -> np.ndarray[Any, Any]:
    """Coarse and fine colours (C, H, W) in [0, 1], not square and larger than the network's input: a wrong preparation shows."""
    side, generator = spec.resize or spec.size, torch.Generator().manual_seed(0)
    size, channels = (side * 3 // 2, side * 2), spec.channels if spec.takes_bands else 3
    layers = (interpolate(torch.rand(1, channels, 3 * n, 4 * n, generator=generator), size, mode="bilinear")[0] for n in (1, 4, 16))
    drawn: np.ndarray[Any, Any] = torch.stack(list(layers)).mean(0).numpy()
    return drawn
