"""Rendered letters and signs with random distortions: the pretraining data of the `glyph` backbone.

There are no digits among them, so that handwritten digits are a new task. The fonts are those of matplotlib.
Shapes: N images, S side of an image in pixels.
"""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.utils.data import IterableDataset

# One string per class: letters whose shapes differ only in size or script share a class (C c, B В в).
LATIN = "A BВв Cc D E F G H I J Kk L M N Oo P Q R Ss T U Vv Ww Xx Yy Zz a b d e f g h i j l m n p q r t u"
GREEK = "Γ Δ Θ Λ Ξ Π Σ Φ Ψ Ω α β γ δ ε ζ η θ λ μ ξ π σ τ φ χ ψ ω"
CYRILLIC = "Б Д Жж Зз Ии Йй Л Цц Чч Шш Щщ Ъъ Ыы Ьь Ээ Юю Яя б д л т ф Є Ћ Ђ Љ Њ"
SIGNS = "! ? & @ # $ % + = < > / \\ ( ) [ ] { } ~ ^ * § ¶ € £ ¥ ∂ ∇ ∑ ∫ ∞ √ ± ÷ ≠ ≤ ≥ ∈ ∀ ∃ ∪ ∩ ← → ↑ ↓ ↔ ⊂ ⊥"
SYMBOLS: tuple[str, ...] = tuple(f"{LATIN} {GREEK} {CYRILLIC} {SIGNS}".split())
FONTS: tuple[str, ...] = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmtt10", "cmti10"),
)
CANVAS = 64  # side of a rendered glyph; its ink fills INK pixels, so that a distorted glyph stays inside
INK = 44
Ink = npt.NDArray[np.uint8]


@cache
def render_glyphs() -> tuple[Tensor, Tensor]:
    """Every symbol in every font that has it, rendered once in a process: do not change the tensors.

    Returns:
        ink uint8 (N, 64, 64), 255 where there is ink, each glyph centred with its longer side 44 pixels long; and its class, int64 (N,),
        an index into `SYMBOLS`.
    """
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    pictures, labels = [], []
    for font in FONTS:
        path = str(folder / f"{font}.ttf")
        # of the Computer Modern fonts only the letters have their Unicode code points
        known = {code for code in FT2Font(path).get_charmap() if not font.startswith("cm") or (chr(code).isascii() and chr(code).isalpha())}
        typeface = ImageFont.truetype(path, size=INK)
        for label, symbol in enumerate(SYMBOLS):
            for letter in symbol:
                if ord(letter) in known:
                    pictures.append(_render(letter, typeface))
                    labels.append(label)
    return torch.from_numpy(np.stack(pictures)), torch.tensor(labels)


