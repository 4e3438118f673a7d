"""What a run in Python returns: its folder, and what the files in it hold."""

import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftlit.api.predictions import predicted
from ftlit.api.words import AnyPath
from ftlit.errors import UserError
from ftlit.formats import read_json
from ftlit.run_folder import ADVICE, BASELINE, PROBE_LAYERS, TRAINED, is_run_folder, keeps_baseline, meant_run, no_run, read_result

TableRow = dict[str, Any]
COLUMNS = ("accuracy", "accuracy_low", "accuracy_high", "f1", "loss", "fitted_on")  # of a split in result.json
REPORT_PAGE = "report.html"


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run.

    Attributes:
        folder: its absolute path.

    Raises:
        UserError: the folder holds no run.
    """

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder).expanduser().absolute())
        if not is_run_folder(self.folder):
            raise no_run(self.folder) if self.folder.exists() else UserError(f"there is no folder {self.folder}{meant_run(self.folder)}")

    @property
    def report(self) -> Path | None:
        """The report page; `None` with `report=false`, and for recipes that write none."""
        page = self.folder / REPORT_PAGE
        return page if page.is_file() else None


@dataclass(frozen=True)
class Finetuned(RunFolder):
    """A fine-tuned network, as `finetune` returns it. `Finetuned("runs/mine")` stands for an earlier run."""

    def __repr__(self) -> str:
        metrics = self.metrics
        found = f"test accuracy {metrics['test/accuracy']:.4f}" if "test/accuracy" in metrics else "no finished run of finetune"
        if "test/accuracy_low" in metrics:
            found += f" (95 % interval {metrics['test/accuracy_low']:.3f} to {metrics['test/accuracy_high']:.3f})"
        return f"Finetuned({found}, {str(self.folder)!r})"

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The contents of `result.json`: `test/accuracy` and so on; empty if the run did not end."""
        found = read_result(self.folder)
        return found if isinstance(found, dict) else {}

    @property
    def table(self) -> list[TableRow]:
        """A row for each model and split, for `pandas.DataFrame` and the like.

        `model`: `linear probe` for the one before training and `trained network`, or, where there was no such probe, `this run`; `split`;
        `is_result`: whether predictions are of this model; `accuracy` with its 95 % interval (`accuracy_low`, `accuracy_high`), macro `f1`,
        `loss`, and `fitted_on`, the splits on which the model was fitted. Of a trained network that was not clearly better than the probe
        there is only the accuracy of its best epoch on val.
        """
        metrics = self.metrics
        compared, kept = any(name.startswith(f"{BASELINE}/") for name in metrics), keeps_baseline(metrics)
        rows = _rows(metrics, "linear probe", f"{BASELINE}/", is_result=kept) if compared else []
        if compared and kept:
            accuracy = metrics.get(TRAINED)
            return rows + (
                [{"model": "trained network", "split": "val", "is_result": False, "accuracy": accuracy}] if accuracy is not None else []
            )
        return rows + _rows(metrics, "trained network" if compared else "this run", "", is_result=True)

    @property
    def advice(self) -> Mapping[str, Any] | None:
        """What `scenario=auto` advised: `scenario`, `cut`, and further values of `advice.json`; `None` for another scenario."""
        path = self.folder / ADVICE
        return read_json(path)["advice"] if path.is_file() else None

    @property
    def network(self) -> Any:
        """The network, to predict images or texts in memory: `ftlit.load(folder)`, loaded at each use."""
        from ftlit.inference.load_network import load

        return load(self.folder)

    def predict(self, paths: AnyPath | Iterable[AnyPath], **options: Any) -> Mapping[str, Any]:
        """Predictions by path; see `ftlit.predict`."""
        return predicted(self.folder, paths, stacklevel=3, **options)

    def export(self, to: str, out: AnyPath | None = None, *, preprocessing: bool = False, half: bool = False) -> Path:
        """Write the network to a file that needs no ftlit; see `ftlit.export_run`. Returns its path."""
        from ftlit.export.hand_over import export_run

        return export_run(self.folder, to, None if out is None else Path(out), preprocessing=preprocessing, half=half)[0]


def _rows(metrics: Mapping[str, Any], model: str, prefix: str, *, is_result: bool) -> list[TableRow]:
    rows = []
    for split in ("val", "test"):
        values = {name: value for name in COLUMNS if (value := metrics.get(f"{prefix}{split}/{name}")) is not None}
        rows += [{"model": model, "split": split, "is_result": is_result, **values}] if values else []
    return rows


@dataclass(frozen=True)
class Probed(RunFolder):
    """Linear probes at each layer, as `probe` returns them."""

    def __repr__(self) -> str:
        if not self.best:
            return f"Probed(no finished recipe=probe, {str(self.folder)!r})"
        best = self.best[0]
        return f"Probed(best at {best['cut']}, test accuracy {best['test/accuracy']:.4f}, {str(self.folder)!r})"

    @property
    def best(self) -> list[TableRow]:
        """The chosen probe of each random sample (`probe.repeats`, one by default): `cut`, `kind`, `pooling`, `l2`, `held_out/accuracy`,
        `test/accuracy`, and its 95 % bootstrap interval `low`, `high`.
        """
        found = read_result(self.folder)
        return found if isinstance(found, list) else []

    @property
    def table(self) -> list[TableRow]:
        """A row for each draw, cut, kind and pooling: `accuracy` and `loss` on held-out data, at the L2 penalty of the lowest loss, and
        `test_accuracy` with its 95 % bootstrap interval `test_low`, `test_high`. `probe.csv` in the folder has all penalties.
        """
        types: dict[str, Callable[[str], Any]] = {"draw": int, **dict.fromkeys(("cut", "kind", "pooling"), str)}
        with (self.folder / PROBE_LAYERS).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [{name: types.get(name, float)(value or "nan") for name, value in row.items()} for row in rows]


@dataclass(frozen=True)
class Advised(RunFolder):
    """The advice on a scenario, as `advise` returns it."""

    def __repr__(self) -> str:
        return f"Advised(scenario={self.scenario!r}, cut={self.cut!r})"

    @property
    def scenario(self) -> str:
        """The advised scenario."""
        return str(self._file["advice"]["scenario"])

    @property
    def cut(self) -> str:
        """The layer up to which the backbone is advised to be kept."""
        return str(self._file["advice"]["cut"])

    @property
    def table(self) -> list[TableRow]:
        """A row for each cut: held-out accuracy of a linear probe, and LogME; empty where nothing could be measured."""
        return list((self._file["measurements"] or {}).get("depths", []))

    @property
    def _file(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = read_json(self.folder / ADVICE)
        return found
