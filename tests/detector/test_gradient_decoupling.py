"""The gradient-decoupled layer."""

import pytest
import torch

from risf_core.detector.gradient_decoupling import AffineLayer, decouple


@pytest.mark.parametrize("scale", [0.0, 0.01, 0.75, 1.0])
def test_forward_is_identity_and_gradient_is_scaled(scale):
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    y = decouple(x, scale)
    assert torch.equal(y, x)
    if scale == 0:
        assert not y.requires_grad
    else:
        (2 * y).sum().backward()
        assert torch.allclose(x.grad, torch.full_like(x, 2 * scale))


def test_affine_layer_starts_as_identity_and_scales_channels():
    layer = AffineLayer(2)
    x = torch.randn(1, 2, 3, 3)
    assert torch.equal(layer(x), x)
    with torch.no_grad():
        layer.weight[0, 1], layer.bias[0, 1] = 3.0, -1.0
    assert torch.allclose(layer(x)[:, 1], 3 * x[:, 1] - 1)
    assert torch.equal(layer(x)[:, 0], x[:, 0])
