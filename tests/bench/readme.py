"""The README's tables of measurements, from what the runs stored: python tests/bench/readme.py

Between `<!-- NAME.json -->` and `<!-- end -->` stands what `results/NAME.json` says.
"""

import json
import re
from pathlib import Path
from typing import Any

import faults
from planted.fault import Verdict

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[2] / "README.md"


def of_faults(found: dict[str, Any]) -> str:
    """The table of planted faults."""
    rows = [
        faults.Row(row["fault"], row["title"], row["planted"], {peer: Verdict(**said) for peer, said in row["verdicts"].items()})
        for row in found["rows"]
    ]
    versions = ", ".join(f"{name} {version}" for name, version in found["options"]["versions"].items())
    return f"{faults.table(rows)}\n\n{measured(found['machine'])} {versions}."


def measured(machine: dict[str, Any]) -> str:
    """When and where."""
    return (
        f"Measured {machine['date']} on {machine['cores']} cores ({machine['cpu']}), Python {machine['python']}, torch {machine['torch']};"
    )


SECTIONS = {"faults": of_faults}


def rendered(text: str) -> str:
    """The README with each section as its file has it."""
    for name, render in SECTIONS.items():
        body = render(json.loads((RESULTS / f"{name}.json").read_text()))
        pattern = rf"(<!-- {name}\.json -->\n).*?(<!-- end -->)"
        text, number = re.subn(pattern, lambda found, body=body: f"{found[1]}{body}\n{found[2]}", text, flags=re.DOTALL)
        assert number == 1, f"the README has {number} sections for {name}.json"
    return text


if __name__ == "__main__":
    README.write_text(rendered(README.read_text()))
