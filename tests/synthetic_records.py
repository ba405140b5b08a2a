"""Made-up records for the tests of tables and figures: formulas and a seeded generator, nothing was trained."""

import hashlib
import zlib
from collections.abc import Sequence

import numpy as np

NOVEL = ("anchor", "cat", "flower", "queen", "telephone")
BASE_LEVEL = {1: 35.0, 2: 42.0, 3: 49.0, 5: 52.0, 10: 56.5}
ARM_SHIFT = {"kshot": 0.0, "missing": -16.0, "full": 3.0}
LOSS_SHIFT = {"ce": 0.0, "ce_bg": -1.5, "bnrl": 1.0}
RESCORING_SHIFT = {"none": 0.0, "cm_clip": 6.5, "cm_clip_wide": 11.0}


def noise(*key: object, scale: float = 1.0) -> float:
    """The same normal number for the same key, in every process."""
    return float(np.random.default_rng(zlib.crc32(repr(key).encode())).normal(scale=scale))


def record(
    notebook: str, run_id: str, *, params=None, rows: Sequence[dict] = (), metrics=None, upstream=None
) -> dict:
    """One record of the plan's schema."""
    digest = hashlib.sha256(run_id.encode()).hexdigest()
    return {
        "schema": 1,
        "run_id": f"{run_id}-{digest[:8]}",
        "notebook": notebook,
        "params": {"profile": "made_up", **(params or {})},
        "params_hash": digest,
        "state_hash": digest[::-1],
        "data_hash": "0" * 64,
        "upstream": upstream or {},
        "metrics": metrics or {},
        "rows": list(rows),
        "environment": {
            "cpu_seconds": 10.0 + len(rows),
            "wall_seconds": 12.0 + len(rows),
            "peak_memory_mib": 800.0,
            "host": "a-private-host-name",
        },
    }


def fine_tuning_row(
    *, shots=5, seed=0, loss="ce", arm="kshot", setting="fsod", rescoring="none", split=1, **values
) -> dict:
    """One row; nAP50 follows a formula unless it is given."""
    shift = LOSS_SHIFT.get(loss, 0.5) * (2.0 if arm == "missing" else 1.0) + RESCORING_SHIFT[rescoring]
    level = BASE_LEVEL.get(shots, 50.0) + ARM_SHIFT[arm] + shift
    level += noise("draw", shots, seed, arm, scale=2.5) + noise(shots, seed, arm, loss, rescoring, scale=0.6)
    nap50 = values.pop("nAP50", level)
    novel = {name: nap50 + place * 4 - 8 for place, name in enumerate(NOVEL)} if nap50 is not None else {}
    has_base = setting == "gfsod" and nap50 is not None
    return {
        "split": split, "shots": shots, "seed": seed, "loss": loss, "arm": arm, "setting": setting,
        "rescoring": rescoring, "nAP50": nap50, "nAP": None if nap50 is None else 0.52 * nap50,
        "nAP75": None if nap50 is None else 0.45 * nap50, "AP": 45.0 + noise(seed) if has_base else None,
        "AP50": 70.0 + noise(seed) if has_base else None, "bAP": 50.0 if has_base else None,
        "bAP50": 80.0 if has_base else None, "num_detections": 8.5,
        "per_class": {name: {"AP": 0.5 * value, "AP50": value, "AP75": 0.4 * value} for name, value in novel.items()},
        **values,
    }  # fmt: skip


def fine_tuning_record(rows: Sequence[dict], *, name: str = "fine_tuning", **params) -> dict:
    """A record of 20_fine_tuning with these rows."""
    shots = sorted({row["shots"] for row in rows})
    base = {"split": 1, "shots": shots[0] if len(shots) == 1 else shots, "setting": rows[0]["setting"]}
    base |= {key + "s": sorted({row[key] for row in rows}) for key in ("seed", "arm")}
    base["losses"] = sorted({row["loss"] for row in rows})
    return record("20_fine_tuning", name, params=base | {"solver": {"lr": 0.02}} | params, rows=rows)


def fine_tuning_records(*, seeds=5, user_loss: str | None = "ideas/focal.py:focal") -> list[dict]:
    """K in 1, 2, 3, 5, 10; ce, bnrl (and ce_bg and a user's loss at K = 5); kshot and missing; one gfsod run."""
    records = []
    for shots in BASE_LEVEL:
        losses = ["ce", "bnrl", *(["ce_bg", *([user_loss] if user_loss else [])] if shots == 5 else [])]
        rows = [
            fine_tuning_row(shots=shots, seed=seed, loss=loss, arm=arm, rescoring=rescoring)
            for seed in range(seeds)
            for loss in losses
            for arm in ("kshot", "missing")
            for rescoring in RESCORING_SHIFT
        ]
        records.append(fine_tuning_record(rows, name=f"fine_tuning-split1-{shots}shot"))
    rows = [
        fine_tuning_row(seed=seed, loss=loss, setting="gfsod", rescoring=rescoring)
        for seed in range(seeds)
        for loss in ("ce", "bnrl")
        for rescoring in ("none", "cm_clip")
    ]
    return [*records, fine_tuning_record(rows, name="fine_tuning-split1-5shot-gfsod")]


