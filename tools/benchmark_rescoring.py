"""Seconds, memory and equality of re-scoring on this machine: every ratio from one run, on the same boxes.

    .venv/bin/python tools/benchmark_rescoring.py sweep  # a made file, 5,000 images x 100 detections
    .venv/bin/python tools/benchmark_rescoring.py sweep --record results/mini/records/fine_tuning-....json

``sweep`` sets the score vectors of a sweep over c, and their average precision from overlaps computed once, against
one evaluation by `risf_core.evaluation`; some of the points are also evaluated by pycocotools' stock path.
"""

import argparse
import contextlib
import io
import json
import resource
import time
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from risf_core.cm_clip.scores import BACKGROUND, apply_cm_clip, label_probabilities, label_space_names
from risf_core.data.benchmark import open_benchmark
from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.detections import MAX_DETECTIONS, Detections, Similarities, cut, xyxy_to_xywh
from risf_core.evaluation import Evaluator
from risf_core.params import FineTuningParams
from risf_core.score_sweeps import ScoreSweep, sweep_scores

SIDE, OBJECTS, NEAR = (
    640,
    7,
    3,
)  # pixels of an image; objects of one on average, as in COCO; detections of an object
WEIGHTS = [place / 20 for place in range(21)]
CHEAP_REPEATS = 10  # of what takes milliseconds


