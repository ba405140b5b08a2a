"""For which classes CM-CLIP helps: the gain of each class beside how well its CLIP knows it."""

from __future__ import annotations

from risf_core.ablations import PAPER_SPACE
from risf_core.ablations import _clips_to_compare as clips_to_compare  # the same towers by the same names
from risf_core.cm_clip import CMCLIP, embed_detections
from risf_core.data.dataset import DetectionData
from risf_core.data.loader import ImageCache
from risf_core.fine_tuning import build_cm_clip, rescored
from risf_core.progress import progress
from risf_core.studies.stored_cells import Splits, StoredCell, stored_cells
from risf_core.studies.visual_prototypes import embed_truth
from risf_core.study_params import RescoringControlsParams


def measure_classes(params: RescoringControlsParams, run) -> None:
    """Rows of part "class": AP50 of each class with and without CM-CLIP (paper setting), for every CLIP and cell.

    Beside it the CLIP's top-1 accuracy among the novel names on the class's ground-truth crops of the test images,
    which a user does not have, and on the crops of its K shots, which every user has.
    """
    options = {"arm": params.arm, "loss": params.loss, "seeds": params.rule_seeds}
    cells = [
        (role, cell)
        for role in ("selection", "fine_tuning")
        if getattr(params, role)
        for cell in stored_cells(run.upstreams(role), **options)
        if cell.key["shots"] in params.encoded_shots
    ]
    splits, images = Splits(), ImageCache()
    for named in clips_to_compare(params, run):
        facts = {"tower": named.tower, "iterations": named.iterations}
        known: dict[tuple[str, ...], tuple[CMCLIP, dict]] = {}
        for role, cell in progress(cells, desc=named.name, total=len(cells)):
            key = {"part": "class", "role": role, **cell.key, "clip": named.name}
            benchmark, test, _ = splits.get(cell)
            names = benchmark.novel_names
            if run.rows.done(**key, name=names[-1]):
                continue
            if names not in known:
                cm_clip = build_cm_clip(named.clip, benchmark, params.cm_clip)
                known[names] = cm_clip, class_accuracy(test, cm_clip, images)
            cm_clip, accuracy = known[names]
            shots = benchmark.few_shot(cell.key["shots"], cell.key["seed"], arm=params.arm)
            on_shots = class_accuracy(shots, cm_clip, images)
            without, with_clip = _per_class(params, cell, splits, cm_clip, images)
            for name in names:
                if run.rows.done(**key, name=name):
                    continue
                values = {"without": without[name]["AP50"], "with": with_clip[name]["AP50"]}
                values |= {"accuracy": accuracy[name], "shot_accuracy": on_shots[name]}
                run.rows.add({**key, "name": name}, values | facts | {"path_only": named.path_only})


def class_accuracy(data: DetectionData, clip: CMCLIP, cache: ImageCache) -> dict[str, float | None]:
    """Top-1 accuracy in percent on the crops of each class's boxes, among the classes' names; None without a box."""
    embeds_norm, labels = embed_truth(data, clip, cache=cache)
    texts = clip.text_embeds_norm.cpu().numpy()[clip.label_columns]  # [C, D]
    is_right = (embeds_norm @ texts.T).argmax(axis=1) == labels  # [B, D] @ [D, C] -> [B, C]
    return {
        name: 100.0 * float(is_right[labels == k].mean()) if (labels == k).any() else None
        for k, name in enumerate(clip.class_names)
    }


def _per_class(
    params: RescoringControlsParams, cell: StoredCell, splits: Splits, clip: CMCLIP, images: ImageCache
) -> tuple[dict, dict]:
    """AP of each class without and with CM-CLIP in the paper's setting."""
    benchmark, test, evaluator = splits.get(cell)
    settings = params.cm_clip.model_copy(update={"label_spaces": (PAPER_SPACE,)})
    found = cell.detections()
    options = {"score_thresh": settings.score_thresh, "rescored_classes": benchmark.novel_names}
    embeddings = embed_detections(found, test, clip, cache=images, **options)
    similarities = embeddings.similarities(clip.text_embeds_norm, clip.label_space)
    ((_, changed),) = rescored(found, similarities, benchmark, settings)
    return tuple(evaluator.evaluate(one)["per_class"] for one in (found, changed))
