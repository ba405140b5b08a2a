"""Arms under other vocabularies, and on scenes of another palette: the text matrix is swapped, nothing is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from risf_core.detecting import detect_images
from risf_core.detections import cut
from risf_core.evaluation import Evaluator
from risf_core.open_vocabulary.cross_data import (
    other_palette,
    permuted_names,
    pictogram_vocabularies,
    swap_vocabulary,
)

if TYPE_CHECKING:
    from risf_core.open_vocabulary.study import Study

MAX_DETECTIONS = 100


def swapped_rows(study: Study) -> None:
    """Rows of the part "swap" for the arms of ``params.swapped``."""
    if not study.params.swapped:
        return
    test = study.data.test
    own = test.class_names
    texts = {name: study.texts(names) for name, names in pictogram_vocabularies(own).items()}
    texts["permuted"] = study.texts(permuted_names(own, seed=study.params.seed))
    cells = [("own", "all"), ("own", "permuted"), ("other palette", "own"), ("other palette", "all")]
    for arm in study.params.swapped:
        for renderer, vocabulary in cells:
            key = {"part": "swap", **study.key, "arm": arm, "renderer": renderer, "vocabulary": vocabulary}
            if study.run.rows.done(**key):
                continue
            data = test if renderer == "own" else other_palette(study.params.data, test)
            names = pictogram_vocabularies(own).get(vocabulary, own)
            data = swap_vocabulary(data, names)
            detector = study.architecture.load(
                study.weights_file(arm), texts[vocabulary], seed=study.params.seed, device=study.run.device
            )
            found, _ = cut(detect_images(detector, data), None, score_thresh=study.params.score_thresh)
            metrics = Evaluator(data, groups=study.data.groups, max_dets=MAX_DETECTIONS).evaluate(found)
            study.run.rows.add(key, {name: metrics[name] for name in ("nAP50", "bAP50", "AP50")})
