"""Seconds, memory and equality of re-scoring on this machine: every ratio from one run, on the same boxes.

    .venv/bin/python tools/benchmark_rescoring.py sweep  # a made file, 5,000 images x 100 detections
    .venv/bin/python tools/benchmark_rescoring.py sweep --record results/mini/records/fine_tuning-....json
    .venv/bin/python tools/benchmark_rescoring.py encoding --record results/mini/records/fine_tuning-....json
        --clip results/mini/records/tiny_clip-....json  # or --model ViT-B-16 --images 4, with random weights

``sweep`` sets the score vectors of a sweep over c, and their average precision from overlaps computed once, against
one evaluation by `risf_core.evaluation`; some of the points are also evaluated by pycocotools' stock path.
``encoding`` sets the encoding of the boxes of stored detections against the published way, image by image in float32:
precisions, approximations, the floor that the processor's matrix rate puts under a crop, and the equality of scores.
"""

import argparse
import contextlib
import io
import json
import resource
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from risf_core.clip_models import load_clip
from risf_core.cm_clip.encoding import CropEmbeddings, embed_detections
from risf_core.cm_clip.scores import BACKGROUND, apply_cm_clip, label_probabilities, label_space_names
from risf_core.data.benchmark import open_benchmark
from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.data.loader import read_image
from risf_core.detections import MAX_DETECTIONS, Detections, Similarities, cut, xyxy_to_xywh
from risf_core.evaluation import Evaluator
from risf_core.params import CmClipParams, FineTuningParams
from risf_core.score_sweeps import ScoreSweep, sweep_scores
from risf_core.studies.latency_lines import flops_of_crop, matrix_rate
from risf_core.studies.rescoring_ways import PUBLISHED, Rescorer, Turns, Way, in_turns

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


def stored_cell(record: Path, cell: str | None = None) -> tuple:
    """A cell of a fine-tuning run by the stem of its files, or the first, cut as its own rows are."""
    content = json.loads(record.read_text())
    params = FineTuningParams.model_validate(content["params"])
    folder = record.parents[1] / "artifacts" / content["run_id"]
    cell = f"{cell}.npz" if cell else sorted((folder / "detections").glob("*.npz"))[0].name
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


# ------------------------------------------------------------ encoding


def ways_to_compare(arguments: argparse.Namespace) -> list[Way]:
    """The published way; ours with every crop, and with each approximation in the fastest precision."""
    ways = [PUBLISHED, PUBLISHED._replace(images_from="memory")]
    for precision in arguments.precisions:
        ways += [Way("ours", precision, "crop", images_from=source) for source in ("files", "memory")]
        ways += [
            Way("ours", precision, "crop", name, source)
            for name in arguments.approximations
            for source in ("files", "memory")
        ]
    return ways + [Way("ours", precision, "dense") for precision in arguments.precisions * arguments.dense]


def least_costs(turns: dict[Way, Turns], num_images: int) -> dict:
    """Least wall and processor milliseconds an image of each way, its scores and the number of its crops."""
    costs = {}
    for way, (rounds, scores, encoded) in turns.items():
        wall, cpu = min(cost.wall_seconds for cost in rounds), min(cost.cpu_seconds for cost in rounds)
        costs[way] = 1000 * wall / num_images, 1000 * cpu / num_images, scores, encoded
    return costs


def one_by_one(clip, found: Detections, data: DetectionData) -> np.ndarray:
    """Embeddings of each detection's crop in a forward pass of its own, float32 [D, E]."""
    images = {record.image_id: record for record in data.images}
    embeds = [
        clip.embed_crops(clip.crops(read_image(images[image_id].path), torch.from_numpy(box[None])))
        for image_id, box in zip(found.image_ids.tolist(), found.boxes)
    ]
    return torch.cat(embeds).numpy()


