"""Clean seeds: the images of a K-shot set with every instance of the classes of the head annotated.

A K-shot set annotates K boxes of a class; other objects of the same images, even of the same class, stand there without
a box and are trained as background. No published code builds clean seeds, so this is our definition: take the same
images, and restore from the full annotation every instance of the classes of the head (`fsod`: novel; `gfsod`: base and
novel). In `fsod` base objects are not restored: its head has no base class. Clean sets are no K-shot sets: they have
more boxes. The share of the instances that the K-shot set of a seed leaves out is its missing rate.

``python -m risf_core.data.clean_seeds PARAMS`` prints the missing rate of each seed, and writes the clean sets.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from risf_core.data.dataset import DetectionData
from risf_core.errors import DataError, RisfError

if TYPE_CHECKING:
    import pandas as pd

    from risf_core.data.benchmark import Benchmark

logger = logging.getLogger(__name__)

COLUMNS = {
    "fsod": (
        "novel boxes: annotated in the K-shot set; novel instances: all that its images show; novel missing %: the "
        "share without a box, which the clean set restores; missing %: the same of base and novel classes together "
        "(base objects are not restored in fsod, whose head has no base class)."
    ),
    "gfsod": (
        "Of base and novel classes, boxes: annotated in the K-shot set; instances: all that its images show; "
        "missing %: the share without a box, which the clean set restores."
    ),
}


def restore_instances(few_shot: DetectionData, full: DetectionData) -> DetectionData:
    """The clean set of a K-shot set: its images, each once, with all their boxes of its classes.

    Args:
        few_shot: The K-shot set; an image may stand there several times.
        full: The training images with all their boxes.

    Raises:
        DataError: If an image of the K-shot set is not in `full`.
    """
    clean = _same_images(few_shot, full).select_classes(few_shot.class_names)
    logger.info(
        "%s: %d instances, %d of them without a box in the K-shot set",
        clean.name,
        *count_missing(few_shot, clean),
    )
    return clean


def _same_images(few_shot: DetectionData, full: DetectionData) -> DetectionData:
    """The images of a K-shot set, each once, with all that `full` has on them."""
    paths = {record.path for record in few_shot.images}
    images = tuple(record for record in full.images if record.path in paths)
    unknown = paths - {record.path for record in images}
    if unknown:
        raise DataError(
            f"{few_shot.name}: {len(unknown)} of {len(paths)} images are not among the training images, e.g. "
            f"{min(unknown)}. Expected them in the full annotation."
        )
    return replace(full, name=f"{few_shot.name}, clean", images=images)


def count_missing(few_shot: DetectionData, clean: DetectionData) -> tuple[int, int]:
    """How many instances the images of a K-shot set show, and how many of them it leaves out; crowds count nowhere."""
    annotated = {
        (record.path, int(label), *box.tolist())
        for record in few_shot.images
        for label, box in zip(record.labels[~record.is_crowd], record.boxes[~record.is_crowd])
    }
    shown = sum(clean.counts().values())
    return shown, shown - len(annotated)


def missing_rates(benchmark: Benchmark, *, setting: str = "fsod") -> pd.DataFrame:
    """The missing rate of each seed and K, in percent of the instances.

    Returns:
        A row for each K and seed with `images`, and of the classes of the head `boxes` (of the K-shot set),
        `instances` (that its images show) and `missing %`. In `fsod` these have "novel" before them, and another column
        `missing %` is that of base and novel classes together in the same images.
    """
    import pandas as pd

    known = benchmark.train.select_classes((*benchmark.base_names, *benchmark.novel_names))
    of_head = "novel " if setting == "fsod" else ""
    rows = []
    for k in benchmark.shots:
        for seed in range(benchmark.num_seeds):
            few_shot = benchmark.few_shot(k, seed, setting=setting)
            everything = _same_images(few_shot, known)
            all_shown = sum(everything.counts().values())
            clean = everything.select_classes(few_shot.class_names)
            shown, missing = count_missing(few_shot, clean)
            rows.append(
                {
                    "K": k,
                    "seed": seed,
                    "images": len(clean),
                    f"{of_head}boxes": shown - missing,
                    f"{of_head}instances": shown,
                    f"{of_head}missing %": 100 * missing / shown,
                    "missing %": 100 * (all_shown - shown + missing) / all_shown,
                }
            )
    return pd.DataFrame(rows)


def write_clean_seeds(folder: Path, benchmark: Benchmark, *, setting: str = "fsod") -> int:
    """Write every clean set in the published layout, and return the number of files.

    ``file_name`` starts from the deepest folder that holds all images.
    """
    from risf_core.data.coco import coco_content, write_json
    from risf_core.data.few_shot import few_shot_file

    images_dir = Path(os.path.commonpath([str(record.path.parent) for record in benchmark.train.images]))
    written = 0
    for k in benchmark.shots:
        for seed in range(benchmark.num_seeds):
            clean = benchmark.few_shot(k, seed, arm="clean", setting=setting)
            for label, name in enumerate(clean.class_names):
                content = coco_content(clean, images_dir, keep=np.flatnonzero(clean.flat.labels == label))
                write_json(few_shot_file(folder, name, shots=k, seed=seed), content)
                written += 1
    return written


def main(words: Sequence[str] | None = None) -> int:
    """Print the missing rate of each K-shot set of a params file's data, and write the clean sets if asked."""
    from risf_core.data.benchmark import open_benchmark
    from risf_core.runs.run_specs import load_run

    parser = argparse.ArgumentParser(prog="python -m risf_core.data.clean_seeds", description=main.__doc__)
    parser.add_argument("params", help="params file, e.g. params/voc/20_fine_tuning.yaml")
    parser.add_argument("--setting", choices=tuple(COLUMNS), default="fsod", help="classes of the head")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write the clean sets there")
    options = parser.parse_args(words)
    try:
        params = load_run(options.params).params
        benchmark = open_benchmark(params.data, split=getattr(params, "split", 1))
        if "clean" not in benchmark.arms:
            raise DataError(f"{benchmark.name} has the arms {', '.join(benchmark.arms)}, and no clean one.")
        rates = missing_rates(benchmark, setting=options.setting)
        print(f"{rates.to_string(index=False, float_format='%.1f')}\n\n{COLUMNS[options.setting]}")
        if options.write:
            count = write_clean_seeds(options.write, benchmark, setting=options.setting)
            print(f"{count} files in {options.write}")
    except RisfError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
