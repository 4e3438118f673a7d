"""Products with features along their principal axes."""

import pytest
import torch

from ftlit.probes.optimization.principal_axes import PrincipalAxes


@pytest.mark.parametrize(("samples", "width"), [(20, 5), (5, 20)])
def test_products_are_those_of_the_features_with_one_class_after_the_other_in_memory(samples, width):
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(samples, width, generator=draw, dtype=torch.float64)
    basis = PrincipalAxes(features)
    point = torch.randn(basis.rank + 1, 3, generator=draw, dtype=torch.float64)
    outputs = basis.outputs(point)
    weight, bias = basis.back(point[None])
    torch.testing.assert_close(outputs, features @ weight[0].T + bias[0])
    assert outputs.T.is_contiguous()  # else the products and the softmax of a fit take twice as long
    torch.testing.assert_close(basis.gradient(outputs), basis.features.T @ outputs)
