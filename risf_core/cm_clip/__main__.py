"""``python -m risf_core.cm_clip RESULTS.json --images DIR --classes FILE ...``: re-score what any detector found.

RESULTS is COCO's JSON list of detections, or VOC's text files (one for each class; name them or their folder). The same
file comes out with other scores; what is not re-scored stands in it as it was. The detector's kind does not matter:
softmax or sigmoid, one label of a box or several.

Beside the output a folder keeps the crops encoded so far. So a run that was killed goes on, and one with another --c,
--temperature, --fusion, --label-space or --templates encodes no image again. Exit code: 0 done, 2 refused.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from risf_core.cm_clip.crop_choice import Share
from risf_core.cm_clip.scores import BACKGROUND, Fusion
from risf_core.command_line import count_of, device_of, names_of, say, share_of
from risf_core.errors import DataError, ParamsError, RisfError
from risf_core.results_formats import ClassList, Results, read_class_list, read_results

if TYPE_CHECKING:
    from risf_core.cm_clip.clip import CMCLIP

logger = logging.getLogger(__name__)

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
    add(
        "--classes",
        type=Path,
        help="a name a line, `id name` lines, COCO's categories (.json) or YOLO's names (.yaml)",
    )
    add(
        "--first-id",
        type=int,
        choices=(0, 1),
        default=1,
        help="id of the first name where the file has none (1)",
    )
    add("--annotations", type=Path, help="COCO file: names of images, and of classes; with objects also AP")
    add("--output", type=Path, help="file (VOC: folder) to write; default: RESULTS.rescored.json")
    add("--crops", type=Path, metavar="DIR", help="folder of the encoded crops; default: OUTPUT.crops")
    add("--model", required=True, help="a CLIP of open_clip, such as ViT-B-16, or local-dir:FOLDER")
    add("--pretrained", help="its tag or file; `random` for random weights, to measure time")
    add("--rescored-classes", nargs="+", metavar="NAME", help="names or a file of them; default: all classes")
    add("--label-space", type=Path, metavar="FILE", help="names that compete; default: those and background")
    add("--c", type=share_of, default=0.7, help="weight of the detector's score (0.7)")
    add("--temperature", default="100", help="factor of the cosines (100), or `learned`")
    add("--fusion", choices=get_args(Fusion), default="arithmetic")
    add("--templates", nargs="+", default=["published"], help="published, simple, openai, or prompts with {}")
    add("--score-thresh", type=share_of, default=0.05, help="lower ones keep their score (0.05)")
    add("--top", type=count_of, help="re-score only the best so many of an image")
    add("--path", choices=("crop", "dense"), default="crop", help="dense: one pass an image, less accurate")
    add("--precision", choices=("fp32", "bf16", "fp16", "auto"), default="fp32")
    add("--memory-budget", type=float, default=1024, metavar="MB", help="above the loaded CLIP (1024)")
    shares = [share for share in get_args(Share) if share != "proposal"]  # no results file holds proposals
    add("--share", choices=shares, default="none", help="boxes that overlap share a crop: above 0.9, 0.5")
    add("--budget", type=count_of, help="the most crops of an image")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args(words)
    if arguments.classes is None and arguments.annotations is None:
        parser.error("the classes are not known: give --classes, or --annotations with categories")
    return arguments


def output_paths(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """Where the new results and the encoded crops go; both can be written."""
    first = Path(arguments.results[0])
    is_voc = first.is_dir() or first.suffix.lower() == ".txt"
    folder = first if first.is_dir() else first.parent
    beside = Path(f"{os.path.abspath(folder)}.rescored")  # also of "." and ".."
    output = arguments.output or (beside if is_voc else first.with_suffix(".rescored.json"))
    crops = arguments.crops or Path(f"{os.path.abspath(output)}.crops")
    inputs = [Path(word) for word in arguments.results]
    if is_voc:
        inputs += [path if path.is_dir() else path.parent for path in inputs]
    if output.resolve() in [path.resolve() for path in inputs]:
        raise ParamsError(f"--output {output} is the input. Expected another place.")
    if output.is_dir() != is_voc and output.exists():
        raise ParamsError(
            f"--output {output} is {'no ' if is_voc else 'a '}folder. Expected the input's form."
        )
    if not is_voc and crops.resolve() == output.resolve():
        raise ParamsError(f"--crops {crops} is the output's place too. Expected a folder of its own.")
    _check_place(f"--output {output}", output if is_voc else output.parent, output.name)
    _check_place(f"--crops {crops}", crops, crops.name)
    return output, crops


def _check_place(option: str, folder: Path, name: str) -> None:
    """Refuse a folder, there already or not yet, in which no file can be made; nothing stays behind."""
    try:
        while not os.path.lexists(folder):
            folder = folder.parent
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{name}."):
            pass
    except OSError as error:
        raise ParamsError(
            f"{option}: nothing can be written in {folder} ({error.strerror}). Expected a place that you may write to."
        ) from error


def rescored_classes(arguments: argparse.Namespace, classes: ClassList) -> tuple[str, ...]:
    """The classes to re-score, by name or from the one file given."""
    from risf_core.data.dataset import check_class_list, suggest

    names, words = classes.names, arguments.rescored_classes
    if words is not None:
        is_name = len(words) == 1 and words[0] in names
        if len(words) == 1 and not is_name and not Path(words[0]).is_file() and re.search(r"[./]", words[0]):
            raise ParamsError(
                f"--rescored-classes {words[0]}: there is no such file, and no such class. "
                f"{suggest(words[0], names)}"
            )
        names = check_class_list(
            words if is_name else names_of(words), names, where=f"--rescored-classes {words[0]}"
        )
    for name in names:
        if _means_background(name):
            class_id = classes.ids[classes.names.index(name)]
            raise ParamsError(
                f"{arguments.classes or arguments.annotations}: class {name!r} (id {class_id}) would compete with "
                f"CM-CLIP's own {BACKGROUND!r}. Take it out of a list of `id name` lines, which keep the others' ids, "
                "or give --rescored-classes without it."
            )
    return names


def label_space(arguments: argparse.Namespace, rescored: Sequence[str]) -> tuple[str, ...] | None:
    """All names that compete, background last; None: the re-scored classes and background."""
    path = arguments.label_space
    if path is None:
        return None
    if not path.is_file():
        raise ParamsError(f"--label-space {path}: there is no such file. Expected one with a name a line.")
    names = [name for name in read_class_list(path).names if name != BACKGROUND]
    odd = [name for name in names if _means_background(name)]
    if odd:
        raise ParamsError(
            f"--label-space {path}: {odd[0]!r} would compete with CM-CLIP's own {BACKGROUND!r}. Take it out."
        )
    missing = [name for name in rescored if name not in names]
    if missing:
        raise ParamsError(
            f"--label-space {path}: {len(missing)} of {len(rescored)} re-scored classes are missing, the first is "
            f"{missing[0]!r}. Expected all of them among the names."
        )
    return (*names, BACKGROUND)


def _means_background(name: str) -> bool:
    """Whether a name is that of no object: ``background``, or ``__background__`` in torchvision's lists."""
    return name.strip("_ ").lower() == BACKGROUND


