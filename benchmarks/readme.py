"""Update the README's tables of measurements from the stored results: python benchmarks/readme.py

The text between `<!-- NAME.json -->` and `<!-- end -->` is rendered from `results/NAME.json`.
"""

import json
import re
from pathlib import Path
from typing import Any

import batchnorm
import cuts
import faults
import quality
from _measure import Row, table
from planted.fault import Verdict

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"


def of_faults(found: dict[str, Any]) -> str:
    """The table of planted faults."""
    rows = [
        faults.Row(row["fault"], row["title"], row["planted"], {peer: Verdict(**verdict) for peer, verdict in row["verdicts"].items()})
        for row in found["rows"]
    ]
    versions = found["options"]["versions"]
    return f"{faults.table(rows)}\n\n{measured(found['machine'], {name: version for name, version in versions.items() if version})}"


def of_quality(found: dict[str, Any]) -> str:
    """The table of accuracy and time, and the table of differences."""
    peers = {name: found["machine"][name] for name in quality.PACKAGES}
    return f"{quality.table(found['rows'])}\n\n{quality.comparison(found['rows'])}\n\n{over_seeds(found, peers)}"


def of_cuts(found: dict[str, Any]) -> str:
    """The table of cuts for a linear probe."""
    return f"{cuts.table(found['rows'])}\n\n{found['options']['draws']} draws. {measured(found['machine'])}"


def of_batchnorm(found: dict[str, Any]) -> str:
    """The table of batch-norm policies."""
    return f"{batchnorm.table(found['rows'])}\n\n{over_seeds(found)}"


def over_seeds(found: dict[str, Any], peers: dict[str, str] | None = None) -> str:
    """The number of seeds, followed by `measured`."""
    options = found["options"]
    return f"{options['seeds']} seeds. {measured(found['machine'] | {'date': options['days']}, peers)}"


def of_overhead(found: dict[str, Any]) -> str:
    """The table of step time, memory and start-up time."""
    setting = "{rounds} rounds of {steps} steps, batches of {batch} images of {size} pixels".format(**found["options"])
    return f"{table([Row(**row) for row in found['rows']])}\n\n{setting}. {measured(found['machine'])}"


def measured(machine: dict[str, Any], others: dict[str, str] | None = None) -> str:
    """Date, machine and versions of a measurement."""
    versions = {name: machine[name] for name in ("ftlit", "torch", "lightning")} | (others or {})
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "Lightning")
    gpus = f" and {machine['gpus']} {machine['gpu']} (CUDA {machine['cuda']})" if "gpu" in machine else ""
    return f"Measured {machine['date']} on {machine['cores']} cores ({machine['cpu']}){gpus}, Python {machine['python']}; {packages}."


SECTIONS = {
    "faults": of_faults,
    "cuts": of_cuts,
    "quality": of_quality,
    "quality_equal": of_quality,
    "quality_photos": of_quality,
    "batchnorm": of_batchnorm,
    "overhead": of_overhead,
    "overhead_gpu": of_overhead,
}


def rendered(text: str) -> str:
    """The text of the README with the section of each stored file rendered again."""
    for name in sorted(path.stem for path in RESULTS.glob("*.json")):
        body = SECTIONS[name](json.loads((RESULTS / f"{name}.json").read_text()))
        pattern = rf"(<!-- {name}\.json -->\n).*?(<!-- end -->)"
        text, number = re.subn(pattern, lambda found, body=body: f"{found[1]}{body}\n{found[2]}", text, flags=re.DOTALL)
        assert number == 1, f"the README has {number} sections for {name}.json"
    without = {name for name in re.findall(r"<!-- (\w+)\.json -->", text) if not (RESULTS / f"{name}.json").exists()}
    assert not without, f"the README has sections without a stored run: {without}"
    return text


if __name__ == "__main__":
    README.write_text(rendered(README.read_text()))
