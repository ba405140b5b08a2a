"""The user's own images: XML folders, images chosen by hand, K-shot sets that are given."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from risf_core import run
from risf_core.data.benchmark import open_benchmark
from risf_core.errors import DataError, SplitError
from risf_core.params import (
    BaseTrainingParams,
    CocoData,
    FineTuningParams,
    PictogramData,
    VocData,
    XmlData,
)
from risf_core.runs.run_specs import load_list, load_run
from risf_core.runs.run_specs import upstream as upstream_runs
from risf_core.voc_evaluation import evaluator_for
from tests.data.coco_files import box_entry, image_entry, write_files
from tests.data.voc_files import write_pair

README = Path(__file__).resolve().parents[2] / "README.md"
CDFSOD = README.parent / "params" / "cdfsod"
ACE, KING, TEN = ("ace", (1, 1, 9, 9)), ("king", (11, 3, 30, 20)), ("ten", (2, 2, 39, 29), True)


def xml_params(folder, **changes):
    """Twelve images: all show a king, images 0 to 7 an ace, images 8 to 11 a difficult ten."""
    if not folder.exists():
        for n in range(12):
            write_pair(folder, f"{n:02d}", [KING, ACE if n < 8 else TEN], ending=(".jpg", ".JPG")[n % 2])
    values = {"root": str(folder.parent / "data"), "images": str(folder), "novel_classes": ["ace"]}
    return XmlData(source="xml", **(values | {"shots": [1, 2], "num_seeds": 3} | changes))


def names(data):
    return {record.path.name for record in data.images}


# ------------------------------------------------------------ XML folders


def test_a_folder_is_split_and_drawn_from(tmp_path):
    benchmark = open_benchmark(xml_params(tmp_path / "cards"))
    assert (benchmark.base_names, benchmark.novel_names) == (("king", "ten"), ("ace",))
    assert len(benchmark.train) == len(benchmark.test) == 6 and not names(benchmark.train) & names(
        benchmark.test
    )
    assert benchmark.test.counts() == {"king": 6, "ten": 2, "ace": 4}
    assert benchmark.base_train.counts() == {"king": 6, "ten": 2}
    one, two = (benchmark.few_shot(k, 1) for k in (1, 2))
    assert one.counts() == {"ace": 1} and two.counts() == {"ace": 2}
    assert names(one) < names(two) <= names(benchmark.train)
    assert benchmark.few_shot(2, 1, setting="gfsod").counts() == {"king": 2, "ten": 2, "ace": 2}
    assert benchmark.few_shot(2, 1, arm="clean", setting="gfsod").counts()["king"] >= 2
    assert open_benchmark(xml_params(tmp_path / "cards")).hash == benchmark.hash
    assert open_benchmark(xml_params(tmp_path / "cards", seed=1)).hash != benchmark.hash


def test_difficult_boxes_are_trained_on_and_not_evaluated(tmp_path):
    benchmark = open_benchmark(xml_params(tmp_path / "cards"))
    tens = [record for record in benchmark.base_train.images if (record.labels == 1).any()]
    assert len(tens) == 2 and all(record.is_difficult[record.labels == 1].all() for record in tens)
    assert all(record.is_difficult[record.labels == 1].all() for record in benchmark.test.images)
    assert type(evaluator_for(benchmark.test, **benchmark.evaluation)).__name__ == "Evaluator"


def test_test_images_may_have_a_folder_of_their_own(tmp_path):
    params = xml_params(tmp_path / "train", test_images=str(tmp_path / "test"))
    write_pair(tmp_path / "test", "a", [KING])
    benchmark = open_benchmark(params)
    assert len(benchmark.train) == 12 and benchmark.test.counts() == {"king": 1, "ten": 0, "ace": 0}
    with pytest.raises(SplitError, match="12 images are for training and for testing"):
        open_benchmark(xml_params(tmp_path / "train", test_images=str(tmp_path / "train")))
    with pytest.raises(ValidationError, match="give the folder of the test_images"):
        xml_params(tmp_path / "train", test_annotations=str(tmp_path / "test"))


def test_a_changed_xml_file_is_another_data_set(tmp_path):
    first = open_benchmark(xml_params(tmp_path / "cards"))
    (tmp_path / "cards" / "00.xml").write_text((tmp_path / "cards" / "01.xml").read_text())
    again = open_benchmark(xml_params(tmp_path / "cards"))
    assert again.name != first.name and again.hash != first.hash


def test_wrong_paths_and_classes_are_named(tmp_path):
    with pytest.raises(SplitError, match="no class 'aces'. Did you mean 'ace'"):
        open_benchmark(xml_params(tmp_path / "cards", novel_classes=["aces"]))
    with pytest.raises(DataError, match="nowhere does not exist"):
        open_benchmark(xml_params(tmp_path / "cards", images=str(tmp_path / "nowhere")))
    with pytest.raises(SplitError, match="cards: there is no split 2"):
        open_benchmark(xml_params(tmp_path / "cards"), split=2)


def test_every_class_with_too_few_boxes_is_in_one_error(tmp_path):
    params = xml_params(tmp_path / "cards", shots=[1, 5], novel_classes=["ace", "ten"], test_fraction=0.5)
    with pytest.raises(SplitError) as caught:
        open_benchmark(params)
    assert "class 'ace' has 4 boxes; class 'ten' has 2 boxes. Expected at least K = 5" in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------ images chosen by hand


def test_shots_come_from_the_chosen_images_which_are_never_tested(tmp_path):
    chosen = {"01.JPG", "04.jpg", "06.jpg"}
    (tmp_path / "mine.txt").write_text("01.JPG\n\n04.jpg\n06.jpg\n")
    few_shot = {"kind": "drawn", "images": str(tmp_path / "mine.txt")}
    benchmark = open_benchmark(xml_params(tmp_path / "cards", few_shot=few_shot, shots=[1, 3]))
    assert chosen <= names(benchmark.train) and not chosen & names(benchmark.test)
    assert len(benchmark.train) + len(benchmark.test) == 12
    for seed in range(3):
        assert names(benchmark.few_shot(1, seed)) < chosen
        assert names(benchmark.few_shot(3, seed)) == chosen
    with pytest.raises(SplitError, match=r"mine.txt: class 'ace' has 3 boxes. Expected at least K = 4"):
        open_benchmark(xml_params(tmp_path / "cards", few_shot=few_shot, shots=[4]))


def test_chosen_images_are_known_ones(tmp_path):
    (tmp_path / "mine.txt").write_text("01.jpg\n04.jpg\n")
    few_shot = {"kind": "drawn", "images": str(tmp_path / "mine.txt")}
    with pytest.raises(
        SplitError, match="1 of 2 images are not in cards, e.g. '01.jpg'. Did you mean '01.JPG'"
    ):
        open_benchmark(xml_params(tmp_path / "cards", few_shot=few_shot))
    (tmp_path / "mine.txt").write_text("\n")
    with pytest.raises(SplitError, match="the list is empty"):
        open_benchmark(xml_params(tmp_path / "cards", few_shot=few_shot))


def test_chosen_images_in_sub_folders_are_named_from_the_folder_of_the_images(tmp_path):
    """a/ and b/ with images of the same names: a bare name is enough where one image has it."""
    images = [image_entry(n, file_name=f"{'ab'[n % 2]}/{n // 2}.png") for n in range(12)]
    images.append(image_entry(12, file_name="a/only.png"))
    boxes = [box_entry(2 * n + c, n, (1, 3)[c]) for n in range(13) for c in range(2)]
    for folder in "ab":
        (tmp_path / "set" / folder).mkdir(parents=True)
    annotations = write_files(tmp_path / "set", images, boxes)
    listed = tmp_path / "mine.txt"

    def opened(*lines):
        listed.write_text("\n".join(lines))
        return open_benchmark(
            CocoData(
                source="coco",
                root=str(tmp_path / "data"),
                images=str(tmp_path / "set"),
                annotations=str(annotations),
                base_classes=["person"],
                novel_classes=["cat"],
                few_shot={"kind": "drawn", "images": str(listed)},
                shots=[1, 3],
                num_seeds=2,
            )
        )

    benchmark = opened("a/0.png", "./b/3.png", "only.png")
    expected = {tmp_path / "set" / name for name in ("a/0.png", "b/3.png", "a/only.png")}
    assert {record.path for record in benchmark.few_shot(3, 1).images} == expected
    assert not expected & {record.path for record in benchmark.test.images}
    with pytest.raises(
        SplitError, match=r"1 of 2 names .* several images, e.g. '3.png'.*: a/3.png, b/3.png\."
    ):
        opened("a/0.png", "3.png")
    with pytest.raises(SplitError, match=r"1 of 2 images are not in .*'a/9.png'. Did you mean"):
        opened("a/0.png", "a/9.png")


# ------------------------------------------------------------ given K-shot sets


def given(folder, **changes):
    """A set in CD-FSOD's form: train/, test/, annotations/{1_shot,2_shot,test}.json; classes person, cat, hot dog."""
    entries = {
        "1_shot": [box_entry(1, 1, 1), box_entry(2, 2, 3), box_entry(3, 2, 7)],
        "2_shot": [box_entry(n, n, c) for n, c in enumerate((1, 1, 3, 3, 7, 7, 3), 1)],
    }
    for name, boxes in entries.items():
        images = [image_entry(n) for n in range(1, 9)]
        write_files(folder / "train", images, boxes, name=f"../{name}.json")
    write_files(folder / "test", [image_entry(n) for n in (1, 2)], [box_entry(1, 1, 3)], name="../test.json")
    (folder / "annotations").mkdir(exist_ok=True)
    for path in folder.glob("*.json"):
        path.rename(folder / "annotations" / path.name)
    values = {
        "images": str(folder / "train"),
        "test_images": str(folder / "test"),
        "test_annotations": str(folder / "annotations" / "test.json"),
        "base_classes": [],
        "few_shot": {"kind": "files", "pattern": str(folder / "annotations" / "{shots}_shot.json")},
        "shots": [1, 2],
        "num_seeds": 1,
    }
    return CocoData(source="coco", **(values | changes))


