"""The command line: checks parameters before anything starts, and works off one run or a list of runs.

    python -m risf_core.run notebooks/20_fine_tuning.ipynb --params params/mini/20_fine_tuning.yaml -p shots 5
    python -m risf_core.run --list params/mini/runs.yaml --workers 2

Exit code: 0 all runs are finished, 1 a run failed, 2 a parameter or the data is wrong, 130 stopped by hand.
"""

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from risf_core.errors import DataError, ParamsError, RisfError, SplitError
from risf_core.runs.launcher import Launcher, Node, build_graph, estimate_seconds, to_do
from risf_core.runs.notebook_cells import code_cells, literal_assignments
from risf_core.runs.run_specs import RunSpec, load_list, load_run, shown
from risf_core.runs.state import check_user_files, missing_files, record_path
from risf_core.runs.yaml_files import nearest, parse_yaml

USAGE = """python -m risf_core.run NOTEBOOK --params FILE [-p NAME VALUE]... [--with-upstream] [--force]
       python -m risf_core.run --list FILE [--workers N] [--dry-run] [--force]"""
WRONG_INPUT = (ParamsError, DataError, SplitError)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ParamsError(f"{message}; usage: {' '.join(USAGE.split())}")


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """The command line's words; `set` holds the values of -p.

    Raises:
        ParamsError: If a word is unknown, missing or of the wrong kind.
    """
    rest, values = _take_values(words)
    parser = _Parser(prog="python -m risf_core.run", usage=USAGE, allow_abbrev=False)
    parser.add_argument("notebook", nargs="?", type=Path, help="a notebook of the suite")
    parser.add_argument("--params", type=Path, metavar="FILE", help="its params file")
    parser.add_argument(
        "-p", nargs=2, metavar=("NAME", "VALUE"), help="replace a value (YAML); the name may be dotted"
    )
    parser.add_argument(
        "--list", type=Path, metavar="FILE", help="a list of runs, such as params/mini/runs.yaml"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each (default: 1)")
    parser.add_argument(
        "--with-upstream", action="store_true", help="first make the runs that the run builds on"
    )
    parser.add_argument(
        "--force", action="store_true", help="repeat finished runs (not those that they build on)"
    )
    parser.add_argument("--dry-run", action="store_true", help="say which runs would be made, and make none")
    arguments = parser.parse_args(rest)
    if (arguments.list is None) == (arguments.notebook is None):
        parser.error("give either a notebook or --list")
    if arguments.notebook is not None and arguments.params is None:
        parser.error("a notebook needs --params")
    if arguments.list is not None and (arguments.params or values):
        parser.error("--list takes neither --params nor -p; edit the list's files")
    if arguments.workers < 1:
        parser.error(f"--workers must be at least 1, got {arguments.workers}")
    arguments.set = values
    return arguments


def _take_values(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Split off each ``-p NAME VALUE``, by itself since a VALUE may begin with a minus."""
    rest, values = [], {}
    position = 0
    while position < len(words):
        if words[position] != "-p":
            rest.append(words[position])
            position += 1
            continue
        if len(words) < position + 3:
            raise ParamsError("-p needs a name and a value, such as: -p shots 5")
        name, text = words[position + 1 : position + 3]
        if not all(name.split(".")) or name in values:
            raise ParamsError(
                f"-p {name}: the name is {'given twice' if name in values else 'not a dotted name'}."
            )
        values[name] = parse_yaml(text, where=f"-p {name} {text}")
        position += 3
    return rest, values


def check_notebook(spec: RunSpec) -> None:
    """Refuse a notebook whose `parameters` cell is missing or holds other than literals for the model's names.

    Raises:
        ParamsError: With the cell's problem.
    """
    cells = code_cells(spec.notebook, parameters=True)
    if len(cells) != 1:
        raise ParamsError(
            f"{shown(spec.notebook)}: expected one cell tagged 'parameters', found {len(cells)}."
        )
    names = literal_assignments(cells[0])
    if names is None:
        raise ParamsError(
            f"{shown(spec.notebook)}: the cell 'parameters' may hold only lines like `shots = 5`."
        )
    known = type(spec.params).model_fields
    for name in names:
        if name not in known:
            raise ParamsError(
                f"{shown(spec.notebook)}: unknown parameter {name!r} in the cell 'parameters' "
                f"(nearest: {nearest(name, known)!r})."
            )


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        return _main(parse_arguments(sys.argv[1:] if words is None else words))
    except RisfError as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 130


def _main(arguments: argparse.Namespace) -> int:
    if arguments.list is not None:
        specs = load_list(arguments.list)
    else:
        specs = [load_run(arguments.params, arguments.set, notebook=arguments.notebook)]
    graph = build_graph(specs)
    wanted = list(dict.fromkeys(name for name, node in graph.items() if node.spec in specs))
    nodes = to_do(graph, wanted, force=arguments.force)
    if not nodes:
        place = f" ({shown(record_path(specs[0].params))})" if len(specs) == 1 else ""
        print(f"nothing to do: {len(wanted)} of {len(wanted)} runs are finished{place}; --force repeats them")
        return 0
    for node in nodes.values():
        check_notebook(node.spec)
    needed = [node for name, node in nodes.items() if name not in wanted]
    if needed and arguments.notebook is not None and not arguments.with_upstream:
        return _refuse(specs[0], needed)
    estimate_seconds(nodes)
    if arguments.dry_run:
        print("\n".join(f"would run {node.spec.command}" for node in nodes.values()))
        missing = dict.fromkeys(path for node in nodes.values() for path in missing_files(node.params))
        if missing:
            print(f"not there yet: {', '.join(map(shown, missing))}", file=sys.stderr)
        return 0
    for node in nodes.values():
        check_user_files(node.params)
    return _launch(nodes, arguments, wanted)


def _refuse(spec: RunSpec, needed: list[Node]) -> int:
    commands = "\n".join(f"  {node.spec.command}" for node in reversed(needed))
    print(
        f"RecordError: {spec.params.label()} builds on {len(needed)} run(s) that are not finished; "
        f"add --with-upstream, or make them first:\n{commands}",
        file=sys.stderr,
    )
    return 2


def _launch(nodes: dict[str, Node], arguments: argparse.Namespace, wanted: list[str]) -> int:
    began = time.monotonic()
    force = wanted if arguments.force else ()
    outcome = Launcher(nodes, workers=arguments.workers, force=force).work()
    seconds = time.monotonic() - began
    if not outcome.failed and not outcome.not_run:
        print(f"finished: {len(outcome.finished)} of {len(nodes)} runs in {seconds:.0f} s")
        return 0
    if len(nodes) > 1:
        print(
            f"{len(outcome.finished)} of {len(nodes)} runs finished in {seconds:.0f} s; failed: {len(outcome.failed)}, "
            f"not run: {len(outcome.not_run)}; the same command repeats these alone",
            file=sys.stderr,
        )
    names = {name for name, _ in outcome.failed.values()}
    wrong_input = len(wanted) == 1 and names <= {error.__name__ for error in WRONG_INPUT}
    return 2 if wrong_input else 1


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # ends the workers, as Ctrl-C does
    sys.exit(main())
