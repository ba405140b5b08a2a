"""The set-up check: one line per thing a run needs, each with the line that mends it.

``make doctor`` or ``python -m risf_core.doctor`` prints the table; notebook 00_check_setup shows `check()` as a
data frame. Works, and says so, where packages are missing or torch is broken: this file imports the standard library
alone, and torch is probed in a process of its own, so that the caller touches no GPU and outlives a broken build.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30
TIMED_OUT = 124  # exit code, as coreutils' timeout has it
OPTIONAL_PACKAGES = {
    "detectron2": "only for a second detector back end: README.md, section 'detectron2 as the backend'",
    "faster-coco-eval": "only for its engine in 21_evaluate: .venv/bin/python -m pip install faster-coco-eval",
}
# Run by the probe process. Prints one JSON line; the timing is a convolution on one thread, best of 5.
TORCH_PROBE = """
import json, time, torch, torchvision
torch.set_num_threads(1)
torchvision.ops.nms(torch.tensor([[0., 0., 1., 1.]]), torch.ones(1), 0.5)
def best(dtype):
    conv = torch.nn.Conv2d(64, 64, 3, padding=1).to(dtype)
    x = torch.randn(8, 64, 40, 40, dtype=dtype)
    times = []
    with torch.no_grad():
        for _ in range(6):
            start = time.perf_counter(); conv(x); times.append(time.perf_counter() - start)
    return min(times[1:])
cuda = torch.cuda.is_available()
print(json.dumps({
    "torch": torch.__version__, "torchvision": torchvision.__version__, "cuda_build": torch.version.cuda,
    "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
    "bf16_gain": best(torch.float32) / best(torch.bfloat16),
}))
"""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What was checked.
        status: "ok", "absent" (not there, and only needed for what its fix says), "warning" (works, but not as
            tested or as fast) or "problem" (runs would fail).
        found: What is there.
        fix: The line that mends or adds it; empty where nothing needs doing.
    """

    name: str
    status: str
    found: str
    fix: str = ""


def ok(name: str, found: str) -> Check:
    """A check that found nothing wrong."""
    return Check(name, "ok", found)


def absent(name: str, found: str, fix: str) -> Check:
    """Something that is not there and that most runs do not need."""
    return Check(name, "absent", found, fix)


def warning(name: str, found: str, fix: str) -> Check:
    """A check that found something that works, but not as tested or as fast."""
    return Check(name, "warning", found, fix)


def problem(name: str, found: str, fix: str) -> Check:
    """A check that found what would make runs fail."""
    return Check(name, "problem", found, fix)


def check(*, root: Path = ROOT) -> list[Check]:
    """Look at everything a run needs.

    Args:
        root: The repository folder (holds pyproject.toml, params/, results/).

    Returns:
        One `Check` per line of the table, in order of importance. Nothing is changed on disk.
    """
    checks = [check_python(), check_installation(root)]
    checks += check_packages(root)
    checks += check_torch()
    checks += [check_cores(), check_memory(), check_disk(root), check_results(root)]
    checks += check_data_folders(root)
    checks += [check_kernel(), check_notebooks(root), check_weights_cache()]
    return checks + check_optional_packages()


def check_python() -> Check:
    """Python 3.11 is tested; later ones may work."""
    found = f"{platform.python_version()} at {sys.executable}"
    fix = "make clean-venv && make setup PYTHON=/path/to/python3.11"
    if sys.version_info < (3, 11):
        return problem("Python", f"{found}; 3.11 is needed", fix)
    if sys.version_info[:2] != (3, 11):
        return warning("Python", f"{found}; only 3.11 is tested", fix)
    return ok("Python", found)


