"""The notebooks on photographs in COCO's form: the params of `params/photos`, with drawn stand-ins for photographs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from risf_core.runs.run_specs import load_list
from tests.data.coco_files import box_entry

REPOSITORY = Path(__file__).resolve().parents[2]
COLORS = {
    "person": (200, 40, 40),
    "chair": (40, 40, 200),
    "cup": (40, 200, 40),
    "dining table": (220, 220, 40),
}


def write_photographs(folder: Path, count: int = 16) -> None:
    """Images of several sizes with one rectangle of each class's colour, a grey one among them, and a crowd region."""
    rng = np.random.default_rng(0)
    images, boxes = [], []
    for number in range(1, count + 1):
        width, height = ((96, 64), (64, 100), (80, 80))[number % 3]
        pixels = rng.integers(90, 130, (height, width, 3), dtype=np.uint8)
        for label, color in enumerate(COLORS.values()):
            x, y = rng.integers(0, width - 24), rng.integers(0, height - 20)
            pixels[y : y + 18, x : x + 22] = color
            boxes.append(box_entry(10 * number + label, number, label + 1, (int(x), int(y), 22, 18)))
        image = Image.fromarray(pixels)
        (image.convert("L") if number == 5 else image).save(folder / f"{number}.jpg")
        images.append({"id": number, "file_name": f"{number}.jpg", "width": width, "height": height})
    boxes.append(box_entry(9999, 1, 1, (0, 0, 50, 60), iscrowd=1))
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(COLORS)]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project folder with the notebooks and the small twins of the photos profile's params files."""
    root = tmp_path_factory.mktemp("project")
    (root / "notebooks").symlink_to(REPOSITORY / "notebooks")
    photos = root / "data" / "photos"
    photos.mkdir(parents=True)
    write_photographs(photos)
    small = {"iterations": 3, "batch_size": 2}
    changes = {
        "shared.yaml": {
            "data": {
                "images": "data/photos",
                "base_classes": ["person", "chair"],
                "novel_classes": ["cup", "dining table"],
            }
        },
        "10_base_training.yaml": {
            "detector": {"res2_width": 8, "stem_width": 8, "res5_width": 16},
            "solver": small,
        },
        "20_fine_tuning.yaml": {"seeds": [1], "head": {"num_proposals": 20}, "solver": {"iterations": 3}},
    }
    for name, change in changes.items():
        content = yaml.safe_load((REPOSITORY / "params" / "photos" / name).read_text())
        for key, value in change.items():
            content[key] = {**content.get(key, {}), **value} if isinstance(value, dict) else value
        path = root / "params" / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content))
    gfsod = {"params": "params/photos/20_fine_tuning.yaml", "set": {"setting": "gfsod"}}
    (root / "params" / "photos" / "runs.yaml").write_text(yaml.safe_dump({"runs": [gfsod]}))
    return root


def test_notebooks_run_on_photographs_through_params_alone(project):
    """Base training, then gfsod fine-tuning with a CLIP of random weights, which needs the draws of all classes."""
    environment = os.environ | {
        "RISF_ROOT": str(project),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, "-m", "risf_core.run", "--list", "params/photos/runs.yaml"]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    records = [
        json.loads(path.read_text()) for path in (project / "results" / "photos" / "records").glob("*.json")
    ]
    by_notebook = {record["notebook"]: record for record in records}
    assert sorted(by_notebook) == ["10_base_training", "20_fine_tuning"]
    base = by_notebook["10_base_training"]["metrics"]
    assert sorted(base["per_class"]) == ["chair", "person"] and 0 <= base["bAP50"] <= 100
    rows = by_notebook["20_fine_tuning"]["rows"]
    assert {(row["loss"], row["rescoring"]) for row in rows} == {
        (loss, rescoring) for loss in ("ce", "bnrl") for rescoring in ("none", "cm_clip", "cm_clip_wide")
    }
    for row in rows:
        assert (row["setting"], row["shots"], row["seed"], row["arm"]) == ("gfsod", 3, 1, "kshot")
        assert sorted(row["per_class"]) == ["chair", "cup", "dining table", "person"]
        assert 0 <= row["nAP50"] <= 100 and 0 <= row["bAP50"] <= 100
    splits = sorted(path.name for path in (project / "data").glob("instances-*/few_shot/kshot/seed1/*"))
    assert len(splits) == 4 * 3 and "full_box_3shot_dining table_trainval.json" in splits


def test_params_of_photographs_are_valid_and_name_their_runs():
    notebooks = [spec.params.notebook for spec in load_list(REPOSITORY / "params" / "photos" / "runs.yaml")]
    assert notebooks.count("20_fine_tuning") == 4
    assert set(notebooks) >= {
        "10_base_training",
        "30_ablation_c",
        "31_ablation_bnrl",
        "32_clip_backbones",
        "40_results",
    }
