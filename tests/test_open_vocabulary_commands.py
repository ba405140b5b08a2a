"""The commands on a user's files: regions of every provider, an arm on other data and names, both after a kill."""

import contextlib
import io
import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from risf_core.clip_models import new_clip
from risf_core.data.benchmark import open_benchmark
from risf_core.data.coco import load_coco, write_coco
from risf_core.data.glyphs import EXTRA_CONCEPTS
from risf_core.detector.checkpoints import save_checkpoint, save_detector
from risf_core.evaluation import Evaluator
from risf_core.open_vocabulary import arm_testing, make_regions
from risf_core.open_vocabulary.__main__ import main
from risf_core.open_vocabulary.lvis_data import load_lvis
from risf_core.open_vocabulary.lvis_evaluation import LvisEvaluator
from risf_core.open_vocabulary.providers import rpn_regions
from risf_core.open_vocabulary.regions import RegionSet
from risf_core.open_vocabulary.study import run_open_vocabulary
from risf_core.open_vocabulary_params import OpenVocabularyParams
from risf_core.results_formats import read_class_list, read_results

from .detector.conftest import square_data, tiny_detector, tiny_params  # noqa: F401  fixtures
from .lvis_files import random_content, write_lvis
from .test_fine_tuning import _run, base  # noqa: F401  a fixture
from .test_live_provider import parts as owl_parts  # noqa: F401  a fixture

CLIP = ["--clip", "risf-tiny-resnet", "--pretrained", "random"]


def run(*words) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
    return code, out.getvalue(), err.getvalue()


def only_line(said: str) -> str:
    """The one line of an error."""
    (line,) = said.splitlines()
    return line


# ----------------------------------------------------------------------------------------------------------- regions


@pytest.fixture
def squares(tmp_path, square_data):  # noqa: F811
    """Options for six images with one square each."""
    write_coco(tmp_path / "squares.json", square_data, images_dir=tmp_path)
    return ["--annotations", tmp_path / "squares.json", "--images", tmp_path]


@pytest.fixture
def proposer(tmp_path, tiny_detector):  # noqa: F811
    save_detector(tmp_path / "model.pth", tiny_detector, ["red", "green", "blue"])
    return ["--detector", tmp_path / "model.pth"]


def test_regions_of_an_rpn_are_those_of_the_detector_with_embeddings(
    squares,
    proposer,
    square_data,  # noqa: F811
    tiny_detector,  # noqa: F811
    tmp_path,
):
    out = tmp_path / "out" / "regions.npz"
    words = ["--provider", "rpn", *proposer, "--top", 3, "--sees-novel", "no", "--out", out]
    code, said, err = run("regions", *squares, *words, *CLIP)
    assert (code, err) == (0, "") and "6 images" in said and "embeddings of 96 numbers" in said
    found, ours = RegionSet.load(out), rpn_regions(tiny_detector.eval(), square_data, top=3)
    assert np.array_equal(found.boxes, ours.boxes) and np.array_equal(found.scores, ours.scores)
    assert list(found.image_ids) == [one.image_id for one in square_data.images]
    assert found.embeddings.shape == (len(found), 96)
    assert found.manifest["sees_novel"] == "no" and found.manifest["clip"]["crop"] == "squash"
    code, _, _ = run("regions", *squares, *words, "--no-embeddings")
    assert code == 0 and RegionSet.load(out).embeddings is None
    code, _, _ = run("regions", *squares, *words, *CLIP, "--crop", "shortest")
    facts = RegionSet.load(out).manifest["clip"]
    assert (code, facts["crop"], facts["resize"]) == (0, "shortest", "bicubic")


