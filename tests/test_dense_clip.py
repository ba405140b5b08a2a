"""One pass an image: a box over all of it has its embedding, other boxes are near their crops, choices are checked."""

import pytest
import torch

from risf_core.cm_clip import CMCLIP
from risf_core.cm_clip.dense import DenseTower, _token_mask
from risf_core.errors import DataError, ParamsError
from tests.small_clips import SWIN, TOWERS, long_tokens, small_clip, swin_tower

KNOWN = [kind for kind in TOWERS if kind != "timm_resnet"]


def noise_image(height: int, width: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def tower(kind: str) -> torch.nn.Module:
    return swin_tower() if kind == SWIN else small_clip(kind).visual


@pytest.mark.parametrize("kind", [*KNOWN, SWIN])
@torch.inference_mode()
def test_a_box_over_the_whole_image_has_its_embedding(kind):
    visual = tower(kind)
    size = visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0.0, 0.0, width, height], [5.0, 9.0, width / 2, height / 2]])
    expected, others = visual(image)[0], []
    for shared in range(5):
        whole, part = DenseTower(visual, shared=shared).embed(image, boxes, batch_size=8)
        assert torch.allclose(whole, expected, atol=1e-5), shared
        # of timm's test models the smallest layer scales leave little of a transformer's last blocks
        assert (part - expected).abs().max() > 1e-3 * expected.abs().max()
        others.append(part)
    assert not torch.allclose(
        others[0], others[4], atol=1e-6
    )  # what lies around a box matters to shared stages


@pytest.mark.parametrize("kind", ["resnet", "vit", "timm_vit"])
def test_boxes_are_those_of_the_image_however_many_share_a_batch(kind):
    model, image = small_clip(kind), noise_image(90, 130)
    boxes = torch.tensor(
        [[4.0, 6.0, 60, 70], [70, 8, 129, 80], [0, 0, 130, 90], [20, 30, 25, 33], [-9, 40, 30, 200]]
    )
    clips = [
        CMCLIP(model, long_tokens, ["cat", "dog"], path="dense", batch_size=count) for count in (1, 2, 64)
    ]
    embeds = [clip.embed_boxes(image, boxes) for clip in clips]
    assert embeds[0].shape == (5, 32) and torch.allclose(embeds[0].norm(dim=1), torch.ones(5))
    for other in embeds[1:]:
        assert torch.allclose(embeds[0], other, atol=1e-5)
    inside = clips[0].embed_boxes(image, torch.tensor([[0.0, 40.0, 30.0, 90.0]]))
    assert torch.allclose(embeds[0][4:], inside, atol=1e-6)  # what leaves the image is cut off
    assert clips[0].embed_boxes(image, torch.empty(0, 4)).shape == (0, 32)
    with pytest.raises(DataError, match="finite"):
        clips[0].embed_boxes(image, torch.tensor([[0.0, 0.0, float("nan"), 1.0]]))


@pytest.mark.parametrize("kind", ["resnet", "timm_vit", "convnext"])
def test_with_no_shared_stage_the_path_is_near_the_crops(kind):
    """Only the stem sees the whole image then, so an even image gives the embedding of its crops away from edges."""
    model = small_clip(kind)
    image = torch.full((3, 200, 200), 90, dtype=torch.uint8)
    boxes = torch.tensor([[40.0, 40.0, 150.0, 150.0]])
    crop, dense = (
        CMCLIP(model, long_tokens, ["cat", "dog"], path=path, dense_stages=0, dense_scale=2.0).embed_boxes(
            image, boxes
        )
        for path in ("crop", "dense")
    )
    assert torch.cosine_similarity(crop, dense).item() > 0.9


def test_each_token_of_a_box_sees_itself_and_its_patches_alone():
    boxes = torch.tensor([[0.0, 0.0, 2.0, 1.0], [2.2, 1.2, 2.4, 1.4]])  # of a map of 2 rows and 3 columns
    hidden = _token_mask(boxes, (2, 3)).int().tolist()
    image, patches = [0, 1, 1, 0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0, 0]
    assert hidden[0] == image and hidden[3:] == [patches] * 6
    assert hidden[1] == [1, 0, 1, 0, 0, 1, 1, 1, 1]
    assert hidden[2] == [1, 1, 0, 1, 1, 1, 1, 1, 0]  # smaller than a cell: the cell it lies in


def test_bf16_is_near_fp32_on_the_dense_path():
    model, image = small_clip("resnet"), noise_image(90, 130)
    boxes = torch.tensor([[4.0, 6.0, 60, 70], [70, 8, 129, 80]])
    full, half = (
        CMCLIP(model, long_tokens, ["cat", "dog"], path="dense", precision=precision).embed_boxes(
            image, boxes
        )
        for precision in ("fp32", "bf16")
    )
    assert half.dtype == torch.float32 and 1e-6 < (full - half).abs().max() < 0.05


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("timm_resnet", {}, r'stages of this image tower \(ResNet\). Use path "crop"'),
        ("vit", {"dense_stages": 5}, "dense_stages is 5. Expected 0 to 4"),
        ("vit", {"path": "sparse"}, "path is 'sparse'. Expected one of: crop, dense"),
    ],
)
def test_wrong_choices_are_named(kind, options, words):
    with pytest.raises(ParamsError, match=words):
        CMCLIP(small_clip(kind), long_tokens, ["cat"], **({"path": "dense"} | options))
