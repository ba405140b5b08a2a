"""Which floating-point type the forward pass of a training runs in."""

import torch


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the forward pass: ``auto`` is bf16 where the processor computes in it, else fp32.

    The choice rests on what the device is, not on a timing, so that a run repeats exactly on the same machine.
    """
    if precision == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported()
        else:
            fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        precision = "bf16" if fast else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
