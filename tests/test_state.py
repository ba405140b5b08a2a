"""State hashes: every change that may change a number changes them, and no other does."""

import json
import shutil

import pytest

from risf_core.errors import DataError, ParamsError
from risf_core.params import BaseTrainingParams, CheckSetupParams, FineTuningParams, ResultsParams
from risf_core.runs import state
from tests.notebook_files import write_notebook

MODULES = {
    "__init__.py": '__version__ = "1"\n',
    "a.py": "from risf_core import b\nfrom risf_core.sub import inner\n\ndef f():\n    return b.x\n",
    "b.py": "import json\n\ndef late():\n    import risf_core.c\n",
    "c.py": "x = 1\n",
    "unused.py": "x = 1\n",
    "tables.py": "from risf_core import unused\n",
    "records.py": "from risf_core import unused\n",
    "sub/__init__.py": "",
    "sub/inner.py": "from . import sibling\nfrom .deep.leaf import x\nfrom ..d import y\n",
    "sub/sibling.py": "x = 1\n",
    "sub/deep/__init__.py": "",
    "sub/deep/leaf.py": "CONFIGS = 'configs'\nx = 1\n",
    "d.py": "y = 1\n",
    "configs/tower.json": "{}",
    "other/notes.txt": "",
}


@pytest.fixture
def package(tmp_path):
    """A made-up package whose modules import one another in every way."""
    root = tmp_path / "risf_core"
    for name, text in MODULES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def notebook(tmp_path):
    return write_notebook(
        tmp_path / "notebooks" / "n.ipynb", "import risf_core.a as a\nfrom risf_core import tables, records"
    )


def _hash(notebook, package, **keywords):
    return state.code_hash(notebook, package=package, **keywords)


def test_the_closure_follows_every_kind_of_import(package):
    found = state.import_closure(["from risf_core.a import f"], package=package)
    assert set(found) == {
        f"risf_core.{name}"
        for name in ("a", "b", "c", "d", "sub", "sub.inner", "sub.sibling", "sub.deep", "sub.deep.leaf")
    }
    assert found["risf_core.sub"] == package / "sub" / "__init__.py"
    assert set(state.import_closure(["from risf_core import unused, b as other"], package=package)) == {
        "risf_core.unused", "risf_core.b", "risf_core.c",
    }  # fmt: skip
    assert state.import_closure(["import json, numpy.risf_core", "x = 'risf_core.a'"], package=package) == {}


def test_comments_docstrings_and_layout_change_nothing(package, notebook):
    before = _hash(notebook, package)
    (package / "c.py").write_text('"""Now with a docstring."""\n\n# and a comment\nx   =  (1)\n')
    (package / "b.py").write_text(
        'import json\ndef late():\n    """Imports late."""\n    import risf_core.c  # here\n'
    )
    assert _hash(notebook, package) == before


@pytest.mark.parametrize("name", ["a.py", "b.py", "c.py", "d.py", "sub/sibling.py", "sub/deep/leaf.py"])
def test_code_in_any_imported_file_changes_it(package, notebook, name):
    before = _hash(notebook, package)
    (package / name).write_text(MODULES[name] + "\nz = 2\n")
    assert _hash(notebook, package) != before


@pytest.mark.parametrize("name", ["unused.py", "tables.py", "records.py", "__init__.py", "other/notes.txt"])
def test_other_files_change_nothing(package, notebook, name):
    before = _hash(notebook, package)
    (package / name).write_text(MODULES[name] + "\nz = 2\n")
    assert _hash(notebook, package) == before


def test_a_data_file_counts_where_a_module_names_its_folder(package, notebook):
    before = _hash(notebook, package)
    (package / "configs" / "tower.json").write_text('{"width": 16}')
    assert _hash(notebook, package) != before


def test_modules_that_show_count_for_a_run_that_shows(package, notebook):
    before = _hash(notebook, package, with_showing=True)
    (package / "unused.py").write_text("x = 2\n")  # imported by tables
    assert _hash(notebook, package, with_showing=True) != before


