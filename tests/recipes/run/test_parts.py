"""Photos for the network of drawn signs are noted; a stage that no step reaches is an error."""

import re
from contextlib import nullcontext

import numpy as np
import pytest
from composed_configs import composed, error_text
from hydra import compose
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from PIL import Image

from ftlit.errors import UserError
from ftlit.recipes.checks.own_parts import build_part
from ftlit.recipes.config.hydra_internals import fresh_hydra, use_hydra_config
from ftlit.recipes.run.parts import begun_in_time, check_indexed_images, load_parts
from ftlit.recipes.run.training_steps import steps_per_epoch


@pytest.mark.parametrize(("channels", "side", "noted"), [(3, 80, True), (1, 80, False), (3, 40, False)])
def test_large_coloured_images_on_glyph_are_noted_as_photos(tmp_path, channels, side, noted):
    random = np.random.default_rng(0)
    for i in range(12):
        (tmp_path / "abc"[i % 3]).mkdir(exist_ok=True)
        low = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((side, side))
        low.convert("RGB" if channels == 3 else "L").save(tmp_path / "abc"[i % 3] / f"{i}.png")
    with fresh_hydra():
        data = load_parts(composed("data=folder", f"data.root={tmp_path}", f"paths.cache={tmp_path}/cache")).data
    given = r"look like photos: give backbone=resnet18, or, without a download, backbone=efficientnet_lite0, whose weights come with pip"
    assert any(re.search(given, note) for note in data.notes) is noted


def test_a_stage_by_epoch_after_the_last_step_is_an_error_that_names_the_options(monkeypatch):
    with fresh_hydra():
        words = ("scenario=large_similar", "head=linear", "data.per_class=20", "schedule.epoch=4", "+trainer.max_steps=20")
        message = error_text(monkeypatch, *words)
    assert "would never begin, because max_steps=20 (7 steps per epoch)" in message
    assert message.endswith(
        "give max_steps=29 or more, or let the stage begin earlier (now: epoch 4), with schedule.epoch or schedule=all_at_once"
    )


@pytest.mark.parametrize(
    ("words", "epochs", "noted"),
    [
        (["trainer.max_epochs=2"], [0, 1], True),
        (["trainer.max_epochs=3"], [0, 2], False),
        (["trainer.max_epochs=2", "schedule.epoch=2"], [0, 2], False),  # the user's own
        (["trainer.max_epochs=1"], [0, 2], False),
        (["trainer.max_epochs=2", "schedule=top_down"], [0, 1, 2, 3, 4, 5], False),
    ],
)
def test_the_last_stage_begins_before_the_end_where_its_epoch_is_the_default(words, epochs, noted):
    with fresh_hydra():
        cfg = compose("train", ["paths.run=run", "scenario=large_similar", "head=linear", *words], return_hydra_config=True)
    with use_hydra_config(cfg):
        schedule, notes = begun_in_time(cfg, build_part("schedule", cfg.schedule, layers=["a", "b", "c", "d", "e"]))
    assert [stage.epoch for stage in schedule.stages] == epochs
    note = "stage 'all' begins at epoch 1 instead of 2 (schedule.epoch), because trainer.max_epochs=2"
    assert notes == [note] * noted


def test_the_steps_of_an_epoch_are_not_known_where_a_callback_sets_the_accumulation(tmp_path):
    with fresh_hydra():
        data = load_parts(composed("data.per_class=20", f"paths.cache={tmp_path}")).data
    assert steps_per_epoch(Trainer(accelerator="cpu"), data) == 7
    assert steps_per_epoch(Trainer(accelerator="cpu", callbacks=[GradientAccumulationScheduler({0: 4, 2: 1})]), data) is None


@pytest.mark.parametrize(("views", "refused"), [("4", True), ("0", False), ("auto", False)])
def test_views_that_a_recipe_does_not_read_are_an_error(views, refused, tmp_path):
    with fresh_hydra():
        cfg = composed("recipe=probe", f"data.views={views}", "data.per_class=3", "data.augment=photo", f"paths.cache={tmp_path}")
        data = load_parts(cfg).data
    with pytest.raises(UserError, match=r"^recipe=probe reads each image once, .*: leave data\.views=4 out$") if refused else nullcontext():
        check_indexed_images(cfg, data)
