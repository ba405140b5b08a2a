"""Write the pictogram world to disk: images, COCO JSON, the published few-shot layout, and the crop collections.

The folder is named after a hash of what decides its content. Its parts are built when they are first needed, each
under its own file lock, and a part is complete only when its `done.json` exists, which is written last.
"""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from PIL import Image

from risf_core.data.glyphs import DESIGNS, TEST_ONLY_DESIGNS, corpus_designs
from risf_core.data.pictograms import (
    CLASSES,
    CONCEPTS,
    EXTRA_CONCEPTS,
    SPLITS,
    Scene,
    SceneObject,
    render_photo,
    render_scene,
    render_shot,
)
from risf_core.errors import DataError

if TYPE_CHECKING:
    from risf_core.params import PictogramData

log = logging.getLogger(__name__)

WORLD_VERSION = 1  # raise it whenever the same parameters give other images or files
PHOTO_SIZE = 64
PART_KEYS = {"trainval": 1, "test": 2, "classification": 3, "corpus": 4, "few_shot": 5}  # second entry of an image's key
TEST_IMAGE_IDS, FEW_SHOT_IMAGE_IDS = 1_000_000, 2_000_000  # where the image ids of these parts start
BACKGROUND_SHARE, COLOR_SHARE, ON_BACKGROUND_SHARE = 0.05, 0.35, 0.2  # of the corpus captions
CAPTIONS = (
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "a small photo of {}",
    "a drawing of {}",
    "a close photo of {}",
    "{}",
)


def world_hash(data: "PictogramData") -> str:
    """Eight hex digits over every parameter that changes what is written."""
    content = {
        "version": WORLD_VERSION,
        "image_size": data.image_size,
        "num_base_images": data.num_base_images,
        "num_test_images": data.num_test_images,
        "num_classification": data.num_classification,
        "num_corpus": data.num_corpus,
        "extra_novel": data.extra_novel,
        "few_shot_seeds": data.few_shot_seeds,
        "shots": sorted(data.shots),
        "seed": data.seed,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def build_world(data: "PictogramData") -> "World":
    """Name the world of these parameters; nothing is rendered before a part is asked for."""
    return World(root=Path(data.root) / f"pictograms-{world_hash(data)}", data=data)


@dataclass(frozen=True)
class World:
    """A pictogram world under `root`. Image paths in its JSON files are relative to `root`."""

    root: Path
    data: "PictogramData"

    def part(self, name: str) -> Path:
        """Build a part if it is not there yet and return its folder.

        Args:
            name: "trainval", "test", "classification", "corpus" or "few_shot/split1" (2, 3).
        """
        builders = {
            "trainval": self._build_scenes,
            "test": self._build_scenes,
            "classification": self._build_classification,
            "corpus": self._build_corpus,
        }
        builders |= {f"few_shot/split{split}": self._build_few_shot for split in SPLITS}
        if name not in builders:
            raise DataError(f"{self.root}: the pictogram world has no part {name!r}; its parts are {', '.join(builders)}.")
        folder = self.root / name
        done = folder / "done.json"
        if done.exists():
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / f"{name.replace('/', '_')}.lock"):
            if not done.exists():
                log.info("Rendering the pictogram world, part %s, into %s", name, folder)
                summary = builders[name](name, folder)
                _write_json(done, {"part": name, **summary})
        return folder

    @property
    def trainval_annotations(self) -> Path:
        """COCO JSON of the scenes for base training, with the boxes of all 20 classes."""
        self.part("trainval")
        return self.root / "annotations" / "trainval.json"

    @property
    def test_annotations(self) -> Path:
        """COCO JSON of the test scenes, with the boxes of all 20 classes."""
        self.part("test")
        return self.root / "annotations" / "test.json"

    def few_shot_root(self, split: int, arm: str) -> Path:
        """The folder of one arm ("kshot", "missing" or "full"), in the published layout; its images are under `root`."""
        return self.part(f"few_shot/split{split}") / arm

    def classification(self) -> tuple[np.ndarray, np.ndarray]:
        """Crops of the 50 extra concepts: uint8 [N, 64, 64, 3] (memory-mapped) and int64 [N], index in EXTRA_CONCEPTS."""
        folder = self.part("classification")
        return np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "labels.npy")

    def corpus(self) -> tuple[np.ndarray, list[str], np.ndarray]:
        """Captioned photos: uint8 [N, 64, 64, 3] (memory-mapped), captions, int64 [N] index in CONCEPTS or -1 (background)."""
        folder = self.part("corpus")
        captions = (folder / "captions.txt").read_text().splitlines()
        return np.load(folder / "images.npy", mmap_mode="r"), captions, np.load(folder / "labels.npy")

    def _build_scenes(self, name: str, folder: Path) -> dict[str, int]:
        count = self.data.num_base_images if name == "trainval" else self.data.num_test_images
        first = 1 if name == "trainval" else TEST_IMAGE_IDS + 1
        coco = CocoFile()
        for index in _progress(range(count), f"scenes of {name}"):
            scene = render_scene((self.data.seed, PART_KEYS[name], index), size=self.data.image_size)
            file_name = f"{name}/{index + 1:06d}.png"
            save_png(self.root / file_name, scene.image)
            coco.add(first + index, file_name, scene, scene.objects)
        coco.write(self.root / "annotations" / f"{name}.json")
        return {"images": count, "objects": len(coco.annotations)}

    def _build_classification(self, name: str, folder: Path) -> dict[str, int]:
        count = self.data.num_classification
        images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (count, PHOTO_SIZE, PHOTO_SIZE, 3))
        labels = np.arange(count, dtype=np.int64) % len(EXTRA_CONCEPTS)
        for index in _progress(range(count), "crops of the extra concepts"):
            key = (self.data.seed, PART_KEYS[name], index)
            images[index] = render_photo(key, EXTRA_CONCEPTS[labels[index]], size=PHOTO_SIZE).image
        images.flush()
        np.save(folder / "labels.npy", labels)
        return {"images": count}

    def _build_corpus(self, name: str, folder: Path) -> dict[str, int]:
        count = self.data.num_corpus
        images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (count, PHOTO_SIZE, PHOTO_SIZE, 3))
        labels, captions = np.empty(count, np.int64), []
        for index in _progress(range(count), "captioned photos"):
            key = (self.data.seed, PART_KEYS[name], index)
            rng = np.random.default_rng([*key, 1])
            labels[index] = -1 if rng.random() < BACKGROUND_SHARE else rng.integers(len(CONCEPTS))
            concept = None if labels[index] < 0 else CONCEPTS[labels[index]]
            photo = render_photo(key, concept, size=PHOTO_SIZE, corpus_only=True)
            images[index] = photo.image
            captions.append(write_caption(rng, photo.concept, photo.color))
        images.flush()
        np.save(folder / "labels.npy", labels)
        (folder / "captions.txt").write_text("\n".join(captions) + "\n")
        return {"images": count}

    def _build_few_shot(self, name: str, folder: Path) -> dict[str, int]:
        raise NotImplementedError


