"""``python -m risf_core.compare A B``: what differs between two sets of results, pair by pair.

A and B are WHERE[:NAME=VALUE,...]. WHERE is a profile (mini), a run (mini/RUN_ID, or the beginning of an id), a record
file, a folder or a pattern of record files, a pack (FILE.risf.zip) or an unpacked one (foreign/NAME). NAME is a column
of the rows (loss, arm, rescoring, K, seed, split, ...), notebook, run_id, or a parameter (solver.lr); given again, it
adds a value. Rows are paired where they agree in split, seed, K, arm, setting, loss, re-scoring and base model; what
each side has one value of, and another one, is what they differ in. No mean goes over anything but seeds, splits, K and
base models; --by keeps those apart. Two examples, after `make reproduce`:

  .venv/bin/python -m risf_core.compare mini:loss=ce,rescoring=none mini:loss=bnrl,rescoring=none
  .venv/bin/python -m risf_core.compare mini:loss=ce,rescoring=none mini:loss=ce,rescoring=cm_clip --by K

Written to --output, and printed: paired (the table, with intervals), error_kinds (what each kind of error costs, where
detections are stored), images (which changed most), unpaired (rows without a partner); pairs.csv has every pair.
Results of packs are named foreign in every table and never pooled with others; rows that were judged on other test
data are refused. Exit code: 0 compared, 2 refused, 130 stopped.
"""

from __future__ import annotations

import argparse
import logging
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from risf_core.command_line import made_folder, say
from risf_core.errors import ParamsError, RisfError
from risf_core.runs.run_specs import shown
from risf_core.runs.yaml_files import project_path

if TYPE_CHECKING:
    from risf_core.compared_cells import CellResults, Cells
    from risf_core.comparison import Pairing
    from risf_core.report.compare_pictures import ChangedImage
    from risf_core.report.table_format import Table
    from risf_core.selectors import Source

