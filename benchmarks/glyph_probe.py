"""Quality of the features of the shipped backbone: linear probe on scikit-learn's digits with few labels, compared with random weights.

python benchmarks/glyph_probe.py [WEIGHTS]
"""

import argparse

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ftlit import load_backbone
from ftlit.data.transforms import eval_transform

LABELLED, SEEDS, TEST = (20, 50, 100, 300, 1000), 10, 797


def features(weights: str | None) -> np.ndarray:
    """Pooled top features of all 1,797 digits."""
    torch.manual_seed(0)
    backbone = load_backbone("glyph", weights=weights).eval()
    view = eval_transform(backbone.input_spec)
    pictures = [Image.fromarray(np.uint8(np.round(digit * 255 / 16))).convert("RGB") for digit in load_digits().images]
    with torch.inference_mode():
        return backbone.pool(backbone(torch.stack([view(picture) for picture in pictures]))).numpy()


def accuracies(features: np.ndarray, labels: np.ndarray) -> list[float]:
    """Mean test accuracy over SEEDS stratified samples of each number of labelled images; the test images stay the same."""
    order = np.random.RandomState(0).permutation(len(labels))
    test, pool = order[:TEST], order[TEST:]
    means = []
    for count in LABELLED:
        scores = []
        for seed in range(SEEDS):
            chosen = pool if count == len(pool) else train_test_split(pool, train_size=count, stratify=labels[pool], random_state=seed)[0]
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(features[chosen], labels[chosen])
            scores.append(probe.score(features[test], labels[test]))
        means.append(float(np.mean(scores)))
    return means


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="?", default="default", help="weights file; default: the shipped weights")
    given = parser.parse_args()
    labels = load_digits().target
    print("| labelled images |", " | ".join(map(str, LABELLED)), "|\n|---|" + "---|" * len(LABELLED))
    for name, weights in (("glyph", given.weights), ("random weights", None)):
        print(f"| {name} |", " | ".join(f"{a:.3f}" for a in accuracies(features(weights), labels)), "|")