def _render(letter: str, font: ImageFont.FreeTypeFont) -> Ink:
    page = Image.new("L", (3 * CANVAS, 3 * CANVAS))
    ImageDraw.Draw(page).text((CANVAS, CANVAS // 2), letter, fill=255, font=font)
    tight = page.crop(page.getbbox())
    scale = INK / max(tight.size)
    size = (max(1, round(tight.width * scale)), max(1, round(tight.height * scale)))
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(tight.resize(size, Image.Resampling.BILINEAR), ((CANVAS - size[0]) // 2, (CANVAS - size[1]) // 2))
    return np.asarray(canvas)


def distort(ink: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Distort rendered glyphs at random, like bad handwriting, photos and scans.

    In this order: stroke thickness, affine and elastic warp, low resolution, blur, contrast (often inverted), noise.

    Args:
        ink: float32 (N, 1, 64, 64) in [0, 1].
        size: side of the result in pixels.
        generator: the only source of randomness.

    Returns:
        float32 (N, 1, size, size) in [0, 1].
    """
    ink = _each(ink, THICKNESS, generator)
    pictures = F.grid_sample(ink, _warp(len(ink), size, generator), align_corners=False)
    pictures = _each(pictures, RESOLUTION, generator)
    pictures = _each(pictures, BLUR, generator)
    return _expose(pictures, generator)


Distortion = Callable[[Tensor], Tensor]


def _each(pictures: Tensor, choices: list[Distortion], generator: torch.Generator) -> Tensor:
    """Apply one of `choices` to each image, chosen uniformly."""
    chosen = torch.randint(len(choices), (len(pictures),), generator=generator)
    changed = torch.empty_like(pictures)
    for i, change in enumerate(choices):
        changed[chosen == i] = change(pictures[chosen == i])
    return changed


def _same(x: Tensor) -> Tensor:
    return x


def _dilate(width: int) -> Distortion:
    return lambda x: F.max_pool2d(x, width, stride=1, padding=width // 2)


def _erode(width: int) -> Distortion:
    return lambda x: 1 - F.max_pool2d(1 - x, width, stride=1, padding=width // 2)


def _coarse(side: int) -> Distortion:
    return lambda x: F.interpolate(F.interpolate(x, size=side, mode="area"), size=x.shape[-1], mode="bilinear", align_corners=False)


def _blur(width: int) -> Distortion:
    return lambda x: F.avg_pool2d(x, width, stride=1, padding=width // 2, count_include_pad=False)


THICKNESS: list[Distortion] = [_same, _same, _dilate(3), _dilate(5), _dilate(7), _erode(3)]
RESOLUTION: list[Distortion] = [_same, _same, _coarse(16), _coarse(12), _coarse(10), _coarse(8), _coarse(8), _coarse(7)]
BLUR: list[Distortion] = [_same, _same, _blur(3), _blur(5)]


def _warp(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Sampling grids (N, size, size, 2): rotation, slant, width, height and shift, plus a smooth random field."""

    def draw(low: float, high: float) -> Tensor:
        return torch.empty(count).uniform_(low, high, generator=generator)

    angle, slant = draw(-0.3, 0.3), draw(-0.4, 0.4)
    width, height = draw(0.7, 1.4), draw(0.8, 1.45)
    shift = torch.stack([draw(-0.1, 0.1), draw(-0.1, 0.1)], dim=1)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
    shear = torch.stack([torch.ones(count), slant, torch.zeros(count), torch.ones(count)], dim=1).view(-1, 2, 2)
    linear = (turn @ shear) / torch.stack([width, height], dim=1)[:, None, :]
    grid = F.affine_grid(torch.cat([linear, shift[:, :, None]], dim=2), [count, 1, size, size], align_corners=False)
    field = torch.randn(count, 2, 5, 5, generator=generator) * draw(0.0, 0.09).view(-1, 1, 1, 1)
    return grid + F.interpolate(field, size=size, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)


def _expose(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Random grey values of ink and paper, at least 0.4 apart, a gradient of light, noise, and a random inversion."""

    def draw(low: float, high: float) -> Tensor:
        return torch.empty(len(pictures), 1, 1, 1).uniform_(low, high, generator=generator)

    gamma, ink = draw(-0.5, 0.5).exp(), draw(0.4, 1.0)
    paper = ink - draw(0.4, 1.0).minimum(ink)
    places = torch.linspace(-1, 1, pictures.shape[-1])
    light = draw(-0.1, 0.1) * places.view(1, 1, 1, -1) + draw(-0.1, 0.1) * places.view(1, 1, -1, 1)
    grey = paper + light + (ink - paper) * pictures**gamma
    noisy = grey + draw(0.0, 0.3) ** 2 * torch.randn(grey.shape, generator=generator)
    negative = torch.rand(len(pictures), 1, 1, 1, generator=generator) < 0.5
    return torch.where(negative, 1 - noisy, noisy).clamp(0, 1)


class GlyphStream(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches of distorted glyphs, as a function of seed and epoch.

    Yields (images float32 (batch_size, 3, size, size) in [0, 1], three equal channels; labels int64 (batch_size,)).

    Args:
        batches: number of batches of an epoch.
        batch_size: images per batch.
        size: side of an image in pixels.
        seed: with the epoch, the only source of randomness.
        renew: whether each pass is a new epoch; otherwise all passes are the same.

    `share(rank, processes)` restricts the stream to the batches of one of several processes.
    """

    def __init__(self, *, batches: int, batch_size: int, size: int = 32, seed: int = 0, renew: bool = True) -> None:
        self.batches, self.batch_size, self.size, self.seed, self.renew = batches, batch_size, size, seed, renew
        self.epoch, self.rank, self.processes = 0, 0, 1
        self.ink, self.labels = render_glyphs()

    def share(self, rank: int, processes: int) -> None:
        """Restrict the stream to the batches of process `rank`. Each process has as many batches, of other images."""
        self.rank, self.processes = rank, processes

    def __len__(self) -> int:
        return -(-self.batches // self.processes)  # rounded up

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.rank * 10**16 + self.seed * 1_000_003 + self.epoch)  # a seed is below 2**32
        self.epoch += self.renew
        by_class = torch.ones(len(SYMBOLS)) / torch.bincount(self.labels, minlength=len(SYMBOLS))
        weights = by_class[self.labels]
        for _ in range(len(self)):
            chosen = torch.multinomial(weights, self.batch_size, replacement=True, generator=generator)
            pictures = distort(self.ink[chosen, None].float() / 255, self.size, generator)
            yield pictures.expand(-1, 3, -1, -1), self.labels[chosen]
