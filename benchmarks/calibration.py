"""Linear probes on few images: calibration, at temperature 1 and at the temperature from held-out logits, and prediction sets.

python benchmarks/calibration.py --data DATA [--seeds 5] [--work FOLDER] [--out benchmarks/results/calibration.json]

DATA and the images of a cell are as in heads.py. The probe "head" is that of a small scenario: the last four cuts, and views of photos. The
others are fitted on the last cut without views; "C = 1" is scikit-learn's default, the others choose their L2 penalty on held-out images. A
row has the values of each seed on the test examples: accuracy, expected calibration error in 15 bins of equal width and of equal mass, and
loss; of the sets of coverage .9 the share that holds the label, the mean number of classes and the share of empty sets, with the score 1 -
probability (lac) and with an adaptive one (aps). `--work` keeps features and logits.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _ledger import interval
from _measure import machine, written
from _options import count, existing, interruptible
from heads import CUTS, PHOTOS, VIEWS, backbone_of, draw, examples, features_of
from torch import Tensor
from torch.nn.functional import cross_entropy

from ftlit import Backbone, load_backbone
from ftlit.features.extract import Features
from ftlit.inference.prediction_sets import Calibration
from ftlit.probes.cross_validation import LabelledVectors, cross_validate
from ftlit.probes.fitted_head.calibration import fit_temperature
from ftlit.probes.fitted_head.head_probe import HeadProbe, HeldOutLogits, fit_head
from ftlit.probes.layer_probes import LayerProbes
from ftlit.probes.linear_probe import fit_probe
from ftlit.probes.probe_kinds import PROBE_KINDS

SMALL = "squeezenet1_1, 96 px"
CELLS = (
    ("digits", "glyph"),
    *((name, SMALL) for name in PHOTOS),
    ("hymenoptera", "efficientnet_lite0"),
    ("cats_dogs", "mobilenet_v2"),
    ("malaria", "mobilenet_v2"),
    ("trec", "all-MiniLM-L6-v2"),
    ("sst2", "all-MiniLM-L6-v2"),
)
SIZES = (8, 20)  # per class
BINS = 15
COVERAGE = 0.9
METRICS = ("ece", "ece_mass", "loss")
Fitted = dict[str, dict[str, Tensor]]  # probe -> labels and logits, of held-out and of test examples, at temperature 1


def network_of(data: Path, name: str, network: str) -> Backbone:
    """The network of a cell."""
    if network != SMALL:
        return backbone_of(data, name, network)
    return load_backbone("squeezenet1_1", weights=data / "weights" / "squeezenet1_1_imagenet_torchvision.pth", input_spec={"size": 96})


def default_head(features: Sequence[Features]) -> HeadProbe:
    """The head of a small scenario."""
    return fit_head(LayerProbes(), features[0], features[1:], features[0].cuts[-CUTS:], "blend")


def of_kind(kind: str) -> Callable[[Sequence[Features]], HeadProbe]:
    """A function that fits a probe of this kind on the last cut."""
    return lambda features: fit_head(LayerProbes(kinds=[kind]), features[0], (), features[0].cuts[-1:])


def default_of_sklearn(features: Sequence[Features]) -> HeadProbe:
    """A logistic regression with C = 1 on the last cut."""
    vectors, labels = features[0][features[0].cuts[-1]].read(range(len(features[0]))), features[0].targets
    assert labels is not None
    l2, width = 1 / len(labels), vectors.shape[1]
    classes = int(labels.max()) + 1
    found = cross_validate(LabelledVectors(vectors, labels, (), [width]), classes, [l2], PROBE_KINDS["softmax"], seed=0)
    assert found.logits is not None
    probe = replace(fit_probe(vectors, labels, l2=l2), cuts=features[0].cuts[-1:])
    temperature = fit_temperature(found.logits[0], found.labels)
    return HeadProbe(
        [probe], held_out_logits=HeldOutLogits(found.labels, found.places, found.logits[0] / temperature), temperature=temperature
    )


PROBES: dict[str, Callable[[Sequence[Features]], HeadProbe]] = {
    "head": default_head,
    "softmax": of_kind("softmax"),
    "svm": of_kind("svm"),
    "ridge": of_kind("ridge"),
    "C = 1": default_of_sklearn,
}


def fitted(features: Sequence[Features], test: Features) -> Fitted:
    """Logits of each probe."""
    found = {}
    for name, fit in PROBES.items():
        probe = fit(features)
        held_out, cuts = probe.held_out_logits, probe.parts[-1].cuts
        assert held_out is not None and test.targets is not None
        with torch.no_grad():
            logits = replace(probe, temperature=1.0).as_head()(*(test[cut].read(range(len(test))) for cut in cuts))
        own = {"held_labels": held_out.labels, "held_logits": held_out.logits * probe.temperature}
        found[name] = {**own, "labels": test.targets, "logits": logits, "temperature": torch.tensor(probe.temperature)}
    return found


def fits(data: Path, work: Path, seeds: int) -> Iterator[tuple[str, str, int, list[Fitted]]]:
    """The probes of each cell: one for each seed."""
    for name, network in CELLS:
        backbone = network_of(data, name, network)
        known, test = examples(data, name, work)
        for size in SIZES:
            of_seeds = []
            for seed in range(seeds):
                kept = work / "logits" / f"{name} {network} {size} {seed}.pt"
                if not kept.exists():
                    some = draw(known, size, seed)
                    views = [features_of(backbone, some, work / "store", view) for view in range(1 + (VIEWS if name in PHOTOS else 0))]
                    kept.parent.mkdir(exist_ok=True)
                    torch.save(fitted(views, features_of(backbone, test, work / "store")), kept)
                of_seeds.append(torch.load(kept))
            print(f"{name}, {network}, {size}: done", file=sys.stderr, flush=True)
            yield name, network, size, of_seeds


def calibration_error(probabilities: Tensor, labels: Tensor, *, mass: bool = False) -> float:
    """Mean distance of confidence and accuracy in bins of equal width, or of equal mass, weighted by their size (Guo et al. 2017)."""
    confidence, predicted = probabilities.double().max(dim=1)
    right = (predicted == labels).double()
    ranked = confidence.argsort()
    bins = torch.tensor_split(ranked, BINS) if mass else [torch.nonzero((confidence * BINS).long() == i)[:, 0] for i in range(BINS + 1)]
    return sum(abs(float((confidence[own] - right[own]).sum())) for own in bins) / len(labels)


def scores(own: Mapping[str, Tensor]) -> dict[str, float]:
    """Metrics of a probe on the test examples, at temperature 1 and at its temperature, and of its prediction sets at the latter."""
    labels, temperature = own["labels"], float(own["temperature"])
    found = {"accuracy": float((own["logits"].argmax(dim=1) == labels).double().mean()), "temperature": temperature}
    for when, logits in (("before", own["logits"].double()), ("after", own["logits"].double() / temperature)):
        probabilities = logits.softmax(dim=1)
        errors = (calibration_error(probabilities, labels), calibration_error(probabilities, labels, mass=True))
        found |= {f"{metric}_{when}": value for metric, value in zip(METRICS, (*errors, float(cross_entropy(logits, labels))), strict=True)}
    for name, score in SCORES.items():
        held_out = score((own["held_logits"].double() / temperature).softmax(dim=1))
        threshold = Calibration(held_out.gather(1, own["held_labels"][:, None])[:, 0].sort().values).threshold(COVERAGE)
        within = score((own["logits"].double() / temperature).softmax(dim=1)) <= threshold
        found[f"{name}_coverage"] = float(within.gather(1, labels[:, None]).double().mean())
        found[f"{name}_size"], found[f"{name}_empty"] = (float(x.double().mean()) for x in (within.sum(dim=1), ~within.any(dim=1)))
    return found


def adaptive(probabilities: Tensor) -> Tensor:
    """The probability of all classes that are more probable (APS of Romano et al. 2020, without the class itself: no set is empty)."""
    ranked, order = probabilities.sort(dim=1, descending=True)
    return torch.empty_like(ranked).scatter_(1, order, ranked.cumsum(dim=1) - ranked)


SCORES: dict[str, Callable[[Tensor], Tensor]] = {"lac": lambda probabilities: 1 - probabilities, "aps": adaptive}


def rows_of(name: str, network: str, size: int, of_seeds: Sequence[Fitted]) -> Iterator[dict[str, Any]]:
    """A row for each probe of a cell."""
    for probe in of_seeds[0]:
        each = [scores(found[probe]) for found in of_seeds]
        yield {
            "data": name,
            "network": network,
            "per_class": size,
            "probe": probe,
            "held_out": len(of_seeds[0][probe]["held_labels"]),
            **{key: [own[key] for own in each] for key in each[0]},
        }


def mean(row: Mapping[str, Any], metric: str) -> float:
    """Over the seeds."""
    return float(sum(row[metric]) / len(row[metric]))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The mean over all cells by probe, and the cells of the default head."""
    lines = ["| probe | accuracy | ECE | ECE, bins of equal mass | loss | worst rise of ECE |", "|---|---|---|---|---|---|"]
    for probe in dict.fromkeys(row["probe"] for row in rows):
        own = [row for row in rows if row["probe"] == probe]
        cells = [f"{interval([mean(row, 'accuracy') for row in own])[0]:.3f}"]
        cells += [f"{means(own, f'{metric}_before'):.3f} -> {means(own, f'{metric}_after'):.3f}" for metric in METRICS]
        worst = max(mean(row, "ece_after") - mean(row, "ece_before") for row in own)
        lines.append(f"| {probe} | {' | '.join(cells)} | {worst:+.3f} |")
    heads = [row for row in rows if row["probe"] == "head"]
    lines += ["", "| data, network, per class | accuracy | temperatures | ECE | loss |", "|---|---|---|---|---|"]
    for row in heads:
        cell = f"{row['data']}, {row['network']}, {row['per_class']}"
        changes = " | ".join(f"{mean(row, f'{metric}_before'):.3f} -> {mean(row, f'{metric}_after'):.3f}" for metric in ("ece", "loss"))
        temperatures = f"{min(row['temperature']):.2f} to {max(row['temperature']):.2f}"
        lines.append(f"| {cell} | {mean(row, 'accuracy'):.3f} | {temperatures} | {changes} |")
    return "\n".join(lines)