OUTPUT = "results/scratch/compare"
NAMES = ("paired", "error_kinds", "images", "unpaired", "pairs")
ENDINGS = ("csv", "md", "tex", "png", "txt")
SHOWN_COMMANDS = 3
DRAWN = 3  # gains, and losses, of the picture


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line, checked."""
    parser = argparse.ArgumentParser(
        prog="python -m risf_core.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("first", metavar="A", help="one side")
    parser.add_argument("second", metavar="B", help="the other; differences are B - A")
    parser.add_argument(
        "--by",
        default="K,split",
        metavar="NAMES",
        help="columns that group the pairs (K,split); none: no column",
    )
    parser.add_argument("--metric", default="nAP50", help="number of the rows that is compared (nAP50)")
    parser.add_argument(
        "--table-only", action="store_true", help="read no detections: the paired table alone"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"folder to write to ({OUTPUT})")
    return parser.parse_args(words)


def by_of(text: str, columns: Sequence[str]) -> list[str]:
    """The columns of ``--by``; of the default, those that are there."""
    from risf_core.selectors import ALIASES

    names = [ALIASES.get(name, name) for name in text.split(",") if name not in ("", "none")]
    if len(set(names)) < len(names):
        raise ParamsError(f"--by {text}: a column is given twice.")
    return [name for name in names if name in columns or text != "K,split"]


def compare(arguments: argparse.Namespace) -> list[Path]:
    """Pair, judge, tell and write; returns what was written."""
    from risf_core.compared_cells import CellResults, Cells, image_changes, kinds_summary, read_cells
    from risf_core.comparison import check_test_data, pair_sides
    from risf_core.paired_means import summary
    from risf_core.report import compare_tables as tables
    from risf_core.selectors import Truths, opened

    with opened([arguments.first, arguments.second]) as (first, second):
        columns = {
            name for side in (first, second) for s in side.sources for row in s.record["rows"] for name in row
        }
        by = by_of(arguments.by, columns)
        pairing = pair_sides(first, second, metric=arguments.metric, by=by)
        truths = Truths()
        check_test_data(pairing, truths)
        cells = Cells(truths)
        results = CellResults() if arguments.table_only else read_cells(pairing, cells, by)
        pairs = tables.pairs_table(pairing)
        told = [tables.paired_table(pairing, summary(pairing, by), results, by)]
        drawings = {}
        kinds, changes = kinds_summary(pairing, results, by), image_changes(pairing, results, by)
        if len(kinds):
            told.append(tables.kinds_table(pairing, kinds, results, by))
            told.append(tables.images_table(pairing, changes, by))
            drawings = _drawings(pairing, kinds, changes, results, cells, by)
        if len(pairing.unpaired):
            told.append(tables.unpaired_table(pairing, by))
        notes = [*pairing.notes, *_what_is_missing(arguments, pairing, results)]
        _tell(told, notes)
        return _write(arguments.output or project_path(OUTPUT), [*told, pairs], drawings, notes)


def _what_is_missing(arguments: argparse.Namespace, pairing: Pairing, results: CellResults) -> list[str]:
    if arguments.table_only:
        return ["No detections were read (--table-only): no kinds of error, no images."]
    reasons = ", ".join(f"{count}: {reason}" for reason, count in sorted(results.missing.items()))
    if not reasons:
        return []
    return [
        f"{results.missing.total()} of {len(pairing.pairs)} pairs are in no table of errors and images ({reasons}). "
        f"{_how_to_get(results)}"
    ]


def _how_to_get(results: CellResults) -> str:
    """What to do for the stored detections that are not here."""
    from risf_core.comparison import FINE_TUNING

    if not results.lacking:
        return f"Expected rows of {FINE_TUNING}, whose runs store their detections."
    own = [source for source in results.lacking.values() if not source.foreign]
    packs = sorted({source.foreign for source in results.lacking.values() if source.foreign})
    texts = []
    if own:
        commands = [f"{_command(source)} --force" for source in own[:SHOWN_COMMANDS]]
        more = f" (and {len(own) - len(commands)} runs more)" if len(own) > len(commands) else ""
        texts.append(f"To have them, repeat the runs: {'; '.join(commands)}{more}.")
    if packs:
        texts.append(
            f"For {', '.join(packs)}: ask for a pack made where these files are, with its similarities."
        )
    return " ".join(texts)


def _command(source: Source) -> str:
    """The command of a run as the profile's list names it; with a word for the params file if no list does."""
    from risf_core.runs.run_specs import load_list
    from risf_core.runs.state import run_id

    profile, notebook = source.record["params"].get("profile"), source.record["notebook"]
    try:
        specs = load_list(project_path(f"params/{profile}/runs.yaml"))
        return next(spec.command for spec in specs if run_id(spec.params) == source.run_id)
    except (RisfError, OSError, StopIteration):
        return (
            f".venv/bin/python -m risf_core.run notebooks/{notebook}.ipynb --params (that of {source.run_id})"
        )


