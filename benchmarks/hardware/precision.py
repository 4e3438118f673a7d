"""Linear probes and the advice in the default precision against float32: held-out accuracy at each cut, and the chosen scenario and cut.

python benchmarks/hardware/precision.py --data DATA [--per-class 20,60] [--out benchmarks/results/precision.json]

DATA is as in quality.py, with files of ImageNet weights in DATA/weights. Each cell is a data set, a network and a number of images per
class, measured by `recipe=advise` in both precisions. On a CPU without bfloat16 instructions both are float32.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from _ledger import interval
from _measure import machine, written
from _options import count, existing, interruptible, sources

NETWORKS = {"squeezenet1_1": "squeezenet1_1_imagenet_torchvision.pth", "mobilenet_v2": "mobilenetv2_imagenet_torchvision.pth"}
NAMES = ("hymenoptera", "cats_dogs", "malaria", "sign_digits")
PRECISIONS = {"auto": (), "float32": ("trainer.precision=32-true", "float32=highest")}


def measured(words: Sequence[str]) -> dict[str, Any]:
    """The accuracy at each cut, and the advice, of a command line."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ftlit.cli.train", "recipe=advise", f"hydra.run.dir={folder}/run", f"cache.folder={folder}/cache"]
        done = subprocess.run([*command, *words], cwd=folder, capture_output=True, text=True, env={**os.environ, "COLUMNS": "160"})
        if done.returncode:
            raise SystemExit(f"{' '.join(words)}: {done.stderr.strip()}")
        stored = json.loads(Path(folder, "run", "advice.json").read_text())
    accuracies = {depth["cut"]: depth["accuracy"] for depth in stored["measurements"]["depths"]}
    return {"accuracy": accuracies, "scenario": stored["advice"]["scenario"], "cut": stored["advice"]["cut"]}


def cell(data: Path, name: str, network: str, per_class: int) -> dict[str, Any]:
    """Both precisions on one data set with one network."""
    words = ["data=folder", f"data.root={data / 'images' / name}", f"data.per_class={per_class}", f"backbone={network}"]
    words.append(f"backbone.weights={data / 'weights' / NETWORKS[network]}")
    auto, float32 = (measured([*words, *given]) for given in PRECISIONS.values())
    differences = {cut: auto["accuracy"][cut] - float32["accuracy"][cut] for cut in float32["accuracy"]}
    return {
        "data": Path(name).name,
        "network": network,
        "per_class": per_class,
        "top": differences[list(differences)[-1]],
        "all_cuts": mean(differences.values()),
        "same_advice": all(auto[key] == float32[key] for key in ("scenario", "cut")),
        "auto": auto,
        "float32": float32,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The cells, and the means over them, as a markdown table."""
    lines = ["| data | network | per class | top cut, auto - float32 | mean of all cuts | advice |", "|---|---|---|---|---|---|"]
    for row in rows:
        advice = "the same" if row["same_advice"] else " / ".join(f"{row[side]['scenario']} at {row[side]['cut']}" for side in PRECISIONS)
        numbers = f"{row['top']:+.4f} | {row['all_cuts']:+.4f}"
        lines.append(f"| {row['data']} | {row['network']} | {row['per_class']} | {numbers} | {advice} |")
    means = [interval([row[key] for row in rows]) for key in ("top", "all_cuts")]
    texts = [f"{value:+.4f}" + ("" if half is None else f" ± {half:.4f}") for value, half in means]
    return "\n".join(
        [*lines, f"| mean of {len(rows)} | | | {texts[0]} | {texts[1]} | {sum(row['same_advice'] for row in rows)} the same |"]
    )


def main(arguments: Any = None) -> None:
    """Measure all cells, print the table, and write them if `--out` is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=existing, default=os.environ.get("FTLIT_TEST_DATA"))
    parser.add_argument("--names", default=",".join(NAMES))
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--per-class", default="20,60")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    names, networks = sources(parser, given.names.split(","), given.data), given.networks.split(",")
    sizes = [count(size) for size in given.per_class.split(",")]
    rows = []
    with interruptible():
        for name, network, size in product(names, networks, sizes):
            rows.append(cell(given.data, name, network, size))
            print(table(rows).splitlines()[-2], file=sys.stderr, flush=True)
    print(table(rows))
    if given.out:
        written(given.out, machine(), {name: str(value) for name, value in vars(given).items() if name not in ("out", "data")}, rows)


if __name__ == "__main__":
    main()