def test_one_file_for_each_k_is_read_as_it_is(tmp_path, caplog):
    benchmark = open_benchmark(given(tmp_path / "UODD"))
    assert benchmark.name == "UODD" and benchmark.base_names == ()
    assert benchmark.novel_names == ("person", "cat", "hot dog") and benchmark.arms == ("kshot",)
    assert benchmark.test.counts() == {"person": 0, "cat": 1, "hot dog": 0}
    assert benchmark.few_shot(1, 0).counts() == {"person": 1, "cat": 1, "hot dog": 1}
    assert len(benchmark.few_shot(1, 0)) == 2  # images without a box are dropped
    assert benchmark.few_shot(2, 0).counts() == {"person": 2, "cat": 3, "hot dog": 2}
    assert "more than K = 2 boxes: 3 of cat; all are kept" in caplog.text
    assert not benchmark.is_nested and not list(tmp_path.glob("data*"))
    with pytest.raises(SplitError, match="there are no base classes. Expected some for gfsod"):
        benchmark.few_shot(1, 0, setting="gfsod")
    with pytest.raises(SplitError, match="no base classes. Expected some for base training"):
        _ = benchmark.base_train
    assert benchmark.summary().loc["cat", ("test", "boxes")] == 1


def test_given_files_with_too_few_boxes_are_refused(tmp_path):
    params = given(tmp_path / "set", shots=[1, 2])
    path = tmp_path / "set" / "annotations" / "2_shot.json"
    content = json.loads(path.read_text())
    content["annotations"] = [entry for entry in content["annotations"] if entry["id"] not in (1, 5, 6)]
    path.write_text(json.dumps(content))
    with pytest.raises(
        SplitError, match=r"2_shot.json: class 'person' has 1 boxes; class 'hot dog' has 0 boxes"
    ):
        open_benchmark(params).few_shot(2, 0)
    path.unlink()
    with pytest.raises(DataError, match="2_shot.json does not exist"):
        open_benchmark(params)


