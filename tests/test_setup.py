"""The set-up: lock, conda file, Makefile, README, notebooks' sources."""

import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import risf_core
from risf_core.doctor import locked_versions, normalise

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# conda-forge's names where they differ from those of pyproject.toml, and what only conda needs to be told
CONDA_NAMES = {
    "torch": "pytorch",
    "matplotlib": "matplotlib-base",
    "seaborn": "seaborn-base",
}
CONDA_ONLY = {"python", "pip", "setuptools", "detectron2"}


def load_set_up():
    spec = importlib.util.spec_from_file_location("set_up", ROOT / "tools" / "set_up.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


set_up = load_set_up()


def project_requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]["test"]  # the others stay outside the lock
    return [Requirement(item) for item in project["dependencies"] + extras]


def lock_blocks() -> list[str]:
    return set_up.requirement_blocks((ROOT / "requirements.lock").read_text())


# ---- requirements.lock


def test_every_requirement_is_locked_inside_its_range():
    locked = locked_versions(ROOT)
    for requirement in project_requirements():
        version = locked[normalise(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} is locked at {version}"


def test_lock_is_hashed_pinned_and_without_addresses():
    text = (ROOT / "requirements.lock").read_text()
    blocks = lock_blocks()
    assert len(blocks) == len(locked_versions(ROOT)) > 100
    for block in blocks:
        assert re.match(r"[a-z0-9][a-z0-9._-]*==\S+ \\\n( {4}--hash=sha256:[0-9a-f]{64}( \\\n)?)+$", block), (
            block
        )
    assert "://" not in text
    assert not re.search(r"^\s*(-i|-f|--index-url|--extra-index-url|--find-links)\b", text, re.M)


def test_lock_holds_no_pre_releases():
    assert [name for name, version in locked_versions(ROOT).items() if Version(version).is_prerelease] == []


def test_without_torch_drops_torch_with_its_hashes_and_keeps_the_rest():
    hashes = " \\\n    --hash=x \\\n    --hash=y\n"
    text = f"# head\na==1{hashes}torch==2{hashes}nvidia-cublas==3{hashes}b==4\n"
    assert set_up.without_torch(text) == f"a==1{hashes}b==4\n"


def test_without_torch_drops_exactly_what_the_cuda_build_brings():
    kept = set_up.requirement_blocks(set_up.without_torch((ROOT / "requirements.lock").read_text()))
    dropped = {block.split("==")[0] for block in lock_blocks()} - {block.split("==")[0] for block in kept}
    assert {"torch", "torchvision", "triton", "nvidia-cublas", "cuda-bindings"} <= dropped
    assert all(name.startswith(("torch", "triton", "nvidia-", "cuda-")) for name in dropped)
    assert {"open-clip-torch", "numpy", "setuptools"} <= {block.split("==")[0] for block in kept}


# ---- tools/set_up.py


def test_wrong_python_is_told_how_to_name_another(monkeypatch):
    monkeypatch.setattr(set_up.sys, "version_info", (3, 12, 0))
    monkeypatch.setattr(set_up.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match=r"3\.11 is needed.*is 3\.12(?s:.*)make PYTHON="):
        set_up.check_python("locked")


def test_another_python_goes_on_under_python311_where_there_is_one(monkeypatch):
    monkeypatch.setattr(set_up.sys, "version_info", (3, 13, 1))
    monkeypatch.setattr(set_up.shutil, "which", lambda name: "/bin/true")
    started = []
    monkeypatch.setattr(set_up.os, "execv", lambda path, arguments: started.append(path))
    set_up.check_python("locked")
    assert started == ["/bin/true"]


def test_existing_torch_is_found_beside_torchvision_or_refused(monkeypatch):
    assert set_up.existing_torch_folders()[0] == str(Path(torch.__file__).resolve().parent.parent)
    monkeypatch.setattr(set_up.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="has no torch(?s:.*)TORCH=existing PYTHON="):
        set_up.existing_torch_folders()


def test_a_venv_of_the_other_kind_is_not_mixed(monkeypatch, tmp_path):
    stamp = tmp_path / "stamp"
    monkeypatch.setattr(set_up, "STAMP", stamp)
    set_up.check_choice("existing")  # nothing there yet
    stamp.write_text("locked\n")
    set_up.check_choice("locked")
    with pytest.raises(SystemExit, match="make clean-venv"):
        set_up.check_choice("existing")


# ---- environment.yml, CITATION.cff, LICENSE


def test_conda_file_names_the_same_packages_and_ranges():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    conda = {
        re.match(r"[\w.-]+", item)[0]: re.sub(r"^[\w.-]+", "", item) for item in environment["dependencies"]
    }
    wanted = {}
    for requirement in project_requirements():
        name = normalise(requirement.name)
        wanted[CONDA_NAMES.get(name, name)] = requirement.specifier
    assert set(conda) == set(wanted) | CONDA_ONLY
    for name, specifier in wanted.items():
        assert Requirement("x" + conda[name]).specifier == specifier, name
    assert conda["python"] == "=3.11"


def test_conda_file_admits_that_it_is_unsolved_and_lock_names_its_point():
    assert "NO ONE HAS SOLVED" in (ROOT / "environment.yml").read_text()
    head = (ROOT / "requirements.lock").read_text()[:1500]
    assert all(word in head for word in ("Linux x86-64", "Python 3.11", "CUDA build", "install page"))


def test_citation_and_licence_agree_with_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == risf_core.__version__
    assert citation["license"] == "Apache-2.0"
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence


def test_every_dependency_is_used():
    not_imported = {"jupyterlab", "ipykernel", "ipywidgets", "nbconvert", "pytest-xdist", "ruff"}
    not_imported |= {"transformers"}  # open_clip imports it for the tokenizers of some models
    imports = {"open-clip-torch": "open_clip", "pillow": "PIL", "pyyaml": "yaml"}
    files = [*(ROOT / "risf_core").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *NOTEBOOKS]
    text = "\n".join(path.read_text() for path in files)
    unused = []
    for requirement in project_requirements():
        name = normalise(requirement.name)
        module = imports.get(name, name.replace("-", "_"))
        if name not in not_imported and not re.search(rf"\b(import|from) {module}\b", text):
            unused.append(name)
    assert unused == []


# ---- Makefile, .ci/run


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    # of a make that runs the tests
    ours = (
        "MAKE",
        "MFLAGS",
        "TORCH",
        "PROFILE",
        "PYTHON",
        "WORKERS",
        "SURE",
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def clone(tmp_path) -> Path:
    """A folder with a space in its name that holds the Makefile and some results."""
    folder = tmp_path / "a clone"
    for profile in ("mini", "published/mini"):
        (folder / "results" / profile).mkdir(parents=True)
        (folder / "results" / profile / "x.json").write_text("{}")
    shutil.copy(ROOT / "Makefile", folder)
    return folder


def test_make_alone_lists_the_targets(clone):
    answer = make(clone)
    listed = set(re.findall(r"^  make ([a-z-]+)", answer.stdout, re.M))
    assert answer.returncode == 0
    assert {"reproduce", "test", "lab", "figures", "publish", "doctor", "smoke", "lint"} <= listed


def test_clean_targets_keep_results(clone):
    assert make(clone, "clean", "clean-venv").returncode == 0
    assert make(clone, "clean-results").returncode != 0
    for wrong in ("", "published", "..", "published/mini"):
        assert make(clone, "clean-results", f"PROFILE={wrong}", "SURE=yes").returncode != 0
    assert (clone / "results" / "mini" / "x.json").exists()
    assert make(clone, "clean-results", "SURE=yes").returncode == 0
    assert not (clone / "results" / "mini").exists()
    assert (clone / "results" / "published" / "mini" / "x.json").exists()


def test_every_working_target_sets_itself_up(clone):
    (clone / "requirements.lock").touch()
    (clone / "pyproject.toml").touch()
    for target in (
        "reproduce",
        "reproduce-ovd",
        "smoke",
        "test",
        "lint",
        "lab",
        "figures",
        "publish",
        "doctor",
        "strip",
    ):
        assert "tools/set_up.py --torch locked" in make(clone, "-n", target).stdout, target
    (clone / ".venv").mkdir()
    (clone / ".venv" / ".setup-done").write_text("existing\n")
    assert "set_up.py" not in make(clone, "-n", "test").stdout  # set up already, and the choice is remembered
    assert "set_up.py --torch locked" in make(clone, "-n", "test", "TORCH=locked").stdout


def test_reproduce_prints_the_table_and_keeps_the_exit_code(clone):
    (clone / "requirements.lock").touch()
    (clone / "pyproject.toml").touch()
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / ".setup-done").write_text("locked\n")
    python = clone / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$@"\ncase "$*" in *risf_core.run*) exit 1;; esac\n')
    python.chmod(0o755)
    answer = make(clone, "reproduce", "PROFILE=smoke", "WORKERS=3")
    assert "risf_core.run --list params/smoke/runs.yaml --workers 3" in answer.stdout
    assert "risf_core.tables --profile smoke --show" in answer.stdout
    assert answer.returncode != 0


def test_ci_runs_the_tests_and_is_executable():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text() and "\nmake test\n" in script.read_text()


# ---- README.md


def readme_block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]