def write_caption(rng: np.random.Generator, concept: str | None, color: str | None) -> str:
    """Caption a photo: one of seven templates, sometimes with the colour word, sometimes "on background"."""
    template = CAPTIONS[int(rng.integers(len(CAPTIONS)))]
    if concept is None:
        return template.format("background")
    thing = f"{color} {concept}" if rng.random() < COLOR_SHARE else concept
    return template.format(thing) + (" on background" if rng.random() < ON_BACKGROUND_SHARE else "")


class CocoFile:
    """Images and annotations on their way into one COCO JSON file."""

    def __init__(self) -> None:
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, image_id: int, file_name: str, scene: Scene, objects: Iterable[SceneObject]) -> None:
        """Add an image and those of its objects that are annotated."""
        height, width = scene.image.shape[:2]
        self.images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        for item in objects:
            x1, y1, x2, y2 = item.box
            self.annotations.append(
                {
                    "id": image_id * 100 + scene.objects.index(item),
                    "image_id": image_id,
                    "category_id": CLASSES.index(item.concept) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "visible": round(item.visible, 4),
                    "design": item.design,
                }
            )

    def write(self, path: Path) -> None:
        """Write the file with all 20 categories, in one atomic step."""
        categories = [{"id": index + 1, "name": name} for index, name in enumerate(CLASSES)]
        _write_json(path, {"images": self.images, "annotations": self.annotations, "categories": categories})


def save_png(path: Path, image: np.ndarray) -> None:
    """Save uint8 [H, W, 3]; lightly compressed, for the noise in the images does not compress anyway."""
    Image.fromarray(image).save(path, compress_level=1)


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("w") as stream:
        json.dump(content, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)


def _progress(items: Sequence[int], what: str) -> Iterable[int]:
    return items
