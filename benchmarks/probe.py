"""Time to fit a probe for 20 L2 penalties, compared with scikit-learn, as a markdown table.

python benchmarks/probe.py [--sizes 1000x512x10,4000x256x20,10000x512x100] [--kinds softmax,svm]

The features are synthetic: classes around random centres, features of very different variance, rotated, standardised; float32 on both
sides. scikit-learn runs with all cores for its linear algebra (its default) and with one, which may be faster for small matrices; its own
loops are always single-threaded. Its tolerance is reduced for each L2 penalty, from its default 1e-4, until its objective is within 1e-4
of ours or its 1,000 iterations are used up; only the time of the last of these fits counts. The gap of a side is the largest relative
distance of its objective to the better of the two over all L2 penalties. Each side runs once, after a warm-up, because scikit-learn takes
minutes for all penalties.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from _options import count, several
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits
from torch import Tensor

from ftlit.probes.solver import solve

L2_PENALTIES = [10 ** (-i / 4) for i in range(20)]
WARM_UP_SAMPLES = 200
REL_TOLERANCE = 1e-4
TOLERANCES = [10.0**-e for e in range(4, 9)]


def features_of(samples: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
    """Standardised features (N, C), float32, and labels (N,)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (samples,), generator=generator)
    centres = 0.35 * torch.randn(classes, width, generator=generator)
    spread, rotation = torch.logspace(0, -2, width), torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    features = ((centres[labels] + torch.randn(samples, width, generator=generator)) * spread) @ rotation
    return (features - features.mean(dim=0)) / features.std(dim=0), labels


def theirs(features: Tensor, labels: Tensor, kind: str, targets: Sequence[float]) -> tuple[float, list[float]]:
    """Seconds that scikit-learn takes to come within REL_TOLERANCE of these objectives, and its own objectives."""
    total, reached = 0.0, []
    for l2, target in zip(L2_PENALTIES, targets, strict=True):
        for tolerance in TOLERANCES:
            settings = {"C": 1 / (len(labels) * l2), "tol": tolerance, "max_iter": 1000}
            model = LogisticRegression(**settings) if kind == "softmax" else LinearSVC(dual=False, intercept_scaling=100.0, **settings)
            seconds, _ = timed(lambda: model.fit(features.numpy(), labels.numpy()))  # noqa: B023
            weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
            value = objective(features, labels, kind, weight, bias, l2)
            if value <= target * (1 + REL_TOLERANCE):
                break
        total += seconds
        reached.append(value)
    return total, reached


def objective(features: Tensor, labels: Tensor, kind: str, weight: Tensor, bias: Tensor, l2: float) -> float:
    """The objective that both minimise, in float64."""
    outputs = features.double() @ weight.double().T + bias.double()
    if kind == "softmax":
        loss = torch.nn.functional.cross_entropy(outputs, labels)
    else:
        signs = 2 * torch.nn.functional.one_hot(labels, len(bias)) - 1
        loss = (1 - signs * outputs).clamp(min=0).square().sum() / len(labels)
    return float(loss + l2 / 2 * weight.double().square().sum())


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """Duration of `work` in seconds, and its result."""
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result


def shapes(text: str) -> list[list[int]]:
    """Parse comma-separated sizes of three numbers each."""
    found = [[count(number) for number in size.split("x")] for size in text.split(",")]
    if any(len(size) != 3 for size in found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of sizes such as 1000x512x10")
    return found


def main() -> None:
    """Measure and print a row for each size and kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=shapes, default="1000x512x10,4000x256x20,10000x512x100", help="images x features x classes")
    parser.add_argument("--kinds", type=several("kind", ("softmax", "svm")), default=["softmax", "svm"])
    given = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    rows = []
    for kind in given.kinds:
        for samples, width, classes in given.sizes:
            features, labels = features_of(samples, width, classes)
            solve(features[:WARM_UP_SAMPLES], labels[:WARM_UP_SAMPLES], classes, L2_PENALTIES[:2], kind)
            ours, path = timed(lambda: solve(features, labels, classes, L2_PENALTIES, kind))  # noqa: B023
            print(f"{kind} {samples}x{width}x{classes}: ours {ours:.2f} s, converged {bool(path.converged.all())}", flush=True)
            our_objectives = np.array(
                [objective(features, labels, kind, w, b, s) for w, b, s in zip(path.weight, path.bias, L2_PENALTIES, strict=True)]
            )
            sides, other = list[str](), np.zeros_like(our_objectives)
            for cores in (None, 1):
                with threadpool_limits(cores, "blas"):
                    their, found = theirs(features, labels, kind, our_objectives)
                sides += [f"{their:.1f} s", f"{their / ours:.1f}"]
                other = np.maximum(other, found)
            best = np.minimum(our_objectives, other)
            gaps = f"{(our_objectives / best - 1).max():.0e}", f"{(other / best - 1).max():.0e}"
            rows.append((kind, f"{samples:,} x {width}, {classes} classes", f"{ours:.2f} s", *sides, *gaps))
            print(rows[-1], flush=True)
    print("| kind | features | ftlit | scikit-learn | ratio | with one thread | ratio | gap of ftlit | of scikit-learn |")
    print(f"{'|---' * 9}|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
