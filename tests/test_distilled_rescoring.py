"""Re-scoring by distilled cosines, the choice of its settings, and the share of a gain that is kept."""

import itertools

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from risf_core.cm_clip import apply_cm_clip
from risf_core.data.pictograms import CONCEPTS, SPLITS
from risf_core.detections import Detections, Similarities
from risf_core.distilled_rescoring.boxes import BoxBank
from risf_core.distilled_rescoring.choice import choose, choose_head, is_control
from risf_core.distilled_rescoring.fidelity import log_softmax, rank_agreement, text_fidelity
from risf_core.distilled_rescoring.rescoring import (
    CellScorer,
    few_shot_targets,
    proposal_features,
    rank_matched,
    similarities,
)
from risf_core.distilled_rescoring.retention import retention
from risf_core.distilled_rescoring.study import divergence_names
from risf_core.distilled_rescoring_params import DistilledRescoringParams, HeadSpec, Setting
from risf_core.errors import DataError, ParamsError
from risf_core.head_training import RegionFeatures

NAMES = ("cat", "cow", "background")
REFERENCES = {
    "base": "params/mini/10_base_training.yaml",
    "fine_tuning": "params/mini/20_fine_tuning.yaml",
    "clip": {"run": "params/mini/12_tiny_clip.resnet.yaml"},
}


def made_params(**changes) -> DistilledRescoringParams:
    return DistilledRescoringParams.model_validate({"profile": "x", **REFERENCES, **changes})


def made_detections() -> Detections:
    """Two images; proposals in an order that is not that of the rows."""
    return Detections(
        image_ids=np.array([7, 7, 9, 9, 9]),
        boxes=np.array([[0, 0, 5, 5], [1, 1, 6, 6], [0, 0, 5, 5], [2, 2, 7, 7], [3, 3, 8, 8]], np.float32),
        scores=np.array([0.9, 0.4, 0.8, 0.3, 0.04]),
        labels=np.array([0, 1, 1, 0, 0]),
        class_scores=np.full((5, 3), 1 / 3),
        proposals=np.array([2, 0, 1, 0, 1]),
        class_names=("cat", "cow"),
    )


def made_cosines(seed: int = 0) -> Similarities:
    values = np.random.default_rng(seed).uniform(-1, 1, (5, 3)).astype(np.float32)
    return Similarities(values, np.ones(5, dtype=bool), NAMES)


def made_scorer() -> CellScorer:
    return CellScorer(made_detections(), NAMES, ("cat", "cow"), score_thresh=0.05)


def made_regions() -> RegionFeatures:
    """Image 9 before image 7, with two and three proposals; the feature says which."""
    features = np.array([[90.0], [91.0], [70.0], [71.0], [72.0]], np.float32)
    sizes = np.tile([10, 10], (2, 1))
    boxes, nothing = np.zeros((5, 4), np.float32), np.zeros((0, 4), np.float32)
    return RegionFeatures(
        np.array([9, 7]),
        np.zeros(2, bool),
        sizes,
        sizes,
        np.array([2, 3]),
        np.zeros(2, np.int64),
        boxes,
        features,
        nothing,
        np.zeros((0, 1), np.float32),
    )


# --- the proposals' features and the scores ---------------------------------------------------------------------------


def test_each_detection_gets_the_feature_of_its_own_proposal():
    assert proposal_features(made_regions(), made_detections())[:, 0].tolist() == [72, 70, 91, 90, 91]


def test_features_of_other_images_or_proposals_are_refused():
    found, regions = made_detections(), made_regions()
    with pytest.raises(DataError, match="no image 8"):
        proposal_features(
            regions,
            found.keep(found.image_ids == 7).__class__(**vars(found) | {"image_ids": [7, 7, 8, 9, 9]}),
        )
    with pytest.raises(DataError, match="a proposal that its image does not have"):
        proposal_features(regions, Detections(**vars(found) | {"proposals": [3, 0, 1, 0, 1]}))


def test_the_blend_is_that_of_cm_clip():
    scorer, cosines = made_scorer(), made_cosines()
    expected = apply_cm_clip(
        scorer.found, cosines, c=0.3, temperature=5.0, label_space=NAMES, rescored_classes=("cat", "cow")
    )
    scores = scorer.scores(cosines, Setting(temperature=5.0, c=0.3))
    assert np.array_equal(scorer.found.with_scores(scores).scores, expected.scores)
    assert scores[4] == np.float32(0.04)  # below the threshold


