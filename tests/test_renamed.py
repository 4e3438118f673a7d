"""Errors for old names give the new names, and every new name exists."""

from pkgutil import resolve_name

import pytest

import ftlit
from ftlit.renamed import CLASSES, MODULES, OPTIONS, PUBLIC_NAMES, new_path

OLD_TARGETS = """ftlit.head.ConvHead ftlit.head.LinearHead ftlit.head.MLPHead ftlit.head.SolvedLinearHead ftlit.lit.caching.CodesData
ftlit.lit.caching.images_only ftlit.lit.datamodules.csv_data ftlit.lit.datamodules.digits_data ftlit.lit.datamodules.folder_data
ftlit.lit.datamodules.torchvision_data ftlit.lit.datamodules.unlabelled_data ftlit.lit.glyphs.GlyphData ftlit.lit.pretrainer.autoencoder
ftlit.lit.pretrainer.rbm ftlit.lit.progress.StageProgressBar ftlit.lit.rate_monitor.RateMonitor ftlit.lit.resuming.LastCheckpoint
ftlit.lit.resuming.MetricsFile ftlit.lit.seeding.SeedEachStep ftlit.lit.texts.text_csv_data ftlit.loss.bce ftlit.loss.cross_entropy
ftlit.lr_find.RangeTest ftlit.probing.Probing ftlit.rates.Rates ftlit.rates.any_curve ftlit.rates.constant ftlit.rates.cosine
ftlit.rates.linear ftlit.rates.one_cycle ftlit.rates.plateau ftlit.rates.step ftlit.recipes.sweeping.Watch ftlit.schedule.all_at_once
ftlit.schedule.explicit ftlit.schedule.head_only ftlit.schedule.head_then_all ftlit.schedule.last_k ftlit.schedule.top_down
ftlit.backbone.Backbone ftlit.lit.finetuner.FineTuner ftlit.lit.images.ImageData ftlit.lit.solving.SolvedHead
ftlit.lit.staging.StagedFinetuning ftlit.transform.train_transform ftlit.CodesData ftlit.SolvedHead
ftlit.lit.datamodules.feature_data.FeatureData ftlit.lit.staged_finetuning.StagedFinetuning ftlit.cli.sweep_jobs.SweepCallback""".split()


@pytest.mark.parametrize(("old", "new"), PUBLIC_NAMES.items())
def test_the_import_error_for_an_old_public_name_gives_the_new_name(old, new):
    for use in (f"from ftlit import {old}", f"import ftlit; ftlit.{old}"):
        with pytest.raises(ImportError, match=rf"^ftlit\.{old} is now named ftlit\.{new}$"):
            exec(use, {})
    assert new in ftlit.__all__


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(ftlit, "Nothing")
    with pytest.raises(ImportError, match="cannot import name"):
        exec("from ftlit import Nothing", {})


@pytest.mark.parametrize("old", OLD_TARGETS)
def test_every_old_target_of_a_config_resolves_to_its_new_path(old):
    new = new_path(old)
    assert new is not None and new != old
    assert callable(resolve_name(new))


def test_old_and_new_paths_are_disjoint_and_other_paths_are_not_renamed():
    assert not {f"ftlit.{module}" for module in MODULES.values()} & {f"ftlit.{module}" for module in MODULES if module != "lit.datamodules"}
    assert not set(CLASSES.values()) & set(CLASSES) and not set(OPTIONS.values()) & set(OPTIONS)
    for path in ("torch.nn.Linear", "ftlit", "ftlit.Backbone", "ftlit.models.heads.MLPHead", "mine.head.MLPHead", "head.MLPHead", ""):
        assert new_path(path) is None