def check_installation(root: Path) -> Check:
    """The editable installation must point to this clone (it does not after the folder was moved)."""
    fix = "make clean-venv && make setup"
    try:
        record = importlib.metadata.distribution("risf").read_text("direct_url.json") or "{}"
    except importlib.metadata.PackageNotFoundError:
        return problem("installation", "risf is not installed in this Python", "make setup")
    folder = unquote(urlparse(json.loads(record).get("url", "")).path)
    if Path(folder).resolve() != root.resolve():
        return problem("installation", f"installed from {folder or 'elsewhere'}, not from {root}", fix)
    return ok("installation", f"risf {importlib.metadata.version('risf')}, editable, {root}")


def normalise(name: str) -> str:
    """A distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked_versions(root: Path) -> dict[str, str]:
    """Versions pinned in requirements.lock, by normalised name; empty if the file is not there."""
    lock = root / "requirements.lock"
    lines = lock.read_text().splitlines() if lock.exists() else []
    pins = (re.match(r"([A-Za-z0-9._-]+)==(\S+)", line) for line in lines)
    return {normalise(pin[1]): pin[2] for pin in pins if pin}


def check_packages(root: Path) -> list[Check]:
    """Installed versions against the ranges of pyproject.toml, and against the tested point."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return [problem("packages", "'packaging' is missing, so are others probably", "make setup")]
    import tomllib  # not in Python 3.10, which check_python reports

    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    problems, differing, count = [], [], 0
    locked = locked_versions(root)
    for requirement in map(Requirement, project["dependencies"]):
        name, count = normalise(requirement.name), count + 1
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(problem(f"package {name}", f"missing, wanted {requirement}", "make setup"))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            fix = f'.venv/bin/python -m pip install "{requirement}"'
            problems.append(warning(f"package {name}", f"{version}, wanted {requirement.specifier}", fix))
        elif name in locked and version.partition("+")[0] != locked[name]:
            differing.append(f"{name} {version} (tested: {locked[name]})")
    if problems:
        return problems
    if differing:
        fix = "numbers repeat exactly only at the tested versions: make clean-venv && make setup"
        return [warning("packages", "inside their ranges, but " + ", ".join(differing), fix)]
    return [ok("packages", f"all {count} direct dependencies at the tested versions")]


def run_quietly(command: list[str], timeout: float = 120.0) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command; -1 or TIMED_OUT and the reason if it cannot run or takes too long."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except OSError as error:
        return -1, "", str(error)
    except subprocess.TimeoutExpired:
        return TIMED_OUT, "", f"no answer within {timeout:.0f} s"
    return answer.returncode, answer.stdout, answer.stderr


def check_torch() -> list[Check]:
    """Whether torch and torchvision work together, on which device, and how fast bf16 is on the CPU."""
    code, output, errors = run_quietly([sys.executable, "-c", TORCH_PROBE])
    if code == TIMED_OUT:
        return [
            warning("torch", f"{errors}; is the machine busy?", "make doctor once more, with less running")
        ]
    if code:
        reason = (errors.strip().splitlines() or [f"the process ended with code {code}"])[-1]
        fix = "make clean-venv && make setup  (for another build see README: a torch of your own)"
        return [problem("torch", f"does not work: {reason[:200]}", fix)]
    found = json.loads(output.strip().splitlines()[-1])
    works = ok("torch", f"torch {found['torch']}, torchvision {found['torchvision']}: import and nms work")
    return [works, check_device(found), check_bf16(found["bf16_gain"])]


def check_device(found: dict) -> Check:
    """GPU, or the reason why there is none although a driver is installed."""
    driver = nvidia_driver()
    if found["gpus"]:
        names = ", ".join(found["gpus"])
        return ok("device", f"{names}; CUDA {found['cuda_build']}, driver {driver or 'unknown'}")
    if driver is None:
        return ok("device", "CPU (no NVIDIA driver); the profiles smoke and mini need no GPU")
    fix = "take a torch that fits the driver (README: a torch of your own)"
    if found["cuda_build"]:
        fix = f"update the driver to one for CUDA {found['cuda_build']}, or {fix}"
    return warning("device", f"driver {driver} is there, torch (CUDA {found['cuda_build']}) sees no GPU", fix)


