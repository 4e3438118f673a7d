"""The network of a run: it predicts one image or text, or many."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor, nn

from ftlit.data.bands import other_units
from ftlit.data.images import image_reader
from ftlit.data.input_spec import InputSpec
from ftlit.data.pictures import picture_of
from ftlit.data.transforms import dense_transform
from ftlit.errors import UserError, shorten
from ftlit.inference.head_checks import check_class_names, check_outputs, check_width
from ftlit.inference.network_inputs import NOT_SEVERAL, ImageOrText, cannot_take, normalized, tensor_of
from ftlit.inference.novelty import FeatureSubspace
from ftlit.inference.prediction import Prediction
from ftlit.inference.prediction_sets import Calibration, threshold_of
from ftlit.inference.prior import NO_SETS, Prior, TrainedClasses, logit_adjustment
from ftlit.models.backbone import Backbone
from ftlit.models.fully_convolutional import fully_convolutional
from ftlit.models.heads import features_for, logits_of
from ftlit.models.precision import autocast_of, device_of, precision_for

MAX_DENSE = 4096  # pixels of the shorter side of an image of which a map is drawn: the feature maps of more fill the memory
NOT_FINITE = (
    "the network gives probabilities that are not finite numbers, because the weights are damaged or training diverged: "
    "restore the checkpoint from a copy, or train again with a lower optimizer.lr"
)


@dataclass(frozen=True)
class Network:
    """A backbone, a head and class names, of a run or of your own. `network(images)` predicts.

    Args:
        backbone: with trained weights, which are shared, not copied. It is put in evaluation mode, in place.
        head: likewise.
        class_names: class number -> name.
        multilabel: whether an image may have any number of labels.
        precision: in Lightning's names; `bf16-mixed` for instance.
        calibration: scores of held-out examples, for `prediction_set`; `None` where the checkpoint holds none.
        subspace: of the features of known images, which tells those that are unlike them; `None` where the checkpoint holds none.
        trained: what the checkpoint records of the training images of each class; `None`: nothing.
        adjustment: added to the logits (K,), see `with_prior`; `None`: nothing.

    Raises:
        UserError: a backbone that is no `Backbone`, or another number of class names than the head has outputs.
    """

    backbone: Backbone
    head: nn.Module
    class_names: Sequence[str]
    multilabel: bool
    precision: str = "32-true"
    calibration: Calibration | None = None
    subspace: FeatureSubspace | None = None
    trained: TrainedClasses | None = None
    adjustment: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.backbone, Backbone):
            kind = type(self.backbone).__name__
            raise UserError(
                f"the backbone of a Network is a {kind}, not a ftlit.Backbone: give ftlit.backbone_from(model) as backbone and the "
                "classifier of the model as head; for layers that ftlit does not know, ftlit.backbone_from(model, layers=[...])"
            )
        check_class_names(self.head, self.class_names)
        self.backbone.eval()  # in training mode a prediction would change the statistics of batch norms
        self.head.eval()

    def __repr__(self) -> str:
        name = (self.backbone.record or {}).get("name", type(self.backbone).__name__)
        classes = f"{len(self.class_names)} {'labels' if self.multilabel else 'classes'}: {shorten(self.class_names, most=5)}"
        return f"Network({name} up to {self.backbone.cuts[-1]}, {type(self.head).__name__}, {classes})"

    def __call__(self, examples: ImageOrText | Iterable[ImageOrText]) -> Any:
        """A `Prediction` for one image, or a list of predictions for several, in one batch.

        Args:
            examples: path, PIL image, or RGB tensor (3, H, W), uint8 or float in [0, 1]; or several of these, as many as fit in
                memory, in a list or as one tensor (N, 3, H, W). Tensors of a network of C channels are (C, H, W), see
                `ftlit.data.bands`. Texts for a network of texts.

        Raises:
            UserError: a file that cannot be read, also one of several, or an input that is not an image, or not a text.
        """
        if isinstance(examples, str | Path | Image.Image) or (isinstance(examples, Tensor) and examples.ndim <= 3):
            return self([examples])[0]
        spec = self.backbone.input_spec
        if not isinstance(examples, Iterable) or isinstance(examples, NOT_SEVERAL):
            raise cannot_take(examples, spec)
        inputs = []
        for example in examples:
            if not isinstance(example, ImageOrText):
                raise cannot_take(example, spec, within=examples)
            inputs.append(self.as_input(example))
        return self.predictions(*self.scored(torch.stack(inputs))) if inputs else []

    @property
    def input_spec(self) -> InputSpec:
        """Input spec of a network of images. Raises `UserError` for a network of texts."""
        if not isinstance(self.backbone.input_spec, InputSpec):
            raise UserError(
                "the network of this run takes texts, but ftlit export and ftlit predict --dense work only with networks of images"
            )
        return self.backbone.input_spec

    def as_input(self, example: ImageOrText) -> Tensor:
        """The tensor of one image (C, S, S), as in evaluation, or text (T,). Raises `UserError` for an unsuitable input."""
        return tensor_of(example, self.backbone.input_spec)

    @property
    def device(self) -> torch.device:
        """Where the network computes; its inputs may be on any device."""
        return next(self.head.parameters(), next(self.backbone.parameters(), torch.empty(0))).device

    def to(self, device: str | torch.device, *, precision: str | None = None) -> Self:
        """Move the network to a device, in place, and return it with a precision: `ftlit.load("runs/mine").to("cuda")`.

        Args:
            device: any of torch's.
            precision: `bf16-mixed` for instance; `auto`: the fastest that keeps accuracy, see `precision_for`; `None`: as it is.
        """
        self.backbone.to(device)
        self.head.to(device)
        if precision == "auto":
            precision = precision_for(self.backbone, device_of(self.device.type))
        return self if precision is None else replace(self, precision=precision)

    def with_prior(self, prior: Prior) -> Self:
        """The same network, whose probabilities hold for other class frequencies: `ftlit.load("runs/mine").with_prior("balanced")`.

        Args:
            prior: `balanced`: all classes alike; `train`: as in the training images; or class name -> share, divided by their sum.

        Raises:
            UserError: see `logit_adjustment`.
        """
        return replace(self, adjustment=logit_adjustment(prior, self.class_names, self.trained, multilabel=self.multilabel))

    def logits(self, inputs: Tensor) -> Tensor:
        """Output (N, K) before adjustment to a prior, on the network's device, for a batch of tensors from `as_input` or `pixels_of`."""
        return self._outputs(inputs)[0]

    def probabilities(self, inputs: Tensor) -> Tensor:
        """Output (N, K) for a batch of tensors from `as_input` or `pixels_of`."""
        return self._normalized(self.logits(inputs))

    def scored(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Probabilities (N, K) of a batch, and the relative distance of each input from training (N,); `None` without `subspace`."""
        logits, features = self._outputs(inputs)
        if self.subspace is None:
            return self._normalized(logits), None
        return self._normalized(logits), self.subspace.relative_distances(features)

    def predictions(self, probabilities_NK: Tensor, distances_N: Tensor | None = None) -> list[Prediction]:
        """Predictions from probabilities (N, K) and relative distances. Raises `UserError` where one is not finite, or K is not the number
        of class names.
        """
        check_outputs(probabilities_NK.shape[1], self.class_names)
        _check_finite(probabilities_NK)
        distances = [None] * len(probabilities_NK) if distances_N is None else distances_N.tolist()
        ranked = probabilities_NK.float().sort(dim=1, descending=True, stable=True)
        rows = zip(ranked.values.tolist(), ranked.indices.tolist(), strict=True)
        named = ({self.class_names[i]: value for value, i in zip(*row, strict=True)} for row in rows)
        return [Prediction(*both) for both in zip(named, distances, strict=True)]

    def prediction_set(self, prediction: Prediction, coverage: float = 0.9) -> list[str]:
        """The classes, the most probable first, that hold the label with about this probability, see `ftlit.inference.prediction_sets`.

        Raises:
            UserError: see `threshold_of`; a network with another prior.
        """
        if self.adjustment is not None:
            raise UserError(NO_SETS)
        return prediction.classes_within(threshold_of(self.calibration, coverage, multilabel=self.multilabel))

    def map_of(self, path: str | Path, size: int | None = None) -> tuple[Tensor, Tensor]:
        """An image, and the probabilities of each window of the training size in it; see `fully_convolutional`.

        Args:
            path: file of the image.
            size: pixels of its shorter side after resizing; `None`: twice the training size, at most 4,096.

        Returns:
            The resized image (H, W, 3) in [0, 1], and probabilities (K, h, w).

        Raises:
            UserError: a network without such a map, or of outputs that are not finite, or a size below the training size or above 4,096.
        """
        spec = self.input_spec
        most = max(spec.size, MAX_DENSE)
        size = min(2 * spec.size, most) if size is None else size
        if not spec.size <= size <= most:
            raise UserError(f"size {size}: give a number of pixels from {spec.size}, the size of the training images, to {most}")
        image = dense_transform(spec, size)(image_reader(spec)(path))
        with torch.inference_mode():
            logits = fully_convolutional(self.backbone, self.head)(image[None].to(self.device)).cpu()
        _check_finite(logits)
        return picture_of(image, spec).permute(1, 2, 0), self._normalized(logits)[0]

    def _outputs(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and pooled features at the highest cut that the head reads, of a batch."""
        spec = self.backbone.input_spec
        inputs = normalized(inputs.to(self.device, non_blocking=True), spec)
        if isinstance(spec, InputSpec) and spec.takes_bands and (misfit := other_units(inputs, spec.mean, spec.std)):
            warnings.warn(f"{misfit}: the predictions are probably wrong; give images in the units of the training images", stacklevel=2)
        with torch.inference_mode(), autocast_of(self.precision, self.device.type):
            features = features_for(self.head, self.backbone, inputs)
            check_width(self.head, features)
            return logits_of(self.head, features), self.backbone.pool(features[-1])

    def _normalized(self, logits: Tensor) -> Tensor:
        if self.adjustment is not None:
            logits = logits.float() + self.adjustment.to(logits.device, torch.float32).view(-1, *[1] * (logits.ndim - 2))
        return logits.sigmoid() if self.multilabel else logits.softmax(dim=1)


def _check_finite(values: Tensor) -> None:
    if not values.isfinite().all():
        raise UserError(NOT_FINITE)
