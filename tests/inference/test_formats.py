"""Invariant 13: files carry a format number and registry names; older files are read, newer ones are a one-line error."""

import json
import os
import re
import shutil
import sys

import pytest
import torch
import warm
from omegaconf import OmegaConf
from paths import FIXTURES, ROOT
from safetensors import safe_open
from safetensors.torch import save_file

from ftlit import UserError, export_run, load
from ftlit.cli import cache
from ftlit.cli.main import main
from ftlit.inference.record import KEY
from ftlit.models.heads import HEADS, MLPHead
from ftlit.probes.advice import Advice
from ftlit.recipes.resuming.resume import read_config
from ftlit.recipes.resuming.settings import stable_settings
from ftlit.report.html import write_report
from ftlit.report.load import read
from ftlit.run_folder import read_advice, read_result, write_result
from ftlit.sweeps.jobs import Job, read_job

pytestmark = pytest.mark.e2e

OLD = FIXTURES / "runs_format_0"
RUNS = json.loads((OLD / "expected.json").read_text())


@pytest.fixture
def old(tmp_path, monkeypatch):
    """Copy the runs of format 0 to a writable folder; their custom head can be imported."""
    monkeypatch.syspath_prepend(OLD)
    return shutil.copytree(OLD, tmp_path / "old")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_format_0_has_its_recorded_predictions(old, name):
    prediction = load(old / name, trust=name == "own")(old / "digit.png")
    assert prediction.probabilities == pytest.approx(RUNS[name], abs=2e-6)  # with channels last, sums have another order


def test_a_custom_head_of_format_0_is_imported_only_with_trust(old):
    with pytest.raises(UserError, match=r"own_head\.ScaledHead, which is not part of ftlit: if you trust this code, add --trust"):
        load(old / "own")


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("auto", {"plan", "data", "confusion", "classes", "mistakes", "calibration", "depth"}),
        ("trained", {"samples", "curves", "layers", "stages", "confusion", "mistakes", "calibration", "features"}),
    ],
)
def test_a_run_of_format_0_can_be_reported(old, name, sections):
    text = write_report(old / name).read_text()
    assert all(f'<section id="{section}">' in text for section in sections) and "not drawn" not in text


def test_a_run_of_format_0_can_be_exported(old):
    path, _ = export_run(old / "trained", "torch")
    files = {"format": "", "class_names": ""}
    torch.export.load(path, extra_files=files)
    assert json.loads(files["format"]) == 1 and len(json.loads(files["class_names"])) == 10


