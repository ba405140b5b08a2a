"""``python -m risf_core.open_vocabulary regions`` and ``test``: the second system on a user's own files.

``regions`` makes a file of regions for distillation (or, with --labels, of boxes for image-level labels) that the
parameters ``external.regions`` and ``external.label_boxes`` name: boxes of a base model's RPN, of an objectness learnt
from its base boxes, of an OWLv2, or of files of others, with the embeddings of a CLIP.

``test`` detects with a trained arm in other images, under other names, and says its AP: the columns of its text matrix
are swapped, nothing is trained. It writes a results file of COCO's form and, beside it, OUT.metrics.json.

Beside the output a folder OUT.parts keeps what is done so far, so that a run that was killed goes on. Exit code: 0
done, 2 refused, 130 stopped.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from risf_core.cm_clip.__main__ import _check_place as check_place
from risf_core.command_line import count_of, names_of, say, share_of
from risf_core.errors import DataError, ParamsError, RisfError

PROVIDERS = {
    "rpn": "detector",
    "objectness": "detector",
    "owlv2": "owlv2",
    "file": "regions",
}  # and what each needs
BELONGS = {  # option: the providers that it is for
    "detector": ("rpn", "objectness"),
    "detector_params": ("rpn", "objectness"),
    "classes": ("rpn", "objectness"),
    "boxes": ("objectness",),
    "base": ("objectness",),
    "owlv2": ("owlv2",),
    "labels": ("owlv2",),
    "regions": ("file",),
    "outside": ("file",),
    "missing": ("file",),
    "seed": ("objectness",),
}


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line, checked."""
    parser = argparse.ArgumentParser(
        prog="python -m risf_core.open_vocabulary",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="regions | test")
    regions = commands.add_parser("regions", help="make a file of regions")
    test = commands.add_parser("test", help="test a trained arm on other data")
    for one in (regions, test):
        one.add_argument(
            "--annotations", type=Path, required=True, metavar="FILE", help="COCO's or LVIS's form"
        )
        one.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the images")
        one.add_argument("--out", type=Path, required=True, help="file to write")
        one.add_argument("--lvis", action="store_true", help="the annotations are LVIS's, with its rules")
        one.add_argument(
            "--clip", metavar="MODEL", help="a CLIP of open_clip, such as ViT-B-32, or local-dir:FOLDER"
        )
        one.add_argument("--pretrained", help="its tag or file; `random` for random weights, to measure time")
        one.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    _add_regions(regions)
    _add_test(test)
    arguments = parser.parse_args(words)
    if arguments.pretrained is not None and arguments.clip is None:
        parser.error("--pretrained belongs to --clip")
    if arguments.command == "regions":
        _check_regions(arguments, regions)
    else:
        _check_test(arguments, test)
    return arguments