def test_similarities_are_cosines_of_every_row():
    embeds = np.array([[1.0, 0.0], [0.6, 0.8]], np.float32)
    found = similarities(embeds, np.array([[0.0, 1.0], [1.0, 0.0]], np.float32), ("a", "b"))
    assert found.encoded.all() and np.allclose(found.cosines, [[0, 1], [0.8, 0.6]])


def test_matched_ranks_take_the_values_and_keep_the_order():
    probs, reference = np.array([0.5, 0.1, 0.4, 0.4]), np.array([0.9, 0.01, 0.2, 0.3])
    matched = rank_matched(probs, reference)
    assert matched.tolist() == pytest.approx([0.9, 0.01, 0.2, 0.3])
    assert np.array_equal(rank_matched(reference, reference), reference.astype(np.float32))
    with pytest.raises(DataError, match="4 probabilities to map on 3"):
        rank_matched(probs, reference[:3])


def test_matching_a_way_on_itself_changes_nothing():
    scorer, cosines, setting = made_scorer(), made_cosines(), Setting(temperature=4.0, c=0.5)
    assert np.allclose(scorer.matched(cosines, setting, cosines, setting), scorer.scores(cosines, setting))


def test_permuted_probabilities_are_the_same_ones_elsewhere():
    scorer, cosines, setting = made_scorer(), made_cosines(), Setting(temperature=4.0, c=0.0)
    own, other = scorer.scores(cosines, setting), scorer.permuted(cosines, setting, seed=1)
    assert sorted(own.tolist()) == sorted(other.tolist()) and own.tolist() != other.tolist()
    assert np.array_equal(other, scorer.permuted(cosines, setting, seed=1))


def test_few_shot_targets_lie_between_text_and_shots():
    texts = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    shots, labels = np.array([[0.0, 1.0], [0.0, 1.0]], np.float32), np.array([0, 0])
    targets = few_shot_targets(texts, shots, labels, [0, 1], beta=0.5)
    assert targets[0] == pytest.approx([np.sqrt(0.5), np.sqrt(0.5)])
    assert targets[1].tolist() == [0.0, 1.0]  # no shot of it
    assert np.array_equal(few_shot_targets(texts, shots, labels, [0, 1], beta=1.0), texts)


def test_equal_boxes_of_several_cells_count_once(tmp_path):
    found = made_detections()
    bank = BoxBank([found, found.keep(found.labels == 1)], None, tmp_path)
    assert len(bank.boxes) == 5
    for one, rows in zip((found, found.keep(found.labels == 1)), bank.rows):
        assert np.array_equal(bank.boxes[rows], one.boxes) and np.array_equal(
            bank.image_ids[rows], one.image_ids
        )


# --- fidelity ---------------------------------------------------------------------------------------------------------


def test_fidelity_to_itself_is_perfect():
    cosines = made_cosines().cosines
    assert text_fidelity(cosines, cosines, temperature=9.0) == {"agreement": 100.0, "kl": pytest.approx(0.0)}


def test_divergence_by_hand():
    """KL((3/4, 1/4) || (1/2, 1/2)) = log 2 - H(3/4, 1/4), with logits log 3 and 0."""
    teacher, student = np.array([[np.log(3), 0.0]]), np.array([[0.0, 0.0]])
    expected = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    assert text_fidelity(student, teacher, temperature=1.0)["kl"] == pytest.approx(expected)
    assert np.exp(log_softmax(teacher)).tolist()[0] == pytest.approx([0.75, 0.25])


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_rank_agreement_of_opposite_orders_and_of_nothing():
    assert rank_agreement(np.array([1.0, 2, 3]), np.array([9.0, 5, 1])) == pytest.approx(-1)
    assert rank_agreement(np.array([1.0]), np.array([1.0])) is None
    assert rank_agreement(np.array([1.0, 1.0]), np.array([1.0, 2.0])) is None


# --- choices ----------------------------------------------------------------------------------------------------------


