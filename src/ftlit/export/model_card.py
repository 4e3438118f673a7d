"""The model card (Mitchell et al. 2019) beside an exported file: task, data, accuracy, calibration, input and licence, as `README.md`."""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError, shorten
from ftlit.formats import JsonObject, read_json
from ftlit.formatting import printable
from ftlit.inference.network import Network
from ftlit.report.run_files import read_run
from ftlit.report.start_rows import RUN as START
from ftlit.run_folder import DATA, read_result

UNKNOWN = "not known"
APACHE = "apache-2.0"  # of the weights of glyph, and of the package of efficientnet_lite0
CARD = """---
license: {licence}
tags: [image-classification]
---

# {title}

| | |
|---|---|
{table}

## Use

```
pip install {packages}
python predict.py {example}
```

`labels.txt` has the classes in the order of the logits. To check an installation, or a program of your own, compare its answer for the
sample with `sample.json`:

```
{sample}
```

The probabilities hold for the class frequencies of the training data. An image that shows none of the classes gets one of them.
"""


@dataclass(frozen=True)
class CardFacts:
    """What the folder of a run records for its model card; empty where it records nothing, as for a checkpoint alone.

    Args:
        images: split -> number of images.
        metrics: of `result.json`.
        weights: origin of the pretrained weights, see `pretrained_weights`.
        earlier: metrics of the run of `init_from`; empty where there is none.
    """

    images: dict[str, int] = field(default_factory=dict)
    metrics: JsonObject = field(default_factory=dict)
    weights: str = UNKNOWN
    earlier: JsonObject = field(default_factory=dict)

    @property
    def is_final(self) -> bool:
        """Whether the run was trained on all images, with `final=true`."""
        return "fitted_on" in self.metrics


def facts_of(folder: Path) -> CardFacts:
    """The facts of a run; what is missing or damaged counts as not recorded."""
    images: dict[str, int] = {}
    metrics: JsonObject = {}
    earlier: JsonObject = {}
    with suppress(UserError, KeyError):  # the data of a custom module are not recorded
        images = {split: part["images"] for split, part in read_json(folder / DATA)["splits"].items()}
    with suppress(UserError):
        found = read_result(folder)
        metrics = found if isinstance(found, dict) else {}
    with suppress(UserError):
        found = read_result(folder / "init_from")
        earlier = found if isinstance(found, dict) else {}
    return CardFacts(images, metrics, pretrained_weights(folder), earlier)


def pretrained_weights(folder: Path) -> str:
    """The origin of the pretrained weights of a run, before it and the runs of `init_from` trained them, without the folders of a machine.

    A run of an earlier release has it in the row of its plan only, which names the run of `init_from`, if there is one.
    """
    with suppress(UserError, KeyError, TypeError, ValueError):
        content = read_run(folder)
        origin = content.get("weights") or dict(content["plan"])["backbone"].rpartition("weights: ")[2].partition("; ")[0]
        if re.match(r"file (best|last)\.ckpt of ", origin):
            return pretrained_weights(folder / "init_from")
        return _without_folder(str(origin))
    return UNKNOWN


def stated_weights(network: Network) -> str:
    """The origin of the pretrained weights as the backbone states it. Without one, nobody knows whether the weights were pretrained."""
    return _without_folder(network.backbone.origin.describe()) if network.backbone.pretrained else UNKNOWN


def _without_folder(origin: str) -> str:
    return f"file {Path(origin.removeprefix('file ')).name}" if origin.startswith("file ") else origin