def ablation_c_record(*, seeds=5) -> dict:
    """Curves over c with a peak that the formula places."""
    rows = []
    for arm in ("kshot", "missing"):
        for loss in ("ce", "bnrl"):
            for space, gain, peak in (("novel+background", 9.0, 0.5), ("novel+base+background", 14.0, 0.4)):
                for shots, level in BASE_LEVEL.items():
                    for seed in range(seeds):
                        for step in range(11):
                            c = step / 10
                            nap50 = level + ARM_SHIFT[arm] + gain * (1 - (c - peak) ** 2 / (1 - peak) ** 2)
                            nap50 += noise("c", arm, loss, shots, seed, scale=2.0)
                            row = {"split": 1, "arm": arm, "loss": loss, "label_space": space, "shots": shots}
                            rows.append(
                                row
                                | {"seed": seed, "c": c, "nAP50": nap50, "nAP": 0.5 * nap50, "nAP75": 20.0}
                            )
    return record("30_ablation_c", "ablation_c", rows=rows)


def ablation_bnrl_record(*, seeds=3) -> dict:
    """The three sweeps over BNRL's hyper-parameters."""
    grid = []
    for weight in (0.05, 0.2, 0.5, 1.0):
        for beta in (0.2, 0.5, 0.8):
            grid.append(("beta_tied", 1 - beta, beta, 4.0, 1.0, weight))
            grid.append(("beta_fixed_alpha", 0.2, beta, 4.0, 1.0, weight))
    grid += [
        ("gamma_epsilon", 0.2, 0.8, gamma, epsilon, 0.2)
        for gamma in (0.0, 2.0, 4.0)
        for epsilon in (0.0, 1.0)
    ]
    rows = []
    for sweep, alpha, beta, gamma, epsilon, weight in grid:
        for arm in ("kshot", "missing"):
            for seed in range(seeds):
                nap50 = 52 + ARM_SHIFT[arm] + (3 * alpha if arm == "missing" else -2 * weight) + 0.2 * gamma
                row = {"sweep": sweep, "alpha": alpha, "beta": beta, "gamma": gamma, "epsilon": epsilon}
                row |= {"split": 1, "background_weight": weight, "shots": 5, "seed": seed, "arm": arm}
                rows.append(row | {"nAP50": nap50 + noise("bnrl", seed, arm), "nAP": 0.5 * nap50})
    return record("31_ablation_bnrl", "ablation_bnrl-split1-5shot", rows=rows)


def backbones_record(*, seeds=5) -> dict:
    """Three towers; better crops, larger gain."""
    towers = [
        ("tiny-resnet", "ResNet", 1_700_000, 90.2),
        ("tiny-vit", "ViT", 2_100_000, 80.1),
        ("random", "ResNet", 1_700_000, 21.0),
    ]
    rows = []
    for clip, tower, parameters, accuracy in towers:
        for arm in ("kshot", "missing"):
            for shots in (1, 5):
                for seed in range(seeds):
                    gain = (accuracy - 40) / 6 + noise(clip, arm, shots, seed)
                    nap50 = BASE_LEVEL[shots] + ARM_SHIFT[arm] + gain
                    row = {"clip": clip, "tower": tower, "parameters": parameters, "crop_accuracy": accuracy}
                    row |= {
                        "crop_accuracy_all": accuracy - 12,
                        "split": 1,
                        "shots": shots,
                        "seed": seed,
                        "loss": "ce",
                    }
                    rows.append(row | {"arm": arm, "nAP50": nap50, "nAP": 0.5 * nap50, "gain": gain})
    return record("32_clip_backbones", "clip_backbones", rows=rows)


def all_records(*, seeds=5) -> list[dict]:
    """Something for every table and figure."""
    base = {"bAP": 52.1, "bAP50": 84.9, "bAP75": 56.0, "recall_novel_at_100": 88.3, "recall_base_at_100": 97.0,
            "pretraining_accuracy": 91.2, "per_class": {"sun": {"AP50": 80.0, "AP75": 61.0}}}  # fmt: skip
    clips = [
        record("12_tiny_clip", f"tiny_clip-{tower}", params={"tower": f"risf-tiny-{tower}"}, metrics={
            "crop_accuracy": {"split1": {"novel": accuracy, "all": accuracy - 12}}, "corpus_accuracy": 71.0,
            "note": "2 of 20 classes share a glyph design with the test scenes", "confusion": [[9, 1], [2, 8]],
        })
        for tower, accuracy in (("resnet", 90.2), ("vit", 80.1))
    ]  # fmt: skip
    sweeps = [
        ablation_c_record(seeds=seeds),
        ablation_bnrl_record(seeds=seeds),
        backbones_record(seeds=seeds),
    ]
    return [
        record("10_base_training", "base_training-split1", params={"split": 1}, metrics=base),
        *clips,
        *fine_tuning_records(seeds=seeds),
        *sweeps,
    ]
