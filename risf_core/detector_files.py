"""A trained detector from a file: ours says what it is; a published one needs its architecture and classes told."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from risf_core.detector.build import build_detector
from risf_core.detector.checkpoints import HEAD, LoadReport
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.detector.pretrained import load_pretrained
from risf_core.detector.weight_files import find_weights
from risf_core.errors import CheckpointError
from risf_core.params import DetectorParams


@dataclass(frozen=True, eq=False)
class LoadedDetector:
    """A detector with its weights, the classes of its head in order, and what loading did."""

    detector: FasterRCNN
    class_names: tuple[str, ...]
    report: LoadReport


def load_detector(
    path: Path, content: dict, params: DetectorParams, class_names: Sequence[str], *, device: str = "cpu"
) -> LoadedDetector:
    """Build the detector and load all weights of the file; its head must have exactly these classes.

    Args:
        path: The file.
        content: What `read_weight_file` read of it.
        params: Architecture and preprocessing.
        class_names: Classes of the head, in the order of its rows.

    Raises:
        CheckpointError: If the file is no such detector's, or has not as many classes as said.
    """
    check_head(content, class_names, path)
    detector = build_detector(params, len(class_names))
    # without them a detector of detectron2 is the same: as they start, they change nothing
    report = load_pretrained(detector, path, allow_missing=("affine_",))
    return LoadedDetector(detector.to(device).eval(), tuple(class_names), report)


def check_head(content: dict, class_names: Sequence[str], path: Path) -> None:
    """CheckpointError if the file has no head, or one with another number of classes."""
    weights, _ = find_weights(content)
    bias = next((value for key, value in weights.items() if key.endswith(f"{HEAD}cls_score.bias")), None)
    if bias is None:
        raise CheckpointError(
            f"{path}: there is no {HEAD}cls_score.bias. Expected a whole detector with its head; weights for the start "
            "of a training cannot be evaluated."
        )
    if len(bias) != len(class_names) + 1:
        raise CheckpointError(
            f"{path}: its head has {len(bias) - 1} classes and background, but {len(class_names)} classes are named "
            f"({', '.join(class_names[:3])}, ...). Check checkpoint.classes and the data's class lists."
        )
