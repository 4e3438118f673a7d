"""Invariant 13: files carry a format number and registry names; older files are read, newer ones are refused in one line."""

import json
import os
import shutil
import sys

import pytest
import torch
import warm
from omegaconf import OmegaConf
from paths import FIXTURES, ROOT
from safetensors import safe_open
from safetensors.torch import save_file

from ftlit import UserError, export_run, load, load_backbone
from ftlit.cli import cache
from ftlit.cli.main import main
from ftlit.inference.record import KEY, read_record, record_of
from ftlit.models.heads import HEADS, LinearProbeHead, MLPHead, is_linear_probe
from ftlit.probes.advice import Advice
from ftlit.recipes.run.resume import read_config, stable_settings
from ftlit.recipes.run.scenario_costs import has_probe_head
from ftlit.report.html import write_report
from ftlit.report.load import read
from ftlit.run_folder import read_advice, read_result, write_result
from ftlit.sweeps.jobs import Job, read_job
from ftlit.zoo import BACKBONES

pytestmark = pytest.mark.e2e

OLD = FIXTURES / "runs_format_0"
RUNS = json.loads((OLD / "expected.json").read_text())


@pytest.fixture
def old(tmp_path, monkeypatch):
    """The runs of format 0, in a folder that may be written to; the user's head can be imported."""
    monkeypatch.syspath_prepend(OLD)
    return shutil.copytree(OLD, tmp_path / "old")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_format_0_predicts_what_it_predicted(old, name):
    prediction = load(old / name, trust=name == "own")(old / "digit.png")
    assert {label: round(value, 6) for label, value in prediction.probabilities.items()} == RUNS[name]


def test_a_custom_head_of_format_0_is_imported_with_trust_only(old):
    with pytest.raises(UserError, match=r"own_head\.ScaledHead, which is not built in: --trust"):
        load(old / "own")


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("auto", {"plan", "data", "confusion", "classes", "mistakes", "calibration", "depth"}),
        ("trained", {"samples", "curves", "layers", "stages", "confusion", "mistakes", "calibration", "features"}),
    ],
)
def test_a_run_of_format_0_is_reported(old, name, sections):
    text = write_report(old / name).read_text()
    assert all(f'<section id="{section}">' in text for section in sections) and "not drawn" not in text


def test_a_run_of_format_0_is_exported(old):
    path, _ = export_run(old / "trained", "torch")
    files = {"format": "", "class_names": ""}
    torch.export.load(path, extra_files=files)
    assert json.loads(files["format"]) == 1 and len(json.loads(files["class_names"])) == 10


