"""The images that pretrained weights expect (`InputSpec`): size, crop, normalisation. These values are written nowhere else."""

from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any

from torchvision.transforms.functional import InterpolationMode

from ftlit.data.limits import MAX_VALUE
from ftlit.data.transforms import Transform, eval_transform, train_transform
from ftlit.errors import UserError, in_quotes, invalid
from ftlit.identity.code_identity import versioned

BAND_INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic")  # that torch has for tensors


@versioned("input_spec", 1)
@dataclass(frozen=True)
class InputSpec:
    """The input that pretrained weights expect: RGB images, resized, cropped, scaled to [0, 1] and normalised; or images of other channels.

    Args:
        size: side of the square that the network sees, in pixels.
        resize: shorter side of an image before the centre crop of `size` (evaluation); `None` means `size`.
        mean: per channel, usually in [0, 1]. Of bands (see `channels`) with values of more than 8 bits, or floats, in their units; empty
            where it is unknown: a data source measures it on its training images.
        std: per channel, above 0; empty where `mean` is.
        interpolation: one of torchvision's `InterpolationMode` values: `nearest`, `bilinear`, `bicubic`, ...
        grey_range: the values that count as black and as white in grey files of more than 8 bits. A data source measures it on its
            training images; `None`: each image is read by itself, see `ftlit.data.images.to_rgb`.
        channels: 3: RGB. 1: grey, to which images of any mode are converted. Any other number: bands, see `ftlit.data.bands`.

    Raises:
        UserError: a field out of its range.
    """

    size: int = 224
    resize: int | None = None
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    grey_range: tuple[float, float] | None = None
    channels: int = 3

    def __post_init__(self) -> None:
        _check_channels("input_spec.channels", self.channels)
        object.__setattr__(self, "mean", _per_channel("mean", self.mean, self.channels))
        object.__setattr__(self, "std", _per_channel("std", self.std, self.channels))
        if bool(self.mean) != bool(self.std):
            raise UserError(f"input_spec.mean={self.mean} and input_spec.std={self.std}: give both, or leave both out to measure them")
        if self.interpolation not in (modes := [m.value for m in InterpolationMode]):
            raise invalid("input_spec.interpolation", self.interpolation, modes)
        if self.takes_bands and self.interpolation not in BAND_INTERPOLATIONS:
            raise UserError(
                f"input_spec.interpolation={self.interpolation} does not apply to bands (backbone.in_chans={self.channels}): give "
                f"backbone.input_spec.interpolation={' or '.join(BAND_INTERPOLATIONS)}"
            )
        for name in ("size", "resize"):
            given = getattr(self, name)
            if not isinstance(given, int | None) or isinstance(given, bool):
                side = "the side of the square input" if name == "size" else "the shorter side before the crop"
                raise UserError(f"input_spec.{name}={given!r}: give one whole number of pixels, {side}{in_quotes(given)}")
        if self.size < 1:
            raise UserError(f"input_spec.size={self.size}: give a whole number of pixels, 1 or more")
        if (self.resize or self.size) < self.size:
            raise UserError(
                f"input_spec.resize={self.resize} is below input_spec.size={self.size}: give input_spec.resize={self.size} or more"
            )
        if self.grey_range is not None:
            object.__setattr__(self, "grey_range", _ascending(self.grey_range))
        if any(value <= 0 for value in self.std):
            raise UserError(f"input_spec.std={self.std}: give values above 0")
        for name in ("mean", "std", "grey_range"):
            if not all(abs(value) <= MAX_VALUE for value in getattr(self, name) or ()):
                raise UserError(f"input_spec.{name}={getattr(self, name)}: give values from {-MAX_VALUE:g} to {MAX_VALUE:g}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor of one image."""
        return self.channels, self.size, self.size

    @property
    def takes_bands(self) -> bool:
        """Whether images are arrays of bands, rather than RGB or grey."""
        return self.channels not in (1, 3)

    def with_channels(self, channels: int) -> "InputSpec":
        """The same input with another number of channels. For 1, mean and std are the averages over the channels, as timm takes them; for
        bands they are unknown, to be measured. Raises `UserError` for a number below 1.
        """
        _check_channels("backbone.in_chans", channels)
        if channels == self.channels:
            return self
        mean, std = ((sum(values) / len(values),) if channels == 1 and values else () for values in (self.mean, self.std))
        return replace(self, channels=channels, mean=mean, std=std)

    def check_pictures(self, source: str) -> None:
        """Raise `UserError` for a network of bands, which `source`, named as on the command line, does not have."""
        if self.takes_bands:
            raise UserError(
                f"backbone.in_chans={self.channels}, but {source} has pictures of 1 or 3 channels: give backbone.in_chans=3 or 1, or "
                f"data=folder or data=csv with files of {self.channels} bands"
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for records; `channels` only where there are not three, as earlier programs read."""
        fields = asdict(self)
        return fields if self.channels != 3 else {name: value for name, value in fields.items() if name != "channels"}

    noun = "images"  # the examples of a data set, in messages

    @property
    def pixels(self) -> int:
        """Pixels of one image, which limit the batch size of feature extraction."""
        return self.size**2

    @property
    def inputs(self) -> str:
        """Short description, for error messages."""
        return f"images of {self.size} px"

    @property
    def tensors(self) -> str:
        """Short description of the tensors of unprepared images, for error messages."""
        kind = {1: "grey ", 3: "RGB "}.get(self.channels, "")
        return f"{kind}tensors ({self.channels}, H, W)"

    @property
    def summary(self) -> str:
        """Description for the plan."""
        grey = "" if self.grey_range is None else ", grey values {:g} to {:g}".format(*self.grey_range)
        channels = {1: ", grey", 3: ""}.get(self.channels, f", {self.channels} bands")
        return f"{self.size}x{self.size}{channels}, {self.normalisation}, {self.interpolation}{grey}"

    @property
    def normalisation(self) -> str:
        """Mean and standard deviation, as text."""
        return f"mean {_numbers(self.mean)}, std {_numbers(self.std)}" if self.mean else "mean and std measured on the training images"

    @property
    def preparation(self) -> str:
        """Description of how an image becomes the square that the network sees in evaluation."""
        return f"shorter side resized to {self.resize or self.size} ({self.interpolation}), centre crop of {self.size}"

    def views(self, augment: str = "none") -> tuple[Transform, Transform]:
        """The transforms of training (see `train_transform`) and of evaluation. Raises `UserError` where mean and std are unknown."""
        if not self.mean:
            raise UserError(
                f"mean and std of the {self.channels} bands are not known: give backbone.input_spec.mean=[...] and "
                "backbone.input_spec.std=[...], or data=folder or data=csv, which measure them on the training images"
            )
        return train_transform(self, augment), eval_transform(self)


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in dict.fromkeys(values))


def _check_channels(name: str, given: object) -> None:
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise UserError(f"{name}={given!r}: give a whole number of channels, 1 or more{in_quotes(given)}")


def _per_channel(what: str, values: object, channels: int) -> tuple[float, ...]:
    """Return a value for each channel; a single number is repeated for all of them. Those of bands may be unknown: none."""
    try:
        numbers = [float(v) for v in values] if hasattr(values, "__iter__") else [float(values)] * channels  # type: ignore[arg-type]
    except (TypeError, ValueError):
        numbers = [0.0] * (channels + 1)  # as wrong as another number of them
    if channels == 3 and len(numbers) != 3:
        raise UserError(f"input_spec.{what}={values}: give one number or three (red, green, blue)")
    if len(numbers) != channels and (numbers or channels == 1):
        raise UserError(f"input_spec.{what}={values}: give one number, or {channels}, one for each channel")
    return tuple(numbers)


def _ascending(values: object) -> tuple[float, float]:
    """Return two finite numbers, the lower one first."""
    try:
        numbers = [float(v) for v in values] if hasattr(values, "__iter__") else []
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != 2 or not all(map(isfinite, numbers)) or numbers[0] >= numbers[1]:
        raise UserError(
            f"input_spec.grey_range={values}: give two finite numbers, the grey value of black and a higher one of white, "
            "such as input_spec.grey_range=[0,4095]"
        )
    return numbers[0], numbers[1]