def nvidia_driver() -> str | None:
    """Version of the NVIDIA driver, or None where none answers."""
    if not shutil.which("nvidia-smi"):
        return None
    code, output, _ = run_quietly(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], 20.0)
    return output.strip().splitlines()[0] if code == 0 and output.strip() else None


def check_bf16(gain: float) -> Check:
    """bf16 on the CPU: instructions and measured gain. Runs choose for themselves and record the choice."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    flags = (
        ", ".join(sorted(set(re.findall(r"\b(?:avx512_bf16|amx_bf16)\b", text)))) or "no bf16 instructions"
    )
    found = f"{flags}; a convolution in bf16 runs at {gain:.1f} x the speed of fp32"
    if gain < 1.0:
        return warning("bf16 on CPU", found, "nothing to mend: expect longer runs, in fp32")
    return ok("bf16 on CPU", found)


def available_cores() -> int:
    """Cores this process may use (its affinity, where the system tells)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_cores() -> Check:
    """Two cores are what the mini profile is planned for."""
    cores = available_cores()
    if cores < 2:
        return warning("cores", f"{cores}", "nothing to mend: runs take about twice as long as with two")
    return ok("cores", f"{cores}; make reproduce uses WORKERS={min(cores, 8)} one-thread workers")


def available_memory() -> int | None:
    """Bytes that can be had now: the system's figure or the rest of a container's limit; None if unknown."""
    try:
        meminfo = Path("/proc/meminfo").read_text()
        free = int(re.search(r"MemAvailable:\s+(\d+) kB", meminfo)[1]) * 1024
    except (OSError, TypeError):
        return None
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free = min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):  # no container, or "max"
        pass
    return free