def test_a_sweep_and_a_store_of_format_0_can_be_listed(old, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ftlit", "report", str(old / "sweep")])
    main()
    assert "test accuracy" in capsys.readouterr().out
    first, second = (old / "sweep/sweep.csv").read_text().splitlines()[1:]
    assert ",0.9388889074325562," in first and second.startswith("1,")
    cache.show(str(old / "store"))
    assert "stem" in capsys.readouterr().out


@pytest.mark.e2e
def test_resuming_a_run_of_format_0_is_a_one_line_error(old):
    for name in ("trained", "auto"):
        with pytest.raises(UserError, match="is from an older version of ftlit and cannot be resumed: start a new run"):
            read_config(old / name)
    done = warm.run([sys.executable, ROOT / "train.py", f"hydra.run.dir={old}/auto", "resume=true"], cwd=old, env=dict(os.environ))
    assert (
        done.returncode == 2
        and "is from an older version of ftlit and cannot be resumed: start a new run" in done.stderr
        and done.stderr.count("\n") == 1
    ), done.stderr


def test_resuming_a_sweep_of_format_0_is_a_one_line_error(old):
    given = ("-m", "seed=1,2", "scenario=small_similar", "data.per_class=5", "checkpoint=slim", "report=False")
    before = {path: path.read_bytes() for path in (old / "sweep").rglob("*") if path.is_file()}
    command = [sys.executable, ROOT / "train.py", *given, f"hydra.sweep.dir={old}/sweep", "sweep.resume=true"]
    done = warm.run(command, cwd=old, env=dict(os.environ))
    assert (
        done.returncode == 2
        and "is from an older version of ftlit and cannot be resumed: start a new sweep" in done.stderr
        and done.stderr.count("\n") == 1
    ), done.stderr
    assert "resuming the sweep" not in done.stdout
    assert all(path.read_bytes() == content for path, content in before.items())


def test_settings_name_a_registered_part_by_its_registry_name():
    def settings(backbone, head):
        cfg = {"backbone": {"_target_": backbone}, "head": {"_target_": head, "hidden": [8]}, "optimizer": {"_target_": "torch.optim.SGD"}}
        return stable_settings(OmegaConf.create(cfg))

    current = settings("ftlit.load_backbone", "ftlit.models.heads.MLPHead")
    assert current == settings("ftlit.zoo.load_backbone", "ftlit.head.MLPHead")  # the second is its path of format 0
    targets = [current[group]._target_ for group in ("backbone", "head", "optimizer")]
    assert targets == ["backbone:torchvision", "head:mlp", "torch.optim.SGD"]
    others = [settings("ftlit.load_timm", "ftlit.models.heads.MLPHead"), settings("ftlit.load_backbone", "own_head.MLPHead")]
    assert current not in others and others[1].head._target_ == "own_head.MLPHead"


def test_settings_name_a_part_without_a_registry_by_its_class_without_its_module():
    def settings(probe, curve, callback):
        cfg = {"probe": {"_target_": probe}, "lr_scheduler": {"curve": {"_target_": curve}}, "callbacks": [{"_target_": callback}]}
        return stable_settings(OmegaConf.create(cfg))

    module, callback = "ftlit.finetuning.lr_schedule", "ftlit.lit.callbacks.lr_monitor.LrMonitor"
    here = settings("ftlit.probes.layer_probes.LayerProbes", f"{module}.cosine", callback)
    assert here == settings("ftlit.moved.LayerProbes", "ftlit.moved.cosine", "ftlit.moved.LrMonitor")
    assert here == settings("ftlit.probing.Probing", "ftlit.rates.cosine", "ftlit.lit.rate_monitor.RateMonitor")  # paths of format 0
    assert (here.probe._target_, here.callbacks[0]._target_) == ("ftlit:LayerProbes", "ftlit:LrMonitor")
    others = [settings("ftlit.moved.LayerProbes", f"{module}.linear", callback), settings("mine.LayerProbes", f"{module}.cosine", callback)]
    assert here not in others and others[1].probe._target_ == "mine.LayerProbes"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Train a run of the current format that writes all files which are read again, and its feature store."""
    folder = tmp_path_factory.mktemp("fresh")
    small = ("data.per_class=4", "head=mlp", "head.hidden=[4]", "checkpoint=slim", "trainer=cpu", "trainer.max_epochs=1")
    environment = {**os.environ, "FTLIT_CACHE": str(folder / "store")}
    done = warm.run([sys.executable, ROOT / "train.py", *small, "hydra.run.dir=run"], cwd=folder, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    Job(0).write(folder / "run")
    return folder


def format_of(path):
    """Return the format number in a file."""
    if path.suffix == ".ckpt":
        return torch.load(path, weights_only=True)[KEY]["format"]
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return int(file.metadata()["format"])
    return OmegaConf.load(path)["format"]  # JSON is YAML


@pytest.mark.e2e
def test_every_file_that_is_read_again_has_a_format_number(fresh):
    run = fresh / "run"
    names = ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "advice.json", "job.json", "result.json")
    report = [f"report/{name}" for name in ("run.json", "stages.json", "features.safetensors", "samples.safetensors")]
    described = list((fresh / "store").glob("*/about.json"))
    assert described and all(format_of(path) == 1 for path in [*(run / name for name in (*names, *report)), *described])


@pytest.mark.e2e
def test_a_record_names_no_module_of_ftlit_and_keeps_lists(fresh):
    record = torch.load(fresh / "run/checkpoints/best.ckpt", weights_only=True)[KEY]
    assert record["head"]["name"] == "mlp" and record["head"]["arguments"]["hidden"] == [4]
    assert record["backbone"]["name"] == "torchvision" and record["loss"]["name"] == "cross_entropy"
    assert "ftlit." not in json.dumps(record)


@pytest.mark.e2e
def test_settings_of_a_run_do_not_change_when_classes_move_to_other_modules(fresh, tmp_path):
    text = (fresh / "run/config.yaml").read_text().partition("\n")[2]  # without its checksum
    moved = re.sub(r"_target_: ftlit\.(?:\w+\.)*", "_target_: ftlit.moved.", text)
    (tmp_path / "config.yaml").write_text(moved)
    assert moved != text and read_config(tmp_path) == read_config(fresh / "run")
    assert read_config(tmp_path).settings.head._target_ == "head:mlp"


def test_a_renamed_class_is_found_by_its_registry_name(old, monkeypatch):
    class Renamed(MLPHead):
        """The head class as another release names it."""

    monkeypatch.setitem(HEADS._parts, "mlp", Renamed)
    assert type(load(old / "trained").head) is Renamed


def test_the_advice_of_format_0_is_read_with_the_current_fields(old):
    stored = read_advice(old / "auto")
    assert set(stored) == {"advice", "measurements"} and stored["measurements"]["images"] == 50
    assert Advice(**stored["advice"]).fits_probe_head and stored["advice"]["holds_out_images"]


def test_each_entry_of_a_result_list_has_the_format_number(tmp_path):
    write_result(tmp_path, [{"test/accuracy": 0.5}, {"test/accuracy": 0.75}])
    assert [entry["format"] for entry in json.loads((tmp_path / "result.json").read_text())] == [1, 1]
    assert read_result(tmp_path) == [{"test/accuracy": 0.5}, {"test/accuracy": 0.75}]


@pytest.mark.parametrize(
    ("file", "reader"),
    [
        ("advice.json", read_advice),
        ("job.json", read_job),
        ("result.json", read_result),
        ("config.yaml", read_config),
        ("report/run.json", read),
        ("report/stages.json", read),
        ("report/samples.safetensors", read),
        ("checkpoints/best.ckpt", load),
    ],
)
def test_a_file_of_a_newer_format_is_a_one_line_error(old, file, reader):
    folder = old / "trained"
    path = folder / file
    if path.suffix == ".ckpt":
        torch.save({KEY: {"format": 2}, "state_dict": {}}, path)
    elif path.suffix == ".safetensors":
        save_file({"images": torch.zeros(1)}, path, {"format": "2"})
    else:
        path.write_text(json.dumps({"format": 2}))
    with pytest.raises(
        UserError, match=r"was written by a newer ftlit \(format 2\); this version reads formats 0 and 1: upgrade"
    ) as caught:
        reader(folder)
    assert "\n" not in str(caught.value)
