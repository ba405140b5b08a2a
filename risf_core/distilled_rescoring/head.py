"""The distilled head: from the detector's feature of a region to CLIP's space of embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from risf_core.detector.checkpoints import read_checkpoint, save_checkpoint
from risf_core.errors import CheckpointError

SMALLEST_SPREAD = 1e-5  # of a feature: a constant one is not blown up


class DistilledHead(nn.Module):
    """g: R^D -> R^d on standardised region features: linear, or Linear-GELU-Linear.

    Args:
        dim: D, of the detector's feature (the mean of its last stage over the box).
        embed_dim: d, of CLIP's embeddings.
        hidden: Width of the hidden layer; 0 for a linear head.
    """

    def __init__(self, dim: int, embed_dim: int, *, hidden: int = 0) -> None:
        super().__init__()
        self.hidden = hidden
        self.layers = nn.Linear(dim, embed_dim)
        if hidden:
            self.layers = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, embed_dim))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("spread", torch.ones(dim))

    def standardise(self, features: Tensor) -> None:
        """Take mean and standard deviation of features [N, D] as those of the input."""
        self.mean.copy_(features.mean(dim=0))
        self.spread.copy_(features.std(dim=0, correction=0).clamp(min=SMALLEST_SPREAD))

    def forward(self, features: Tensor) -> Tensor:  # [N, D] -> [N, d], not normalised
        return self.layers((features - self.mean) / self.spread)

    @torch.inference_mode()
    def embed(self, features: np.ndarray | Tensor) -> np.ndarray:
        """Normalised embeddings of region features [N, D]: float32 [N, d]."""
        features = torch.as_tensor(features, dtype=torch.float32, device=self.mean.device)
        return F.normalize(self(features), dim=1).cpu().numpy()

    @property
    def num_parameters(self) -> int:
        """Weights and biases."""
        return sum(parameter.numel() for parameter in self.parameters())

    def save(self, path: Path) -> None:
        """Write the head atomically."""
        save_checkpoint(path, {"head": self.state_dict(), "hidden": self.hidden})

    @classmethod
    def load(cls, path: Path) -> DistilledHead:
        """Read a head that `save` wrote.

        Raises:
            CheckpointError: If the file is missing, unreadable or holds anything else.
        """
        content = read_checkpoint(path)
        try:
            state, hidden = content["head"], content["hidden"]
            last = state["layers.2.weight" if hidden else "layers.weight"]
            head = cls(len(state["mean"]), len(last), hidden=hidden)
            head.load_state_dict(state)
        except (KeyError, RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"{path}: not a distilled head ({error}). Delete it and run again."
            ) from error
        return head.eval()


def ridge_head(features: Tensor, embeds: Tensor, *, penalty: float) -> DistilledHead:
    """The linear head of least squares in closed form.

    ``min_W mean_n |W x_n + b - v_n|^2 + penalty |W|^2`` over standardised features x; the bias is not penalised.

    Args:
        features: [N, D].
        embeds: Targets, [N, d].
        penalty: Above 0.
    """
    head = DistilledHead(features.shape[1], embeds.shape[1])
    head.standardise(features)
    inputs = ((features - head.mean) / head.spread).double()
    targets = embeds.double()
    middle, offset = inputs.mean(dim=0), targets.mean(dim=0)
    inputs, targets = inputs - middle, targets - offset
    gram = inputs.T @ inputs / len(inputs) + penalty * torch.eye(inputs.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, inputs.T @ targets / len(inputs)).T  # [d, D]
    with torch.no_grad():
        head.layers.weight.copy_(weight)
        head.layers.bias.copy_(offset - weight @ middle)
    return head.eval()
