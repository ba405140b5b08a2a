"""Precision, batches within a memory budget, and scores that no batch changes."""

import json
import os
import subprocess
import sys

import pytest
import torch

from risf_core.cm_clip import CMCLIP, costs, crops
from risf_core.cm_clip.costs import crops_within, fastest_precision, in_precision
from risf_core.errors import ParamsError
from tests.small_clips import TOWERS, long_tokens, small_clip, tokens

IMAGE = torch.randint(0, 256, (3, 100, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
CORNERS = torch.rand(11, 2, generator=torch.Generator().manual_seed(1)) * 60
BOXES = torch.cat([CORNERS, CORNERS + 5 + torch.arange(11)[:, None] * torch.tensor([3.0, 5.0])], dim=1)


@pytest.mark.parametrize("kind", [*TOWERS, "coca"])
def test_scores_equal_each_crop_alone_within_a_hundred_thousandth(kind):
    model, tokenizer = small_clip(kind), tokens if kind == "coca" else long_tokens
    together, alone = (
        CMCLIP(model, tokenizer, ["cat", "dog"], batch_size=count).probabilities(IMAGE, BOXES)
        for count in (64, 1)
    )
    assert (together - alone).abs().max() < 1e-5
    assert (together.amax(0) - together.amin(0)).max() > 1e-3  # crops differ, so that the band says something


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", ["resnet", "siglip", "convnext", "coca"])
def test_reduced_precision_is_near_and_leaves_the_model_alone(kind, precision):
    model, tokenizer = small_clip(kind), tokens if kind == "coca" else long_tokens
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    full, reduced = (CMCLIP(model, tokenizer, ["cat", "dog"], precision=name) for name in ("fp32", precision))
    assert full.model is model and reduced.precision == precision
    expected, found = full.cosines(IMAGE, BOXES), reduced.cosines(IMAGE, BOXES)
    assert found.dtype == torch.float32 and 0 < (expected - found).abs().max() < 0.03
    assert torch.equal(full.text_embeds_norm, reduced.text_embeds_norm)
    assert {weight.dtype for weight in reduced.model.visual.parameters()} == {costs.PRECISIONS[precision]}
    now = model.state_dict()
    # some of CoCa's parameters are memory as it was found, NaN at times
    for name, value in before.items():
        torch.testing.assert_close(now[name], value, rtol=0, atol=0, equal_nan=True)
    shared = [name for name, _ in model.named_parameters() if not name.startswith("visual.")]
    own = dict(reduced.model.named_parameters())
    assert shared and all(own[name] is model.get_parameter(name) for name in shared)


def test_the_fastest_precision_is_measured_and_noted(monkeypatch):
    model = small_clip("resnet")
    name, probe = fastest_precision(model, (64, 64))
    assert name == min(probe["ms_per_crop"], key=probe["ms_per_crop"].get) and "fp32" in probe["ms_per_crop"]
    assert set(probe["matmul_gflops"]) == {"fp32", "bf16", "fp16"}
    rates = {torch.float32: 100.0, torch.bfloat16: 300.0, torch.float16: 0.3}
    times = {torch.float32: 9.0, torch.bfloat16: 3.0}
    monkeypatch.setattr(costs, "_matmul_gflops", lambda dtype, device: rates[dtype])
    monkeypatch.setattr(costs, "_ms_per_crop", lambda model, dtype, size, device: times[dtype])
    clip = CMCLIP(model, long_tokens, ["cat"], precision="auto")
    assert clip.precision == "bf16" and clip.probe["ms_per_crop"] == {"fp32": 9.0, "bf16": 3.0}
    assert json.loads(json.dumps(clip.facts()))["precision"] == "bf16"
    times[torch.bfloat16] = 10.0
    assert CMCLIP(model, long_tokens, ["cat"], precision="auto").precision == "fp32"


def test_batch_follows_from_the_budget():
    model = small_clip("resnet")
    options = {"image_size": (64, 64), "dtype": torch.float32}
    counts = [crops_within(model, budget, **options) for budget in (33, 40, 1024)]
    assert 1 <= counts[0] < counts[1] < counts[2] == costs.MAX_BATCH
    half = crops_within(in_precision(model, "bf16"), 40, image_size=(64, 64), dtype=torch.bfloat16)
    assert counts[1] < half
    assert CMCLIP(model, long_tokens, ["cat"], memory_budget_mb=40).batch_size == counts[1]
    assert CMCLIP(model, long_tokens, ["cat"], memory_budget_mb=40, batch_size=7).batch_size == 7
    with pytest.raises(
        ParamsError, match="memory_budget_mb is 20, but one crop of 64 x 64 pixels takes 33 MiB"
    ):
        crops_within(model, 20, **options)


@pytest.mark.parametrize("budget", [float("nan"), float("inf"), 0, -1, "much", None])
def test_a_budget_that_is_no_number_of_mebibytes_is_refused(budget):
    with pytest.raises(ParamsError, match="Expected a finite number of MiB above 0"):
        CMCLIP(small_clip("resnet"), long_tokens, ["cat"], memory_budget_mb=budget)


@pytest.mark.parametrize("resize", ["roi_align", "bicubic_tensor"])
def test_crops_of_large_images_are_cut_in_parts_and_stay_the_same(resize, monkeypatch):
    slow = torch.arange(120)[None, :] + torch.arange(100)[:, None]
    image = (slow[None] + IMAGE // 8).to(torch.uint8)
    boxes = torch.cat(
        [BOXES, torch.tensor([[0.0, 0, 120, 100], [-9, -7, 140, 99], [50, 0, 51, 100], [3, 9, 99, 10]])]
    )
    clip = CMCLIP(small_clip("resnet"), long_tokens, ["cat"], resize=resize)
    whole = clip.crops(image, boxes)
    done, cut = [], crops._roi_align
    monkeypatch.setattr(
        crops, "_roi_align", lambda *args: done.append(args[0].shape[1:].numel()) or cut(*args)
    )
    for most in (5000, 1000):
        monkeypatch.setattr(crops, "MAX_PIXELS", most)
        assert (clip.crops(image, boxes) - whole).abs().max() < 1e-4
    if resize == "roi_align":
        assert len(done) > 2 * len(boxes) and max(done) < image[0].numel()


PEAK = """
import ctypes, json, sys, torch
from risf_core.clip_models import load_clip
from risf_core.cm_clip import CMCLIP

def status(key):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(key))

torch.set_num_threads(1)
found, made = [], {}
for name, budget, count, width, height in json.loads(sys.argv[1]):
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    loaded = made[name] = made.get(name) or load_clip(name, None)
    clip = CMCLIP(loaded.model, loaded.tokenizer, ["cat"], memory_budget_mb=budget)
    corners = torch.rand(count, 2) * torch.tensor([width - 240, height - 80])
    boxes = torch.cat([corners, corners + 80], dim=1)
    if width > 640:
        boxes[0] = torch.tensor([0, 0, width, height])  # of a large image one box covers all
    ctypes.CDLL(None).malloc_trim(0)  # what earlier cases freed would hide what this one takes
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    assert clip.embed_boxes(image, boxes).shape[0] == count
    found.append((status("VmHWM") - before, clip.batch_size))
print(json.dumps(found))
"""


# glibc keeps blocks that were freed, how many follows from the order of large ones: with its thresholds fixed, what a
# process holds is what the code holds (52 to 56 MiB in eight runs of the last case; without them 82 to 115 in fourteen)
FREED_IS_GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's peak of a process is Linux's")
def test_a_process_stays_within_its_budget_for_one_and_for_two_thousand_boxes():
    tiny, small, large = "risf-tiny-resnet", (640, 480), (4000, 3000)
    cases = [
        (tiny, 50, 1, *small),
        (tiny, 50, 2000, *small),
        (tiny, 256, 1, *large),
        (tiny, 256, 2000, *large),
    ]
    cases += [("RN50", 120, 1, *small), ("RN50", 120, 8, *small)]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, json.dumps(cases)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **FREED_IS_GIVEN_BACK},
    )
    assert done.returncode == 0, done.stderr
    for case, (peak, batch) in zip(cases, json.loads(done.stdout)):
        assert 1 < peak <= case[1] and (batch < costs.MAX_BATCH or case[1] == 256), case
    # a budget that is far from what is taken would say little
    assert json.loads(done.stdout)[-1][0] > 120 / 3