def test_a_killed_run_goes_on_and_ends_in_the_same_file(squares, proposer, tmp_path, monkeypatch):
    monkeypatch.setattr(make_regions, "PART", 2)
    words = [*squares, "--provider", "rpn", *proposer, *CLIP]
    assert run("regions", *words, "--out", tmp_path / "whole.npz")[0] == 0
    genuine, asked = make_regions.rpn_regions, []

    def until_killed(detector, part, **options):
        if len(asked) == 1:
            raise KeyboardInterrupt
        asked.append([one.image_id for one in part.images])
        return genuine(detector, part, **options)

    out = tmp_path / "killed.npz"
    monkeypatch.setattr(make_regions, "rpn_regions", until_killed)
    code, _, err = run("regions", *words, "--out", out)
    assert code == 130 and "the same command goes on" in err and not out.exists()
    asked.clear()
    monkeypatch.setattr(
        make_regions, "rpn_regions", lambda *given, **more: asked.append(0) or genuine(*given, **more)
    )
    # the second kill comes while crops are encoded
    monkeypatch.setattr(
        make_regions, "embed_regions", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    code, said, _ = run("regions", *words, "--out", out)
    assert code == 130 and len(asked) == 2 and "boxes of 2 of 6 images were made before" in said
    monkeypatch.undo()
    monkeypatch.setattr(make_regions, "PART", 2)
    monkeypatch.setattr(make_regions, "rpn_regions", lambda *_, **__: pytest.fail("proposed again"))
    code, said, _ = run("regions", *words, "--out", out)
    assert code == 0 and "boxes of 6 of 6 images" in said
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()
    # encoded crops are kept, too: nothing goes through CLIP again
    from risf_core.cm_clip import CMCLIP

    out.unlink()
    monkeypatch.setattr(CMCLIP, "embed_crops", lambda *_: pytest.fail("encoded again"))
    assert run("regions", *words, "--out", out)[0] == 0
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_a_damaged_part_and_a_changed_image_are_done_anew(squares, proposer, tmp_path, monkeypatch):
    monkeypatch.setattr(make_regions, "PART", 3)
    out = tmp_path / "r.npz"
    words = [*squares, "--provider", "rpn", *proposer, "--no-embeddings", "--out", out]
    assert run("regions", *words)[0] == 0
    before = RegionSet.load(out)
    first, second = sorted((tmp_path / "r.npz.parts").glob("boxes-*.npz"))
    first.write_bytes(first.read_bytes()[:-40])
    assert run("regions", *words)[0] == 0
    assert np.array_equal(RegionSet.load(out).boxes, before.boxes)
    pixels = np.asarray(Image.open(tmp_path / "0.png")).copy()[::-1]
    Image.fromarray(pixels).save(tmp_path / "0.png")
    code, said, _ = run("regions", *words)
    assert code == 0 and "boxes of 3 of 6 images were made before" in said
    assert not np.array_equal(
        RegionSet.load(out).of(before.image_ids[0]).boxes, before.of(before.image_ids[0]).boxes
    )


def test_objectness_learns_from_the_base_boxes_once(squares, proposer, tmp_path, monkeypatch):
    names = load_coco(squares[1], squares[3]).class_names
    words = [*squares, "--provider", "objectness", *proposer, "--no-embeddings", "--base", *names[:2]]
    code, said, _ = run("regions", *words, "--out", tmp_path / "r.npz")
    assert code == 0 and "learns from 4 boxes of 2 classes" in said
    first = RegionSet.load(tmp_path / "r.npz")
    assert first.manifest["trained_on"] == list(names[:2]) and first.manifest["sees_novel"] == "unknown"
    monkeypatch.setattr(make_regions, "train_objectness", lambda *_, **__: pytest.fail("trained again"))
    assert run("regions", *words, "--top", 2, "--out", tmp_path / "r.npz")[0] == 0
    second = RegionSet.load(tmp_path / "r.npz")
    assert np.array_equal(second.boxes, first.top(2).boxes) and np.diff(second.starts).max() == 2


def test_files_of_others_are_read_and_may_be_embedded(squares, tmp_path):
    boxes = {str(n): ([[4, 4, 30, 30], [8, 8, 40, 40]], [0.4, 0.9]) for n in range(6)}
    (tmp_path / "all_objects.pkl").write_bytes(pickle.dumps(boxes))
    words = [*squares, "--provider", "file", "--regions", tmp_path / "all_objects.pkl"]
    assert run("regions", *words, "--out", tmp_path / "r.npz")[0] == 0
    found = RegionSet.load(tmp_path / "r.npz")
    assert len(found) == 12 and found.embeddings is None and found.manifest["provider"] == "MViT"
    again = [
        *squares,
        "--provider",
        "file",
        "--regions",
        tmp_path / "r.npz",
        "--top",
        1,
        "--sees-novel",
        "yes",
    ]
    assert run("regions", *again, *CLIP, "--out", tmp_path / "s.npz")[0] == 0
    best = RegionSet.load(tmp_path / "s.npz")
    assert best.boxes.tolist() == [[8, 8, 40, 40]] * 6 and best.embeddings.shape == (6, 96)
    assert best.manifest["sees_novel"] == "yes" and found.manifest["sees_novel"] == "unknown"


def test_owlv2_proposes_regions_and_a_box_for_each_name(squares, owl_parts, tmp_path):  # noqa: F811
    for part in owl_parts:
        part.save_pretrained(tmp_path / "owl")
    words = ["--provider", "owlv2", "--owlv2", tmp_path / "owl"]
    assert run("regions", *squares, *words, "--top", 2, *CLIP, "--out", tmp_path / "r.npz")[0] == 0
    found = RegionSet.load(tmp_path / "r.npz")
    assert set(found.labels) == {-1} and "OWLv2" in found.manifest["provider"]
    # names by the classes of the boxes, by category ids, and by captions
    content = json.loads((tmp_path / "squares.json").read_text())
    names = read_class_list(tmp_path / "squares.json").names
    by_id = {one["id"]: one["name"] for one in content["categories"]}
    shown = {one["image_id"]: by_id[one["category_id"]] for one in content["annotations"]}
    ids = {name: key for key, name in by_id.items()}
    entries = [one | {"pos_category_ids": [ids[shown[one["id"]]]]} for one in content["images"]]
    captions = [{"id": n, "image_id": n, "caption": f"Look, a {name}!"} for n, name in shown.items()]
    (tmp_path / "names.txt").write_text("\n".join(names))
    files = {
        "squares.json": content,
        "ids.json": content | {"images": entries, "annotations": []},
        "captions.json": {"images": content["images"], "annotations": captions},
    }
    parts = []
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
        place = ["--annotations", tmp_path / name, "--images", tmp_path, "--out", tmp_path / "labels.npz"]
        more = ["--names", tmp_path / "names.txt"] if name == "captions.json" else []
        assert run("regions", *place, *words, "--labels", *more)[0] == 0
        parts.append(RegionSet.load(tmp_path / "labels.npz"))
    for found in parts:
        labels = {one: found.manifest["class_names"][found.of(one).labels[0]] for one in shown}
        assert labels == shown and len(found) == 6 and found.embeddings is None
        assert np.array_equal(found.boxes, parts[0].boxes)
    place = ["--annotations", tmp_path / "captions.json", "--images", tmp_path, "--out", tmp_path / "l.npz"]
    code, _, err = run("regions", *place, *words, "--labels")
    assert code == 2 and "holds captions. Give --names" in only_line(err)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--provider", "rpn", *CLIP], "--provider rpn needs --detector"),
        (["--provider", "file", "--regions", "x.npz", "--owlv2", "y"], "--owlv2 belongs to --provider owlv2"),
        (["--provider", "owlv2", "--owlv2", "x"], "give the CLIP that embeds the regions"),
        (["--provider", "owlv2", "--owlv2", "x", "--no-embeddings", *CLIP], "exclude each other"),
        (["--provider", "owlv2", "--owlv2", "x", "--labels", "--top", 3], "--top does not go with --labels"),
        (
            ["--provider", "owlv2", "--owlv2", "x", "--no-embeddings", "--outside", "drop"],
            "--outside belongs to",
        ),
        (
            ["--provider", "owlv2", "--owlv2", "x", "--no-embeddings", "--crop", "shortest"],
            "--crop belongs to --clip",
        ),
        (["--provider", "yolo"], "invalid choice: 'yolo'"),
        (
            ["--provider", "rpn", "--detector", "m.pth", "--no-embeddings", "--top", 0],
            "a whole number from 1",
        ),
        (["--provider", "rpn", "--detector", "m.pth", "--no-embeddings", "--out", "r.txt"], "ends in .npz"),
    ],
)
def test_wrong_arguments_of_regions_are_refused(squares, tmp_path, words, said):
    code, _, err = run("regions", *squares, "--out", tmp_path / "r.npz", *words)
    assert code == 2 and said in err.splitlines()[-1]


