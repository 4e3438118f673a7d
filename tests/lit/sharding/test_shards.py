"""Folders of shards: complete at any moment, checked for damage, and nothing in them is executed (invariants 5, 9 and 12)."""

import pickle
from contextlib import nullcontext

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

from ftlit.errors import UserError
from ftlit.lit.sharding.consolidate import consolidate
from ftlit.lit.sharding.shards import META, consolidated, write_shards
from ftlit.run_folder import finish_replacing, is_complete, is_sharded_checkpoint
from ftlit.tensor_files import load_checkpoint, save_checkpoint


@pytest.fixture
def folder(tmp_path):
    """A folder of two processes, with one sharded tensor of 3 rows, and one that is not."""
    folder, rows = tmp_path / "checkpoints" / "last.ckpt", torch.arange(6.0).view(3, 2)
    common = {"epoch": 1, "state_dict": {"w": {"shard": "0"}, "b": torch.ones(2)}, "optimizer_states": [{"state": {"shard": "1"}}]}
    save_checkpoint({"processes": 2, "content": common}, folder / META)
    for rank, own in enumerate((rows[:2], rows[2:])):
        save_checkpoint({"0": own.clone(), "1": own.clone()}, folder / f"shard-{rank:05d}-of-00002.ckpt")
    return folder


def test_whole_tensors_are_put_together_without_the_state_of_training(folder):
    content = consolidated(folder)
    assert content.keys() == {"epoch", "state_dict"} and torch.equal(content["state_dict"]["w"], torch.arange(6.0).view(3, 2))
    assert torch.equal(content["state_dict"]["b"], torch.ones(2))


@pytest.mark.parametrize("name", [META, "shard-00000-of-00002.ckpt", "shard-00001-of-00002.ckpt"])
def test_a_damaged_byte_and_a_missing_file_are_errors_that_name_the_file(folder, name):
    path = folder / name
    content = bytearray(path.read_bytes())
    value = torch.ones(2) if name == META else torch.tensor([0.0, 1.0] if "00000-of" in name else [4.0, 5.0])
    content[content.index(value.numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        consolidated(folder)
    path.unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        consolidated(folder)


def test_nothing_in_a_folder_is_executed(folder):
    class Payload:
        def __reduce__(self):
            return print, ("executed",)

    torch.save({"processes": 2, "content": Payload()}, folder / META, pickle_module=pickle)
    with pytest.raises(UserError, match=r"meta\.ckpt is damaged"):
        consolidated(folder)


def test_a_program_that_was_killed_between_two_names_leaves_a_folder(tmp_path):
    last = tmp_path / "last.ckpt"
    for epoch in (1, 2):
        write_shards({"epoch": epoch}, last, 0, 1, nullcontext)
        assert consolidated(last) == {"epoch": epoch}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    last.rename(tmp_path / ".last.ckpt.ftlit-part")  # the new one, before it gets its name
    assert is_complete(last) and not last.exists()  # looking at it changes nothing: another program may be writing it
    finish_replacing(last)
    assert consolidated(last) == {"epoch": 2} and is_complete(last)


@pytest.fixture
def mesh():
    """One process."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_what_is_read_is_what_was_written_in_lists_and_in_tuples(tmp_path, mesh):
    rows = torch.arange(6.0).view(3, 2)
    write_shards({"plain": (1, [2, "a"]), "both": (distribute_tensor(rows, mesh), [rows])}, tmp_path / "last.ckpt", 0, 1, nullcontext)
    content = consolidated(tmp_path / "last.ckpt")
    assert content["plain"] == (1, [2, "a"]) and isinstance(content["both"], tuple)
    assert torch.equal(content["both"][0], rows) and torch.equal(content["both"][1][0], rows)


def test_consolidate_takes_the_best_checkpoint_of_a_run_in_its_place_or_else_the_last_one(folder):
    run = folder.parents[1]
    assert consolidate(run) == folder.with_name("last-whole.ckpt") and is_sharded_checkpoint(folder)
    folder.rename(best := folder.with_name("best.ckpt"))
    assert consolidate(run) == best and load_checkpoint(best)["epoch"] == 1
    assert consolidate(run) == best  # already a file
    with pytest.raises(UserError, match=r"is a plain checkpoint already: give the folder of a run with trainer=fsdp2"):
        consolidate(best)
    with pytest.raises(UserError, match=r"no folder of shards"):
        consolidate(run.parent)
    with pytest.raises(UserError, match=r"there is no file or folder"):
        consolidate(run / "nothing")
