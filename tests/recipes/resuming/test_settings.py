"""Settings of a run are compared across releases: one that a later release has added, with its default, is no change."""

import pytest
from hydra import compose
from omegaconf import OmegaConf

from ftlit.recipes.config.hydra_internals import initialize_hydra, use_hydra_config
from ftlit.recipes.resuming.settings import changes, chosen_options, resolved_settings


@pytest.fixture(scope="module")
def settings():
    with initialize_hydra():
        cfg = compose("train", ["paths.run=/run", "seed=3"], return_hydra_config=True)
        with use_hydra_config(cfg):
            del cfg.hydra
            yield resolved_settings(cfg), chosen_options()


@pytest.mark.parametrize("name", ["data.batch_size", "decay_all", "data.seed"])  # the last is `${seed}`
def test_a_setting_that_was_added_with_its_default_is_no_change(settings, name):
    now, chosen = settings
    before = now.copy()
    parent, _, leaf = name.rpartition(".")
    del (OmegaConf.select(before, parent) if parent else before)[leaf]
    assert changes(before, now, chosen) == []
    other = now.copy()
    OmegaConf.update(other, name, 99)
    assert [change.name for change in changes(before, other, chosen)] == [name]
