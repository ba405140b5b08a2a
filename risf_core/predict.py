"""``python -m risf_core.predict IMAGES... --checkpoint ...``: draw what a detector finds, before and after CM-CLIP.

IMAGES are files of any format that PIL reads, folders (searched with those below them) and patterns. Boxes are in
pixels of the upright image. Written are ``pictures/*.png``, ``detections.json`` and, with a CLIP, ``rescored.json``
(results files of COCO's form), and ``images.json``: the images and categories that their ids mean.

A broken image is named and left out, the others go on. A folder with the results of another run is refused; with
``--overwrite`` its results and pictures go once the first image is done. Exit code: 0 all well, 1 images were left out,
2 nothing was done, 130 stopped; what is done by then is written.
"""

from __future__ import annotations

import argparse
import glob
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from risf_core.class_lists import read_class_list
from risf_core.command_line import device_of, made_folder, names_of, say, share_of
from risf_core.errors import DataError, ParamsError, RisfError
from risf_core.prediction_files import (
    PICTURES,
    Inputs,
    check_name,
    check_output,
    clear,
    find_images,
    free_name,
)
from risf_core.runs.run_specs import shown
from risf_core.runs.yaml_files import project_root

if TYPE_CHECKING:
    from risf_core.detector_files import LoadedDetector
    from risf_core.prediction import Prediction, Predictor

CHECKPOINTS = ("model.pth", "detector.pth", "weights/*.pth")  # in the folder of a run's artifacts
LABEL_SPACES = ("rescored+background", "all+background")


def find_checkpoint(word: str) -> Path:
    """The file of a checkpoint: a path, or the only detector that a run of this project keeps.

    Raises:
        ParamsError: If there is none, or the run keeps several.
    """
    path = Path(word).expanduser()
    if path.is_file():
        return path
    folders = sorted((project_root() / "results").glob(f"*/artifacts/{glob.escape(word)}"))
    files = [file for folder in folders for pattern in CHECKPOINTS for file in sorted(folder.glob(pattern))]
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(shown(file) for file in files[:6])
        raise ParamsError(f"--checkpoint {word}: the run keeps {len(files)} detectors; name one: {names}.")
    why = "keeps no detector (keep_weights: true does)" if folders else "is no file and no run of results/"
    raise ParamsError(f"--checkpoint {word} {why}. Expected a .pth or .pkl file, or a run id.")


def open_detector(arguments: argparse.Namespace, device: str) -> LoadedDetector:
    """The detector of ``--checkpoint``, with what ``--detector`` and ``--classes`` say of a file of others."""
    from risf_core.prediction import open_detector_file

    params = None if arguments.detector is None else read_detector_params(arguments.detector)
    names = None if arguments.classes is None else read_class_list(arguments.classes).names
    path = find_checkpoint(arguments.checkpoint)
    return open_detector_file(path, detector=params, class_names=names, device=device)


def read_detector_params(path: Path):
    """``detector:`` of a params file, or the whole file.

    Raises:
        ParamsError: If the file or a value in it is wrong.
    """
    from pydantic import ValidationError

    from risf_core.params import DetectorParams
    from risf_core.runs.yaml_files import explain, read_yaml

    content = read_yaml(path)
    content = content.get("detector", content)
    try:
        return DetectorParams.model_validate(content)
    except ValidationError as error:
        raise ParamsError(f"{path}: {explain(error, DetectorParams)}") from None