@pytest.mark.parametrize("file", sorted(CDFSOD.glob("20_fine_tuning.*.yaml")), ids=lambda file: file.stem)
def test_the_params_of_cd_fsod_s_sets_read_the_layout_that_it_ships(tmp_path, monkeypatch, file):
    """<set>/annotations/{1_shot,5_shot,10_shot,test}.json; images in train and test, those of DIOR a level deeper."""
    monkeypatch.setenv("RISF_ROOT", str(tmp_path))
    data = load_run(file).params.data
    name = Path(data.test_annotations).parts[2]
    assert name in ("ArTaxOr", "clipart1k", "DIOR", "FISH", "NEU-DET", "UODD")
    folder = tmp_path / "data" / "cdfsod" / name
    inside = {"train": "train/new_train", "test": "test/new_test"} if name == "DIOR" else {}
    up = "../.." if inside else ".."
    (folder / "annotations").mkdir(parents=True)
    for part, shots in (("test", 1), ("1_shot", 1), ("5_shot", 5), ("10_shot", 10)):
        images = folder / (inside.get("test", "test") if part == "test" else inside.get("train", "train"))
        boxes = [box_entry(10 * c + n, n, c) for c in (1, 3, 7) for n in range(shots)]
        write_files(
            images, [image_entry(n) for n in range(shots)], boxes, name=f"{up}/annotations/{part}.json"
        )
    benchmark = open_benchmark(data)
    assert benchmark.name == name and benchmark.shots == (1, 5, 10) and len(benchmark.test) == 1
    for shots in benchmark.shots:
        assert set(benchmark.few_shot(shots, 0).counts().values()) == {shots}