def test_a_sweep_and_a_store_of_format_0_are_listed(old, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ftlit", "report", str(old / "sweep")])
    main()
    assert "test accuracy" in capsys.readouterr().out
    first, second = (old / "sweep/sweep.csv").read_text().splitlines()[1:]
    assert ",0.9388889074325562," in first and second.startswith("1,")
    cache.show(str(old / "store"))
    assert "stem" in capsys.readouterr().out


@pytest.mark.e2e
def test_a_run_of_format_0_is_not_resumed_in_one_line(old):
    for name in ("trained", "auto"):
        with pytest.raises(UserError, match="an earlier ftlit began the run"):
            read_config(old / name)
    done = warm.run([sys.executable, ROOT / "train.py", f"hydra.run.dir={old}/auto", "resume=true"], cwd=old, env=dict(os.environ))
    assert done.returncode == 2 and "an earlier ftlit began the run" in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_sweep_of_format_0_is_not_resumed_in_one_line(old):
    given = ("-m", "seed=1,2", "scenario=small_similar", "data.per_class=5", "checkpoint=slim", "report=False")
    before = {path: path.read_bytes() for path in (old / "sweep").rglob("*") if path.is_file()}
    command = [sys.executable, ROOT / "train.py", *given, f"hydra.sweep.dir={old}/sweep", "sweep.resume=true"]
    done = warm.run(command, cwd=old, env=dict(os.environ))
    assert done.returncode == 2 and "an earlier ftlit ran the sweep" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert "do not run again" not in done.stdout
    assert all(path.read_bytes() == content for path, content in before.items())


def test_settings_name_a_registered_part_by_its_name_wherever_its_class_lies():
    def settings(backbone, head):
        cfg = {"backbone": {"_target_": backbone}, "head": {"_target_": head, "hidden": [8]}, "optimizer": {"_target_": "torch.optim.SGD"}}
        return stable_settings(OmegaConf.create(cfg))

    here = settings("ftlit.load_backbone", "ftlit.models.heads.MLPHead")
    assert here == settings("ftlit.zoo.load_backbone", "ftlit.head.MLPHead")  # the second is its path of format 0
    assert (here.backbone._target_, here.head._target_, here.optimizer._target_) == ("backbone:torchvision", "head:mlp", "torch.optim.SGD")
    others = [settings("ftlit.load_timm", "ftlit.models.heads.MLPHead"), settings("ftlit.load_backbone", "own_head.MLPHead")]
    assert here not in others and others[1].head._target_ == "own_head.MLPHead"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A run of today with all files that are read again, and its store."""
    folder = tmp_path_factory.mktemp("fresh")
    small = ("data.per_class=4", "head=mlp", "head.hidden=[4]", "checkpoint=slim", "trainer=cpu", "trainer.max_epochs=1")
    environment = {**os.environ, "FTLIT_CACHE": str(folder / "store")}
    done = warm.run([sys.executable, ROOT / "train.py", *small, "hydra.run.dir=run"], cwd=folder, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    Job(0).write(folder / "run")
    return folder


def numbered(path):
    """The format number in a file."""
    if path.suffix == ".ckpt":
        return torch.load(path, weights_only=True)[KEY]["format"]
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return int(file.metadata()["format"])
    return OmegaConf.load(path)["format"]  # JSON is YAML


@pytest.mark.e2e
def test_every_file_that_is_read_again_carries_the_format(fresh):
    run = fresh / "run"
    names = ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "advice.json", "job.json", "result.json")
    report = [f"report/{name}" for name in ("run.json", "stages.json", "features.safetensors", "samples.safetensors")]
    described = list((fresh / "store").glob("*/about.json"))
    assert described and all(numbered(path) == 1 for path in [*(run / name for name in (*names, *report)), *described])


@pytest.mark.e2e
def test_a_record_names_no_module_of_ftlit_and_lists_stay_lists(fresh):
    record = torch.load(fresh / "run/checkpoints/best.ckpt", weights_only=True)[KEY]
    assert record["head"]["name"] == "mlp" and record["head"]["arguments"]["hidden"] == [4]
    assert record["backbone"]["name"] == "torchvision" and record["loss"]["name"] == "cross_entropy"
    assert "ftlit." not in json.dumps(record)


@pytest.mark.e2e
def test_a_run_whose_classes_have_moved_since_has_the_same_settings(fresh, tmp_path):
    text = (fresh / "run/config.yaml").read_text()
    moved = text.replace("ftlit.models.heads.", "ftlit.models.moved.").replace("ftlit.finetuning.presets.", "ftlit.moved.")
    (tmp_path / "config.yaml").write_text(moved)
    assert moved != text and read_config(tmp_path) == read_config(fresh / "run")
    assert read_config(tmp_path).head._target_ == "head:mlp"


def test_containers_of_omegaconf_are_recorded_as_lists():
    backbone = load_backbone("mlp", weights=None, hidden=OmegaConf.create([8]), input_spec={"size": 8})
    head = {"_target_": "ftlit.models.heads.MLPHead", "hidden": OmegaConf.create([3])}
    record = record_of(backbone, {}, head, class_names=["a", "b"], multilabel=False, affine=False)
    assert record["backbone"]["arguments"]["hidden"] == [8] and record["head"]["arguments"]["hidden"] == [3]


def test_a_class_that_was_renamed_is_found_by_its_registered_name(old, monkeypatch):
    class Renamed(MLPHead):
        """The class of another release."""

    monkeypatch.setitem(HEADS._parts, "mlp", Renamed)
    assert type(load(old / "trained").head) is Renamed


def test_a_fitted_probe_is_recorded_as_the_head_that_results():
    head = {"_target_": "ftlit.models.heads.LinearProbeHead"}
    record = record_of(load_backbone("glyph", weights=None), {}, head, class_names=["a"], multilabel=False, affine=False)
    assert record["head"]["name"] == "linear"


class UserHead(LinearProbeHead):
    """A user's subclass of a built-in head."""


def test_a_users_subclass_of_a_built_in_head_is_recorded_by_its_own_path():
    head = {"_target_": f"{__name__}.UserHead"}
    record = record_of(load_backbone("glyph", weights=None), {}, head, class_names=["a"], multilabel=False, affine=False)
    assert record["head"]["import"] == f"{__name__}.UserHead"


def test_a_subclass_of_the_linear_probe_is_fitted_as_one_and_advised_as_one():
    for target, expected in ((UserHead, True), (LinearProbeHead, True), (MLPHead, False)):
        assert is_linear_probe(target) is has_probe_head(OmegaConf.create({"head": {"_target_": f"{target.__module__}.{target.__name__}"}}))
        assert is_linear_probe(target) is expected


BACKBONES_OF_0 = {
    "glyph": ({"loader": "load_backbone", "name": "glyph", "reinit": "['top']"}, "torchvision", {"name": "glyph", "reinit": ["top"]}),
    "timm": ({"loader": "load_timm", "name": "resnet18"}, "timm", {"name": "resnet18"}),
    "bert": ({"loader": "load_bert", "name": "tiny", "max_length": 32}, "bert", {"name": "tiny", "max_length": 32}),
}
HEADS_OF_0 = {"LinearHead": "linear", "SolvedLinearHead": "linear", "PooledHead": "pooled", "MLPHead": "mlp", "ConvHead": "conv"}


@pytest.mark.parametrize("backbone", BACKBONES_OF_0)
@pytest.mark.parametrize("head", HEADS_OF_0)
def test_a_record_of_format_0_names_built_in_parts_by_their_registry_names(backbone, head):
    written, loader, arguments = BACKBONES_OF_0[backbone]
    old_head = {"_target_": f"ftlit.head.{head}", "in_features": 8, "hidden": "[4, 2]"}
    record = {"backbone": written, "affine": True, "head": old_head, "class_names": ["a", "b"], "multilabel": True}
    assert read_record({KEY: record}) == {
        "backbone": {"name": loader, "arguments": arguments},
        "affine": True,
        "head": {"name": HEADS_OF_0[head], "arguments": {"in_features": 8, "hidden": [4, 2]}},
        "loss": None,
        "class_names": ["a", "b"],
        "multilabel": True,
    }
    assert loader in BACKBONES and HEADS_OF_0[head] in HEADS


def test_custom_parts_of_a_record_of_format_0_keep_their_import_paths():
    record = {"backbone": {"_target_": "mine.net", "width": 8}, "affine": False, "head": {"_target_": "mine.Head"}}
    read_again = read_record({KEY: record})
    assert read_again["backbone"] == {"import": "mine.net", "arguments": {"width": 8}}
    assert read_again["head"] == {"import": "mine.Head", "arguments": {}}


def test_the_advice_of_format_0_has_the_fields_of_today(old):
    stored = read_advice(old / "auto")
    assert set(stored) == {"advice", "measurements"} and stored["measurements"]["images"] == 50
    assert Advice(**stored["advice"]).fits_probe_head and stored["advice"]["holds_out_images"]


def test_results_of_several_entries_carry_the_format_each(tmp_path):
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
def test_a_file_of_a_newer_program_is_refused_in_one_line(old, file, reader):
    folder = old / "trained"
    path = folder / file
    if path.suffix == ".ckpt":
        torch.save({KEY: {"format": 2}, "state_dict": {}}, path)
    elif path.suffix == ".safetensors":
        save_file({"images": torch.zeros(1)}, path, {"format": "2"})
    else:
        path.write_text(json.dumps({"format": 2}))
    with pytest.raises(UserError, match=r"was written by a newer ftlit \(format 2\); this one reads formats 0 and 1: upgrade") as caught:
        reader(folder)
    assert "\n" not in str(caught.value)
