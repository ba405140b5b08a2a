"""Records with their detections in one file, to be compared with those of others: written, checked, and unpacked.

A pack is a zip file: ``manifest.json`` with the SHA-256 of every other member (its own stands in ``manifest.sha256``),
``records/``, ``artifacts/<run id>/`` with stored detections and similarities as a run has them, and ``tests/`` with the
annotations of the test images. Equal contents give equal bytes. Nothing in a pack is trusted: names, sizes, hashes and
the form of every file are checked before anything of it is used, and nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from risf_core.detections import Detections, Similarities
from risf_core.errors import DataError, ParamsError
from risf_core.ground_truth import GroundTruth
from risf_core.notebook_models import MODELS
from risf_core.npz_files import check_npz
from risf_core.runs.yaml_files import project_root

FORMAT, VERSION = "risf pack", 1
ENDING = ".risf.zip"
MANIFEST, MANIFEST_HASH, UNPACKED = "manifest.json", "manifest.sha256", "unpacked.json"
DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that zip knows: the same runs give the same bytes
MAX_MEMBERS, MAX_BYTES, MAX_MANIFEST, MAX_RATIO = 100_000, 16 * 2**30, 64 * 2**20, 100
PART = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}"
MEMBER = re.compile(
    rf"records/{PART}\.json|artifacts/{PART}/clip\.json|artifacts/{PART}/(detections|similarities)/{PART}\.npz"
    r"|tests/[0-9a-f]{64}\.json"
)
CELL = ("split", "setting", "arm", "shots", "loss", "rescoring", "seed", "repeat")  # what names a row
AGAIN = "The file is damaged or was changed: ask for it anew."


@dataclass(frozen=True, eq=False)
class PackedRun:
    """A record with what belongs to it, to be packed.

    Attributes:
        record: The record.
        profile: Of its project.
        files: Path in the pack, below ``artifacts/<run id>/``, to the file.
        truths: Split to the test data it was judged on.
    """

    record: Mapping[str, Any]
    profile: str
    files: Mapping[str, Path]
    truths: Mapping[str, GroundTruth] = field(default_factory=dict)


def foreign_root() -> Path:
    """Where packs of others are unpacked, each in a folder of its own; no profile's records are read from there."""
    return project_root() / "results" / "foreign"


def write_pack(path: Path, runs: Sequence[PackedRun]) -> dict[str, Any]:
    """Write runs as one file; it appears whole or not at all, and the same runs give the same bytes.

    The name of the machine (``environment.host``) is left out.

    Returns:
        The manifest.

    Raises:
        ParamsError: If two of the runs have one id, or a name has a character that a pack does not take.
    """
    contents: dict[str, bytes | Path] = {}
    listed = []
    for run in sorted(runs, key=lambda run: run.record["run_id"]):
        run_id = run.record["run_id"]
        tests = {}
        for split, truth in run.truths.items():
            text = json.dumps(truth.to_json(), sort_keys=True, separators=(",", ":")).encode()
            tests[split] = f"tests/{hashlib.sha256(text).hexdigest()}.json"
            contents[tests[split]] = text
        environment = {k: v for k, v in (run.record.get("environment") or {}).items() if k != "host"}
        record = json.dumps({**run.record, "environment": environment}, indent=1, sort_keys=True).encode()
        members = {f"records/{run_id}.json": record}
        members |= {f"artifacts/{run_id}/{name}": file for name, file in run.files.items()}
        for name, content in members.items():
            if not MEMBER.fullmatch(name) or name in contents:
                why = "it is given twice" if name in contents else "a pack takes no such name"
                raise ParamsError(
                    f"{name} cannot be packed: {why}. Expected runs of 20_fine_tuning, each once."
                )
            contents[name] = content
        entry = {"run_id": run_id, "profile": run.profile, "notebook": run.record["notebook"]}
        listed.append(entry | {"tests": dict(sorted(tests.items()))})
    files = {name: _facts(content) for name, content in sorted(contents.items())}
    manifest = {"format": FORMAT, "version": VERSION, "runs": listed, "files": files}
    text = _manifest_text(manifest)
    first = {MANIFEST: text, MANIFEST_HASH: hashlib.sha256(text).hexdigest().encode()}
    _write_zip(path, first | dict(sorted(contents.items())))
    return manifest


def _manifest_text(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, indent=1, sort_keys=True).encode()


