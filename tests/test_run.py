"""The launcher: refusals before anything starts, failures kept, nothing repeated, nothing left behind.

The notebooks are made up and import no torch: those whose model asks for it get a stand-in.
"""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from risf_core import run
from risf_core.errors import RisfError
from risf_core.params import BaseTrainingParams, CheckSetupParams, FineTuningParams, ResultsParams
from risf_core.runs import launcher, state, worker
from risf_core.runs.launcher import build_graph, estimate_seconds, to_do
from risf_core.runs.run_specs import load_list, load_run
from tests.notebook_files import write_notebook

NO_TORCH = """
import sys, types
no_gpu = types.SimpleNamespace(is_available=lambda: False)
sys.modules["torch"] = types.SimpleNamespace(set_num_threads=int, manual_seed=int, cuda=no_gpu)
"""
START = """
from risf_core import params as p
from risf_core.records import start_run, read_records
params = p.{}.from_notebook(globals())
run = start_run(params)
"""
BASE_WORK = """
import os, random, matplotlib
from risf_core.errors import SplitError
for row in range(2):
    if not run.rows.done(row=row):
        run.rows.add({"row": row}, {"value": random.random(), "none": float("nan")})
if params.seed == 13:
    raise SplitError("class 'cat' is in base and novel;\\n remove it from one of them.")
if params.seed == 14:
    1 / 0
if params.seed == 15:
    os.kill(os.getpid(), 9)
run.environment["backend"] = matplotlib.get_backend()
run.environment["threads"] = os.environ["OMP_NUM_THREADS"]
"""
SLEEPER_WORK = """
import os, time
from pathlib import Path
side = Path(os.environ["RISF_ROOT"]) / "side.txt"
for row in range(3):
    if not run.rows.done(row=row):
        with side.open("a") as file:
            print(row, os.getpid(), os.getppid(), file=file)
        if row == 1 and os.environ.get("SLEEP"):
            time.sleep(300)
        run.rows.add({"row": row}, {"value": row / 7})
"""
FINISH = "run.finish(metrics={'seed': params.seed})"


