"""Small CLIPs of every kind that open_clip builds, with random weights: architecture without size."""

import open_clip
import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.timm_model import TimmModel
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

from risf_core.clip_models import register_configs

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 64, "layers": 4, "width": 64, "patch_size": 16, "head_width": 32}
# SigLIP: no class token, attention pooling, texts without a causal mask, pooled at the last place
SIGLIP = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "none", "image_size": 64}
SIGLIP_TEXT = TEXT | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
TOWERS = {
    "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
    "vit": VIT,
    "vit_avg": VIT | {"pool_type": "avg", "final_ln_after_pool": True},
    "vit_attention_pool": VIT | {"attentional_pool": True, "attn_pooler_heads": 2},
    "timm_vit": {"timm_model_name": "risf_conv_stem_vit", "timm_pool": "avg", "image_size": 64},
    "siglip": SIGLIP,
    "swin_of_two_layers": {"timm_model_name": "risf_tiny_swin", "timm_pool": "avg", "image_size": 64},
    "convnext": {"timm_model_name": "test_convnext", "timm_pool": "avg", "image_size": 160},
    "timm_resnet": {"timm_model_name": "test_resnet", "timm_pool": "avg", "image_size": 160},
}
COCA = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}


def small_clip(kind: str) -> torch.nn.Module:
    """One of ``TOWERS``, or "coca", in evaluation mode; the same weights each time."""
    register_configs()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "coca":
            text = TEXT | {"context_length": 15, "embed_cls": True, "output_tokens": True}
            vision = VIT | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
            model = CoCa(32, COCA, text, vision)
        elif kind == "siglip":
            model = CustomTextCLIP(32, SIGLIP, SIGLIP_TEXT, init_logit_bias=-10.0)
            model.visual.trunk = VisionTransformer(
                img_size=64,
                embed_dim=32,
                depth=4,
                num_heads=2,
                class_token=False,
                global_pool="map",
                num_classes=0,
            )
        else:
            model = CLIP(32, TOWERS[kind], TEXT)
        _wake(model.visual)
    return model.eval().requires_grad_(False)


def _wake(visual: torch.nn.Module) -> None:
    """Residual branches begin at zero in a ModifiedResNet; here each layer changes what comes out."""
    for name, weight in visual.named_parameters():
        if name.endswith("bn3.weight"):
            torch.nn.init.ones_(weight)


def tokens(texts: list[str]) -> torch.Tensor:
    return open_clip.get_tokenizer("ViT-B-32")(texts, context_length=15)


def long_tokens(texts: list[str]) -> torch.Tensor:
    return open_clip.get_tokenizer("ViT-B-32")(texts, context_length=16)


SWIN = "swin"


def swin_tower() -> torch.nn.Module:
    """open_clip's tower around a Swin, which has no small configuration there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk = SwinTransformer(
            img_size=64, patch_size=2, window_size=4, embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 1, 2, 2),
            num_classes=0,
        )  # fmt: skip
        visual = TimmModel("test_vit", 32, image_size=64, pool="", proj="linear")
        visual.trunk, visual.head = (
            trunk,
            torch.nn.Sequential(torch.nn.Linear(trunk.num_features, 32, bias=False)),
        )
    return visual.eval().requires_grad_(False)
