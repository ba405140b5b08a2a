"""CM-CLIP: hand-worked crops, probabilities and scores, shared batches, stored similarities, the published numbers."""

import json
import os
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from PIL import Image

from risf_core.cm_clip import CMCLIP, apply_cm_clip, encode_detections, label_space_names, load_clip, rescore
from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.data.loader import ImageCache, read_image
from risf_core.detections import Detections, Similarities
from risf_core.errors import DataError, ParamsError
from tests.color_clip import NAMES, ColorClip, color_clip, color_tokens
from tests.real_data import real_data


def two_colors() -> torch.Tensor:
    """10x20 pixels: red on the left half, green on the right one."""
    image = torch.zeros(3, 10, 20, dtype=torch.uint8)
    image[0, :, :10], image[1, :, 10:] = 255, 255
    return image


def noise(seed: int, height: int = 40, width: int = 50) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def tiny():
    return load_clip("risf-tiny-resnet", None)


# ---------------------------------------------------------------------------------------------- the formula


def test_rescore_blends_by_hand_and_keeps_scores_at_one():
    scores, probs = torch.tensor([0.8, 0.1]), torch.tensor([0.6, 1.0])
    assert rescore(scores, probs, c=0.7) == pytest.approx([0.74, 0.37])
    assert torch.equal(rescore(scores, probs, c=1.0), scores)
    assert np.allclose(rescore(scores.numpy(), probs.numpy(), c=0.0), [0.6, 1.0])


def test_rescore_refuses_other_shapes_and_weights():
    with pytest.raises(ValueError, match="differ in shape"):
        rescore(torch.zeros(2), torch.zeros(2, 1), c=0.5)
    with pytest.raises(ValueError, match="c is 1.2"):
        rescore(torch.zeros(2), torch.zeros(2), c=1.2)


def test_label_spaces_have_novel_first_and_background_last():
    names = {"novel_names": ["cat"], "base_names": ["cow", "cup"]}
    assert label_space_names("novel+background", **names) == ("cat", "background")
    assert label_space_names("novel+base+background", **names) == ("cat", "cow", "cup", "background")
    with pytest.raises(ParamsError, match="label space 'novel'"):
        label_space_names("novel", **names)


# ---------------------------------------------------------------------------------------------- crops


def ramp() -> torch.Tensor:
    """Red rises by 1 for each column and blue by 2 for each row: 12 rows, 16 columns."""
    image = torch.zeros(3, 12, 16, dtype=torch.uint8)
    image[0] = torch.arange(16)
    image[2] = 2 * torch.arange(12)[:, None]
    return image


def test_crop_of_a_ramp_is_the_ramp_at_the_bin_centres():
    clip = color_clip(mean=0.5, std=0.25)
    crop = clip.crops(ramp(), torch.tensor([[2.0, 1.0, 10.0, 11.0]]))[0]
    # Bins of 2 x 2.5 pixels; the centre of pixel i lies at i + 0.5: columns 2 + 2 (i + 0.5) - 0.5, rows likewise.
    columns, rows = torch.tensor([2.5, 4.5, 6.5, 8.5]), torch.tensor([1.75, 4.25, 6.75, 9.25])
    assert torch.allclose(crop[0] * 0.25 + 0.5, (columns / 255).expand(4, 4), atol=1e-6)
    assert torch.allclose(crop[2] * 0.25 + 0.5, (2 * rows / 255)[:, None].expand(4, 4), atol=1e-6)
    assert torch.allclose(crop[1], torch.full((4, 4), -2.0))  # (0 - 0.5) / 0.25


def test_released_crops_are_bgr_without_mean_and_std():
    box = torch.tensor([[2.0, 1.0, 10.0, 11.0]])
    released = color_clip(mean=0.5, std=0.25, preprocess="released").crops(ramp(), box)
    assert torch.equal(released, color_clip().crops(ramp(), box).flip(1))


