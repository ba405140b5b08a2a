"""``python -m risf_core.cm_clip RESULTS.json --images DIR --classes FILE ...``: re-score what any detector found.

RESULTS is COCO's JSON list of detections, or VOC's text files (one for each class; name them or their folder). The same
file comes out with other scores; what is not re-scored stands in it as it was. The detector's kind does not matter:
softmax or sigmoid, one label of a box or several.

Beside the output a folder keeps the crops encoded so far. So a run that was killed goes on, and one with another --c,
--temperature, --fusion, --label-space or --templates encodes no image again. Exit code: 0 done, 2 refused.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from risf_core.cm_clip.crop_choice import Share
from risf_core.cm_clip.scores import BACKGROUND, Fusion
from risf_core.errors import DataError, ParamsError, RisfError
from risf_core.results_formats import ClassList, Results, read_class_list, read_results

if TYPE_CHECKING:
    from risf_core.cm_clip.clip import CMCLIP

PRECISION = "precision.txt"  # what `auto` chose, beside the crops that are encoded in it
REASONS = {
    "other_class": "of classes that are not re-scored",
    "low_score": "at or below the score threshold",
    "not_top": "not among the best of their image",
    "empty": "without an area",
    "outside": "outside their image",
    "dropped": "beyond the budget of crops",
}


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line, checked."""
    parser = argparse.ArgumentParser(
        prog="python -m risf_core.cm_clip",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("results", nargs="+", metavar="RESULTS", help="a JSON file, VOC's .txt files, or their folder")
    add("--images", type=Path, required=True, metavar="DIR", help="folder of the images")
    add("--classes", type=Path, help="a name a line, `id name` lines, or COCO's categories as JSON")
    add("--first-id", type=int, choices=(0, 1), default=1, help="id of the first name of a plain list (1)")
    add("--annotations", type=Path, help="COCO file: names of images, and of classes; with objects also AP")
    add("--output", type=Path, help="file (VOC: folder) to write; default: RESULTS.rescored.json")
    add("--crops", type=Path, metavar="DIR", help="folder of the encoded crops; default: OUTPUT.crops")
    add("--model", required=True, help="a CLIP of open_clip, such as ViT-B-16, or local-dir:FOLDER")
    add("--pretrained", help="its tag or file; `random` for random weights, to measure time")
    add("--rescored-classes", nargs="+", metavar="NAME", help="names or a file of them; default: all classes")
    add("--label-space", type=Path, metavar="FILE", help="names that compete; default: those and background")
    add("--c", type=_share, default=0.7, help="weight of the detector's score (0.7)")
    add("--temperature", default="100", help="factor of the cosines (100), or `learned`")
    add("--fusion", choices=get_args(Fusion), default="arithmetic")
    add("--templates", nargs="+", default=["published"], help="published, simple, openai, or prompts with {}")
    add("--score-thresh", type=_share, default=0.05, help="lower ones keep their score (0.05)")
    add("--top", type=_count, help="re-score only the best so many of an image")
    add("--path", choices=("crop", "dense"), default="crop", help="dense: one pass an image, less accurate")
    add("--precision", choices=("fp32", "bf16", "fp16", "auto"), default="fp32")
    add("--memory-budget", type=float, default=1024, metavar="MB", help="above the loaded CLIP (1024)")
    shares = [share for share in get_args(Share) if share != "proposal"]  # no results file holds proposals
    add("--share", choices=shares, default="none", help="boxes that overlap share a crop: above 0.9, 0.5")
    add("--budget", type=_count, help="the most crops of an image")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args(words)
    if arguments.classes is None and arguments.annotations is None:
        parser.error("the classes are not known: give --classes, or --annotations with categories")
    return arguments


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return value


def output_paths(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """Where the new results and the encoded crops go."""
    first = Path(arguments.results[0])
    is_voc = first.is_dir() or first.suffix.lower() == ".txt"
    folder = first if first.is_dir() else first.parent
    default = folder.with_name(f"{folder.name}.rescored") if is_voc else first.with_suffix(".rescored.json")
    output = arguments.output or default
    if output.resolve() in (folder.resolve(), first.resolve()):
        raise ParamsError(f"--output {output} is the input. Expected another place.")
    if output.is_dir() != is_voc and output.exists():
        raise ParamsError(
            f"--output {output} is {'no ' if is_voc else 'a '}folder. Expected the input's form."
        )
    return output, arguments.crops or output.with_name(f"{output.name}.crops")


def names_from(words: Sequence[str]) -> tuple[str, ...]:
    """The names given, or those of the one file given."""
    is_file = len(words) == 1 and Path(words[0]).is_file()
    return read_class_list(words[0]).names if is_file else tuple(words)


def open_cm_clip(arguments: argparse.Namespace, classes: ClassList, crops: Path) -> CMCLIP:
    """The CLIP with its label space, as the command line says."""
    import torch

    from risf_core.clip_models import load_clip
    from risf_core.cm_clip.clip import CMCLIP
    from risf_core.data.dataset import check_class_list

    rescored = classes.names
    if arguments.rescored_classes is not None:
        names = names_from(arguments.rescored_classes)
        rescored = check_class_list(names, classes.names, where="--rescored-classes")
    space = None
    if arguments.label_space is not None:
        others = [name for name in names_from([str(arguments.label_space)]) if name != BACKGROUND]
        space = (*others, BACKGROUND)
    device = _device(arguments.device, has_gpu=torch.cuda.is_available())
    loaded = load_clip(arguments.model, _weights(arguments), device=device)
    templates = arguments.templates
    return CMCLIP(
        loaded.model,
        loaded.tokenizer,
        rescored,
        label_space=space,
        templates=templates[0] if len(templates) == 1 and "{}" not in templates[0] else templates,
        temperature=_temperature(arguments.temperature),
        path=arguments.path,
        precision=_precision(arguments.precision, crops),
        memory_budget_mb=arguments.memory_budget,
        text_store=crops,
    )


def _weights(arguments: argparse.Namespace) -> str | None:
    """What `load_clip` takes as pretrained."""
    if arguments.pretrained is None and not arguments.model.startswith(("local-dir:", "hf-hub:")):
        raise ParamsError(
            f"--model {arguments.model} without --pretrained. Give a tag, such as openai, or the path of a checkpoint; "
            "`random` only to measure time."
        )
    return None if arguments.pretrained == "random" else arguments.pretrained


def _device(word: str, *, has_gpu: bool) -> str:
    if word == "cuda" and not has_gpu:
        raise ParamsError("--device cuda, but torch finds no GPU. Take auto or cpu, or run `make doctor`.")
    return "cuda" if has_gpu and word != "cpu" else "cpu"


def _temperature(word: str) -> float | str:
    if word == "learned":
        return word
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1000:
        raise ParamsError(f"--temperature {word}: expected a number above 0, at most 1000, or `learned`.")
    return value


def _precision(word: str, crops: Path) -> str:
    """For `auto` what the crops there were encoded in: another choice would encode them all again."""
    noted = crops / PRECISION
    return noted.read_text(encoding="utf-8").strip() if word == "auto" and noted.is_file() else word


def rescore_file(arguments: argparse.Namespace) -> None:
    """Read, encode, blend, write, compare."""
    output, crops = output_paths(arguments)
    classes = read_class_list(arguments.classes or arguments.annotations, first_id=arguments.first_id)
    began = time.perf_counter()
    results = read_results(arguments.results, classes)
    _say(f"{len(results)} entries of {len(results.image_keys)} images, read in {_since(began)}")
    from risf_core.cm_clip.results_file import find_images, match_truth, rescore_results

    records, truth = find_images(results, arguments.images, arguments.annotations)
    truth = None if truth is None else match_truth(results, classes, truth)  # before hours of encoding
    clip = open_cm_clip(arguments, classes, crops)
    if arguments.precision == "auto":
        crops.mkdir(parents=True, exist_ok=True)
        (crops / PRECISION).write_text(f"{clip.precision}\n", encoding="utf-8")
    began = time.perf_counter()
    options = {
        name: getattr(arguments, name) for name in ("c", "fusion", "score_thresh", "top", "share", "budget")
    }
    scores, counts = rescore_results(results, records, classes, clip, journal=crops, **options)
    results.write(output, scores)
    _tell(counts, f"{_since(began)} on {clip.device.type} in {clip.precision}")
    _say(f"written: {output}; crops: {crops}")
    if truth is not None:
        _tell_ap(results, records, classes, scores, truth, clip.class_names)


def _tell(counts: dict[str, int], cost: str) -> None:
    """Say what became of the entries."""
    _say(f"{counts['rescored']} of {counts['entries']} entries re-scored: {counts['encoded']} crops, {cost}")
    parts = [f"{counts[name]} {text}" for name, text in REASONS.items() if counts[name]]
    if parts:
        _say(f"unchanged: {', '.join(parts)}")
    rescored = max(1, counts["rescored"])
    shares = [f"{name} {counts[name]} ({counts[name] / rescored:.1%})" for name in ("equal", "shared")]
    _say(f"re-scored by another box's crop: {', '.join(shares)}")
    if counts["repeated"]:
        _say(
            f"{counts['repeated']} entries repeat another one (image, class, box, score) and are treated alike"
        )


def _tell_ap(results: Results, records, classes: ClassList, scores, truth, rescored: Sequence[str]) -> None:
    """Say the AP before and after."""
    from risf_core.cm_clip.results_file import compare

    before, after = compare(results, records, classes, scores, truth, rescored)
    groups = {"": "all classes"} | ({"n": "re-scored classes"} if len(rescored) < len(classes.names) else {})
    for prefix, title in groups.items():
        for metric in ("AP", "AP50"):
            first, last = before[prefix + metric], after[prefix + metric]
            if first is not None:
                _say(f"{metric} of {title}: {first:.2f} -> {last:.2f}, difference {last - first:+.2f}")
    pairs = [
        (before["per_class"][name]["AP50"], after["per_class"][name]["AP50"])
        for name in rescored
        if before["per_class"][name]["AP50"] is not None
    ]
    better, worse = (sum(sign * (last - first) > 0 for first, last in pairs) for sign in (1, -1))
    _say(f"AP50 by re-scored class: better in {better}, worse in {worse} of {len(pairs)} with objects")


def _since(began: float) -> str:
    return f"{time.perf_counter() - began:.1f} s"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = parse_arguments(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("risf_core").setLevel(logging.INFO)
    try:
        rescore_file(arguments)
    except RisfError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"{DataError.__name__}: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("Stopped. What is encoded is kept: the same command goes on from there.\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
