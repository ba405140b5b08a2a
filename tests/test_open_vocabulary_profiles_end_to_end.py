"""Both profiles from files in the published forms to rows, at toy size: COCO 48/17 and LVIS 866/337."""

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from risf_core.open_vocabulary.detector import OpenVocabularyRCNN
from risf_core.open_vocabulary.regions import RegionSet
from risf_core.open_vocabulary.study import Study, run_open_vocabulary
from risf_core.params import DetectorParams
from risf_core.runs.run_specs import load_run
from tests.lvis_files import random_content
from tests.test_ablations import _Rows
from tests.test_coco_ovd import ALL, BICYCLE, CAT, DOG, PERSON, SEEN

ROOT = Path(__file__).parents[1]
TINY = {
    "block": "basic", "stages": [1, 1, 1], "stem": "deep", "stem_width": 8, "res2_width": 8, "res5_blocks": 1,
    "res5_width": 16, "stride_in_1x1": False, "anchor_sizes": [16.0, 32.0], "rpn_pre_nms_train": 60,
    "rpn_pre_nms_test": 60, "rpn_post_nms_train": 30, "rpn_post_nms_test": 20, "rpn_batch": 16, "roi_batch": 8,
    "min_size": [64], "max_size": 128, "freeze_at": 0,
}  # fmt: skip
SIZE, TRAIN, TEST = 64, 6, 4
SOLVER = {"iterations": 2, "batch_size": 2, "reference_batch": None, "milestones": [1], "warmup": 0}


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    (tmp_path / "params").symlink_to(ROOT / "params")
    monkeypatch.setenv("RISF_ROOT", str(tmp_path))
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")  # names of files start from the project
    detector = OpenVocabularyRCNN(DetectorParams(**TINY | {"norm": "FrozenBN"}), torch.randn(3, 4))
    (tmp_path / "data" / "weights").mkdir(parents=True)
    state = {key: value for key, value in detector.state_dict().items() if "box_predictor" not in key}
    torch.save({"model": state}, tmp_path / "data" / "weights" / "R-50.pkl")
    return tmp_path


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(map(ord, path.name))
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_external(folder: Path, labels: dict[str, list[int]]) -> None:
    """Regions with embeddings of the toy CLIP's width, a box for each label, as released; stem -> category ids."""
    for name in ("regions", "label_boxes"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, (stem, ids) in enumerate(labels.items()):
        regions = [([4.0 + n, 4.0, 40.0, 44.0 + number], torch.randn(1, 96)) for n in range(5)]
        (folder / "regions" / f"{stem}.pkl").write_bytes(pickle.dumps(regions))
        boxes = {one: ([np.array([5.0, 5.0, 30.0, 30.0])], [0.99]) for one in ids}
        (folder / "label_boxes" / f"{stem}.pkl").write_bytes(pickle.dumps(boxes))


def entries(numbers, categories):
    images = [{"id": n, "file_name": f"{n}.png", "width": SIZE, "height": SIZE} for n in numbers]
    boxes = [
        {"id": 2 * n + m, "image_id": n, "category_id": own, "bbox": [5 + 20 * m, 5, 20, 24], "iscrowd": 0}
        for n in numbers
        for m, own in enumerate(categories)
    ]
    return images, boxes


def coco_files(data: Path) -> None:
    train, boxes = entries(range(1, TRAIN + 1), (PERSON, BICYCLE))
    folder = data / "coco" / "zero-shot"
    write_json(
        folder / "instances_train2017_seen_2.json",
        {"images": train, "annotations": boxes, "categories": SEEN},
    )
    test, boxes = entries(range(101, 101 + TEST), (PERSON, CAT))
    write_json(
        folder / "instances_val2017_all_2.json", {"images": test, "annotations": boxes, "categories": ALL}
    )
    for part, images in (("train2017", train), ("val2017", test)):
        for one in images:
            draw(data / "coco" / part / one["file_name"])
    captions = [{"id": one["id"], "image_id": one["id"], "caption": "A man, his dog."} for one in train]
    write_json(data / "coco/annotations/captions_train2017.json", {"images": train, "annotations": captions})
    words = [{"id": 1, "name": "person", "synonyms": ["person", "man"]}]
    write_json(data / "lvis" / "lvis_v1_val.json", {"images": [], "annotations": [], "categories": words})
    write_external(data / "ovd" / "coco", {str(one["id"]): [PERSON, DOG] for one in train})


def lvis_files(data: Path) -> None:
    stems = {}
    for seed, name in enumerate(("lvis_v1_train", "lvis_v1_val")):
        content = random_content(seed, images=TRAIN)
        for one in content["images"]:
            one["id"] += 100 * seed
            one["coco_url"] = f"an address/{'train' if seed == 0 else 'val'}2017/{one['id']:06d}.png"
            draw(data / "coco" / "/".join(one["coco_url"].split("/")[-2:]))
            stems[f"{one['id']:06d}"] = []
        for one in content["annotations"]:
            one["image_id"] += 100 * seed
        write_json(data / "lvis" / f"{name}.json", content)
    images = [
        {"id": n, "file_name": f"n01/n01_{n}.png", "width": SIZE, "height": SIZE, "pos_category_ids": [own]}
        for n, own in ((1, 2), (2, 5), (3, 1), (4, 2))
    ]
    for one in images:
        draw(data / "imagenet" / "ImageNet-LVIS" / one["file_name"])
        stems[Path(one["file_name"]).stem] = one["pos_category_ids"]
    labels = {"images": images, "annotations": [], "categories": content["categories"]}
    write_json(data / "lvis" / "imagenet_lvis_image_info.json", labels)
    write_external(data / "ovd" / "lvis", stems)


@pytest.mark.parametrize("profile", ["coco-ovd", "lvis-ovd"])
def test_a_profile_runs_from_files_to_rows(profile, project):
    {"coco-ovd": coco_files, "lvis-ovd": lvis_files}[profile](project / "data")
    changes = {f"detector.{name}": value for name, value in TINY.items()}
    for part in ("stage0", "solver"):
        changes |= {f"{part}.{name}": value for name, value in SOLVER.items()}
    for arm in ("ils_external", "naive", "weight_transfer"):
        changes |= {f"arms.{arm}.images.batch_size": 2, f"arms.{arm}.images.short_side": 32}
    changes |= {
        "clip": {"model": "risf-tiny-resnet", "pretrained": None, "path_only": True},
        "num_proposals": 30,
        "residual_width": 16,
    }
    params = load_run(f"params/{profile}/50_open_vocabulary.yaml", changes | {"score_thresh": 0.0}).params
    run = SimpleNamespace(dir=project / "run", device="cpu", rows=_Rows(), environment={}, run_id="toy")
    run.dir.mkdir()
    rows = run_open_vocabulary(params, run)
    arms = {row["arm"]: row for row in rows if row["part"] == "arm"}
    assert list(arms) == list(params.arms)
    for name, row in arms.items():
        assert row["AP50"] is not None and row["bAP50"] is not None and row["nAP50"] is not None
        assert row["iterations"] == (0 if name == "base" else 2)
        # two steps of two images; every second one is of images with names
        with_names = name in ("ils_external", "naive", "weight_transfer")
        assert row["box_images"] == (0 if name == "base" else 2 if with_names else 4)
        assert (run.dir / f"{name}_checkpoint.pth").exists() == (name != "base")
        assert ("APr" in row) == (profile == "lvis-ovd")
    assert arms["rkd_external"]["sees_novel"] == "unknown"
    regions = RegionSet.load(run.dir / "regions" / "external-top5-clip.npz")
    assert regions.manifest["clip"] is None or "risf" not in str(regions.manifest["clip"])  # the file's own
    assert regions.embeddings.shape[1] == 96
    assert arms["weight_transfer"]["settings"]["head"] == "transfer"
    classes = {"coco-ovd": 80, "lvis-ovd": 6}[profile]
    assert len(arms["base"]["per_class"]) == classes
    names = "external-top5-clip.npz"
    other = params.model_copy(
        update={"external": params.external.model_copy(update={"file_embeddings": False})}
    )
    fresh = SimpleNamespace(dir=project / "fresh", device="cpu", rows=_Rows(), environment={}, run_id="toy")
    study = Study(other, fresh)
    (fresh.dir / "weights").mkdir(parents=True)
    study.sources.regions(params.arms["rkd_external"].distillation)
    anew = RegionSet.load(fresh.dir / "regions" / names)
    assert anew.manifest["clip"]["weights"] and not np.array_equal(anew.embeddings, regions.embeddings)
