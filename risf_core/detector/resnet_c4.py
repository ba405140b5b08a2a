"""The ResNet of a C4 detector: stem, res2 to res4 for the image, res5 for each region.

Module names give the published state-dict keys (``stem.conv1.weight``, ``res4.22.conv3.norm.bias``), so that
detectron2, DeFRCN and RISF checkpoints load as they are.
"""

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from risf_core.params import DetectorParams


class FrozenNorm(FrozenBatchNorm2d):
    """Batch normalisation with fixed statistics and affine, rounding as detectron2's does in each mode.

    Without gradients torch's own kernel; with them torchvision's form, which folds scale and shift first and saves
    the memory of gradients that nobody needs. The other form differs in the last digits: enough to swap near-equal
    proposals, and to move gradient norms of a deep network by 0.2 %.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            return super().forward(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


NORMS = {
    "BN": nn.BatchNorm2d,
    "FrozenBN": FrozenNorm,
    "GN": lambda channels: nn.GroupNorm(min(32, channels // 4), channels),
}


class ConvNorm(nn.Conv2d):
    """A bias-free convolution that owns its normalisation as ``norm`` (the published key layout)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, dilation: int = 1, norm: str
    ):
        padding = dilation * (kernel // 2)
        super().__init__(
            inputs, outputs, kernel, stride=stride, padding=padding, dilation=dilation, bias=False
        )
        self.norm = NORMS[norm](outputs)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (ResNet-18 and -34)."""

    def __init__(
        self, inputs: int, outputs: int, *, stride: int, dilation: int, norm: str, stride_in_1x1: bool
    ):
        super().__init__()
        self.shortcut = _shortcut(inputs, outputs, stride, norm)
        self.conv1 = ConvNorm(inputs, outputs, 3, stride=stride, dilation=dilation, norm=norm)
        self.conv2 = ConvNorm(outputs, outputs, 3, dilation=dilation, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv2(F.relu_(self.conv1(x)))
        return F.relu_(residual + (x if self.shortcut is None else self.shortcut(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with a four times narrower middle (ResNet-50 and -101).

    ``stride_in_1x1`` puts the stride in the first convolution, as the MSRA weights expect.
    """

    def __init__(
        self, inputs: int, outputs: int, *, stride: int, dilation: int, norm: str, stride_in_1x1: bool
    ):
        super().__init__()
        width = outputs // 4
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.shortcut = _shortcut(inputs, outputs, stride, norm)
        self.conv1 = ConvNorm(inputs, width, 1, stride=stride_1x1, norm=norm)
        self.conv2 = ConvNorm(width, width, 3, stride=stride_3x3, dilation=dilation, norm=norm)
        self.conv3 = ConvNorm(width, outputs, 1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv3(F.relu_(self.conv2(F.relu_(self.conv1(x)))))
        return F.relu_(residual + (x if self.shortcut is None else self.shortcut(x)))


def _shortcut(inputs: int, outputs: int, stride: int, norm: str) -> ConvNorm | None:
    return (
        None if inputs == outputs and stride == 1 else ConvNorm(inputs, outputs, 1, stride=stride, norm=norm)
    )


class Stem(nn.Module):
    """Stride 4: ``resnet`` is 7x7 stride 2 and a max pool, ``deep`` two 3x3 of stride 2 (for small images)."""

    def __init__(self, kind: str, width: int, norm: str):
        super().__init__()
        self.kind = kind
        self.conv1 = ConvNorm(3, width, 7 if kind == "resnet" else 3, stride=2, norm=norm)
        if kind == "deep":
            self.conv2 = ConvNorm(width, width, 3, stride=2, norm=norm)

    def forward(self, x: Tensor) -> Tensor:  # [B, 3, H, W] -> [B, width, H/4, W/4]
        x = F.relu_(self.conv1(x))
        if self.kind == "deep":
            return F.relu_(self.conv2(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


def build_stage(
    params: DetectorParams, inputs: int, outputs: int, *, blocks: int, stride: int, dilation: int = 1
):
    """One stage: a block with the stride, then blocks without."""
    block = {"basic": BasicBlock, "bottleneck": Bottleneck}[params.block]
    shared = {"dilation": dilation, "norm": params.norm, "stride_in_1x1": params.stride_in_1x1}
    first = block(inputs, outputs, stride=stride, **shared)
    return nn.Sequential(first, *(block(outputs, outputs, stride=1, **shared) for _ in range(blocks - 1)))


class ResNetC4(nn.Module):
    """Stem to res4 of a ResNet; ``out_channels`` and ``stride`` describe the map that the RPN and the RoIs read."""

    def __init__(self, params: DetectorParams) -> None:
        super().__init__()
        width = params.res2_width
        self.stem = Stem(params.stem, params.stem_width, params.norm)
        self.res2 = build_stage(params, params.stem_width, width, blocks=params.stages[0], stride=1)
        self.res3 = build_stage(params, width, 2 * width, blocks=params.stages[1], stride=2)
        stride, dilation = (1, 2) if params.dilate_res4 else (2, 1)
        self.res4 = build_stage(
            params, 2 * width, 4 * width, blocks=params.stages[2], stride=stride, dilation=dilation
        )
        self.out_channels = 4 * width
        self.stride = 8 * stride

    def forward(self, x: Tensor) -> Tensor:  # [B, 3, H, W] -> [B, out_channels, H/stride, W/stride]
        return self.res4(self.res3(self.res2(self.stem(x))))
