"""Runs at work: which of them are to do, in which order, and the worker processes that make them."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from risf_core.params import NotebookParams
from risf_core.runs.run_specs import RunSpec, shown, upstream
from risf_core.runs.state import finished_record, load_record, results_dir, run_id
from risf_core.runs.worker import DONE, WAS_DONE, notebook_output
from risf_core.runs.yaml_files import project_root

EVERY = 30.0  # seconds between lines where no bar is shown
BAR = "{percentage:3.0f}% {bar:12} {n_fmt}/{total_fmt} runs, {elapsed}"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
UNKNOWN_SECONDS = 60.0  # taken for a run of which no time is known


@dataclass
class Node:
    """A run in the graph, and the ids of the runs it builds on."""

    spec: RunSpec
    run_id: str
    upstream: list[str]
    is_finished: bool
    seconds: float = UNKNOWN_SECONDS  # from here to the end of the longest chain of runs that build on it
    process: subprocess.Popen | None = None
    started: float = 0.0

    @property
    def params(self) -> NotebookParams:
        return self.spec.params

    @property
    def log(self) -> Path:
        return notebook_output(self.params).with_suffix(".log")


@dataclass
class Outcome:
    """How the runs ended: ids of those finished, and a line for each that failed or was not run."""

    finished: list[str] = field(default_factory=list)
    failed: dict[str, tuple[str, str]] = field(default_factory=dict)  # run id -> error class, message
    not_run: dict[str, str] = field(default_factory=dict)  # run id -> upstream run that failed


# --- which runs ---------------------------------------------------------------------------------------------------


def build_graph(specs: Sequence[RunSpec]) -> dict[str, Node]:
    """The runs and all that they build on, by run id."""
    graph: dict[str, Node] = {}
    waiting = list(specs)
    while waiting:
        spec = waiting.pop(0)
        name = run_id(spec.params)
        if name not in graph:
            above = upstream(spec.params)
            finished = finished_record(spec.params, spec.notebook) is not None
            graph[name] = Node(spec, name, [run_id(one.params) for one in above], finished)
            waiting += above
    return graph


def to_do(graph: dict[str, Node], wanted: Sequence[str], *, force: bool) -> dict[str, Node]:
    """The wanted runs that are not finished (with `force`: all wanted ones), and what they need and is not finished."""
    found: dict[str, Node] = {}
    waiting = [name for name in wanted if force or not graph[name].is_finished]
    if waiting:  # a run that reads all records is looked at again once the others are made
        waiting += [name for name in wanted if graph[name].params.after_all]
    while waiting:
        name = waiting.pop(0)
        if name not in found:
            found[name] = graph[name]
            waiting += [above for above in graph[name].upstream if not graph[above].is_finished]
    return found


def estimate_seconds(nodes: dict[str, Node]) -> None:
    """Set each node's time to the end of its longest chain, from the times in records, also published ones."""
    own: dict[str, float] = {}
    by_notebook: dict[str, list[float]] = {}
    for profile in {node.params.profile for node in nodes.values()}:
        for folder in (project_root() / "results" / "published" / profile, results_dir(profile)):
            for record in filter(None, map(load_record, sorted((folder / "records").glob("*.json")))):
                seconds = float(record.get("environment", {}).get("wall_seconds", UNKNOWN_SECONDS))
                own[record["run_id"]] = seconds
                by_notebook.setdefault(record.get("notebook", ""), []).append(seconds)
    for node in nodes.values():
        similar = by_notebook.get(node.params.notebook, [UNKNOWN_SECONDS])
        node.seconds = own.get(node.run_id, sum(similar) / len(similar))
    alone = {name: node.seconds for name, node in nodes.items()}

    def chain(name: str) -> float:
        below = [chain(other) for other, node in nodes.items() if name in node.upstream]
        return alone[name] + max(below, default=0.0)

    for name, node in nodes.items():
        node.seconds = chain(name)