def test_bicubic_crops_equal_the_transform_of_open_clip(tiny):
    image = noise(0)
    page = Image.fromarray(image.permute(1, 2, 0).numpy())
    # its rule: shortest, centre crop
    _, _, transform = open_clip.create_model_and_transforms("risf-tiny-resnet")
    whole = torch.tensor([[0.0, 0.0, 50.0, 40.0]])
    clip = CMCLIP(tiny.model, tiny.tokenizer, NAMES, resize="bicubic", crop="shortest")
    assert torch.equal(clip.crops(image, whole)[0], transform(page))
    squash = open_clip.image_transform(64, is_train=False, resize_mode="squash")
    clip = CMCLIP(tiny.model, tiny.tokenizer, NAMES, resize="bicubic")
    boxes = torch.tensor([[3.6, 4.2, 20.1, 39.9], [45.0, 30.0, 80.0, 90.0]])  # the second leaves the image
    expected = torch.stack([squash(page.crop((3, 4, 21, 40))), squash(page.crop((45, 30, 50, 40)))])
    assert torch.equal(clip.crops(image, boxes), expected)


@pytest.mark.parametrize("rule", ["shortest", "longest"])
def test_crops_that_keep_the_aspect_equal_the_transform_of_open_clip(tiny, rule):
    image = noise(3, 70, 90)
    clip = CMCLIP(tiny.model, tiny.tokenizer, NAMES, resize="bicubic", crop=rule)
    crop = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((5, 10, 85, 30))
    transform = open_clip.image_transform(64, is_train=False, resize_mode=rule)
    assert torch.equal(clip.crops(image, torch.tensor([[5.0, 10.0, 85.0, 30.0]]))[0], transform(crop))


def test_clips_own_picture_gives_openais_tensor_exactly():
    folder = real_data("clip_preprocess")
    model = ColorClip(224)
    model.visual.preprocess_cfg |= {"mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD}
    clip = CMCLIP(model, color_tokens, NAMES, resize="bicubic", crop="shortest")
    image = read_image(folder / "franz-kafka.jpg")
    whole = torch.tensor([[0.0, 0.0, image.shape[2], image.shape[1]]])
    assert np.array_equal(
        clip.crops(image, whole).numpy(), np.load(folder / "expected_preprocessed_image.npy")
    )


def test_tensors_are_resized_as_pil_does_within_two_levels_and_a_thousandth_of_probability():
    tower = load_clip("risf-tiny-vit", None)
    pil, tensor = (
        CMCLIP(tower.model, tower.tokenizer, ("cat", "dog", "queen"), resize=rule)
        for rule in ("bicubic", "bicubic_tensor")
    )
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(60, 2, generator=generator) * 200
    # wide and tall, grown and shrunk, some beyond the border
    boxes = torch.cat([corners, corners + 3 + 200 * torch.rand(60, 2, generator=generator)], dim=1)
    image = noise(4, 240, 300)
    levels = (pil.crops(image, boxes) - tensor.crops(image, boxes)).abs() * 255 * max(OPENAI_DATASET_STD)
    assert levels.max() < 2.1 and (levels > 0.1).float().mean() < 1e-3
    expected, found = (clip.probabilities(image, boxes) for clip in (pil, tensor))
    # the probabilities differ over the crops, so that the band says something
    assert (expected.amax(0) - expected.amin(0)).max() > 0.1
    assert (expected - found).abs().max() < 1e-3


@pytest.mark.parametrize("rule", ["bicubic", "bicubic_tensor"])
def test_all_resize_rules_see_the_same_picture(tiny, rule):
    image = two_colors()
    boxes = torch.tensor([[0.0, 0.0, 20.0, 10.0]])
    crops = [
        CMCLIP(tiny.model, tiny.tokenizer, NAMES, resize=name).crops(image, boxes)
        for name in ("roi_align", rule)
    ]
    assert crops[0].shape == crops[1].shape == (1, 3, 64, 64)
    assert (crops[0] - crops[1])[..., :24].abs().max() < 1e-5  # away from the edge between the colours
    assert (crops[0] - crops[1])[..., 40:].abs().max() < 1e-5


@pytest.mark.parametrize(
    ("image", "boxes", "words"),
    [
        (torch.zeros(3, 4, 4), torch.zeros(1, 4), "expected uint8 rgb"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), torch.zeros(1, 4), "expected uint8 rgb"),
        (ramp(), torch.zeros(4), "expected finite"),
        (ramp(), torch.tensor([[0.0, 0.0, float("nan"), 1.0]]), "expected finite"),
    ],
)
def test_crops_refuse_other_inputs(image, boxes, words):
    with pytest.raises(DataError) as error:
        color_clip().crops(image, boxes)
    assert words in str(error.value).lower()


# ---------------------------------------------------------------------------------------------- probabilities


