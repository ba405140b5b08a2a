"""What the commands on a user's own files share: how they read words, and how they speak."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from risf_core.class_lists import read_class_list
from risf_core.errors import ParamsError


def say(text: str) -> None:
    """One line on standard output, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def share_of(text: str) -> float:
    """A number from 0 to 1, for ``type=`` of an argument."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def count_of(text: str) -> int:
    """A whole number from 1, for ``type=`` of an argument."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return value


def device_of(word: str) -> str:
    """The device that ``--device auto``, ``cpu`` or ``cuda`` means here.

    Raises:
        ParamsError: If a GPU is asked for and there is none.
    """
    if word == "cpu":
        return word
    import torch

    has_gpu = torch.cuda.is_available()
    if word == "cuda" and not has_gpu:
        raise ParamsError("--device cuda, but torch finds no GPU. Take auto or cpu, or run `make doctor`.")
    return "cuda" if has_gpu else "cpu"


def names_of(words: Sequence[str]) -> tuple[str, ...]:
    """The names given, or those of the one file given."""
    is_file = len(words) == 1 and Path(words[0]).is_file()
    return read_class_list(words[0]).names if is_file else tuple(words)


def made_folder(path: Path) -> Path:
    """The folder of ``--output``, made if need be.

    Raises:
        ParamsError: If nothing can be written there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ParamsError(
            f"--output {path}: nothing can be written there ({error.strerror}). Expected a folder, new or yours."
        ) from None
    return path
