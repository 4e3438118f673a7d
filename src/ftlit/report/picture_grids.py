"""The figures of a report that show images: training images, errors, and possibly mislabelled examples. Without matplotlib's import."""

import io
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ftlit.report.contents import NEAREST, Array, Pictures, RunData

SIDE, GAP, LINE = 165, 11, 17  # pixels: the longer side of an image, the space between two, and a line of a caption
FONT_SIZE = 13


def samples(run: RunData) -> Image.Image | None:
    """Training images as the network sees them."""
    return grid(run.samples)


def mistakes(run: RunData) -> Image.Image | None:
    """The test images with the most confident errors. Where maps or nearest training images are known, each error has a row with them."""
    if run.mistakes is None:
        return None
    number, images, captions = len(run.mistakes.images), list[Array](), list[str]()
    known = [(run.mistakes, 1)]
    known += [(own, each) for own, each in ((run.maps, 1), (run.nearest, NEAREST)) if own is not None and len(own.images) == each * number]
    for place in range(number):
        for own, each in known:
            images += list(own.images[each * place : each * (place + 1)])
            captions += own.captions[each * place : each * (place + 1)]
    return grid(Pictures(np.stack(images), captions), columns=6 if len(known) == 1 else sum(each for _, each in known))


def suspects(run: RunData) -> Image.Image | None:
    """Training images that are possibly mislabelled."""
    return grid(run.suspected)


def grid(pictures: Pictures | None, columns: int = 6) -> Image.Image | None:
    """Images in rows, each below its caption, whose lines are cut to the width of an image; `None` without images."""
    if pictures is None or not len(pictures.images):
        return None
    number, (height, width) = len(pictures.images), pictures.images.shape[1:3]
    columns = min(columns, number)
    wide, high = (max(1, round(length * SIDE / max(height, width))) for length in (width, height))
    header = LINE * max(caption.count("\n") + 1 for caption in pictures.captions) + 6
    whole = Image.new("RGB", (columns * (wide + GAP) + GAP, -(-number // columns) * (header + high + GAP)), "white")
    draw = ImageDraw.Draw(whole)
    for place, (image, caption) in enumerate(zip(pictures.images, pictures.captions, strict=True)):
        row, column = divmod(place, columns)
        left, top = GAP + column * (wide + GAP), row * (header + high + GAP) + GAP // 2
        for line, text in enumerate(reversed(caption.split("\n"))):  # the last one directly above the image
            draw.text((left, top + header - (line + 1) * LINE - 2), _shortened(text, wide, draw), fill="black", font=_font())
        shown = Image.fromarray(np.ascontiguousarray(image)).resize((wide, high), Image.Resampling.NEAREST)
        whole.paste(shown, (left, top + header))
    return whole


def jpeg_of(drawn: Image.Image) -> bytes:
    """The file of a grid: JPEG, because photos as PNG make a page of megabytes."""
    drawn.save(stream := io.BytesIO(), "jpeg", quality=90)
    return stream.getvalue()


def overlaid(images: Array, maps: Array) -> Array:
    """Maps of the difference of two logits over images: red where it is positive, blue where it is negative.

    Args:
        images: uint8 (n, H, W, 3).
        maps: float (n, h, w); colours of each are relative to its largest absolute value.

    Returns:
        uint8 (n, H, W, 3), the images in grey.
    """
    height, width = images.shape[1:3]
    found = np.empty_like(images)
    for place, (image, own) in enumerate(zip(images, maps, strict=True)):
        grey = np.asarray(Image.fromarray(image).convert("L"), np.float32)[..., None]
        large = np.asarray(Image.fromarray(own.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))[..., None]
        strength = np.abs(large) / max(float(np.abs(own).max()), 1e-12)
        colour = np.where(large > 0, np.array([196, 60, 40]), np.array([47, 109, 181]))
        found[place] = (grey + 0.7 * np.minimum(strength, 1) * (colour - grey)).round()
    return found


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans, which matplotlib brings: it has more alphabets than the font of Pillow."""
    found = find_spec("matplotlib")
    path = Path(found.origin or "").parent / "mpl-data/fonts/ttf/DejaVuSans.ttf" if found else None
    return ImageFont.truetype(path, FONT_SIZE) if path and path.is_file() else ImageFont.load_default(FONT_SIZE)


def _shortened(text: str, width: int, draw: ImageDraw.ImageDraw) -> str:
    """The text, its middle left out if it is wider than this number of pixels: names of files differ at their end, classes at both."""
    if draw.textlength(text, _font()) <= width:
        return text
    keep = len(text)
    while keep > 2 and draw.textlength(shown := _without_middle(text, keep), _font()) > width:
        keep -= 1
    return shown


def _without_middle(text: str, keep: int) -> str:
    ends = keep // 2
    return f"{text[: keep - ends]}…{text[len(text) - ends :]}"
