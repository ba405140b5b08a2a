"""The points of the sweeps over BNRL's hyper-parameters, and the sweep over c on stored files."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from risf_core import ablations
from risf_core.cm_clip.encoding import CropEmbeddings
from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.detections import Detections, Similarities
from risf_core.errors import DataError, ParamsError
from risf_core.params import (
    AblationBnrlParams,
    AblationCParams,
    ClipBackbonesParams,
    FineTuningParams,
    PictogramData,
)
from tests.color_clip import COLORS, ColorClip, color_tokens

DATA = PictogramData(shots=(1, 5))


def test_sweeps_tie_beta_or_fix_alpha_and_hold_the_paper_point():
    params = AblationBnrlParams(
        profile="t", base="x.yaml", data=DATA, alphas=(0.2, 0.8), betas=(0.2, 0.8, 1.6)
    )
    points = ablations.bnrl_sweeps(params)
    tied = [point for point in points if point["sweep"] == "beta_tied"]
    alone = [point for point in points if point["sweep"] == "beta_fixed_alpha"]
    assert all(point["alpha"] + point["beta"] == pytest.approx(1) for point in tied)
    assert {point["alpha"] for point in alone} == {0.2} and {point["beta"] for point in alone} == {
        0.2,
        0.8,
        1.6,
    }
    assert len(tied) == 2 * len(params.background_weights) and len(alone) == 3 * len(
        params.background_weights
    )
    paper = {"alpha": 0.2, "beta": 0.8, "gamma": 4.0, "epsilon": 1.0, "background_weight": 0.2}
    for sweep in ("beta_tied", "beta_fixed_alpha", "gamma_epsilon"):
        assert paper | {"sweep": sweep} in points
    assert len({tuple(sorted(point.items())) for point in points}) == len(points)


class _Rows:
    def __init__(self):
        self.rows = {}

    def done(self, **key):
        return tuple(sorted(key.items())) in self.rows

    def add(self, key, values):
        assert not self.done(**key)
        self.rows[tuple(sorted(key.items()))] = key | values

    def as_list(self):
        return list(self.rows.values())


@pytest.fixture
def stored_run(tmp_path, monkeypatch):
    """One stored cell: two boxes of one image; CLIP prefers the right one, the detector the wrong one.

    A third box, with a score below the published cut, finds a second object and must count nowhere.
    """
    truth = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], dtype=np.float32)
    labels, none = np.array([0, 0]), np.zeros(2, dtype=bool)
    record = ImageRecord(1, tmp_path / "1.png", 64, 64, truth, labels, none)
    test = DetectionData("t", ("queen", "king"), (1, 2), (record,))
    found = Detections(
        image_ids=[1, 1, 1],
        boxes=[[40, 40, 60, 60], [0, 0, 10, 10], truth[1]],
        scores=[0.9, 0.5, 0.04],
        labels=[0, 0, 0],
        class_scores=[[0.9, 0.1], [0.5, 0.5], [0.04, 0.96]],
        proposals=[0, 1, 2],
        class_names=("queen",),
    )
    cosines = np.array([[0.0, 0.0, 0.3], [0.3, 0.0, 0.0], [np.nan] * 3])  # queen, king, background
    found.save(tmp_path / "detections" / "seed0-kshot-ce.npz")
    Similarities(cosines, np.array([True, True, False]), ("queen", "king", "background")).save(
        tmp_path / "similarities" / "seed0-kshot-ce.npz"
    )
    benchmark = SimpleNamespace(novel_names=("queen",), base_names=("king",), test=test, evaluation={})
    monkeypatch.setattr(ablations, "open_benchmark", lambda data, split: benchmark)
    tuned = FineTuningParams(profile="t", base="x.yaml", data=DATA)
    key = {"split": 1, "shots": 5, "seed": 0, "loss": "ce", "arm": "kshot", "setting": "fsod"}
    key["repeat"] = 0
    rows = [
        key | {"rescoring": "none"},
        key | {"rescoring": "cm_clip"},
        key | {"seed": 1, "rescoring": "none"},
    ]
    upstream = SimpleNamespace(
        dir=tmp_path, run_id="r", record={"params": tuned.model_dump(mode="json"), "rows": rows}
    )
    return SimpleNamespace(upstreams=lambda name: [upstream], rows=_Rows(), environment={}), upstream


def test_c_sweep_runs_from_stored_files_alone(stored_run):
    run, _ = stored_run
    params = AblationCParams(profile="t", fine_tuning=["x.yaml"], c=(0.0, 1.0), seeds=(0,))
    rows = {(row["label_space"], row["c"]): row["nAP50"] for row in ablations.ablate_c(params, run)}
    assert len(rows) == 4
    for space in params.label_spaces:
        # of 101 recalls, those to 1/2 are reached: by the detector behind a false positive, by CLIP before it
        assert rows[space, 1.0] == pytest.approx(100 * 51 / 101 / 2)
        assert rows[space, 0.0] == pytest.approx(100 * 51 / 101)
    assert len(ablations.ablate_c(params, run)) == 4  # a second call finds all rows there


def test_other_axes_have_rows_of_their_own(stored_run):
    """A learned temperature is the number beside the stored cosines; above a threshold of 0.6 the wrong box alone."""
    run, upstream = stored_run
    (upstream.dir / "clip.json").write_text('{"learned_temperature": 1.0}')
    axes = {"temperatures": (100.0, "learned"), "score_threshs": (0.05, 0.6)}
    axes |= {"fusions": ("arithmetic", "geometric"), "label_spaces": ("novel+background",)}
    params = AblationCParams(profile="t", fine_tuning=["x.yaml"], c=(0.5,), seeds=(0,), **axes)
    rows = ablations.ablate_c(params, run)
    names = ("temperature", "score_thresh", "fusion")
    values = {tuple(row[name] for name in names): row["nAP50"] for row in rows}
    behind, before = pytest.approx(100 * 51 / 101 / 2), pytest.approx(100 * 51 / 101)
    # scores 0.9 and 0.5; probabilities 0 and 1, or with a temperature of 1 those of cosines that differ by 0.3
    assert values == {
        (100.0, 0.05, "arithmetic"): before,
        (100.0, 0.05, "geometric"): before,
        (100.0, 0.6, "arithmetic"): before,  # 0.45 against the detector's 0.5
        (100.0, 0.6, "geometric"): before,
        ("learned", 0.05, "arithmetic"): behind,  # 0.66 against 0.54
        ("learned", 0.05, "geometric"): behind,
        ("learned", 0.6, "arithmetic"): behind,
        ("learned", 0.6, "geometric"): behind,
    }


def test_boxes_beyond_a_budget_keep_their_score_as_in_fine_tuning(stored_run):
    """The wrong box was not encoded: at c = 0 the right one's probability of 1 passes its 0.9, and without it 0.5."""
    run, upstream = stored_run
    cosines = np.array([[np.nan] * 3, [0.3, 0.0, 0.0], [np.nan] * 3])
    stored = Similarities(cosines, np.array([False, True, False]), ("queen", "king", "background"))
    stored.save(upstream.dir / "similarities" / "seed0-kshot-ce.npz")
    values = {"profile": "t", "fine_tuning": ["x.yaml"], "seeds": (0,), "label_spaces": ["novel+background"]}
    with pytest.raises(DataError, match="1 detections to re-score were not encoded"):
        ablations.ablate_c(AblationCParams(**values, c=(0.0, 0.9)), run)
    upstream.record["params"]["cm_clip"]["budget"] = 1
    rows = {
        row["c"]: row["nAP50"] for row in ablations.ablate_c(AblationCParams(**values, c=(0.0, 0.9)), run)
    }
    assert rows == {0.0: pytest.approx(100 * 51 / 101), 0.9: pytest.approx(100 * 51 / 101 / 2)}