def open_cm_clip(
    arguments: argparse.Namespace, rescored: Sequence[str], space: Sequence[str] | None, crops: Path
) -> CMCLIP:
    """The CLIP with its label space, as the command line says."""
    from risf_core.clip_models import load_clip
    from risf_core.cm_clip.clip import CMCLIP

    temperature = _temperature(arguments.temperature)
    loaded = load_clip(arguments.model, _weights(arguments), device=device_of(arguments.device))
    templates = arguments.templates
    noted = NotedPrecision(crops, loaded.model) if arguments.precision == "auto" else None
    clip = CMCLIP(
        loaded.model,
        loaded.tokenizer,
        rescored,
        label_space=space,
        templates=templates[0] if len(templates) == 1 and "{}" not in templates[0] else templates,
        temperature=temperature,
        path=arguments.path,
        precision=arguments.precision if noted is None else noted.read(),
        memory_budget_mb=arguments.memory_budget,
        text_store=crops,
    )
    if noted is not None:
        noted.write(clip.precision)
    return clip


def _weights(arguments: argparse.Namespace) -> str | None:
    """What `load_clip` takes as pretrained."""
    if arguments.pretrained is None and not arguments.model.startswith(("local-dir:", "hf-hub:")):
        raise ParamsError(
            f"--model {arguments.model} without --pretrained. Give a tag, such as openai, or the path of a checkpoint; "
            "`random` only to measure time."
        )
    return None if arguments.pretrained == "random" else arguments.pretrained


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


