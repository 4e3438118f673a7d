"""The README's tables of measurements, from what the runs stored: python benchmarks/readme.py

Between `<!-- NAME.json -->` and `<!-- end -->` stands what `results/NAME.json` says.
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
        faults.Row(row["fault"], row["title"], row["planted"], {peer: Verdict(**said) for peer, said in row["verdicts"].items()})
        for row in found["rows"]
    ]
    versions = found["options"]["versions"]
    return f"{faults.table(rows)}\n\n{measured(found['machine'], {name: version for name, version in versions.items() if version})}"


def of_quality(found: dict[str, Any]) -> str:
    """The tables of accuracy and time, and of differences."""
    peers = {name: found["machine"][name] for name in quality.PACKAGES}
    return f"{quality.table(found['rows'])}\n\n{quality.beside(found['rows'])}\n\n{over_seeds(found, peers)}"


def of_cuts(found: dict[str, Any]) -> str:
    """The table of where a head stands."""
    return f"{cuts.table(found['rows'])}\n\n{found['options']['draws']} draws. {measured(found['machine'])}"


def of_batchnorm(found: dict[str, Any]) -> str:
    """The table of policies of batch norm."""
    return f"{batchnorm.table(found['rows'])}\n\n{over_seeds(found)}"


def over_seeds(found: dict[str, Any], peers: dict[str, str] | None = None) -> str:
    """How many seeds, and `measured`."""
    options = found["options"]
    return f"{options['seeds']} seeds. {measured(found['machine'] | {'date': options['days']}, peers)}"


def of_overhead(found: dict[str, Any]) -> str:
    """The table of steps, memory and start-up."""
    done = "{rounds} rounds of {steps} steps, batches of {batch} images of {size} pixels".format(**found["options"])
    return f"{table([Row(**row) for row in found['rows']])}\n\n{done}. {measured(found['machine'])}"


def measured(machine: dict[str, Any], others: dict[str, str] | None = None) -> str:
    """When, where and of which versions."""
    versions = {name: machine[name] for name in ("ftlit", "torch", "lightning")} | (others or {})
    told = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "Lightning")
    gpus = f" and {machine['gpus']} {machine['gpu']} (CUDA {machine['cuda']})" if "gpu" in machine else ""
    return f"Measured {machine['date']} on {machine['cores']} cores ({machine['cpu']}){gpus}, Python {machine['python']}; {told}."


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
    """The README with a section for each file that is stored, as that has it."""
    for name in sorted(path.stem for path in RESULTS.glob("*.json")):
        body = SECTIONS[name](json.loads((RESULTS / f"{name}.json").read_text()))
        pattern = rf"(<!-- {name}\.json -->\n).*?(<!-- end -->)"
        text, number = re.subn(pattern, lambda found, body=body: f"{found[1]}{body}\n{found[2]}", text, flags=re.DOTALL)
        assert number == 1, f"the README has {number} sections for {name}.json"
    without = {name for name in re.findall(r"<!-- (\w+)\.json -->", text) if not (RESULTS / f"{name}.json").exists()}
    assert not without, f"the README has sections without a run: {without}"
    return text


if __name__ == "__main__":
    README.write_text(rendered(README.read_text()))
