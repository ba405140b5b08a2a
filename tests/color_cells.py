"""Two stored cells of one picture that a CLIP of colours re-scores: what studies of stored boxes run on in tests."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from risf_core.clip_models import ClipInfo, LoadedClip
from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.detections import Detections
from risf_core.params import FineTuningParams
from risf_core.records import Rows
from risf_core.studies import stored_cells
from tests.color_clip import ColorClip, color_tokens


def color_cells(folder: Path, monkeypatch) -> SimpleNamespace:
    """One picture with a red and a green square and a blue ground; the detector likes the ground best.

    Two seeds of one fine-tuning; the CLIP tells colours apart, so every re-scoring mends the order.

    Returns:
        ``loaded`` (the CLIP), ``test`` (data), ``found`` (detections of either seed), ``run`` (opens the run's folder).
    """
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[..., 2] = 255
    pixels[0:10, 0:10], pixels[20:30, 20:30] = (255, 0, 0), (0, 255, 0)
    Image.fromarray(pixels).save(folder / "1.png")
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], dtype=np.float32)
    none = np.zeros(2, dtype=bool)
    record = ImageRecord(1, folder / "1.png", 40, 40, boxes, np.array([0, 1]), none)
    test = DetectionData("t", ("red", "green"), (1, 2), (record,))
    found = Detections(
        [1, 1, 1], [[30, 0, 40, 10], *boxes.tolist()], [0.9, 0.5, 0.5], [0, 0, 1], np.zeros((3, 3)), [0, 1, 2],
        ("red", "green"),
    )  # fmt: skip
    benchmark = SimpleNamespace(novel_names=("red", "green"), base_names=(), test=test, evaluation={})
    benchmark.few_shot = lambda shots, seed, arm: test
    monkeypatch.setattr(stored_cells, "open_benchmark", lambda data, split: benchmark)
    clip = ColorClip()
    clip.logit_scale = torch.nn.Parameter(torch.tensor(np.log(20.0)))
    info = ClipInfo("colours", None, False, (4, 4), (0,) * 3, (1,) * 3, "", 1)
    tuned = FineTuningParams(profile="t", base="x.yaml", seeds=(0, 1), clip={"run": "c.yaml"})
    key = {"split": 1, "shots": 5, "loss": "ce", "arm": "kshot", "setting": "fsod", "repeat": 0}
    rows = [key | {"seed": seed, "rescoring": "none"} for seed in (0, 1)]
    for seed in (0, 1):
        found.save(folder / "detections" / f"seed{seed}-kshot-ce.npz")
    content = {"params": tuned.model_dump(mode="json"), "rows": rows}
    upstream = SimpleNamespace(dir=folder, run_id="r", record=content)

    def run() -> SimpleNamespace:
        own = folder / "run"
        own.mkdir(exist_ok=True)
        return SimpleNamespace(
            dir=own, rows=Rows(own / "rows.jsonl"), device="cpu", upstreams=lambda name: [upstream]
        )

    return SimpleNamespace(loaded=LoadedClip(clip, color_tokens, info), test=test, found=found, run=run)
