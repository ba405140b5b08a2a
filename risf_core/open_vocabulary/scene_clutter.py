"""The concepts of the clutter in scenes of the pictogram world, which its annotations leave out.

A scene is a pure function of its key, so the clutter is found by drawing the scene once more up to the last object
(`risf_core.data.pictograms.render_scene`) and noting what found room. The labelled objects drawn on the way must be
those of the annotation file; else the file is of another world, and that is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from risf_core.data.dataset import DetectionData
from risf_core.data.glyphs import CLASSES, EXTRA_CONCEPTS
from risf_core.data.pictograms import OBJECTS_PER_SCENE, _empty_canvas, _side
from risf_core.data.world import PART_KEYS
from risf_core.errors import DataError
from risf_core.progress import progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from risf_core.data.canvas import SceneObject
    from risf_core.data.world import World


def clutter_names(world: World, scenes: DetectionData) -> list[tuple[str, ...]]:
    """The concepts of the clutter in each training scene, about 5 ms a scene.

    Args:
        world: The world of the scenes.
        scenes: Training scenes of it with the boxes of all 20 classes; the number of a scene is its image id less 1.

    Raises:
        DataError: If a scene has other objects than its key gives.
    """
    names = []
    for record in progress(scenes.images, desc="names of the clutter", unit="scenes"):
        key = (world.data.seed, PART_KEYS["trainval"], record.image_id - 1)
        objects, clutter = objects_and_clutter(key, size=world.data.image_size)
        drawn = sorted((scenes.class_names.index(item.concept), *item.box) for item in objects)
        boxes = record.boxes.astype(np.int64).tolist()
        filed = sorted((label, *box) for label, box in zip(record.labels.tolist(), boxes, strict=True))
        if drawn != filed:
            raise DataError(
                f"{scenes.name}: image {record.image_id} does not hold the objects of the world's scene. Expected "
                "training scenes of the world with the boxes of all classes."
            )
        names.append(clutter)
    return names


def objects_and_clutter(key: Sequence[int], *, size: int) -> tuple[tuple[SceneObject, ...], tuple[str, ...]]:
    """The labelled objects of the scene of this key, and the concepts of its clutter in the order of drawing.

    It draws random numbers in the order of `render_scene`; a test holds the two together.
    """
    rng = np.random.default_rng(list(key))
    canvas = _empty_canvas(rng, size)
    count = rng.choice(len(OBJECTS_PER_SCENE), p=OBJECTS_PER_SCENE)
    labelled = [CLASSES[i] for i in rng.integers(0, len(CLASSES), count)]
    clutter = [EXTRA_CONCEPTS[i] for i in rng.integers(0, len(EXTRA_CONCEPTS), rng.integers(0, 3))]
    found = []
    for index in rng.permutation(len(labelled) + len(clutter)):
        if index < len(labelled):
            canvas.place(rng, labelled[index], _side(rng, size), labelled=True)
        elif canvas.place(rng, clutter[index - len(labelled)], _side(rng, size), labelled=False):
            found.append(clutter[index - len(labelled)])
    return canvas.objects(), tuple(found)