def test_a_threshold_below_the_encoded_one_is_refused(stored_run):
    run, _ = stored_run
    params = AblationCParams(profile="t", fine_tuning=["x.yaml"], score_threshs=(0.01,), seeds=(0,))
    with pytest.raises(ParamsError, match="0.01, but .* encoded what scores above 0.05 alone"):
        ablations.ablate_c(params, run)


def test_a_run_that_does_not_tell_its_learned_temperature_is_refused(stored_run):
    run, _ = stored_run
    params = AblationCParams(profile="t", fine_tuning=["x.yaml"], temperatures=("learned",), seeds=(0,))
    with pytest.raises(DataError, match="clip.json: expected the learned temperature"):
        ablations.ablate_c(params, run)


@pytest.mark.parametrize("axis", ["c", "fusions", "temperatures"])
def test_a_point_cannot_be_asked_for_twice(axis):
    value = {"c": 0.5, "fusions": "geometric", "temperatures": 10.0}[axis]
    with pytest.raises(ValueError, match=f"{axis} holds a value twice"):
        AblationCParams(profile="t", fine_tuning=["x.yaml"], **{axis: (value, value)})


def test_sweeps_refuse_gfsod_runs(stored_run):
    run, upstream = stored_run
    upstream.record["params"]["setting"] = "gfsod"
    with pytest.raises(ParamsError, match="over the setting fsod"):
        ablations.ablate_c(AblationCParams(profile="t", fine_tuning=["x.yaml"]), run)


