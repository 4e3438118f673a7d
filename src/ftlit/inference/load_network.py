"""Load the network of a run from its checkpoint alone; nothing in the file is executed."""

import textwrap
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ftlit.errors import UserError, one_line
from ftlit.formats import DamagedFile, JsonObject
from ftlit.formatting import shell_word, shown
from ftlit.inference.network import Network
from ftlit.inference.novelty import read_subspace
from ftlit.inference.prediction_sets import read_calibration
from ftlit.inference.prior import TrainedClasses
from ftlit.inference.record import KEY, build_backbone, build_head, read_record, rewrite
from ftlit.inference.record_checks import RESTORE, BadRecord, LimitedAllocation
from ftlit.inference.slim import filled
from ftlit.models.lora import merge_lora
from ftlit.plain_arguments import plain_arguments
from ftlit.run_folder import RUN, RUN_STATE, existing_run, identity_of, is_run_folder, is_sharded_checkpoint, no_run, result_checkpoint
from ftlit.tensor_files import load_checkpoint, why_unreadable


@plain_arguments
def load(run: str | Path, *, trust: bool = False) -> Network:
    """The network of a run, with the weights of its best epoch, or of its last one after `callbacks.best=null`. Nothing in the file is
    executed. Only the base weights of a slim checkpoint are downloaded, if they are not in their cache.

    Args:
        run: folder of a run, or a checkpoint file.
        trust: import and call custom classes that the checkpoint names, and download the config and tokenizer of an encoder, if they are
            neither in a folder nor in the cache of the hub.

    Raises:
        UserError: not a run, a damaged file, custom parts without `trust`, or base weights other than those of the run.
    """
    path = existing_run(run)
    file = result_checkpoint(path) if path.is_dir() else path
    if not file.is_file():
        if (sharded := next((part for part in (path, file, file.with_name("last.ckpt")) if is_sharded_checkpoint(part)), None)) is not None:
            raise UserError(
                f"{shown(sharded)} is a folder of shards, written by training with sharded weights: to make a plain checkpoint of it, run "
                f"ftlit consolidate {shell_word(str(path))}"
            )
        others = [other for other in sorted(path.glob("checkpoints/*.ckpt")) if other.is_file()] if path.is_dir() else []
        advice = f"give {shown(others[0])}" if others else "give a checkpoint, or the folder of a run that finished an epoch"
        if others and not (path / "config.yaml").is_file() and not (path / "checkpoints" / "last.ckpt").is_file():
            advice = "it is not the folder of a run of ftlit train; load a checkpoint of another program with its own LightningModule"
        what = f"{shown(file)} is not a file" if file.exists() else f"{shown(path)} has no checkpoints/{file.name}"
        if path.is_dir() and not others and not is_run_folder(path):
            raise no_run(path)
        raise UserError(f"{what}: {advice}")
    record, state, fields = _read(file, identity_of(path))
    try:
        return replace(_built(record, state, trust=trust), **fields)
    except BadRecord as error:
        raise UserError(f"the network in {file} cannot be built, because {error}") from error
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = textwrap.shorten(one_line(error), 160, placeholder=" ...")
        raise UserError(f"the weights in {file} do not match the network that the file describes: {RESTORE} ({reason})") from error


def _read(file: Path, run: str | None) -> tuple[JsonObject, Mapping[str, Tensor], dict[str, Any]]:
    """Record and tensors of a checkpoint, of this run if one is given, and what it holds for fields of `Network`.

    Raises:
        UserError: another file, a damaged one, or one of a newer program.
    """
    try:
        checkpoint = load_checkpoint(file)
        if "state_dict" in checkpoint and KEY not in checkpoint:
            raise UserError(f"{file} was not written by ftlit train: load it with load_from_checkpoint of its own LightningModule")
        if run and checkpoint.get(RUN_STATE, {}).get(RUN, run) != run:
            raise UserError(
                f"{file} is the checkpoint of another run: restore the checkpoint of the run in this folder, or "
                "copy the file to another folder"
            )
        others = {"calibration": read_calibration(checkpoint, file), "subspace": read_subspace(checkpoint, file)}
        return read_record(checkpoint, file), checkpoint["state_dict"], others
    except DamagedFile as error:
        raise DamagedFile(file, error.reason, "restore it from a copy, or train again") from error
    except UserError:  # a newer format, or a checkpoint of another program
        raise
    except Exception as error:  # damaged bytes raise almost any error
        why = why_unreadable(file, error)
        raise UserError(f"{file} is damaged, or not a checkpoint of ftlit ({why}): restore the file from a copy, or train again") from error


def _built(record: JsonObject, state: Mapping[str, Tensor], *, trust: bool) -> Network:
    with nullcontext() if trust else LimitedAllocation(record, state):
        backbone, head = rewrite(build_backbone(record, trust=trust), record), build_head(record, trust=trust)
    state = filled(state, backbone) if record.get("base") else state
    for part, module in (("backbone", backbone), ("head", head)):
        module.load_state_dict({name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")})
        merge_lora(module)
        module.to(memory_format=torch.channels_last)  # convolutions are faster in this layout, on CPU and GPU
    counts, weights = record.get("train_counts"), record.get("class_weights") or ()
    trained = None if counts is None else TrainedClasses(counts, weights)
    return Network(backbone, head, record["class_names"], record["multilabel"], trained=trained)
