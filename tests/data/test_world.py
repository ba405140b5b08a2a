"""The pictogram world on disk: files, ids, few-shot layout in three arms, corpus captions, parts and locks."""

import hashlib
import json
import multiprocessing
import threading
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from risf_core.data import world as world_module
from risf_core.data.canvas import Canvas
from risf_core.data.coco import load_coco
from risf_core.data.few_shot import load_few_shot
from risf_core.data.glyphs import CLASSES, CONCEPTS, DESIGNS, SPLITS, TEST_ONLY_DESIGNS
from risf_core.data.pictograms import render_scene
from risf_core.data.shots import ARMS, base_classes
from risf_core.data.world import World, build_world, corpus_photo, world_hash, write_caption
from risf_core.data.world_summary import class_counts, class_designs, design_overlap, unannotated_novel
from risf_core.errors import DataError
from risf_core.params import PictogramData

SMALL = {
    "image_size": 96, "num_base_images": 60, "num_test_images": 12, "num_classification": 100, "num_corpus": 200,
    "extra_novel": 3, "few_shot_seeds": 2, "shots": (1, 3),
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return build_world(PictogramData(root=str(tmp_path_factory.mktemp("data")), **SMALL))


def content(path):
    return json.loads(path.read_text())


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ------------------------------------------------------------------------------- naming and building


def test_hash_names_what_changes_the_files_and_nothing_else():
    base = PictogramData(**SMALL)
    assert world_hash(base) == world_hash(
        base.model_copy(update={"root": "elsewhere", "few_shot_splits": (1, 2)})
    )
    for change in (
        {"seed": 1},
        {"extra_novel": 4},
        {"num_corpus": 201},
        {"image_size": 97},
        {"shots": (1, 2)},
    ):
        assert world_hash(base) != world_hash(base.model_copy(update=change)), change


def test_hash_follows_the_world_version(monkeypatch):
    before = world_hash(PictogramData())
    monkeypatch.setattr(world_module, "WORLD_VERSION", world_module.WORLD_VERSION + 1)
    assert world_hash(PictogramData()) != before


def test_building_a_world_writes_nothing_before_a_part_is_needed(tmp_path):
    built = build_world(PictogramData(root=str(tmp_path), **SMALL))
    assert not built.root.exists()
    built.part("test")
    assert (built.root / "test" / "done.json").exists() and not (built.root / "trainval").exists()


def test_unknown_part_and_arm_name_the_nearest(world):
    with pytest.raises(DataError, match="no part 'trainvall'.*'trainval'"):
        world.part("trainvall")
    with pytest.raises(DataError, match="no arm 'mising'.*'missing'"):
        world.few_shot_root(1, "mising")


def test_part_without_its_done_file_is_made_again_with_the_same_bytes(tmp_path):
    built = build_world(PictogramData(root=str(tmp_path), **SMALL))
    built.part("test")
    before = digest(built.root)
    (built.root / "test" / "done.json").unlink()
    (built.root / "test" / "000003.png").write_bytes(b"half a file")
    built.part("test")
    assert digest(built.root) == before and len(before) == 12 + 2


def test_finished_part_is_not_rendered_again(world, monkeypatch):
    world.part("test")
    monkeypatch.setattr(world_module, "render_scene", None)
    world.part("test")


def _build_test_part(root):
    build_world(PictogramData(root=root, **SMALL)).part("test")


def test_two_processes_may_need_the_same_part(tmp_path, world):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_build_test_part, args=(str(tmp_path),)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    world.part("test")
    made = digest(next(tmp_path.iterdir()))
    there = {name: value for name, value in digest(world.root).items() if name in made}
    assert made == there, "another process and folder give the same bytes"


def test_part_that_two_need_at_once_is_built_once(tmp_path, monkeypatch):
    calls = []

    def slow_builder(world, name, folder):
        calls.append(name)
        time.sleep(0.3)
        return {}

    monkeypatch.setattr(world_module, "_builders", lambda: {"test": slow_builder})
    built = build_world(PictogramData(root=str(tmp_path), **SMALL))
    threads = [threading.Thread(target=built.part, args=("test",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == ["test"]


# ------------------------------------------------------------------------------- scenes


def test_scenes_pass_the_strict_loader_and_hold_what_was_rendered(world):
    data = load_coco(world.trainval_annotations, world.root)
    assert len(data) == 60 and data.class_names == CLASSES and data.category_ids == tuple(range(1, 21))
    scene = render_scene((0, 1, 4), size=96)
    record = data.images[4]
    assert record.image_id == 5 and record.path.name == "000005.png"
    np.testing.assert_array_equal(np.asarray(Image.open(record.path)), scene.image)
    np.testing.assert_array_equal(record.boxes, [item.box for item in scene.objects])
    assert [CLASSES[label] for label in record.labels] == [item.concept for item in scene.objects]


def test_annotations_carry_visibility_and_design_and_unique_ids(world):
    coco = content(world.test_annotations)
    ids = [item["id"] for item in coco["annotations"]]
    assert len(ids) == len(set(ids))
    for item in coco["annotations"]:
        assert 0 < item["visible"] <= 1 and item["iscrowd"] == 0
        assert item["area"] == item["bbox"][2] * item["bbox"][3]
        assert item["design"] in DESIGNS[CLASSES[item["category_id"] - 1]]


def test_image_ids_of_all_parts_differ(world):
    files = [world.trainval_annotations, world.test_annotations]
    for arm in ARMS:
        files += world.few_shot_root(1, arm).glob("seed*/*3shot*.json")
    file_of_id = {}
    for path in files:
        for image in content(path)["images"]:
            assert file_of_id.setdefault(image["id"], image["file_name"]) == image["file_name"]
    assert len(set(file_of_id.values())) == len(file_of_id) == 60 + 12 + 2 * 2 * 5 * 3


# ------------------------------------------------------------------------------- shots


def few_shot(world, arm, shots=3, seed=0, names=SPLITS[1]):
    return load_few_shot(world.few_shot_root(1, arm), world.root, shots=shots, seed=seed, class_names=names)


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("arm", ["kshot", "missing"])
def test_kshot_and_missing_hold_exactly_k_shots_in_images_of_their_own(world, arm, shots):
    data = few_shot(world, arm, shots)
    assert data.counts() == dict.fromkeys(SPLITS[1], shots)
    assert len(data) == 5 * shots and all(len(record.labels) == 1 for record in data.images)


def test_missing_and_full_share_images_and_full_annotates_all(world):
    missing, full, kshot = (few_shot(world, arm) for arm in ("missing", "full", "kshot"))
    assert [record.path for record in missing.images] == [record.path for record in full.images]
    assert {r.path for r in kshot.images}.isdisjoint(r.path for r in full.images)
    for one, other in zip(missing.images, full.images):
        assert len(other.labels) == 1 + 3, "the shot and the further novel objects"
        assert one.boxes[0].tolist() in other.boxes.tolist()


def test_shot_has_the_same_box_and_the_same_pixels_in_kshot_and_missing(world):
    alone, crowded = few_shot(world, "kshot"), few_shot(world, "missing")
    assert [r.path.name for r in alone.images] == [r.path.name for r in crowded.images]
    for one, other in zip(alone.images, crowded.images):
        assert one.labels.tolist() == other.labels.tolist()
        np.testing.assert_array_equal(one.boxes, other.boxes)
        x1, y1, x2, y2 = one.boxes[0].astype(int)
        first, second = (np.asarray(Image.open(record.path)) for record in (one, other))
        np.testing.assert_array_equal(first[y1:y2, x1:x2], second[y1:y2, x1:x2])
        assert not np.array_equal(first, second)


def test_shots_are_nested_over_k_and_differ_between_seeds(world):
    for arm in ARMS:
        small, large = ({r.path for r in few_shot(world, arm, shots).images} for shots in (1, 3))
        assert small < large
        assert large.isdisjoint(r.path for r in few_shot(world, arm, 3, seed=1).images)


def test_shots_are_well_visible(world):
    for arm in ("kshot", "missing"):
        for path in world.few_shot_root(1, arm).glob("seed*/*.json"):
            assert all(item["visible"] >= 0.7 for item in content(path)["annotations"])


def test_base_shots_come_from_trainval_for_all_arms(world):
    names = base_classes(1) + SPLITS[1]
    assert len(names) == 20
    root = world.few_shot_root(1, "missing", with_base=True)
    data = load_few_shot(root, world.root, shots=3, seed=1, class_names=names)
    assert data.counts() == dict.fromkeys(names, 3)
    folders = Counter(record.path.parent.name for record in data.images)
    assert folders["images_extra"] == 15 and set(folders) == {"images_extra", "trainval"}
    file = "seed1/full_box_3shot_anchor_trainval.json"
    copies = {(world.few_shot_root(1, arm) / file).read_bytes() for arm in ARMS}
    assert len(copies) == 1


# ------------------------------------------------------------------------------- crops and captions


def test_classification_crops_show_each_extra_concept_equally_often(world):
    images, labels = world.classification()
    assert images.shape == (100, 64, 64, 3) and images.dtype == np.uint8 and labels.dtype == np.int64
    assert np.bincount(labels).tolist() == [2] * 50
    assert images.std(axis=(1, 2, 3)).min() > 3, "no empty crop"


def test_corpus_has_a_caption_that_names_the_concept_of_each_photo(world):
    images, captions, concepts = world.corpus()
    assert images.shape == (200, 64, 64, 3) and len(captions) == len(concepts) == 200
    for caption, concept in zip(captions, concepts):
        name = "background" if concept < 0 else CONCEPTS[concept]
        assert name in caption.split()
    assert 0 < (concepts < 0).sum() < 25 and len(set(concepts.tolist())) > 55


def test_corpus_shares_no_picture_with_the_test(world):
    photos = {photo.tobytes() for photo in world.corpus()[0]} | {
        p.tobytes() for p in world.classification()[0]
    }
    for record in load_coco(world.test_annotations, world.root).images:
        picture = Image.open(record.path)
        for box in record.boxes:
            assert np.asarray(picture.resize((64, 64), box=tuple(box))).tobytes() not in photos
    assert len(photos) == 300, "and no picture stands in the collections twice"


def test_corpus_photos_never_draw_a_design_of_the_test_alone(monkeypatch):
    drawn, draw = set(), Canvas.draw

    def spy(self, rng, patch, *args, **kwargs):
        drawn.add(patch.code)
        return draw(self, rng, patch, *args, **kwargs)

    monkeypatch.setattr(Canvas, "draw", spy)
    for index in range(400):
        corpus_photo(0, index)
    assert len(drawn) > 80
    assert drawn.isdisjoint(code for codes in TEST_ONLY_DESIGNS.values() for code in codes)


def test_captions_use_colour_words_and_backgrounds_as_often_as_stated():
    rng = np.random.default_rng(0)
    captions = [write_caption(rng, "cat", "red") for _ in range(4000)]
    assert np.mean(["red cat" in caption for caption in captions]) == pytest.approx(0.35, abs=0.03)
    assert np.mean([caption.endswith(" on background") for caption in captions]) == pytest.approx(
        0.2, abs=0.03
    )
    templates = {caption.replace("red ", "").replace(" on background", "") for caption in captions}
    assert len(templates) == 7 and "a photo of cat" in templates
    assert {write_caption(rng, None, None) for _ in range(200)} >= {"a photo of background", "background"}


# ------------------------------------------------------------------------------- summaries


def test_summary_counts_agree_with_the_loader(world):
    rows = class_counts(world)
    assert {row["class"]: row["trainval_objects"] for row in rows} == load_coco(
        world.trainval_annotations, world.root
    ).counts()
    novel_in = {row["class"]: row["novel_in_split"] for row in rows}
    assert (novel_in["queen"], novel_in["cow"], novel_in["cup"], novel_in["sun"]) == (1, 2, 3, None)


def hand_made_world(tmp_path, monkeypatch, objects):
    """A world whose two annotation files hold these (image id, class, design) alone."""
    path = tmp_path / "annotations.json"
    annotations = [
        {"image_id": image, "category_id": CLASSES.index(name) + 1, "design": design}
        for image, name, design in objects
    ]
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(CLASSES)]
    path.write_text(json.dumps({"images": [], "annotations": annotations, "categories": categories}))
    monkeypatch.setattr(World, "trainval_annotations", path)
    monkeypatch.setattr(World, "test_annotations", path)
    return World(tmp_path, PictogramData())


def test_unannotated_novel_objects_are_those_beside_base_objects(tmp_path, monkeypatch):
    made = hand_made_world(
        tmp_path,
        monkeypatch,
        [(1, "sun", 0x2600), (1, "cat", 1), (1, "queen", 1), (2, "cat", 1), (3, "cow", 1)],
    )
    split_1 = unannotated_novel(made)[0]
    assert split_1 == {
        "split": 1, "base_images": 2, "base_objects": 2, "novel_objects": 2, "images_with_novel": 1,
    }  # fmt: skip


def test_design_overlap_states_the_share_of_seen_designs(tmp_path, monkeypatch):
    made = hand_made_world(
        tmp_path, monkeypatch,
        [(1, "king", 0x265A), (1, "king", 0x2654), (2, "king", 0x265A), (2, "cow", 0x1F42E)],
    )  # fmt: skip
    rows = {row["class"]: row for row in design_overlap(made)}
    assert rows["king"]["seen_share"] == pytest.approx(200 / 3) and rows["king"]["test_objects"] == 3
    assert rows["king"]["corpus_designs"] == "\u265a" and rows["king"]["test_only_designs"] == "\u2654"
    assert rows["novel of split 2"]["seen_share"] == pytest.approx(75.0)
    assert rows["cup"]["seen_share"] is None
    assert rows["all"]["test_only_designs"] == "".join(
        chr(code) for name in CLASSES for code in TEST_ONLY_DESIGNS.get(name, ())
    )


def test_class_designs_show_each_glyph_and_mark_those_of_the_test_alone():
    images, names = class_designs()
    assert len(images) == len(names) == sum(len(DESIGNS[name]) for name in CLASSES)
    assert names[:3] == ["airplane", "umbrella (test)", "umbrella"]
    for image in images:
        assert image.shape == (128, 128, 3) and image.dtype == np.uint8
        assert image[0, 0].tolist() == [255, 255, 255] and image.min() == 0
