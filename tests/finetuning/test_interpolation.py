"""Weights between two states: alpha 0 is the start and alpha 1 the end, bit for bit."""

import pytest
import torch

from ftlit.errors import UserError
from ftlit.finetuning.interpolation import interpolated

START = {"w": torch.rand(50), "frozen": torch.rand(50), "a": torch.rand(3), "count": torch.tensor(3)}
END = {"w": torch.rand(50) * 1e4, "frozen": START["frozen"].clone(), "a": torch.rand(3), "count": torch.tensor(8)}


@pytest.mark.parametrize(("alpha", "expected"), [(0, START), (0.0, START), (1, END), (1.0, END)])
def test_the_ends_are_exact(alpha, expected):
    found = interpolated(START, END, alpha, {"a"})
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.5, 0.9])
def test_between_them_floats_are_on_the_line_and_equal_tensors_stay(alpha):
    found = interpolated(START, END, alpha, {"a"})
    torch.testing.assert_close(found["w"], (1 - alpha) * START["w"] + alpha * END["w"])
    assert torch.equal(found["frozen"], START["frozen"]) and torch.equal(found["a"], END["a"]) and int(found["count"]) == 8


def test_errors():
    with pytest.raises(UserError, match=r"alpha=1\.5: give a number from 0 \(the weights before training\) to 1"):
        interpolated(START, END, 1.5)
    for other in ({"w": END["w"]}, {**END, "w": torch.rand(3)}):
        with pytest.raises(UserError, match="two different networks"):
            interpolated(START, other, 0.5)
