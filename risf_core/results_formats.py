"""Results files of any detector: COCO's JSON list and VOC's text files, read with care and written back alike.

What is not re-scored is written back as it stood, byte by byte, in its place; a re-scored entry keeps all its other
keys.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from risf_core.class_lists import ClassList as ClassList
from risf_core.class_lists import read_class_list as read_class_list
from risf_core.class_lists import read_text
from risf_core.data.dataset import suggest
from risf_core.errors import DataError

SHOWN = 5  # problems in the message of an error; all of them are its `problems`
BLANK = re.compile(r"[ \t\r\n]*")
VOC_SCORE = re.compile(r"(\s*\S+\s+)\S+")  # the second word
VOC_NAME = re.compile(r"comp\d+_det_[^_]+_(.+)")  # comp4_det_test_aeroplane.txt


@dataclass(frozen=True, eq=False)
class Results:
    """Detections of a results file, in its order.

    Attributes:
        where: The file or folder.
        image_keys: The different image ids, as they stand there, each once: int or (in VOC's form always) str.
        images: int64 [N], position in `image_keys`.
        labels: int64 [N], position in the class list.
        boxes: float64 [N, 4], corners x1, y1, x2, y2 in pixels, the first pixel from 0 to 1.
        scores: float64 [N], in [0, 1].
    """

    where: Path
    image_keys: tuple[int | str, ...]
    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def write(self, path: Path, scores: np.ndarray) -> None:
        """Write the same file (or files) with other scores [N]; entries whose score stays are not touched."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class CocoResults(Results):
    """A JSON list of ``{"image_id", "category_id", "bbox": [x, y, width, height], "score", ...}``.

    Attributes:
        text: The whole file.
        spans: int64 [N, 2], where each entry starts and ends in it.
    """

    text: str
    spans: np.ndarray

    def write(self, path: Path, scores: np.ndarray) -> None:
        with _replacing(path) as file:
            done = 0
            for row in np.flatnonzero(scores != self.scores).tolist():
                start, end = self.spans[row].tolist()
                entry = json.loads(self.text[start:end]) | {"score": float(scores[row])}
                file.write(self.text[done:start])
                file.write(json.dumps(entry, ensure_ascii=False))
                done = end
            file.write(self.text[done:])


@dataclass(frozen=True, eq=False)
class VocResults(Results):
    """A text file for each class, with lines ``image score x1 y1 x2 y2``; the first pixel is 1, the last belongs to it.

    Attributes:
        lines: All lines of each file, by its name, with their ends.
        rows: For each file and line the row of `scores` that it holds; -1 for an empty line.
    """

    lines: dict[str, list[str]]
    rows: dict[str, np.ndarray]

    def write(self, path: Path, scores: np.ndarray) -> None:
        for name, lines in self.lines.items():
            with _replacing(Path(path) / name) as file:
                for line, row in zip(lines, self.rows[name].tolist()):
                    if row >= 0 and scores[row] != self.scores[row]:
                        match = VOC_SCORE.match(line)
                        line = f"{match[1]}{scores[row]:.6f}{line[match.end() :]}"
                    file.write(line)


class _Problems:
    """What is wrong with the entries: collected, then raised as one error."""

    def __init__(self, where: Path) -> None:
        self.where, self.lines = where, []

    def add(self, entry: str, what: str) -> None:
        self.lines.append(f"{entry}: {what}")

    def raise_if_any(self) -> None:
        if self.lines:
            more = f"\n{len(self.lines)} problems in total." if len(self.lines) > SHOWN else ""
            raise DataError(
                f"{self.where}: " + "\n  ".join(self.lines[:SHOWN]) + more, problems=tuple(self.lines)
            )


def read_results(paths: Sequence[str | Path], classes: ClassList) -> Results:
    """Read a results file of COCO's form, or VOC's text files (given one by one, or their folder).

    Raises:
        DataError: If a file is unreadable or an entry is wrong; the error's `problems` are all findings.
    """
    files = [Path(path) for path in paths]
    if len(files) == 1 and files[0].is_dir():
        where, files = files[0], sorted(files[0].glob("*.txt"))
        if not files:
            raise DataError(
                f"{where}: there is no .txt file in the folder. Expected VOC's, one for each class."
            )
        return _read_voc(where, files, classes)
    if all(path.suffix.lower() == ".txt" for path in files):
        return _read_voc(files[0].parent, files, classes)
    if len(files) != 1:
        raise DataError(f"{files[0]}: {len(files)} files given. Expected one JSON file, or VOC's .txt files.")
    return _read_coco(files[0], classes)


def _read_coco(path: Path, classes: ClassList) -> CocoResults:
    text, problems = read_text(path), _Problems(path)
    label_of = {category_id: label for label, category_id in enumerate(classes.ids)}
    spans, values, keys = array("q"), array("d"), {}
    for number, (entry, start, end) in enumerate(_entries(text, path)):
        found = _coco_values(entry, label_of)
        if isinstance(found, str):
            problems.add(f"entry {number}", found)
            continue
        image_id, *rest = found
        spans.extend((start, end))
        values.extend((keys.setdefault(image_id, len(keys)), *rest))
    problems.raise_if_any()
    table = np.frombuffer(values, dtype=np.float64).reshape(-1, 7)
    boxes = np.concatenate([table[:, 2:4], table[:, 2:4] + table[:, 4:6]], axis=1)
    columns = tuple(keys), table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), boxes, table[:, 6]
    return CocoResults(path, *columns, text, np.frombuffer(spans, dtype=np.int64).reshape(-1, 2))


