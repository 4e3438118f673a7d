"""What a run in Python returns: its folder, and what the files in it hold."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftlit.api.predictions import predict
from ftlit.api.words import AnyPath
from ftlit.formats import read_json
from ftlit.run_folder import ADVICE, BASELINE, keeps_baseline, read_result

TableRow = dict[str, Any]
COLUMNS = ("accuracy", "accuracy_low", "accuracy_high", "f1", "loss", "fitted_on")  # of a split in result.json
REPORT_PAGE = "report.html"


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run that has ended.

    Attributes:
        folder: its absolute path.
    """

    folder: Path

    @property
    def report(self) -> Path | None:
        """The report page; `None` with `report=false`, and for recipes that write none."""
        page = self.folder / REPORT_PAGE
        return page if page.is_file() else None


@dataclass(frozen=True)
class Finetuned(RunFolder):
    """A fine-tuned network, as `finetune` returns it. `Finetuned(Path("runs/mine"))` stands for an earlier run."""

    def __repr__(self) -> str:
        metrics = self.metrics
        found = f"test accuracy {metrics['test/accuracy']:.4f}" if "test/accuracy" in metrics else "not finished"
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
        """A row for val and test, and, where training improved on it, two for the linear probe before training: `model` (`this run`,
        `linear probe`), `split`, `accuracy` with its 95 % interval (`accuracy_low`, `accuracy_high`), macro `f1`, `loss`, and `fitted_on`:
        the splits on which the model was fitted. `pandas.DataFrame(result.table)` shows them.
        """
        metrics = self.metrics
        compared = any(name.startswith(f"{BASELINE}/") for name in metrics) and not keeps_baseline(metrics)
        models = {"linear probe": f"{BASELINE}/", "this run": ""} if compared else {"this run": ""}
        rows = []
        for model, prefix in models.items():
            for split in ("val", "test"):
                values = {name: metrics.get(f"{prefix}{split}/{name}") for name in COLUMNS}
                if values["accuracy"] is not None:
                    rows.append({"model": model, "split": split, **{name: value for name, value in values.items() if value is not None}})
        return rows

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
        return predict(self.folder, paths, **options)

    def export(self, to: str, out: AnyPath | None = None) -> Path:
        """Write the network to a file that needs no ftlit; see `ftlit.export_run`. Returns its path."""
        from ftlit.inference.export import export_run

        return export_run(self.folder, to, None if out is None else Path(out))[0]


@dataclass(frozen=True)
class Probed(RunFolder):
    """Linear probes at each layer, as `probe` returns them."""

    def __repr__(self) -> str:
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
        """The held-out accuracy and loss of each probe that was tried: a row for each draw, cut, kind, pooling and L2 penalty."""
        with (self.folder / "probe.csv").open(newline="", encoding="utf-8") as file:
            texts = ("cut", "kind", "pooling")
            return [{name: value if name in texts else float(value) for name, value in row.items()} for row in csv.DictReader(file)]


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
