"""What re-scoring costs: the published way gives our scores, and what is measured is what is said."""

import math

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from risf_core.clip_models import load_clip
from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.data.loader import ImageCache
from risf_core.detections import Detections
from risf_core.measuring import measured, resident_bytes
from risf_core.params import CmClipParams
from risf_core.records import Rows
from risf_core.report.latency_figures import latency_figures
from risf_core.report.latency_tables import (
    accuracy_cells,
    boxes_cells,
    latency_boxes_table,
    latency_floor_table,
    latency_parts_table,
    latency_tables,
    latency_targets_table,
)
from risf_core.studies import latency_parts
from risf_core.studies.latency import Notes
from risf_core.studies.latency_lines import embed_image, flops_of_crop, matrix_rate, random_boxes, repeat
from risf_core.studies.latency_parts import summary
from risf_core.studies.published_rescoring import PublishedRescoring, detections_by_image
from risf_core.studies.rescoring_ways import PUBLISHED, Rescorer, Way, all_ways, exact_ways, in_turns
from risf_core.study_params import LatencyParams
from tests.synthetic_records import record

NOVEL = ("cat", "queen")
OURS = Way("ours", "fp32", "crop")


@pytest.fixture(scope="module")
def clip():
    return load_clip("risf-tiny-resnet", None, seed=3)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Three images of noise; detections of two novel classes and a base class in two of them, one below the cut."""
    folder, rng = tmp_path_factory.mktemp("scene"), np.random.default_rng(0)
    records = []
    for image_id in (1, 2, 3):
        path = folder / f"{image_id}.png"
        Image.fromarray(rng.integers(0, 256, (80, 96, 3), dtype=np.uint8)).save(path)
        empty = np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, bool)
        records.append(ImageRecord(image_id, path, 80, 96, *empty))
    boxes = [[5, 5, 60, 70], [20, 10, 90, 40], [0, 0, 30, 30], [40, 30, 95, 79], [1, 1, 40, 40]]
    found = Detections(
        image_ids=[1, 1, 1, 3, 3],
        boxes=boxes,
        scores=[0.9, 0.6, 0.3, 0.8, 0.04],
        labels=[0, 2, 1, 1, 0],
        class_scores=np.full((5, 4), 0.25),
        proposals=[0, 1, 2, 0, 1],
        class_names=(*NOVEL, "flower"),
    )
    return DetectionData("scene", (*NOVEL, "flower"), (1, 2, 3), tuple(records)), found


def test_the_published_way_gives_our_scores_when_both_are_fed_the_same(clip, scene):
    data, found = scene
    rescorer = Rescorer(clip, NOVEL, CmClipParams(preprocess="released"))
    theirs, crops = rescorer.scores(PUBLISHED, found, data)
    ours, fewer = rescorer.scores(OURS, found, data)
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    assert (crops, fewer) == (4, 3)  # the released code encodes the base class, too
    kept = [1, 4]  # a base class, and a score below the cut
    assert theirs[kept].tolist() == found.scores[kept].tolist()
    assert np.abs(theirs - found.scores)[[0, 2, 3]].min() > 1e-3


def test_ours_from_memory_reads_no_file_and_gives_the_same(clip, scene, monkeypatch):
    data, found = scene
    rescorer, cache = Rescorer(clip, NOVEL, CmClipParams()), ImageCache()
    from_files, _ = rescorer.scores(OURS, found, data)
    for image in data.images:
        cache.read(image)
    monkeypatch.setattr("risf_core.data.loader.read_image", lambda *a, **k: pytest.fail("read a file"))
    from_memory, _ = rescorer.scores(OURS._replace(images_from="memory"), found, data, cache=cache)
    assert from_memory.tolist() == from_files.tolist()


def test_approximations_encode_fewer_crops(clip, scene):
    data, found = scene
    rescorer = Rescorer(clip, NOVEL, CmClipParams())
    scores, crops = rescorer.scores(OURS._replace(approximation="budget=1"), found, data)
    assert crops == 2 and scores[2] == found.scores[2]  # of image 1 the best alone; the other keeps its score
    assert rescorer.scores(OURS._replace(approximation="share=object"), found, data)[1] <= 3


def test_the_published_way_takes_an_image_without_boxes(clip, scene):
    data, found = scene
    published = PublishedRescoring(clip, NOVEL)
    crops = published.crops(torch.zeros(3, 80, 96, dtype=torch.uint8), torch.empty(0, 4))
    assert published.probabilities(published.embed_crops(crops)).shape == (0, 3)
    spans = list(detections_by_image(found, data, score_thresh=0.05))
    assert [(image.image_id, rows.tolist()) for image, rows in spans] == [(1, [0, 1, 2]), (3, [3])]


def test_every_way_is_listed_once():
    params = LatencyParams(profile="t", fine_tuning="x.yaml", base="y.yaml", clips=[{"run": "z.yaml"}])
    ways = all_ways(params)
    assert len(set(ways)) == len(ways) and set(exact_ways(params)) <= set(ways)
    assert OURS._replace(approximation="share=object", precision="bf16") in ways
    assert not [way for way in ways if way.path == "dense" and way.approximation != "none"]


def test_operations_of_a_crop_are_those_of_its_layers(clip):
    """Two for each weight of a convolution and place of its map; what is left is the attention that pools."""
    sizes: list[int] = []
    hooks = [
        layer.register_forward_hook(
            lambda layer, _, out: sizes.append(2 * layer.weight.numel() * out.shape[2] * out.shape[3])
        )
        for layer in clip.model.visual.modules()
        if isinstance(layer, torch.nn.Conv2d)
    ]
    clip.model.encode_image(torch.zeros(1, 3, 64, 64))
    for hook in hooks:
        hook.remove()
    pool, tokens = clip.model.visual.attnpool, 1 + 2 * 2
    width = pool.q_proj.in_features
    linear = 2 * tokens * width * (3 * width + pool.c_proj.out_features)
    count = flops_of_crop(Rescorer(clip, NOVEL, CmClipParams()).ours("fp32", "crop"))
    products = 2 * 2 * tokens * tokens * width  # of queries with keys, and of weights with values
    assert count == sum(sizes) + linear + products


def test_operations_of_attention_count_whatever_kernel_computes_it():
    """A transformer's by hand: each weight of a matrix for each token, and each pair of tokens twice."""
    vision = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    visual = open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text).visual.eval()

    class Clip:
        image_size, device = (32, 32), "cpu"

        @torch.inference_mode()
        def embed_crops(self, crops):
            return visual(crops)

    tokens, width = 1 + 4 * 4, 64
    blocks = 2 * (2 * tokens * 12 * width**2 + 2 * 2 * tokens**2 * width)
    assert flops_of_crop(Clip()) == blocks + 2 * 16 * 3 * 8 * 8 * width + 2 * width * 24
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_rate_of_matrices_is_plausible(monkeypatch):
    monkeypatch.setattr("risf_core.studies.latency_lines.MATRIX_SIDE", {"cpu": 128})
    assert 1e8 < matrix_rate("fp32", "cpu") < 1e14


