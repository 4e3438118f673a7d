"""Images that the network normalises are those of the evaluation view, to the bit."""

import pytest
import torch
from PIL import Image

from ftlit.data.input_spec import InputSpec
from ftlit.inference.network_inputs import normalized, pixels_of, tensor_of

SPEC = InputSpec(size=8)
VALUES = torch.randint(0, 256, (3, 10, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
EXAMPLES = {"image": (Image.fromarray(VALUES.permute(1, 2, 0).numpy()), torch.uint8), "integers": (VALUES, torch.uint8)}
EXAMPLES |= {"floats": (VALUES / 255, torch.float32)}


@pytest.mark.parametrize(("example", "dtype"), EXAMPLES.values(), ids=EXAMPLES)
def test_pixels_that_are_normalised_later_are_the_input_of_the_network(example, dtype):
    pixels = pixels_of(example, SPEC)
    assert pixels.dtype == dtype and torch.equal(normalized(pixels[None], SPEC)[0], tensor_of(example, SPEC))