def grid_row(way: str, values, **changes) -> dict:
    row = {"part": "grid", "split": 2, "shots": 1, "seed": 0, "label_space": "novel+background", "way": way}
    return row | {"nAP50": values} | changes


def test_the_largest_mean_is_chosen_and_a_tie_trusts_the_detector():
    rows = [grid_row("cm_clip", [[10, 30], [40, 20]]), grid_row("cm_clip", [[10, 30], [20, 40]], seed=1)]
    grid = {"label_space": "novel+background", "temperatures": (1.0, 5.0), "weights": (0.3, 0.7)}
    found = choose(rows, "cm_clip", **grid)
    assert found.setting == Setting(temperature=5.0, c=0.7) and (found.mean, found.cells) == (30, 2)
    assert choose(rows, "dense", **grid) is None
    assert choose(rows, "cm_clip", **grid | {"label_space": "novel+base+background"}) is None


def test_the_main_head_is_the_best_candidate_and_no_control():
    heads = {
        "mlp": {},
        "linear": {"layers": "linear"},
        "no_novel": {"images": "no_novel"},
        "shuffled": {"teacher": "shuffled"},
    }
    params = made_params(heads=heads, temperatures=[1.0], c=[0.5])
    rows = [grid_row(f"head:{name}", [[value]]) for name, value in zip(heads, (50, 60, 80, 90))]
    assert choose_head(rows, params, label_space="novel+background") == "linear"
    assert is_control("head:shuffled", params) and not is_control("head:no_novel", params)
    with pytest.raises(ParamsError, match="no head was tried"):
        choose_head([], params, label_space="novel+background")


# --- retention --------------------------------------------------------------------------------------------------------


def test_retention_of_half_the_gain_of_every_draw():
    found = retention([4.5, 5.0, 5.5], [9.0, 10.0, 11.0])
    assert found == pytest.approx((0.5, 0.5, 0.5, 3))


def test_fieller_holds_exactly_the_ratios_that_a_paired_test_does_not_refuse():
    rng = np.random.default_rng(3)
    whole = rng.normal(10, 2, 6)
    kept = 0.7 * whole + rng.normal(0, 1, 6)
    found = retention(kept, whole)
    for ratio, inside in itertools.product((found.low, found.high), (True, False)):
        moved = ratio + (1e-6 if (ratio == found.low) == inside else -1e-6)
        assert (stats.ttest_1samp(kept - moved * whole, 0.0).pvalue > 0.05) == inside


def test_retention_is_unbounded_where_there_is_no_gain_to_keep():
    found = retention([1.0, -1.0, 0.5], [3.0, -4.0, 2.0])
    assert np.isneginf(found.low) and np.isposinf(found.high)
    assert np.isnan(retention([], []).ratio) and np.isnan(retention([1.0], [0.0]).ratio)
    single = retention([1.0], [4.0])
    assert single.ratio == 0.25 and np.isnan(single.low)


# --- parameters and names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"heads": {"a": {"cosine": 0.0}}}, "every loss has weight 0"),
        ({"heads": {"a": {"layers": "ridge", "kl": 1.0}}}, "solves least squares"),
        ({"heads": {"a": {"teacher": "shuffled"}}}, "no main one"),
        ({"regions": {"annotated": 0, "jittered": 0, "proposals": 0, "background": 0}}, "no region is taken"),
        ({"c": [0.5, 0.5]}, "c holds a value twice"),
        ({"losses": ["bnrl"]}, "box_loss is 'ce'"),
        (
            {"selection": "params/x.yaml", "settings": {"head:mlp": {"temperature": 1.0, "c": 0.5}}},
            "selection or settings, not both",
        ),
    ],
)
def test_parameters_that_cannot_be_meant_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        made_params(**values)


class Classes:
    base_names = tuple(name for name in CONCEPTS[:20] if name not in SPLITS[1])
    novel_names = SPLITS[1]


def test_novel_names_are_in_the_divergence_only_where_it_says_so():
    params = made_params()
    base, generic, every = (divergence_names(kind, Classes, params) for kind in ("base", "generic", "all"))
    assert base == (*Classes.base_names, "background")
    assert not set(Classes.novel_names) & set(generic) and len(generic) == 15 + 50 + 1
    assert set(every) == {*CONCEPTS, "background"} and every[-1] == "background"
    assert HeadSpec().is_candidate
