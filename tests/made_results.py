"""Results files as other detectors write them, made from the annotations and a seed: nothing was detected.

``yolo_like``: sigmoid scores, one box under several labels, a tail of low scores. ``detr_like``: a fixed number of
queries an image, the best label of each, no suppression of duplicates. ``python -m tests.made_results`` writes the
files of the smoke profile anew.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from risf_core.data.dataset import DetectionData, ImageRecord

FOLDER = Path(__file__).parents[1] / "params" / "smoke"
SMOKE_FILES = {
    "made_yolo_like.json": ("yolo_like", {}),
    "made_detr_like.json": ("detr_like", {"queries": 20}),
}


def yolo_like(data: DetectionData, *, seed: int = 0, noise: int = 3) -> list[dict]:
    """Each object's box under its own and two other labels, and ``noise`` boxes an image with low scores."""

    def boxes(record: ImageRecord, generator: np.random.Generator) -> list[tuple]:
        found = []
        for label, box in zip(record.labels.tolist(), record.boxes, strict=True):
            others = generator.choice(len(data.class_names), 2, replace=False).tolist()
            moved = _moved(box, generator, 0.06)
            scores = generator.beta(4, 4, 3)  # of separate sigmoids: they need not sum to 1
            found += [(moved, one, score) for one, score in zip([label, *others], scores, strict=True)]
        for _ in range(noise):
            label, score = int(generator.integers(len(data.class_names))), 0.2 * generator.random() ** 3
            found.append((_random_box(record, generator), label, score))
        return found

    return _entries(data, seed, boxes)


def detr_like(data: DetectionData, *, seed: int = 1, queries: int = 300) -> list[dict]:
    """``queries`` boxes an image, each with one label; three of them on each object, and a long tail."""

    def boxes(record: ImageRecord, generator: np.random.Generator) -> list[tuple]:
        found = []
        for label, box in zip(record.labels.tolist(), record.boxes, strict=True):
            for falling in (1.0, 0.5, 0.25):  # duplicates: nothing suppresses them
                right = generator.random() < 0.7
                own = label if right else int(generator.integers(len(data.class_names)))
                found.append((_moved(box, generator, 0.04), own, falling * generator.beta(5, 3)))
        while len(found) < queries:
            label, score = int(generator.integers(len(data.class_names))), 0.1 * generator.random() ** 4
            found.append((_random_box(record, generator), label, score))
        return found[:queries]

    return _entries(data, seed, boxes)


def _entries(data: DetectionData, seed: int, boxes: Callable) -> list[dict]:
    entries = []
    for record in data.images:
        generator = np.random.default_rng([seed, record.image_id])
        for (x1, y1, x2, y2), label, score in boxes(record, generator):
            bbox = [round(float(value), 1) for value in (x1, y1, x2 - x1, y2 - y1)]
            entry = {"image_id": record.image_id, "category_id": data.category_ids[label], "bbox": bbox}
            entries.append(entry | {"score": round(float(score), 4)})
    return entries


def _moved(box: np.ndarray, generator: np.random.Generator, scale: float) -> np.ndarray:
    return box + generator.normal(0, scale, 4) * np.tile(box[2:] - box[:2], 2)


def _random_box(record: ImageRecord, generator: np.random.Generator) -> np.ndarray:
    corner = generator.random(2) * [record.width - 20, record.height - 20]
    return np.concatenate([corner, corner + 10 + 10 * generator.random(2)])


def smoke_contents(test: DetectionData) -> dict[str, str]:
    """The text of each file of the smoke profile, by its name."""
    made = {name: globals()[maker](test, **options) for name, (maker, options) in SMOKE_FILES.items()}
    return {name: _text(entries) for name, entries in made.items()}


def _text(entries: list[dict]) -> str:
    return "[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n"


if __name__ == "__main__":
    import yaml

    from risf_core.data.benchmark import open_benchmark
    from risf_core.params import PictogramData

    shared = yaml.safe_load((FOLDER / "shared.yaml").read_text())
    smoke_test = open_benchmark(PictogramData.model_validate(shared["data"])).test
    for name, content in smoke_contents(smoke_test).items():
        (FOLDER / name).write_text(content)