def test_work_is_repeated_at_least_once_and_at_most_as_often_as_allowed():
    calls = []
    values, _ = repeat(lambda: calls.append(1), "cpu", seconds=60.0, most=4)
    assert len(values) == len(calls) == 4
    values, _ = repeat(lambda: calls.append(1), "cpu", seconds=0.0, most=4)
    assert len(values) == 1


def test_memory_is_the_peak_of_the_block_alone():
    if resident_bytes("VmHWM") is None:
        pytest.skip("only Linux tells the peak of memory")
    with measured() as large:
        torch.ones(64 * 2**18)  # 64 MiB
    with measured() as small:
        torch.ones(8 * 2**18)
    assert 60 < large.peak_mib < 80 and small.peak_mib < 24
    assert large.wall_seconds > 0


def test_a_percentile_needs_enough_values():
    few, many = summary(range(19)), summary(range(101))
    assert few["p95"] is None and few["max"] == 18 and few["n"] == 19
    assert many["p95"] == 95 and many["p50"] == 50


def test_boxes_of_a_smaller_count_are_the_first_of_a_larger():
    few, many = (random_boxes(count, (80, 120), seed=1) for count in (2, 9))
    assert torch.equal(few, many[:2])
    assert (many[:, 2:] > many[:, :2]).all() and many.min() >= 0
    assert many[:, 2].max() <= 120 and many[:, 3].max() <= 80


