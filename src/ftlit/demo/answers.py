"""What the page of `ftlit demo` shows for a picture: probabilities, a class map, and the nearest training images."""

import base64
import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ftlit.data.bad_image import BadImage
from ftlit.data.dataset import Examples
from ftlit.data.pictures import picture_of
from ftlit.errors import one_line
from ftlit.formatting import printable
from ftlit.inference.network import Network
from ftlit.models.class_maps import logit_difference_maps
from ftlit.probes.nearest import TrainVectors

MOST_CLASSES = 10  # that are shown
MOST_TRAIN = 2000  # training images among which the nearest are searched
NEAREST = 4
SHOWN_SIDE = 320  # pixels of a picture on the page
BATCH = 8
COLOURS = torch.tensor([[0.85, 0.1, 0.1], [0.1, 0.3, 0.9]])  # of the first class, and of the second


@dataclass(frozen=True)
class TrainPictures:
    """Training images whose features are known.

    Args:
        examples: which read them again when they are shown.
        places: of the images among the examples, one for each row of features.
        vectors: their features.
    """

    examples: Examples
    places: Sequence[int]
    vectors: TrainVectors


def train_pictures(network: Network, examples: Examples, advance: Callable[[], bool] = lambda: True) -> TrainPictures | None:
    """Compute the features of training images, evenly chosen where there are more than `MOST_TRAIN`; `None` where none can be read.

    Args:
        network: of the run.
        examples: its training images.
        advance: is called after each image; where it returns false, the others are left out.
    """
    places, rows, batch = [], [], []
    for place in torch.linspace(0, len(examples) - 1, min(len(examples), MOST_TRAIN)).long().tolist():
        try:
            batch.append(network.as_input(examples.load(examples.sources[place])))
            places.append(place)
        except BadImage:
            pass
        if len(batch) == BATCH:
            rows.append(_features(network, torch.stack(batch)))
            batch = []
        if not advance():
            break
    rows += [_features(network, torch.stack(batch))] if batch else []
    if not rows:
        return None
    return TrainPictures(examples, places, TrainVectors(network.backbone.cuts[-1], torch.cat(rows).half()))


def answer(network: Network, train: TrainPictures | None, content: bytes) -> dict[str, Any]:
    """The answer to a picture, as JSON values; with the key `error`, if it cannot be read.

    Args:
        network: of images.
        train: see `train_pictures`; `None`: no training images are shown.
        content: of an image file.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            prepared = network.as_input(image)
            shown = image.convert("RGB")
    except UnidentifiedImageError:
        return {"error": "this file is not an image of a known format"}
    except Exception as error:  # decoders raise anything
        return {"error": f"this file cannot be read as an image: {one_line(error)}"}
    prediction = network.predictions(*network.scored(prepared[None]))[0]
    return {
        "classes": [[printable(name), value] for name, value in prediction.top(MOST_CLASSES)],
        "unlike": prediction.unlike,
        "image": _as_url(shown),
        "map": _class_map(network, prepared, [name for name, _ in prediction.top(2)]),
        "nearest": [] if train is None else _nearest(network, train, prepared),
    }


def _features(network: Network, inputs: Tensor) -> Tensor:
    with torch.inference_mode():
        return network.backbone.pool(network.backbone(inputs.to(network.device))).float().cpu()


def _class_map(network: Network, prepared: Tensor, names: Sequence[str]) -> str | None:
    """The image as the network sees it, coloured where it speaks for the first class and where for the second; `None` for a head whose
    logits are no sum over positions.
    """
    if len(names) < 2:
        return None
    first, second = (torch.tensor([list(network.class_names).index(name)]) for name in names)
    with torch.inference_mode():
        found = logit_difference_maps(network.backbone, network.head, prepared[None].to(network.device), first, second)
    if found is None:
        return None
    picture = picture_of(prepared, network.input_spec)
    large = torch.nn.functional.interpolate(found[None].cpu(), picture.shape[-2:], mode="bilinear")[0]
    strength = 0.7 * large.abs() / large.abs().max().clamp(min=1e-9)
    colours = torch.where(large > 0, COLOURS[0][:, None, None], COLOURS[1][:, None, None])
    return _as_url(_image_of(picture * (1 - strength) + colours * strength))


def _nearest(network: Network, train: TrainPictures, prepared: Tensor) -> list[dict[str, str]]:
    found = []
    for row in train.vectors.nearest(_features(network, prepared[None]), NEAREST)[0].tolist():
        with suppress(BadImage):  # a file that was removed since
            found.append(_shown(network, train.examples, train.places[row]))
    return found


def _shown(network: Network, examples: Examples, place: int) -> dict[str, str]:
    picture = picture_of(network.as_input(examples.load(examples.sources[place])), network.input_spec)
    labels = " | ".join(printable(network.class_names[label]) for label in examples.labels[place])
    return {"label": labels, "image": _as_url(_image_of(picture))}


def _image_of(picture: Tensor) -> Image.Image:
    return Image.fromarray((255 * picture.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy())


def _as_url(image: Image.Image) -> str:
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    image.save(written := io.BytesIO(), "PNG")
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
