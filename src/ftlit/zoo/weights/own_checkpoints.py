"""Checkpoints of ftlit's own runs as weights: their input specification, and the reason why one does not fit a network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ftlit.data.input_spec import InputSpec
from ftlit.data.limits import MAX_PIXELS
from ftlit.errors import UserError, one_line
from ftlit.zoo.weights.weight_files import WeightsFile

GROUP = {"timm": "timm backbone.name=", "bert": "bert backbone.name="}  # option of the group for the loader in a record


def input_spec_of(file: WeightsFile) -> InputSpec | None:
    """The input that the run was trained with; `None` for another file, or a network of texts. Raises `UserError` for an invalid one."""
    given = _arguments(file).get("input_spec")
    if not isinstance(given, Mapping):
        return None
    try:
        spec = InputSpec(**{**{name: value for name, value in given.items() if value is not None}, **measured_in(file.record)})
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"the input_spec stored in {file.name} is not valid: {one_line(error)}") from error
    if (spec.resize or spec.size) > MAX_PIXELS:
        raise UserError(f"the image size stored in {file.name} is {spec.resize or spec.size} px, above the limit of {MAX_PIXELS}")
    return spec


def measured_in(record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the input spec that a run measured on its training images; records of earlier programs have none."""
    bands = record.get("bands")
    return {
        **({} if (grey := record.get("grey_range")) is None else {"grey_range": grey}),
        **({name: bands[name] for name in ("mean", "std")} if isinstance(bands, Mapping) else {}),
    }


def misfit(file: WeightsFile, name: str, cuts: Sequence[str]) -> str:
    """Why a run's checkpoint does not fit a network, and the option or the command that helps; empty where the record gives no reason.

    Args:
        file: the checkpoint.
        name: of the network.
        cuts: names of its layers up to its cut.
    """
    given = _arguments(file)
    own = given.get("name")
    if not own:
        return ""
    if own != name:
        loader = str(file.record["backbone"].get("name" if given is not file.record["backbone"] else "loader"))
        return f"{file.name} is from a run with another network: use backbone={GROUP.get(loader.removeprefix('load_'), '')}{own}"
    if file.record.get("base"):
        return f"{file.name} is a slim checkpoint, so it has only the tensors that the run changed: {_export(file)}"
    if file.record.get("affine"):
        return f"{file.name} is from a run with batchnorm=affine, which folded the BatchNorm layers into y = a x + b: {_export(file)}"
    if given.get("cut") in cuts[:-1]:
        return f"{file.name} is from a run with backbone.cut={given['cut']}, so it lacks the layers above: give backbone.cut={given['cut']}"
    return ""


def _arguments(file: WeightsFile) -> Mapping[str, Any]:
    """The arguments of the backbone in the record of this format or of format 0."""
    part = file.record.get("backbone")
    if not isinstance(part, Mapping):
        return {}
    given = part.get("arguments", part)
    return given if isinstance(given, Mapping) else {}


def _export(file: WeightsFile) -> str:
    """The command that writes all tensors of a run, with BatchNorm."""
    run = repr(str(Path(file.name)))
    state = f"ftlit.affine_to_batchnorm(ftlit.load({run}).backbone).state_dict()"
    return f"save all tensors with python -c \"import ftlit, torch; torch.save({state}, 'weights.pth')\""
