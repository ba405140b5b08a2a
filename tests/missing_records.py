"""A record of 33_missing_annotations with made rows, for the tests of its tables and figures."""

import itertools

FRACTIONS = (0.0, 0.5, 1.0)
WEIGHTS = {
    "ce": (None, 1.0),
    "ce_bg": (None, 0.2),
    "focal": (0.0, 1.0),
    "focal_mirror": (0.8, 1.0),
    "focal_omega": (0.0, 0.2),
    "bnrl": (0.8, 0.2),
}
LEVELS = {"ce": 40.0, "ce_bg": 39.0, "focal": 37.0, "focal_mirror": 41.0, "focal_omega": 38.0, "bnrl": 43.0}
RATES = {"ce": 0.02, "ce_bg": 0.02, "bnrl": 0.05, "focal": 0.2, "focal_mirror": 0.05, "focal_omega": 0.5}
SEED_STEPS = (-1.0, 0.5, 1.0, -0.5)  # what a draw adds to every value


def missing_row(
    loss: str, seed: int, treatment: str = "ignored", fraction: float | None = 0.0, **changes
) -> dict:
    """One row; its nAP50 grows with the known share: 4 points for ce, 2 for the others, and 6 more with labels."""
    beta, weight = WEIGHTS[loss]
    share = 1.0 if fraction is None else fraction
    nap50 = LEVELS[loss] + (4.0 if loss == "ce" else 2.0) * share + SEED_STEPS[seed]
    nap50 += 6.0 * share * (treatment == "labelled") + 1.5 * (treatment == "kshot")
    nap50 += 0.2 * seed * share  # so that differences between shares have an interval
    key = {
        "role": "reported",
        "split": 1,
        "shots": 5,
        "seed": seed,
        "treatment": treatment,
        "fraction": fraction,
    }
    key |= {"loss": loss, "beta": beta, "background_weight": weight, "lr": RATES[loss]}
    values = {"nAP50": nap50, "nAP": nap50 / 2, "nAP75": nap50 / 3, "confusion": 60.0 - nap50 / 2 + seed}
    values |= {"background": 2.0 + seed / 10, "background_per_object": 2.5 + seed / 8, "on_base": 2.0}
    values |= {"detections": 9.0, "confusion_top": 3.0 + seed, "background_top": 30.0 - seed}
    values |= {"shot_score": 40.0, "further_score": 15.0 + 10 * share + seed, "further_background": 60.0}
    labels = 25 + 100 * share * (treatment == "labelled")
    values |= {"labels": labels, "images": 25, "candidates": 101.0, "final_loss": 0.3, "is_fixed": True}
    return key | values | changes


def missing_record(seeds: int = 3) -> dict:
    """A whole record: at share 0 the weights (3.2, 0.05) are best on split 2, elsewhere the fixed ones."""
    rows = []
    for loss, seed in itertools.product(("ce", "ce_bg", "bnrl"), range(seeds)):
        rows += [missing_row(loss, seed, "ignored", share) for share in FRACTIONS]
        rows += [missing_row(loss, seed, "labelled", share) for share in FRACTIONS[1:]]
        rows.append(missing_row(loss, seed, "kshot", None))
    for loss, seed, (share, rate) in itertools.product(
        ("ce", "bnrl"), range(seeds), ((0.0, 0.01), (1.0, 0.1))
    ):
        own = missing_row(
            loss, seed, "ignored", share
        )  # at its own rate ce is better by 1 at share 0, by 2 at 1
        better = (loss == "ce") * (1 + share)
        rows.append(own | {"role": "control", "lr": rate, "nAP50": own["nAP50"] + better})
    parts = ("focal", "focal_mirror", "focal_omega")
    for loss, seed, rate in itertools.product(parts, range(2), (0.05, 0.2, 0.5)):
        level = {"nAP50": 50.0 + (rate == RATES[loss]) + seed}
        rows.append(missing_row(loss, seed, role="selection", split=2, lr=rate, **level))
    for loss, seed, share in itertools.product(parts, range(seeds), (0.0, 1.0)):
        rows.append(missing_row(loss, seed, "ignored", share))
    for share, seed in itertools.product(FRACTIONS, range(2)):
        for beta, weight in itertools.product((0.2, 0.8, 3.2), (0.05, 0.2, 1.0)):
            is_fixed, is_best = (beta, weight) == (0.8, 0.2), (beta, weight) == (3.2, 0.05) and share == 0
            level = 50.0 - 2 * abs(beta - 0.8) - abs(weight - 0.2) + 9 * is_best + seed
            point = {"beta": beta, "background_weight": weight, "nAP50": level, "is_fixed": is_fixed}
            rows.append(missing_row("bnrl", seed, "ignored", share, role="selection", split=2, **point))
    for seed in range(seeds):  # on the reported split they gain 1, 2, 3 points
        own = missing_row("bnrl", seed)
        point = {"beta": 3.2, "background_weight": 0.05, "is_fixed": False, "nAP50": own["nAP50"] + 1 + seed}
        rows.append(own | point)
    return {
        "run_id": "missing_annotations-0",
        "notebook": "33_missing_annotations",
        "params": {},
        "rows": rows,
    }
