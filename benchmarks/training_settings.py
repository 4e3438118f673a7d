"""Fewer epochs, and no augmentation, in the large scenarios: the test accuracy against that of the settings that ftlit has.

python benchmarks/training_settings.py --data DATA --work FOLDER [--cells trec:80] [--out FILE]

Cells, splits and networks are those of advice.py, and the runs of the settings that ftlit has are its runs, if it has the same FOLDER. Runs
that exist are not repeated.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from _ledger import interval
from advice import backbone_words, data_words, result_of, run_cells

SCENARIOS = {"large_similar": 5, "large_different": 6}  # half of their epochs
HALF, PLAIN = "half the epochs", "no augmentation"
CELLS = "sign_digits:60,trec:80,sst2:300,malaria:400"  # where all layers are advised to train
TEXTS = ("trec", "sst2")


def measured(data: Path, work: Path, cell: str, seeds: int) -> Iterator[dict[str, Any]]:
    """A row for each seed and scenario: the accuracy with each setting."""
    name = cell.split(":")[0]
    for seed in range(seeds):
        words = [*backbone_words(data, name), *data_words(data, work, cell, seed), f"seed={seed}", f"cache.folder={work}/cache"]
        for scenario, epochs in SCENARIOS.items():
            folder = work / "runs" / f"{cell.replace(':', '-')}-{seed}-{scenario}"
            settings = {"as shipped": [], HALF: [f"trainer.max_epochs={epochs}"]}
            if name not in TEXTS and name != "digits":  # these have none
                settings[PLAIN] = ["data.augment=none"]
            row: dict[str, Any] = {"cell": cell, "seed": seed, "scenario": scenario}
            for setting, own in settings.items():
                place = folder if not own else folder.with_name(f"{folder.name}-{setting.replace(' ', '_')}")
                result = result_of([*words, f"scenario={scenario}", *own], place, "result.json")
                row[setting] = result["test/accuracy"]
                row["head"] = result["linear_probe/test/accuracy"]
            yield row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Accuracy by cell and scenario, and the mean difference of each setting to the shipped one, with its 95 % interval over the runs."""
    lines = [f"| data, labelled per class | scenario | fitted head | as shipped | {HALF} | {PLAIN} |", "|---" * 6 + "|"]
    for cell, scenario in dict.fromkeys((row["cell"], row["scenario"]) for row in rows):
        own = [row for row in rows if (row["cell"], row["scenario"]) == (cell, scenario)]
        means = [
            f"{sum(row[name] for row in own) / len(own):.3f}" if name in own[0] else "-" for name in ("head", "as shipped", HALF, PLAIN)
        ]
        lines.append(f"| {cell.replace(':', ', ')} | {scenario} | {' | '.join(means)} |")
    ends = []
    for name in (HALF, PLAIN):
        mean, half = interval([row[name] - row["as shipped"] for row in rows if name in row])
        ends.append(f"{mean:+.3f} ± {half:.3f}" if half is not None else f"{mean:+.3f}")
    return "\n".join([*lines, f"| mean difference | | | | {' | '.join(ends)} |"])


if __name__ == "__main__":
    run_cells(__doc__, CELLS, measured, table)
