"""The gradient-decoupled layer of DeFRCN: identity forward, scaled gradient backward, then a channel-wise affine map.

Equation 3 of Qiao et al., "DeFRCN: Decoupled Faster R-CNN for Few-Shot Object Detection" (ICCV 2021).
"""

import torch
from torch import Tensor, nn


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return features.view_as(features)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.scale * gradient, None


def decouple(features: Tensor, scale: float) -> Tensor:
    """Return ``features`` unchanged; multiply the gradient that flows back through them by ``scale``.

    Args:
        features: Any shape.
        scale: Lambda of the paper, in [0, 1]; 0 stops the gradient, 1 leaves it alone.
    """
    return features.detach() if scale == 0 else _ScaleGradient.apply(features, scale)


class AffineLayer(nn.Module):
    """Channel-wise ``weight * x + bias``, which lets a decoupled branch adapt the features it does not train."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, num_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, num_channels, 1, 1))

    def forward(self, features: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C, H, W]
        return features * self.weight + self.bias