def test_one_image_has_an_embedding_for_each_box_in_each_way(clip):
    rescorer, image = Rescorer(clip, NOVEL, CmClipParams()), torch.zeros(3, 64, 96, dtype=torch.uint8)
    for way in (PUBLISHED, OURS, OURS._replace(path="dense")):
        assert embed_image(rescorer, way, image, random_boxes(3, (64, 96), seed=0)).shape == (3, 96)


# --- a killed run -------------------------------------------------------------------------------------------------


class _Run:
    """What of a run the study touches."""

    device = "cpu"

    def __init__(self, folder) -> None:
        self.dir, self.rows = folder, Rows(folder / "checkpoint-rows.jsonl")


class _Detector(torch.nn.Module):
    pixel_mean = torch.zeros(3)

    def forward(self, images):
        return images


def _parts(folder, clip, scene, monkeypatch) -> tuple[Notes, list[Way]]:
    """Measure the parts in a folder; the notes, and the way of each image that was worked on."""
    data, found = scene
    settings = {"profile": "t", "fine_tuning": "x.yaml", "base": "y.yaml", "clips": [{"run": "z.yaml"}]}
    params, measured_ways, one = LatencyParams(**settings, precisions=["fp32"]), [], latency_parts._one_image
    monkeypatch.setattr(latency_parts, "WARM_UP", 1)
    monkeypatch.setattr(
        latency_parts, "_one_image", lambda *args: (measured_ways.append(args[1]), one(*args))[1]
    )
    notes, novel = Notes(_Run(folder)), found.keep(found.labels < len(NOVEL))
    latency_parts.measure_parts(
        params, notes, "tiny", Rescorer(clip, NOVEL, CmClipParams()), _Detector(), novel, data
    )
    monkeypatch.undo()
    return notes, measured_ways


@pytest.mark.parametrize("lost", ["checkpoint-times.jsonl", "checkpoint-rows.jsonl"])
def test_what_a_kill_left_out_is_measured_again_and_nothing_twice(tmp_path, clip, scene, monkeypatch, lost):
    """Killed between a row and its times, whichever came first: the last line of one of the files is missing."""
    notes, ways = _parts(tmp_path, clip, scene, monkeypatch)
    assert [way.path for way in ways] == ["crop"] * 6 + [
        "dense"
    ] * 3  # published, ours, dense; one image, then two
    before = notes.times.as_list()
    lines = (tmp_path / lost).read_text().splitlines(keepends=True)
    (tmp_path / lost).write_text("".join(lines[:-1]) + lines[-1][:20])
    again, ways = _parts(tmp_path, clip, scene, monkeypatch)
    assert [way.path for way in ways] == ["dense"] * 3
    assert len(again.times.as_list()) == len(again.run.rows.as_list()) == 3
    assert again.times.as_list()[:2] == before[:2]
    assert _parts(tmp_path, clip, scene, monkeypatch)[1] == []


def test_the_parts_of_an_image_are_all_of_its_time(tmp_path, clip, scene, monkeypatch):
    """The total has a clock of its own, so a step that no part measures would show."""
    for row in _parts(tmp_path, clip, scene, monkeypatch)[0].times.as_list():
        found = {part for part in latency_parts.PARTS if part in row}
        expected = {"decode", "detector", "encode", "blend"}
        expected |= {"crop"} if row["path"] == "crop" else set()
        assert found == expected | ({"read_again"} if row["way"] == "published" else set())
        parts = sum(row[part]["mean"] for part in found)
        assert 0.9 * row["total"]["mean"] - 2 < parts <= row["total"]["mean"]
        assert row["total"]["n"] == 2


