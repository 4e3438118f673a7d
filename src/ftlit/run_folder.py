"""The files of a run's folder that several parts of the program read: `result.json` and `advice.json`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ftlit.files import write_atomically
from ftlit.formats import JsonObject, upgraded, with_format

RESULT = "result.json"
ADVICE = "advice.json"

Result = JsonObject | list[JsonObject]


def write_result(folder: str | Path, result: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """Write `result.json`: metrics by name, or a list of such mappings, each of which carries the format."""
    content: Any = with_format(result) if isinstance(result, Mapping) else [with_format(entry) for entry in result]
    write_atomically(Path(folder, RESULT), json.dumps(content, indent=1))


def read_result(folder: str | Path) -> Result | None:
    """`result.json` without the format; `None` where there is none. Raises `UserError` for one that a newer program wrote."""
    path = Path(folder, RESULT)
    if not path.is_file():
        return None
    content = json.loads(path.read_text())
    return upgraded(content, path) if isinstance(content, dict) else [upgraded(entry, path) for entry in content]


def write_advice(folder: str | Path, advice: Mapping[str, Any], measurements: Mapping[str, Any] | None) -> None:
    """Write `advice.json`: the advised scenario, and the measurements it follows from, where there are any."""
    content = with_format({"advice": advice, "measurements": measurements})
    write_atomically(Path(folder, ADVICE), json.dumps(content, indent=1))


def read_advice(folder: str | Path) -> JsonObject | None:
    """`advice.json`: `advice` and `measurements`; `None` where there is none. Raises `UserError` for one that a newer program wrote."""
    path = Path(folder, ADVICE)
    return upgraded(json.loads(path.read_text()), path, _advice_from_0) if path.is_file() else None


def _advice_from_0(content: JsonObject) -> JsonObject:
    """In format 0 the measurements are called `measured`, and two fields of the advice have other names."""
    renamed = {"solvable": "fits_probe_head", "holds_out": "holds_out_images"}
    advice = {renamed.get(name, name): value for name, value in content["advice"].items()}
    return {"advice": advice, "measurements": content.get("measured")}
