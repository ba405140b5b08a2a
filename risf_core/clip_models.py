"""Load any CLIP that open_clip knows, by name and tag or from a local file, and the tiny ones of this project."""

import contextlib
import difflib
import logging
import socket
import textwrap
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
SCHEMES = (
    "local-dir:",
    "hf-hub:",
)  # of names that bring their own config; open_clip ignores tags beside them


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
    import risf_core.timm_towers  # noqa: F401, it registers itself

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
        model: A name of `open_clip.list_models()`, a name of ours (risf-tiny-*), "local-dir:FOLDER" (with
            open_clip_config.json, weights and, where the model has its own, tokenizer files) or "hf-hub:NAME".
        pretrained: A tag of `open_clip.list_pretrained()`, the path of a checkpoint (read with weights_only=True),
            "TAG=PATH" for a checkpoint of that tag, or None for random weights, drawn from `seed`. A tag says what the
            name leaves open: QuickGELU (all of OpenAI's), mean and std.
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
    is_random = tag is None and not model.startswith(SCHEMES)
    if is_random:
        log.warning("CLIP %s has random weights: its numbers mean nothing.", model)
    return LoadedClip(clip, tokenizer, _clip_info(clip, model, tag, is_random))


def new_clip(model: str, *, seed: int, device: str | torch.device = "cpu") -> tuple[nn.Module, object]:
    """A CLIP with random weights, drawn from `seed`, in training mode, and its tokenizer; errors as in `load_clip`."""
    clip, tokenizer = _create(model, None, device=device, precision="fp32", seed=seed, cache_dir=None)
    return clip.train(), tokenizer


def _create(
    model: str, pretrained: str | None, *, device, precision: str, seed: int, cache_dir: str | None
) -> tuple[nn.Module, object]:
    register_configs()
    _check_model_name(model)
    tag, path = _tag_and_file(model, pretrained)
    settings = _settings_of_tag(model, tag, path)
    # nothing to fetch, tokenizer included
    own = model.startswith("risf-") and (pretrained is None or path is not None)
    hub = contextlib.nullcontext() if own else _impatient_hub()
    options = {"device": device, "precision": precision, "cache_dir": cache_dir}
    with torch.random.fork_rng(devices=[]), _one_voice(), hub:
        # a tokenizer that is missing shows at once, before a large model is built; a name with a scheme must bring the
        # config that says which one it is
        tokenizer = None if model.startswith(SCHEMES) else _open_tokenizer(model, cache_dir)
        torch.manual_seed(seed)
        try:
            clip, _, _ = open_clip.create_model_and_transforms(
                model, pretrained=path or tag, **options, **settings
            )
        except Exception as error:
            raise CheckpointError(_weights_message(model, tag, path, cache_dir, error)) from error
        return clip, tokenizer or _open_tokenizer(model, cache_dir)


def _open_tokenizer(model: str, cache_dir: str | None) -> object:
    try:
        return open_clip.get_tokenizer(model, cache_dir=cache_dir)
    except Exception as error:
        raise CheckpointError(_tokenizer_message(model, cache_dir, error)) from error


def _tag_and_file(model: str, pretrained: str | None) -> tuple[str | None, str | None]:
    """What `pretrained` names: a known tag, an existing file, or both; refused before anything is built."""
    if pretrained is None or model.startswith(SCHEMES):
        return None, None
    if open_clip.get_pretrained_cfg(model, pretrained):
        return pretrained, None
    tag, _, path = pretrained.partition("=")
    if Path(pretrained).is_file():
        return None, pretrained
    if path and open_clip.get_pretrained_cfg(model, tag) and Path(path).is_file():
        return tag, path
    tags = open_clip.list_pretrained_tags_by_model(model)
    raise CheckpointError(
        f"CLIP {model}: {pretrained!r} is no file and no pretrained tag. Expected the path of a checkpoint, TAG=PATH, "
        f"or one of: {', '.join(tags) or '(this model has no tags)'}."
    )


def _settings_of_tag(model: str, tag: str | None, path: str | None) -> dict:
    """Options of open_clip's factory that a tag implies and the factory does not take from it.

    open_clip only warns where a tag was trained with QuickGELU and the name has GELU, and gives a file the mean and std
    of OpenAI, whatever the model. A file without a tag gets what all tags of its model have.
    """
    if tag is None and path is None:
        return {"require_pretrained": model.startswith(SCHEMES)}
    tags = [tag] if tag else open_clip.list_pretrained_tags_by_model(model)
    configs = [open_clip.get_pretrained_cfg(model, name) for name in tags]
    settings = {"force_quick_gelu": bool(tag and configs[0].get("quick_gelu"))}
    keys = ("mean", "std", "interpolation", "resize_mode")
    found = [{key: config[key] for key in keys if config.get(key)} for config in configs]
    if path and found and all(one == found[0] for one in found):
        settings |= {f"image_{key}": value for key, value in found[0].items()}
    elif path and found:
        log.warning("CLIP %s: its tags differ in mean or std; %s gets OpenAI's. Write TAG=PATH.", model, path)
    return settings


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
    if not model.startswith(SCHEMES) and model.replace("/", "-") not in known:
        near = difflib.get_close_matches(model, known, n=3) or known[:3]
        raise ParamsError(
            f"open_clip has no model {model!r}. Nearest of {len(known)} names: {', '.join(near)}."
        )


def _tokenizer_message(model: str, cache_dir: str | None, error: Exception) -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    config = {} if model.startswith(SCHEMES) else (open_clip.get_model_config(model) or {})
    name = config.get("text_cfg", {}).get("hf_tokenizer_name", "")
    where = f" ({name})" if name else ""
    lacks = " Install it: pip install transformers sentencepiece." if isinstance(error, ImportError) else ""
    return (
        f"CLIP {model}: its tokenizer{where} cannot be loaded: {_why(error)}.{lacks} It was looked for in "
        f"{cache_dir or HF_HUB_CACHE}. Copy that folder from a machine that has it, or put open_clip_config.json, the "
        "weights and the tokenizer's files (tokenizer.json, tokenizer_config.json) into one folder and give "
        "local-dir:FOLDER as the model."
    )


def _why(error: Exception) -> str:
    # where the file would be executed torch advises to do so; that advice is left out
    text = reason(error) if "weights_only" in str(error) else str(error)
    return textwrap.shorten(text, 400, placeholder=" ...").rstrip(".")


def _weights_message(
    model: str, tag: str | None, path: str | None, cache_dir: str | None, error: Exception
) -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    if path:
        return (
            f"CLIP {model}: {path} cannot be loaded: {_why(error)}. Expected {path} to be a state dict of this very "
            "model, such as open_clip's .safetensors of a tag; OpenAI's own .pt are TorchScript programs, which are "
            "not read."
        )
    source = open_clip.get_pretrained_cfg(model, tag) if tag else {}
    if model.startswith("hf-hub:"):
        what, address, place = "weights", model.removeprefix("hf-hub:"), "local-dir:FOLDER as the model"
    elif source:
        what, address = f"weights of tag {tag!r}", source.get("hf_hub") or source.get("url")
        place = f"pretrained: {tag}=/path/to/file"
    else:
        needs = " Expected open_clip_config.json and open_clip_model.safetensors in that folder."
        return f"CLIP {model}: it cannot be made: {_why(error)}.{needs if model.startswith(SCHEMES) else ''}"
    is_on_hub = source.get("hf_hub") or model.startswith("hf-hub:")
    folder = cache_dir or (HF_HUB_CACHE if is_on_hub else Path("~/.cache/clip").expanduser())
    return (
        f"CLIP {model}: the {what} cannot be fetched: {_why(error)}. They were looked for in {folder} and at "
        f"{address}. "
        f"Put the files anywhere on this machine and give {place}, or copy the cache folder of a machine that has them."
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