class Launcher:
    """Works off runs with a few worker processes."""

    def __init__(self, nodes: dict[str, Node], *, workers: int, force: Sequence[str] = ()) -> None:
        self.waiting, self.running, self.outcome = dict(nodes), {}, Outcome()
        self.nodes, self.workers, self.force = nodes, workers, set(force)
        self.total, self.began, self.last_line = len(nodes), time.monotonic(), time.monotonic()
        self.bar, self.lines, self.make = None, [], _calling_make()
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.width = shutil.get_terminal_size().columns - 1  # 79 where the terminal does not tell
            self.bar = tqdm(total=self.total, bar_format=BAR, ncols=self.width)
            places = range(1, min(workers, self.total) + 1)  # under the bar, a line for each running run
            self.lines = [tqdm(bar_format="{desc}", position=place, leave=False) for place in places]

    def work(self) -> Outcome:
        """Make the runs; whatever ends this call ends the workers too."""
        try:
            while self.waiting or self.running:
                if self.make is not None and not self.make.is_running():
                    raise KeyboardInterrupt
                self._give_up_on_dependents()
                for node in self._ready()[: self.workers - len(self.running)]:
                    self._start(node)
                time.sleep(0.1)
                for node in [node for node in self.running.values() if node.process.poll() is not None]:
                    self._end(node)
                self._show()
        finally:
            for node in self.running.values():
                node.process.kill()
                node.process.wait()
            for shown in [*self.lines, self.bar]:
                if shown is not None:
                    shown.close()
        return self.outcome

    def _ready(self) -> list[Node]:
        """Runs that could start now, that with the longest chain behind it first."""
        unfinished = self.waiting.keys() | self.running.keys()
        others = {name for name in unfinished if not self.nodes[name].params.after_all}
        ready = [
            node
            for node in self.waiting.values()
            if not unfinished & set(node.upstream) and not (node.params.after_all and others)
        ]
        return sorted(ready, key=lambda node: -node.seconds)

    def _give_up_on_dependents(self) -> None:
        lost = self.outcome.failed.keys() | self.outcome.not_run.keys()
        for name, node in list(self.waiting.items()):
            if missing := [above for above in node.upstream if above in lost]:
                del self.waiting[name]
                self.outcome.not_run[name] = missing[0]
                self._say(f"NOT RUN {name}: it builds on {missing[0]}, which is not finished", done=1)

    def _start(self, node: Node) -> None:
        job = {
            "notebook": node.params.notebook,
            "notebook_path": str(node.spec.notebook),
            "params": node.params.model_dump(mode="json"),
            "force": node.run_id in self.force,
            "launcher": os.getpid(),
        }
        threads = dict.fromkeys(THREADS, str(node.params.num_threads))
        log_every = {} if self.bar is None else {"RISF_LOG_EVERY": "2"}  # the bar shows the log's last line
        environment = os.environ | threads | log_every | {"RISF_LOG": str(node.log), "PYTHONHASHSEED": "0"}
        node.log.parent.mkdir(parents=True, exist_ok=True)
        with node.log.open("a", encoding="utf-8") as log:
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {node.spec.command}\n")
            log.flush()
            node.process = subprocess.Popen(
                [sys.executable, "-m", "risf_core.runs.worker"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the launcher, which ends its workers
            )
        with suppress(BrokenPipeError):  # a worker that is dead already: its end is seen below
            node.process.stdin.write(json.dumps(job).encode())
            node.process.stdin.close()
        node.started = time.monotonic()
        self.running[node.run_id] = self.waiting.pop(node.run_id)
        self._say(f"start   {node.run_id}")

    def _end(self, node: Node) -> None:
        del self.running[node.run_id]
        seconds = time.monotonic() - node.started
        if node.process.returncode in (DONE, WAS_DONE):
            self.outcome.finished.append(node.run_id)
            self._say(f"done    {node.run_id} in {seconds:.0f} s", done=1)
            return
        name, message = why_failed(node)
        self.outcome.failed[node.run_id] = (name, message)
        self._say(f"FAILED  {node.run_id}: {name}: {message} ({where(node)})", done=1)

    def _say(self, line: str, *, done: int = 0) -> None:
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
            self.bar.update(done)
        else:
            print(line, flush=True, file=sys.stderr if line.startswith(("FAILED", "NOT RUN")) else sys.stdout)

    def _show(self) -> None:
        every = EVERY if self.bar is None else 1.0
        if time.monotonic() - self.last_line < every:
            return
        self.last_line = time.monotonic()
        states = [f"{node.run_id}: {last_line(node.log)}" for node in self.running.values()]
        if self.bar is not None:
            self.bar.refresh()  # the time
            for place, line in enumerate(self.lines):
                line.set_description_str(f"  {states[place]}"[: self.width] if place < len(states) else "")
        else:
            done = self.total - len(self.waiting) - len(self.running)
            head = f"{done} of {self.total} runs, {time.monotonic() - self.began:.0f} s"
            print("\n  ".join([head, *states]), flush=True)


def _calling_make() -> psutil.Process | None:
    """The `make` that called this process, if one did: when it is killed, its runs must not go on behind its back."""
    above = psutil.Process().parents() if "MAKELEVEL" in os.environ else []
    return next((process for process in above if process.name() in ("make", "gmake")), None)


def last_line(log: Path) -> str:
    """The last line of progress in a run's log, without its time of day; other output is passed over."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4000))
        lines = file.read().decode(errors="replace").splitlines()
    for line in reversed(lines):
        if re.match(r"\d\d:\d\d:\d\d ", line):
            return line[9:]
        if line.startswith("--- "):
            break
    return "starting"


def why_failed(node: Node) -> tuple[str, str]:
    """Class and message of what stopped a run: from its executed notebook, else from its log."""
    try:
        cells = json.loads(notebook_output(node.params).read_text(encoding="utf-8"))["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", ())]
        error = next(output for output in outputs if output["output_type"] == "error")
        name, message = error["ename"], error["evalue"]
    except (OSError, ValueError, KeyError, StopIteration):
        name, _, message = last_line(node.log).partition(": ")
        if node.process.returncode < 0:
            name, message = "Killed", f"by signal {-node.process.returncode} (9 may mean: out of memory)"
        elif name == "DeadKernelError":
            message = "the notebook's kernel died (the machine may be out of memory)"
        elif name == "starting":  # no line of progress: the worker itself could not start
            name, message = "RisfError", f"the worker stopped: {node.log.read_text().splitlines()[-1]}"
    return name.rpartition(".")[2], " ".join(message.split())


def where(node: Node) -> str:
    """Where to look after a failure."""
    executed = notebook_output(node.params)
    return f"notebook: {shown(executed)}" if executed.is_file() else f"log: {shown(node.log)}"
