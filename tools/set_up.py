"""Make the virtual environment .venv from requirements.lock; called by every target of the Makefile.

Runs under any Python 3, before anything is installed, so it uses the standard library alone. Two ways:

``--torch locked``    everything from the lock, with hashes (Python 3.11).
``--torch existing``  keeps the torch and torchvision of the Python that runs this script: the lock is installed
                      without torch and its CUDA libraries, and a .pth file makes the existing ones visible. (Not
                      --system-site-packages: of a virtual environment that shows the base Python's alone.)

The stamp .venv/.setup-done is written last and holds the way that was taken.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".setup-done"
TORCH_PACKAGES = re.compile(r"(torch|torchvision|triton|nvidia-.*|cuda-.*)\s*==")
CHECK_TORCH = (
    "import torch, torchvision; from torchvision.ops import nms; "
    "nms(torch.tensor([[0., 0., 1., 1.]]), torch.ones(1), 0.5); "
    "print('torch', torch.__version__, '| torchvision', torchvision.__version__, "
    "'| CUDA build', torch.version.cuda, '| GPU visible', torch.cuda.is_available())"
)


def say(text):
    """Print one line at once, also where the output is a pipe."""
    print(text, flush=True)


def stop(text):
    """End with a message and exit code 1."""
    sys.exit("set-up: " + text)


def requirement_blocks(lock_text):
    """Split a hashed lock into requirements, each with its --hash lines; comments are left out."""
    blocks = []
    for line in lock_text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line[0].isspace():
            blocks[-1] += "\n" + line
        else:
            blocks.append(line)
    return blocks


def without_torch(lock_text):
    """The lock without torch, torchvision, triton and the CUDA libraries."""
    kept = [block for block in requirement_blocks(lock_text) if not TORCH_PACKAGES.match(block)]
    return "\n".join(kept) + "\n"


def existing_torch_folders():
    """Folders from which this Python imports torch, torchvision and triton, without importing them."""
    folders = []
    for name in ("torch", "torchvision", "triton"):
        spec = importlib.util.find_spec(name)
        if spec and spec.origin:
            folder = str(Path(spec.origin).resolve().parent.parent)
            if folder not in folders:
                folders.append(folder)
        elif name != "triton":  # the CPU build has no triton
            stop(
                f"TORCH=existing, but {sys.executable} has no {name}.\n"
                "        Name the Python that has it:  make TORCH=existing PYTHON=/path/to/python"
            )
    return folders


def check_python(torch):
    """Go on under a fitting Python, or stop and say how to name one."""
    version = ".".join(map(str, sys.version_info[:2]))
    if torch == "existing":
        if sys.version_info < (3, 11):
            stop(f"Python 3.11 or later is needed, {sys.executable} is {version}.")
        if version != "3.11":
            say(f"set-up: note: only Python 3.11 is tested; this is {version}.")
    elif version != "3.11":
        other = shutil.which("python3.11")
        works = other and subprocess.run([other, "-c", ""], stderr=subprocess.DEVNULL).returncode == 0
        if not works:
            stop(
                f"Python 3.11 is needed, {sys.executable} is {version}.\n"
                "        Install Python 3.11 and name it:  make PYTHON=/path/to/python3.11\n"
                "        (or use conda: environment.yml)"
            )
        os.execv(other, [other, *sys.argv])
    if not importlib.util.find_spec("ensurepip") or not importlib.util.find_spec("venv"):
        stop(
            f"{sys.executable} cannot make virtual environments (no venv or ensurepip).\n"
            "        On Debian and Ubuntu:  sudo apt install python3.11-venv"
        )


def check_choice(torch):
    """Stop if .venv was made the other way."""
    made = STAMP.read_text().strip() if STAMP.exists() else torch
    if made != torch:
        stop(
            f"TORCH={torch} was asked for, but .venv was made with TORCH={made}.\n"
            "        Remove it first (results stay):  make clean-venv"
        )


def make_venv():
    """Make .venv unless a whole one of the same Python version is there; an interrupted one is made anew."""
    python = VENV / "bin" / "python"
    probe = "import pip, sys; print('%d.%d' % sys.version_info[:2])"
    if python.exists():
        answer = subprocess.run([str(python), "-c", probe], capture_output=True, text=True)
        if answer.returncode == 0 and answer.stdout.split() == [
            f"{sys.version_info[0]}.{sys.version_info[1]}"
        ]:
            return python
    say(f"set-up: making .venv with {sys.executable}")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
    return python


def pip_install(python, *arguments):
    """Call pip quietly; its own message stands above ours if it fails."""
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    if subprocess.run(command + list(arguments), cwd=str(ROOT)).returncode:
        stop(
            "pip could not install (see above). Often: no network, or less than 12 GB of free disk.\n"
            "        It goes on where it stopped when you call make again."
        )


def install(python, torch):
    """Install the lock and this package (editable), and make an existing torch visible."""
    link = next((VENV / "lib").glob("python3.*")) / "site-packages" / "existing_torch.pth"
    if link.exists():
        link.unlink()  # pip must not take the other environment's packages for installed ones
    lock = ROOT / "requirements.lock"
    options = ["--require-hashes"]
    if torch == "existing":
        text = without_torch(lock.read_text())
        lock = VENV / "requirements-without-torch.lock"
        lock.write_text(text)
        options.append("--no-deps")
    size = "1 GB on disk" if torch == "existing" else "about 3 GB to download, 6 GB on disk"
    say(f"set-up: installing requirements.lock into .venv ({size}; some minutes, once)")
    pip_install(python, *options, "-r", str(lock))
    pip_install(python, "--no-deps", "--no-build-isolation", "-e", ".")
    if torch == "existing":
        link.write_text("\n".join(existing_torch_folders()) + "\n")


def main():
    """Set up, check that torch works, and leave the stamp."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", choices=("locked", "existing"), default="locked")
    torch = parser.parse_args().torch
    check_python(torch)
    check_choice(torch)
    if torch == "existing":
        existing_torch_folders()  # stops early if there is none
    python = make_venv()
    install(python, torch)
    if subprocess.run([str(python), "-c", CHECK_TORCH]).returncode:
        stop(
            "torch or torchvision does not work (see above). For the versions that fit each other:  make doctor"
        )
    STAMP.write_text(torch + "\n")
    say("set-up: done")


if __name__ == "__main__":
    main()
