"""The small weights of the demo: a detector and a tiny CLIP at half precision, with hashes, in a folder to commit.

Matrices and kernels are float16. Biases and normalisation statistics stay float32: they cost little, and a variance
may leave float16's range. Of the CLIP's token embedding only the rows of the corpus' tokens are kept; the others were
never trained and hold what they were initialised with.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from risf_core.clip_models import ClipInfo, LoadedClip, new_clip, preprocessing_of
from risf_core.data.coco import write_json
from risf_core.detector.checkpoints import read_checkpoint, save_checkpoint
from risf_core.errors import CheckpointError, ParamsError

DETECTOR, CLIP, FACTS = "detector.pth", "clip.pth", "demo.json"
EMBEDDING = "token_embedding.weight"
MAX_BYTES = 8_000_000  # of all files together


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with its matrices and kernels in float16.

    Raises:
        CheckpointError: If a weight is not finite there.
    """
    half = {
        key: value.half() if value.is_floating_point() and value.ndim >= 2 else value
        for key, value in state.items()
    }
    if wrong := [key for key, value in half.items() if not torch.isfinite(value).all()]:
        raise CheckpointError(f"{wrong[0]} leaves the range of float16. Keep these weights in float32.")
    return half


def save_half_detector(source: Path, target: Path) -> dict:
    """Write a detector's checkpoint (`save_detector`) at half precision; the same loaders read it.

    Returns:
        What the file holds beside the weights: ``class_names`` and ``detector``.
    """
    content = read_checkpoint(source)
    save_checkpoint(target, content | {"model": halved(content["model"])})
    return {key: content[key] for key in ("class_names", "detector")}


def save_half_clip(source: Path, target: Path, *, tower: str, captions: Iterable[str]) -> int:
    """Write a CLIP that was trained here at half precision, with the embeddings of its captions' tokens alone.

    Args:
        source: Its state dict (``clip.pt``).
        target: The file to write.
        tower: Its config.
        captions: Texts with all the tokens that are to be kept.

    Returns:
        The number of tokens kept.
    """
    state = read_checkpoint(source)
    _, tokenizer = new_clip(tower, seed=0)
    tokens = tokenizer(sorted(set(captions))).unique()  # start, end and padding are among them
    state[EMBEDDING] = state[EMBEDDING][tokens]  # [V, D] -> [T, D]
    save_checkpoint(target, {"tower": tower, "tokens": tokens, "model": halved(state)})
    return len(tokens)


def load_half_clip(path: Path, *, device: str = "cpu") -> LoadedClip:
    """The CLIP of a file that `save_half_clip` wrote, in float32; its tokenizer refuses words that training never saw.

    Raises:
        CheckpointError: If the file is not one of these.
    """
    content = read_checkpoint(path)
    if set(content) != {"tower", "tokens", "model"}:
        raise CheckpointError(f"{path}: not a small CLIP; it holds {', '.join(map(str, content))}.")
    tower, tokens = content["tower"], content["tokens"]
    model, tokenizer = new_clip(tower, seed=0, device=device)
    state = {
        key: value.float() if value.is_floating_point() else value for key, value in content["model"].items()
    }
    embedding = torch.full_like(model.state_dict()[EMBEDDING], torch.nan)  # a token that is not there shows
    embedding[tokens] = state[EMBEDDING].to(embedding.device)
    try:
        model.load_state_dict(state | {EMBEDDING: embedding})
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: does not fit {tower}: {' '.join(str(error).split())[:200]}"
        ) from error
    model.eval().requires_grad_(False)
    model.visual.to(memory_format=torch.channels_last)
    size, mean, std, interpolation = preprocessing_of(model)
    count = sum(parameter.numel() for parameter in model.visual.parameters())
    info = ClipInfo(tower, str(path), False, size, mean, std, interpolation, count)
    return LoadedClip(model, KnownTokens(tokenizer, tokens, path), info)


class KnownTokens:
    """A tokenizer that refuses texts with tokens whose embedding is not there."""

    def __init__(self, tokenizer, tokens: Tensor, path: Path) -> None:
        self.tokenizer, self.path = tokenizer, path
        self.known = set(tokens.tolist())

    def __getattr__(self, name: str):
        return getattr(self.tokenizer, name)

    def __call__(self, texts: str | Sequence[str], *args, **options) -> Tensor:
        """Tokens of texts, int64 [N, length].

        Raises:
            ParamsError: Naming the first text with another token.
        """
        tokens = self.tokenizer(texts, *args, **options)
        for text, row in zip([texts] if isinstance(texts, str) else texts, tokens.tolist(), strict=True):
            if unknown := [token for token in row if token not in self.known]:
                words = self.tokenizer.decode(unknown).strip()
                raise ParamsError(
                    f"{self.path}: {text!r} has {words!r}, which the training of this small CLIP never saw; it keeps "
                    f"{len(self.known)} tokens. Take another name or prompt, or another CLIP."
                )
        return tokens


def write_facts(folder: Path, facts: dict) -> dict:
    """Write ``demo.json``: the facts, and size and SHA-256 of the weights beside it.

    Raises:
        CheckpointError: If the files are too large to commit.
    """
    files = {name: describe_file(folder / name) for name in (DETECTOR, CLIP)}
    total = sum(entry["bytes"] for entry in files.values())
    if total > MAX_BYTES:
        raise CheckpointError(f"{folder}: {total} bytes of weights. Expected at most {MAX_BYTES}.")
    facts = {"files": files, **facts}
    write_json(folder / FACTS, facts)
    return facts


def describe_file(path: Path) -> dict:
    """Size and SHA-256 of a file."""
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def read_facts(folder: Path) -> dict:
    """What ``demo.json`` says, once the files beside it have proved to be those that it names.

    Raises:
        CheckpointError: If a file is missing, or has another content than when it was published.
    """
    restore = f"Restore it (git checkout -- {folder}), or make it anew: make reproduce, then make publish."
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        files = facts["files"]
    except FileNotFoundError:
        raise CheckpointError(f"{folder / FACTS}: there is no such file. {restore}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / FACTS}: not readable ({error}). {restore}") from error
    for name in (DETECTOR, CLIP):
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: there is no such file. {restore}")
        found, expected = describe_file(path)["sha256"], files[name]["sha256"]
        if found != expected:
            raise CheckpointError(
                f"{path}: its SHA-256 is {found[:16]}..., {FACTS} says {expected[:16]}...: the file was changed or cut "
                f"short, and was not opened. {restore}"
            )
    return facts