def table_of_sets(rows: Sequence[dict[str, Any]]) -> str:
    """Coverage and size of the sets of the default head, with the score of ftlit and with another one."""
    head = "| data, network, per class | held-out images | coverage | classes in a set | empty | APS: coverage | classes |"
    lines, heads = [head, "|---" * 7 + "|"], [row for row in rows if row["probe"] == "head"]
    columns = ("lac_coverage", "lac_size", "lac_empty", "aps_coverage", "aps_size")
    for row in heads:
        cells = " | ".join(f"{mean(row, column):.{2 if column.endswith('size') else 3}f}" for column in columns)
        lines.append(f"| {row['data']}, {row['network']}, {row['per_class']} | {row['held_out']} | {cells} |")
    for size in dict.fromkeys(row["per_class"] for row in heads):
        own = [row for row in heads if row["per_class"] == size]
        cells = " | ".join(f"{means(own, column):.{2 if column.endswith('size') else 3}f}" for column in columns)
        lines.append(f"| mean, {size} per class | | {cells} |")
    return "\n".join(lines)


def means(rows: Sequence[Mapping[str, Any]], metric: str) -> float:
    """The mean over cells of the mean over seeds."""
    return sum(mean(row, metric) for row in rows) / len(rows)


def main() -> None:
    """Run, write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=existing, default=os.environ.get("FTLIT_TEST_DATA"), help="default: FTLIT_TEST_DATA")
    parser.add_argument("--seeds", type=count, default=5)
    parser.add_argument("--work", type=Path, help="folder of the features and logits; default: a temporary one")
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    with interruptible(), tempfile.TemporaryDirectory() as own:
        work = given.work or Path(own)
        work.mkdir(parents=True, exist_ok=True)
        rows = [row for cell in fits(given.data, work, given.seeds) for row in rows_of(*cell)]
    if given.out:
        written(given.out, machine(("timm", "transformers")), {"seeds": given.seeds}, rows)
    print(table(rows), table_of_sets(rows), sep="\n\n")


if __name__ == "__main__":
    main()