def encoding(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    evaluator, found, _, novel = stored_cell(arguments.record, arguments.cell)
    data = replace(evaluator.data, images=evaluator.data.images[: arguments.images])
    found = found.keep(np.isin(found.image_ids, [record.image_id for record in data.images]))
    clip, name = clip_of(arguments)
    rescorer = Rescorer(clip, novel, CmClipParams())
    turns = in_turns(ways_to_compare(arguments), rescorer, found, data, rounds=arguments.repeats)
    costs = least_costs(turns, len(data))
    evaluator = Evaluator(data, groups={"novel": novel}, max_dets=MAX_DETECTIONS)
    sweep_of, exact = ScoreSweep(evaluator, found), Way("ours", "fp32", "crop")
    reference = sweep_of.evaluate(costs[exact][2])["nAP"] if exact in costs else np.nan
    density = len(found) / len(data)
    print(
        f"{name}, {len(data)} images, {density:.2f} boxes an image; least of {arguments.repeats}, dense of one"
    )
    head = f"{'way':42} {'ms/image':>9} {'CPU':>7} {'faster':>7} {'by CPU':>7} {'crops':>6} {'nAP':>6} {'change':>7}"
    print(head)
    for way, (ms, cpu, scores, encoded) in costs.items():
        published = costs[PUBLISHED._replace(images_from=way.images_from)]
        ratios = published[0] / ms, published[1] / cpu
        nap = sweep_of.evaluate(scores)["nAP"]
        label = f"{way.way} {way.precision} {way.path} {way.approximation} {way.images_from}"
        times = f"{ms:9.3f} {cpu:7.3f} {ratios[0]:7.2f} {ratios[1]:7.2f}"
        print(f"{label:42} {times} {encoded:6d} {nap:6.2f} {nap - reference:+7.2f}")
    print_equality(rescorer, found, data)
    for precision in arguments.precisions:
        print_floor(rescorer.ours(precision, "crop"), precision, arguments.repeats)


def print_equality(rescorer: Rescorer, found: Detections, data: DetectionData) -> None:
    """Scores against the published way (fed the same), and cosines against a forward pass for each detection."""
    same = Rescorer(rescorer.clip, rescorer.novel_names, CmClipParams(preprocess="released"))
    theirs, _ = same.scores(PUBLISHED, found, data)
    ours, _ = same.scores(PUBLISHED._replace(way="ours"), found, data)
    print(
        f"largest difference of a score to the published way, fed the same, fp32: {np.abs(ours - theirs).max():.1e}"
    )
    few = found.keep(np.arange(len(found)) < 40)
    clip = rescorer.ours("fp32", "crop")
    together = embed_detections(few, data, clip)
    alone = CropEmbeddings(one_by_one(clip, few, data), np.arange(len(few)), together.counts)
    blended = [rescorer.blend(clip, embeds, few, (0.0,))[0] for embeds in (together, alone)]
    print(f"and to a forward pass for each detection, at c = 0: {np.abs(blended[0] - blended[1]).max():.1e}")


def print_floor(clip, precision: str, repeats: int) -> None:
    flops, rate = flops_of_crop(clip), matrix_rate(precision, "cpu")
    size = clip.batch_size if flops < 1e9 else 4
    crops = torch.randn(size, 3, *clip.image_size)
    clip.embed_crops(crops)
    _, seconds = timed(lambda: clip.embed_crops(crops), repeats=max(repeats, 2))
    floor, ms = 1000 * flops / rate, 1000 * seconds / size
    print(
        f"{precision}: {flops / 1e9:.3f} GFLOP a crop, matrix rate {rate / 1e9:.0f} GFLOP/s, floor {floor:.3f} ms a "
        f"crop, measured {ms:.3f} ({100 * floor / ms:.0f} % of the rate)"
    )


def clip_of(arguments: argparse.Namespace) -> tuple:
    """The CLIP of a run of 12_tiny_clip, or one of open_clip's with random weights."""
    if arguments.model is not None:
        return load_clip(arguments.model, None), f"{arguments.model} (random weights)"
    made = json.loads(arguments.clip.read_text())
    folder = arguments.clip.parents[1] / "artifacts" / made["run_id"]
    return load_clip(made["params"]["tower"], folder / "clip.pt"), made["params"]["tower"]


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
    command = commands.add_parser("encoding", help="the crops of stored detections, beside the published way")
    command.add_argument("--record", type=Path, required=True, help="of 20_fine_tuning")
    command.add_argument("--cell", help="such as seed0-kshot-ce; the first if not given")
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--clip", type=Path, help="record of 12_tiny_clip")
    source.add_argument("--model", help="a model of open_clip, with random weights")
    command.add_argument("--images", type=int, help="only so many test images")
    command.add_argument("--repeats", type=int, default=3)
    command.add_argument(
        "--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16", "fp16", "auto"]
    )
    command.add_argument(
        "--approximations", nargs="*", default=["share=object", "share=proposal", "budget=5"]
    )
    command.add_argument(
        "--dense", type=int, choices=[0, 1], default=1, help="whether to measure the dense path"
    )
    command.set_defaults(work=encoding)
    arguments = parser.parse_args()
    arguments.work(arguments)


if __name__ == "__main__":
    main()
