"""Files of weights that others wrote, read without executing anything in them.

Two kinds, told apart by their first bytes: pickles of numpy arrays (detectron2's and Caffe2's ``.pkl``) and torch files
(``.pth``, ``.pt``). A pickle is a program that may call whatever it can name; here it can name only the stand-ins
below, which build arrays from plain bytes and check every claim. Torch files go through ``weights_only=True``; classes
that some trainers leave beside the weights become stand-ins there: dictionaries with what the file put in, or empty
objects. Not read are unknown subclasses of list, dictionaries beside objects whose state is none, and unknown classes
in torch's format of before 1.6; the error names the class.
"""

import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from risf_core.errors import CheckpointError

ZIP = b"PK\x03\x04"  # torch.save since torch 1.6
HARMLESS = {f"builtins.{kind.__name__}" for kind in (bool, int, float, str, tuple, list, dict)}
OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number as a pickle of its own
ADVICE = ("(", "Check the documentation", "Please file an issue")  # how torch's lines of advice begin
WRAPPERS = ("model", "state_dict", "blobs")  # where a file keeps its weights, if not at its top
DTYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")  # booleans, integers and floats: no objects, no records


class _Sealed(type):
    """Metaclass of the stand-ins: what a pickle can name, it could also try to change."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise AttributeError(f"{cls.__name__} is sealed")


class PickledDtype(metaclass=_Sealed):
    """Stands in for ``numpy.dtype``; numbers only."""

    def __init__(self, code: str | bytes, align: Any = False, copy: Any = False) -> None:
        code = code.decode("latin1") if isinstance(code, bytes) else code
        if not (isinstance(code, str) and DTYPE.fullmatch(code)):
            raise pickle.UnpicklingError(f"an array of type {code!r}, not of numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        _version, order, *parts = state[:5]
        order = order.decode("latin1") if isinstance(order, bytes) else order
        if order not in ("<", ">", "=", "|") or any(part is not None for part in parts):
            raise pickle.UnpicklingError("an array of records, not of numbers")
        self.dtype = self.dtype.newbyteorder(order)


class PickledArray(metaclass=_Sealed):
    """Stands in for ``numpy.ndarray`` and its rebuilding; ``array`` is None until its content arrives."""

    def __init__(self, *_ignored: Any) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _version, shape, dtype, is_fortran, raw = state
        self.array = _build_array(raw, dtype, shape, "F" if is_fortran else "C")


class PickledBuffer(metaclass=_Sealed):
    """Stands in for numpy's ``_frombuffer`` (pickle protocol 5)."""

    def __new__(cls, raw: Any, dtype: PickledDtype, shape: tuple, order: str) -> PickledArray:
        result = PickledArray()
        result.array = _build_array(raw, dtype, shape, order)
        return result


class PickledScalar(metaclass=_Sealed):
    """Stands in for numpy's scalars: gives a plain number."""

    def __new__(cls, dtype: PickledDtype, raw: Any) -> bool | int | float:
        return _build_array(raw, dtype, (), "C").item()


class PickledBytes(metaclass=_Sealed):
    """Stands in for ``_codecs.encode``, by which old protocols write bytes."""

    def __new__(cls, text: str, encoding: str = "latin1") -> bytes:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}")
        return str(text).encode("latin1")


class EmptyBytes(metaclass=_Sealed):
    """Stands in for ``bytes``, which old protocols call for no bytes."""

    def __new__(cls) -> bytes:
        return b""


STAND_INS = {
    "numpy.ndarray": PickledArray,
    "numpy.dtype": PickledDtype,
    "builtins.bytes": EmptyBytes,
    "__builtin__.bytes": EmptyBytes,
} | {
    f"numpy.{package}.{name}": stand_in
    for package in ("core", "_core")  # before and since numpy 2
    for name, stand_in in (
        ("multiarray._reconstruct", PickledArray),
        ("multiarray.scalar", PickledScalar),
        ("numeric._frombuffer", PickledBuffer),
    )
}
ADMITTED = STAND_INS | {"collections.OrderedDict": OrderedDict, "_codecs.encode": PickledBytes}


class ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of numpy arrays, plain containers, strings and numbers; refuses every other name."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="latin1")  # Python 2 wrote array contents as strings

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ADMITTED[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}") from None


class UnreadMapping:
    """A dictionary instead of an object of a class that is not ours: torch fills no other mapping."""

    def __new__(cls, *_ignored: Any, **_also: Any) -> OrderedDict:
        return OrderedDict()


class Unread:
    """An object of a class that is not ours, left empty."""

    def __init__(self, *_ignored: Any, **_also: Any) -> None:
        pass

    def __new__(cls, *_ignored: Any, **_also: Any) -> "Unread":
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def read_weight_file(path: Path) -> dict[str, Any]:
    """The content of a file of weights, nothing in it executed; arrays come as ``PickledArray``, tensors as they are.

    Raises:
        CheckpointError: If the file is missing, broken, or names what a file of weights does not need.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file of weights. Correct the path, or download the file there."
        )
    try:
        content = _read(path)
    except Exception as error:  # broken and hostile files raise many kinds; all mean the same to the user
        raise CheckpointError(
            f"{path}: not a readable file of weights ({reason(error)}). Nothing in it was executed. "
            "Expected arrays or tensors in plain containers: a detectron2 or Caffe2 .pkl, or a torch .pth."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dictionary, found {type(content).__name__}.")
    return content


def reason(error: Exception) -> str:
    """Why a file could not be read, in one line, without torch's advice to read it by executing it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("Weights only load failed"):
        lines = [line for line in lines[1:] if not line.startswith(ADVICE)]
    return lines[0].removeprefix("WeightsUnpickler error: ").split(". ")[0] if lines else type(error).__name__


def find_weights(content: dict[str, Any]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a file's content by the file's keys, and the keys that hold something else.

    The weights lie at the top, or one level down under ``model``, ``state_dict`` or ``blobs``.
    """
    wrapped = next((content[key] for key in WRAPPERS if isinstance(dict.get(content, key), dict)), content)
    weights, others = {}, []
    for key, value in dict.items(wrapped):  # the type's own method: a file can hide an OrderedDict's
        tensor = _as_tensor(value)
        if isinstance(key, str) and tensor is not None:
            weights[key] = tensor
        else:
            others.append(str(key))
    return weights, tuple(others)


def _read(path: Path) -> Any:
    with open(path, "rb") as file:
        start = file.read(len(OLD_TORCH))
        file.seek(0)
        if not start.startswith((ZIP, OLD_TORCH)):
            return ArrayUnpickler(file).load()
    foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path) if start.startswith(ZIP) else []
    names = {name for name in foreign if name not in STAND_INS}
    if harmful := sorted(name for name in names - HARMLESS if name.startswith("builtins.")):
        raise pickle.UnpicklingError(f"it names {harmful[0]}")
    if names:
        try:
            return _load_torch(path, names, UnreadMapping)
        except (pickle.UnpicklingError, TypeError, ValueError):
            pass  # a state that is no dictionary: objects that take any
    return _load_torch(path, names, Unread)


def _load_torch(path: Path, names: set[str], kind: type) -> Any:
    """Load with a stand-in of ``kind`` for each name; it bears the name, for torch's errors."""
    foreign = [(type(name, (kind,), {}), name) for name in names]
    known = [(stand_in, name) for name, stand_in in STAND_INS.items()]
    with torch.serialization.safe_globals([*known, *foreign]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _build_array(raw: Any, dtype: PickledDtype, shape: tuple, order: str) -> np.ndarray:
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    if not isinstance(raw, bytes | bytearray):  # bytes(n) would be n of them
        raise pickle.UnpicklingError(f"the content of an array is {type(raw).__name__}, not bytes")
    return np.frombuffer(raw, dtype.dtype).reshape(shape, order=order)


def _as_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value.detach()
    array = value.array if isinstance(value, PickledArray) else None
    if array is None:
        return None
    return torch.from_numpy(
        array.astype(array.dtype.newbyteorder("="), order="C")
    )  # a copy that may be written