def test_wrong_files_of_regions_give_one_line(squares, proposer, tmp_path):
    def error(*words, place=squares, out=tmp_path / "r.npz") -> str:
        code, _, err = run("regions", *place, "--out", out, "--no-embeddings", *words)
        assert code == 2
        return only_line(err)

    rpn = ["--provider", "rpn"]
    assert "there is no such file" in error(*rpn, "--detector", tmp_path / "no.pth")
    save_checkpoint(tmp_path / "arm.pth", {"model": {"x": torch.ones(1)}, "head": "shared"})
    assert "weights of an open-vocabulary arm" in error(*rpn, "--detector", tmp_path / "arm.pth")
    save_checkpoint(tmp_path / "other.pth", {"model": {"x": torch.ones(1)}})
    assert "Give --detector-params" in error(*rpn, "--detector", tmp_path / "other.pth")
    (tmp_path / "bad.json").write_text("[]")
    assert "has no list 'images'" in error(
        *rpn, *proposer, place=["--annotations", tmp_path / "bad.json", "--images", tmp_path]
    )
    (tmp_path / "empty").mkdir()
    words = [
        *squares[:3],
        tmp_path / "empty",
        *rpn,
        *proposer,
        "--no-embeddings",
        "--out",
        tmp_path / "r.npz",
    ]
    code, _, err = run("regions", *words)
    assert code == 2 and "none of the 6 image files" in err
    (tmp_path / "file").write_text("")
    assert "nothing can be written" in error(*rpn, *proposer, out=tmp_path / "file" / "r.npz")
    assert "--clip risf-tiny-resnet without --pretrained" in only_line(
        run("regions", *squares, *rpn, *proposer, "--clip", "risf-tiny-resnet", "--out", tmp_path / "r.npz")[
            2
        ]
    )