def test_ways_take_turns_on_the_same_boxes(clip, scene):
    data, found = scene
    rescorer, order = Rescorer(clip, NOVEL, CmClipParams()), []
    scores = rescorer.scores
    rescorer.scores = lambda way, *args, **options: (order.append(way), scores(way, *args, **options))[1]
    ways = [PUBLISHED, PUBLISHED._replace(images_from="memory"), OURS, OURS._replace(path="dense")]
    turns = in_turns(ways, rescorer, found, data, rounds=2)
    assert order == [
        *ways,
        *ways,
        ways[2],
        ways[0],
        ways[1],
    ]  # once unmeasured; dense in the first round alone
    assert [len(turns[way].costs) for way in ways] == [2, 2, 2, 1]
    expected = scores(PUBLISHED, found, data)[0].tolist()
    assert turns[ways[0]].scores.tolist() == turns[ways[1]].scores.tolist() == expected
    assert turns[OURS].costs[0].peak_mib is not None or resident_bytes("VmHWM") is None


# --- tables -------------------------------------------------------------------------------------------------------


def _stored(way: Way, seed: int, nap: float, ms: float) -> tuple[dict, dict]:
    key = {"kind": "stored", "split": 1, "shots": 5, "seed": seed, "clip": "tiny"} | way._asdict()
    values = {"nAP": nap, "nAP50": nap + 20, "encoded": 30, "num_boxes": 40, "num_images": 10}
    times = {"ms": ms, "cpu_ms": ms / 2, "peak_mib": 50.0, "ms_rounds": [ms, 0.9 * ms, 1.1 * ms]}
    times["cpu_ms_rounds"] = [value / 2 for value in times["ms_rounds"]]
    return key | values, key | times


def _boxes(way: Way, count: int, ms: float) -> tuple[dict, dict]:
    key = {"kind": "boxes", "clip": "tiny", "boxes": count} | way._asdict()
    return key | {"is_large": False}, key | {
        "n": 5,
        "p50": ms,
        "mean": ms,
        "max": ms,
        "p95": None,
        "peak_mib": 1.0,
    }


def _record(*pairs) -> dict:
    made = record("34_latency", "latency", params={"line_to": 100}, rows=[row for row, _ in pairs])
    made["environment"]["latency"] = [times for _, times in pairs]
    return made


def test_ratios_and_changes_are_against_the_right_rows():
    fast = OURS._replace(precision="bf16", approximation="share=object")
    cells = accuracy_cells(
        [
            _record(
                *(_stored(PUBLISHED, seed, 30.0, 8.0) for seed in (0, 1)),
                *(_stored(OURS, seed, 34.0 + seed, 4.0) for seed in (0, 1)),
                *(_stored(fast, seed, 34.1 + 0.7 * seed, ms) for seed, ms in ((0, 1.0), (1, 3.0))),
            )
        ]
    ).set_index(["way", "approximation"])
    row = cells.loc[("ours", "share=object")]
    assert row["times_faster"] == pytest.approx(8.0 / 2.0)  # of the means
    assert row["change"] == pytest.approx((0.1 - 0.2) / 2) and row["largest_change"] == pytest.approx(0.2)
    assert row["encoded"] == pytest.approx(0.75) and row["boxes_per_image"] == pytest.approx(4)
    assert cells.loc[("ours", "none"), "change"] == 0
    assert (row["slowest"], row["fastest"]) == (
        pytest.approx(8.0 / 3.0),
        pytest.approx(8.0),
    )  # same cell, same round


