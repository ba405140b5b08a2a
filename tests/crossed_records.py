"""Made-up records of a profile with several base models: formulas with known effects, nothing was trained."""

import itertools
from collections.abc import Sequence

from tests.synthetic_records import fine_tuning_row, noise, record

FIRST_CLIP, SECOND_CLIP = "tiny_clip-resnet-first", "tiny_clip-resnet-second"
GAIN, SECOND_MORE = 6.0, 0.5  # of CM-CLIP with the first CLIP, and what the second adds
LOSS_EFFECT = {("ce", False): 0.0, ("bnrl", False): 1.0, ("ce", True): 3.0, ("bnrl", True): 2.0}
BEST_RATES = {"ce": 0.05, "bnrl": 0.1}


def value(
    split, base, seed, shots, arm, loss, *, is_best=False, clip="", is_exact=False, base_spread=1.0
) -> float:
    """nAP50: a level of split, base model and draw, plus known effects, plus small noise of each."""
    level = 40.0 + shots + (-10.0 if arm == "missing" else 0.0) + split
    level += 3 * noise("base", split, base) + 3 * noise("draw", split, seed, shots, arm)
    effect = LOSS_EFFECT[loss, is_best]
    if clip:
        effect += GAIN + (SECOND_MORE if clip == "second" else 0.0)
    if not is_exact:
        effect += base_spread * noise("base effect", split, base, loss, is_best, bool(clip))
        effect += 0.8 * noise("draw effect", split, seed, shots, arm, loss, is_best, bool(clip))
        effect += 0.5 * noise("rest", split, base, seed, shots, arm, loss, is_best, clip)
    return level + effect


def base_run(split: int, base: int) -> tuple[str, dict]:
    """Run id and reference of a base model; that of seed 0 is another profile's, as in mini-full."""
    if base == 0 and split < 3:
        return f"base_training-split{split}-zero", {
            "params": f"params/p{split}/10_base_training.yaml",
            "set": {},
        }
    return f"base_training-split{split}-seed{base}", {
        "params": "params/mini-full/10_base_training.yaml",
        "set": {"split": split, "seed": base},
    }


def tuned(split, base, shots, *, seeds, losses=("ce", "bnrl"), lr=0.02, **options) -> dict:
    """A record of 20_fine_tuning on one base model."""
    is_best = lr != 0.02
    rows = []
    for seed, loss, arm in itertools.product(range(seeds), losses, ("kshot", "missing")):
        for how, clip in (("none", ""), ("cm_clip", "first")):
            found = value(split, base, seed, shots, arm, loss, is_best=is_best, clip=clip, **options)
            key = {"split": split, "shots": shots, "seed": seed, "loss": loss, "arm": arm, "rescoring": how}
            rows.append(fine_tuning_row(**key, repeat=0, nAP50=found))
    run, reference = base_run(split, base)
    params = {
        "split": split, "shots": shots, "setting": "fsod", "seeds": list(range(seeds)), "arms": ["kshot", "missing"],
        "losses": list(losses), "base": reference, "solver": {"lr": lr, "iterations": 300}, "seed": 0,
        "clip": {"run": {"params": "params/mini/12_tiny_clip.resnet.yaml", "set": {}}},
    }  # fmt: skip
    name = f"fine_tuning-split{split}-{shots}shot-base{base}-{'-'.join(losses)}-{lr:g}"
    return record(
        "20_fine_tuning", name, params=params, rows=rows, upstream={run: "0" * 8, FIRST_CLIP: "1" * 8}
    )


def second_clip(tunings: Sequence[dict], base: int, **options) -> dict:
    """A record of 32_clip_backbones: the second CLIP on the detections of one base model."""
    rows = []
    for one in tunings:
        for row in one["rows"]:
            if row["rescoring"] == "none":
                key = [row[name] for name in ("seed", "shots", "arm", "loss")]
                found = value(row["split"], base, *key, clip="second", **options)
                names = ("split", "shots", "seed", "loss", "arm", "setting", "repeat")
                facts = {"clip": "risf-tiny-resnet", "tower": "risf-tiny-resnet", "parameters": 1_416_184}
                facts |= {
                    "crop_accuracy": 90.0,
                    "crop": "squash",
                    "preprocess": "clip",
                    "resize": "roi_align",
                }
                rows.append({name: row[name] for name in names} | facts | {
                    "nAP50": found, "nAP": 0.5 * found, "gain": found - row["nAP50"], "gain_nAP": 1.0,
                })  # fmt: skip
    upstream = {one["run_id"]: "2" * 8 for one in tunings} | {SECOND_CLIP: "3" * 8}
    name = f"clip_backbones-{tunings[0]['run_id']}"
    return record("32_clip_backbones", name, params={"seed": 0}, rows=rows, upstream=upstream)


def base_records() -> list[dict]:
    """Those base models that are trained in the profile itself, and the second CLIP."""
    found = []
    for split in (1, 2, 3):
        for base in range(3):
            run, reference = base_run(split, base)
            if reference["set"]:
                own = record(
                    "10_base_training", "unused", params=reference["set"], metrics={"bAP50": 80.0 + base}
                )
                found.append(own | {"run_id": run})
    clip = record(
        "12_tiny_clip", "unused", params={"seed": 1, "tower": "risf-tiny-resnet"}, metrics={"accuracy": 90.0}
    )
    return [*found, clip | {"run_id": SECOND_CLIP}]


def crossed_records(
    *, seeds=4, bases=3, splits=(1, 2, 3), shots=(1, 10), rates=None, rate_splits=(1, 3), clips=2, **options
) -> list[dict]:
    """All of it: ce and bnrl on each base model, each loss at its best rate, the second CLIP."""
    records = base_records()
    for split in splits:
        for base in range(bases):
            own = [tuned(split, base, k, seeds=seeds, **options) for k in shots]
            records += own
            if clips > 1:
                records.append(second_clip(own, base, **options))
            for loss, rate in (BEST_RATES if rates is None else rates).items():
                if split in rate_splits:
                    records += [
                        tuned(split, base, k, seeds=seeds, losses=(loss,), lr=rate, **options) for k in shots
                    ]
    return records
