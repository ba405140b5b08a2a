"""The set-up check: what it says in each state, and that it outlives what it finds broken."""

import json
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from risf_core import doctor

ROOT = Path(__file__).resolve().parents[1]
GPU = {"cuda_build": "13.2", "gpus": ["H200"]}


def project(folder: Path, *dependencies: str, lock: str = "") -> Path:
    (folder / "pyproject.toml").write_text(f"[project]\ndependencies = {json.dumps(dependencies)}\n")
    (folder / "requirements.lock").write_text(lock)
    return folder


def test_this_environment_has_no_problem():
    checks = doctor.check()
    assert [item for item in checks if item.status == "problem"] == []
    assert {"Python", "torch", "device", "memory", "disk", "Jupyter kernel"} <= {item.name for item in checks}
    assert all(item.fix for item in checks if item.status != "ok")


@pytest.mark.parametrize(
    "version, status", [((3, 10, 2), "problem"), ((3, 11, 0), "ok"), ((3, 12, 1), "warning")]
)
def test_python_version(monkeypatch, version, status):
    monkeypatch.setattr(doctor.sys, "version_info", version)
    assert doctor.check_python().status == status


def test_missing_package_is_a_problem_and_a_wrong_version_a_warning(tmp_path):
    missing, wrong = doctor.check_packages(
        project(tmp_path, "risf-no-such-package>=1", "numpy>=99", "pydantic>=2")
    )
    assert (missing.status, missing.fix) == ("problem", "make setup")
    assert wrong.status == "warning" and "numpy>=99" in wrong.fix


def test_versions_beside_the_tested_ones_are_named(tmp_path):
    (found,) = doctor.check_packages(project(tmp_path, "numpy>=1", lock="numpy==1.0.0 \\\n    --hash=x\n"))
    assert found.status == "warning" and "(tested: 1.0.0)" in found.found


def test_installation_of_another_clone_is_a_problem(tmp_path):
    assert doctor.check_installation(ROOT).status == "ok"
    assert doctor.check_installation(tmp_path).status == "problem"


@pytest.mark.parametrize(
    "probe, reason",
    [
        ("raise ImportError('libtorch.so is gone')", "libtorch.so is gone"),
        ("import os; os.abort()", "code -6"),
    ],
)
def test_broken_torch_is_reported_even_when_it_kills_its_process(monkeypatch, probe, reason):
    monkeypatch.setattr(doctor, "TORCH_PROBE", probe)
    (found,) = doctor.check_torch()
    assert found.status == "problem" and reason in found.found and "README" in found.fix


def test_a_machine_too_busy_to_answer_is_not_called_broken(monkeypatch):
    answer = doctor.run_quietly([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.2)
    assert answer == (doctor.TIMED_OUT, "", "no answer within 0 s")
    monkeypatch.setattr(doctor, "run_quietly", lambda command: answer)
    (found,) = doctor.check_torch()
    assert found.status == "warning" and "clean-venv" not in found.fix


def test_device_says_why_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: "535.1")
    assert doctor.check_device(GPU).found == "H200; CUDA 13.2, driver 535.1"
    blind = doctor.check_device(GPU | {"gpus": []})
    assert blind.status == "warning" and "535.1" in blind.found and "CUDA 13.2" in blind.fix
    cpu_build = doctor.check_device({"cuda_build": None, "gpus": []})
    assert cpu_build.status == "warning" and "update the driver" not in cpu_build.fix
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: None)
    assert doctor.check_device({"cuda_build": None, "gpus": []}).status == "ok"


@pytest.mark.parametrize(
    "gib, cores, status, fix",
    [(3, 2, "warning", "WORKERS=1"), (9, 2, "ok", ""), (9, 4, "warning", "WORKERS=2"), (40, 64, "ok", "")],
)
def test_memory_is_weighed_against_the_workers(monkeypatch, gib, cores, status, fix):
    monkeypatch.setattr(doctor, "available_memory", lambda: gib * doctor.GIB)
    monkeypatch.setattr(doctor, "available_cores", lambda: cores)
    found = doctor.check_memory()
    assert found.status == status and fix in found.fix


@pytest.mark.parametrize("gib, status", [(0.5, "problem"), (3, "warning"), (50, "ok")])
def test_disk(monkeypatch, tmp_path, gib, status):
    usage = namedtuple("usage", "free")(int(gib * doctor.GIB))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert doctor.check_disk(tmp_path).status == status


def test_results_folder_that_cannot_be_written(monkeypatch, tmp_path):
    assert doctor.check_results(tmp_path).status == "ok"
    assert list(tmp_path.iterdir()) == []  # looking changes nothing

    def refuse(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    found = doctor.check_results(tmp_path)
    assert found.status == "problem" and "Read-only" in found.found


def test_data_folders_that_params_name(tmp_path):
    (tmp_path / "params" / "photos").mkdir(parents=True)
    (tmp_path / "images").mkdir()
    file = tmp_path / "params" / "photos" / "shared.yaml"
    file.write_text("data: {source: coco, annotations: gone.json, images: images}\n")
    (tmp_path / "params" / "photos" / "broken.yaml").write_text("a: [\n")
    pictograms, photos = doctor.check_data_folders(tmp_path)
    assert (pictograms.status, photos.status) == ("ok", "absent")
    assert photos.found == "not there: gone.json" and "params/photos/shared.yaml" in photos.fix
    (tmp_path / "gone.json").touch()
    assert doctor.check_data_folders(tmp_path)[1] == doctor.ok("data: photos", "gone.json, images")


def test_notebook_with_outputs_or_torn_is_named(tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / "a.ipynb").write_text(json.dumps({"cells": [{"outputs": [], "execution_count": None}]}))
    assert doctor.check_notebooks(tmp_path).status == "ok"
    (folder / "b.ipynb").write_text(json.dumps({"cells": [{"outputs": [{}]}]}))
    assert doctor.check_notebooks(tmp_path).found == "outputs in b.ipynb"
    (folder / "c.ipynb").write_text("{")
    assert doctor.check_notebooks(tmp_path).status == "problem"


def test_weights_cache_follows_the_environment(monkeypatch, tmp_path):
    (tmp_path / "hub" / "models--timm--vit_base_patch32_clip_224.openai").mkdir(parents=True)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert "patch32_clip" in doctor.check_weights_cache().found
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert doctor.check_weights_cache().status == "warning"


def test_exit_code_is_one_on_problems_alone(monkeypatch, capsys):
    for checks, code, verdict in (
        ([doctor.absent("a", "b", "c"), doctor.warning("c", "d", "mend c")], 0, "ready for make reproduce"),
        (
            [doctor.ok("a", "b"), doctor.problem("a", "b", "mend a")],
            1,
            "1 problem(s): mend the problems first",
        ),
    ):
        monkeypatch.setattr(doctor, "check", lambda checks=checks: checks)
        assert doctor.main() == code
        printed = capsys.readouterr().out
        assert f"-> {checks[-1].fix}" in printed and printed.endswith(f"{verdict}\n")


def test_doctor_works_where_nothing_is_installed():
    """-S hides site-packages: no torch, no yaml, no packaging."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from risf_core import doctor; "
    code += "doctor.TORCH_PROBE = 'import risf_no_such_module'; sys.exit(doctor.main())"
    answer = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert answer.returncode == 1, answer.stderr
    assert "Traceback" not in answer.stderr
    assert "problem  torch" in answer.stdout and "No module named 'risf_no_such_module'" in answer.stdout