def check_memory() -> Check:
    """A run of the mini profile may take up to 4 GiB."""
    free = available_memory()
    if free is None:
        return warning("memory", "unknown on this system", "see that 4 GiB per worker are free")
    workers = min(available_cores(), 8)
    fits = max(1, int(free // (4 * GIB)))
    found = f"{free / GIB:.1f} GiB free; a worker may take 4"
    if free < 4 * GIB:
        return warning("memory", found, "close other programs; make reproduce WORKERS=1")
    if fits < workers:
        return warning("memory", found, f"make reproduce WORKERS={fits}")
    return ok("memory", found)


def check_disk(root: Path) -> Check:
    """Free space where data/ and results/ are written."""
    free = shutil.disk_usage(root).free
    fix = f"free some space on the disk of {root}, or make data/ and results/ links to another disk"
    status = "problem" if free < GIB else "warning" if free < 5 * GIB else "ok"
    return Check("disk", status, f"{free / GIB:.1f} GiB free", "" if status == "ok" else fix)


def check_results(root: Path) -> Check:
    """results/ must be writable (or creatable)."""
    folder = root / "results"
    place = folder if folder.exists() else root
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return problem("results folder", f"cannot write to {place}: {error.strerror}", f"chmod u+w {place}")
    return ok("results folder", f"{folder} can be written")


def read_params(root: Path) -> Iterator[tuple[Path, dict]]:
    """Parameter files of all profiles that hold a mapping; unreadable ones are the launcher's business."""
    try:
        import yaml
    except ImportError:
        return
    for path in sorted((root / "params").glob("*/*.yaml")):
        try:
            content = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue
        if isinstance(content, dict):
            yield path, content


def check_data_folders(root: Path) -> list[Check]:
    """Files of real data that the parameter files name; the pictogram world makes its own."""
    checks = [ok("data: pictograms", "made on the fly in data/, nothing to download")]
    for path, content in read_params(root):
        files = content.get("files")  # of open-vocabulary detection
        data = {"source": "files"} | files if isinstance(files, dict) else content.get("data")
        if not isinstance(data, dict) or data.get("source", "pictograms") == "pictograms":
            continue
        keys = ("annotations", "images", "test_annotations", "test_images", "voc2007", "voc2012", "splits")
        keys += ("train_annotations", "train_images", "label_annotations", "label_images", "synonyms")
        places = dict.fromkeys(str(data[key]) for key in keys if data.get(key))
        missing = [place for place in places if not (root / Path(place).expanduser()).exists()]
        name, profile, file = f"data: {path.parent.name}", path.parent.name, path.relative_to(root)
        if missing:
            entry = "files" if isinstance(files, dict) else "data"
            fix = f"only for the profile {profile}: put the data there, or edit `{entry}:` in {file}"
            checks.append(absent(name, f"not there: {', '.join(missing)}", fix))
        else:
            checks.append(ok(name, ", ".join(places)))
    return checks


def check_kernel() -> Check:
    """Notebooks name the kernel python3: it must be this Python."""
    fix = f"{sys.executable} -m ipykernel install --sys-prefix --name python3"
    try:
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    except ImportError:
        return problem("Jupyter kernel", "jupyter_client is missing", "make setup")
    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return problem("Jupyter kernel", "there is no kernel python3", fix)
    if command not in ("python", "python3") and not same_python(command):
        return problem("Jupyter kernel", f"kernel python3 starts {command}, not this Python", fix)
    return ok("Jupyter kernel", "python3 is this Python")


def same_python(command: str) -> bool:
    """Whether a command is this environment's Python (its links in bin/ count, its base Python does not)."""
    return Path(command).parent == Path(sys.executable).parent


def check_notebooks(root: Path) -> Check:
    """Sources are kept without outputs."""
    holding = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        try:
            cells = json.loads(path.read_text())["cells"]
        except (ValueError, KeyError, TypeError):
            return problem(
                "notebooks", f"{path.name} is not a notebook", f"git checkout notebooks/{path.name}"
            )
        if any(cell.get("outputs") or cell.get("execution_count") for cell in cells):
            holding.append(path.name)
    if holding:
        return warning("notebooks", f"outputs in {', '.join(holding)}", "before a commit: make strip")
    return ok("notebooks", "no outputs in notebooks/")


def check_weights_cache() -> Check:
    """Where open_clip keeps downloaded CLIP weights (the Hugging Face cache), writable or not."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    names = sorted(folder.name for folder in cache.glob("models--*") if "clip" in folder.name.lower())
    found = f"{cache}: {', '.join(names) or 'no CLIP weights (smoke and mini train their own)'}"
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if not os.access(place, os.W_OK):
        return warning("CLIP weights", f"{place} cannot be written", "export HF_HOME=/a/folder/of/yours")
    return ok("CLIP weights", found)


def check_optional_packages() -> list[Check]:
    """Packages that only some studies use; a missing one is no fault."""
    checks = []
    for name, purpose in OPTIONAL_PACKAGES.items():
        try:
            checks.append(ok(f"optional: {name}", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            checks.append(absent(f"optional: {name}", "not installed", purpose))
    return checks


def format_table(checks: list[Check]) -> str:
    """The checks as aligned lines; what mends a line stands under it."""
    width = max(len(item.name) for item in checks)
    lines = []
    for item in checks:
        lines.append(f"{item.status:<8} {item.name:<{width}}  {item.found}")
        if item.fix:
            lines.append(f"{'':<8} {'':<{width}}  -> {item.fix}")
    names = {"ok": "ok", "absent": "absent (not needed)", "warning": "warning(s)", "problem": "problem(s)"}
    counts = {name: sum(item.status == status for item in checks) for status, name in names.items()}
    verdict = "mend the problems first" if counts["problem(s)"] else "ready for make reproduce"
    return "\n".join([*lines, "", f"{', '.join(f'{n} {name}' for name, n in counts.items())}: {verdict}"])


def main() -> int:
    """Print the table; exit code 1 only where a problem would make runs fail."""
    checks = check()
    sys.stdout.write(format_table(checks) + "\n")
    return int(any(item.status == "problem" for item in checks))


if __name__ == "__main__":
    sys.exit(main())
