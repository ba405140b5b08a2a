"""The user's files in an open-vocabulary run: what the parameters name is what is opened, and by which rules."""

import json

import pytest
import torch

from risf_core.errors import ParamsError
from risf_core.evaluation import Evaluator
from risf_core.open_vocabulary.coco_ovd import BASE_NAMES, CLASS_NAMES
from risf_core.open_vocabulary.detector import ImageNames, OpenVocabularyRCNN, Supervision
from risf_core.open_vocabulary.lvis_evaluation import LvisEvaluator
from risf_core.open_vocabulary.open_data import max_detections, open_data
from risf_core.open_vocabulary_params import ImageSupervisionParams, OpenVocabularyParams
from risf_core.params import DetectorParams
from tests.data.coco_files import box_entry, image_entry, write_files
from tests.lvis_files import CATEGORIES, random_content, write_lvis
from tests.test_coco_ovd import ALL, CAT, PERSON, test_file, train_file

SMALL = DetectorParams(
    stages=(1, 1, 1), stem_width=8, res2_width=8, res5_blocks=1, res5_width=16, norm="FrozenBN"
)


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """Names of files start from the project, not from the folder that a notebook runs in."""
    monkeypatch.setenv("RISF_ROOT", str(tmp_path))
    elsewhere = tmp_path / "notebooks"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return tmp_path


def params_of(**files):
    clip = {"model": "ViT-B-32-quickgelu", "pretrained": "openai"}
    return OpenVocabularyParams(profile="toy", weights="weights.pth", detector=SMALL, clip=clip, files=files)


def coco_params(**more):
    files = {
        "kind": "coco_ovd", "train_annotations": "instances_train2017_seen_2.json", "train_images": ".",
        "test_annotations": "instances_val2017_all_2.json", "test_images": ".",
    }  # fmt: skip
    return params_of(**files | more)


def captions_file(folder, texts):
    images = [image_entry(n) for n in range(1, len(texts) + 1)]
    write_files(folder, images, [], name="captions.json")
    entries = [{"id": n, "image_id": n, "caption": text} for n, text in enumerate(texts, start=1)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": entries}))


def test_coco_with_captions_by_rule_and_synonyms(project):
    train_file(project), test_file(project)
    captions_file(project, ["A cat.", "a lounge and a kite"])
    (project / "lvis.json").write_text(
        json.dumps({"images": [], "categories": [*CATEGORIES, {"name": "couch"}]})
    )
    data, evaluator = open_data(coco_params(label_annotations="captions.json"))
    assert [data.label_train.names(n) for n in range(2)] == [("cat",), ("kite",)]
    assert type(evaluator) is Evaluator and data.class_names == CLASS_NAMES
    data, _ = open_data(coco_params(label_annotations="captions.json", synonyms="lvis.json"))
    assert [data.label_train.names(n) for n in range(2)] == [("cat",), ("kite", "couch")]
    data, _ = open_data(coco_params(label_annotations="captions.json", caption_rule="released"))
    assert [data.label_train.names(n) for n in range(1)] == [("kite",)]
    base, _ = open_data(coco_params(label_annotations="captions.json"), labels="base")
    assert [base.label_train.names(n) for n in range(1)] == [("kite",)]
    with pytest.raises(ParamsError, match="pictograms alone"):
        open_data(coco_params(label_annotations="captions.json"), labels="strict")


def test_coco_of_all_classes(project):
    train_file(project, ALL, [box_entry(4, 2, CAT), box_entry(5, 3, CAT)])
    test_file(project, ALL)
    data, _ = open_data(coco_params(all_classes=True))
    assert {name for name, count in data.box_train.counts().items() if count} <= set(BASE_NAMES)
    assert data.label_train is None and data.box_train.counts()["person"] == 2 and PERSON == 1


def test_lvis_has_its_evaluator_and_300_detections(project):
    write_lvis(project, random_content(0))
    name = "lvis_v1_val.json"
    params = params_of(
        kind="lvis_ovd", train_annotations=name, train_images=".", test_annotations=name, test_images="."
    )
    data, evaluator = open_data(params)
    assert isinstance(evaluator, LvisEvaluator) and max_detections(params) == 300
    assert not data.class_mask[data.class_names.index("gear")]
    assert max_detections(coco_params()) == 100


@pytest.mark.parametrize(
    ("size", "expected"),
    # short side 400, long side at most 1333 / 800 * 400 = 666.5
    [((480, 640), (400, 533)), ((640, 480), (533, 400)), ((200, 800), (166, 664)), ((480, 600), (400, 500))],
)
def test_images_with_names_are_resized_to_their_own_side(size, expected):
    params = SMALL.model_copy(update={"min_size": (800,), "max_size": 1333})
    detector = OpenVocabularyRCNN(params, torch.randn(3, 4)).train()
    image = torch.zeros(3, *size, dtype=torch.uint8)
    supervision = Supervision(images=ImageSupervisionParams(short_side=400))
    names = ImageNames(torch.tensor([0]))
    resized = detector.resize(image, detector._short_side(image, names, supervision))
    assert tuple(resized.shape[1:]) == expected
    assert detector._short_side(image, None, supervision) is None  # images with boxes: the detector's own
    assert detector._short_side(image, names, Supervision(images=ImageSupervisionParams())) is None
