"""Prompts and the texts' side of CM-CLIP: names of a label space to normalised embeddings."""

import hashlib
import logging
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES
from torch import Tensor, nn

from risf_core.errors import ParamsError
from risf_core.part_params import check_template

log = logging.getLogger(__name__)

TEMPLATES = ("a photo of {}",)  # the released code's only prompt, without an article
TEMPLATE_SETS = {
    "published": TEMPLATES,
    "simple": tuple(template("{}") for template in SIMPLE_IMAGENET_TEMPLATES),  # CLIP's 7 best
    "openai": tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES),  # CLIP's 80
}


def templates_named(templates: Sequence[str] | str) -> tuple[str, ...]:
    """The prompts of a name ("published": one, "simple": 7, "openai": 80), or the given ones.

    Raises:
        ParamsError: If there is no such name, or a prompt has not one {} for the class name.
    """
    if isinstance(templates, str):
        if templates not in TEMPLATE_SETS:
            known = ", ".join(TEMPLATE_SETS)
            raise ParamsError(f"templates is {templates!r}. Expected one of: {known}; or a list of texts.")
        return TEMPLATE_SETS[templates]
    if not templates:
        raise ParamsError("templates are empty. Expected texts with {} where the name goes.")
    for template in templates:
        check_template(template)
    return tuple(templates)


def encode_texts(
    model: nn.Module, tokenizer, names: Sequence[str], templates: Sequence[str], *, store: Path | None = None
) -> Tensor:
    """Mean over the templates of each name's normalised embedding, normalised again: float32 [L, D].

    Args:
        store: Folder of embeddings, found by a hash of the texts' tower and all tokens; None computes them.
    """
    tokens = [tokenizer([template.format(name) for name in names]) for template in templates]
    if store is None:
        return _encode(model, tokens)
    path = Path(store) / f"texts-{_hash(model, tokens)[:16]}.npz"
    embeds = _read(path, len(names))
    if embeds is None:
        embeds = _encode(model, tokens).cpu().numpy()
        try:
            _write(path, embeds)
        except OSError as error:
            log.warning(
                "%s: cannot be written (%s); these texts are not stored.", path, error.strerror or error
            )
    return torch.from_numpy(embeds).to(next(model.parameters()).device)


@torch.inference_mode()
def _encode(model: nn.Module, tokens: Sequence[Tensor]) -> Tensor:
    device = next(model.parameters()).device
    embeds = [nn.functional.normalize(model.encode_text(part.to(device)).float(), dim=-1) for part in tokens]
    return nn.functional.normalize(torch.stack(embeds).mean(0), dim=-1)  # [T, L, D] -> [L, D]


def _hash(model: nn.Module, tokens: Sequence[Tensor]) -> str:
    """Of everything that an embedding follows from: weights and make of the texts' tower, tokens, torch, device."""
    device = next(model.parameters()).device
    parts = [part for name, part in model.named_children() if name != "visual"]
    plain = {
        k: v for part in (model, *parts) for k, v in vars(part).items() if isinstance(v, bool | int | str)
    }
    digest = hashlib.sha256(repr((torch.__version__, device.type, parts, sorted(plain.items()))).encode())
    weights = (*model.named_parameters(), *model.named_buffers())
    arrays = [(name, weight.detach()) for name, weight in weights if not name.startswith("visual.")]
    for name, array in (*arrays, *(("tokens", part) for part in tokens)):
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        digest.update(array.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _read(path: Path, count: int) -> np.ndarray | None:
    """The stored embeddings [count, D]; None where there are none, or, with a warning, where the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            embeds = file["embeds"]
        if embeds.dtype == np.float32 and embeds.ndim == 2 and len(embeds) == count:
            return embeds
    except FileNotFoundError:
        return None
    except PermissionError as error:
        log.warning("%s: cannot be read (%s); its texts are encoded again.", path, error.strerror)
        return None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        pass
    log.warning("%s is damaged; its texts are encoded again.", path)
    return None


def _write(path: Path, embeds: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # the same folder, so that replacing is atomic
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, embeds=embeds)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
