"""``python -m risf_core.pack``: runs with their detections as one file, to be compared elsewhere.

  .venv/bin/python -m risf_core.pack make mine.risf.zip mini:notebook=20_fine_tuning
  .venv/bin/python -m risf_core.pack unpack theirs.risf.zip

RUN is a profile, a run id, record files or a pattern, as in `python -m risf_core.compare`; conditions may name a
parameter of the run, not a column of its rows, for a pack holds whole records. `unpack` lays a pack of others under
results/foreign/NAME, where no table of this project reads it; compare takes it as foreign/NAME, and the file itself as
well. Every file in a pack has its SHA-256 in the manifest, and all are checked; nothing in a pack is executed. Equal
runs give equal bytes. Exit code: 0 done, 2 refused, 130 stopped.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from risf_core.command_line import made_folder, say
from risf_core.errors import ParamsError, RisfError
from risf_core.runs.run_specs import shown

FINE_TUNING = "20_fine_tuning"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line, checked."""
    parser = argparse.ArgumentParser(
        prog="python -m risf_core.pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="pack runs of this project")
    make.add_argument("output", type=Path, metavar="OUT.risf.zip")
    make.add_argument("runs", nargs="+", metavar="RUN")
    make.add_argument("--without-similarities", action="store_true", help="smaller; no re-scored detections")
    make.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    unpack = commands.add_parser("unpack", help="check a pack and lay it under results/foreign")
    unpack.add_argument("pack", type=Path)
    unpack.add_argument("--name", help="its name here; default: the file's")
    check = commands.add_parser("check", help="check a pack, and write nothing")
    check.add_argument("pack", type=Path)
    return parser.parse_args(words)


def make(
    output: Path, words: Sequence[str], *, with_similarities: bool = True, overwrite: bool = False
) -> dict:
    """Write a pack of the runs that words name; returns its manifest.

    Raises:
        ParamsError: If the file is there already, has another ending, or a word names rows or a pack of others.
    """
    from risf_core.packs import ENDING, write_pack
    from risf_core.selectors import Truths, current, opened

    if not output.name.endswith(ENDING):
        raise ParamsError(f"{output}: expected a name that ends in {ENDING}.")
    if output.exists() and not overwrite:
        raise ParamsError(f"{output} is there already. Give another name, or --overwrite.")
    made_folder(output.parent)
    truths, runs = Truths(), {}
    with opened(words) as sides:
        for side in map(current, sides):
            if side.wanted:
                names = ", ".join(side.wanted)
                raise ParamsError(f"{side.word}: {names} chooses rows, and a pack holds whole records.")
            for source in side.sources:
                if source.foreign:
                    raise ParamsError(
                        f"{side.word} is a pack of others already. Expected runs of this project."
                    )
                runs[source.run_id] = packed_run(source, truths, with_similarities=with_similarities)
    return write_pack(output, list(runs.values()))


def packed_run(source, truths, *, with_similarities: bool):
    """A record with its files and test data; of a record without detections, the record alone."""
    from risf_core.packs import PackedRun

    record, files = source.record, {}
    splits = {row["split"] for row in record["rows"] if "split" in row}
    if record["notebook"] == FINE_TUNING:
        from risf_core.fine_tuning import cell_name

        rows = [row for row in record["rows"] if {"seed", "arm", "loss", "repeat"} <= row.keys()]
        cells = {cell_name(row["seed"], row["arm"], row["loss"], row["repeat"]) for row in rows}
        folders = ("detections", "similarities") if with_similarities else ("detections",)
        names = [f"{folder}/{cell}.npz" for folder in folders for cell in sorted(cells)]
        names += ["clip.json"] if with_similarities else []
        files = {name: source.artifacts / name for name in names if (source.artifacts / name).is_file()}
    tests = {str(split): truths.get(source, split) for split in sorted(splits)}
    return PackedRun(record, record["params"]["profile"], files, tests)


def unpack_file(path: Path, name: str | None) -> Path:
    """Lay a pack out under results/foreign; returns its folder.

    Raises:
        ParamsError: If the name is none for a folder, or is taken.
        DataError: If anything in the pack is wrong.
    """
    from risf_core.packs import ENDING, foreign_root, unpack

    name = path.name.removesuffix(ENDING) if name is None else name
    if not NAME.fullmatch(name):
        raise ParamsError(
            f"{name!r} is no name for a folder. Give --name with letters, digits, '.', '_' and '-'."
        )
    unpack(path, foreign_root() / name)
    return foreign_root() / name


def _tell(manifest: dict, where: str) -> None:
    files = manifest["files"]
    counts = [sum(f"/{kind}/" in name for name in files) for kind in ("detections", "similarities")]
    size = sum(facts["bytes"] for facts in files.values()) / 2**20
    runs = len(manifest["runs"])
    say(
        f"{where}: {runs} record{'s' * (runs != 1)}, {counts[0]} files of detections, {counts[1]} of similarities,"
    )
    say(
        f"{len({t for run in manifest['runs'] for t in run['tests'].values()})} of test data; {size:.1f} MiB unpacked"
    )


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = parse_arguments(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        _run(arguments)
    except (RisfError, OSError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("Stopped. Nothing is written.\n")
        return 130
    return 0


def _run(arguments: argparse.Namespace) -> None:
    if arguments.command == "make":
        options = {"with_similarities": not arguments.without_similarities, "overwrite": arguments.overwrite}
        manifest = make(arguments.output, arguments.runs, **options)
        _tell(manifest, f"written: {arguments.output} ({arguments.output.stat().st_size / 2**20:.1f} MiB)")
    elif arguments.command == "unpack":
        folder = unpack_file(arguments.pack, arguments.name)
        from risf_core.packs import read_unpacked

        _tell(read_unpacked(folder)[1], f"unpacked: {shown(folder)}")
        say(f"compare it as foreign/{folder.name}")
    else:
        from risf_core.packs import unpack

        with tempfile.TemporaryDirectory(prefix="risf-packs-") as place:
            _tell(unpack(arguments.pack, Path(place) / "pack"), f"{arguments.pack} is whole")


if __name__ == "__main__":
    sys.exit(main())
