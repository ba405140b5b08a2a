"""Arrays on disk that survive a kill: what was computed once is not computed again."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from risf_core.errors import DataError

logger = logging.getLogger(__name__)

SHAPE, CRC = (
    struct.Struct("<III"),
    struct.Struct("<I"),
)  # number, rows, columns; CRC-32 of these and the values
SYNC_SECONDS = 5.0  # a power cut costs no more than this; a kill costs only what is being computed


class Journal:
    """Numbered float32 tables in a file that is only appended to.

    Each stands in the file as soon as `add` returns. One that a kill has torn is cut off when the file is opened again.

    Args:
        folder: Where the file lies. Its name is the key, so that other work neither is mistaken for this nor lost.
        key: A hash of all that the tables depend on.

    Raises:
        DataError: If another process writes the file, or the folder cannot be written.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.path = Path(folder) / f"{key[:16]}.crops"
        self._head = json.dumps({"format": 1, "key": key}).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            others = [path.name for path in self.path.parent.glob("*.crops") if path != self.path]
            self._file = self.path.open("a+b")
        except OSError as error:
            raise _unwritable(self.path, error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise DataError(f"{self.path}: another process writes it. Wait for it, or end it.") from error
        self._synced = time.monotonic()
        if others and not os.fstat(self._file.fileno()).st_size:
            logger.warning(
                "%s: the crops there (%d files) are of other boxes, images, weights or options; encoding anew",
                self.path.parent,
                len(others),
            )

    def stored(self) -> Iterator[tuple[int, np.ndarray]]:
        """Number and values of each whole table, to be gone through before any is added; a torn end is cut off."""
        size = os.fstat(self._file.fileno()).st_size
        self._file.seek(0)
        head = self._file.read(len(self._head))
        end = len(head) if head == self._head else 0
        while end and end + SHAPE.size <= size:
            shape = self._file.read(SHAPE.size)
            number, rows, columns = SHAPE.unpack(shape)
            length = SHAPE.size + 4 * rows * columns + CRC.size
            if end + length > size:
                break
            values, crc = self._file.read(4 * rows * columns), self._file.read(CRC.size)
            if CRC.pack(zlib.crc32(shape + values)) != crc:
                break
            yield number, np.frombuffer(values, dtype="<f4").reshape(rows, columns)
            end += length
        self._file.truncate(end)
        if not end:
            self._file.write(self._head)
            self._file.flush()

    def add(self, number: int, table: np.ndarray) -> None:
        """Append a table [rows, columns]."""
        record = SHAPE.pack(number, *table.shape) + np.ascontiguousarray(table, dtype="<f4").tobytes()
        try:
            self._file.write(record + CRC.pack(zlib.crc32(record)))
            self._file.flush()  # with the system now: a kill of this process does not take it back
        except OSError as error:
            raise _unwritable(self.path, error) from error
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self._sync()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_) -> None:
        self._sync()
        self._file.close()


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path}: cannot be written ({error.strerror or error}). Give a folder that you may write to, with space left; "
        "what is stored already stays."
    )


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of a model's structure and weights."""
    digest = hashlib.sha256(
        repr(model).encode()
    )  # the same weights with another activation are another model
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