def test_probabilities_of_pure_colours_by_hand():
    clip = color_clip(temperature=2.0)
    boxes = torch.tensor([[0.0, 0.0, 8.0, 10.0], [12.0, 0.0, 20.0, 10.0]])
    hit, miss = np.exp(2) / (np.exp(2) + 2), 1 / (np.exp(2) + 2)
    assert clip.label_space == ("red", "green", "background")
    assert clip.probabilities(two_colors(), boxes).numpy() == pytest.approx(
        np.array([[hit, miss, miss], [miss, hit, miss]]), abs=1e-6
    )


def test_probabilities_sum_to_one_and_no_boxes_are_fine(tiny):
    clip = CMCLIP(tiny.model, tiny.tokenizer, ["cat", "cow"], label_space=["cow", "cup", "cat", "background"])
    assert list(clip.label_columns) == [2, 0]
    probs = clip.probabilities(noise(1), torch.tensor([[1.0, 2.0, 30.0, 38.0], [0.0, 0.0, 5.0, 5.0]]))
    assert probs.shape == (2, 4)
    assert not probs.requires_grad and not clip.text_embeds_norm.requires_grad
    assert torch.allclose(probs.sum(1), torch.ones(2))
    assert clip.probabilities(noise(1), torch.empty(0, 4)).shape == (0, 4)
    assert clip.probabilities(noise(1), []).shape == (0, 4)


def test_templates_are_averaged_after_normalisation():
    texts = {"a big red": [10.0, 0.0, 0.0], "a red": [0.0, 2.0, 0.0]}
    clip = CMCLIP(ColorClip(), lambda prompts: torch.tensor([texts[p] for p in prompts]), ["red"], label_space=["red"],
                  templates=["a big {}", "a {}"])  # fmt: skip
    assert clip.text_embeds_norm.numpy() == pytest.approx(np.array([[0.5**0.5, 0.5**0.5, 0.0]]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label_space": ["red", "background"]}, "missing: ['green']"),
        ({"label_space": ["red", "background", "green"]}, "as the last name"),
        ({"label_space": ["red", "green", "red"]}, "each class once"),
        ({"label_space": "novel+background"}, "list of names"),
        ({"preprocess": "bgr"}, "clip, released"),
        ({"resize": "bilinear"}, "roi_align, bicubic, bicubic_tensor"),
        ({"crop": "shortest"}, 'use "bicubic"'),
        ({"crop": "longest", "resize": "bicubic_tensor"}, 'use "bicubic"'),
        ({"templates": ["a photo"]}, "templates"),
    ],
)
def test_wrong_choices_are_named(options, words):
    with pytest.raises(ParamsError) as error:
        color_clip(**options)
    assert words in str(error.value)


# ---------------------------------------------------------------------------------------------- stored files


def stored(tmp_path: Path, counts=(3, 0, 5, 2)) -> tuple[Detections, DetectionData]:
    """Random detections of two classes in noise images written to disk; the last two of image 3 have equal boxes."""
    rng = np.random.default_rng(0)
    records, ids, boxes = [], [], []
    for image_id, count in enumerate(counts, start=1):
        path = tmp_path / f"{image_id}.png"
        Image.fromarray(noise(image_id).permute(1, 2, 0).numpy()).save(path)
        none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
        records.append(ImageRecord(image_id, path, 40, 50, *none))
        ids += [image_id] * count
        corners = rng.uniform(0, 20, (count, 2))
        boxes.append(np.concatenate([corners, corners + rng.uniform(5, 20, (count, 2))], axis=1))
    if counts[2] > 1:
        boxes[2][-1] = boxes[2][-2]
    total = sum(counts)
    detections = Detections(
        np.array(ids), np.concatenate(boxes), np.linspace(0.9, 0.02, total), np.arange(total) % 2,
        np.zeros((total, 3)), np.arange(total), NAMES,
    )  # fmt: skip
    return detections, DetectionData("noise", NAMES, (1, 2), tuple(records))


@pytest.mark.parametrize("batch_size", [1, 4, 256])
def test_shared_batches_equal_each_image_alone(tmp_path, tiny, batch_size):
    detections, data = stored(tmp_path)
    clip = CMCLIP(tiny.model, tiny.tokenizer, NAMES, batch_size=batch_size)
    similarities = encode_detections(detections, data, clip, score_thresh=0.0)
    assert similarities.encoded.all() and similarities.label_names == ("red", "green", "background")
    for record in data.images:
        rows = detections.image_ids == record.image_id
        alone = clip.cosines(read_image(record.path), detections.boxes[rows])
        assert np.abs(similarities.cosines[rows] - alone.numpy()).max(initial=0) < 1e-6


