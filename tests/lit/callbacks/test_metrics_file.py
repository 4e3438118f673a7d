"""MetricsFile continues the `metrics.csv` of a run that is resumed, and reports rows that are missing or have changed."""

import csv
import re
import warnings

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import tensor

from ftlit.errors import UserError
from ftlit.lit.callbacks.exact_resume import LastCheckpoint
from ftlit.lit.callbacks.metrics_file import MetricsFile
from ftlit.recipes.processes.process_state import HIDDEN_WARNINGS

ROWS = [{"loss": tensor(1 / 3), "epoch": 0}, {"loss": float("nan"), "rate": 1e-9}, {"loss": 2.5, "rate": None}]


@pytest.fixture
def written(tmp_path):
    """Write three rows; return the logger that wrote them, and what a checkpoint stores."""
    logger = MetricsFile(tmp_path)
    for step, row in enumerate(ROWS):
        logger.log_metrics(row, step)
        logger.save()  # each by itself: the columns change
    return logger, logger.flush()


def continued(folder, stored):
    """A logger as a resumed run has it, and the warnings."""
    logger = MetricsFile(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        logger.continue_after(*stored)
    return logger, [str(warning.message) for warning in caught]


def test_rows_that_are_kept_have_the_hash_that_they_had_before(tmp_path, written):
    logger, stored = written
    before = logger.path.read_text()
    again, messages = continued(tmp_path, stored)
    assert messages == [] and again.flush() == stored and again.path.read_text() == before


def test_a_hash_is_of_the_rows_before_it(tmp_path, written):
    logger, stored = written
    logger.log_metrics({"loss": 1.0}, 3)
    assert logger.flush() != stored
    again, messages = continued(tmp_path, stored)
    assert messages == [] and again.flush() == stored and len(again.path.read_text().splitlines()) == 4


def test_a_new_run_reports_once_that_the_rows_of_an_earlier_one_are_replaced(tmp_path, written):
    logger = MetricsFile(tmp_path)
    logger.log_metrics({"loss": 1.0}, 0)
    with pytest.warns(UserWarning, match="replacing the rows of an earlier run in .*metrics.csv") as caught:
        logger.save()
        logger.save()
    assert len(caught) == 1 and len(logger.path.read_text().splitlines()) == 2
    assert not any(re.search(hidden, str(caught[0].message)) for hidden in HIDDEN_WARNINGS)  # the command line shows it, too


def test_a_file_without_rows_is_replaced_without_a_warning(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step,loss\n")
    logger = MetricsFile(tmp_path)
    logger.log_metrics({"loss": 1.0}, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logger.save()
    assert [row["loss"] for row in csv.DictReader(logger.path.open())] == ["1.0"]


def test_a_bit_that_flips_anywhere_in_the_rows_is_reported(tmp_path, written):
    logger, stored = written
    whole = logger.path.read_bytes()
    for place in range(len(whole) - 2):  # before the end of the last line
        logger.path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            again, messages = continued(tmp_path, stored)
        except UserError as error:
            messages = [str(error)]
        else:
            again.save()
            assert list(csv.reader(again.path.open()))
        assert len(messages) == 1 and "metrics.csv" in messages[0], (place, whole[place:])


def test_rows_of_a_checkpoint_without_a_hash_are_kept_as_they_are(tmp_path, written):
    logger, (count, _) = written
    logger.path.write_text(logger.path.read_text().replace("2.5", "3.5"))
    again, messages = continued(tmp_path, (count, None))
    again.save()
    assert messages == [] and "3.5" in again.path.read_text()


class Logs(BoringModel):
    """Logs its loss in each step."""

    def training_step(self, batch, batch_idx):
        step = super().training_step(batch, batch_idx)
        self.log("loss", step["loss"])
        return step


def fitted(folder, resume_from=None):
    """Train two epochs of two steps, or resume."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1, "limit_val_batches": 0}
    callbacks, logger = [LastCheckpoint(folder / "last.ckpt")], MetricsFile(folder)
    trainer = Trainer(max_epochs=2, limit_train_batches=2, accelerator="cpu", callbacks=callbacks, logger=logger, **quiet)
    trainer.fit(Logs(), ckpt_path=resume_from, weights_only=True)


def test_a_checkpoint_holds_the_hash_of_the_rows_before_it(tmp_path):
    fitted(tmp_path)
    table, last = tmp_path / "metrics.csv", tmp_path / "last.ckpt"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*was changed")
        fitted(tmp_path, last)  # nothing is left to train
    table.write_text(table.read_text().replace(",0\n", ",7\n", 1))
    with pytest.warns(UserWarning, match="was changed: the first 4 rows differ from the rows that the run wrote"):
        fitted(tmp_path, last)
    content = torch.load(last, weights_only=True)
    del content["exact_resume"]["row_hashes"]  # as earlier releases wrote it
    torch.save(content, last)
    table.write_text(table.read_text().replace(",7\n", ",8\n", 1))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*was changed")
        fitted(tmp_path, last)


def test_the_evaluation_of_the_result_is_of_no_epoch(tmp_path):
    logger = MetricsFile(tmp_path)
    logger.log_metrics({"val/accuracy": 0.5, "epoch": 0}, 3)
    logger.trains = False
    logger.log_metrics({"val/accuracy": 0.75, "epoch": 1}, 4)
    logger.save()
    with logger.path.open() as file:
        assert [(row["epoch"], row["step"], row["val/accuracy"]) for row in csv.DictReader(file)] == [("0", "3", "0.5"), ("", "4", "0.75")]