def _write_project(root: Path) -> Path:
    notebooks, params = root / "notebooks", root / "params" / "smoke"
    params.mkdir(parents=True)
    write_notebook(notebooks / "00_check_setup.ipynb", START.format("CheckSetupParams"), SLEEPER_WORK, FINISH)
    write_notebook(
        notebooks / "10_base_training.ipynb", NO_TORCH, START.format("BaseTrainingParams"), BASE_WORK, FINISH
    )
    write_notebook(
        notebooks / "20_fine_tuning.ipynb",
        NO_TORCH,
        START.format("FineTuningParams"),
        "base = run.upstream('base')\nassert (base.dir / 'rows.jsonl').is_file()",
        "run.finish(metrics={'base': base.record['metrics']['seed']})",
    )
    write_notebook(
        notebooks / "40_results.ipynb",
        START.format("ResultsParams"),
        "run.finish(metrics={'records': sorted(r['run_id'] for r in read_records('smoke'))})",
    )
    (params / "00_check_setup.yaml").write_text("profile: smoke\n")
    (params / "10_base_training.yaml").write_text("profile: smoke\n")
    (params / "10_base_training.broken.yaml").write_text("extends: 10_base_training.yaml\nseed: 14\n")
    (params / "10_base_training.killed.yaml").write_text("extends: 10_base_training.yaml\nseed: 15\n")
    (params / "20_fine_tuning.yaml").write_text("profile: smoke\nbase: params/smoke/10_base_training.yaml\n")
    (params / "20_fine_tuning.broken.yaml").write_text(
        "profile: smoke\nbase: params/smoke/10_base_training.broken.yaml\n"
    )
    (params / "40_results.yaml").write_text("profile: smoke\n")
    good = ["40_results.yaml", "20_fine_tuning.yaml", "10_base_training.yaml"]
    (params / "good.yaml").write_text(json.dumps({"runs": good}))
    broken = ["20_fine_tuning.broken.yaml", "10_base_training.broken.yaml", "10_base_training.killed.yaml"]
    (params / "all.yaml").write_text(json.dumps({"runs": [*broken, *good]}))
    return root


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with made-up notebooks and no results."""
    root = _write_project(tmp_path_factory.mktemp("project"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RISF_ROOT", str(root))
        patch.chdir(root)
        patch.setenv("MPLBACKEND", "agg")  # must not reach the kernel: figures belong into the notebook
        for name in ("RISF_RUN", "RISF_LOG"):
            patch.delenv(name, raising=False)
        yield root


@pytest.fixture(scope="module")
def worked_off(project):
    """The list with broken runs, worked off once by two workers: exit code and output."""
    done = _launch(project, "--list", "params/smoke/all.yaml", "--workers", "2")
    return done.returncode, done.stdout, done.stderr


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "risf_core.run", *words]


def _launch(root: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(_command(*words), cwd=root, env=_environment(), capture_output=True, text=True)


def _environment(**extra: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])} | extra


SMOKE = {"profile": "smoke"}
BASE, BROKEN = BaseTrainingParams(**SMOKE), BaseTrainingParams(**SMOKE, seed=14)
TUNED = FineTuningParams(**SMOKE, base="params/smoke/10_base_training.yaml")
LOST = FineTuningParams(**SMOKE, base="params/smoke/10_base_training.broken.yaml")
RESULTS = ResultsParams(**SMOKE)


# --- refusals -----------------------------------------------------------------------------------------------------

NOTEBOOK = "notebooks/10_base_training.ipynb"
FILE = ("--params", "params/smoke/10_base_training.yaml")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((NOTEBOOK, *FILE, "-p", "sede", "1"), "with sede 1: unknown parameter 'sede' (nearest: 'seed')"),
        ((NOTEBOOK, *FILE, "-p", "seed", "one"), "seed: expected a whole number, got text 'one'"),
        ((NOTEBOOK, *FILE, "-p", "seed", "-1"), "seed: must be greater than or equal to 0, got -1"),
        ((NOTEBOOK, *FILE, "-p", "seed", "[1, 2]"), "seed: expected a whole number, got the list [1, 2]"),
        ((NOTEBOOK, *FILE, "-p", "seed", "010"), "-p seed 010, line 1: YAML reads 010 as 8: write 10 or 8"),
        ((NOTEBOOK, *FILE, "-p", "solver.lr", "1e-4"), "write 1.0e-4"),
        ((NOTEBOOK, *FILE, "-p", "solver.lr", "-1.0"), "solver.lr: must be greater than 0"),
        ((NOTEBOOK, *FILE, "-p", "seed", "!!python/name:os.system"), "is not allowed"),
        ((NOTEBOOK, *FILE, "-p", "seed"), "-p needs a name and a value"),
        ((NOTEBOOK, *FILE, "-p", ".seed", "1"), "not a dotted name"),
        ((NOTEBOOK, "--params", "params/smoke/none.yaml"), "no such params file"),
        ((NOTEBOOK,), "a notebook needs --params"),
        ((), "give either a notebook or --list"),
        (("notebooks/10_bas_training.ipynb", *FILE), "no notebook is called '10_bas_training' (nearest: '10_base_"),
        (("--list", "params/smoke/good.yaml", "--worker", "2"), "unrecognized arguments: --worker"),
        (("--list", "params/smoke/good.yaml", "--workers", "0"), "--workers must be at least 1"),
        (("--list", "params/smoke/good.yaml", "-p", "seed", "1"), "--list takes neither"),
        (("--list", "params/smoke/10_base_training.yaml"), "unknown name 'profile'"),
    ],
)  # fmt: skip
def test_wrong_words_are_refused_with_one_line(project, capsys, words, expected):
    assert run.main(list(words)) == 2
    shown = capsys.readouterr()
    assert expected in shown.err and shown.err.count("\n") == 1 and shown.out == ""


def test_a_refusal_takes_less_than_two_seconds_and_starts_nothing(project):
    files = sorted(project.rglob("*"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = _launch(project, NOTEBOOK, *FILE, "-p", "solver.lr", "fast")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert (after.ru_utime + after.ru_stime) - (
        before.ru_utime + before.ru_stime
    ) < 2.0  # whatever else is running
    assert sorted(project.rglob("*")) == files


def test_unfinished_upstream_runs_are_named(project, capsys):
    words = ["notebooks/20_fine_tuning.ipynb", "--params", "params/smoke/20_fine_tuning.yaml"]
    assert run.main(words) == 2
    error = capsys.readouterr().err.splitlines()
    assert "builds on 1 run(s) that are not finished; add --with-upstream" in error[0]
    assert (
        error[1].strip() == f"python -m risf_core.run {NOTEBOOK} --params params/smoke/10_base_training.yaml"
    )
    assert run.main([*words, "--with-upstream", "--dry-run"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_notebook_with_wrong_parameters_cell_is_refused(project, tmp_path, capsys):
    def refusal(*cells, **keywords):
        path = write_notebook(tmp_path / "00_check_setup.ipynb", *cells, **keywords)
        assert run.main([str(path), "--params", "params/smoke/00_check_setup.yaml"]) == 2
        return capsys.readouterr().err

    assert "unknown parameter 'sed'" in refusal(parameters="sed = 1")
    assert "may hold only lines like" in refusal(parameters="seed = 1 + 1")
    path = tmp_path / "00_check_setup.ipynb"
    path.write_text(path.read_text().replace('"parameters"', '"other"'))
    assert run.main([str(path), "--params", "params/smoke/00_check_setup.yaml"]) == 2
    assert "expected one cell tagged 'parameters', found 0" in capsys.readouterr().err


# --- a list -------------------------------------------------------------------------------------------------------


def test_failures_are_kept_and_the_others_finish(project, worked_off):
    code, out, err = worked_off
    assert code == 1
    broken, lost = state.run_id(BROKEN), state.run_id(LOST)
    executed = project / "results" / "smoke" / "runs" / f"{broken}.ipynb"
    assert (
        f"FAILED  {broken}: ZeroDivisionError: division by zero (notebook: results/smoke/runs/{broken}.ipynb)"
        in err
    )
    assert f"NOT RUN {lost}: it builds on {broken}" in err
    assert "ZeroDivisionError" in executed.read_text() and "1 / 0" in executed.read_text()
    assert not state.record_path(BROKEN).exists() and not state.record_path(LOST).exists()
    killed = BaseTrainingParams(**SMOKE, seed=15)
    assert f"FAILED  {state.run_id(killed)}: DeadKernelError: the notebook's kernel died" in err
    assert not state.record_path(killed).exists()
    assert "3 of 6 runs finished" in err and "failed: 2, not run: 1" in err
    for params in (BASE, TUNED, RESULTS):
        assert state.finished_record(params) is not None
        assert f"done    {state.run_id(params)}" in out
    # whatever failed, results come last
    assert out.splitlines()[-1].startswith(f"done    {state.run_id(RESULTS)}")


def test_records_tell_what_was_run(project, worked_off):
    base, tuned, results = (state.finished_record(params) for params in (BASE, TUNED, RESULTS))
    assert tuned["metrics"] == {"base": 0}
    assert tuned["upstream"] == {base["run_id"]: base["state_hash"]}
    assert results["metrics"]["records"] == sorted([base["run_id"], tuned["run_id"]])
    assert [row["row"] for row in base["rows"]] == [0, 1] and base["rows"][0]["none"] is None
    assert base["environment"]["threads"] == "1" and "inline" in base["environment"]["backend"]
    assert 0 < base["environment"]["cpu_seconds"] < 60 and base["environment"]["wall_seconds"] > 0


def test_a_finished_list_is_not_repeated(project, worked_off):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = "import sys, risf_core.run as r; assert r.main(sys.argv[1:]) == 0 and 'torch' not in sys.modules"
    words = [sys.executable, "-c", code, "--list", "params/smoke/good.yaml"]
    done = subprocess.run(words, env=_environment(), cwd=project, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout == "nothing to do: 3 of 3 runs are finished; --force repeats them\n"
    assert after.ru_utime - before.ru_utime < 3.0


def test_a_change_repeats_what_depends_on_it_alone(project, worked_off):
    def names(*, force=False):
        graph = build_graph(load_list("params/smoke/good.yaml"))
        wanted = [state.run_id(params) for params in (RESULTS, TUNED, BASE)]
        return {graph[name].params.notebook for name in to_do(graph, wanted, force=force)}

    everything = {"10_base_training", "20_fine_tuning", "40_results"}
    assert names() == set() and names(force=True) == everything
    for notebook, expected in [
        ("10_base_training", everything),
        ("20_fine_tuning", everything - {"10_base_training"}),
        ("40_results", {"40_results"}),
    ]:
        path = project / "notebooks" / f"{notebook}.ipynb"
        original = path.read_text()
        path.write_text(original.replace("run.finish(", "x = 1\\nrun.finish("))
        assert names() == expected
        path.write_text(original)
    assert names() == set()


def test_long_chains_come_first(project, worked_off):
    nodes = build_graph(load_list("params/smoke/good.yaml"))
    estimate_seconds(nodes)
    base, tuned = nodes[state.run_id(BASE)], nodes[state.run_id(TUNED)]
    recorded = {name: state.load_record(state.record_path(node.params)) for name, node in nodes.items()}
    times = {name: record["environment"]["wall_seconds"] for name, record in recorded.items()}
    assert base.seconds == pytest.approx(times[base.run_id] + times[tuned.run_id])
    assert tuned.seconds == pytest.approx(times[tuned.run_id])


def test_two_launchers_at_once_repeat_a_run_once_and_exactly(project, worked_off):
    path = state.record_path(BASE)
    before = json.loads(path.read_text())
    words = _command(NOTEBOOK, *FILE, "--force")
    both = [
        subprocess.Popen(words, env=_environment(), cwd=project, stdout=subprocess.PIPE) for _ in range(2)
    ]
    assert [process.wait() for process in both] == [0, 0]
    for process in both:
        process.stdout.close()
    after = json.loads(path.read_text())
    assert after.pop("environment") != before.pop("environment")
    assert after == before
    log = (project / "results" / "smoke" / "runs" / f"{state.run_id(BASE)}.log").read_text()
    assert "waiting for another launcher" in log
    # the same state: nothing that builds on it is out of date
    assert state.finished_record(TUNED) is not None


def test_a_terminal_shows_the_last_line_of_each_running_run(project, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    graph = build_graph(load_list("params/smoke/all.yaml"))
    at_work = launcher.Launcher(graph, workers=2)
    for name in ("first", "second"):
        log = tmp_path / f"{name}.log"
        log.write_text(f"--- the command\n09:00:00 training {name}: 3/9 it, {'x' * 60}\n")
        at_work.running[name] = SimpleNamespace(run_id=name, log=log)
    at_work.last_line -= 60.0
    at_work._show()
    shown = capsys.readouterr().err
    lines = [re.sub(r"\x1b\[\w", "", line).strip() for line in re.split(r"[\r\n]", shown)]
    assert any(line.startswith(f"0%              0/{len(graph)} runs") for line in lines)
    for name in ("first", "second"):
        assert [line for line in lines if line.startswith(f"{name}: training {name}: 3/9 it, x")]
    assert max(map(len, lines)) < 60
    for shown in (*at_work.lines, at_work.bar):
        shown.close()


def test_code_that_changes_while_it_runs_is_named_as_the_reason(project, monkeypatch):
    params = BaseTrainingParams(**SMOKE, seed=16)
    path = state.record_path(params)

    def execute(params, notebook):  # what the notebook leaves when a module it uses was edited meanwhile
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"run_id": "a", "state_hash": "of the code before", "params": {}}))

    monkeypatch.setattr(worker, "_execute", execute)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(RisfError, match="changed while the notebook ran"):
        worker.work(params, project / "notebooks" / "10_base_training.ipynb", force=False)
    path.unlink()  # reading the records would warn of it


def test_each_kernel_talks_through_sockets_of_its_own(project, monkeypatch):
    """Of two kernels that start at once over TCP, one may get the other's ports."""
    places = []

    def execute(*_, config, **__):
        assert config.KernelManager.transport == "ipc"
        places.append(Path(config.KernelManager.ip))

    monkeypatch.setattr("papermill.execute_notebook", execute)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for _ in range(2):
        worker._execute(BASE, project / "notebooks" / "10_base_training.ipynb")
    assert places[0] != places[1] and all(place.is_absolute() for place in places)