def test_equal_boxes_are_encoded_once_in_few_batches(tmp_path):
    detections, data = stored(tmp_path)
    clip = color_clip(batch_size=4)
    similarities = encode_detections(detections, data, clip, score_thresh=0.0)
    assert clip.model.batch_sizes == [3, 4, 2]  # images 1, 3, 4 hold 3, 4 different and 2 boxes
    last = np.flatnonzero(detections.image_ids == 3)[-2:]
    assert np.array_equal(detections.boxes[last[0]], detections.boxes[last[1]])
    assert np.array_equal(similarities.cosines[last[0]], similarities.cosines[last[1]])


def test_order_of_the_detections_changes_nothing(tmp_path, tiny):
    detections, data = stored(tmp_path)
    clip = CMCLIP(tiny.model, tiny.tokenizer, NAMES, batch_size=4)
    shuffled = detections.with_scores(detections.scores[::-1].copy())
    first, second = (encode_detections(d, data, clip, score_thresh=0.0) for d in (detections, shuffled))
    back = np.argsort(shuffled.proposals)
    assert np.array_equal(first.cosines[np.argsort(detections.proposals)], second.cosines[back])


def test_threshold_and_classes_decide_what_is_encoded(tmp_path):
    detections, data = stored(tmp_path)
    clip, cache = color_clip(), ImageCache()
    similarities = encode_detections(
        detections, data, clip, score_thresh=0.3, rescored_classes=["green"], cache=cache
    )
    expected = (detections.scores > 0.3) & (detections.labels == 1)
    assert 0 < expected.sum() < (detections.scores > 0.3).sum() < len(detections)
    assert np.array_equal(similarities.encoded, expected)
    assert sum(clip.model.batch_sizes) == expected.sum()
    assert cache.num_bytes > 0


def test_no_detection_at_all_is_fine(tmp_path):
    detections, data = stored(tmp_path)
    nothing = detections.keep(detections.scores > 0.99)
    assert len(encode_detections(nothing, data, color_clip())) == 0
    weak = detections.with_scores(detections.scores / 100)
    similarities = encode_detections(weak, data, color_clip())
    assert not similarities.encoded.any()
    same = apply_cm_clip(weak, similarities, label_space=(*NAMES, "background"))
    assert np.array_equal(same.scores, weak.scores)


def test_detection_in_an_unknown_image_is_refused(tmp_path):
    detections, data = stored(tmp_path)
    data = DetectionData("noise", NAMES, (1, 2), data.images[:2])
    with pytest.raises(DataError, match="image 3, which the data does not have"):
        encode_detections(detections, data, color_clip(), score_thresh=0.0)


# ---------------------------------------------------------------------------------------------- re-scoring files


def by_hand(cosines) -> tuple[Detections, Similarities]:
    """Three detections of one image, red, green, red, with scores 0.9, 0.5, 0.04, and cosines."""
    detections = Detections(
        np.ones(3),
        np.tile([0, 0, 5, 5], (3, 1)),
        [0.9, 0.5, 0.04],
        [0, 1, 0],
        np.zeros((3, 3)),
        np.arange(3),
        NAMES,
    )
    encoded = np.isfinite(np.asarray(cosines)).all(1)
    return detections, Similarities(np.asarray(cosines), encoded, ("red", "green", "white", "background"))


COSINES = [[0.0, 0.1, 0.3, 0.2], [0.1, 0.4, 0.1, 0.1], [np.nan] * 4]


def test_scores_by_hand_with_a_changed_order():
    detections, similarities = by_hand(COSINES)
    new = apply_cm_clip(
        detections, similarities, c=0.25, temperature=10.0, label_space=("red", "green", "background")
    )
    red = np.exp(0) / (np.exp(0) + np.exp(1) + np.exp(2))
    green = np.exp(4) / (np.exp(4) + 2 * np.exp(1))
    assert detections.scores == pytest.approx([0.9, 0.5, 0.04])  # the given ones stay
    assert list(new.labels) == [1, 0, 0]  # the green one, 0.125 + 0.75 * 0.91, is now ahead
    assert new.scores == pytest.approx([0.25 * 0.5 + 0.75 * green, 0.25 * 0.9 + 0.75 * red, 0.04], abs=1e-6)


