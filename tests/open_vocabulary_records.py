"""Records of 50_open_vocabulary with made rows, for the tests of its tables, figures and headline."""

from risf_core.report.open_vocabulary_rows import ARMS
from tests.synthetic_records import noise, record

NOVEL = {
    "base": 2.0, "base_continued": 3.0, "base_twice": 4.0, "rkd_rpn_l1": 18.0, "rkd_rpn": 22.0,
    "rkd_objectness_l1": 19.0, "rkd_objectness": 23.0, "rkd_external_l1": 20.0, "rkd_external": 24.0,
    "rkd_oracle": 30.0, "ils_max_size": 28.0, "ils_max_score": 21.0, "ils_max_objectness": 23.0, "ils_external": 29.0,
    "ils_oracle": 40.0, "naive": 31.0,
    "weight_transfer": 36.0, "naive_from_rkd": 32.0, "wt_free": 35.0, "wt_two_heads": 33.0, "wt_freeze": 26.0,
    "relation_alone": 3.1, "points_alone": 28.0,
    "wt_random_source": 34.0, "relation_only": 4.0, "relation_l2": 21.0, "relation_l2_mean": 20.0, "rkd_shuffled": 3.2,
    "rkd_random_teacher": 2.5, "rkd_base_boxes": 12.0, "ils_permuted": 4.0, "ils_base_labels": 2.8, "strict": 15.0,
    "cone": 16.0, "cone_base": 2.9, "rkd_published_weights": 6.0,
    "rkd_external_filtered_l1": 19.5, "rkd_external_filtered": 23.5, "ils_external_filtered": 26.0,
}  # fmt: skip
STARTS = {name: "rkd_rpn" for name in NOVEL if name.startswith(("wt_", "weight_", "naive_"))}
STARTS["base_twice"] = "base_continued"


def arm_row(arm: str, seed: int = 0, split: int = 1, **changes) -> dict:
    """One row of an arm; its nAP50 is that of `NOVEL` with a seed's shift and a little noise."""
    nap50 = NOVEL[arm] + 0.8 * seed + noise(arm, seed, split, scale=0.3)
    bap50, zero_shot = 80.0 + noise(arm, seed), 5.0 + 2.0 * nap50
    level = {"n": nap50, "b": bap50, "": (15 * bap50 + 5 * nap50) / 20}
    row = {f"{group}AP{iou}": value * share for group, value in level.items() for iou, share in APS.items()}
    cka = 0.8 if arm in ("relation_only", "rkd_rpn", "relation_alone", "points_alone") else 0.3
    row |= {"recall_novel_at_100": 88.0 + seed, "recall_base_at_100": 95.0, "zero_shot_novel": zero_shot}
    row |= {
        "zero_shot_base": 85.0,
        "zero_shot_own_novel": 30.0 + nap50,
        "head_novel": 40.0 + nap50,
        "cosine_novel": nap50 / 60,
        "cosine_base": 0.7,
    }
    row |= {
        "cka_novel": cka + noise(arm, seed, "cka", scale=0.02),
        "cka_base": 0.6,
        "spearman_novel": cka / 2,
    }
    row |= {"gradient_cosine": -0.2 if arm == "naive" else None, "iterations": 0 if arm == "base" else 600}
    row |= {
        "box_images": 4800,
        "cpu_seconds": 80.0 + seed,
        "provider": "",
        "sees_novel": "no",
        "settings": {},
    }
    if arm in ("relation_only", "relation_alone"):
        row["zero_shot_novel"] = 5.0 + noise(seed)
    if arm == "relation_alone":
        row["zero_shot_base"] = 6.0 + noise(seed)
    return {"part": "arm", "split": split, "seed": seed, "arm": arm} | row | changes


APS = {"": 0.5, "50": 1.0, "75": 0.4}


def other_rows(seed: int, split: int = 1) -> list[dict]:
    """Rows of the parts teacher, provider and swap."""
    place = {"split": split, "seed": seed}
    teacher = {
        "zero_shot_novel": 97.0,
        "zero_shot_base": 96.0 + seed,
        "jittered_novel": 90.0,
        "jittered_base": 91.0,
    }
    teacher |= {"text_cosine_mean": 0.31, "text_cosine_min": -0.2, "text_cosine_max": 0.8, "chance": 5.0}
    rows = [{"part": "teacher", **place, **teacher}]
    for number, name in enumerate(("rpn", "objectness", "external")):
        recalls = {"recall_novel": 60.0 + 5 * number + seed, "recall_base": 80.0, "regions": 5.0}
        seen = {"external": "yes"}.get(name, "no")
        rows.append({"part": "provider", **place, "provider": name, "sees_novel": seen, **recalls})
    own = arm_row("rkd_rpn", seed, split)["nAP50"]
    swaps = {("own", "all"): -4.0, ("own", "permuted"): 0.4 - own, ("other palette", "own"): -3.0}
    for (renderer, vocabulary), change in swaps.items():
        key = {"part": "swap", **place, "arm": "rkd_rpn", "renderer": renderer, "vocabulary": vocabulary}
        over_all = 0.5 if vocabulary == "permuted" else 58.0 + change
        rows.append({**key, "nAP50": own + change, "bAP50": 70.0 + change, "AP50": over_all})
    return rows


def open_vocabulary_record(seed: int = 0, *, split: int = 1, arms=tuple(ARMS), **changes) -> dict:
    """One run: one split, one seed, these arms; changes are of its parameters."""
    rows = [arm_row(arm, seed, split) for arm in arms] + other_rows(seed, split)
    params = {"split": split, "seed": seed, "arms": list(arms), "base": f"base{seed}.yaml"} | changes
    return record("50_open_vocabulary", f"open_vocabulary-split{split}-seed{seed}", params=params, rows=rows)


def open_vocabulary_records(seeds: int = 3, **options) -> list[dict]:
    """One record for each seed."""
    return [open_vocabulary_record(seed, **options) for seed in range(seeds)]