def test_the_list_of_cd_fsod_ends_with_the_tables_of_each_set():
    specs = load_list(CDFSOD / "runs.yaml")
    tuned = {s.params.profile: s.params.solver for s in specs if s.params.notebook == "20_fine_tuning"}
    tables = [spec.params.profile for spec in specs if spec.params.notebook == "40_results"]
    assert sorted(tuned) == tables and len(tables) == 6
    assert all((solver.batch_size, solver.reference_batch) == (16, 16) for solver in tuned.values())


def test_the_full_annotation_of_a_given_set_makes_it_clean(tmp_path):
    folder = tmp_path / "set"
    params = given(folder)
    full = [box_entry(n, n, c) for n, c in enumerate((1, 1, 3, 3, 7, 7, 3), 1)] + [
        box_entry(9, 1, 3, (1, 1, 4, 4))
    ]
    write_files(
        folder / "train", [image_entry(n) for n in range(1, 9)], full, name="../annotations/train.json"
    )
    params = params.model_copy(update={"annotations": str(folder / "annotations" / "train.json")})
    benchmark = open_benchmark(params)
    assert benchmark.arms == ("kshot", "clean")
    assert benchmark.few_shot(1, 0, arm="clean").counts() == {"person": 2, "cat": 1, "hot dog": 0}


def test_published_files_are_read_from_their_folder(tmp_path):
    params = given(
        tmp_path / "set",
        base_classes=["person"],
        novel_classes=["cat", "hot dog"],
        annotations=str(tmp_path / "set" / "annotations" / "2_shot.json"),
        few_shot={"kind": "published", "folder": str(tmp_path / "cocosplit")},
    )
    for label, (category, name) in enumerate(((1, "person"), (3, "cat"), (7, "hot dog")), 1):
        for shots in (1, 2):
            boxes = [box_entry(n, n + label, category) for n in range(1, shots + 1)]
            images = [image_entry(n) for n in range(1, 6)]
            file = f"full_box_{shots}shot_{name}_trainval.json"
            (tmp_path / "cocosplit").mkdir(exist_ok=True)
            write_files(tmp_path / "set" / "train", images, boxes, name=f"../../cocosplit/{file}")
    benchmark = open_benchmark(params)
    assert benchmark.few_shot(2, 0).counts() == {"cat": 2, "hot dog": 2}
    both = benchmark.few_shot(2, 0, setting="gfsod")
    assert both.counts() == {"person": 2, "cat": 2, "hot dog": 2}
    # images 2, 3 show a person, 3, 4 a cat, 4, 5 a hot dog: an image drawn for two classes carries both boxes
    assert {r.image_id: len(r.labels) for r in both.images if len(r.labels)} == {2: 1, 3: 2, 4: 2, 5: 1}
    first = benchmark.hash
    path = tmp_path / "cocosplit" / "full_box_1shot_hot dog_trainval.json"
    path.write_text(path.read_text() + "\n")
    assert open_benchmark(params).hash != first