def _add_regions(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--provider", choices=tuple(PROVIDERS), required=True, help="who proposes")
    add("--detector", type=Path, metavar="CHECKPOINT", help="rpn, objectness: a base model's model.pth")
    add(
        "--detector-params",
        type=Path,
        metavar="FILE",
        help="params file with its detector, for a file of others",
    )
    add("--classes", type=Path, metavar="FILE", help="classes of its head, for a file of others")
    add(
        "--boxes",
        type=Path,
        metavar="FILE",
        help="boxes that objectness learns from; default: the annotations",
    )
    add("--base", nargs="+", metavar="NAME", help="classes of these boxes; names or a file; default: all")
    add("--seed", type=int, default=0, help="of the objectness (0)")
    add("--owlv2", metavar="NAME", help="owlv2: a hub's name or a folder")
    add(
        "--regions",
        type=Path,
        metavar="PATH",
        help="file: any form of risf_core.open_vocabulary.region_files",
    )
    add("--outside", choices=("error", "drop"), help="file: boxes outside of their image (error)")
    add("--missing", choices=("error", "empty"), help="file: images without an entry (error)")
    add("--top", type=count_of, help="regions of an image (5; of a file all)")
    add(
        "--labels",
        action="store_true",
        help="owlv2: a box for each name that an image shows (pos_category_ids, captions, or its boxes' classes)",
    )
    add("--names", type=Path, metavar="FILE", help="classes to look for in captions, a name a line")
    add("--no-embeddings", action="store_true", help="make none; those that a file has stay")
    add("--crop", choices=("squash", "shortest", "longest"), default="squash", help="released RKD: shortest")
    add("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the image tower")
    add("--memory-budget", type=float, default=1024, metavar="MB", help="above the loaded CLIP (1024)")
    add(
        "--sees-novel",
        choices=("no", "yes", "unknown"),
        help="whether the provider may have seen boxes of novel classes; default: what a file says, else unknown",
    )


def _add_test(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--weights",
        type=Path,
        required=True,
        metavar="FILE",
        help="weights/ARM.pth of a run of 50_open_vocabulary",
    )
    add(
        "--record",
        type=Path,
        metavar="FILE",
        help="its record or params file; default: the record of that folder",
    )
    add("--arm", help="name of the arm; default: that of the file")
    add(
        "--names",
        type=Path,
        metavar="FILE",
        help="the vocabulary, a name a line; default: the annotations' classes",
    )
    add(
        "--rename",
        nargs="+",
        default=[],
        type=_pair,
        metavar="OLD=NEW",
        help="class of the annotations=name in the vocabulary",
    )
    add("--leave-out", nargs="+", default=[], metavar="NAME", help="classes whose boxes are left out")
    add(
        "--novel",
        nargs="+",
        metavar="NAME",
        help="novel classes, a file of them, or NAME,NAME; the others are base",
    )
    add("--score-thresh", type=share_of, help="lower ones do not count; default: as in the run")


def _pair(text: str) -> tuple[str, str]:
    old, sign, new = text.partition("=")
    if not (old and sign and new):
        raise argparse.ArgumentTypeError(f"expected OLD=NEW, got {text!r}")
    return old, new


def _check_regions(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    provider = arguments.provider
    needed = PROVIDERS[provider]
    if getattr(arguments, needed) is None:
        parser.error(f"--provider {provider} needs --{needed}")
    for name, providers in BELONGS.items():
        if getattr(arguments, name) and provider not in providers:
            parser.error(f"--{name.replace('_', '-')} belongs to --provider {' or '.join(providers)}")
    for name in ("crop", "precision", "memory_budget"):
        if arguments.clip is None and getattr(arguments, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} belongs to --clip")
    if arguments.names is not None and not arguments.labels:
        parser.error("--names belongs to --labels")
    if arguments.labels and arguments.top is not None:
        parser.error("--top does not go with --labels, which give one box for each name")
    if arguments.clip is not None and arguments.no_embeddings:
        parser.error("--clip and --no-embeddings exclude each other")
    if arguments.clip is None and not (arguments.no_embeddings or arguments.labels or provider == "file"):
        parser.error("give the CLIP that embeds the regions, --clip and --pretrained, or --no-embeddings")
    if arguments.out.suffix != ".npz":
        parser.error(f"--out {arguments.out}: expected a name that ends in .npz")


def _check_test(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if arguments.out.suffix != ".json":
        parser.error(f"--out {arguments.out}: expected a name that ends in .json")
    if arguments.lvis and arguments.novel is not None:
        parser.error("--novel does not go with --lvis, where rare classes are novel")
    if arguments.novel is not None:
        words = arguments.novel
        # NAME,NAME is two names, unless it is a file
        is_list = len(words) == 1 and not Path(words[0]).is_file()
        arguments.novel = tuple(words[0].split(",")) if is_list else names_of(words)


def work_folder(arguments: argparse.Namespace) -> Path:
    """The folder of what is done so far; it and the output can be written, and the output is none of the inputs.

    Raises:
        ParamsError: If not.
    """
    out = arguments.out
    given = ("annotations", "regions", "weights", "record", "names", "detector", "boxes")
    inputs = [path for name in given if isinstance(path := getattr(arguments, name, None), Path)]
    for path in inputs:
        if out.resolve() == path.resolve():
            raise ParamsError(f"--out {out} is an input. Expected another place.")
    if out.is_dir():
        raise ParamsError(f"--out {out} is a folder. Expected a file.")
    parts = Path(f"{os.path.abspath(out)}.parts")
    check_place(f"--out {out}", out.absolute().parent, out.name)
    check_place(f"--out {out}", parts, parts.name)
    return parts


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = parse_arguments(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("risf_core").setLevel(logging.INFO)
    began = time.perf_counter()
    try:
        parts = work_folder(arguments)
        if arguments.command == "regions":
            from risf_core.open_vocabulary.make_regions import make_regions

            make_regions(arguments, parts)
        else:
            from risf_core.open_vocabulary.arm_testing import run_test

            run_test(arguments, parts)
    except RisfError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"{DataError.__name__}: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("Stopped. What is done is kept: the same command goes on from there.\n")
        return 130
    say(f"{time.perf_counter() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
