"""Training from the head on several layers, against its part that reads the last layer, from which a large scenario starts.

python benchmarks/several_cuts.py --data DATA --work FOLDER [--cells hymenoptera:40] [--out FILE]

A cell is a data set of advice.py with a number of labelled examples of each class, a quarter of which are val; images have 64 pixels. A
blend of linear probes is fitted on the last four layers. All layers are then trained from its part of the last layer, and from the whole
head, which is trained with them, as in scenario=large_similar with head.cuts=4; both see the same batches and augmented views. The epoch
that is best on val is tested.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _ledger import interval
from advice import run_cells
from heads import NETWORKS, Example, draw, examples
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ftlit import Backbone, build_optimizer, extract_features, load_backbone
from ftlit.data.input_spec import InputSpec
from ftlit.data.transforms import eval_transform, train_transform
from ftlit.features.extract import Features
from ftlit.finetuning.presets import lr_factors
from ftlit.models.heads import features_for, logits_of
from ftlit.probes.fitted_head.head_probe import HeadProbe, fit_head
from ftlit.probes.layer_probes import LayerProbes
from ftlit.recipes.run.head import AUTO_CUTS

CELLS = "digits:12,hymenoptera:40,sign_digits:12,malaria:40"
SCALE, DECAY, LR, EPOCHS = 0.1, 0.8, 1e-3, 6  # of large_similar, with fewer epochs
BATCH, VIEWS, SIZE, TEST = 32, 2, 64, 150
START, ONE, SEVERAL = "fitted head", "last layer", "several layers"
Images = list[tuple[Image.Image, int]]


def opened(some: Sequence[Example]) -> Images:
    """The images of these examples, of little more than `SIZE` pixels."""
    found = []
    for file, label in some:
        image = Image.open(file)
        image.draft("RGB", (2 * SIZE, 2 * SIZE))
        image = image.convert("RGB")
        scale = 1.25 * SIZE / min(image.size)
        found.append((image if scale >= 1 else image.resize([round(side * scale) for side in image.size]), label))
    return found


def batch(images: Images, transform: Any) -> tuple[Tensor, Tensor]:
    """Tensors of these images in one view, and their labels."""
    return torch.stack([transform(image) for image, _ in images]), torch.tensor([label for _, label in images])


def features(backbone: Backbone, images: Images, transform: Any, store: Path) -> Features:
    """Pooled features at the last layers."""
    parts = (images[begin : begin + BATCH] for begin in range(0, len(images), BATCH))
    return extract_features(backbone, (batch(part, transform) for part in parts), backbone.cuts[-AUTO_CUTS:], cache=store)


@torch.no_grad()
def accuracy(backbone: Backbone, head: nn.Module, images: Images) -> float:
    """On the plain view."""
    tensors, labels = batch(images, eval_transform(_spec(backbone)))
    logits = [logits_of(head, features_for(head, backbone, part)) for part in tensors.split(BATCH)]
    return float((torch.cat(logits).argmax(dim=1) == labels).double().mean())


def trained(backbone: Backbone, probe: HeadProbe, splits: Sequence[Images], transform: Any, seed: int) -> float:
    """Test accuracy of the epoch that is best on val."""
    train, val, test = splits
    network, head = deepcopy(backbone), replace(probe, temperature=1.0).as_head()
    module = nn.ModuleDict({"backbone": network, "head": head})
    module.requires_grad_(True)
    optimizer = build_optimizer(module, partial(torch.optim.AdamW, lr=LR), lr_factors(network.layers_with_parameters, SCALE, DECAY))
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * -(-len(train) // BATCH))
    best, kept = -1.0, module.state_dict()
    torch.manual_seed(seed)  # of the order and the views
    for _ in range(EPOCHS):
        for places in torch.randperm(len(train)).split(BATCH):
            images, labels = batch([train[place] for place in places], transform)
            optimizer.zero_grad()
            cross_entropy(logits_of(head, features_for(head, network, images)), labels).backward()
            optimizer.step()
            rates.step()
        if (now := accuracy(network, head, val)) > best:
            best, kept = now, deepcopy(module.state_dict())
    module.load_state_dict(kept)
    return accuracy(network, head, test)


def measured(data: Path, work: Path, cell: str, seeds: int) -> Iterator[dict[str, Any]]:
    """A row for each seed: test accuracy of the fitted head, and of the network that each start leads to."""
    name, per_class = cell.split(":")
    backbone = load_backbone("glyph") if name == "digits" else NETWORKS["squeezenet1_1"](data / "weights")
    if name != "digits":
        backbone.input_spec = replace(_spec(backbone), size=SIZE)
    backbone.eval().to(memory_format=torch.channels_last)  # statistics of batch norms are kept; twice as fast on CPUs
    plain = eval_transform(_spec(backbone))
    augmented = plain if name == "digits" else train_transform(_spec(backbone))
    known, test = examples(data, name, work)
    tested, held = opened(test[:TEST]), int(per_class) // 4
    for seed in range(seeds):
        chosen = draw(known, int(per_class), seed)
        of_class = [[example for example in chosen if example[1] == number] for number in sorted({label for _, label in chosen})]
        splits = [
            opened([own for each in of_class for own in each[held:]]),
            opened([own for each in of_class for own in each[:held]]),
            tested,
        ]
        torch.manual_seed(seed)
        views = [features(backbone, splits[0], augmented, work / "store") for _ in range(0 if name == "digits" else VIEWS)]
        fitted = features(backbone, splits[0], plain, work / "store")
        probe = fit_head(LayerProbes(), fitted, views, backbone.cuts[-AUTO_CUTS:], "blend")
        starts = {ONE: HeadProbe(probe.parts[:1]), SEVERAL: probe}
        row = {"cell": cell, "seed": seed, START: accuracy(backbone, probe.as_head(), tested)}
        yield row | {start: trained(backbone, own, splits, augmented, seed) for start, own in starts.items()}


def _spec(backbone: Backbone) -> InputSpec:
    assert isinstance(backbone.input_spec, InputSpec)
    return backbone.input_spec


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean accuracies, and the mean difference between the two starts with its 95 % interval over the seeds, in all over the runs."""
    lines = [f"| data, labelled per class | {START} | {ONE} | {SEVERAL} | difference |", "|---" * 5 + "|"]
    for cell in dict.fromkeys(row["cell"] for row in rows):
        own = [row for row in rows if row["cell"] == cell]
        lines.append(f"| {cell.replace(':', ', ')} | {_means(own)} | {_difference(own)} |")
    return "\n".join([*lines, f"| all | {_means(rows)} | {_difference(rows)} |"])


def _means(rows: Sequence[dict[str, Any]]) -> str:
    return " | ".join(f"{sum(row[name] for row in rows) / len(rows):.3f}" for name in (START, ONE, SEVERAL))


def _difference(rows: Sequence[dict[str, Any]]) -> str:
    mean, half = interval([row[SEVERAL] - row[ONE] for row in rows])
    return f"{mean:+z.3f}" + ("" if half is None else f" ± {half:.3f}")


if __name__ == "__main__":
    run_cells(__doc__, CELLS, measured, table)
