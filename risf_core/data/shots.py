"""The K-shot images of the pictogram world and their files, in the published few-shot layout.

One image holds one shot, an annotated novel object. It is rendered twice: with the shot as its only novel object (arm
`kshot`), and with further novel objects drawn in, which stand unannotated (arm `missing`) or annotated (arm `full`: a
control, not K-shot). Shot i of a class is the same image for every K > i, so the draws are nested.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from risf_core.data.few_shot import few_shot_file
from risf_core.data.pictograms import CLASSES, SPLITS, Scene, render_shot
from risf_core.data.scene_files import CocoFile, save_png
from risf_core.progress import progress

ARMS = ("kshot", "missing", "full")
FEW_SHOT_IMAGE_IDS = 2_000_000  # split s has the ids from s times this on
_CROWDED_IDS = 1_000_000  # added to the id of the image without further novel objects


@dataclass(frozen=True)
class ShotImage:
    """One rendered shot image of a class: its two versions and their file names, relative to the world's root."""

    concept: str
    image_id: int
    alone: Scene
    crowded: Scene
    alone_file: str
    crowded_file: str


def base_classes(split: int) -> tuple[str, ...]:
    """The 15 base classes of a split, in the order of CLASSES."""
    return tuple(name for name in CLASSES if name not in SPLITS[split])


def render_shots(
    world_seed: int, *, split: int, seed: int, count: int, extra_novel: int, size: int, key: int
) -> Iterator[ShotImage]:
    """Render the first `count` shot images of each novel class of a split, for one few-shot seed.

    Args:
        world_seed: Seed of the world.
        split: 1, 2 or 3.
        seed: Few-shot seed.
        count: Images of each class.
        extra_novel: Further novel objects in the crowded version; any novel class, the shot's own included.
        size: Side of the images in pixels.
        key: Number of this part of the world in the keys of its images.

    Yields:
        ShotImage, class by class.
    """
    novel, base = SPLITS[split], base_classes(split)
    for position, concept in enumerate(novel):
        for index in range(count):
            image_key = (world_seed, key, split, seed, position, index)
            extra = np.random.default_rng([*image_key, 2**31]).choice(novel, extra_novel)
            alone, crowded = render_shot(
                image_key, concept, base_names=base, extra_names=[str(name) for name in extra], size=size
            )
            name = f"seed{seed}_{concept}_{index:02d}.png"
            yield ShotImage(
                concept,
                FEW_SHOT_IMAGE_IDS * split + (seed * len(novel) + position) * count + index + 1,
                alone,
                crowded,
                f"few_shot/split{split}/images_kshot/{name}",
                f"few_shot/split{split}/images_extra/{name}",
            )


def write_shots(
    world_root: Path,
    *,
    split: int,
    num_seeds: int,
    shots: Sequence[int],
    **rendering: int,
) -> int:
    """Render the shot images of a split and write them with the annotation files of the three arms.

    Args:
        world_root: Root of the world, which all file names start from.
        split: 1, 2 or 3.
        num_seeds: Few-shot seeds 0 to this less one.
        shots: The values of K.
        rendering: `world_seed`, `extra_novel`, `size` and `key` of `render_shots`.

    Returns:
        Number of images written.
    """
    folder = world_root / "few_shot" / f"split{split}"
    for sub in ("images_kshot", "images_extra"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    written = 0
    for seed in progress(range(num_seeds), desc=f"rendering the shots of split {split}", unit="seeds"):
        images = list(render_shots(split=split, seed=seed, count=max(shots), **rendering))
        for image in images:
            save_png(world_root / image.alone_file, image.alone.image)
            save_png(world_root / image.crowded_file, image.crowded.image)
        for arm in ARMS:
            for count in shots:
                _write_arm(folder / arm, images, arm=arm, split=split, seed=seed, shots=count)
        written += 2 * len(images)
    return written


def _write_arm(
    root: Path, images: Sequence[ShotImage], *, arm: str, split: int, seed: int, shots: int
) -> None:
    """Write one file for each novel class: its shots, and in `full` all its objects in the images of this K."""
    of_class = {name: [image for image in images if image.concept == name][:shots] for name in SPLITS[split]}
    used = [image for group in of_class.values() for image in group]
    for name in SPLITS[split]:
        coco = CocoFile()
        for image in used if arm == "full" else of_class[name]:
            scene = image.alone if arm == "kshot" else image.crowded
            file_name = image.alone_file if arm == "kshot" else image.crowded_file
            objects = (
                [item for item in scene.objects if item.concept == name]
                if arm == "full"
                else scene.objects[:1]
            )
            if objects:
                coco.add(image.image_id + (0 if arm == "kshot" else _CROWDED_IDS), file_name, scene, objects)
        coco.write(few_shot_file(root, name, shots=shots, seed=seed))