def _facts(content: bytes | Path) -> dict[str, Any]:
    if isinstance(content, bytes):
        return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return {"bytes": content.stat().st_size, "sha256": file_hash(content)}


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_zip(path: Path, contents: Mapping[str, bytes | Path]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as pack:
            for name, content in contents.items():
                info = zipfile.ZipInfo(name, DATE)
                info.compress_type, info.create_system = zipfile.ZIP_DEFLATED, 3
                info.external_attr = (stat.S_IFREG | 0o644) << 16
                info.file_size = len(content) if isinstance(content, bytes) else content.stat().st_size
                with pack.open(info, "w") as member:
                    if isinstance(content, bytes):
                        member.write(content)
                    else:
                        with content.open("rb") as file:
                            shutil.copyfileobj(file, member, 2**20)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# --- reading ------------------------------------------------------------------------------------------------------


def unpack(path: Path, folder: Path) -> dict[str, Any]:
    """Check a pack and lay its files out in a new folder; the folder is there whole or not at all.

    Each record says in ``origin`` which pack it comes from.

    Returns:
        The manifest.

    Raises:
        DataError: If anything in the pack is not as it must be; the file is named.
        ParamsError: If the folder is there already.
    """
    if folder.exists():
        raise ParamsError(f"{folder} is there already. Remove it, or give another name.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder.parent) as place:
        target = Path(place) / "pack"
        target.mkdir()
        manifest = _extract(path, target)
        _check_contents(path, target, manifest)
        origin = {"pack": path.name, "sha256": file_hash(path)}
        for run in manifest["runs"]:
            record_path = target / "records" / f"{run['run_id']}.json"
            record = json.loads(record_path.read_bytes())
            record["origin"] = origin | {"profile": run["profile"]}
            record_path.write_text(json.dumps(record, indent=1, sort_keys=True), encoding="utf-8")
        hashes = {name: file_hash(target / name) for name in manifest["files"]}
        listed = origin | {"files": hashes, "manifest": manifest}
        (target / UNPACKED).write_text(json.dumps(listed, indent=1, sort_keys=True), encoding="utf-8")
        os.replace(target, folder)
    return manifest


def _extract(path: Path, target: Path) -> dict[str, Any]:
    """Write all members below ``target``, each hashed on the way, and return the manifest."""
    try:
        with zipfile.ZipFile(path) as pack:
            _check_entries(path, pack.infolist())
            manifest = _read_manifest(path, pack)
            names = {info.filename for info in pack.infolist()} - {MANIFEST, MANIFEST_HASH}
            for name in sorted(names ^ manifest["files"].keys()):
                what = "is not in its manifest" if name in names else "is in its manifest and not in it"
                _refuse(path, f"{name} {what}", AGAIN)
            for name, facts in manifest["files"].items():
                _extract_member(path, pack, name, facts, target / name)
            return manifest
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file. Expected a pack, *{ENDING}.") from None
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError) as error:
        raise DataError(f"{path}: not a readable pack ({error}). {AGAIN}") from None


def _check_entries(path: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse names that lead elsewhere, links, encryption, and sizes that no pack of this project has."""
    seen: set[str] = set()
    for info in entries:
        name = info.filename
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            _refuse(path, f"{name!r} is a link, a folder or a device")
        if name not in (MANIFEST, MANIFEST_HASH) and not MEMBER.fullmatch(name):
            _refuse(path, f"{name!r} is no name of a pack's file")
        if name.lower() in seen:
            _refuse(path, f"{name!r} is in it twice")
        if info.flag_bits & 0x1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            _refuse(path, f"{name!r} is encrypted or packed in another way")
        seen.add(name.lower())
    total, packed = sum(info.file_size for info in entries), path.stat().st_size
    if len(entries) > MAX_MEMBERS or total > min(MAX_BYTES, MAX_RATIO * packed + 2**20):
        _refuse(path, f"{len(entries)} files of {total} bytes would come out of {packed} bytes")


def _read_manifest(path: Path, pack: zipfile.ZipFile) -> dict[str, Any]:
    for name, limit in ((MANIFEST, MAX_MANIFEST), (MANIFEST_HASH, 64)):
        if name not in pack.namelist() or pack.getinfo(name).file_size > limit:
            _refuse(path, f"there is no {name} in it, or it is too large", f"Expected a pack, *{ENDING}.")
    text = _member_bytes(path, pack, MANIFEST)
    if hashlib.sha256(text).hexdigest().encode() != _member_bytes(path, pack, MANIFEST_HASH):
        _refuse(path, f"the SHA-256 of {MANIFEST} is not the one in {MANIFEST_HASH}", AGAIN)
    manifest = _json(path, MANIFEST, text)
    try:
        if (manifest["format"], manifest["version"]) != (FORMAT, VERSION):
            _refuse(path, f"it is of the form {manifest['format']!r}, version {manifest['version']!r}")
        for facts in manifest["files"].values():
            if not re.fullmatch(r"[0-9a-f]{64}", facts["sha256"]) or type(facts["bytes"]) is not int:
                raise ValueError
        for run in manifest["runs"]:
            named = [f"records/{run['run_id']}.json", *run["tests"].values()]
            if not set(named) <= manifest["files"].keys() or not isinstance(run["profile"], str):
                raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        _refuse(path, f"{MANIFEST} does not list runs and files as it must", AGAIN)
    return manifest


def _member_bytes(path: Path, pack: zipfile.ZipFile, name: str) -> bytes:
    try:
        return pack.read(name)
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, zipfile.zlib.error) as error:
        _refuse(path, f"{name} cannot be read ({error})", AGAIN)


def _extract_member(path: Path, pack: zipfile.ZipFile, name: str, facts: Mapping, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    size, digest = 0, hashlib.sha256()
    try:
        with pack.open(name) as member, target.open("wb") as file:
            while chunk := member.read(2**20):
                size += len(chunk)
                if size > facts["bytes"]:
                    break
                digest.update(chunk)
                file.write(chunk)
    except (zipfile.BadZipFile, EOFError, ValueError, zipfile.zlib.error) as error:
        _refuse(path, f"{name} cannot be read ({error})", AGAIN)
    if size != facts["bytes"] or digest.hexdigest() != facts["sha256"]:
        found = (
            f"{name} has the SHA-256 {digest.hexdigest()[:12]}…, its manifest says {facts['sha256'][:12]}…"
        )
        _refuse(path, found, AGAIN)


def _check_contents(path: Path, target: Path, manifest: Mapping[str, Any]) -> None:
    """Read every file as what it should be."""
    for run in manifest["runs"]:
        name = f"records/{run['run_id']}.json"
        record = _json(path, name, (target / name).read_bytes())
        _check_record(path, name, record, run)
        for test in run["tests"].values():
            GroundTruth.from_json(_json(path, test, (target / test).read_bytes()), where=f"{path}: {test}")
    listed = {run["run_id"] for run in manifest["runs"]}
    for name in manifest["files"]:
        folder, owner, *rest = name.split("/")
        if folder != "tests" and owner.removesuffix("" if rest else ".json") not in listed:
            _refuse(path, f"{name} belongs to no run of its manifest", AGAIN)
        if name.endswith(".npz"):
            _check_arrays(path, target, name)
        elif name.endswith("clip.json") and not isinstance(
            _json(path, name, (target / name).read_bytes()), dict
        ):
            _refuse(path, f"{name} does not hold what a run says of its CLIP", AGAIN)


def _check_arrays(path: Path, target: Path, name: str) -> None:
    """Refuse stored detections or similarities that are none, or do not belong together."""
    file = target / name
    beside = file.parents[1] / "detections" / file.name
    try:
        check_npz(file)
        if file.parent.name == "detections":
            Detections.load(file)
        elif not beside.is_file() or len(Similarities.load(file)) != len(Detections.load(beside)):
            raise DataError(f"{file}: has not as many rows as its detections.")
    except DataError as error:
        raise DataError(f"{path}: {str(error).replace(f'{target}/', '')}") from None


def _check_record(path: Path, name: str, record: Any, run: Mapping[str, Any]) -> None:
    try:
        is_record = record["run_id"] == run["run_id"] and record["notebook"] == run["notebook"]
        is_record &= run["notebook"] in MODELS and isinstance(record["params"], dict)
        is_record &= all(isinstance(row, dict) for row in record["rows"])
        is_record &= not any(
            isinstance(row.get(name), dict | list) for row in record["rows"] for name in CELL
        )
        is_record &= isinstance(record["upstream"], dict) and isinstance(record["data_hash"], str)
        is_record &= {"state_hash", "metrics"} <= record.keys()
    except (KeyError, TypeError, AttributeError):
        is_record = False
    if not is_record:
        _refuse(path, f"{name} is no record of {run.get('run_id')!r}", AGAIN)
    if odd := next((text for text in _texts([record, dict(run)]) if not text.isprintable()), None):
        _refuse(path, f"{name} holds the text {odd[:40]!r}, which no terminal should print")


def _texts(value: Any) -> Iterable[str]:
    """All texts in a JSON value, names as well."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            waiting += [*one, *one.values()]
        elif isinstance(one, list):
            waiting += one


def _json(path: Path, name: str, text: bytes) -> Any:
    def refuse_number(word: str) -> NoReturn:
        raise ValueError(f"{word} is no number")

    try:
        return json.loads(text, parse_constant=refuse_number)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {name} is not JSON ({error}). {AGAIN}") from None


def _refuse(path: Path, found: str, advice: str = "Nothing of it is unpacked.") -> NoReturn:
    raise DataError(f"{path}: {found}. {advice}")


def read_unpacked(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The records of an unpacked pack, after its files have been checked once more.

    Returns:
        The records, each with its ``origin``, and the manifest.

    Raises:
        DataError: If the folder is not that of a pack, or a file in it has changed since.
    """
    try:
        listed = json.loads((folder / UNPACKED).read_bytes())
        hashes, manifest = dict(listed["files"]), listed["manifest"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            f"{folder}: no pack is unpacked there ({UNPACKED}). Expected what `python -m risf_core.pack unpack` made."
        ) from None
    for name, expected in hashes.items():
        file = folder / name
        if not MEMBER.fullmatch(name) or not file.is_file() or file_hash(file) != expected:
            raise DataError(
                f"{file}: missing or changed since it was unpacked. Unpack {listed['pack']} anew."
            )
    records = [
        json.loads((folder / "records" / f"{run['run_id']}.json").read_bytes()) for run in manifest["runs"]
    ]
    return records, manifest
