"""Normalised images of bands that cannot be in the units of the training images."""

import pytest
import torch

from ftlit.data.bands import UNIT_RATIO, other_units

LARGE, SMALL = ((3000.0, 500.0), (900.0, 200.0)), ((0.3, 0.4), (0.1, 0.2))


def normalised(values, mean, std):
    return (values - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


@pytest.mark.parametrize(
    ("units", "factor", "text"),
    [
        (LARGE, 1, "from 0 to 1, as images of 8 bits have after loading, but the network was trained on bands with a mean of up to 3,000"),
        (LARGE, 0, ""),
        (LARGE, 2000, ""),
        (SMALL, 1, ""),
        (SMALL, 2, ""),
        (SMALL, 2 * UNIT_RATIO, "images have values of 100 or more, but the network was trained on bands with a mean of up to 0.4"),
    ],
    ids=["8 bits for 16", "no data", "16 bits", "8 bits", "reflectances", "16 bits for 8"],
)
def test_one_image_of_a_batch_in_other_units_is_noticed(units, factor, text):
    usual = torch.full((2, 2, 4, 4), 1500.0 if units is LARGE else 0.5)
    other = factor * torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    found = other_units(normalised(torch.cat([usual, other]), *units), *units)
    assert text in found and bool(found) == bool(text)
