"""A copy of a COCO file without the images and annotations that are wrong."""

from __future__ import annotations

import json
from pathlib import Path

from risf_core.data.coco import load_coco, write_json
from risf_core.data.problems import Problems
from risf_core.errors import DataError


def write_clean_copy(path: Path, problems: Problems, images_dir: Path) -> list[str]:
    """Write a copy of a COCO file without what is wrong; all else in the file stays, and the copy is proved sound.

    A dropped image takes its annotations along. An object whose annotation goes stays in its image, where it is trained
    as background: look at the list.

    Args:
        path: The copy, another file.
        problems: Of the file.
        images_dir: Folder of the images.

    Returns:
        A line for each problem, and for each sound annotation that went with its image.

    Raises:
        DataError: If something is wrong that no entry can be dropped for, or the copy would replace the file.
    """
    if path.resolve() == problems.where.resolve():
        raise DataError(f"{path}: a clean copy does not replace the file. Give another name.")
    lasting = [problem for problem in problems.found if not problem.drop]
    if lasting:
        count = "1 problem" if len(lasting) == 1 else f"{len(lasting)} problems"
        raise DataError(
            f"{count} cannot be dropped, first {lasting[0]}. Nothing was written; correct the file."
        )
    content = json.loads(problems.where.read_bytes())
    drop = {entry for problem in problems.found for entry in problem.drop}

    def kept(name: str) -> list[dict]:
        return [entry for number, entry in enumerate(content[name]) if (name, number) not in drop]

    images = kept("images")
    image_ids = {entry["id"] for entry in images}
    annotations = [entry for entry in kept("annotations") if entry["image_id"] in image_ids]
    gone = [entry for entry in kept("annotations") if entry["image_id"] not in image_ids]
    write_json(path, content | {"images": images, "annotations": annotations})
    try:
        load_coco(path, images_dir)
    except DataError:
        path.unlink()
        raise
    lines = [f"annotation {entry['id']}: its image {entry['image_id']} is dropped" for entry in gone]
    return [*map(str, problems.found), *lines]