def test_parameters_that_do_not_go_together_are_refused(tmp_path):
    base = {"source": "coco", "images": "images"}
    files = {"kind": "files", "pattern": "{shots}_shot.json"}
    wrong = [
        ({"novel_classes": ["cat"]}, "annotations: a value is missing"),
        ({"annotations": "a.json"}, "novel_classes: a value is missing"),
        ({"base_classes": [], "few_shot": files, "num_seeds": 1}, "give test_annotations"),
        ({"base_classes": [], "few_shot": files, "test_annotations": "t.json"}, r"has no \{seed\}"),
        ({"base_classes": [], "few_shot": {"kind": "files", "pattern": "x.json"}}, "pattern"),
        (
            {"annotations": "a", "novel_classes": ["c"], "few_shot": {"kind": "published", "folder": "f"}},
            "published goes",
        ),
    ]
    for values, said in wrong:
        with pytest.raises(ValidationError, match=said):
            CocoData(**base, **values)
    assert CocoData(**base, base_classes=[], few_shot=files, test_annotations="t", num_seeds=1).files() == (
        "t", "1_shot.json", "2_shot.json", "3_shot.json",
    )  # fmt: skip


def test_given_sets_go_with_a_coco_file(tmp_path):
    for few_shot in ({"kind": "files", "pattern": "{shots}.json"}, {"kind": "published", "folder": "f"}):
        with pytest.raises(
            ValidationError, match=rf"few_shot: kind {few_shot['kind']} goes with source: coco"
        ):
            xml_params(tmp_path / "cards", few_shot=few_shot)


def test_a_k_that_stands_twice_is_refused(tmp_path):
    for model in (xml_params, lambda folder, **values: VocData(**values), lambda f, **v: PictogramData(**v)):
        with pytest.raises(ValidationError, match=r"shots\n.*holds a value twice: \[5, 1, 5\]"):
            model(tmp_path / "cards", shots=[5, 1, 5])


def test_clean_seeds_of_given_files_need_the_full_annotation(tmp_path):
    values = {"profile": "x", "base": "b.yaml", "shots": 1, "seeds": [0], "arms": ["kshot", "clean"]}
    data = given(tmp_path / "set").model_dump()
    with pytest.raises(ValidationError, match="arms: clean needs .* give data.annotations"):
        FineTuningParams(**values, data=data)
    full = FineTuningParams(**values, data=data | {"annotations": "full.json"})
    assert full.arms == ("kshot", "clean")


def test_all_classes_may_be_novel_where_the_base_model_comes_from_other_data(tmp_path):
    benchmark = open_benchmark(xml_params(tmp_path / "cards", base_classes=[], novel_classes=None))
    assert benchmark.base_names == () and benchmark.novel_names == ("ace", "king", "ten")
    assert benchmark.few_shot(2, 0).counts() == {"ace": 2, "king": 2, "ten": 2}
    assert benchmark.few_shot(2, 0, arm="clean").counts()["king"] >= 2
    with pytest.raises(SplitError, match="no base classes. Expected some for gfsod"):
        benchmark.few_shot(2, 0, setting="gfsod")
    with pytest.raises(ValidationError, match=r"base_classes \[\] makes all classes novel"):
        xml_params(tmp_path / "cards", novel_classes=None)


