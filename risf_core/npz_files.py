"""A look into an ``.npz`` file of others before NumPy reads it: plain arrays alone, no larger than the file."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

from numpy.lib import format as npy

from risf_core.errors import DataError

HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def check_npz(path: Path) -> None:
    """Refuse a file whose arrays are compressed, hold Python objects, or claim another size than they have.

    `Detections.save` and `Similarities.save` write neither; so no array that is read takes more memory than its file.

    Raises:
        DataError: If it is such a file, or none of NumPy's.
    """
    try:
        with zipfile.ZipFile(path) as file:
            for info in file.infolist():
                if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1:
                    raise DataError(
                        f"{path}: the array {info.filename!r} is compressed. Expected plain arrays."
                    )
                _check_array(path, file, info)
    except (zipfile.BadZipFile, OSError, ValueError, SyntaxError, EOFError) as error:
        raise DataError(f"{path}: not a readable .npz file ({error}).") from None


def _check_array(path: Path, file: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    with file.open(info) as member:
        version = npy.read_magic(member)
        if version not in HEADERS:
            raise DataError(f"{path}: the array {info.filename!r} is of an unknown version {version}.")
        shape, _, dtype = HEADERS[version](member)
        begins = member.tell()
    if dtype.hasobject:
        raise DataError(
            f"{path}: the array {info.filename!r} holds Python objects, whose reading can run code. Expected numbers."
        )
    if any(side < 0 for side in shape) or begins + math.prod(shape) * dtype.itemsize != info.file_size:
        raise DataError(
            f"{path}: the array {info.filename!r} claims the shape {shape}, which its size does not hold."
        )