def _entries(text: str, path: Path) -> Iterator[tuple[object, int, int]]:
    """The elements of a JSON list, one by one, with where each starts and ends: the list itself is never in memory."""
    decode, skip = json.JSONDecoder().raw_decode, lambda at: BLANK.match(text, at).end()
    at = skip(0)
    if text[at : at + 1] != "[":
        raise DataError(
            f"{path}: not a list. Expected COCO's results, "
            '[{"image_id": 139, "category_id": 1, "bbox": [x, y, width, height], "score": 0.9}, ...].'
        )
    at = skip(at + 1)
    is_first = True
    while text[at : at + 1] != "]" or not is_first:
        try:
            entry, end = decode(text, at)
        except json.JSONDecodeError as error:
            raise _broken(path, text, error.pos, f"{error.msg}. Is it cut short?") from error
        except RecursionError as error:
            raise _broken(path, text, at, "an entry is nested too deep.") from error
        except ValueError as error:
            raise _broken(path, text, at, "the entry has a whole number of thousands of digits.") from error
        yield entry, at, end
        is_first, at = False, skip(end)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            raise _broken(path, text, at, "expected , or ]. Is it cut short?")
        at = skip(at + 1)
    if text[at + 1 :].strip():
        raise DataError(f"{path}: there is text after the list. Expected one JSON list.")


def _broken(path: Path, text: str, at: int, what: str) -> DataError:
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    return DataError(f"{path}: broken JSON at line {line}, column {column}: {what}")


def _coco_values(entry: object, label_of: dict[int, int]) -> tuple | str:
    """Image id, label, x, y, width, height and score of an entry, or what is wrong with it."""
    try:
        image_id, category_id, bbox, score = (
            entry[key] for key in ("image_id", "category_id", "bbox", "score")
        )
    except KeyError as error:
        return f"has no {error}. Expected image_id, category_id, bbox and score."
    except TypeError:
        return f"is {_short(entry)}. Expected an object with image_id, category_id, bbox and score."
    if type(image_id) not in (int, str):
        return f"image_id is {_short(image_id)}. Expected a whole number or a text."
    if type(category_id) is not int or category_id not in label_of:
        known = list(label_of)
        return (
            f"category_id {_short(category_id)} of image {_short(image_id)} is none of the classes' {len(known)} ids "
            f"({min(known)} to {max(known)}). Give --classes a file with `id name` lines or COCO's categories, or "
            "--first-id 0 where ids count from 0."
        )
    if type(bbox) is not list or len(bbox) != 4 or any(type(value) not in (int, float) for value in bbox):
        return (
            f"bbox of image {_short(image_id)} is {_short(bbox)}. Expected [x, y, width, height] in pixels."
        )
    if wrong := _wrong_numbers(image_id, bbox, bbox[2:], score):
        return wrong
    return image_id, label_of[category_id], *bbox, score