def test_readme_loss_works_as_written(tmp_path):
    from risf_core.custom_loss import load_custom_loss

    code = readme_block("python")
    assert len(code.splitlines()) <= 15
    (tmp_path / "my_losses.py").write_text(code)
    focal = load_custom_loss(f"{tmp_path}/my_losses.py:focal")
    # p_y = 1/3 in both rows: (2/3)^2 ln 3
    value = focal(torch.zeros(2, 3), torch.tensor([0, 2]))
    assert value.item() == pytest.approx((2 / 3) ** 2 * math.log(3), rel=1e-6)


def test_readme_data_block_is_valid():
    from risf_core.params import BaseTrainingParams

    content = yaml.safe_load(readme_block("yaml"))
    params = BaseTrainingParams.model_validate({"profile": "mine", **content})
    assert params.data.novel_classes == ("heron", "owl", "wren")


def test_readme_names_what_exists():
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:`|^ {4,})make ([a-z-]+)", text, re.M)):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for path in set(re.findall(r"(?:risf_core|params|notebooks|tools)/[\w./-]*\w", text)):
        assert (ROOT / path).exists(), path
    for module in set(re.findall(r"-m (risf_core[\w.]*)", text)):
        assert importlib.util.find_spec(module), module


# ---- what is committed


def tracked_files() -> list[Path]:
    answer = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if answer.returncode:
        pytest.skip("not a git clone")
    return [ROOT / name for name in answer.stdout.split("\0") if name]


def test_no_index_address_is_committed():
    pattern = re.compile(
        "pypi" + r"\.org|python" + r"hosted\.org|download\." + r"pytorch\.org|(?<!emit-)index" + "-url="
    )
    found = []
    for path in tracked_files():
        if (
            path.suffix in {".py", ".md", ".yml", ".yaml", ".toml", ".lock", ".cff", ".ipynb", ""}
            and path.is_file()
        ):
            found += [path.name] if pattern.search(path.read_text()) else []
    assert found == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_notebook_source_is_clean(path):
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert "papermill" not in notebook["metadata"]
    assert [cell for cell in notebook["cells"] if "papermill" in cell["metadata"]] == []
    assert [cell for cell in code if cell["outputs"] or cell["execution_count"] is not None] == []
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1
    for source in ("".join(cell["source"]) for cell in code):
        assert not re.search(r"^\s*(def|class|async def)\b", source, re.M), source
        assert len(source.splitlines()) <= 25, source