# -------------------------------------------------------------------------------------------------------------- test


@pytest.fixture(scope="module")
def arms(base, tmp_path_factory):  # noqa: F811
    """A toy run of two arms on the pictograms, its results folder as a run leaves it, and the test scenes' file."""
    results = tmp_path_factory.mktemp("project") / "results" / "t"
    folder = results / "artifacts" / "open_vocabulary-toy"
    folder.mkdir(parents=True)
    solver = {"iterations": 3, "batch_size": 2, "lr": 0.02}
    distillation = {"regions": "rpn", "top": 2}
    params = OpenVocabularyParams(
        profile="t",
        data=base.data,
        base="x.yaml",
        clip={"run": "y.yaml"},
        num_box_images=20,
        num_label_images=10,
        num_proposals=20,
        num_fidelity_images=4,
        residual_width=16,
        stage0=solver,
        solver=solver,
        score_thresh=0.0,
        arms={
            "base": {"train": False},
            "rkd_rpn": {"distillation": distillation},
            "weight_transfer": {"start": "rkd_rpn", "head": "transfer", "distillation": distillation},
            "cone": {"distillation": distillation, "text_cosine": 0.9},
        },
        swapped=("rkd_rpn",),
        kept=("weight_transfer", "cone"),
    )
    clip = SimpleNamespace(
        dir=results / "artifacts" / "clip-toy", record={"params": {"tower": "risf-tiny-resnet"}}
    )
    clip.dir.mkdir()
    save_checkpoint(clip.dir / "clip.pt", dict(new_clip("risf-tiny-resnet", seed=3)[0].state_dict()))
    study = _run(base, folder)
    study.upstream = lambda ref: clip if ref.params == "y.yaml" else base
    rows = run_open_vocabulary(params, study)
    own = {"notebook": "50_open_vocabulary", "params": params.model_dump(mode="json"), "state_hash": "o"}
    own |= {"upstream": {"base-toy": "b", "clip-toy": "c"}, "rows": rows}
    records = {
        "open_vocabulary-toy": own,
        "base-toy": base.record | {"notebook": "10_base_training", "state_hash": "b"},
        "clip-toy": clip.record | {"notebook": "12_tiny_clip", "state_hash": "c"},
    }
    (results / "records").mkdir()
    for name, record in records.items():
        (results / "records" / f"{name}.json").write_text(json.dumps(record | {"run_id": name}))
    benchmark = open_benchmark(base.data, split=1)
    test, images = benchmark.test, benchmark.test.images[0].path.parent
    write_coco(results / "scenes.json", test, images_dir=images)
    place = ["--annotations", results / "scenes.json", "--images", images]
    by_key = {tuple(row.get(key) for key in ("part", "arm", "renderer", "vocabulary")): row for row in rows}
    return SimpleNamespace(
        results=results,
        place=place,
        rows=by_key,
        test=test,
        novel=benchmark.novel_names,
        weights=folder / "weights",
    )


def weights_of(arms, name: str) -> list:
    return ["--weights", arms.weights / f"{name}.pth"]


