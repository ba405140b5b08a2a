"""Small image towers as timm models, which an open_clip config names (`timm_model_name`): ViT, ConvNeXt, Swin.

All begin with a stem of 3x3 convolutions and batch norm in place of one linear layer that cuts patches, which learns
too slowly for a CPU's budget; early convolutions mend that (Xiao et al., Early convolutions help transformers see
better, NeurIPS 2021).
"""

from functools import partial

from timm.layers import HybridEmbed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from torch import nn

SIDE = 64  # pixels of the images
NAMES = ("risf_conv_stem_vit", "risf_tiny_convnext", "risf_tiny_swin")
default_cfgs = generate_default_cfgs(
    {name: {"input_size": (3, SIDE, SIDE), "pool_size": None} for name in NAMES}
)


@register_model
def risf_conv_stem_vit(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """Four convolutions of stride 2, then four transformer blocks of width 128 on a 4x4 grid."""
    stem = _stem(24, 48, 96, 128)
    shape = {"img_size": SIDE, "patch_size": 1, "embed_dim": 128, "depth": 4, "num_heads": 4}
    pooling = {
        "class_token": False,
        "global_pool": "avg",
        "embed_layer": partial(HybridEmbed, backbone=stem, proj=False),
    }
    return build_model_with_cfg(
        VisionTransformer, "risf_conv_stem_vit", pretrained, **shape, **pooling, **kwargs
    )


@register_model
def risf_tiny_convnext(pretrained: bool = False, **kwargs) -> ConvNeXt:
    """Two convolutions of stride 2, then five blocks of widths 32 to 256 on grids from 16x16 to 2x2.

    DEVIATION from ConvNeXt: batch norm in place of layer norm, with which it was near chance after 200 steps; kernels
    of 5x5, no layer scale.
    """
    shape = {"depths": (1, 1, 2, 1), "dims": (32, 64, 128, 256), "kernel_sizes": 5}
    rules = {"norm_layer": "batchnorm2d", "conv_mlp": True, "ls_init_value": None}
    model = build_model_with_cfg(ConvNeXt, "risf_tiny_convnext", pretrained, **shape, **rules, **kwargs)
    _start_at_fan_in(model)
    model.stem = _stem(24, 32)
    return model


@register_model
def risf_tiny_swin(pretrained: bool = False, **kwargs) -> SwinTransformer:
    """Three convolutions of stride 2, then two blocks of width 96 on 8x8 and two of 192 on 4x4, windows of 4x4."""
    shape = {"img_size": SIDE, "patch_size": 8, "embed_dim": 96, "depths": (2, 2), "num_heads": (3, 6)}
    rules = {"window_size": 4, "drop_path_rate": 0.0, "embed_layer": _stem_embed}
    model = build_model_with_cfg(SwinTransformer, "risf_tiny_swin", pretrained, **shape, **rules, **kwargs)
    _start_at_fan_in(model)
    return model


def _stem(*channels: int) -> ConvStem:
    """3x3 convolutions of stride 2."""
    return ConvStem(depth=len(channels), channels=channels, kernel_size=3, stride=(2,) * len(channels))


def _stem_embed(
    *, img_size: int, in_chans: int, embed_dim: int, output_fmt: str, patch_size: int, **_
) -> HybridEmbed:
    """A stem where Swin has its linear patches; it has norms of its own."""
    stem, places = _stem(24, 48, embed_dim), {"img_size": img_size, "output_fmt": output_fmt}
    return HybridEmbed(stem, patch_size=1, in_chans=in_chans, embed_dim=embed_dim, proj=False, **places)


def _start_at_fan_in(model: nn.Module) -> None:
    """Weights whose outputs keep the scale of their inputs; the libraries' deviation of 0.02 is for wide layers."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
