"""The backbone's normalisation, and the paper's sizes."""

import pytest
import torch

from risf_core.detector.presets import published_detector
from risf_core.detector.resnet_c4 import FrozenNorm, ResNetC4
from risf_core.errors import ParamsError


def test_frozen_norm_by_hand_with_and_without_gradients():
    norm = FrozenNorm(1)
    norm.load_state_dict(
        {
            "weight": torch.tensor([3.0]),
            "bias": torch.tensor([1.0]),
            "running_mean": torch.tensor([2.0]),
            "running_var": torch.tensor([4.0]),
        }
    )
    x = torch.tensor([[[[6.0]]]])
    assert norm(x).item() == pytest.approx(3 * (6 - 2) / 2 + 1, rel=1e-5)
    x.requires_grad_()
    y = norm(x)
    assert y.item() == pytest.approx(7.0, rel=1e-5)
    y.backward()
    assert x.grad.item() == pytest.approx(1.5, rel=1e-5)
    assert not list(norm.parameters())


@pytest.mark.parametrize(("depth", "millions"), [(50, 8.5), (101, 27.5)])
def test_published_backbones_have_their_size(depth, millions):
    """Weights of stem to res4 as the ResNet paper counts them: R-101 has 17 more blocks of 1.1 million."""
    with torch.device("meta"):
        backbone = ResNetC4(published_detector(depth))
    assert (backbone.out_channels, backbone.stride) == (1024, 16)
    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_presets_differ_where_the_published_configurations_do():
    base, tuned = published_detector(data="voc"), published_detector(data="voc", fine_tuning=True)
    assert (base.roi_gradient_scale, base.cls_dropout) == (0.75, 0.0)
    assert (tuned.roi_gradient_scale, tuned.cls_dropout) == (0.001, 0.8)
    assert published_detector(fine_tuning=True).roi_gradient_scale == 0.01
    assert published_detector().min_size == (640, 672, 704, 736, 768, 800)
    assert (len(base.min_size), base.min_size[0], base.min_size[-1]) == (11, 480, 800)
    assert published_detector(weights="torchvision").image_order == "RGB"
    with pytest.raises(ParamsError, match="depth is 34; expected one of 50, 101"):
        published_detector(34)