@pytest.mark.parametrize("sweep", ["ablate_c", "compare_clips"])
def test_sweeps_refuse_runs_whose_rows_would_pass_for_each_other(stored_run, sweep):
    run, upstream = stored_run
    kind = {"ablate_c": AblationCParams, "compare_clips": ClipBackbonesParams}[sweep]
    clips = {"clips": [{"model": "tiny", "path_only": True}]} if sweep == "compare_clips" else {}
    params = kind(profile="t", fine_tuning=["x.yaml", "y.yaml"], seeds=(0,), **clips)
    other = FineTuningParams(profile="t", base="x.yaml", data=PictogramData(shots=(1, 5), seed=9))
    for changed, message in (({}, "is in an earlier run"), (other.model_dump(mode="json"), "data differ")):
        record = upstream.record | {"params": upstream.record["params"] | changed}
        second = SimpleNamespace(dir=upstream.dir, run_id="second", record=record)
        run.upstreams = lambda name, second=second: [upstream, second]
        with pytest.raises(ParamsError, match=f"second: .*{message}"):
            getattr(ablations, sweep)(params, run)


def _give_clip(monkeypatch, embed):
    """Let the sweep over CLIPs compare what `embed` says with queen, king and background, one axis each."""
    clip = SimpleNamespace(precision="fp32", temperature=100.0, text_embeds_norm=torch.eye(3))
    clip.label_space = ("queen", "king", "background")
    monkeypatch.setattr(ablations, "embed_detections", embed)
    monkeypatch.setattr(ablations, "open_clip_source", lambda *a, **k: ("tiny", None))
    monkeypatch.setattr(ablations, "load_clip", lambda *a, **k: None)
    monkeypatch.setattr(ablations, "build_cm_clip", lambda *a: clip)
    monkeypatch.setattr(ablations, "_clip_facts", lambda *a: {})


def _as_clip_would(found, *args, **kwargs):
    """The second box shows a queen, the first the background."""
    embeds = np.eye(3, dtype=np.float32)[[2, 0]]
    return CropEmbeddings(embeds, np.arange(2), {"encoded": 2})


def _write_image(record, pixels=None):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8) if pixels is None else pixels).save(record.path)


def test_sweep_of_clips_takes_what_counts_alone(stored_run, monkeypatch):
    """With the right box before the wrong one the gain is the half of what one found object of two gives."""
    run, _ = stored_run
    run.device = "cpu"
    encoded = []
    _write_image(ablations.open_benchmark(None, split=1).test.images[0])
    _give_clip(
        monkeypatch, lambda found, *a, **k: encoded.append(found.scores.tolist()) or _as_clip_would(found)
    )
    clips = [{"model": "tiny", "path_only": True}]
    values = {"profile": "t", "fine_tuning": ["x.yaml"], "clips": clips, "seeds": (0,), "cm_clip": {"c": 0.0}}
    (row,) = ablations.compare_clips(ClipBackbonesParams(**values), run)
    assert encoded == [pytest.approx([0.9, 0.5])]
    assert row["gain"] == pytest.approx(100 * 51 / 101 / 2)
    note = run.environment["clips"]["tiny"]
    assert note["crops"] == 2 and note["seconds"] > 0 and note["precision"] == "fp32"