def test_times_faster_are_against_the_published_way_with_images_from_the_same_place():
    ways = {
        PUBLISHED: (8.0, 30.0),
        OURS: (4.0, 34.0),
        OURS._replace(approximation="share=iou"): (2.0, 34.2),
        OURS._replace(approximation="share=object"): (1.0, 33.7),
    }
    pairs = [_stored(way, 0, nap, ms) for way, (ms, nap) in ways.items()]
    pairs += [
        _stored(way._replace(images_from="memory"), 0, nap, ms / 4 + 1) for way, (ms, nap) in ways.items()
    ]
    table = latency_targets_table([_record(*pairs)])
    files, memory = table.data.to_dict("records")
    assert (files["crop_times_faster"], memory["crop_times_faster"]) == (2.0, 1.5)
    assert (files["approximation"], files["approximation_times_faster"]) == (
        "share=iou",
        4.0,
    )  # of 0.2, not of 0.3
    assert files["approximation_change"] == pytest.approx(0.2)
    assert table.display["2 or more"].tolist() == ["yes", "no"]
    assert table.display["4 or more"].tolist() == ["yes", "no"]
    assert table.display["every crop: times faster"][0] == "2.00 (2.00–2.00)"


def test_the_line_is_fitted_marked_and_needs_three_counts():
    points = [_boxes(OURS, count, 3.0 + 2.0 * count) for count in (1, 2, 4)]
    dense = [_boxes(OURS._replace(path="dense"), count, 9.0) for count in (1, 4)]
    records = [_record(*points, *dense)]
    _, lines = boxes_cells(records)
    line = lines.set_index("path").loc["crop"]
    assert (line["start"], line["slope"]) == (pytest.approx(3.0), pytest.approx(2.0))
    assert line["residual"] == pytest.approx(0, abs=1e-9)
    assert math.isnan(lines.set_index("path").loc["dense", "slope"])
    display = latency_boxes_table(records).display.set_index("way")
    assert display.loc["ours fp32", "100 boxes, FITTED (ms)"] == "203.0"
    assert display.loc["ours fp32, dense", "100 boxes, FITTED (ms)"] == "–"
    assert display.loc["ours fp32, dense", "2 boxes (ms)"] == "–"


def test_a_dense_path_that_is_left_out_is_named_with_the_reason():
    def large(pair, clip):
        return tuple(row | {"clip": clip} | ({"is_large": True} if "is_large" in row else {}) for row in pair)

    dense = OURS._replace(path="dense")
    pairs = [large(_boxes(OURS, 1, 9.0), clip) for clip in ("base", "huge")]
    pairs.append(large(_boxes(dense, 16, 20_000.0), "base"))
    for clip, flops in (("base", 10**9), ("huge", 11 * 10**9)):
        key = {"kind": "floor", "clip": clip, "precision": "fp32"}
        pairs.append((key | {"flops": flops, "parameters": 1, "is_large": True}, key))
    caption = latency_boxes_table([_record(*pairs)]).caption
    assert "dense of huge was left out" in caption and "11.0 times the operations of one of base" in caption
    assert "took 20.0 s" in caption and "dense of base" not in caption


def test_the_floor_is_operations_over_the_rate():
    key = {"kind": "floor", "clip": "tiny", "precision": "fp32"}
    times = key | {"rate": 1e11, "batch": 64, "floor_ms": 0.4, "n": 3, "ms": 0.5, "best_ms": 0.45}
    made = _record((key | {"flops": 4 * 10**7, "parameters": 10**6, "is_large": False}, times))
    row = latency_floor_table([made]).display.iloc[0]
    assert row["of the matrix rate (%)"] == "80" and row["matrix rate (GFLOP/s)"] == "100"


def test_few_images_show_the_largest_time_in_place_of_a_percentile():
    key = {"kind": "parts", "clip": "tiny"} | OURS._asdict()
    times = {
        part: summary([1.0, 2.0, 6.0]) for part in ("decode", "detector", "crop", "encode", "blend", "total")
    }
    made = _record(
        (key | {"num_images": 3, "num_boxes": 9}, key | times | {"text_once": 4.0, "peak_mib": 77.0})
    )
    row = latency_parts_table([made]).display.iloc[0]
    assert row["total (ms)"] == "2.0 / max 6.0" and row["read again (ms)"] == "–"
    assert row["peak memory (MiB)"] == "77" and row["n"] == "3"
    assert latency_figures([made])["latency_parts"].caption.startswith("Where the time")


def test_without_a_record_there_is_no_row():
    assert all(table.data.empty for table in latency_tables([]))
