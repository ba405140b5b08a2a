"""``python -m risf_core.demo``: what CM-CLIP does, from small committed weights, in less than a minute.

Renders the first test scenes of the pictogram world, detects, re-scores, and prints one paired number; writes a picture
of the scenes whose scores changed most. Refuses weights whose hashes are not those published, and says if the numbers
are not those that were stored with them.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from risf_core.command_line import device_of, made_folder
from risf_core.errors import RecordError, RisfError
from risf_core.params import CmClipParams, PictogramData
from risf_core.runs.run_specs import shown
from risf_core.runs.yaml_files import project_path

if TYPE_CHECKING:
    from risf_core.data.dataset import DetectionData
    from risf_core.detections import Detections

PUBLISHED = "results/published/mini/demo"
OUTPUT = "results/scratch/demo"
NUMBERS = ("nAP50_before", "nAP50_after", "difference", "low", "high")


@dataclass(frozen=True, eq=False)
class Measured:
    """What counts of the detections before and after CM-CLIP, the test scenes, and the numbers (see ``NUMBERS``)."""

    before: Detections
    after: Detections
    data: DetectionData
    numbers: dict[str, float]


def measure(folder: Path, facts: dict, root: Path, *, device: str = "cpu") -> Measured:
    """Detect and re-score in the first test scenes with the small weights of a folder.

    Args:
        folder: Where ``detector.pth`` and ``clip.pth`` lie.
        facts: ``data``, ``num_images``, ``cm_clip``, ``resamples``, as ``demo.json`` has them.
        root: Where the scenes are rendered; only they are, not the world.
    """
    from risf_core.demo_weights import CLIP, DETECTOR, load_half_clip
    from risf_core.detecting import detect_images
    from risf_core.evaluation import Evaluator
    from risf_core.paired_bootstrap import paired_ap50
    from risf_core.prediction import cm_clip_of, counting, open_detector_file

    options = CmClipParams.model_validate(facts["cm_clip"])
    loaded = open_detector_file(folder / DETECTOR, device=device)
    data = first_scenes(facts, root, loaded.class_names)
    clip = cm_clip_of(load_half_clip(folder / CLIP, device=device), loaded.class_names, options)
    found = detect_images(loaded.detector, data)
    before, after = counting(found, data, clip, options, score_thresh=options.score_thresh)
    evaluator = Evaluator(data, groups={"novel": data.class_names})
    interval = paired_ap50(before, after, data, resamples=facts["resamples"])
    first, second = (evaluator.evaluate(one)["nAP50"] for one in (before, after))
    numbers = (first, second, second - first, interval.low, interval.high)
    return Measured(before, after, data, dict(zip(NUMBERS, numbers, strict=True)))


def first_scenes(facts: dict, root: Path, class_names: Sequence[str]) -> DetectionData:
    """The first test scenes of the world of ``facts["data"]`` with the boxes of some classes; rendered if need be.

    A scene follows from the world's seed and its own number, so a world with fewer test scenes begins with the same.
    """
    from risf_core.data.coco import load_coco
    from risf_core.data.world import build_world

    data = PictogramData.model_validate(facts["data"])
    world = build_world(data.model_copy(update={"num_test_images": facts["num_images"], "root": str(root)}))
    name = f"the first {facts['num_images']} test scenes"
    return load_coco(world.test_annotations, world.root, class_names=tuple(class_names), name=name)


def tolerance(data: DetectionData) -> float:
    """How far nAP50 may be from the stored one, in points: what one object of the rarest class can make of it.

    On the machine that made the numbers they repeat exactly. Elsewhere sums are rounded otherwise, and a box near a
    threshold (of a score, of NMS or of an IoU of 0.5) may come or go; one object found or lost moves its class's AP by
    about 100 / its number of objects, and the mean over C classes by a C-th of that.
    """
    counts = [count for count in data.counts().values() if count]
    return 100.0 / min(counts) / len(counts)


def compare(measured: Measured, expected: dict[str, float]) -> str:
    """One line on how the numbers agree with the stored ones.

    Raises:
        RecordError: If they are further away than rounding can explain.
    """
    names = NUMBERS[:3]
    distance = max(abs(measured.numbers[name] - expected[name]) for name in names)
    limit = tolerance(measured.data)
    if distance > limit:
        stored = ", ".join(f"{name} {expected[name]:.2f}" for name in names)
        found = ", ".join(f"{name} {measured.numbers[name]:.2f}" for name in names)
        raise RecordError(
            f"The numbers are not those stored with the weights: found {found}; expected {stored}, within {limit:.2f}. "
            "The code or its packages compute something else than when the weights were published."
        )
    if distance == 0.0:
        return "The numbers are exactly those stored with the weights."
    return f"The numbers stored with the weights are at most {distance:.3g} away (allowed: {limit:.2f})."


def report(facts: dict, numbers: dict[str, float]) -> str:
    """The paired number in words."""
    detector = facts["detector"]
    return (
        f"nAP50 on the first {facts['num_images']} test scenes, {len(detector['class_names'])} novel classes, "
        f"K = {detector['shots']}, {detector['loss']}, seed {detector['seed']}:\n"
        f"  detector alone  {numbers['nAP50_before']:5.1f}\n"
        f"  after CM-CLIP   {numbers['nAP50_after']:5.1f}\n"
        f"  difference      {numbers['difference']:+5.1f}   95 % bootstrap interval over the images "
        f"{numbers['low']:+.1f} to {numbers['high']:+.1f} ({facts['resamples']} resamples;\n"
        "                         of this one detector and CLIP: other K-shot draws differ more)\n"
    )


def run_demo(folder: Path, output: Path, *, device: str = "cpu") -> None:
    """Check the weights, measure, write the picture, and print what was found."""
    from risf_core.demo_weights import read_facts

    began = time.perf_counter()
    facts = read_facts(folder)
    made_folder(output)
    size = sum(entry["bytes"] for entry in facts["files"].values()) / 1e6
    sys.stdout.write(f"Weights of {shown(folder)}: {size:.1f} MB, hashes as published.\n")
    sys.stdout.write(f"Rendering {facts['num_images']} scenes, detecting, re-scoring ...\n")
    sys.stdout.flush()
    measured = measure(folder, facts, output, device=device)
    sys.stdout.write(report(facts, measured.numbers) + compare(measured, facts["expected"]) + "\n")
    path = output / "before_after.png"
    path.write_bytes(picture(measured).png())
    sys.stdout.write(f"Picture: {shown(path)}\n{time.perf_counter() - began:.0f} s\n")


def picture(measured: Measured):
    """The scenes whose scores rose and fell most, before and after."""
    from risf_core.report.pictures import before_after_figure

    return before_after_figure(measured.before, measured.after, measured.data)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m risf_core.demo", description=__doc__)
    parser.add_argument("--weights", type=Path, default=Path(PUBLISHED), help="folder with demo.json")
    parser.add_argument("--output", type=Path, default=Path(OUTPUT), help="where scenes and picture go")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cpu repeats the numbers exactly"
    )
    arguments = parser.parse_args(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        device = device_of(arguments.device)
        run_demo(project_path(arguments.weights), project_path(arguments.output), device=device)
    except (RisfError, OSError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