def test_towers_that_are_trained_several_times_are_named_by_their_steps(stored_run, monkeypatch):
    run, upstream = stored_run
    run.device = "cpu"
    _write_image(ablations.open_benchmark(None, split=1).test.images[0])
    _give_clip(monkeypatch, _as_clip_would)
    trained = [("resnet", 150), ("resnet", 350), ("vit", 150)]
    clips = [
        SimpleNamespace(dir=upstream.dir, record={"params": {"tower": tower, "iterations": steps}})
        for tower, steps in trained
    ]
    by_file = {"resnet.yaml": clips[:2], "vit.yaml": clips[2:]}
    run.upstreams = lambda ref: [upstream] if ref == "fine_tuning" else by_file[ref.params]
    sources = [{"run": "resnet.yaml"}, {"run": "vit.yaml"}]
    params = ClipBackbonesParams(profile="t", fine_tuning=["x.yaml"], clips=sources, seeds=(0,))
    rows = ablations.compare_clips(params, run)
    assert [row["clip"] for row in rows] == ["resnet, 150 steps", "resnet, 350 steps", "vit"]


@pytest.mark.parametrize(
    "preprocess, gain, accuracy", [("clip", 100 * 51 / 101 / 2, 100.0), ("released", 0.0, 0.0)]
)
def test_released_crops_show_clip_another_picture(stored_run, monkeypatch, preprocess, gain, accuracy):
    """Red objects on green are blue ones, which is background's colour, to a CLIP that is fed BGR."""
    run, upstream = stored_run
    run.device = "cpu"
    benchmark = ablations.open_benchmark(None, split=1)
    (record,) = benchmark.test.images
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[..., 1] = 255
    for x1, y1, x2, y2 in record.boxes.astype(int):
        pixels[y1:y2, x1:x2] = (255, 0, 0)
    _write_image(record, pixels)
    monkeypatch.setitem(COLORS, "queen", COLORS["red"])
    monkeypatch.setitem(COLORS, "king", COLORS["background"])
    clip = SimpleNamespace(model=ColorClip(), tokenizer=color_tokens, info=SimpleNamespace(num_parameters=3))
    monkeypatch.setattr(ablations, "open_clip_source", lambda *a, **k: ("colours", clip))
    values = {
        "profile": "t",
        "fine_tuning": ["x.yaml"],
        "clips": [{"model": "x", "path_only": True}],
        "seeds": (0,),
    }
    params = ClipBackbonesParams(**values, cm_clip={"c": 0.2, "preprocess": preprocess})
    (row,) = ablations.compare_clips(params, run)
    assert row["gain"] == pytest.approx(gain) and row["crop_accuracy_all"] == accuracy
    assert (row["preprocess"], row["resize"], row["crop"]) == (preprocess, "roi_align", "squash")


def test_bnrl_sweep_counts_what_is_above_the_cut(stored_run, monkeypatch):
    run, upstream = stored_run
    found = Detections.load(upstream.dir / "detections" / "seed0-kshot-ce.npz")
    benchmark = ablations.open_benchmark(None, split=1)
    test = benchmark.test.select_classes(["queen"])
    context = SimpleNamespace(benchmark=benchmark, test=test, groups=lambda: {"novel": ["queen"]})
    monkeypatch.setattr(ablations, "open_context", lambda params, run: context)
    monkeypatch.setattr(ablations, "fine_tune", lambda *a, **k: (found, []))
    options = {"profile": "t", "base": "x.yaml", "data": DATA, "seeds": (0,)}
    rows = ablations.ablate_bnrl(AblationBnrlParams(**options), run)
    (value,) = {row["nAP50"] for row in rows}
    assert value == pytest.approx(100 * 51 / 101 / 2)
    run.rows = _Rows()
    rows = ablations.ablate_bnrl(AblationBnrlParams(**options, score_thresh=0.03), run)
    (value,) = {row["nAP50"] for row in rows}
    assert value == pytest.approx(100 * 2 / 3)  # two true of three, and precision never rises with recall