def test_notebook_code_counts_and_its_parameters_do_not(package, tmp_path):
    path = tmp_path / "n.ipynb"
    first = _hash(write_notebook(path, "%matplotlib inline\nx = 1"), package)
    assert _hash(write_notebook(path, "x = 1  # why"), package) == first
    assert _hash(write_notebook(path, "x = 1", parameters="shots = 7"), package) == first
    assert _hash(write_notebook(path, "x = 2"), package) != first
    with pytest.raises(ParamsError, match="not Python"):
        _hash(write_notebook(path, "x = = 2"), package)
    path.write_text("{}")
    with pytest.raises(ParamsError, match="not a notebook"):
        _hash(path, package)
    with pytest.raises(ParamsError, match="no such notebook"):
        _hash(tmp_path / "none.ipynb", package)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a base run and a fine-tuning that builds on it."""
    monkeypatch.setenv("RISF_ROOT", str(tmp_path))
    for name in ("00_check_setup", "10_base_training", "20_fine_tuning", "40_results"):
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", "x = 1")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "10_base_training.yaml").write_text("profile: smoke\n")
    return tmp_path


FINE_TUNING = FineTuningParams(profile="smoke", base="base/10_base_training.yaml")


def test_the_state_follows_upstream_runs(project):
    before, base = state.state_hash(FINE_TUNING), state.state_hash(BaseTrainingParams(profile="smoke"))
    assert state.upstream_states(FINE_TUNING) == {state.run_id(BaseTrainingParams(profile="smoke")): base}
    write_notebook(project / "notebooks" / "10_base_training.ipynb", "x = 2")
    assert state.state_hash(FINE_TUNING) != before
    write_notebook(project / "notebooks" / "10_base_training.ipynb", "x = 1")
    assert state.state_hash(FINE_TUNING) == before
    (project / "base" / "10_base_training.yaml").write_text("profile: smoke\nsolver: {lr: 0.3}\n")
    assert state.state_hash(FINE_TUNING) != before


def test_the_state_holds_annotation_files(project):
    files = {"annotations": "a.json", "images": "images", "novel_classes": ["cat"]}
    params = CheckSetupParams(profile="smoke", data={"source": "coco", **files})
    with pytest.raises(DataError, match="no such annotation file"):
        state.state_hash(params)
    (project / "a.json").write_text("{}")
    before = state.state_hash(params)
    (project / "a.json").write_text('{"images": []}')
    assert state.state_hash(params) != before


def test_the_state_holds_the_annotations_of_a_folder(project):
    data = {"source": "xml", "images": "cards", "novel_classes": ["ace"]}
    params = CheckSetupParams(profile="smoke", data=data)
    with pytest.raises(DataError, match="cards: no such annotation file or folder"):
        state.state_hash(params)
    (project / "cards" / "more").mkdir(parents=True)
    (project / "cards" / "a.xml").write_text("<a/>")
    before = state.state_hash(params)
    (project / "cards" / "a.xml").write_text("<annotation/>")
    changed = state.state_hash(params)
    assert changed != before
    (project / "cards" / "more" / "b.xml").write_text("<a/>")
    assert state.state_hash(params) not in (before, changed)


@pytest.mark.parametrize(
    "data",
    [
        {"source": "xml", "images": "cards", "novel_classes": ["ace"]},
        {"source": "voc", "voc2007": "devkit", "voc2012": None, "splits": "lists"},
    ],
    ids=["xml", "voc"],
)
def test_the_state_holds_names_and_sizes_of_images(project, data):
    """Their content is not read; that a folder is looked at once in a process is undone here."""
    for folder in ("cards/more", "devkit/JPEGImages", "devkit/Annotations", "devkit/ImageSets/Main", "lists"):
        (project / folder).mkdir(parents=True)
    image = project / ("cards/more" if data["source"] == "xml" else "devkit/JPEGImages") / "a.jpg"
    params = CheckSetupParams(profile="smoke", data=data)

    def looked_at_anew():
        state._names_and_sizes.cache_clear()
        return state.state_hash(params)

    states = [looked_at_anew()]
    for content in (b"1234", b"12345"):
        image.write_bytes(content)
        states.append(looked_at_anew())
    image.rename(image.with_name("b.jpg"))
    states.append(looked_at_anew())
    assert len(set(states)) == 4 and looked_at_anew() == states[-1]


def _write_record(params, /, **changes):
    path = state.record_path(params)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "run_id": state.run_id(params),
        "notebook": params.notebook,
        "params": params.model_dump(mode="json"),
        "state_hash": state.state_hash(params),
    }
    path.write_text(json.dumps(record | changes))
    return path


def test_a_record_is_current_only_with_the_current_state(project):
    params = CheckSetupParams(profile="smoke")
    assert state.finished_record(params) is None
    path = _write_record(params)
    assert state.finished_record(params)["run_id"] == state.run_id(params)
    assert state.why_not_current(path) == ""
    _write_record(params, state_hash="0" * 64)
    assert state.finished_record(params) is None
    assert "other code, data or upstream" in state.why_not_current(path)
    _write_record(params, params={"profile": "smoke", "gone": 1})
    assert "not valid now" in state.why_not_current(path)
    path.write_text('{"run_id":')
    assert state.finished_record(params) is None and "not readable" in state.why_not_current(path)
    copied = path.with_name("copy.json")
    shutil.copy(_write_record(params), copied)
    assert "another run id" in state.why_not_current(copied)


def test_a_run_that_reads_all_records_depends_on_those_that_are_current(project):
    results = ResultsParams(profile="smoke")
    empty = state.state_hash(results)
    _write_record(CheckSetupParams(profile="smoke", seed=1), state_hash="0" * 64)  # out of date: not counted
    assert state.state_hash(results) == empty
    _write_record(CheckSetupParams(profile="smoke", seed=1))
    one = state.state_hash(results)
    assert one != empty
    _write_record(results)  # itself does not count
    assert state.state_hash(results) == one
    _write_record(CheckSetupParams(profile="smoke", seed=2))
    assert state.state_hash(results) != one