@pytest.mark.parametrize("name", ["rkd_rpn", "weight_transfer"])
def test_an_arm_on_its_own_test_scenes_has_the_numbers_of_its_row(arms, tmp_path, name):
    out = tmp_path / "results.json"
    code, said, err = run(
        "test", *arms.place, *weights_of(arms, name), "--novel", ",".join(arms.novel), "--out", out
    )
    assert (code, err) == (0, ""), err
    row = arms.rows["arm", name, None, None]
    summary = json.loads((tmp_path / "results.metrics.json").read_text())
    # classes stand in another order in the file, and so do the terms of a mean
    for metric in ("AP", "AP50", "AP75", "bAP", "bAP50", "nAP", "nAP50", "num_detections"):
        assert summary["metrics"][metric] == pytest.approx(row[metric], rel=1e-9), metric
    assert summary["metrics"]["per_class"] == row["per_class"]
    assert f"all classes: AP {row['AP']:.2f}, AP50 {row['AP50']:.2f}" in said and "novel classes: AP " in said
    assert (summary["arm"], summary["run_id"]) == (name, "open_vocabulary-toy")
    # the results file by itself: read with the annotations, it has the same AP
    classes = read_class_list(arms.place[1])
    assert len(read_results([str(out)], classes)) == row["num_detections"] * len(arms.test)
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(arms.place[1])
        judge = COCOeval(truth, truth.loadRes(str(out)), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    assert 100 * judge.stats[0] == pytest.approx(row["AP"], abs=1e-9)
    assert row["AP"] > 0 and row["num_detections"] > 10


def test_other_names_are_those_of_the_swapped_row(arms, tmp_path):
    names = (*arms.test.class_names, *EXTRA_CONCEPTS)
    (tmp_path / "names.txt").write_text("\n".join(names))
    words = ["--names", tmp_path / "names.txt", "--novel", *arms.novel, "--out", tmp_path / "r.json"]
    code, said, _ = run("test", *arms.place, *weights_of(arms, "rkd_rpn"), *words)
    assert code == 0 and f"{len(names)} names" in said
    summary = json.loads((tmp_path / "r.metrics.json").read_text())
    row = arms.rows["swap", "rkd_rpn", "own", "all"]
    for metric in ("AP50", "bAP50", "nAP50"):
        assert summary["metrics"][metric] == pytest.approx(row[metric], rel=1e-9), metric
    ids = {one["name"]: one["category_id"] for one in summary["names"]}
    assert {name: ids[name] for name in arms.test.class_names} == dict(
        zip(arms.test.class_names, arms.test.category_ids)
    )
    assert len(set(ids.values())) == len(names)
    used = {row["category_id"] for row in json.loads((tmp_path / "r.json").read_text())}
    assert used - set(arms.test.category_ids)  # distractors are found, too


def test_renamed_and_left_out_classes(arms, tmp_path):
    first, second, third, *others = read_class_list(arms.place[1]).names
    words = [
        "--rename",
        f"{first}=a thing",
        f"{second}=a thing",
        "--leave-out",
        third,
        "--out",
        tmp_path / "r.json",
    ]
    code, said, err = run("test", *arms.place, *weights_of(arms, "rkd_rpn"), *words)
    assert code == 0, err
    summary = json.loads((tmp_path / "r.metrics.json").read_text())
    assert [one["name"] for one in summary["names"]] == ["a thing", *others]
    assert summary["names"][0]["classes"] == [first, second] and summary["left_out"] == [third]
    assert summary["names"][0]["category_id"] > max(arms.test.category_ids)
    counts = arms.test.counts()
    assert summary["objects"] == sum(counts.values()) - counts[third]
    (tmp_path / "names.txt").write_text("\n".join(["a thing", *others]))
    words[-1:] = [tmp_path / "s.json", "--names", tmp_path / "names.txt"]
    assert run("test", *arms.place, *weights_of(arms, "rkd_rpn"), *words)[0] == 0
    assert (tmp_path / "s.json").read_bytes() == (tmp_path / "r.json").read_bytes()
    code, _, err = run("test", *arms.place, *weights_of(arms, "rkd_rpn"), *words[3:])
    assert (
        code == 2
        and f"class {first!r} of the data has no column" in only_line(err)
        and "--rename OLD=NEW" in err
    )


@pytest.mark.parametrize("large", [False, True])
def test_a_killed_test_goes_on_and_ends_in_the_same_files(arms, tmp_path, monkeypatch, large):
    """With few names all detections are kept in the parts, with many only those that count."""
    if large:
        monkeypatch.setattr(arm_testing, "LARGE", 5)
        monkeypatch.setattr("risf_core.open_vocabulary.large_vocabulary.LARGE", 5)
    words = ["test", *arms.place, *weights_of(arms, "rkd_rpn"), "--score-thresh", 0.01]
    assert run(*words, "--out", tmp_path / "whole.json")[0] == 0
    monkeypatch.setattr(make_regions, "PART", 5)
    genuine, asked = arm_testing.detect_vocabulary, []

    def until_killed(detector, part, path, **limits):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(part))
        return genuine(detector, part, path, **limits)

    monkeypatch.setattr(arm_testing, "detect_vocabulary", until_killed)
    out = tmp_path / "killed.json"
    assert run(*words, "--out", out)[0] == 130 and not out.exists()
    asked.clear()
    code, said, _ = run(*words, "--out", out)
    assert code == 0 and f"10 of {len(arms.test)} images were done before" in said and asked == [5, 1]
    assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()
    metrics = [(tmp_path / f"{name}.metrics.json").read_bytes() for name in ("whole", "killed")]
    assert metrics[0] == metrics[1]