def open_clip_of(word: str, device: str):
    """The CLIP that a word names: a run of 12_tiny_clip, a small CLIP of the demo, or MODEL:TAG and MODEL:FILE.

    Raises:
        ParamsError: If it names none.
        CheckpointError: If its weights cannot be fetched, read or loaded.
    """
    from risf_core.clip_models import load_clip
    from risf_core.runs.state import load_record

    path = Path(word).expanduser()
    if path.is_file():
        from risf_core.demo_weights import load_half_clip
        from risf_core.detector.checkpoints import read_checkpoint

        if "tokens" in read_checkpoint(path):
            return load_half_clip(path, device=device)
        raise ParamsError(f"--cm-clip {word}: the file does not say its model. Write MODEL:{word}.")
    for record_path in sorted((project_root() / "results").glob(f"*/records/{glob.escape(word)}.json")):
        record = load_record(record_path) or {}
        weights = record_path.parents[1] / "artifacts" / word / "clip.pt"
        if "tower" in record.get("params", {}) and weights.is_file():
            return load_clip(record["params"]["tower"], weights, device=device)
    if word.startswith(("local-dir:", "hf-hub:")):
        return load_clip(word, None, device=device)
    model, _, pretrained = word.partition(":")
    if not pretrained:
        raise ParamsError(
            f"--cm-clip {word} is no file and no run of 12_tiny_clip. Expected one of these, or MODEL:TAG or "
            "MODEL:FILE, such as ViT-B-16:openai."
        )
    return load_clip(model, pretrained, device=device)


def open_predictor(arguments: argparse.Namespace) -> Predictor:
    """Detector and CLIP as the command line says."""
    from risf_core.data.dataset import check_class_list
    from risf_core.params import CmClipParams
    from risf_core.prediction import Predictor, cm_clip_of

    device = device_of(arguments.device)
    loaded, clip = open_detector(arguments, device), None
    options = CmClipParams(c=arguments.c, score_thresh=arguments.score_thresh)
    if arguments.cm_clip is not None:
        words = arguments.rescored_classes
        rescored = loaded.class_names if words is None else names_of(words)
        check_class_list(rescored, loaded.class_names, where="--rescored-classes")
        space = label_space(arguments.label_space, rescored, loaded.class_names)
        clip = cm_clip_of(open_clip_of(arguments.cm_clip, device), rescored, options, label_space=space)
    cuts = {"score_thresh": arguments.score_thresh, "max_detections": arguments.max_detections}
    return Predictor(loaded, clip, options, **cuts)


def label_space(word: str, rescored: Sequence[str], class_names: Sequence[str]) -> tuple[str, ...]:
    """The names that compete in CLIP's softmax, background last: one of ``LABEL_SPACES``, or all names of a file.

    Raises:
        ParamsError: If it is neither, or the file lacks a class that is re-scored.
    """
    from risf_core.cm_clip import BACKGROUND

    names = {LABEL_SPACES[0]: rescored, LABEL_SPACES[1]: (*rescored, *class_names)}.get(word)
    if names is None:
        if not Path(word).is_file():
            raise ParamsError(
                f"--label-space {word}: expected {' or '.join(LABEL_SPACES)}, or a file of names."
            )
        names = read_class_list(word).names
        if missing := [name for name in rescored if name not in names]:
            raise ParamsError(
                f"--label-space {word}: {', '.join(missing)} of the classes to re-score stand not in the file. "
                "Expected all names that compete."
            )
    return (*dict.fromkeys(name for name in names if name != BACKGROUND), BACKGROUND)


def predict_all(
    predictor: Predictor,
    inputs: Inputs,
    output: Path,
    *,
    draw_thresh: float,
    category_ids: Sequence[int] | None = None,
) -> int:
    """Predict, draw and write; one line for each image, to standard error for one that is broken or missing.

    Returns:
        How many inputs were left out.
    """
    from risf_core.prediction import write_results

    for word in inputs.missing:
        _complain(f"{word}: there is no such file or folder, and no file fits the pattern.")
    done: list[Prediction] = []
    pictures: dict[str, str] = {}  # by the name in small letters: some file systems know no others
    try:
        for image_id, path in enumerate(inputs.files, start=1):
            try:
                check_name(path)
                prediction = predictor.predict(path, image_id)
            except DataError as error:
                _complain(str(error))
                continue
            if not done:
                clear(made_folder(output))
            picture = f"{PICTURES}/{free_name(path.stem, image_id, pictures, output / PICTURES)}.png"
            draw(prediction, output / picture, predictor, draw_thresh)
            pictures[Path(picture).stem.lower()] = picture
            done.append(prediction.without_pixels())
            count = int((prediction.last.scores > draw_thresh).sum())
            place = f"{image_id}/{len(inputs.files)} {path}"
            say(f"{place}: {count} drawn of {len(prediction.last)}, {output / picture}")
    finally:  # what is finished is kept if the rest is stopped
        if done:
            names = predictor.loaded.class_names
            drawn = list(pictures.values())[: len(done)]
            written = write_results(output, done, names, category_ids, drawn)
            say(f"{len(done)} images: {', '.join(map(str, written))}")
    return len(inputs.files) + len(inputs.missing) - len(done)


