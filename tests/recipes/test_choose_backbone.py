"""`backbone=auto`: the choice among candidates, and the config that it leaves to the run."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
from hydra import compose
from omegaconf import OmegaConf
from train_command import train

from ftlit.errors import UserError
from ftlit.recipes import choose_backbone as module
from ftlit.recipes.choose_backbone import backbone_of_run, measure_backbone, resolve_backbone
from ftlit.recipes.config.candidates import candidates_of, choice_of_run, set_auto, words_with
from ftlit.recipes.config.error_messages import as_user_error
from ftlit.recipes.config.hydra_internals import choices, fresh_hydra, task_overrides, use_hydra_config
from ftlit.recipes.run.parts import load_parts
from ftlit.run_folder import BACKBONE, read_backbone_choice, write_backbone_choice
from ftlit.zoo import load_auto

AMONG = "backbone.among=[{backbone:glyph,weights:null},glyph]"


@contextmanager
def program(folder: Path, *words: str):
    """The config of a program in this folder."""
    with fresh_hydra():
        given = ["data.per_class=8", "probe.l2=[1,0.1]", f"paths.run={folder}", f"paths.cache={folder}/cache", *words]
        cfg = compose("train", set_auto(given), return_hydra_config=True)
        with use_hydra_config(cfg):
            yield cfg


@pytest.fixture(autouse=True)
def equal_speeds(monkeypatch):
    """The time of an image does not decide."""
    monkeypatch.setattr(module, "seconds_per_image", lambda *_, **__: (0.1, 0.01))


def test_the_more_accurate_candidate_becomes_the_backbone_of_the_run(tmp_path, capsys):
    with program(tmp_path, AMONG, "seed=3") as cfg:
        found = resolve_backbone(cfg)
        assert (found.backbone.name, found.backbone.weights, found.seed) == ("glyph", "default", 3)
        assert choices()["backbone"] == "glyph" and "backbone=glyph" in task_overrides()
        assert not any("auto" in word or "among" in word for word in task_overrides())
        stored = choice_of_run(tmp_path)
        assert stored["words"] == ["backbone=glyph"]
        assert [row["images"] for row in stored["candidates"]] == [80, 80]
        assert stored["candidates"][1]["accuracy"] > stored["candidates"][0]["accuracy"]
        assert "glyph weights=null" in capsys.readouterr().out
        parts = load_parts(found)
        capsys.readouterr()
        measure_backbone(found, parts, 80)  # of the run: nothing is computed twice
        assert "all read from the cache" in capsys.readouterr().out


def test_a_warm_cache_leads_to_the_same_choice(tmp_path):
    stored = []
    for name in ("cold", "warm"):
        with program(tmp_path / name, AMONG, f"paths.cache={tmp_path}/cache") as cfg:
            resolve_backbone(cfg)
            stored.append(read_backbone_choice(tmp_path / name))
    assert stored[0] == stored[1]


def test_images_of_val_and_test_are_not_read(tmp_path, monkeypatch):
    splits = []
    own = module.features_of
    monkeypatch.setattr(module, "features_of", lambda cfg, net, data, cuts, used: splits.append(used) or own(cfg, net, data, cuts, used))
    with program(tmp_path, AMONG) as cfg:
        resolve_backbone(cfg)
    assert splits == [("train",)] * 2


@pytest.mark.parametrize("place", ["resumed", "second process"])
def test_a_resumed_run_and_other_processes_take_the_stored_choice(place, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "measure_backbone", None)
    monkeypatch.setattr(module, "rank_before_trainer", lambda: 1)
    words = ["backbone=resnet18", "backbone.weights=null"]
    write_backbone_choice(tmp_path, {"chosen": "resnet18", "words": words, "candidates": []})
    with program(tmp_path, AMONG, *(["resume=true"] if place == "resumed" else [])) as cfg:
        found = resolve_backbone(cfg)
        assert (found.backbone.name, found.backbone.weights) == ("resnet18", None) and set(words) <= set(task_overrides())


def test_a_run_that_ends_before_it_began_leaves_no_choice(tmp_path):
    with program(tmp_path, AMONG) as cfg, pytest.raises(ZeroDivisionError), backbone_of_run(cfg):
        assert (tmp_path / BACKBONE).is_file()
        raise ZeroDivisionError
    assert not (tmp_path / BACKBONE).exists()


def test_a_resumed_run_that_chose_no_backbone_is_refused(tmp_path):
    with program(tmp_path, AMONG, "resume=true") as cfg, pytest.raises(UserError, match="holds no run"):
        resolve_backbone(cfg)


def test_candidates_of_an_experiment_are_not_left_in_the_config(tmp_path):
    with program(tmp_path, "seed=1"):
        cfg = OmegaConf.create({"backbone": {"among": ["glyph"]}})
        assert words_with(["backbone=glyph"], cfg)[:2] == ["backbone=glyph", "~backbone.among"]


def test_all_whose_weights_are_at_hand_are_candidates(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with program(tmp_path, "backbone=auto") as cfg:
        before = {candidate.name for candidate in candidates_of(cfg)[0]}
        (tmp_path / "hub/checkpoints").mkdir(parents=True)
        (tmp_path / "hub/checkpoints/resnet18-f37072fd.pth").touch()
        found, left_out = candidates_of(cfg)
    assert "glyph" in before and {candidate.name for candidate in found} == before | {"resnet18"}
    assert left_out > 70 and not before & {"timm", "bert", "mlp", "auto", "resnet18"}


def test_values_of_a_candidate_are_words_of_the_command_line(tmp_path):
    narrow = "{backbone:mobilenet_v2,weights:'a b.pth',input_spec:{mean:0.5},width_mult:0.35}"
    with program(tmp_path, f"backbone.among=[{narrow},{{backbone:timm,name:x,drop_path_rate:0.1}}]") as cfg:
        first, second = candidates_of(cfg)[0]
    values = ("backbone.weights='a b.pth'", "backbone.input_spec.mean=0.5", "backbone.width_mult=0.35")
    assert (first.name, first.words) == ("mobilenet_v2", ("backbone=mobilenet_v2", *values))
    assert (second.name, second.words) == ("x", ("backbone=timm", "backbone.name=x", "+backbone.drop_path_rate=0.1"))


def test_candidates_of_one_name_are_told_apart_by_the_values_that_differ(tmp_path):
    same = "backbone:timm,name:x,input_spec:{size:96}"
    with program(tmp_path, f"backbone.among=[{{{same}}},{{{same},cut:-2}},glyph,glyph,{{{same},weights:a.pth,cut:-2}}]") as cfg:
        found, _ = candidates_of(cfg)
    assert [candidate.name for candidate in found] == ["x", "x cut=-2", "glyph", "x weights=a.pth cut=-2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["backbone.among=[resnet81]"], "no backbone 'resnet81': did you mean 'resnet18'?"),
        (["backbone.among=[]"], "backbone.among=[]: give a list of backbones"),
        (["backbone.among=[auto]"], "no backbone 'auto'"),
        (["backbone.among=[{weights:a.pth}]"], "names no backbone"),
        (["backbone=auto", "backbone.cut=-2"], "backbone.cut=-2 belongs to one backbone"),
        (["backbone=resnet18", "backbone.among=[glyph]"], "backbone.among is an option of backbone=auto"),
        (["backbone=auto", "head.cuts=[layer4]"], "names layers of one backbone"),
        (["backbone=auto", "data.per_class=1"], "backbone=auto needs a class with two or more training images"),
        (["backbone.among=[glyph]", "probe.l2=[0.1]"], "several L2 penalties"),
        (["backbone.among=[glyph]", "data=text_csv"], "the data are texts"),
    ],
)
def test_what_cannot_be_compared_is_one_line(words, message, tmp_path):
    (tmp_path / "texts.csv").write_text("text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(20)))
    of_texts = [f"data.csv={tmp_path}/texts.csv"] if "data=text_csv" in words else []
    with pytest.raises(Exception) as caught, program(tmp_path, *words, *of_texts) as cfg:
        resolve_backbone(cfg)
    text = str(as_user_error(caught.value))
    assert message in text and "\n" not in text


def test_where_nothing_is_chosen_the_error_says_what_to_give():
    with pytest.raises(UserError, match="give backbone=NAME here"):
        load_auto()


def test_a_run_names_its_choice_in_the_plan_and_in_its_result(tmp_path):
    done = train(tmp_path, AMONG, "data.per_class=8", "trainer=cpu", "hydra.run.dir=run", "scenario=small_similar", "report=false")
    assert done.returncode == 0 and "chosen among 2 (held-out accuracy" in done.stdout, done.stderr
    assert json.loads((tmp_path / "run/result.json").read_text())["backbone"] == "glyph"
