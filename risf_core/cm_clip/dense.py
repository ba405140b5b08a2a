"""Embeddings of all boxes of an image from one forward pass, by RoIAlign on a feature map of CLIP's image tower.

A tower has a stem and four stages (a transformer's blocks are cut into four). The first ones run once on the image;
RoIAlign makes each box a grid as large as the tower has for its own input size there; the others and the tower's own
pooling run on these grids. So a box that covers an image of the model's input size has that image's embedding. For
any other box it is an approximation: the shared stages saw what lies around it, and cut no border. Fewer shared
stages are nearer to the crops. The path pays where an image has more boxes than its area, as the tower sees it, has
areas of the model's input.

A class token is one token for each box: it attends to itself and the patches of its box, as the mask class tokens of
Ding et al. (Open-vocabulary universal image segmentation with MaskCLIP, ICML 2023).
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from timm.layers import Format, resample_abs_pos_embed
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn
from torchvision.ops import roi_align

from risf_core.errors import ParamsError

STAGES = 4


@dataclass(frozen=True)
class Parts:
    """A tower in parts, each from map [N, C, h, w] to map; `pool` makes embeddings [N, D].

    ``strides``: input pixels between cells after the stem and after each stage. ``class_token``: [1, 1, C] as it
    enters the first stage; None for towers that pool their map, and then stages take no tokens.
    """

    stem: Callable[[Tensor], Tensor]
    stages: Sequence[Callable]
    pool: Callable[..., Tensor]
    strides: tuple[int, ...]
    class_token: Tensor | None = None


class DenseTower:
    """An image tower that embeds the boxes of an image in one forward pass.

    Args:
        visual: The tower.
        shared: How many of its four stages run once on the image; 4 for all.

    Attributes:
        stride: The sides of an image must be multiples of it.

    Raises:
        ParamsError: If the stages of such a tower are not known.
    """

    def __init__(self, visual: nn.Module, *, shared: int) -> None:
        if not 0 <= shared <= STAGES:
            raise ParamsError(f"dense_stages is {shared}. Expected 0 to {STAGES}.")
        self.parts, self.shared = _parts(visual), shared
        self.stride = max(self.parts.strides[: shared + 1])
        size = visual.image_size
        rows, columns = (size, size) if isinstance(size, int) else size
        stride = self.parts.strides[shared]
        self._grid, self._scale = (rows // stride, columns // stride), 1.0 / stride

    def embed(self, image: Tensor, boxes: Tensor, *, batch_size: int) -> Tensor:
        """Embeddings, not normalised, of boxes [N, 4] in pixels of a normalised image [1, 3, h, w]: [N, D]."""
        if self.parts.class_token is not None:
            return torch.cat([self._embed_with_tokens(image, part) for part in boxes.split(batch_size)])
        features = self.parts.stem(image)
        for stage in self.parts.stages[: self.shared]:
            features = stage(features)
        return torch.cat([self._embed_grids(self._grids(features, b)) for b in boxes.split(batch_size)])

    def _grids(self, features: Tensor, boxes: Tensor) -> Tensor:
        """RoIAlign of a map [1, C, h, w]: [N, C, *grid]; the sampling is the detector's, in float32."""
        rois = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], dim=1)
        grids = roi_align(features.float(), rois, self._grid, self._scale, sampling_ratio=0, aligned=True)
        return grids.to(features.dtype)

    def _embed_grids(self, grids: Tensor) -> Tensor:
        for stage in self.parts.stages[self.shared :]:
            grids = stage(grids)
        return self.parts.pool(grids)

    def _embed_with_tokens(self, image: Tensor, boxes: Tensor) -> Tensor:
        """The tokens are the image's own, then one for each box: [1, 1 + N, C]."""
        features = self.parts.stem(image)
        tokens = self.parts.class_token.expand(1, 1 + len(boxes), -1)
        mask = _token_mask(boxes * self._scale, features.shape[2:])
        for stage in self.parts.stages[: self.shared]:
            features, tokens = stage(features, tokens, mask)
        grids, tokens = self._grids(features, boxes), tokens[0, 1:, None]  # [N, C, *grid], [N, 1, C]
        for stage in self.parts.stages[self.shared :]:
            grids, tokens = stage(grids, tokens, None)
        return self.parts.pool(grids, tokens)


