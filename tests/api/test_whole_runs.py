"""Whole runs by one call: the results of the command line, and a process that is afterwards as it was."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
import torch
import warm
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from paths import ROOT
from PIL import Image

import ftlit
from ftlit import UserError
from ftlit.recipes.config.hydra_internals import initialize_hydra

pytestmark = pytest.mark.e2e

FEW = {"data.per_class": 5, "report": False}
COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}


@pytest.fixture
def photos(tmp_path):
    """Folder of two classes of ten images, of one colour each."""
    for name, colour in COLOURS.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            image = Image.new("RGB", (32, 32), tuple(min(255, value + 2 * i) for value in colour))
            image.putpixel((i, i), (0, 0, 0))
            image.save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def numbers(folder):
    found = json.loads((Path(folder) / "result.json").read_text())
    return {name: value for name, value in found.items() if name not in ("format", "checksum")}


@pytest.mark.parametrize("scenario", ["small_similar", "large_similar"])
def test_a_call_gives_the_numbers_of_the_command_line(scenario, tmp_path):
    settings = {**FEW, "trainer.max_epochs": 1, "trainer.limit_train_batches": 1} if scenario == "large_similar" else FEW
    result = ftlit.finetune("digits", scenario=scenario, folder=tmp_path / "here", options=settings)
    words = [f"{name}={str(value).lower()}" for name, value in settings.items()]
    done = warm.run([sys.executable, ROOT / "train.py", f"scenario={scenario}", *words, f"paths.run={tmp_path / 'there'}"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert numbers(result.folder) == numbers(tmp_path / "there")


def test_what_a_run_returns(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = ftlit.finetune(photos, options={"data.augment": "none"})
    assert result.folder.is_relative_to(tmp_path / "runs") and result.report == result.folder / "report.html"
    assert [(row["model"], row["split"]) for row in result.table] == [("this run", "val"), ("this run", "test")]
    assert result.table[1]["accuracy"] == result.metrics["test/accuracy"] == 1 and result.advice["scenario"] == "small_similar"
    found = result.predict(photos / "red")
    (alone,) = [result.network(path) for path in (photos / "red").glob("3.png")]
    assert len(found) == 10 and {prediction.label for prediction in found.values()} == {"red"}
    assert found[str(photos / "red/3.png")].probability == pytest.approx(alone.probability, abs=1e-5)
    assert result.export("torch").is_file()
    assert repr(result).startswith("Finetuned(test accuracy 1.0000 (95 % interval ")
    (photos / "red/broken.png").write_text("no image")
    with pytest.warns(UserWarning, match="1 of 11 have no prediction: .*broken.png"):
        assert len(ftlit.predict(result.folder, photos / "red")) == 10
    with pytest.raises(UserError, match="there is no file or folder"):
        result.predict("nowhere")
    with pytest.raises(UserError, match=r"there is no file or folder .*/redd': did you mean .*/red'\?"):
        result.predict(photos / "redd")
    with pytest.raises(UserError, match="is not that of a run: give one"):
        ftlit.Finetuned(photos)
    assert ftlit.Finetuned(str(result.folder)) == result


@pytest.mark.parametrize("keeps_probe", [True, False])
def test_the_table_of_a_run_that_trains_layers_has_both_models(keeps_probe, tmp_path):
    settings = {**FEW, "trainer.limit_train_batches": 2} if keeps_probe else {**FEW, "probe.l2": [1e6], "optimizer.lr": 1e-2}
    result = ftlit.finetune("digits", scenario="large_similar", epochs=1 if keeps_probe else 3, folder=tmp_path / "run", options=settings)
    probe, trained = ([row for row in result.table if row["model"] == model] for model in ("linear probe", "trained network"))
    assert [row["split"] for row in probe] == ["val", "test"] and all(row["is_result"] == keeps_probe for row in probe)
    assert [row["split"] for row in trained] == ["val", "test"][: 1 if keeps_probe else 2]
    better = probe if keeps_probe else trained
    assert better[1]["accuracy"] == result.metrics["test/accuracy"]
    assert all(row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"] for row in [*probe, *better])


def test_probes_and_advice(tmp_path):
    probed = ftlit.probe("digits", folder=tmp_path / "probe", options={**FEW, "probe.kinds": ["ridge"]})
    assert len(probed.table) == len({row["cut"] for row in probed.table}) >= 4 and {row["kind"] for row in probed.table} == {"ridge"}
    best = probed.best[0]
    assert best["low"] <= best["test/accuracy"] <= best["high"] and "test accuracy" in repr(probed)
    assert max(row["accuracy"] for row in probed.table) >= best["held_out/accuracy"]
    advised = ftlit.advise("digits", folder=tmp_path / "advice", options=FEW)
    assert advised.scenario == "small_similar" and [row["cut"] for row in advised.table][-1] == "layer4"


def test_the_process_is_afterwards_as_it_was(tmp_path):
    def state():
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        return [*sys.argv], dict(os.environ), handlers, torch.are_deterministic_algorithms_enabled(), os.getcwd()

    before = state()
    with initialize_hydra():
        HydraConfig.instance().cfg = "of the program"
        own = GlobalHydra.instance().hydra
        for number in range(2):
            ftlit.finetune("digits", scenario="small_similar", folder=tmp_path / str(number), options=FEW)
        assert GlobalHydra.instance().hydra is own and HydraConfig.instance().cfg == "of the program"
        assert hydra.compose("train", ["seed=3"]).seed == 3
        HydraConfig.instance().cfg = None
    assert state() == before
    assert numbers(tmp_path / "0") == numbers(tmp_path / "1")


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: ftlit.finetune("digits", backbone="resnt50"), "resnet50"),
        (lambda: ftlit.finetune("digits", options={"optimizer.lrr": 1}), "optimizer.lr"),
        (lambda: ftlit.finetune("digits", epochs=-3, scenario="large_similar"), "trainer.max_epochs=-3"),
        (lambda: ftlit.probe("digits", options={"recipe": "finetune"}), "always runs recipe=probe"),
        (lambda: ftlit.probe("digits", backbone="glyph", options={"backbone": "mlp"}), "backbone is given twice"),
        (lambda: ftlit.finetune(["a.jpg"]), "give a folder with one folder per class"),
        (lambda: ftlit.finetune("digits", options={"hparams_search": "optuna"}), "only the command line runs"),
    ],
)
def test_a_mistake_is_one_line(call, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=line) as caught:
        call()
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("runs/*/*/config.yaml"))
    assert not GlobalHydra.instance().is_initialized() and HydraConfig.instance().cfg is None


def test_an_interrupted_run_can_be_resumed(tmp_path, monkeypatch, capsys):
    settings = {**FEW, "data.batch_size": 8, "trainer.max_epochs": 2}
    whole = ftlit.finetune("digits", scenario="large_similar", folder=tmp_path / "whole", options=settings)

    def interrupt(self, trainer, *_):
        if trainer.global_step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(ftlit.StagedFinetuning, "on_train_batch_end", interrupt, raising=False)
        with pytest.raises(KeyboardInterrupt) as caught:
            ftlit.finetune("digits", scenario="large_similar", folder=tmp_path / "stopped", options=settings)
    assert not [frame for frame in caught.traceback if "hydra" in str(frame.path)] and caught.value.__suppress_context__
    printed = capsys.readouterr().out
    assert "To resume: ftlit train" in printed
    call = printed.splitlines()[-1].removeprefix("In Python: ")
    assert call.startswith("ftlit.finetune('digits', scenario='large_similar', folder=")
    resumed = eval(call)
    assert numbers(resumed.folder) == numbers(whole.folder)


SCRIPT = """
import gc
import ftlit
result = ftlit.finetune({photos!r}, scenario="small_similar", options={options!r})
assert not gc.get_freeze_count()  # objects of the script are collected
print("RESULT", result.metrics["test/accuracy"])
"""


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"data.num_workers": 2, "report": False}, id="workers"),
        pytest.param({"trainer": "ddp_cpu", "trainer.devices": 2, "report": False}, id="processes", marks=pytest.mark.slow),
    ],
)
def test_a_script_needs_no_guard(options, photos, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.format(photos=str(photos), options=options))
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "RESULT 1.0" and done.stdout.count("RESULT") == 1
