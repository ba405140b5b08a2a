"""Real data sets outside the project: a test that needs one skips, with the reason, where it is not at hand."""

import os
from pathlib import Path

import pytest


def real_data(name: str) -> Path:
    """A folder of RISF_REAL, or of the folder ``real`` beside RISF_REFERENCE where that is not set."""
    reference = os.environ.get("RISF_REFERENCE")
    folder = os.environ.get("RISF_REAL") or (Path(reference).parent / "real" if reference else None)
    if folder is None or not (Path(folder) / name).is_dir():
        pytest.skip(f"neither RISF_REAL nor RISF_REFERENCE leads to real/{name}")
    return Path(folder) / name
