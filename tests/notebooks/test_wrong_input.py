"""Wrong params files and impossible data through the real command line: one clear line, no traceback, nothing run."""

import pytest
import yaml

from tests.data.coco_files import box_entry, image_entry, write_files
from tests.notebook_files import launch, link_project

NOTEBOOK = "notebooks/20_fine_tuning.ipynb"
BASE = "params/smoke/10_base_training.yaml"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return link_project(tmp_path_factory.mktemp("wrong"))


WRONG_FILES = {
    "unknown": ("colour: red", "unknown parameter 'colour'"),
    "misspelt": ("shotz: 5", "unknown parameter 'shotz' (nearest: 'shots')"),
    "exponent": ("solver: {lr: 1e-4}", "got text '1e-4': YAML reads it as text, write 1.0e-4"),
    "word": ("shots: five", "shots: expected a whole number, got text 'five'"),
    "negative": ("shots: -5", "shots: must be greater than or equal to 1, got -5"),
    "list": ("shots: [1, 5]", "shots: expected a whole number, got the list [1, 5]"),
    "not YAML": ("shots: [1, 5", "not YAML: expected ',' or ']'"),
    "tag": ("shots: !!python/object/apply:os.system ['touch executed']", "the tag !!python/object/apply"),
    "empty": ("", "the file is empty"),
    "missing": (None, "no such params file"),
}


@pytest.mark.parametrize(("text", "expected"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_wrong_params_files_are_refused_in_one_line(project, text, expected):
    file = project / "20_fine_tuning.mine.yaml"
    file.unlink(missing_ok=True)
    if text is not None:
        file.write_text(text and f"profile: smoke\nbase: {BASE}\n{text}\n")
    before = sorted(project.iterdir())
    done = launch(project, NOTEBOOK, "--params", file.name)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("ParamsError: ")
    assert expected in done.stderr and file.name in done.stderr
    assert sorted(project.iterdir()) == before  # no results, and nothing in the file was executed


@pytest.fixture(scope="module")
def params_file(project):
    """Params of base training on six images, each with one box of a person, a cat and a hot dog."""
    (project / "photographs").mkdir()
    boxes = [box_entry(10 * number + label, number, label) for number in range(1, 7) for label in (1, 3, 7)]
    write_files(project / "photographs", [image_entry(number) for number in range(1, 7)], boxes)
    data = {"source": "coco", "annotations": "photographs/instances.json", "images": "photographs"}
    data["novel_classes"] = ["cat"]
    file = project / "10_base_training.yaml"
    file.write_text(yaml.safe_dump({"profile": "wrong", "pretraining": None, "data": data}))
    return file


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("data.base_classes", "[person, cat]", "class 'cat' is a base and a novel class"),
        ("data.shots", "[1, 500]", "Expected at least K = 500"),
    ],
    ids=["base-and-novel", "too-many-shots"],
)
def test_impossible_splits_are_refused_in_one_line(project, params_file, name, value, expected):
    words = ("notebooks/10_base_training.ipynb", "--params", params_file.name, "-p", name, value)
    done = launch(project, *words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("FAILED  base_training-split1-")
    assert "SplitError: " in done.stderr and expected in done.stderr
    assert not list(project.glob("results/wrong/records/*"))
