"""The notebooks on a folder of images with XML files: the params of `params/cards`, with drawn stand-ins for cards."""

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
from tests.data.voc_files import xml_text

REPOSITORY = Path(__file__).resolve().parents[2]
COLORS = {
    "nine": (200, 40, 40),
    "ten": (40, 40, 200),
    "jack": (40, 200, 40),
    "queen": (220, 220, 40),
    "king": (40, 220, 220),
    "ace": (220, 40, 220),
}


def write_cards(folder: Path, count: int) -> None:
    """Images of one king, one ace (two in every second image) and one other card each; .jpg and .JPG are mixed."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(count)
    for number in range(count):
        pixels = rng.integers(90, 130, (64, 96, 3), dtype=np.uint8)
        names = ["king", "ace", list(COLORS)[number % 4]] + ["ace"] * (number % 2)
        objects = []
        for column, name in enumerate(names):
            x, y = 24 * column, int(rng.integers(0, 30))
            pixels[y : y + 30, x : x + 22] = COLORS[name]
            objects.append((name, (x + 1, y + 1, x + 22, y + 30)))
        stem = f"card{number:02d}"
        Image.fromarray(pixels).save(folder / f"{stem}{('.jpg', '.JPG')[number % 2]}", format="JPEG")
        (folder / f"{stem}.xml").write_text(xml_text(objects, width=96, height=64))


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project folder with the notebooks and small twins of the profile's params files."""
    root = tmp_path_factory.mktemp("project")
    (root / "notebooks").symlink_to(REPOSITORY / "notebooks")
    write_cards(root / "data" / "playing_cards" / "images" / "train", 12)
    write_cards(root / "data" / "playing_cards" / "images" / "test", 6)
    changes = {
        "shared.yaml": {"data": {"shots": [1, 2], "num_seeds": 1}},
        "10_base_training.yaml": {
            "detector": {"res2_width": 8, "stem_width": 8, "res5_width": 16, "min_size": [64]},
            "solver": {"iterations": 3, "batch_size": 2, "checkpoint_every": 0},
        },
        "20_fine_tuning.yaml": {
            "shots": 2,
            "seeds": [0],
            "head": {"num_proposals": 20},
            "solver": {"iterations": 3},
        },
    }
    for name, change in changes.items():
        content = yaml.safe_load((REPOSITORY / "params" / "cards" / name).read_text())
        for key, value in change.items():
            content[key] = {**content.get(key, {}), **value} if isinstance(value, dict) else value
        path = root / "params" / "cards" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content))
    runs = ["params/cards/10_base_training.yaml", "params/cards/20_fine_tuning.yaml"]
    (root / "params" / "cards" / "runs.yaml").write_text(yaml.safe_dump({"runs": runs}))
    return root


def test_notebooks_run_from_raw_images_with_xml_files(project):
    environment = os.environ | {
        "RISF_ROOT": str(project),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, "-m", "risf_core.run", "--list", "params/cards/runs.yaml"]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    paths = (project / "results" / "cards" / "records").glob("*.json")
    records = {record["notebook"]: record for record in (json.loads(path.read_text()) for path in paths)}
    assert sorted(records) == ["10_base_training", "20_fine_tuning"]
    assert sorted(records["10_base_training"]["metrics"]["per_class"]) == ["jack", "nine", "queen", "ten"]
    rows = records["20_fine_tuning"]["rows"]
    assert {(row["arm"], row["loss"], row["rescoring"]) for row in rows} == {
        (arm, loss, "none") for arm in ("kshot", "clean") for loss in ("ce", "bnrl")
    }
    assert all(sorted(row["per_class"]) == ["ace", "king"] and 0 <= row["nAP50"] <= 100 for row in rows)


def test_params_of_cards_are_valid_and_take_all_k():
    specs = load_list(REPOSITORY / "params" / "cards" / "runs.yaml")
    shots = [spec.params.shots for spec in specs if spec.params.notebook == "20_fine_tuning"]
    assert shots == [1, 2, 3, 5, 10, 10]
    assert [spec.params.setting for spec in specs if spec.params.notebook == "20_fine_tuning"][-1] == "gfsod"


def test_params_of_the_six_cross_domain_sets_are_valid():
    specs = load_list(REPOSITORY / "params" / "cdfsod" / "runs.yaml")
    profiles = {spec.params.profile for spec in specs}
    tables = [spec for spec in specs if spec.params.notebook == "40_results"]
    assert len(profiles) == 6 and {spec.params.profile for spec in tables} == profiles
    specs = [spec for spec in specs if spec not in tables]
    assert [spec.params.shots for spec in specs] == [1, 5, 10] * 6
    files = {name for spec in specs for name in spec.params.data.files()}
    assert "data/cdfsod/NEU-DET/annotations/5_shot.json" in files and len(files) == 6 * 4