def test_lvis_has_its_own_rules_under_any_names(arms, tmp_path):
    path = write_lvis(tmp_path, random_content(1, images=8))
    place = ["--annotations", path, "--images", tmp_path, "--lvis", "--out", tmp_path / "r.json"]
    code, said, err = run("test", *place, *weights_of(arms, "rkd_rpn"))
    assert code == 0 and "rare classes: AP " in said and "6 names" in said, err
    metrics = json.loads((tmp_path / "r.metrics.json").read_text())["metrics"]
    assert {"APr", "APc", "APf", "nAP"} <= metrics.keys()
    (tmp_path / "names.txt").write_text("zebra\ncouch\nkite\nwine glass\ngear\nanchor\nbat animal\n")
    words = ["--names", tmp_path / "names.txt", "--rename", "sofa=couch"]
    assert run("test", *place, *weights_of(arms, "rkd_rpn"), *words)[0] == 0
    summary = json.loads((tmp_path / "r.metrics.json").read_text())
    ids = {one["name"]: one["category_id"] for one in summary["names"]}
    assert ids == {
        "anchor": 1,
        "bat animal": 2,
        "couch": 3,
        "kite": 4,
        "gear": 5,
        "wine glass": 6,
        "zebra": 7,
    }
    words = ["--rename", "sofa=kite"]
    code, _, err = run("test", *place, *weights_of(arms, "rkd_rpn"), *words)
    assert code == 2 and "'sofa' and 'kite' would be one column" in only_line(err)


def test_lvis_under_names_in_another_order_judges_alike(tmp_path):
    """The same detections, by class: perfect ones of every box and false ones where the class is unknown."""
    from risf_core.open_vocabulary.cross_data import match_names, swap_vocabulary
    from risf_core.open_vocabulary.large_vocabulary import LeanDetections

    lvis = load_lvis(write_lvis(tmp_path, random_content(2)), tmp_path)
    names = ("zebra", *reversed(lvis.data.class_names))
    column = match_names(lvis.data.class_names, names, {})
    swapped = arm_testing.swap_lvis(lvis, swap_vocabulary(lvis.data, names), column)
    flat, rng = lvis.data.flat, np.random.default_rng(0)
    ids = np.array([one.image_id for one in lvis.data.images])
    images = np.concatenate([ids[flat.images], rng.choice(ids, 60)])
    labels = np.concatenate([flat.labels, rng.integers(0, 6, 60)])
    boxes = np.concatenate([flat.boxes, rng.choice(flat.boxes, 60)])
    columns = {
        "image_ids": images,
        "boxes": boxes,
        "scores": rng.random(len(images)),
        "proposals": np.arange(len(images)),
    }
    own = LeanDetections.of(columns | {"labels": labels}, lvis.data.class_names)
    moved = np.array([column[lvis.data.class_names[label]] for label in labels])
    other = LeanDetections.of(columns | {"labels": moved}, names)
    first, second = LvisEvaluator(lvis).evaluate(own), LvisEvaluator(swapped).evaluate(other)
    assert second["per_class"].pop("zebra")["AP"] is None
    assert first["AP"] != Evaluator(lvis.data).evaluate(own)["AP"]  # the rules matter here
    assert first == second


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda record: record | {"notebook": "20_fine_tuning"}, "Expected a run of 50_open_vocabulary"),
        (lambda record: record | {"upstream": {"base-toy": "other", "clip-toy": "c"}}, "was made anew since"),
        (
            lambda record: record | {"upstream": {"gone": "b", "clip-toy": "c"}},
            "the run gone, whose record is not",
        ),
        (lambda record: record | {"upstream": {}}, "names no run of 10_base_training"),
        (lambda record: record | {"params": record["params"] | {"seeed": 1}}, "unknown parameter 'seeed'"),
    ],
)
def test_a_wrong_record_gives_one_line(arms, tmp_path, change, said):
    record = json.loads((arms.results / "records" / "open_vocabulary-toy.json").read_text())
    path = arms.results / "records" / "changed.json"
    path.write_text(json.dumps(change(record)))
    words = ["--record", path, "--out", tmp_path / "r.json"]
    code, _, err = run("test", *arms.place, *weights_of(arms, "rkd_rpn"), *words)
    assert code == 2 and said in only_line(err)


