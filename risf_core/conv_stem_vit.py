"""A small ViT with a convolutional stem, as a timm model that an open_clip config names (`timm_model_name`).

open_clip's own ViT cuts patches with one linear layer and learns too slowly for a CPU's budget; early convolutions
mend that (Xiao et al., Early convolutions help transformers see better, NeurIPS 2021).
"""

from functools import partial

from timm.layers import HybridEmbed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem

default_cfgs = generate_default_cfgs({"risf_conv_stem_vit": {"input_size": (3, 64, 64), "pool_size": None}})


@register_model
def risf_conv_stem_vit(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """Four 3x3 convolutions of stride 2, then four transformer blocks of width 128 on a 4x4 grid (64 px images)."""
    stem = ConvStem(depth=4, channels=(24, 48, 96, 128), kernel_size=3, stride=(2, 2, 2, 2))
    shape = {"img_size": 64, "patch_size": 1, "embed_dim": 128, "depth": 4, "num_heads": 4}
    pooling = {
        "class_token": False,
        "global_pool": "avg",
        "embed_layer": partial(HybridEmbed, backbone=stem, proj=False),
    }
    return build_model_with_cfg(
        VisionTransformer, "risf_conv_stem_vit", pretrained, **shape, **pooling, **kwargs
    )
