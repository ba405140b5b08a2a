"""Small notebooks written for tests of the launcher and of state hashes, and projects that borrow the real ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def write_notebook(path: Path, *cells: str, parameters: str = 'profile = "smoke"') -> Path:
    """A notebook of code cells, the first tagged `parameters`."""
    sources = [(parameters, ["parameters"]), *((cell, []) for cell in cells)]
    code = [
        {
            "cell_type": "code",
            "id": f"cell-{number}",
            "metadata": {"tags": tags},
            "source": source,
            "outputs": [],
            "execution_count": None,
        }
        for number, (source, tags) in enumerate(sources)
    ]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"cells": code, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(content))
    return path


def link_project(root: Path) -> Path:
    """Make a folder a project with the repository's notebooks and params files, and neither data nor results."""
    for name in ("notebooks", "params"):
        (root / name).symlink_to(REPOSITORY / name)
    return root


def project_environment(root: Path) -> dict[str, str]:
    """Environment of a command line that works in the project at ``root`` with this repository's code."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("RISF_RUN", "RISF_LOG")}
    return inherited | {"RISF_ROOT": str(root), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def launch_command(*words: str) -> list[str]:
    """``python -m risf_core.run`` with these words."""
    return [sys.executable, "-m", "risf_core.run", *words]


def launch(root: Path, *words: str) -> subprocess.CompletedProcess:
    """Run the launcher in the project at ``root`` and wait for its end."""
    return subprocess.run(
        launch_command(*words), cwd=root, env=project_environment(root), capture_output=True, text=True
    )
