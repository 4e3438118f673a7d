"""The images that pretrained weights expect (`InputSpec`): size, crop, normalisation. These values are written nowhere else."""

from dataclasses import dataclass
from math import isfinite

from torchvision.transforms.functional import InterpolationMode

from ftlit.code_identity import versioned
from ftlit.data.limits import MAX_VALUE
from ftlit.data.transforms import Transform, eval_transform, train_transform
from ftlit.errors import UserError, in_quotes, unknown


@versioned("input_spec", 1)
@dataclass(frozen=True)
class InputSpec:
    """The input that pretrained weights expect: RGB images, resized, cropped, scaled to [0, 1] and normalised.

    Args:
        size: side of the square that the network sees, in pixels.
        resize: shorter side of an image before the centre crop of `size` (evaluation); `None` means `size`.
        mean: per channel, usually in [0, 1].
        std: per channel, above 0.
        interpolation: one of torchvision's `InterpolationMode` values: `nearest`, `bilinear`, `bicubic`, ...
        grey_range: the values that count as black and as white in grey files of more than 8 bits. A data source measures it on its
            training images; `None`: each image is read by itself, see `ftlit.data.images.to_rgb`.

    Raises:
        UserError: a field out of its range.
    """

    size: int = 224
    resize: int | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    grey_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _channels("mean", self.mean))
        object.__setattr__(self, "std", _channels("std", self.std))
        if self.interpolation not in (modes := [m.value for m in InterpolationMode]):
            raise unknown("interpolation", self.interpolation, modes)
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
        if min(self.std) <= 0:
            raise UserError(f"input_spec.std={self.std}: every value must be above 0")
        for name in ("mean", "std", "grey_range"):
            if not all(abs(value) <= MAX_VALUE for value in getattr(self, name) or ()):
                raise UserError(f"input_spec.{name}={getattr(self, name)}: give values from {-MAX_VALUE:g} to {MAX_VALUE:g}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor of one image."""
        return 3, self.size, self.size

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
    def summary(self) -> str:
        """Description for the plan."""
        grey = "" if self.grey_range is None else ", grey values {:g} to {:g}".format(*self.grey_range)
        return f"{self.size}x{self.size}, {self.normalisation}, {self.interpolation}{grey}"

    @property
    def normalisation(self) -> str:
        """Mean and standard deviation, as text."""
        return f"mean {_numbers(self.mean)}, std {_numbers(self.std)}"

    @property
    def preparation(self) -> str:
        """Description of how an image becomes the square that the network sees in evaluation."""
        return f"shorter side resized to {self.resize or self.size} ({self.interpolation}), centre crop of {self.size}"

    def views(self, augment: str = "none") -> tuple[Transform, Transform]:
        """The transforms of training (see `train_transform`) and of evaluation."""
        return train_transform(self, augment), eval_transform(self)


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in dict.fromkeys(values))


def _channels(what: str, values: object) -> tuple[float, float, float]:
    """Return three values; a single number is repeated for all channels."""
    try:
        numbers = [float(v) for v in values] if hasattr(values, "__iter__") else [float(values)] * 3  # type: ignore[arg-type]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != 3:
        raise UserError(f"input_spec.{what}={values}: give one number or three (red, green, blue)")
    return numbers[0], numbers[1], numbers[2]


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
