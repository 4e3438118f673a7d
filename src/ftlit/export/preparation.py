"""The preparation of an image as tensor operations that torch.export and ONNX hold: resize, centre crop and scaling, as Pillow does them.

Resizing one side is a matrix product with a few weights for each pixel of the result. Rows of pixels that the crop removes are left out of
the matrix, so the result has one size whatever the image, and no operator for resizing is needed, which programs implement differently.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError

LUMA = (19595, 38470, 7471)  # parts of 65,536 of red, green and blue in a grey value (ITU-R 601), as Pillow has them


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: Tensor) -> Tensor:
    """The cubic convolution with a = -0.5 (Keys 1981), which Pillow has; torch's `bicubic` without antialiasing has -0.75."""
    x = x.abs()
    return torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, torch.where(x < 2, ((2.5 - 0.5 * x) * x - 4) * x + 2, 0.0))


FILTERS: dict[str, Callable[[Tensor], Tensor]] = {"bilinear": _triangle, "bicubic": _cubic}


class Preparation(nn.Module):
    """Images of 8 bits (N, 3, H, W), of any size -> (N, C, size, size) in [0, 1], not normalised; as `eval_transform` prepares them.

    Args:
        spec: of a network of RGB or grey images.

    Raises:
        UserError: a network of bands, or another interpolation than bilinear or bicubic.
    """

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        if spec.takes_bands:
            raise UserError(
                f"--with-preprocessing is for RGB and grey images, but this network takes {spec.channels} bands: leave this option out"
            )
        if spec.interpolation not in FILTERS:
            raise UserError(
                f"--with-preprocessing resizes by {' or '.join(FILTERS)}, but this network takes images resized by {spec.interpolation}: "
                "leave this option out"
            )
        self.resize, self.size, self.grey = spec.resize or spec.size, spec.size, spec.channels == 1
        self.filter = FILTERS[spec.interpolation]

    def forward(self, images: Tensor) -> Tensor:
        """Resize the columns, then the rows, each rounded to 8 bits, as Pillow does."""
        rows, columns = (torch.arange(images.shape[axis], device=images.device) for axis in (2, 3))
        shorter = torch.minimum(rows[-1], columns[-1]) + 1
        pixels = _rounded(images.float() @ self._weights(columns, shorter).T)
        pixels = _rounded(self._weights(rows, shorter) @ pixels)
        if self.grey:
            red, green, blue = pixels.unbind(1)
            pixels = ((LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue + 32768) / 65536).floor()[:, None]
        return pixels / 255

    def _weights(self, places: Tensor, shorter: Tensor) -> Tensor:
        """Weights (size, number of places) of the places of one side for those that are left after resizing and cropping it."""
        side = places[-1] + 1
        resized = side * self.resize // shorter
        spare = resized - self.size
        first = spare // 2 + spare % 2 * (spare // 2 % 2)  # half of the rest, rounded to even, as the centre crop does
        scale = side.float() / resized
        centres = (torch.arange(self.size, device=places.device) + first + 0.5) * scale
        weights = self.filter((places + 0.5 - centres[:, None]) / scale.clamp(min=1))  # antialiased where the side becomes shorter
        return weights / weights.sum(dim=1, keepdim=True)


def _rounded(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, 255)
