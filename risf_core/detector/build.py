"""The detector that the parameters name: ours, or the one on detectron2's parts."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.errors import ParamsError
from risf_core.params import DetectorParams


def build_detector(
    params: DetectorParams,
    num_classes: int,
    *,
    classification_loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> FasterRCNN:
    """A freshly initialised detector; see ``FasterRCNN`` for the arguments.

    Raises:
        ParamsError: If ``params.backend`` is detectron2 and it is not installed, or it cannot build such a network.
    """
    if params.backend == "risf":
        return FasterRCNN(params, num_classes, classification_loss=classification_loss)
    try:
        from risf_core.detectron2_backend import Detectron2RCNN  # here, since detectron2 is optional
    except ImportError as error:
        raise ParamsError(
            f"detector.backend is detectron2, which cannot be imported ({error}). Install it as the README says, or "
            "write backend: risf; weights fit both."
        ) from error
    return Detectron2RCNN(params, num_classes, classification_loss=classification_loss)
