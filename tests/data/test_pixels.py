"""A view in two parts gives the tensors of the view, to the bit."""

import pickle

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from ftlit.data.input_spec import InputSpec
from ftlit.data.pixels import SplitView
from ftlit.data.transforms import AUGMENTS, eval_transform, train_transform

SPEC = InputSpec(size=16, resize=18)


def noise(seed: int) -> Image.Image:
    values = torch.randint(0, 256, (25, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(values.numpy())


def seen(transform, images) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.stack([transform(image) for image in images])


@pytest.mark.parametrize("augment", AUGMENTS)
def test_pixels_that_are_normalised_as_a_batch_are_the_view_to_the_bit(augment):
    view, images = train_transform(SPEC, augment), [noise(i) for i in range(4)]
    split = SplitView.of(view)
    pixels = seen(split.pixels, images)
    assert pixels.dtype == torch.uint8 and pixels.shape == (4, 3, 16, 16)
    assert torch.equal(pickle.loads(pickle.dumps(split.normalization))(pixels), seen(view, images))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32, torch.float64])
def test_tensors_of_any_type_are_the_view_to_the_bit_also_beside_images_of_8_bits(dtype):
    values = torch.rand(3, 25, 30, generator=torch.Generator().manual_seed(0))
    view, images = eval_transform(SPEC), [noise(1), values.to(dtype) if dtype.is_floating_point else (values * 200).to(dtype)]
    split = SplitView.of(view)
    given = torch.stack(split.normalization.of_one_type([split.pixels(image) for image in images]))
    assert given.dtype == (torch.uint8 if dtype == torch.uint8 else torch.float32)
    assert torch.equal(split.normalization.of_pixels(given), seen(view, images))


def test_a_view_of_another_form_is_not_split():
    steps, without_scale = eval_transform(SPEC).transforms, v2.ToDtype(torch.float32)
    others = (steps[:-1], [*steps, v2.RandomErasing()], [*steps[:3], without_scale, *steps[4:]])
    assert [SplitView.of(other) for other in (str.upper, *map(v2.Compose, others))] == [None] * 4
