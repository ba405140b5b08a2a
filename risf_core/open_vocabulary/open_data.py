"""The data that the parameters of an open-vocabulary run name: pictograms, or the user's files."""

from risf_core.open_vocabulary.ovd_data import OvdData, open_pictogram_ovd
from risf_core.open_vocabulary_params import OpenVocabularyParams


def open_data(params: OpenVocabularyParams, *, labels: str = "all") -> OvdData:
    """Boxes of base classes, image labels and test images.

    Args:
        params: Of the run.
        labels: Which names the images without boxes have: "all", "base", "permuted" or "strict".
    """
    return open_pictogram_ovd(
        params.data,
        params.split,
        num_box_images=params.num_box_images,
        num_label_images=params.num_label_images,
        seed=params.seed,
        labels=labels,
    )
