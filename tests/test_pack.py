"""Packs: they come back as they were, equal runs give equal bytes, and nothing hostile gets through."""

import hashlib
import io
import json
import stat
import zipfile

import numpy as np
import pytest

from risf_core import pack, packs
from risf_core.detections import Detections, Similarities
from risf_core.errors import DataError, ParamsError
from risf_core.ground_truth import GroundTruth
from risf_core.packs import MANIFEST, MANIFEST_HASH, PackedRun, read_unpacked, unpack, write_pack
from risf_core.records import read_records
from tests.test_evaluation import BOX, FAR, OTHER, data_of, detections_of, image

RUN = "fine_tuning-split1-1shot-01234567"
CELL = "seed0-kshot-ce.npz"


def truth_of(*images, names=("anchor", "star", "key")):
    return GroundTruth(data_of(*images), names[:1], names[1:], {})


TRUTH = truth_of(image(1, [(BOX, 0), (OTHER, 1)]), image(2, [(FAR, 2, True)]))


def record_of(run_id=RUN, **values):
    row = {
        "split": 1,
        "seed": 0,
        "arm": "kshot",
        "loss": "ce",
        "repeat": 0,
        "rescoring": "none",
        "nAP50": 50.0,
    }
    record = {"schema": 1, "run_id": run_id, "notebook": "20_fine_tuning", "params": {"profile": "mini"}}
    record |= {"rows": [row], "metrics": {}, "upstream": {}, "data_hash": "d", "state_hash": "s"}
    return {**record, "environment": {"host": "a-private-name", "cpu_seconds": 3.5}, **values}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("RISF_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def run(project):
    folder = project / "artifacts"
    detections_of((1, BOX, 0, 0.9), (2, FAR, 1, 0.4)).save(folder / "detections" / CELL)
    names = ("anchor", "background")
    Similarities(np.full((2, 2), 0.3), np.ones(2, bool), names).save(folder / "similarities" / CELL)
    (folder / "clip.json").write_text('{"learned_temperature": 16.5}')
    names = (f"detections/{CELL}", f"similarities/{CELL}", "clip.json")
    return PackedRun(record_of(), "mini", {name: folder / name for name in names}, {"1": TRUTH})


@pytest.fixture
def made(run, project):
    path = project / "theirs.risf.zip"
    write_pack(path, [run])
    return path


def changed(path, change, *, honest=True):
    """The pack with other contents; with new hashes if ``honest``, so that only the contents can give it away."""
    with zipfile.ZipFile(path) as file:
        contents = {name: file.read(name) for name in file.namelist()}
    manifest = json.loads(contents.pop(MANIFEST))
    del contents[MANIFEST_HASH]
    change(contents, manifest)
    if honest:
        facts = {
            name: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for name, c in contents.items()
        }
        manifest["files"] = facts
    text = json.dumps(manifest).encode()
    contents = {MANIFEST: text, MANIFEST_HASH: hashlib.sha256(text).hexdigest().encode(), **contents}
    target = path.with_name("changed.risf.zip")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in contents.items():
            file.writestr(name, content)
    return target


def refused(path, project, match):
    """The error of unpacking, of which nothing stays behind."""
    before = sorted(project.rglob("*"))
    with pytest.raises(DataError, match=match) as error:
        unpack(path, packs.foreign_root() / "theirs")
    there = [one for one in sorted(project.rglob("*")) if one not in before]
    assert there in ([], [project / "results", packs.foreign_root()])
    return str(error.value)


# ------------------------------------------------------------ there and back


def test_a_pack_comes_back_as_it_was(made, run, project):
    folder = packs.foreign_root() / "theirs"
    manifest = unpack(made, folder)
    assert [entry["run_id"] for entry in manifest["runs"]] == [RUN]
    for name, file in run.files.items():
        assert (folder / "artifacts" / RUN / name).read_bytes() == file.read_bytes()
    (record,), listed = read_unpacked(folder)
    origin = record.pop("origin")
    assert origin["pack"] == "theirs.risf.zip" and origin["profile"] == "mini" and len(origin["sha256"]) == 64
    assert record == {**record_of(), "environment": {"cpu_seconds": 3.5}}  # the machine's name stays at home
    test = json.loads((folder / listed["runs"][0]["tests"]["1"]).read_bytes())
    back = GroundTruth.from_json(test, where="t")
    assert back.hash() == TRUTH.hash() and back.hash("gfsod") == TRUTH.hash("gfsod") and not back.has_images


def test_equal_runs_give_equal_bytes(run, project):
    other = PackedRun(record_of("fine_tuning-split1-1shot-aaaaaaaa"), "mini", {}, {"1": TRUTH})
    write_pack(project / "a.risf.zip", [run, other])
    for file in run.files.values():
        file.touch()
    write_pack(project / "b.risf.zip", [other, run])
    assert (project / "a.risf.zip").read_bytes() == (project / "b.risf.zip").read_bytes()
    assert not list(project.glob(".*"))


def test_no_profile_reads_what_was_unpacked(made, project):
    unpack(made, packs.foreign_root() / "theirs")
    assert read_records("mini", all=True) == [] and read_records("foreign", all=True) == []


def test_the_hash_of_test_data_is_of_images_and_objects_alone():
    moved = truth_of(image(2, [(FAR, 2, True)]), image(1, [(OTHER, 1), (BOX, 0)]))  # another order
    assert moved.hash("gfsod") == TRUTH.hash("gfsod")
    without = truth_of(image(1, [(OTHER, 1)]), image(2, [(FAR, 2, True)]))  # a base object less
    assert without.hash("gfsod") != TRUTH.hash("gfsod") and without.hash("fsod") == TRUTH.hash("fsod")
    no_crowd = truth_of(image(1, [(BOX, 0), (OTHER, 1)]), image(2, [(FAR, 2)]))
    assert no_crowd.hash("fsod") != TRUTH.hash("fsod")


def test_a_folder_that_is_there_is_refused(made, project):
    unpack(made, packs.foreign_root() / "theirs")
    with pytest.raises(ParamsError, match="is there already"):
        unpack(made, packs.foreign_root() / "theirs")


def test_what_changed_since_it_was_unpacked_is_named(made, project):
    folder = packs.foreign_root() / "theirs"
    unpack(made, folder)
    record = folder / "records" / f"{RUN}.json"
    record.write_text(record.read_text().replace("50.0", "90.0"))
    with pytest.raises(DataError, match=rf"{RUN}\.json: missing or changed since it was unpacked"):
        read_unpacked(folder)
    with pytest.raises(DataError, match="no pack is unpacked there"):
        read_unpacked(project)


# ------------------------------------------------------------ damage


def test_a_changed_byte_in_any_file_is_named(made, project):
    with zipfile.ZipFile(made) as file:
        names = [name for name in file.namelist() if name not in (MANIFEST, MANIFEST_HASH)]
    assert len(names) == 5
    for name in names:

        def change(contents, manifest, name=name):
            content = bytearray(contents[name])
            content[len(content) // 2] ^= 1
            contents[name] = bytes(content)

        assert name in refused(changed(made, change, honest=False), project, "its manifest says")


def test_a_flipped_bit_of_the_packed_file_is_refused(made, project):
    """In the packed bytes of each member, where zip's own checksum may speak first."""
    with zipfile.ZipFile(made) as file:
        places = {info.filename: info.header_offset + 30 + len(info.filename) for info in file.infolist()}
    whole = made.read_bytes()
    for name, place in places.items():
        content = bytearray(whole)
        content[place + 10] ^= 4
        damaged = made.with_name("damaged.risf.zip")
        damaged.write_bytes(content)
        assert name in refused(damaged, project, "cannot be read|manifest")


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04" + b"\0" * 60])
def test_what_is_no_zip_is_refused(content, project):
    path = project / "x.risf.zip"
    path.write_bytes(content)
    refused(path, project, "not a readable pack")
    refused(project / "none.risf.zip", project, "there is no such file")


def test_files_beside_the_manifest_are_refused(made, project):
    def lose(contents, manifest):
        del contents[f"artifacts/{RUN}/clip.json"]

    def slip_in(contents, manifest):
        contents["records/other.json"] = b"{}"

    refused(changed(made, lose, honest=False), project, "clip.json is in its manifest and not in it")
    refused(changed(made, slip_in, honest=False), project, "records/other.json is not in its manifest")
    refused(changed(made, slip_in), project, "records/other.json belongs to no run")


def test_a_changed_manifest_is_refused(made, project):
    with zipfile.ZipFile(made) as file:
        contents = {name: file.read(name) for name in file.namelist()}
    contents[MANIFEST] = contents[MANIFEST].replace(b'"mini"', b'"full"')
    with zipfile.ZipFile(made, "w") as file:
        for name, content in contents.items():
            file.writestr(name, content)
    refused(made, project, "SHA-256 of manifest.json")


# ------------------------------------------------------------ hostile


@pytest.mark.parametrize(
    "name",
    ["../evil.json", "/etc/evil.json", "records/../../evil.json", "records/..", "C:\\evil.json", "records\\evil.json",
     "records/.hidden.json", "records/a/b.json", "records/", "evil.py", "tests/abc.json", "artifacts/x/weights/y.pth"],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_refused(name, made, project):
    def change(contents, manifest):
        contents[name] = b"{}"

    refused(changed(made, change), project, "is no name of a pack's file|is a link, a folder")
    assert not list(project.parent.glob("evil*"))


def raw(path, *entries):
    """A zip file of (ZipInfo or name, content)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries:
            file.writestr(name, content, zipfile.ZIP_DEFLATED)
    return path


def test_links_are_refused(project):
    link = zipfile.ZipInfo(f"records/{RUN}.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    refused(raw(project / "x.risf.zip", (link, "/etc/passwd")), project, "is a link, a folder or a device")


def test_a_name_twice_is_refused(project):
    path = project / "x.risf.zip"
    with pytest.warns(UserWarning, match="Duplicate name"):
        raw(path, ("records/a.json", "1"), ("records/a.json", "2"))
    refused(path, project, "is in it twice")
    refused(raw(path, ("records/a.json", "1"), ("records/A.json", "2")), project, "is in it twice")


def test_bombs_are_refused_by_their_declared_size(made, project):
    bomb = raw(project / "x.risf.zip", (f"records/{RUN}.json", b"0" * (64 * 2**20)))
    assert bomb.stat().st_size < 2**20
    refused(bomb, project, "67108864 bytes would come out of")


def test_a_file_longer_than_its_manifest_says_is_refused(made, project):
    def change(contents, manifest):
        contents[f"artifacts/{RUN}/clip.json"] += b" "

    refused(changed(made, change, honest=False), project, "clip.json has the SHA-256")


def test_an_encrypted_pack_is_refused(made, project):
    content = bytearray(made.read_bytes())
    place = content.index(b"PK\x01\x02")
    content[place + 8] |= 1
    made.write_bytes(content)
    refused(made, project, "is encrypted")


class _Harm:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was read",))


def npz(save=np.savez, **arrays):
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def with_array(made, name, array, **options):
    """The pack with one array of the stored detections replaced; hashes are right."""

    def change(contents, manifest):
        member = f"artifacts/{RUN}/detections/{CELL}"
        with np.load(io.BytesIO(contents[member])) as file:
            arrays = dict(file) | {name: array}
        contents[member] = npz(**arrays, **options)

    return changed(made, change)


def test_pickles_are_refused(made, project):
    hostile = with_array(made, "scores", np.array([_Harm(), _Harm()], dtype=object))
    message = refused(hostile, project, "holds Python objects, whose reading can run code")
    assert f"artifacts/{RUN}/detections/{CELL}" in message and str(packs.foreign_root()) not in message


def test_compressed_arrays_are_refused(made, project):
    refused(with_array(made, "scores", np.zeros(2), save=np.savez_compressed), project, "is compressed")


def test_an_array_that_claims_to_be_large_is_refused(made, project):
    def change(contents, manifest):
        member = f"artifacts/{RUN}/detections/{CELL}"
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(contents[member])) as file, zipfile.ZipFile(buffer, "w") as other:
            for name in file.namelist():
                content = file.read(name)
                if name == "scores.npy":
                    content = content.replace(b"(2,), ", b"(9,), ")
                other.writestr(name, content)
        contents[member] = buffer.getvalue()

    refused(changed(made, change), project, r"claims the shape \(9,\), which its size does not hold")


def test_detections_that_are_none_are_refused(made, project):
    refused(with_array(made, "scores", np.array([0.5, np.nan])), project, "a score is not finite")
    refused(with_array(made, "labels", np.array([0, 7])), project, "labels reach from 0 to 7")

    def change(contents, manifest):
        names = ("anchor", "background")
        contents[f"artifacts/{RUN}/similarities/{CELL}"] = npz(
            cosines=np.zeros((3, 2), np.float32), encoded=np.ones(3, bool), label_names=np.array(names)
        )

    refused(changed(made, change), project, "has not as many rows as its detections")


@pytest.mark.parametrize(
    "values, match",
    [
        ({"run_id": "another"}, "is no record of"),
        ({"rows": [1]}, "is no record of"),
        ({"notebook": "99_other"}, "is no record of"),
        ({"metrics": {"note": "\x1b[2J"}}, "which no terminal should print"),
        ({"rows": [{"a\nb": 1}]}, "which no terminal should print"),
        ({"metrics": {"x": float("nan")}}, "NaN is no number"),
    ],
)
def test_records_that_are_none_are_refused(values, match, made, project):
    def change(contents, manifest):
        contents[f"records/{RUN}.json"] = json.dumps(record_of(**values)).encode()

    refused(changed(made, change), project, match)


@pytest.mark.parametrize(
    "key, value",
    [("boxes", [[5, 5, 1, 9]]), ("boxes", [[0, 0, "x", 1]]), ("labels", [9]), ("is_crowd", [3]), ("id", True),
     ("height", 0), ("boxes", [[0, 0, 1e400, 2]])],
)  # fmt: skip
def test_test_data_that_are_none_are_refused(key, value, made, project):
    def change(contents, manifest):
        name = next(name for name in contents if name.startswith("tests/"))
        content = json.loads(contents[name])
        content["images"][1] |= {key: value}
        contents[name] = json.dumps(content).replace("Infinity", "1e400").encode()

    refused(changed(made, change), project, "not the test data of a pack")


def test_deep_json_is_refused(made, project):
    def change(contents, manifest):
        contents[f"artifacts/{RUN}/clip.json"] = b"[" * 50_000 + b"]" * 50_000

    refused(changed(made, change), project, "clip.json is not JSON")


def test_a_manifest_of_another_form_is_refused(made, project):
    def version(contents, manifest):
        manifest["version"] = 2

    def runs(contents, manifest):
        manifest["runs"][0]["tests"] = {"1": "tests/../../x"}

    refused(changed(made, version), project, "version 2")
    refused(changed(made, runs), project, "does not list runs and files")


def test_a_run_with_an_odd_name_is_not_packed(run, project):
    for run_id in ("../x", "a b", ""):
        with pytest.raises(ParamsError, match="cannot be packed"):
            write_pack(project / "x.risf.zip", [PackedRun(record_of(run_id), "mini", {})])
    with pytest.raises(ParamsError, match="it is given twice"):
        write_pack(project / "x.risf.zip", [run, run])


# ------------------------------------------------------------ the command line


@pytest.fixture
def own_record(project):
    """A record without detections and without a split in this project."""
    record = record_of("tiny_clip-resnet-01234567", notebook="12_tiny_clip", rows=[])
    path = project / "results" / "mini" / "records" / f"{record['run_id']}.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record))
    return path


def test_the_command_packs_checks_and_unpacks(own_record, project, capsys):
    file = project / "out" / "mine.risf.zip"
    assert pack.main(["make", str(file), str(own_record)]) == 0
    assert "1 record, 0 files of detections" in capsys.readouterr().out
    assert pack.main(["check", str(file)]) == 0 and not packs.foreign_root().exists()
    assert pack.main(["unpack", str(file)]) == 0
    assert "compare it as foreign/mine" in capsys.readouterr().out
    assert read_unpacked(packs.foreign_root() / "mine")[0][0]["origin"]["pack"] == "mine.risf.zip"


def test_the_command_refuses_in_one_line(own_record, project, capsys):
    file = project / "mine.risf.zip"
    assert pack.main(["make", str(project / "mine.zip"), str(own_record)]) == 2
    assert "expected a name that ends in .risf.zip" in capsys.readouterr().err
    assert pack.main(["make", str(file), str(own_record)]) == 0
    assert pack.main(["make", str(file), str(own_record)]) == 2
    assert "is there already. Give another name, or --overwrite" in capsys.readouterr().err
    assert pack.main(["make", str(file), str(own_record), "--overwrite"]) == 0
    assert pack.main(["make", str(project / "b.risf.zip"), str(file)]) == 2
    assert "is a pack of others already" in capsys.readouterr().err
    assert pack.main(["unpack", str(file), "--name", "../up"]) == 2
    assert "is no name for a folder" in capsys.readouterr().err
    file.write_bytes(file.read_bytes()[:-30])
    assert pack.main(["check", str(file)]) == 2
    assert capsys.readouterr().err.startswith(f"DataError: {file}: not a readable pack")
    with pytest.raises(SystemExit) as stop:
        pack.main(["make"])
    assert stop.value.code == 2


def test_detections_round_trip_through_a_pack(made, run, project):
    folder = packs.foreign_root() / "theirs"
    unpack(made, folder)
    back = Detections.load(folder / "artifacts" / RUN / "detections" / CELL)
    assert back.scores.tolist() == pytest.approx([0.9, 0.4])
