"""Two machines with disks of their own, as two processes: what one of them has is not computed, and is copied to the other."""

import os
import sys

import pytest
import torch
import warm
from machines_program import features
from paths import SUPPORT

pytestmark = [pytest.mark.e2e, pytest.mark.ddp]


def test_each_machine_gets_what_the_other_has_and_computes_what_neither_has(tmp_path):
    folders = [tmp_path / name for name in ("first", "second")]
    programs = []
    for rank, folder in enumerate(folders):
        folder.mkdir()
        command = [sys.executable, str(SUPPORT / "machines_program.py"), str(folder)]
        programs.append(warm.start(command, env={**os.environ, "RANK": str(rank)}))
    assert [program.wait(60) for program in programs] == [0, 0]
    for folder in folders:
        noted = torch.load(folder / "noted", weights_only=True)
        for dtype in (torch.float32, torch.bfloat16, torch.uint8):
            found = noted[str(dtype)]
            assert found["computed"] == [[4]]  # 5 and 6 are equal images, which both hold
            assert torch.equal(found["rows"], features(dtype)[[0, 1, 2, 3, 5, 6]])
            assert found["held"] == 5  # each row once