def test_wrong_arguments_of_test_give_one_line(arms, tmp_path):
    def error(*words, weights="rkd_rpn", place=arms.place) -> str:
        code, _, err = run("test", *place, *weights_of(arms, weights), "--out", tmp_path / "r.json", *words)
        assert code == 2
        return err.splitlines()[-1]

    assert "text_cosine" in error(weights="cone")
    assert "no arm 'rkd'. Give --arm, one of: stage0, base, rkd_rpn" in error("--arm", "rkd")
    assert "there is no class 'blimp'" in error("--novel", "blimp")
    assert "there is no class 'blimp'" in error("--leave-out", "blimp")
    assert "expected OLD=NEW, got 'blimp'" in error("--rename", "blimp")
    assert "--novel does not go with --lvis" in error("--lvis", "--novel", "gear")
    assert "--pretrained belongs to --clip" in error("--pretrained", "openai")
    assert "ends in .json" in error("--out", tmp_path / "r.txt")
    assert "is an input" in error("--out", arms.place[1])
    words = [*arms.place, *weights_of(arms, "rkd_rpn"), "--out", tmp_path / "r.json"]
    assert "frequency is None" in run("test", *words, "--lvis")[2]
    (tmp_path / "arm.pth").write_bytes((arms.weights / "rkd_rpn.pth").read_bytes())
    words = ["--weights", tmp_path / "arm.pth"]
    assert "the run of the arm is not known. Give --record" in error(*words)
    record = ["--record", arms.results / "records" / "open_vocabulary-toy.json"]
    assert "no arm 'arm'" in error(*words, *record)
    assert (
        run("test", *arms.place, *words, *record, "--arm", "rkd_rpn", "--out", tmp_path / "ok.json")[0] == 0
    )


def test_another_clip_must_be_as_wide(arms, tmp_path):
    words = [*arms.place, *weights_of(arms, "rkd_rpn"), "--out", tmp_path / "r.json"]
    same = arms.results / "artifacts" / "clip-toy" / "clip.pt"
    assert run("test", *words, "--clip", "risf-tiny-resnet", "--pretrained", same)[0] == 0
    own = (tmp_path / "r.json").read_bytes()
    assert run("test", *words)[0] == 0 and (tmp_path / "r.json").read_bytes() == own
    same.rename(same.with_name("away.pt"))
    try:
        code, _, err = run("test", *words)
        assert code == 2 and "--clip risf-tiny-resnet --pretrained FILE" in only_line(err)
    finally:
        same.with_name("away.pt").rename(same)


def test_a_params_file_says_what_a_record_says(monkeypatch):
    """Of a run whose detector and CLIP stand in its parameters, and of one that builds on others."""
    root = Path(__file__).parents[1]
    monkeypatch.setenv("RISF_ROOT", str(root))
    by_itself = arm_testing.read_run(root / "params" / "coco-ovd" / "50_open_vocabulary.yaml")
    assert by_itself.detector == by_itself.params.detector and by_itself.tower is None
    other = arm_testing.read_run(root / "params" / "smoke" / "50_open_vocabulary.yaml")
    assert other.tower == "risf-tiny-resnet" and other.clip_file.name == "clip.pt"
    assert other.architecture.detector.rpn_post_nms_train == 30
