"""Train a tiny CLIP on the captioned corpus: open_clip's own model class, tokenizer and loss at the size of a CPU."""

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from open_clip.loss import ClipLoss
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.ops import roi_align

from risf_core.clip_accuracy import crop_accuracy, photo_accuracy, split_by_design
from risf_core.clip_models import LoadedClip, load_clip, new_clip, preprocessing_of
from risf_core.data.coco import load_coco
from risf_core.data.glyphs import CLASSES, CONCEPTS, SPLITS
from risf_core.data.loader import ImageCache, image_order
from risf_core.data.world import build_world
from risf_core.errors import DataError, ParamsError, RisfError
from risf_core.precision import resolve_precision
from risf_core.progress import progress

if TYPE_CHECKING:
    from risf_core.data.world import World
    from risf_core.params import TinyClipParams
    from risf_core.records import Run

CHECKPOINT = "clip.pt"
MAX_LOGIT_SCALE = math.log(100.0)  # CLIP's own clamp (Radford et al. 2021, section 2.5)
BETAS = (0.9, 0.98)  # of CLIP's AdamW (Radford et al. 2021, table 19)
CLIP_NORM = 1.0
ATTENTION = (
    SDPBackend.MATH
)  # for 17 tokens twice as fast, backward included, as torch's fused kernel on a CPU
CURVE_POINTS = 60  # points of the loss curve that go into a record
LOW_RES_SIDES = (20, 72)  # pixels: the sides of most objects in a 160 px scene
LOW_RES_GROUPS = 4  # parts of a batch that share a low resolution
ZOOM_INSET = (-0.04, 0.20)  # of the side, drawn for each edge of the view; below 0 is the whole side


def train_and_score(params: "TinyClipParams", run: "Run") -> dict:
    """Train the CLIP of a run, save it as ``run.dir/clip.pt``, and measure it.

    Returns:
        ``parameters`` (of the image tower), the results of `score_clip` and the loss ``curve``.

    Raises:
        ParamsError: If the data are not the pictogram world, the only source with a captioned corpus.
    """
    if params.data.source != "pictograms":
        raise ParamsError(
            f"a tiny CLIP needs the captioned corpus of source pictograms, not {params.data.source!r}."
        )
    world = build_world(params.data)
    path, curve = train_tiny_clip(params, world, run)
    clip = load_clip(params.tower, path, device=run.device)
    return {"parameters": clip.info.num_parameters, **score_clip(clip, world, params.splits), "curve": curve}


def train_tiny_clip(
    params: "TinyClipParams", world: "World", run: "Run"
) -> tuple[Path, list[dict[str, float]]]:
    """Train on a world's corpus, but for the photos held out, and save the state dict in ``run.dir``.

    Returns:
        The checkpoint, which ``open_clip.create_model_and_transforms(params.tower, pretrained=path)`` loads once
        `register_configs` was called, and the loss curve. The precision chosen and the seconds go to
        ``run.environment``.
    """
    images, captions, _ = world.corpus()
    count = len(images) - held_out_photos(len(images))
    start = time.process_time()
    model, curve = fit_clip(images[:count], captions[:count], params, device=run.device)
    dtype = resolve_precision(params.precision, torch.device(run.device))
    run.environment["training_precision"] = str(dtype).removeprefix("torch.")
    run.environment["training_cpu_seconds"] = round(time.process_time() - start, 1)
    save_clip(model, run.dir / CHECKPOINT)
    return run.dir / CHECKPOINT, curve


def score_clip(clip: LoadedClip, world: "World", splits: Sequence[int]) -> dict:
    """Zero-shot accuracies in percent on the world's test scenes and corpus.

    Returns:
        ``crop_accuracy`` on ground-truth crops: ``split<n>`` among the five novel names of a split, ``all`` among all
        20, each also for the ``seen_designs`` (glyph designs that the corpus shows) and ``held_out_designs``;
        ``per_class`` and ``confusion`` of the 20; ``corpus_accuracy`` among all 70 concepts on the photos held out.
    """
    test, cache = load_coco(world.test_annotations, world.root, name="pictograms test"), ImageCache()
    parts = {"": test} | {f"{part}_designs": data for part, data in split_by_design(test, world).items()}
    groups = {f"split{split}": SPLITS[split] for split in splits} | {"all": CLASSES}
    accuracy: dict[str, dict] = {}
    for group, names in groups.items():
        results = {part: crop_accuracy(clip, data, names, cache=cache) for part, data in parts.items()}
        accuracy[group] = {part or "accuracy": result["accuracy"] for part, result in results.items()}
        accuracy[group]["num_crops"] = results[""]["num_crops"]
    all_classes = results[""]  # of the last group
    images, _, labels = world.corpus()
    held_out = slice(len(images) - held_out_photos(len(images)), None)
    return {
        "crop_accuracy": accuracy,
        "corpus_accuracy": photo_accuracy(clip, images[held_out], labels[held_out], CONCEPTS),
        "per_class": all_classes["per_class"],
        "confusion": {"class_names": list(CLASSES), "matrix": all_classes["confusion"]},
    }


