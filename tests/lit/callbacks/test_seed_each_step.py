"""SeedEachStep: the seed of a run is that of its checkpoint."""

import pytest
from lightning_net import fit

from ftlit import LastCheckpoint, SeedEachStep, UserError

pytestmark = pytest.mark.filterwarnings("ignore")  # advice of Lightning on loaders and folders


def test_another_seed_is_an_error_on_resuming(tmp_path):
    last = tmp_path / "last.ckpt"
    fit(LastCheckpoint(last), SeedEachStep(0), max_epochs=1)
    fit(LastCheckpoint(last), SeedEachStep(0), max_epochs=2, ckpt_path=last)
    with pytest.raises(UserError, match=r"^the checkpoint was written with SeedEachStep\(0\), but this run has SeedEachStep\(1\): give "):
        fit(LastCheckpoint(last), SeedEachStep(1), max_epochs=3, ckpt_path=last)
