"""Which stages of a schedule train from stored codes, at which cut, and why not the others."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from ftlit.backbone import Backbone
from ftlit.shard import size_in_words

# Of a middling machine each, for "does reading beat computing": a disk, what an image costs before it is a tensor, a processor.
READ_BYTES = 1e9  # a second
LOAD_SECONDS = 5e-4  # an image, decoded and resized by several workers
FLOPS = {"cpu": 1e11}  # a second
FLOPS_ELSEWHERE = 2e13


@dataclass(frozen=True)
class Form:
    """What is kept of the codes at a cut: vectors, pooled as the network pools, or all of them."""

    cut: str
    pooled: bool


@dataclass(frozen=True)
class Source:
    """What a stage trains from.

    Args:
        form: codes of this form; `None`: images.
        bytes: what the codes of all splits and views take on disk.
        why: the form in words, or why it is images.
    """

    form: Form | None
    bytes: int
    why: str


def frozen_prefix(backbone: Backbone, trained: Collection[str]) -> str | None:
    """The highest cut below which no layer is among `trained`; `None` where the lowest layer is."""
    below = None
    for layer in backbone.cuts:
        if layer in trained:
            break
        below = layer
    return below


def plan_codes(
    backbone: Backbone,
    trained: Sequence[Collection[str]],
    images: int,
    more_at_the_top: int = 0,
    *,
    pooled: bool,
    dtype: torch.dtype = torch.float32,
    max_bytes: float,
    device: str = "cpu",
) -> list[Source]:
    """What each stage of a schedule trains from: codes at the top of its frozen prefix, where reading them beats computing them and
    they fit in `max_bytes`, which earlier stages are given first.

    Args:
        backbone: whose layers are frozen and trained.
        trained: for each stage the layers of the backbone that train.
        images: rows to store for each cut, views counted.
        more_at_the_top: further rows to store for the last cut: test images, which nothing but the head would run for.
        pooled: whether the head takes pooled vectors; then the codes at the last cut are stored as such.
        dtype: of the stored codes.
        max_bytes: for all cuts together.
        device: kind of device that would compute them.
    """
    costs = backbone.on_meta(backbone.input_spec.size, backbone.input_spec.size)
    chosen: dict[Form, Source] = {}
    sources = []
    for layers in trained:
        cut = frozen_prefix(backbone, layers)
        if cut is None:
            sources.append(Source(None, 0, "images: the lowest layer trains"))
            continue
        form = Form(cut, pooled and cut == backbone.cuts[-1])
        if form not in chosen:
            shape, flops = costs[cut]
            values = backbone.num_features if form.pooled else torch.Size(shape).numel()
            row = values * dtype.itemsize
            size = row * (images + more_at_the_top * (cut == backbone.cuts[-1]))
            left = max_bytes - sum(source.bytes for source in chosen.values())
            reading, computing = row / READ_BYTES, LOAD_SECONDS + flops / FLOPS.get(device, FLOPS_ELSEWHERE)
            told = f"at {cut} ({'pooled, ' if form.pooled else ''}{size_in_words(row)} an image)"
            if reading > computing:
                chosen[form] = Source(None, 0, f"images: to read codes {told} takes longer than to compute them")
            elif size > left:
                chosen[form] = Source(
                    None, 0, f"images: codes {told} take {size_in_words(size)}, cache.max_gb leaves {size_in_words(left)}"
                )
            else:
                chosen[form] = Source(form, size, f"codes {told}")
        sources.append(chosen[form])
    return sources
