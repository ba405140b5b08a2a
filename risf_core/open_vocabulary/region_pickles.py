"""Pickles of boxes that others wrote, read without executing anything in them.

A pickle is a program that may call whatever it can name. Here it can name what `weight_files.ArrayUnpickler` admits for
arrays of numbers, and the two functions by which torch pickles a tensor, both replaced by stand-ins that check.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from risf_core.detector.weight_files import OLD_TORCH, ArrayUnpickler, PickledArray, reason
from risf_core.errors import DataError

MAX_VALUES = 2**24  # of a tensor or box list of one image: far above any true one


class _Sealed(type):
    def __setattr__(cls, name: str, value: Any) -> None:
        raise AttributeError(f"{cls.__name__} is sealed")


class PickledStorage(metaclass=_Sealed):
    """Stands in for ``torch.storage._load_from_bytes``, whose own reading would execute what is in the bytes."""

    def __new__(cls, raw: bytes) -> Any:
        if not isinstance(raw, bytes) or not raw.startswith(OLD_TORCH):
            raise pickle.UnpicklingError("a tensor's storage that is not one")
        storage = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        if not isinstance(storage, torch.storage.TypedStorage):
            raise pickle.UnpicklingError(f"a tensor's storage that is {type(storage).__name__}")
        return storage


class PickledTensor(metaclass=_Sealed):
    """Stands in for ``torch._utils._rebuild_tensor_v2``: gives a plain array, row-major tensors alone."""

    def __new__(cls, storage: Any, offset: int, size: tuple, stride: tuple, *_ignored: Any) -> np.ndarray:
        if not isinstance(storage, torch.storage.TypedStorage):
            raise pickle.UnpicklingError("a tensor without a storage")
        if not all(isinstance(side, int) and 0 <= side <= MAX_VALUES for side in (*size, *stride, offset)):
            raise pickle.UnpicklingError(f"a tensor of shape {size}")
        values = torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)
        if int(np.prod(size, dtype=object)) > min(MAX_VALUES, len(values)):
            raise pickle.UnpicklingError(f"a tensor of shape {size} in {len(values)} values")
        return values.as_strided(size, stride, offset).float().numpy().copy()


ADMITTED = {
    "torch._utils._rebuild_tensor_v2": PickledTensor,
    "torch.storage._load_from_bytes": PickledStorage,
}


class RegionUnpickler(ArrayUnpickler):
    """Reads pickles of arrays, tensors, plain containers, strings and numbers; refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        return ADMITTED.get(f"{module}.{name}") or super().find_class(module, name)


def read_pickle(path: Path) -> Any:
    """The content of a pickle, nothing in it executed; arrays come as they are, tensors as arrays.

    Raises:
        DataError: If the file is broken, or names what boxes do not need.
    """
    try:
        with open(path, "rb") as file:
            return _plain(RegionUnpickler(file).load())
    except Exception as error:  # broken and hostile files raise many kinds; all mean the same to the user
        raise DataError(
            f"{path}: not a readable pickle of boxes ({reason(error)}). Nothing in it was executed. Expected lists, "
            "dictionaries, arrays and tensors of numbers."
        ) from error


def _plain(value: Any, depth: int = 0) -> Any:
    """Arrays in place of their stand-ins, in containers of up to six levels."""
    if depth > 6:
        raise pickle.UnpicklingError("containers within containers, more than six deep")
    if isinstance(value, PickledArray):
        if value.array is None:
            raise pickle.UnpicklingError("an array without content")
        return value.array
    if isinstance(value, dict):
        return {key: _plain(own, depth + 1) for key, own in dict.items(value)}
    if isinstance(value, list | tuple):
        return type(value)(_plain(own, depth + 1) for own in value)
    return value