def _drawings(
    pairing: Pairing, kinds, changes, results: CellResults, cells: Cells, by: Sequence[str]
) -> dict:
    from risf_core.compared_cells import changed_groups
    from risf_core.report import compare_tables as tables
    from risf_core.report.compare_pictures import images_figure, kinds_figure

    heads, about = tables.legend(pairing), tables.describe_sides(pairing)
    shown, alike = tables.shared(pairing, by)
    titles = [
        tables.named_values({name: row[name] for name in shown}) or "all pairs"
        for _, row in kinds[kinds["kind"] == "AP50"].iterrows()
    ]
    caption = f"What each kind of error costs (TIDE's kinds). {about} {alike}".strip()
    drawings = {"error_kinds": kinds_figure(kinds, titles, heads, caption)}
    found = changed_groups(pairing, changes, by)
    names, count = tables.image_groups(pairing, by), max(1, DRAWN // len(found))
    drawn = found[:DRAWN]
    chosen = [
        [image for group in drawn for image in _chosen(pairing, group, names, results, cells, sign, count)]
        for sign in (1, -1)
    ]
    if any(chosen):
        which = f"The {len(chosen[0])} images with the largest mean gain and the {len(chosen[1])} with the largest mean"
        which += f" loss of {len(changes)}"
        if len(found) > 1:
            which = f"Of {len(drawn)} groups ({', '.join(tables.NAMES.get(name, name) for name in names)}) the image "
            which += "with the largest mean gain, then that with the largest mean loss"
        caption = f"{which}: extremes, not the average. Each is shown in the pair in which it changed most that way. "
        if len(found) > len(drawn):
            caption += f"{len(found) - len(drawn)} further groups stand in the table alone. "
        drawings["images"] = images_figure(*chosen, heads, caption + f"{about} {alike}".strip())
    return drawings


def _chosen(
    pairing: Pairing, group, names: Sequence[str], results: CellResults, cells: Cells, sign: int, count: int
) -> list[ChangedImage]:
    """The images of a group with the largest mean change of a sign, each in its own most changed pair."""
    from risf_core.compared_cells import cells_of, extremes, pairs_of
    from risf_core.report.compare_pictures import ChangedImage
    from risf_core.report.compare_tables import named_values

    key, changes = group
    inside = results.images[results.images["pair"].isin(pairs_of(pairing, key))]
    label = named_values({name: key[name] for name in names if name != "shots"})
    images = []
    for row in extremes(changes, sign, count).itertuples():
        own = inside[inside["image_id"] == row.image_id]
        best = own.loc[(sign * (own["b"] - own["a"])).idxmax()]
        pair = next(pairing.pairs.loc[[int(best["pair"])]].itertuples())
        sides = cells_of(pairing, cells, pair)
        owner = next((side for side in sides if side.truth.has_images), sides[0])
        record = next(record for record in owner.data.images if record.image_id == row.image_id)
        title = f"image {row.image_id}, seed {pair.seed}" + (
            f", K {pair.shots}" if hasattr(pair, "shots") else ""
        )
        title = "\n".join([title, *textwrap.wrap(label, 34)])
        images.append(
            ChangedImage(
                record,
                owner.data,
                tuple(side.detections for side in sides),
                tuple(side.judged for side in sides),
                title,
                (best["a"], best["b"]),
                owner.truth.has_images,
            )
        )
    return images


def _tell(told: Sequence[Table], notes: Sequence[str]) -> None:
    from risf_core.report.compare_tables import SHOWN

    for table in told:
        shown_rows = table.display
        if table.name == "unpaired" and len(shown_rows) > SHOWN:
            shown_rows = shown_rows.head(SHOWN)
            say(f"(the first {SHOWN} of {len(table.display)} lines; unpaired.csv has each row)")
        say(str(type(table)(table.name, table.caption, table.data, shown_rows)))
    for note in notes:
        say(f"note: {note}")


def _write(folder: Path, told: Sequence[Table], drawings: dict, notes: Sequence[str]) -> list[Path]:
    made_folder(folder)
    for path in (folder / f"{name}.{ending}" for name in NAMES for ending in ENDINGS):
        path.unlink(missing_ok=True)  # of an earlier comparison
    paths = [path for table in told for path in table.write(folder)]
    for name, drawing in drawings.items():
        paths.append(folder / f"{name}.png")
        paths[-1].write_bytes(drawing.png())
        paths.append(folder / f"{name}.txt")
        paths[-1].write_text(f"{drawing.caption}\n", encoding="utf-8")
    paths.append(folder / "notes.txt")
    paths[-1].write_text("".join(f"{note}\n" for note in notes), encoding="utf-8")
    return paths


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = parse_arguments(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    began = time.perf_counter()
    try:
        paths = compare(arguments)
    except (RisfError, OSError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("Stopped.\n")
        return 130
    say(f"written: {len(paths)} files in {shown(paths[0].parent)} ({time.perf_counter() - began:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
