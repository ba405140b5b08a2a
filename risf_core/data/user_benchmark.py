"""The user's own images as a benchmark: a COCO file, or a folder of XML files, with a list of novel classes.

The K-shot sets are drawn here and written (`DrawnShots`), or given: in TFA's layout (`PublishedShots`), or as one COCO
file for each K (`ShotFiles`).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from risf_core.data.benchmark import Benchmark, files_of, hash_files, load_layout, partition
from risf_core.data.coco import file_name, load_coco, write_coco, write_json
from risf_core.data.dataset import DetectionData, suggest
from risf_core.data.few_shot import draw_few_shot, write_few_shot
from risf_core.data.image_split import split_images
from risf_core.data.loader import check_images
from risf_core.data.voc import load_xml_folder
from risf_core.errors import DataError, SplitError
from risf_core.runs.yaml_files import project_path

if TYPE_CHECKING:
    from risf_core.data_params import CocoData, XmlData

logger = logging.getLogger(__name__)

SEED_STRIDE = 1000  # between the draws of one data seed and the next
DRAW_VERSION = 3  # raise it whenever the same parameters give another image split or other draws
MAX_DECODED = (
    20_000  # images decoded once when sets are drawn; those of larger sets are checked as they are read
)
GENERIC_FOLDERS = {"train", "trainval", "images", "jpegimages"}
PATHS = ("root", "images", "annotations", "test_images", "test_annotations")


def open_user_data(data: CocoData | XmlData, split: int) -> Benchmark:
    """Open the user's data, and first draw and write what is to be drawn.

    Raises:
        DataError: If annotations or images are wrong.
        SplitError: If the partition or a draw of the novel classes is impossible.
    """
    where = data.annotations or data.images
    if split != 1:
        raise SplitError(
            f"{where}: there is no split {split}. Expected 1: data of one's own have one partition."
        )
    data = _with_absolute_paths(data)
    for name in data.files():
        if not project_path(name).exists():
            raise DataError(f"{name} does not exist. Expected an annotation file or folder; check the path.")
    if data.few_shot.kind == "drawn":
        return _open_drawn(data)
    return _open_given(data)


def _with_absolute_paths(data: CocoData | XmlData) -> CocoData | XmlData:
    paths = {key: getattr(data, key) for key in PATHS if getattr(data, key) is not None}
    return data.model_copy(update={key: str(project_path(path)) for key, path in paths.items()})


def load_whole(data: CocoData | XmlData, name: str | None = None) -> DetectionData:
    """The images that are no test images of their own, with all their boxes."""
    options = {"name": name, "drop_invalid": data.drop_invalid}
    if data.source == "coco":
        return load_coco(data.annotations, data.images, **options)
    return load_xml_folder(data.images, data.annotations, **options)


def load_given_test(
    data: CocoData | XmlData, name: str, *, class_names: Sequence[str] | None
) -> DetectionData:
    """The test images that the parameters name; a class of an XML set need not be among them."""
    options = {"name": f"{name} test", "drop_invalid": data.drop_invalid, "class_names": class_names}
    if data.source == "coco":
        return load_coco(data.test_annotations, data.test_images or data.images, **options)
    return load_xml_folder(data.test_images, data.test_annotations, known=class_names or (), **options)


def open_test_images(
    data: CocoData | XmlData,
) -> tuple[DetectionData, tuple[str, ...], tuple[str, ...]] | None:
    """The test images that the parameters name, base and novel classes; None where they are drawn.

    Training images and K-shot sets are neither read nor drawn.

    Raises:
        DataError: If annotations or images are wrong.
        SplitError: If the partition is impossible.
    """
    if not _has_test(data):
        return None
    data = _with_absolute_paths(data)
    where = data.test_annotations or data.test_images
    test = load_given_test(data, Path(where).stem, class_names=None)
    base_names, novel_names = partition(data.base_classes, data.novel_classes, test.class_names, where=where)
    return test.select_classes((*base_names, *novel_names)), base_names, novel_names


def _has_test(data: CocoData | XmlData) -> bool:
    return (data.test_annotations if data.source == "coco" else data.test_images) is not None


# ------------------------------------------------------------ given K-shot sets


def _open_given(data: CocoData) -> Benchmark:
    """K-shot sets that are there already, and test images of their own; nothing is written."""
    name = Path(data.test_annotations).parent.parent.name or "data"
    test = load_given_test(data, name, class_names=None)
    base_names, novel_names = partition(
        data.base_classes, data.novel_classes, test.class_names, where=data.test_annotations
    )
    class_names = (*base_names, *novel_names)
    if data.few_shot.kind == "files":
        shot_files = [project_path(file) for file in data.few_shot.files(data.shots, data.num_seeds)]
        load_shots = partial(_load_shot_file, data, base_names, novel_names)
    else:
        folder = project_path(data.few_shot.folder)
        shot_files = files_of(class_names, [folder])
        load_shots = partial(_load_published, data, folder, base_names, novel_names)
    parts = [Path(file) for file in (data.annotations, data.test_annotations) if file is not None]
    return Benchmark(
        name=name,
        base_names=base_names,
        novel_names=novel_names,
        test=test.select_classes(class_names),
        arms=("kshot", "clean") if data.annotations else ("kshot",),
        shots=tuple(data.shots),
        num_seeds=data.num_seeds,
        hash=hash_files(*parts, *shot_files),
        load_train=partial(load_whole, data, f"{name} train")
        if data.annotations
        else partial(_no_train, name),
        load_shots=load_shots,
        is_exact=False,
        is_nested=False,
    )


def _no_train(name: str) -> DetectionData:
    raise DataError(
        f"{name}: there are no annotations but those of the K-shot sets. Expected data.annotations."
    )


def _load_published(
    data: CocoData, folder: Path, base_names: tuple[str, ...], novel_names: tuple[str, ...], **draw
) -> DetectionData:
    def find_shots(arm: str, *, with_base: bool = False) -> Path:
        return folder

    return load_layout(
        find_shots, Path(data.images), base_names, novel_names, drop_invalid=data.drop_invalid, **draw
    )


def _load_shot_file(
    data: CocoData,
    base_names: tuple[str, ...],
    novel_names: tuple[str, ...],
    *,
    arm: str,
    shots: int,
    seed: int,
    setting: str,
) -> DetectionData:
    """One file with the boxes of all classes; more than K of a class are kept and said, fewer refused."""
    path = project_path(data.few_shot.file(shots, seed))
    class_names = novel_names if setting == "fsod" else (*base_names, *novel_names)
    found = load_coco(
        path,
        data.images,
        class_names=class_names,
        name=f"{path.parent.name}/{path.name}",
        drop_invalid=data.drop_invalid,
    )
    _check_counts(found, class_names, shots, where=str(path))
    more = [f"{count} of {name}" for name, count in found.counts().items() if count > shots]
    if more:
        logger.warning("%s: more than K = %d boxes: %s; all are kept", path, shots, ", ".join(more))
    return found


def _check_counts(data: DetectionData, class_names: Sequence[str], shots: int, *, where: str) -> None:
    """Raise one error that names every class with fewer than K boxes and its count."""
    counts = data.counts()
    few = [f"class {name!r} has {counts[name]} boxes" for name in class_names if counts[name] < shots]
    if few:
        raise SplitError(
            f"{where}: {'; '.join(few)}. Expected at least K = {shots} of each: lower shots, or annotate more.",
            kind="K boxes",
        )


# ------------------------------------------------------------ K-shot sets drawn here


def _open_drawn(data: CocoData | XmlData) -> Benchmark:
    root = Path(data.root) / f"{_stem(data)}-{_content_hash(data)}"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / "build.lock"):
        if not (root / "done.json").exists():
            logger.info(
                "Drawing image split and few-shot splits of %s into %s", data.annotations or data.images, root
            )
            _build(data, root)
    done = _read(root / "done.json")
    base_names, novel_names = tuple(done["base_names"]), tuple(done["novel_names"])
    parts = root / "annotations"
    split_files = [] if _has_test(data) else sorted(parts.glob("*.json"))
    sources = data.files() if _has_test(data) or data.source == "xml" else ()
    return Benchmark(
        name=root.name,
        base_names=base_names,
        novel_names=novel_names,
        test=_load_part(data, root, "test", class_names=(*base_names, *novel_names)),
        arms=("kshot", "clean"),
        shots=tuple(data.shots),
        num_seeds=data.num_seeds,
        hash=hash_files(
            *(project_path(name) for name in sources),
            *split_files,
            *files_of(None, [root / "few_shot" / "kshot"]),
        ),
        load_train=partial(_load_part, data, root, "train"),
        load_shots=partial(
            load_layout, partial(_find_shots, root), Path(data.images), base_names, novel_names
        ),
    )


def _stem(data: CocoData | XmlData) -> str:
    """A name for the data: that of the file, or of the deepest folder that does not just say what is in it."""
    if data.source == "coco":
        return Path(data.annotations).stem
    folders = [part for part in Path(data.images).parts[1:] if part.lower() not in GENERIC_FOLDERS]
    return folders[-1] if folders else Path(data.images).name


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _find_shots(root: Path, arm: str, *, with_base: bool = False) -> Path:
    """Folder of the draws; asked for base classes it refuses if some of them had too few boxes."""
    reasons = _read(root / "done.json")["no_base_shots"]
    if with_base and reasons:
        raise SplitError(f"no gfsod draw, for {len(reasons)} base classes are too rare. {' '.join(reasons)}")
    return root / "few_shot" / arm


def _load_part(
    data: CocoData | XmlData, root: Path, part: str, *, class_names: Sequence[str] | None = None
) -> DetectionData:
    """The training or the test part: as given, or as `_build` has drawn it."""
    name = f"{root.name} {part}"
    if _has_test(data):
        if part == "test":
            return load_given_test(data, root.name, class_names=class_names)
        return load_whole(data, name)
    if data.source == "coco":
        return load_coco(
            root / "annotations" / f"{part}.json", data.images, class_names=class_names, name=name
        )
    chosen = set(_read(root / "annotations" / f"{part}.json"))
    whole = load_whole(data, name)
    images = tuple(record for record in whole.images if file_name(record, data.images) in chosen)
    found = replace(whole, images=images)
    return found if class_names is None else found.select_classes(class_names)


def _content_hash(data: CocoData | XmlData) -> str:
    """Eight hex digits over what decides the files that we write; where data and images lie is no part of it."""
    content = data.model_dump(mode="json", exclude={*PATHS, "few_shot"})
    content["version"] = DRAW_VERSION
    content["files"] = [hash_files(project_path(name)) for name in data.files()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _build(data: CocoData | XmlData, root: Path) -> None:
    """Draw and write the image split (unless test images are given) and the few-shot splits; `done.json` last."""
    whole = load_whole(data, _stem(data))
    base_names, novel_names = partition(
        data.base_classes, data.novel_classes, whole.class_names, where=data.annotations or data.images
    )
    class_names = (*base_names, *novel_names)
    chosen = (
        None
        if data.few_shot.images is None
        else choose_images(whole, project_path(data.few_shot.images), data.images)
    )
    train, test = _split(data, root, whole, class_names, chosen)
    shared = {record.path for record in train.images} & {record.path for record in test.images}
    if shared:
        raise SplitError(
            f"{len(shared)} images are for training and for testing, e.g. {min(shared)}. Expected none.",
            kind="training and test overlap",
        )
    pool = train if chosen is None else chosen
    _check_counts(pool, novel_names, max(data.shots), where=pool.name)
    for class_name in novel_names:
        _draw_class(data, root, pool, class_name)
    if len(train) + len(test) <= MAX_DECODED:
        check_images(train)
        check_images(test)
    no_base_shots = []
    for class_name in base_names:
        try:
            _draw_class(data, root, train, class_name)
        except SplitError as error:  # reported when a gfsod draw is asked for; fsod does not need it
            no_base_shots.append(str(error))
    if no_base_shots:
        logger.warning(
            "%s: %d of %d base classes are too rare for gfsod", root.name, len(no_base_shots), len(base_names)
        )
    write_json(
        root / "done.json",
        {"base_names": base_names, "novel_names": novel_names, "no_base_shots": no_base_shots},
    )


def choose_images(data: DetectionData, path: Path, images_dir: str | Path) -> DetectionData:
    """The images that a text file lists, one file name a line, in the order of the data.

    A name is relative to the folder of the images; the last part of it is enough where one image alone has it.

    Raises:
        SplitError: If a name is not that of an image (with the nearest one), or that of several (with all of them).
    """
    lines = [Path(line.strip()) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise SplitError(f"{path}: the list is empty. Expected one image file a line.", kind="chosen images")
    known = {file_name(record, images_dir) for record in data.images}
    of_bare: dict[str, list[str]] = {}
    for name in sorted(known):
        of_bare.setdefault(Path(name).name, []).append(name)
    listed = list(dict.fromkeys(line.as_posix() for line in lines))
    found = {name: [name] if name in known else of_bare.get(name, []) for name in listed}
    unknown = [name for name in listed if not found[name]]
    if unknown:
        raise SplitError(
            f"{path}: {len(unknown)} of {len(listed)} images are not in {data.name}, e.g. {unknown[0]!r}. "
            f"{suggest(unknown[0], sorted(known))}",
            kind="chosen images",
        )
    several = [name for name in listed if len(found[name]) > 1]
    if several:
        raise SplitError(
            f"{path}: {len(several)} of {len(listed)} names are those of several images, e.g. {several[0]!r}. "
            f"Expected one of: {', '.join(found[several[0]])}.",
            kind="chosen images",
        )
    chosen = {name for (name,) in found.values()}
    images = tuple(record for record in data.images if file_name(record, images_dir) in chosen)
    return replace(data, name=f"{data.name}, images of {path.name}", images=images)


def _split(
    data: CocoData | XmlData,
    root: Path,
    whole: DetectionData,
    class_names: Sequence[str],
    chosen: DetectionData | None,
) -> tuple[DetectionData, DetectionData]:
    """Training and test part; a drawn test part has none of the chosen images, and both are written."""
    if _has_test(data):
        return whole, load_given_test(data, root.name, class_names=class_names)
    kept = () if chosen is None else chosen.images
    taken = {record.path for record in kept}
    rest = replace(whole, images=tuple(record for record in whole.images if record.path not in taken))
    train, test = split_images(
        rest, test_fraction=data.test_fraction, seed=data.seed, class_names=class_names
    )
    together = sorted((*train.images, *kept), key=lambda record: record.image_id)
    train = replace(train, images=tuple(together))
    for part, images in (("train", train), ("test", test)):
        path = root / "annotations" / f"{part}.json"
        if data.source == "coco":
            write_coco(path, images, images_dir=data.images)
        else:
            write_json(path, [file_name(record, data.images) for record in images.images])
    return train, test


def _draw_class(data: CocoData | XmlData, root: Path, pool: DetectionData, class_name: str) -> None:
    """Draw and write the shots of one class, all K and seeds."""
    for seed in range(data.num_seeds):
        draws = draw_few_shot(pool, [class_name], shots=data.shots, seed=SEED_STRIDE * data.seed + seed)
        write_few_shot(root / "few_shot" / "kshot", pool, draws, seed=seed, images_dir=data.images)
