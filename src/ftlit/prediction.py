"""A run's network again, from its folder alone: what a file holds are plain values, and a table of ours says what they build."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ftlit import head as heads
from ftlit.backbone import Backbone
from ftlit.dataset import image_reader
from ftlit.dense import fully_convolutional
from ftlit.errors import UserError, one_line, unknown
from ftlit.rewrite import batchnorm_to_affine
from ftlit.transform import InputSpec, dense_transform, eval_transform
from ftlit.zoo import load_backbone, load_bert, load_timm

FILE, NAMES = "model.json", "class_names.json"
LOADERS: dict[str, Callable[..., Backbone]] = {loader.__name__: loader for loader in (load_backbone, load_timm)}
HEADS: dict[str, Callable[..., nn.Module]] = {
    f"{kind.__module__}.{kind.__name__}": kind
    for kind in (heads.LinearHead, heads.SolvedLinearHead, heads.PooledHead, heads.MLPHead, heads.ConvHead)
}


@dataclass(frozen=True)
class Network:
    """What a run has trained, in evaluation mode, and the names of its classes.

    Args:
        backbone: with the weights of the run's best epoch.
        head: the same.
        class_names: class number -> name.
        multilabel: whether an image has any number of labels.
    """

    backbone: Backbone
    head: nn.Module
    class_names: Sequence[str]
    multilabel: bool

    @property
    def input_spec(self) -> InputSpec:
        """Of images. Raises `UserError` for a network of texts."""
        if not isinstance(self.backbone.input_spec, InputSpec):
            raise UserError("this run's network takes texts, and images are what can be predicted: give a run on images")
        return self.backbone.input_spec

    def probabilities(self, path: str | Path) -> Tensor:
        """(K,) of an image file, seen as in evaluation. Raises `UserError` for a file that cannot be read."""
        spec = self.input_spec
        image = eval_transform(spec)(image_reader(spec)(path))[None]
        with torch.inference_mode():
            codes = self.backbone(image)
            logits = self.head(codes if getattr(self.head, "takes_map", False) else self.backbone.pool(codes))
        return self._likely(logits)[0]

    def map_of(self, path: str | Path, size: int | None = None) -> tuple[Tensor, Tensor]:
        """The picture (H, W, 3) in [0, 1] of an image file whose shorter side has `size` pixels (twice the training size), and the
        probabilities (K, h, w) of each window of the training size in it; see `fully_convolutional`. Raises `UserError` for a network
        that has no such map, or a size below that of the training.
        """
        spec = self.input_spec
        size = 2 * spec.size if size is None else size
        if size < spec.size:
            raise UserError(f"size {size}: the network was trained on images of {spec.size} px, give as many or more")
        image = dense_transform(spec, size)(image_reader(spec)(path))
        with torch.inference_mode():
            logits = fully_convolutional(self.backbone, self.head)(image[None])
        picture = image * torch.tensor(spec.std)[:, None, None] + torch.tensor(spec.mean)[:, None, None]
        return picture.clamp(0, 1).permute(1, 2, 0), self._likely(logits)[0]

    def _likely(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self.multilabel else logits.softmax(dim=1)


def write_record(folder: Path, backbone: Backbone, head: Mapping[str, Any], *, multilabel: bool, affine: bool) -> None:
    """`model.json`: what `load_run` needs beside weights and names.

    Args:
        folder: of the run.
        backbone: as it was loaded.
        head: `_target_` and arguments.
        multilabel: whether an image has several labels.
        affine: whether the batch norms were rewritten.
    """
    record = {
        "backbone": backbone.record,
        "affine": affine,
        "head": {"in_features": backbone.num_features, **{name: value for name, value in head.items() if name != "_convert_"}},
        "multilabel": multilabel,
    }
    try:
        text = json.dumps(record, ensure_ascii=False, indent=1, default=list)  # a list of a config is one too
    except TypeError:  # an argument that is no plain value
        text = json.dumps({**record, "backbone": None}, ensure_ascii=False, indent=1, default=str)
    (folder / FILE).write_text(text)


def load_run(run: str | Path) -> Network:
    """The network of a run's folder, with the weights of its best epoch, or of a checkpoint in it. Nothing in the folder is executed.

    Raises:
        UserError: no folder of a run, a damaged one, or one with parts that are not ours.
    """
    given = Path(run).expanduser()
    folder, checkpoint = (given.absolute().parents[1], given) if given.is_file() else (given, given / "checkpoints" / "best.ckpt")
    try:
        record, class_names = (json.loads((folder / name).read_text()) for name in (FILE, NAMES))
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:  # damaged bytes raise nearly anything
        raise UserError(
            f"{folder} is no folder of a run that has ended (with {FILE} and checkpoints/best.ckpt): {one_line(error)}"
        ) from error
    try:
        backbone, head = _backbone(record["backbone"]), _head(record["head"], len(class_names))
        if record["affine"]:
            batchnorm_to_affine(backbone)
        for part, module in (("backbone", backbone), ("head", head)):
            module.load_state_dict({name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")})
            module.eval()
        return Network(backbone, head, class_names, record["multilabel"])
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{folder / FILE} and the checkpoint do not fit each other: {one_line(error)}") from error


def _backbone(record: Mapping[str, Any] | None) -> Backbone:
    if record is None:
        raise UserError("this run's backbone is none of ftlit's: build it yourself and load the checkpoint's weights into it")
    arguments = dict(record)
    if arguments["loader"] == load_bert.__name__:  # what it reads lies elsewhere, and would perhaps be downloaded
        raise UserError("this run is of texts, and images are what can be predicted: build its network with load_bert")
    backbone: Backbone = _known("loader of backbones", arguments.pop("loader"), LOADERS)(weights=None, **arguments)
    return backbone


def _head(record: Mapping[str, Any], num_classes: int) -> nn.Module:
    arguments = {"num_classes": num_classes, **record}
    head: nn.Module = _known("head", arguments.pop("_target_"), HEADS)(**arguments)
    return head


def _known(what: str, name: str, table: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    if name not in table:
        raise unknown(f"{what} of ftlit", name, table)
    return table[name]