def _wrong_numbers(image: int | str, box: list, sides: list, score: object) -> str | None:
    """What is wrong with a box or a score, if anything."""
    image = _short(image)
    if not all(-1e9 < value < 1e9 for value in box):
        return f"box {_short(box)} of image {image} is not finite. Expected pixels."
    if min(sides) < 0:
        return f"box {_short(box)} of image {image} has a negative width or height. Expected 0 or more."
    if type(score) not in (int, float):
        return f"score of image {image} is {_short(score)}. Expected a number from 0 to 1."
    if not 0 <= score <= 1:
        return (
            f"score of image {image} is {_short(score)}. Expected 0 to 1: CM-CLIP blends it with a probability. Put "
            "logits through a sigmoid (or softmax), divide percentages by 100, drop detections without a score."
        )
    return None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _read_voc(where: Path, files: Sequence[Path], classes: ClassList) -> VocResults:
    problems, keys, values = _Problems(where), {}, []
    lines, rows = {}, {}
    names = [path.name for path in files]
    if len(set(names)) != len(names):
        raise DataError(f"{where}: two of the files have one name. Expected the files of one folder.")
    for path in files:
        label = classes.names.index(voc_class(path, classes.names))
        lines[path.name] = read_text(path).splitlines(keepends=True)
        rows[path.name] = np.full(len(lines[path.name]), -1, dtype=np.int64)
        for number, line in enumerate(lines[path.name]):
            if not line.strip():
                continue
            found = _voc_values(line)
            if isinstance(found, str):
                problems.add(f"{path.name}, line {number + 1}", found)
                continue
            image, score, x1, y1, x2, y2 = found
            rows[path.name][number] = len(values)
            values.append((keys.setdefault(image, len(keys)), label, x1 - 1, y1 - 1, x2, y2, score))
    problems.raise_if_any()
    table = np.array(values, dtype=np.float64).reshape(-1, 7)
    columns = table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2:6], table[:, 6]
    return VocResults(where, tuple(keys), *columns, lines, rows)


def voc_class(path: Path, names: Sequence[str] | None = None) -> str:
    """The class that the name of a VOC results file ends with: ``comp4_det_test_aeroplane.txt``.

    Args:
        names: The known classes; None takes whatever stands there.

    Raises:
        DataError: If the name ends with none of them.
    """
    if names is None:
        match = VOC_NAME.fullmatch(path.stem)
        return match[1] if match else path.stem.rpartition("_")[2]
    ends = [name for name in names if path.stem == name or path.stem.endswith(f"_{name}")]
    if not ends:
        raise DataError(
            f"{path}: its name ends with none of the {len(names)} classes. Expected one file for each, such as "
            f"comp4_det_test_aeroplane.txt. {suggest(voc_class(path), names)}"
        )
    return max(ends, key=len)


def _voc_values(line: str) -> tuple | str:
    """Image, score and the four numbers of a line, or what is wrong with it."""
    try:
        image, *words = line.split()
        score, *box = map(float, words)
        x1, y1, x2, y2 = box
    except ValueError:
        return f"{_short(line.strip())}. Expected `image score x1 y1 x2 y2`."
    return _wrong_numbers(image, box, [x2 - x1 + 1, y2 - y1 + 1], score) or (image, score, *box)


class _replacing:  # noqa: N801  a context manager
    """A text file to write that takes the place of `path` when it is whole."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")

    def __enter__(self):
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # what UTF-8 cannot hold is half a surrogate pair, which JSON writes in this way
            self.file = self.temporary.open("w", encoding="utf-8", newline="", errors="backslashreplace")
        except OSError as error:
            raise self._refused(error) from error
        return self.file

    def __exit__(self, kind, error, _) -> None:
        try:
            self.file.close()
            if kind is None:
                os.replace(self.temporary, self.path)
        except OSError as failure:
            kind, error = OSError, failure
        if kind is not None:
            self.temporary.unlink(missing_ok=True)
        if kind is not None and issubclass(kind, OSError):
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> DataError:
        return DataError(f"{self.path}: cannot be written: {error.strerror}.")
