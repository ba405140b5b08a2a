"""Write the pictogram world to disk: images, COCO JSON, the published few-shot layout, and the crop collections.

The folder is named after a hash of what decides its content. Its parts are built when they are first needed, each
under its own file lock, and a part is complete only when its `done.json` exists, which is written last.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from filelock import FileLock

from risf_core.data.coco import load_coco, write_json
from risf_core.data.dataset import suggest
from risf_core.data.few_shot import draw_few_shot, write_few_shot
from risf_core.data.pictograms import CONCEPTS, EXTRA_CONCEPTS, SPLITS, Photo, render_photo, render_scene
from risf_core.data.scene_files import CocoFile, save_png
from risf_core.data.shots import ARMS, base_classes, write_shots
from risf_core.errors import DataError
from risf_core.params import PictogramData
from risf_core.progress import progress
from risf_core.runs.yaml_files import project_path

logger = logging.getLogger(__name__)

WORLD_VERSION = 2  # raise it whenever the same parameters give other images or files
PHOTO_SIZE = 64  # side of the crops and of the captioned photos, pixels
PART_KEYS = {
    "trainval": 1,
    "test": 2,
    "classification": 3,
    "corpus": 4,
    "few_shot": 5,
}  # second number of image keys
TEST_IMAGE_IDS = 1_000_000  # ids of test images start above; those of K-shot images above 2,000,000
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


def world_hash(data: PictogramData) -> str:
    """Eight hex digits over WORLD_VERSION and every parameter that changes what is written."""
    content = {"version": WORLD_VERSION, **data.model_dump(mode="json")}
    # where it lies and which parts are used: the files stay the same
    for name in (
        "source",
        "root",
        "few_shot_splits",
    ):
        content.pop(name)
    content["shots"] = sorted(set(content["shots"]))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def build_world(data: PictogramData) -> "World":
    """Name the world of these parameters; nothing is rendered before a part of it is asked for."""
    return World(project_path(data.root) / f"pictograms-{world_hash(data)}", data)


@dataclass(frozen=True)
class World:
    """A pictogram world under `root`. Image paths in its JSON files are relative to `root`."""

    root: Path
    data: PictogramData

    def part(self, name: str) -> Path:
        """Build a part if it is not there yet and return its folder.

        Args:
            name: "trainval", "test", "classification", "corpus", "few_shot/split1" (2, 3: shots of the novel classes)
                or "few_shot/split1/base" (2, 3: shots of the base classes, drawn from trainval).

        Raises:
            DataError: If there is no such part.
            SplitError: If trainval has too few boxes of a base class for the shots.
        """
        builders = _builders()
        if name not in builders:
            raise DataError(f"{self.root}: the world has no part {name!r}. {suggest(name, tuple(builders))}")
        folder = self.root / name
        done = folder / "done.json"
        if done.exists():
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / f"{name.replace('/', '_')}.lock"):
            if not done.exists():
                logger.info("rendering the pictogram world, part %s, into %s", name, folder)
                write_json(done, {"part": name, **builders[name](self, name, folder)})
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

    def few_shot_root(self, split: int, arm: str, *, with_base: bool = False) -> Path:
        """Folder of one arm ("kshot", "missing", "full") in the published layout; its images are under `root`.

        Args:
            split: 1, 2 or 3.
            arm: One of ARMS.
            with_base: Have the shots of the base classes there too, the same for all arms.
        """
        if arm not in ARMS:
            raise DataError(f"{self.root}: there is no arm {arm!r}. {suggest(arm, ARMS)}")
        folder = self.part(f"few_shot/split{split}")
        if with_base:
            self.part(f"few_shot/split{split}/base")
        return folder / arm

    def classification(self) -> tuple[np.ndarray, np.ndarray]:
        """Crops of the 50 extra concepts, for pretraining.

        Returns:
            Images, uint8 [N, 64, 64, 3], memory-mapped; labels, int64 [N], index in EXTRA_CONCEPTS.
        """
        folder = self.part("classification")
        return np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "labels.npy")

    def corpus(self) -> tuple[np.ndarray, list[str], np.ndarray]:
        """Captioned photos of all 70 concepts, without the designs that only the test may show.

        Returns:
            Images, uint8 [N, 64, 64, 3], memory-mapped; captions; concepts, int64 [N], index in CONCEPTS, -1 for
            background alone.
        """
        folder = self.part("corpus")
        captions = (folder / "captions.txt").read_text(encoding="utf-8").splitlines()
        return np.load(folder / "images.npy", mmap_mode="r"), captions, np.load(folder / "labels.npy")


def corpus_photo(seed: int, index: int) -> tuple[Photo, str]:
    """Photo and caption number `index` of the corpus of the world with this seed."""
    key = (seed, PART_KEYS["corpus"], index)
    rng = np.random.default_rng([*key, 1])
    concept = None if rng.random() < BACKGROUND_SHARE else CONCEPTS[int(rng.integers(len(CONCEPTS)))]
    photo = render_photo(key, concept, size=PHOTO_SIZE, for_corpus=True)
    return photo, write_caption(rng, photo.concept, photo.color)


def write_caption(rng: np.random.Generator, concept: str | None, color: str | None) -> str:
    """Caption a photo: one of seven templates, sometimes with the colour word, sometimes "on background"."""
    template = CAPTIONS[int(rng.integers(len(CAPTIONS)))]
    if concept is None:
        return template.format("background")
    thing = f"{color} {concept}" if rng.random() < COLOR_SHARE else concept
    return template.format(thing) + (" on background" if rng.random() < ON_BACKGROUND_SHARE else "")


@cache
def _builders():
    """Part name to the function that writes the part and returns a summary of it."""
    builders = {"trainval": _scenes, "test": _scenes, "classification": _classification, "corpus": _corpus}
    for split in SPLITS:
        builders |= {f"few_shot/split{split}": _novel_shots, f"few_shot/split{split}/base": _base_shots}
    return builders


def _scenes(world: World, name: str, folder: Path) -> dict[str, int]:
    data = world.data
    count, first = (
        (data.num_base_images, 1) if name == "trainval" else (data.num_test_images, TEST_IMAGE_IDS + 1)
    )
    coco = CocoFile()
    for index in progress(range(count), desc=f"rendering {name}", unit="scenes"):
        scene = render_scene((data.seed, PART_KEYS[name], index), size=data.image_size)
        file_name = f"{name}/{index + 1:06d}.png"
        save_png(world.root / file_name, scene.image)
        coco.add(first + index, file_name, scene, scene.objects)
    coco.write(world.root / "annotations" / f"{name}.json")
    return {"images": count, "objects": len(coco.annotations)}


def _photo_file(path: Path, count: int) -> np.memmap:
    return np.lib.format.open_memmap(path, "w+", np.uint8, (count, PHOTO_SIZE, PHOTO_SIZE, 3))


def _classification(world: World, name: str, folder: Path) -> dict[str, int]:
    count = world.data.num_classification
    images = _photo_file(folder / "images.npy", count)
    labels = np.arange(count, dtype=np.int64) % len(EXTRA_CONCEPTS)
    for index in progress(range(count), desc="rendering crops of the extra concepts", unit="crops"):
        key = (world.data.seed, PART_KEYS[name], index)
        images[index] = render_photo(key, EXTRA_CONCEPTS[labels[index]], size=PHOTO_SIZE).image
    images.flush()
    np.save(folder / "labels.npy", labels)
    return {"images": count}


def _corpus(world: World, name: str, folder: Path) -> dict[str, int]:
    count = world.data.num_corpus
    images = _photo_file(folder / "images.npy", count)
    labels, captions = np.full(count, -1, np.int64), []
    for index in progress(range(count), desc="rendering captioned photos", unit="photos"):
        photo, caption = corpus_photo(world.data.seed, index)
        images[index] = photo.image
        if photo.concept is not None:
            labels[index] = CONCEPTS.index(photo.concept)
        captions.append(caption)
    images.flush()
    np.save(folder / "labels.npy", labels)
    (folder / "captions.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
    return {"images": count}


def _novel_shots(world: World, name: str, folder: Path) -> dict[str, int]:
    data = world.data
    count = write_shots(
        world.root,
        split=int(folder.name.removeprefix("split")),
        num_seeds=data.few_shot_seeds,
        shots=data.shots,
        world_seed=data.seed,
        extra_novel=data.extra_novel,
        size=data.image_size,
        key=PART_KEYS["few_shot"],
    )
    return {"images": count}


def _base_shots(world: World, name: str, folder: Path) -> dict[str, int]:
    trainval = load_coco(world.trainval_annotations, world.root)
    names = base_classes(int(folder.parent.name.removeprefix("split")))
    files = 0
    for seed in progress(
        range(world.data.few_shot_seeds), desc="drawing shots of the base classes", unit="seeds"
    ):
        draws = draw_few_shot(trainval, names, shots=world.data.shots, seed=seed)
        for arm in ARMS:
            files += len(
                write_few_shot(folder.parent / arm, trainval, draws, seed=seed, images_dir=world.root)
            )
    return {"files": files}