def draw(prediction: Prediction, path: Path, predictor: Predictor, draw_thresh: float) -> None:
    """Write the picture of a prediction."""
    from risf_core.report.prediction_pictures import prediction_figure

    sides = prediction.pixels, prediction.before, prediction.after
    drawing = prediction_figure(
        prediction.record, *sides, score_thresh=draw_thresh, note=f", c = {predictor.cm_clip.c:g}"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(drawing.png())


def _complain(text: str) -> None:
    sys.stderr.write(f"DataError: {text}\n")


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line, checked."""
    parser = argparse.ArgumentParser(
        prog="python -m risf_core.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders, patterns")
    parser.add_argument("--checkpoint", required=True, help="a .pth or .pkl file, or the id of a run")
    parser.add_argument("--detector", type=Path, help="params file with its detector, for a file of others")
    parser.add_argument(
        "--classes",
        type=Path,
        help="classes of its head, for a file of others: a name a line, or COCO's categories",
    )
    parser.add_argument(
        "--cm-clip", metavar="CLIP", help="MODEL:TAG, MODEL:FILE, a run id, or the demo's file"
    )
    parser.add_argument(
        "--rescored-classes",
        nargs="+",
        metavar="NAME",
        help="names or a file of names; default: all of the head's",
    )
    parser.add_argument(
        "--label-space",
        default=LABEL_SPACES[0],
        help=f"{', '.join(LABEL_SPACES)}, or a file of all names that compete",
    )
    parser.add_argument("--c", type=share_of, default=0.7, help="weight of the detector's score (0.7)")
    parser.add_argument("--score-thresh", type=share_of, default=0.05, help="lower ones do not count (0.05)")
    parser.add_argument("--draw-thresh", type=share_of, default=0.3, help="lower ones are not drawn (0.3)")
    parser.add_argument("--max-detections", type=int, default=100, help="the best of an image (100)")
    parser.add_argument(
        "--output", type=Path, default=Path("predictions"), help="folder to write to (predictions)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the results that the folder holds")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args(words)
    if not 1 <= arguments.max_detections <= 300:
        parser.error(f"--max-detections must be 1 to 300, got {arguments.max_detections}")
    for name in ("rescored_classes", "label_space", "c"):
        if arguments.cm_clip is None and getattr(arguments, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} belongs to --cm-clip")
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = parse_arguments(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    began = time.perf_counter()
    try:
        inputs = images_of(arguments)
        predictor = open_predictor(arguments)
        ids = None if arguments.classes is None else read_class_list(arguments.classes).ids
        options = {"draw_thresh": arguments.draw_thresh, "category_ids": ids}
        num_left_out = predict_all(predictor, inputs, arguments.output, **options)
    except (RisfError, OSError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("Stopped. What is done is written.\n")
        return 130
    say(f"{time.perf_counter() - began:.1f} s on {predictor.device}")
    num_inputs = len(inputs.files) + len(inputs.missing)
    if num_left_out:
        sys.stderr.write(f"{num_left_out} of {num_inputs} inputs were left out.\n")
    return 2 if num_left_out == num_inputs else int(num_left_out > 0)


def images_of(arguments: argparse.Namespace) -> Inputs:
    """The images of the command line, once its output has proved to be free.

    Raises:
        RisfError: If it is not, or there is no image.
    """
    inputs = find_images(arguments.images, leave_out=arguments.output / PICTURES)
    if not inputs.files:
        raise DataError(
            f"{' '.join(arguments.images)}: there is no image. Expected files, folders or patterns."
        )
    check_output(arguments.output, overwrite=arguments.overwrite)
    if inputs.num_others:
        say(f"{inputs.num_others} files of the folders are no images by their names and are left out")
    return inputs


if __name__ == "__main__":
    sys.exit(main())