class NotedPrecision:
    """What `auto` chose, beside the crops that are encoded in it: another choice would encode them all again.

    It belongs to the weights of the image tower and the device that it was measured with.
    """

    def __init__(self, crops: Path, model) -> None:
        import torch

        from risf_core.cm_clip.journal import weights_hash

        device = next(model.parameters()).device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        self.path = crops / "precision.json"
        self.key = f"{weights_hash(model.visual)} {device.type} {name}"

    def _noted(self) -> dict[str, str]:
        try:
            noted = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError):
            noted = None
        if isinstance(noted, dict):
            return noted
        logger.warning("%s is damaged; the precision is measured again", self.path)
        return {}

    def read(self) -> str:
        """The choice of before; ``auto`` if there is none."""
        from risf_core.cm_clip.costs import PRECISIONS

        precision = self._noted().get(self.key)
        return precision if precision in list(PRECISIONS) else "auto"

    def write(self, precision: str) -> None:
        from risf_core.data.coco import write_json

        write_json(self.path, self._noted() | {self.key: precision})


def rescore_file(arguments: argparse.Namespace) -> None:
    """Read, encode, blend, write, compare."""
    output, crops = output_paths(arguments)
    classes = read_class_list(arguments.classes or arguments.annotations, first_id=arguments.first_id)
    rescored = rescored_classes(arguments, classes)
    space = label_space(arguments, rescored)
    began = time.perf_counter()
    results = read_results(arguments.results, classes)
    first, last = (f"{classes.ids[i]} {classes.names[i]!r}" for i in (0, -1))
    say(f"{len(classes.names)} classes from {first} to {last}")
    say(f"{len(results)} entries of {len(results.image_keys)} images, read in {_since(began)}")
    from risf_core.cm_clip.result_images import find_images
    from risf_core.cm_clip.results_file import candidates, match_truth, rescore_results

    options = {name: getattr(arguments, name) for name in ("score_thresh", "top")}
    rows = candidates(results, [classes.names.index(name) for name in rescored], **options)
    records, truth = find_images(results, arguments.images, arguments.annotations, rows=rows)
    truth = None if truth is None else match_truth(results, classes, truth)  # before hours of encoding
    clip = open_cm_clip(arguments, rescored, space, crops)
    began = time.perf_counter()
    options |= {name: getattr(arguments, name) for name in ("c", "fusion", "share", "budget")}
    scores, counts = rescore_results(results, records, classes, clip, journal=crops, **options)
    results.write(output, scores)
    _tell(counts, f"{_since(began)} on {clip.device.type} in {clip.precision}")
    say(f"written: {output}; crops: {crops}")
    if truth is not None:
        _tell_ap(results, records, classes, scores, truth, clip.class_names)


def _tell(counts: dict[str, int], cost: str) -> None:
    """Say what became of the entries."""
    say(f"{counts['rescored']} of {counts['entries']} entries re-scored: {counts['encoded']} crops, {cost}")
    parts = [f"{counts[name]} {text}" for name, text in REASONS.items() if counts[name]]
    if parts:
        say(f"unchanged: {', '.join(parts)}")
    rescored = max(1, counts["rescored"])
    shares = [f"{name} {counts[name]} ({counts[name] / rescored:.1%})" for name in ("equal", "shared")]
    say(f"re-scored by another box's crop: {', '.join(shares)}")
    if counts["repeated"]:
        say(
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
                say(f"{metric} of {title}: {first:.2f} -> {last:.2f}, difference {last - first:+.2f}")
    pairs = [
        (before["per_class"][name]["AP50"], after["per_class"][name]["AP50"])
        for name in rescored
        if before["per_class"][name]["AP50"] is not None
    ]
    better, worse = (sum(sign * (last - first) > 0 for first, last in pairs) for sign in (1, -1))
    say(f"AP50 by re-scored class: better in {better}, worse in {worse} of {len(pairs)} with objects")


def _since(began: float) -> str:
    return f"{time.perf_counter() - began:.1f} s"


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