def test_the_runs_stop_with_the_make_that_called_them(project, monkeypatch, tmp_path):
    monkeypatch.setattr(launcher, "_calling_make", lambda: SimpleNamespace(is_running=lambda: False))
    at_work = launcher.Launcher(build_graph([load_run("params/smoke/00_check_setup.yaml")]), workers=1)
    with pytest.raises(KeyboardInterrupt):
        at_work.work()
    assert not at_work.running and len(at_work.waiting) == 1
    code = "from risf_core.runs.launcher import _calling_make; print(_calling_make().pid)"
    (tmp_path / "Makefile").write_text(f"it:\n\t@cd / && {sys.executable} -c '{code}'\n")
    make = subprocess.Popen(
        ["make", "-C", str(tmp_path)], env=_environment(), stdout=subprocess.PIPE, text=True
    )
    assert str(make.pid) in make.communicate()[0].splitlines()


# --- a single run -------------------------------------------------------------------------------------------------


def test_wrong_data_give_one_line_and_exit_code_two(project):
    done = _launch(project, NOTEBOOK, *FILE, "-p", "seed", "13")
    params = BaseTrainingParams(**SMOKE, seed=13)
    name = state.run_id(params)
    assert done.returncode == 2
    assert done.stderr == (
        f"FAILED  {name}: SplitError: class 'cat' is in base and novel; remove it from one of them. "
        f"(notebook: results/smoke/runs/{name}.ipynb)\n"
    )
    assert not state.record_path(params).exists()


def _wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
    return value


def test_kill_9_leaves_no_orphan_and_the_next_start_goes_on_by_row(project):
    side = project / "side.txt"
    words = _command("notebooks/00_check_setup.ipynb", "--params", "params/smoke/00_check_setup.yaml")
    started = subprocess.Popen(words, env=_environment(SLEEP="1"), cwd=project, stdout=subprocess.DEVNULL)
    lines = _wait_for(
        lambda: side.exists() and len(side.read_text().splitlines()) == 2 and side.read_text().splitlines()
    )
    family = psutil.Process(started.pid).children(recursive=True)
    _, kernel, worker = (int(word) for word in lines[1].split())
    assert {kernel, worker} <= {process.pid for process in family}
    started.send_signal(signal.SIGKILL)
    started.wait()
    gone, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    params = CheckSetupParams(**SMOKE)
    assert not state.record_path(params).exists()
    assert _launch(project, *words[3:]).returncode == 0
    assert [row["row"] for row in state.finished_record(params)["rows"]] == [0, 1, 2]
    assert [line.split()[0] for line in side.read_text().splitlines()] == [
        "0",
        "1",
        "1",
        "2",
    ]  # row 0 made once
    assert load_run("params/smoke/00_check_setup.yaml").params == params
