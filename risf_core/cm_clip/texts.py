"""Prompts and the texts' side of CM-CLIP: names of a label space to normalised embeddings."""

from collections.abc import Sequence

import torch
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES
from torch import Tensor, nn

from risf_core.errors import ParamsError

TEMPLATES = ("a photo of {}",)  # the released code's only prompt, without an article
TEMPLATE_SETS = {
    "published": TEMPLATES,
    "simple": tuple(template("{}") for template in SIMPLE_IMAGENET_TEMPLATES),  # CLIP's 7 best
    "openai": tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES),  # CLIP's 80
}


def templates_named(templates: Sequence[str] | str) -> tuple[str, ...]:
    """The prompts of a name ("published": one, "simple": 7, "openai": 80), or the given ones.

    Raises:
        ParamsError: If there is no such name, or a prompt has no {} for the class name.
    """
    if isinstance(templates, str):
        if templates not in TEMPLATE_SETS:
            known = ", ".join(TEMPLATE_SETS)
            raise ParamsError(f"templates is {templates!r}. Expected one of: {known}; or a list of texts.")
        return TEMPLATE_SETS[templates]
    if not templates or any("{}" not in template for template in templates):
        raise ParamsError(f"templates are {list(templates)}. Expected texts with {{}} where the name goes.")
    return tuple(templates)


@torch.inference_mode()
def encode_texts(model: nn.Module, tokenizer, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Mean over the templates of each name's normalised embedding, normalised again: float32 [L, D]."""
    device, embeds = next(model.parameters()).device, []
    for template in templates:
        tokens = tokenizer([template.format(name) for name in names]).to(device)
        embeds.append(nn.functional.normalize(model.encode_text(tokens).float(), dim=-1))
    return nn.functional.normalize(torch.stack(embeds).mean(0), dim=-1)  # [T, L, D] -> [L, D]
