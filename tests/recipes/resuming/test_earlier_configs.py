"""The `config.yaml` of earlier versions: what it lacks, or names otherwise, becomes the present setting of the same value."""

import pytest
from composed_configs import OPTIONS, option
from omegaconf import OmegaConf

from ftlit.recipes.config.hydra_internals import fresh_hydra
from ftlit.recipes.resuming.resume import read_config

HEAD_ONLY = {"_target_": "schedule:head_only"}


@pytest.fixture
def settings(tmp_path):
    """Return the settings that are read from a file of format 1 with these groups."""

    def read(chosen=None, **groups):
        default = {"recipe": "finetune", "data": {"mix": "none"}, "head": {"_target_": "head:linear_probe"}, "schedule": HEAD_ONLY}
        content = {"format": 1, "chosen": chosen or {}, "registered": {}, **default, **groups}
        (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(content)))
        return OmegaConf.to_container(read_config(tmp_path).settings)

    return read


def test_views_of_the_cache_become_views_of_data_that_have_such_an_option(settings):
    trains = {"schedule": {"_target_": "schedule:all_at_once"}}
    found = settings(**trains, cache={"views": 4, "max_gb": 20})
    assert found["data"]["views"] == 4 and found["cache"] == {"max_gb": 20}
    assert "views" not in settings(**trains, cache={"views": 1})["data"]
    assert settings(**trains, cache={"views": 4}, data={"csv": "texts.csv"})["data"] == {"csv": "texts.csv"}
    assert settings(cache=None)["cache"] is None


def test_the_data_sources_with_views_are_those_with_mix():
    with fresh_hydra():
        for name in OPTIONS["data"]:
            data = option("data", name).data
            assert ("views" in data) == ("mix" in data), name


@pytest.mark.parametrize(
    ("schedule", "only_fits"),
    [
        (HEAD_ONLY, True),
        ({"_target_": "schedule:explicit", "stages": [{"train": ["head"]}, {"train": "head", "epoch": 2}]}, True),
        ({"_target_": "schedule:explicit", "stages": [{"train": ["head"]}, {"train": ["*"], "epoch": 2}]}, False),
        ({"_target_": "schedule:head_then_all", "epoch": 2}, False),
    ],
)
def test_a_head_that_was_only_fitted_read_one_layer_and_plain_views(settings, schedule, only_fits):
    found = settings(schedule=schedule)
    assert (found["head"].get("cuts", "absent"), found["data"].get("views")) == ((None, 0) if only_fits else ("absent", None))


@pytest.mark.parametrize(
    "groups",
    [
        {"head": {"_target_": "head:linear_probe", "cuts": "auto"}, "data": {"mix": "none", "views": "auto"}},
        {"head": {"_target_": "head:linear"}},
        {"recipe": "pretrain"},
    ],
)
def test_other_runs_keep_their_settings(settings, groups):
    found = settings(**groups)
    assert found["head"] == groups.get("head", {"_target_": "head:linear_probe"}) and found["data"] == groups.get("data", {"mix": "none"})
