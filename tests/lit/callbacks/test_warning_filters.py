"""LastCheckpoint hides one warning of Lightning's in a resumed run, and leaves the warning filters of others as they are."""

import warnings
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel

from ftlit.data.samplers import TrainOrder
from ftlit.lit.callbacks.exact_resume import LastCheckpoint
from ftlit.lit.resumed_checkpoint import continuing


class SetsFilter(pl.Callback):
    """Hides a warning for good, as the code of a user may."""

    def on_train_start(self, trainer, pl_module):
        warnings.filterwarnings("ignore", "hidden by the user")


class EndsAtOnce(pl.Callback):
    """Ends training before its first batch."""

    def on_train_start(self, trainer, pl_module):
        trainer.should_stop = True


def test_warning_filters_stay_as_others_set_them(tmp_path):
    last = tmp_path / "last.ckpt"
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}

    def fit_with(callback, epochs, **resume):
        trainer = pl.Trainer(
            accelerator="cpu", min_epochs=0, max_epochs=epochs, limit_train_batches=2, callbacks=[LastCheckpoint(last), callback], **quiet
        )
        trainer.fit(BoringModel(), **resume)
        return trainer.global_step

    with warnings.catch_warnings():
        assert fit_with(SetsFilter(), 1) == 2
        assert any(filter[1] and filter[1].pattern == "hidden by the user" for filter in warnings.filters)
        filters = warnings.filters
        assert fit_with(EndsAtOnce(), 2, ckpt_path=last) == 2
        assert warnings.filters is filters


@pytest.mark.parametrize("sampler", [TrainOrder(range(4), 2), None])
def test_a_filter_that_others_set_while_a_run_is_being_resumed_stays(sampler):
    with warnings.catch_warnings():
        before = list(warnings.filters)
        with continuing(SimpleNamespace(sampler=sampler)):
            assert (warnings.filters != before) == bool(sampler)
            warnings.filterwarnings("ignore", "hidden by the user")
        kept, *others = warnings.filters
        assert kept[1].pattern == "hidden by the user" and others == before