# ------------------------------------------------------------ through params files


def test_data_without_base_classes_take_a_base_model_of_other_data(tmp_path, monkeypatch):
    monkeypatch.setenv("RISF_ROOT", str(tmp_path))
    (tmp_path / "10_base_training.yaml").write_text("profile: x\nsplit: 2\n")
    data = (
        "{source: coco, images: i, test_annotations: t.json, base_classes: BASE, shots: [1], num_seeds: 1, "
        "few_shot: {kind: files, pattern: '{shots}_shot.json'}, novel_classes: [cat], annotations: a.json}"
    )
    text = "profile: x\nbase: 10_base_training.yaml\nshots: 1\nseeds: [0]\ndata: "
    file = tmp_path / "20_fine_tuning.yaml"
    file.write_text(text + data.replace("BASE", "[]"))
    params = load_run(file, {"data.few_shot.pattern": "other/{shots}.json"}).params
    assert isinstance(params, FineTuningParams) and params.data.few_shot.pattern == "other/{shots}.json"
    assert [spec.params.notebook for spec in upstream_runs(params)] == [BaseTrainingParams.notebook]
    file.write_text(text + data.replace("BASE", "[dog]"))
    with pytest.raises(Exception, match="make them equal"):
        upstream_runs(load_run(file).params)


def test_boxes_of_xml_and_of_the_written_draw_are_the_same(tmp_path):
    benchmark = open_benchmark(xml_params(tmp_path / "cards"))
    drawn = benchmark.few_shot(2, 0).images
    by_name = {record.path.name: record for record in benchmark.train.select_classes(["ace"]).images}
    for record in drawn:
        np.testing.assert_array_equal(record.boxes, by_name[record.path.name].boxes)
        assert record.image_id == by_name[record.path.name].image_id


# ------------------------------------------------------------ README's walk


@pytest.fixture
def copied_profile(tmp_path, monkeypatch):
    """A function that copies a profile with README's own commands; and README's blocks, the COCO file's first."""
    section = README.read_text().split("## Data of your own")[1].split("\n## ")[0]
    commands = re.search(r"    FROM=cards; N=mine;.*\n    sed .*\n", section)[0]
    blocks = re.findall(r"```yaml\n(.*?)```", section, re.S)
    for name in ("params", "notebooks"):
        shutil.copytree(README.parent / name, tmp_path / name)
    monkeypatch.setenv("RISF_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def copy(profile: str) -> Path:
        subprocess.run(["bash", "-ec", commands.replace("FROM=cards", f"FROM={profile}")], check=True)
        return tmp_path / "params" / "mine" / "shared.yaml"

    return copy, blocks


@pytest.mark.parametrize(
    ("profile", "number", "file"),
    [("photos", 0, "/data/birds/instances.json"), ("cards", 1, "/data/cards/train")],
)
def test_readme_s_blocks_fit_the_profiles_that_it_copies(copied_profile, capsys, profile, number, file):
    copy, blocks = copied_profile
    shared = copy(profile)
    assert len(blocks) == 2 and f"copy of `{profile}` takes" in README.read_text()
    shared.write_text(shared.read_text().split("data:")[0] + blocks[number])
    assert run.main(["--list", "params/mine/runs.yaml", "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert "params/mine/20_fine_tuning.yaml" in printed.out and profile not in printed.out
    assert f"not there yet: {file}" in printed.err


def test_a_k_that_the_data_lack_is_named_with_its_source(copied_profile, capsys):
    copy, blocks = copied_profile
    shared = copy("cards")
    shared.write_text(
        shared.read_text().split("data:")[0] + blocks[1].replace("[1, 2, 3, 5, 10]", "[1, 2, 3]")
    )
    assert run.main(["--list", "params/mine/runs.yaml", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "params/mine/runs.yaml: params/mine/20_fine_tuning.yaml with shots 5: shots is 5" in said
    assert "data.shots is [1, 2, 3]: add 5 to data.shots, or choose one of these" in said and "-p" not in said
