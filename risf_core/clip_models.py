"""Load any CLIP that open_clip knows, by name and tag or from a local file, and the tiny ones of this project."""

import contextlib
import difflib
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse
from urllib.request import getproxies

import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import nn

from risf_core.detector.weight_files import reason
from risf_core.errors import CheckpointError, ParamsError

log = logging.getLogger(__name__)

CONFIGS = Path(__file__).parent / "open_clip_configs"


class ClipInfo(NamedTuple):
    """What a model expects of its images, and where its weights come from."""

    name: str
    pretrained: str | None
    is_random: bool  # no weights were loaded: the path works, the numbers mean nothing
    image_size: tuple[int, int]  # (height, width) in pixels
    mean: tuple[float, ...]  # RGB, of values in 0-1
    std: tuple[float, ...]
    interpolation: str
    num_parameters: int  # of the image tower


class LoadedClip(NamedTuple):
    """An open_clip model in evaluation mode, its tokenizer, and its facts."""

    model: nn.Module
    tokenizer: object
    info: ClipInfo


def register_configs() -> None:
    """Make the project's own configs (risf-tiny-*) known to open_clip, and to timm the tower that one of them names."""
    import risf_core.conv_stem_vit  # noqa: F401, it registers itself

    known = set(open_clip.list_models())
    for path in sorted(CONFIGS.glob("*.json")):
        if path.stem not in known:
            open_clip.add_model_config(path)


def load_clip(
    model: str,
    pretrained: str | Path | None,
    *,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    seed: int = 0,
    cache_dir: str | None = None,
) -> LoadedClip:
    """Load a CLIP by open_clip's name and a pretrained tag or a local checkpoint.

    Args:
        model: A name of `open_clip.list_models()`, a name of ours (risf-tiny-*), or "local-dir:FOLDER".
        pretrained: A tag of `open_clip.list_pretrained()`, the path of a checkpoint (read with weights_only=True), or
            None for random weights, drawn from `seed`.
        precision: open_clip's "fp32", "bf16" or "fp16".
        cache_dir: Where downloads are kept; None takes the usual folder.

    Returns:
        The model in evaluation mode without gradients, its tokenizer, its facts.

    Raises:
        ParamsError: If open_clip has no such model.
        CheckpointError: If the weights cannot be fetched, read or loaded.
    """
    tag = None if pretrained is None else str(pretrained)
    clip, tokenizer = _create(model, tag, device=device, precision=precision, seed=seed, cache_dir=cache_dir)
    clip.eval().requires_grad_(False)
    clip.visual.to(memory_format=torch.channels_last)  # faster convolutions; numbers differ by rounding
    is_random = tag is None and not model.startswith(("local-dir:", "hf-hub:"))
    if is_random:
        log.warning("CLIP %s has random weights: its numbers mean nothing.", model)
    return LoadedClip(clip, tokenizer, _clip_info(clip, model, tag, is_random))


def new_clip(model: str, *, seed: int, device: str | torch.device = "cpu") -> tuple[nn.Module, object]:
    """A CLIP with random weights, drawn from `seed`, in training mode, and its tokenizer; errors as in `load_clip`."""
    clip, tokenizer = _create(model, None, device=device, precision="fp32", seed=seed, cache_dir=None)
    return clip.train(), tokenizer


def _create(
    model: str, tag: str | None, *, device, precision: str, seed: int, cache_dir: str | None
) -> tuple[nn.Module, object]:
    register_configs()
    _check_model_name(model)
    _check_pretrained(model, tag)
    # nothing to fetch, tokenizer included
    own = model.startswith("risf-") and (tag is None or Path(tag).is_file())
    hub = contextlib.nullcontext() if own else _impatient_hub()
    with torch.random.fork_rng(devices=[]), _one_voice(), hub:
        torch.manual_seed(seed)
        try:
            clip, _, _ = open_clip.create_model_and_transforms(
                model, pretrained=tag, device=device, precision=precision, cache_dir=cache_dir
            )
            return clip, open_clip.get_tokenizer(model, cache_dir=cache_dir)
        except Exception as error:
            raise CheckpointError(_weights_message(model, tag, cache_dir, error)) from error


@contextlib.contextmanager
def _one_voice() -> Iterator[None]:
    """Silence the libraries' own warnings and errors while a model is made; ours says what matters."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _impatient_hub() -> Iterator[None]:
    """Where the hub of weights is out of reach, search its local cache alone: its retries would take a minute."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if not getproxies():
        try:
            socket.create_connection((urlparse(constants.ENDPOINT).hostname, 443), timeout=5).close()
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _check_model_name(model: str) -> None:
    known = open_clip.list_models()
    if not model.startswith(("local-dir:", "hf-hub:")) and model.replace("/", "-") not in known:
        near = difflib.get_close_matches(model, known, n=3) or known[:3]
        raise ParamsError(
            f"open_clip has no model {model!r}. Nearest of {len(known)} names: {', '.join(near)}."
        )


def _check_pretrained(model: str, pretrained: str | None) -> None:
    """Refuse what is neither a known tag nor a file before anything is built."""
    if pretrained is None or open_clip.get_pretrained_cfg(model, pretrained) or Path(pretrained).is_file():
        return
    tags = open_clip.list_pretrained_tags_by_model(model)
    raise CheckpointError(
        f"CLIP {model}: {pretrained!r} is no file and no pretrained tag. "
        f"Expected the path of a checkpoint or one of: {', '.join(tags) or '(this model has no tags)'}."
    )


def _weights_message(model: str, tag: str | None, cache_dir: str | None, error: Exception) -> str:
    # where the file would be executed torch advises to do so; that advice is left out
    why = reason(error).rstrip(".") if "weights_only" in str(error) else " ".join(str(error).split())[:300]
    source = open_clip.get_pretrained_cfg(model, tag) if tag else {}
    if not source:
        expected = (
            f" Expected {tag} to be a state dict of this very model, such as open_clip's .safetensors of a tag; "
            "OpenAI's own .pt are TorchScript programs, which are not read."
        )
        return f"CLIP {model}: {tag or 'the model or its tokenizer'} cannot be loaded: {why}.{expected if tag else ''}"
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = cache_dir or (HF_HUB_CACHE if source.get("hf_hub") else Path("~/.cache/clip").expanduser())
    return (
        f"CLIP {model}: the weights of tag {tag!r} cannot be fetched: {why}. They were looked for in "
        f"{folder} and at {source.get('hf_hub') or source.get('url')}. Put the checkpoint file anywhere on this "
        "machine and give its path in place of the tag (pretrained: /path/to/file), or copy the cache folder "
        "of a machine that has it."
    )


def _clip_info(clip: nn.Module, name: str, pretrained: str | None, is_random: bool) -> ClipInfo:
    size, mean, std, interpolation = preprocessing_of(clip)
    num_parameters = sum(parameter.numel() for parameter in clip.visual.parameters())
    return ClipInfo(name, pretrained, is_random, size, mean, std, interpolation, num_parameters)


def preprocessing_of(clip: nn.Module) -> tuple[tuple[int, int], tuple[float, ...], tuple[float, ...], str]:
    """Image size (height, width), mean, std and interpolation that open_clip attached to an image tower."""
    size = clip.visual.image_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    config = getattr(clip.visual, "preprocess_cfg", {})
    mean, std = config.get("mean", OPENAI_DATASET_MEAN), config.get("std", OPENAI_DATASET_STD)
    return size, tuple(mean), tuple(std), config.get("interpolation", "bicubic")
