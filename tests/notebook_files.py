"""Small notebooks written for tests of the launcher and of state hashes."""

import json
from pathlib import Path


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
