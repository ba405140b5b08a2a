"""What CLIP's image tower costs here: the precision it computes in, and how many crops fit a memory budget."""

import copy

import torch
from torch import nn

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def in_precision(model: nn.Module, precision: str) -> nn.Module:
    """The model with its image tower's weights in a precision; the texts' tower is shared, the given model stays."""
    dtype = PRECISIONS[precision]
    tower = {id(weight) for weight in model.visual.parameters()}
    if all(weight.dtype == dtype for weight in model.visual.parameters()):
        return model
    # what `deepcopy` finds in its memo it takes as the copy
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for tensor in (*model.visual.parameters(), *model.visual.buffers()):
        if tensor.is_floating_point():
            cast = tensor.detach().to(dtype)
            memo[id(tensor)] = nn.Parameter(cast, requires_grad=False) if id(tensor) in tower else cast
    return copy.deepcopy(model, memo)