def _token_mask(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Who may not attend to whom, bool [1 + N + P, 1 + N + P]: the image's token, those of boxes, P patches by rows.

    Args:
        boxes: [N, 4] in cells of the map.
        size: (rows, columns) of the map.
    """
    rows, columns = (torch.arange(count, device=boxes.device) + 0.5 for count in size)
    low, high = boxes[:, :2], boxes[:, 2:]
    centres = ((low + high) / 2).floor() + 0.5  # its own cell is always seen
    x_in = ((columns > low[:, :1]) & (columns < high[:, :1])) | (columns == centres[:, :1])
    y_in = ((rows > low[:, 1:]) & (rows < high[:, 1:])) | (rows == centres[:, 1:])
    inside = (y_in[:, :, None] & x_in[:, None, :]).flatten(1)  # [N, rows] x [N, columns] -> [N, P]
    count = len(boxes)
    mask = torch.ones(*[1 + count + inside.shape[1]] * 2, dtype=torch.bool, device=boxes.device)
    mask[0, 0] = mask[0, 1 + count :] = mask[1 + count :, 0] = mask[1 + count :, 1 + count :] = False
    mask[1 : 1 + count, 1 + count :] = ~inside
    mask[1 : 1 + count, 1 : 1 + count].fill_diagonal_(False)
    return mask


def _parts(visual: nn.Module) -> Parts:
    if isinstance(visual, ModifiedResNet):
        stages = (visual.layer1, visual.layer2, visual.layer3, visual.layer4)
        return Parts(visual.stem, stages, visual.attnpool, (4, 4, 8, 16, 32))
    if isinstance(visual, VisionTransformer):
        blocks = visual.transformer.resblocks
        if all(type(block) is ResidualAttentionBlock for block in blocks):
            return _vit_parts(visual, blocks)
    trunk = visual.trunk if isinstance(visual, TimmModel) else None
    if isinstance(trunk, TimmVisionTransformer) and trunk.num_prefix_tokens == 0:
        return _timm_vit_parts(visual, trunk)
    if isinstance(trunk, ConvNeXt):
        reductions = [info["reduction"] for info in trunk.feature_info]
        pool = nn.Sequential(trunk.norm_pre, trunk.head, visual.head)
        return Parts(trunk.stem, trunk.stages, pool, (reductions[0], *reductions))
    if isinstance(trunk, SwinTransformer):
        return _swin_parts(visual, trunk)
    kind = type(visual if trunk is None else trunk).__name__
    raise ParamsError(f'path "dense" does not know the stages of this image tower ({kind}). Use path "crop".')


def _quarters(blocks: Sequence[nn.Module]) -> list[Sequence[nn.Module]]:
    ends = [round(stage * len(blocks) / STAGES) for stage in range(STAGES + 1)]
    return [blocks[start:stop] for start, stop in zip(ends[:-1], ends[1:])]


def _vit_parts(visual: VisionTransformer, blocks: nn.ModuleList) -> Parts:
    positions = visual.positional_embedding

    def stem(image: Tensor) -> Tensor:
        patches = visual.conv1(image)  # [1, 3, H, W] -> [1, C, h, w]
        size = patches.shape[2:]
        moved = resample_abs_pos_embed(
            positions[None, 1:], size, visual.grid_size, num_prefix_tokens=0, verbose=False
        )
        return _to_map(visual.ln_pre(patches.flatten(2).transpose(1, 2) + moved), size)

    def stage(blocks: Sequence[nn.Module]) -> Callable:
        def run(grids: Tensor, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
            count = tokens.shape[1]
            sequence = torch.cat([tokens, grids.flatten(2).transpose(1, 2)], dim=1)
            bias = None if mask is None else sequence.new_zeros(mask.shape).masked_fill_(mask, -torch.inf)
            for block in blocks:
                sequence = block(sequence, attn_mask=bias)
            return _to_map(sequence[:, count:], grids.shape[2:]), sequence[:, :count]

        return run

    def pool(grids: Tensor, tokens: Tensor) -> Tensor:
        sequence = torch.cat([tokens, grids.flatten(2).transpose(1, 2)], dim=1)
        return visual._pool(sequence)[0] @ visual.proj

    token = visual.ln_pre(visual.class_embedding + positions[0])[None, None]
    strides = (visual.patch_size[0],) * (STAGES + 1)
    return Parts(stem, [stage(part) for part in _quarters(blocks)], pool, strides, token)


def _timm_vit_parts(visual: TimmModel, trunk: TimmVisionTransformer) -> Parts:
    """Of one without a class token."""
    embed = _any_size(trunk.patch_embed)
    grid = trunk.patch_embed.grid_size

    def stem(image: Tensor) -> Tensor:
        patches = embed(image)  # [1, 3, H, W] -> [1, h, w, C]
        size, tokens = patches.shape[1:3], patches.flatten(1, 2)
        if trunk.pos_embed is not None:
            tokens = tokens + resample_abs_pos_embed(trunk.pos_embed, size, grid, num_prefix_tokens=0)
        return _to_map(trunk.norm_pre(tokens), size)

    def stage(blocks: Sequence[nn.Module]) -> Callable[[Tensor], Tensor]:
        def run(grids: Tensor) -> Tensor:
            tokens = grids.flatten(2).transpose(1, 2)
            for block in blocks:
                tokens = block(tokens)
            return _to_map(tokens, grids.shape[2:])

        return run

    def pool(grids: Tensor) -> Tensor:
        return visual.head(trunk.forward_head(trunk.norm(grids.flatten(2).transpose(1, 2))))

    stages = [stage(part) for part in _quarters(trunk.blocks)]
    return Parts(stem, stages, pool, (visual.image_size[0] // grid[0],) * (STAGES + 1))


def _swin_parts(visual: TimmModel, trunk: SwinTransformer) -> Parts:
    """Its four layers, or the quarters of the blocks of one with fewer layers."""
    embed = _any_size(trunk.patch_embed)
    units = [[(layer.downsample, block) for block in layer.blocks] for layer in trunk.layers]
    for layer in units:  # a layer begins with what halves the map
        layer[1:] = [(nn.Identity(), block) for _, block in layer[1:]]
    stages = units if len(units) == STAGES else _quarters(sum(units, []))
    strides = [visual.image_size[0] // trunk.patch_embed.grid_size[0]]
    for stage in stages:
        strides.append(strides[-1] * 2 ** sum(not isinstance(halve, nn.Identity) for halve, _ in stage))

    def run(stage: Sequence[tuple[nn.Module, nn.Module]], grids: Tensor) -> Tensor:
        tokens = grids.permute(0, 2, 3, 1)  # its layers take [N, h, w, C]
        for halve, block in stage:
            tokens = block(halve(tokens))
        return tokens.permute(0, 3, 1, 2)

    def pool(grids: Tensor) -> Tensor:
        return visual.head(trunk.forward_head(trunk.norm(grids.permute(0, 2, 3, 1))))

    moved = [[(halve, _any_map(block)) for halve, block in stage] for stage in stages]
    steps = [partial(run, stage) for stage in moved]
    return Parts(lambda image: embed(image).permute(0, 3, 1, 2), steps, pool, tuple(strides))


def _any_map(block: nn.Module) -> nn.Module:
    """A Swin block, weights shared, whose mask of shifted windows is that of the map at hand."""
    block = copy.copy(block)
    block.dynamic_mask = True
    return block


def _any_size(embed: nn.Module) -> nn.Module:
    """timm's cut into patches, weights shared, of images of any size: [1, 3, H, W] -> [1, h, w, C]."""
    embed = copy.copy(embed)
    embed.strict_img_size, embed.flatten, embed.output_fmt = False, False, Format.NHWC
    return embed


def _to_map(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """Tokens [N, h * w, C] as a map [N, C, h, w]."""
    return tokens.transpose(1, 2).unflatten(2, tuple(size))