def model_card(network: Network, facts: CardFacts, *, file: str, images: str, sample: str, packages: str, agreement: str | None) -> str:
    """The text of the card.

    Args:
        network: that was exported.
        facts: see `facts_of`.
        file: name of the exported file and its format.
        images: how an image is prepared for the file.
        sample: what `python predict.py` prints for the sample.
        packages: to install.
        agreement: of the file with `ftlit predict`; `None` where they were not compared.
    """
    licence, about = licence_of(network, facts.weights)
    names = [printable(name) for name in network.class_names]
    kind = "any number of" if network.multilabel else "one of"
    rows = [
        ("task", f"image classification, {kind} {len(names)} classes: {', '.join(names)}"),
        ("file", file),
        ("network", _network(network)),
        ("data", "; ".join(f"{split} {number:,}" for split, number in facts.images.items()) + " images" if facts.images else UNKNOWN),
        ("accuracy", accuracy_of(facts)),
        ("calibration", _calibration(network, facts)),
        ("input", images),
        *((("agreement", agreement),) if agreement else ()),
        ("licence of the weights", about),
    ]
    table = "\n".join(f"| {name} | {_cell(text)} |" for name, text in rows)
    title = f"{(network.backbone.record or {}).get('name', 'network')}: {_cell(shorten(names, most=5))}"
    example = example_name(network.input_spec)
    return CARD.format(licence=licence, title=title, table=table, packages=packages, example=example, sample=sample)


def example_name(spec: InputSpec) -> str:
    """The name of a file as `predict.py` reads it."""
    return "scene.npy" if spec.takes_bands else "photo.jpg"


def licence_of(network: Network, weights: str) -> tuple[str, str]:
    """The licence field of the card, and what is known about the licence of the pretrained weights.

    Args:
        network: that was exported.
        weights: their origin, as the plan of the run names it.
    """
    kind, record = weights.partition(" ")[0], network.backbone.record or {}
    if kind in ("shipped", "package"):
        return APACHE, f"{APACHE} ({weights})"
    if kind == "random":
        return "unknown", "no pretrained weights; choose a licence for the weights of this file"
    if kind == "timm" and (stated := _timm_licence(record.get("name", ""))):
        return stated, f"{stated}, as timm states for {record['name']}"
    if kind == "torchvision":
        return "unknown", f"not stated by torchvision for its weights ({weights}), only for its code (bsd-3-clause); fill it in"
    return "unknown", f"pretrained weights: {weights}; fill in their licence"


def _timm_licence(name: str) -> str | None:
    import timm

    found = timm.get_pretrained_cfg(name, allow_unregistered=True) if timm.is_model(name.partition(".")[0]) else None
    return getattr(found, "license", None)


def _network(network: Network) -> str:
    name = (network.backbone.record or {}).get("name", type(network.backbone).__name__)
    size = sum(parameter.numel() for part in (network.backbone, network.head) for parameter in part.parameters())
    return f"{name} up to {network.backbone.cuts[-1]}, {type(network.head).__name__}, {size:,} parameters"


def _accuracy(metrics: JsonObject, images: dict[str, int]) -> Iterator[str]:
    """The accuracy on test and val; that on val is of the head before it was refitted, where it was."""
    refitted = " (before the refit on train + val)" if metrics.get("test/fitted_on") == "train + val" else ""
    for split, when in (("test", ""), ("val", refitted)):
        accuracy, low, high = (metrics.get(f"{split}/accuracy{end}") for end in ("", "_low", "_high"))
        if accuracy is None:
            continue
        number = f" on {images[split]:,} images" if split in images else ""
        interval = f" (95 % interval {low:.3f} to {high:.3f})" if low is not None and high is not None else ""
        yield f"{split}{when} {accuracy:.4f}{interval}{number}"


def accuracy_of(facts: CardFacts) -> str:
    """The accuracy of a run in words, or why there is none."""
    return "; ".join(_final(facts) if facts.is_final else _accuracy(facts.metrics, facts.images)) or "not measured"


def _final(facts: CardFacts) -> Iterator[str]:
    """That there never were test images, and the accuracy of the run of `init_from`, which had some."""
    yield "not measured: this network was trained on all images (final=true), so there never were test images"
    if "test/accuracy" in facts.earlier:
        test = next(_accuracy(facts.earlier, {}))
        name = printable(Path(str(facts.metrics.get(START, ""))).name)  # without the folders of this machine
        yield f"of the earlier network{f', {name}' if name else ''}: {test}"


def _calibration(network: Network, facts: CardFacts) -> str:
    error = facts.metrics.get("test/ece")
    if error is None:
        return "not measured"
    return f"expected calibration error {error:.3f} on the test images (0: a probability of 0.9 is right in 90 % of the cases)"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