def test_c_of_one_changes_nothing_at_all():
    detections, similarities = by_hand(COSINES)
    same = apply_cm_clip(detections, similarities, c=1.0, label_space=("red", "green", "background"))
    assert np.array_equal(same.scores, detections.scores) and np.array_equal(same.labels, detections.labels)


def test_only_the_named_classes_above_the_threshold_change():
    detections, similarities = by_hand(COSINES)
    options = {"label_space": ("red", "green", "background"), "c": 0.5}
    changed = apply_cm_clip(detections, similarities, rescored_classes=["green"], **options)
    assert changed.scores[changed.labels == 0] == pytest.approx([0.9, 0.04])
    # its probability is 1 - 1e-13
    assert changed.scores[changed.labels == 1] == pytest.approx([0.75], abs=1e-6)
    changed = apply_cm_clip(detections, similarities, score_thresh=0.6, **options)
    assert changed.scores[changed.labels == 1] == pytest.approx([0.5])


def test_novel_classes_are_found_by_name_whatever_their_place_in_the_head():
    """The released code maps VOC's ids 15 to 19, which a head of the novel classes alone does not have."""
    _, similarities = by_hand([[0.4, 0.1, 0.0, 0.0]])
    scores = []
    for names, label in ((("red",), 0), ((*(f"base {k}" for k in range(15)), "red"), 15)):
        found = Detections([1], [[0, 0, 5, 5]], [0.5], [label], np.zeros((1, len(names) + 1)), [0], names)
        space = {"label_space": ("red", "green", "background"), "rescored_classes": ["red"]}
        scores.append(apply_cm_clip(found, similarities, temperature=10.0, **space).scores.item())
    red = np.exp(4) / (np.exp(4) + np.exp(1) + np.exp(0))
    assert scores == pytest.approx([0.7 * 0.5 + 0.3 * red] * 2, abs=1e-6)


def test_columns_of_a_wide_space_equal_the_narrow_space_itself(tmp_path, tiny):
    detections, data = stored(tmp_path)
    narrow, wide = ("red", "green", "background"), ("red", "green", "cat", "cup", "background")
    results = []
    for names in (narrow, wide):
        clip = CMCLIP(tiny.model, tiny.tokenizer, NAMES, label_space=names)
        similarities = encode_detections(detections, data, clip)
        results.append(apply_cm_clip(detections, similarities, c=0.3, temperature=20.0, label_space=narrow))
    assert np.abs(results[0].scores - results[1].scores).max() < 1e-6
    directly = [clip.probabilities(read_image(r.path), detections.boxes[detections.image_ids == r.image_id])
                for r in data.images]  # fmt: skip
    assert torch.cat(directly).shape == (len(detections), 5)


def test_stored_way_equals_the_direct_way(tmp_path, tiny):
    detections, data = stored(tmp_path)
    clip = CMCLIP(tiny.model, tiny.tokenizer, NAMES, temperature=20.0)
    new = apply_cm_clip(
        detections,
        encode_detections(detections, data, clip),
        c=0.7,
        temperature=20.0,
        label_space=clip.label_space,
    )
    for record in data.images:
        rows = np.flatnonzero(detections.image_ids == record.image_id)
        probs = clip.probabilities(read_image(record.path), detections.boxes[rows]).numpy()
        own = probs[np.arange(len(rows)), clip.label_columns[detections.labels[rows]]]
        scores = np.where(
            detections.scores[rows] > 0.05, 0.7 * detections.scores[rows] + 0.3 * own, detections.scores[rows]
        )
        found = {p: s for p, s in zip(new.proposals, new.scores)}
        assert [found[p] for p in detections.proposals[rows]] == pytest.approx(scores, abs=1e-6)


def test_files_that_do_not_belong_together_are_refused():
    detections, similarities = by_hand(COSINES)
    space = ("red", "green", "background")
    with pytest.raises(DataError, match="1 detections to re-score were not encoded"):
        apply_cm_clip(detections, similarities, score_thresh=0.01, label_space=space)
    with pytest.raises(DataError, match="not the same run"):
        apply_cm_clip(detections.keep(detections.scores > 0.1), similarities, label_space=space)
    with pytest.raises(DataError, match="'green' is re-scored"):
        apply_cm_clip(detections, similarities, label_space=("red", "background"))
    with pytest.raises(DataError, match="no column for 'blue'"):
        apply_cm_clip(detections, similarities, label_space=("red", "green", "blue"))
    with pytest.raises(DataError, match="'cyan' is no class"):
        apply_cm_clip(detections, similarities, label_space=space, rescored_classes=["cyan"])