def timed(work, *, repeats: int = 1):
    """A function's result and the least wall seconds it took: other work on the machine only adds."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return result, min(seconds)


def peak_memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ------------------------------------------------------------ sweep


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corners, sizes = rng.uniform(0, SIDE - 140, (count, 2)), rng.uniform(20, 140, (count, 2))
    return np.concatenate([corners, corners + sizes], axis=1).astype(np.float32)


def made_file(num_images: int, num_detections: int, num_classes: int) -> tuple:
    """A test set, detections near its objects and elsewhere, and cosines that favour the objects' classes."""
    rng = np.random.default_rng(0)
    names = tuple(f"class {label}" for label in range(num_classes))
    records, boxes, labels, scores = [], [], [], []
    for image_id in range(num_images):
        count = min(rng.poisson(OBJECTS), num_detections // NEAR)
        truth, classes = random_boxes(rng, count), rng.integers(0, num_classes, count)
        path, none = Path(f"{image_id}.png"), np.zeros(count, dtype=bool)
        records.append(ImageRecord(image_id, path, SIDE, SIDE, truth, classes, none))
        near, rest = truth.repeat(NEAR, axis=0), num_detections - NEAR * count
        near = near + rng.normal(0, 3, near.shape)  # sides are 20 pixels at least: hardly one turns around
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        boxes += [near, random_boxes(rng, rest)]
        labels += [classes.repeat(NEAR), rng.integers(0, num_classes, rest)]
        scores += [rng.beta(3, 2, len(near)), rng.beta(1, 4, rest)]
    image_ids = np.arange(num_images).repeat(num_detections)
    proposals = np.tile(np.arange(num_detections), num_images)
    columns = (np.concatenate(part) for part in (boxes, scores, labels))
    class_scores = np.zeros((len(image_ids), num_classes + 1), dtype=np.float32)
    detections = Detections(image_ids, *columns, class_scores, proposals, names)
    num_near = NEAR * np.array([len(record.labels) for record in records])
    near = detections.proposals < num_near[detections.image_ids]
    cosines = rng.normal(0.2, 0.02, (len(detections), num_classes + 1)).astype(np.float32)
    cosines[near, detections.labels[near]] += 0.04
    encoded = detections.scores > 0.05
    cosines[~encoded] = np.nan
    data = DetectionData("made", names, tuple(range(1, num_classes + 1)), tuple(records))
    return Evaluator(data), detections, Similarities(cosines, encoded, (*names, BACKGROUND)), names


def stored_cell(record: Path) -> tuple:
    """The first cell of a fine-tuning run, cut as its own rows are."""
    content = json.loads(record.read_text())
    params = FineTuningParams.model_validate(content["params"])
    folder = record.parents[1] / "artifacts" / content["run_id"]
    cell = sorted((folder / "detections").glob("*.npz"))[0].name
    found = Detections.load(folder / "detections" / cell)
    beside = Similarities.load(folder / "similarities" / cell)
    found, beside = cut(found, beside, score_thresh=params.score_thresh)
    benchmark = open_benchmark(params.data, split=params.split)
    test = benchmark.test.select_classes(benchmark.novel_names)
    space = label_space_names("novel+background", novel_names=benchmark.novel_names)
    evaluator = Evaluator(test, groups={"novel": benchmark.novel_names}, max_dets=MAX_DETECTIONS)
    return evaluator, found, beside, space[:-1]


def stock_means(data: DetectionData, detections: Detections) -> dict[str, float]:
    """AP, AP50 and AP75 by pycocotools as its own demo uses it."""
    annotations = []
    for record in data.images:
        rows = zip(xyxy_to_xywh(record.boxes).tolist(), record.labels.tolist(), record.is_crowd.tolist())
        for box, label, is_crowd in rows:
            entry = {"id": len(annotations) + 1, "image_id": record.image_id, "iscrowd": int(is_crowd)}
            entry |= {"category_id": data.category_ids[label], "bbox": box, "area": box[2] * box[3]}
            annotations.append(entry)
    labels = [data.class_names.index(name) for name in detections.class_names]
    category_ids = [data.category_ids[label] for label in labels]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"info": {}, "annotations": annotations}
        truth.dataset["images"] = [{"id": record.image_id} for record in data.images]
        truth.dataset["categories"] = [{"id": category_id} for category_id in category_ids]
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(detections.to_coco_results(category_ids)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    chosen = {"AP": precision, "AP50": precision[0], "AP75": precision[5]}
    return {name: 100.0 * float(values[values > -1].mean()) for name, values in chosen.items()}


def sweep(arguments: argparse.Namespace) -> None:
    """Print what a sweep over 21 values of c costs beside one evaluation, and how far its numbers are from it."""
    if arguments.record:
        made = stored_cell(arguments.record)
    else:
        made = made_file(arguments.images, arguments.detections, arguments.classes)
    evaluator, detections, similarities, names = made
    options = {"label_space": (*names, BACKGROUND), "rescored_classes": names}
    before = peak_memory_mib()
    one, seconds_sweep = timed(lambda: ScoreSweep(evaluator, detections))
    (rows, probs), seconds_softmax = timed(
        lambda: label_probabilities(detections, similarities, **options), repeats=CHEAP_REPEATS
    )
    vectors, seconds_vectors = timed(
        lambda: sweep_scores(detections.scores, rows, probs, c=WEIGHTS, fusion="arithmetic"),
        repeats=CHEAP_REPEATS,
    )
    results, seconds_results = timed(lambda: [one.evaluate(vector) for vector in vectors])
    peak = peak_memory_mib()
    seconds_one, worst, worst_stock = [], 0.0, 0.0
    for place in np.linspace(0, len(WEIGHTS) - 1, arguments.check).astype(int):
        changed = apply_cm_clip(detections, similarities, c=WEIGHTS[place], **options)
        expected, seconds = timed(lambda changed=changed: evaluator.evaluate(changed))
        seconds_one.append(seconds)
        keys = ("AP", "AP50", "AP75")
        worst = max(worst, *(abs(results[place][key] - expected[key]) for key in keys))
        if arguments.stock:
            stock = stock_means(evaluator.data, changed.top(evaluator.max_dets))
            worst_stock = max(worst_stock, *(abs(results[place][key] - stock[key]) for key in keys))
    one_evaluation, rescoring = min(seconds_one), seconds_softmax + seconds_vectors
    print(
        f"{len(evaluator.data)} images, {len(detections)} detections ({rows.sum()} re-scored), {len(names)} classes"
    )
    print(f"one evaluation (least of {len(seconds_one)}): {one_evaluation:.3f} s")
    share = 100 * rescoring / one_evaluation
    print(f"21 re-scorings (least of {CHEAP_REPEATS}): {rescoring:.4f} s, {share:.2f} % of one evaluation")
    print(f"21 APs: {seconds_sweep + seconds_results:.2f} s ({seconds_sweep:.2f} s of it once)")
    print(f"   of 21 evaluations: {100 * (seconds_sweep + seconds_results) / (21 * one_evaluation):.1f} %")
    print(f"largest difference to the evaluation: {worst:.1e}, {len(seconds_one)} of the points compared")
    if arguments.stock:
        print(f"largest difference to pycocotools' stock path: {worst_stock:.1e}")
    print(f"peak memory: {peak:.0f} MiB, {before:.0f} MiB before the sweep")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("sweep", help="21 values of c from stored files")
    command.add_argument(
        "--record", type=Path, help="of 20_fine_tuning: its first cell instead of a made file"
    )
    command.add_argument("--images", type=int, default=5000)
    command.add_argument("--detections", type=int, default=100, help="of each image")
    command.add_argument("--classes", type=int, default=80)
    command.add_argument("--check", type=int, default=3, help="of the points, evaluated the usual way, too")
    command.add_argument("--stock", action="store_true", help="and these by pycocotools' stock path")
    command.set_defaults(work=sweep)
    arguments = parser.parse_args()
    arguments.work(arguments)


if __name__ == "__main__":
    main()