def held_out_photos(count: int) -> int:
    """How many of the corpus's last photos are kept for the accuracy: 1,000, at most a tenth."""
    return min(1000, count // 10)


def fit_clip(
    images: np.ndarray, captions: Sequence[str], params: "TinyClipParams", *, device: str = "cpu"
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Contrastive training of one of open_clip's models (by config name) with AdamW and a one-cycle rate.

    Args:
        images: uint8 RGB [N, H, W, 3].
        captions: N texts.
        params: Tower, steps, batch size, rates, seed.

    Returns:
        The model in evaluation mode, and about 60 points ``{"iteration", "loss", "logit_scale"}``.

    Raises:
        ParamsError: If open_clip has no such tower.
        DataError: If images and captions differ in number, or are fewer than two.
        RisfError: If the loss is not finite.
    """
    if len(images) != len(captions) or len(images) < 2:
        raise DataError(
            f"{len(images)} images and {len(captions)} captions. Expected as many of both, at least two."
        )
    model, tokenizer = new_clip(params.tower, seed=params.seed, device=device)
    optimizer, schedule = _optimizer(model, params)
    step = _Step(model, images, tokenizer(list(captions)), params, device)
    order = image_order(len(images), params.batch_size, seed=params.seed)
    curve, pending, every = [], [], max(1, params.iterations // CURVE_POINTS)
    steps = progress(range(params.iterations), desc=f"training {params.tower}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)  # for towers with dropout
        for iteration in steps:
            loss = step(iteration, next(order))
            pending.append(loss.item())
            if not math.isfinite(pending[-1]):
                raise RisfError(
                    f"{params.tower}: loss {pending[-1]} at step {iteration}. Lower lr ({params.lr})."
                )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)
            if len(pending) == every or iteration + 1 == params.iterations:
                scale = model.logit_scale.exp().item()
                curve.append(
                    {"iteration": iteration + 1, "loss": float(np.mean(pending)), "logit_scale": scale}
                )
                steps.note(loss=curve[-1]["loss"])
                pending = []
    return model.eval().requires_grad_(False), curve


class _Step:
    """Forward pass of one step: the contrastive loss of a batch of photos and their captions."""

    def __init__(
        self, model: nn.Module, images: np.ndarray, tokens: Tensor, params: "TinyClipParams", device: str
    ):
        self.model, self.images, self.tokens, self.device = model, images, tokens, torch.device(device)
        size, mean, std, _ = preprocessing_of(model)
        self.size = size[0]
        self.mean, self.std = (255.0 * torch.tensor(values)[:, None, None] for values in (mean, std))
        self.low_res_from = params.low_res_after * params.iterations
        self.dtype = resolve_precision(params.precision, self.device)
        self.generator = torch.Generator().manual_seed(params.seed)
        self.loss = ClipLoss()

    def __call__(self, iteration: int, indices: Sequence[int]) -> Tensor:
        indices = np.sort(indices)
        # [B, H, W, 3] -> [B, 3, H, W]
        photos = torch.from_numpy(self.images[indices]).permute(0, 3, 1, 2).float()
        if iteration >= self.low_res_from:
            photos = low_res_views(photos, size=self.size, generator=self.generator)
        elif photos.shape[-2:] != (self.size, self.size):
            photos = F.interpolate(photos, (self.size, self.size), mode="bilinear", antialias=True)
        photos = ((photos - self.mean) / self.std).to(self.device)
        mixed = torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)
        with mixed, sdpa_kernel(ATTENTION):
            image_embeds_norm, text_embeds_norm, scale = self.model(
                photos, self.tokens[indices].to(self.device)
            )
        return self.loss(image_embeds_norm.float(), text_embeds_norm.float(), scale)


def low_res_views(images: Tensor, *, size: int, generator: torch.Generator) -> Tensor:
    """Show each image as the crop of a small detected box: a random view, few pixels, then `size` pixels again.

    Args:
        images: float32 [B, 3, H, W].
        size: Side of the result in pixels.
        generator: Source of the views and resolutions.

    Returns:
        float32 [B, 3, size, size].
    """
    views = []
    for part in images.chunk(LOW_RES_GROUPS):
        low = int(torch.randint(LOW_RES_SIDES[0], LOW_RES_SIDES[1] + 1, (1,), generator=generator))
        height, width = part.shape[-2:]
        inset = torch.empty(len(part), 4).uniform_(*ZOOM_INSET, generator=generator).clamp_(min=0.0)
        edges = (inset.new_tensor([0.0, 0.0, 1.0, 1.0]) - inset).abs()  # fractions x1, y1, x2, y2
        boxes = edges * inset.new_tensor([width, height, width, height])
        rois = torch.cat([torch.arange(len(part))[:, None].float(), boxes], dim=1)
        small = roi_align(part, rois, (low, low), sampling_ratio=0, aligned=True)
        views.append(F.interpolate(small, (size, size), mode="bilinear", align_corners=False))
    return torch.cat(views)


def _optimizer(model: nn.Module, params: "TinyClipParams") -> tuple[torch.optim.Optimizer, object]:
    """AdamW that decays the weights of matrices and kernels alone, and the one-cycle schedule of its rate."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    free = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": decayed, "weight_decay": params.weight_decay}, {"params": free, "weight_decay": 0.0}]
    # Fused: the tokenizer's 49,408 embeddings cost 3 ms a step instead of 40.
    optimizer = torch.optim.AdamW(groups, lr=params.lr, betas=BETAS, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        params.lr,
        total_steps=params.iterations,
        pct_start=params.warmup_fraction,
        cycle_momentum=False,
    )
    return optimizer, schedule


def save_clip(model: nn.Module, path: Path) -> None:
    """Write a state dict that open_clip loads by path, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    torch.save(model.state_dict(), temporary)
    os.replace(temporary, path)