# ---------------------------------------------------------------------------------------------- published numbers


class GivenFeatures(ColorClip):
    """A CLIP that returns the reference's features and keeps the crops it was shown."""

    def __init__(self, image_features, text_features) -> None:
        super().__init__(336)
        self.image_features, self.text_features = torch.tensor(image_features), torch.tensor(text_features)

    def encode_image(self, crops):
        self.crops = crops
        return self.image_features

    def encode_text(self, tokens):
        self.tokens = tokens
        return self.text_features


COCO_NOVEL = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "boat", "bird", "cat", "dog", "horse",
    "sheep", "cow", "bottle", "chair", "couch", "potted plant", "dining table", "tv",
)  # fmt: skip


def test_excerpt_of_the_published_rescoring():
    case = np.load(Path(__file__).parent / "data_reference" / "cmclip_case.npz")
    model = GivenFeatures(case["image_features"], case["text_features"])
    clip = CMCLIP(model, open_clip.get_tokenizer("ViT-B-32"), COCO_NOVEL, preprocess="released")
    assert np.array_equal(model.tokens.numpy(), case["tokens"])
    image = torch.from_numpy(case["image_bgr"]).permute(2, 0, 1).flip(0)
    box = case["used_boxes"][:1] - np.tile(case["offset"], 2)
    crop = clip.crops(image, torch.from_numpy(box))[0, :, ::12, ::12]
    # A box moved by whole pixels is rounded to another float32: 3e-5 pixels at most, hence not 1e-5 here.
    assert np.abs(crop.numpy() - case["crop_every_12"]).max() < 3e-5
    probs = clip.probabilities(ramp(), torch.from_numpy(case["used_boxes"]))
    assert np.abs(probs.numpy() - case["probs"]).max() < 1e-5
    own = probs.numpy()[np.arange(6), case["in_classes"]]
    assert np.abs(rescore(case["in_scores"], own, c=0.7) - case["out_scores"]).max() < 1e-6


@pytest.mark.parametrize("name", ["coco_fsod_novel20", "coco_gfsod_all80"])
def test_whole_published_cases(name):
    folder = Path(os.environ.get("RISF_REFERENCE", "nowhere"))
    if not folder.is_dir():
        pytest.skip("RISF_REFERENCE does not point at the folder with cmclip_ref.npz")
    facts = json.loads((folder / "cmclip_ref.json").read_text())[name]
    with np.load(folder / "cmclip_ref.npz") as file:
        case = {key.split("/")[1]: file[key] for key in file.files if key.startswith(f"{name}/")}
    columns = {int(label): column for label, column in facts["class_mapper"].items()}
    num_classes = 80 if "all80" in name else 20
    names = [facts["classes"][columns[k]] if k in columns else f"base {k}" for k in range(num_classes)]
    count = len(case["in_scores"])
    detections = Detections(
        np.zeros(count), case["in_boxes"], case["in_scores"], case["in_classes"], np.zeros((count, num_classes + 1)),
        np.arange(count), names,
    )  # fmt: skip
    model = GivenFeatures(case["image_features_raw"], case["class_vector"])
    clip = CMCLIP(model, open_clip.get_tokenizer("ViT-B-32"), facts["classes"][:-1], preprocess="released")
    rescored = [names[k] for k in columns]
    rows = (detections.scores > facts["lower"]) & np.isin(detections.labels, list(columns))
    cosines = np.full((count, 21), np.nan, np.float32)
    image = torch.from_numpy(case["img_bgr_hwc_u8"]).permute(2, 0, 1).flip(0)
    cosines[rows] = clip.cosines(image, detections.boxes[rows]).numpy()
    assert np.array_equal(detections.boxes[rows], case["used_boxes"])
    assert np.abs(model.crops[:1].numpy() - case["crops_first3"]).max() < 1e-5
    new = apply_cm_clip(
        detections, Similarities(cosines, rows, tuple(facts["classes"])), c=facts["alpha"],
        label_space=facts["classes"], rescored_classes=rescored, score_thresh=facts["lower"],
    )  # fmt: skip
    assert np.abs(new.scores[np.argsort(new.proposals)] - case["out_scores"]).max() < 1e-6
