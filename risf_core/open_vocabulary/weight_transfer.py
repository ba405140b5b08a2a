"""Weight transfer (WT): the classifier's projection made from the frozen projection of distillation, and its controls.

Published: ``W_P = leaky_relu(W_D Th1^T + b1) Th2^T + b2`` from the frozen ``W_D [d, D]`` of a detector trained with
RKD; ``h(e) = W_P e + Lin2(leaky_relu(Lin1(e)))``, a residual in feature space; W_P is made anew in each step, b_D is
not used for classification. RKD goes on with the frozen ``f_D``, so that it holds features and backbone alone.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from risf_core.errors import ParamsError

SLOPE = 0.1  # of the leaky ReLU
RESIDUAL_WIDTH = 1024
HEADS = ("shared", "transfer", "free", "two_heads", "frozen", "random_source")


class WeightTransfer(nn.Module):
    """h(e) with W_P made from a frozen W_D.

    Args:
        source: W_D, float [d, D]; kept as a constant.
        width: Of the residual MLP.
    """

    def __init__(self, source: Tensor, *, width: int = RESIDUAL_WIDTH) -> None:
        super().__init__()
        dim_out, dim = source.shape
        self.register_buffer("source", source.detach().clone())
        self.theta1, self.theta2 = nn.Linear(dim, dim_out), nn.Linear(dim_out, dim)
        self.residual = _residual(dim, dim_out, width)

    def weight(self) -> Tensor:
        """W_P [d, D]."""
        return self.theta2(F.leaky_relu(self.theta1(self.source), SLOPE))

    def forward(self, features: Tensor) -> Tensor:  # [R, D] -> [R, d]
        return F.linear(features, self.weight()) + self.residual(features)


class FreeProjection(nn.Module):
    """Control: a free W_P (no bias) under the same residual MLP; it knows nothing of W_D."""

    def __init__(self, dim: int, dim_out: int, *, width: int = RESIDUAL_WIDTH) -> None:
        super().__init__()
        self.projection = nn.Linear(dim, dim_out, bias=False)
        self.residual = _residual(dim, dim_out, width)

    def forward(self, features: Tensor) -> Tensor:  # [R, D] -> [R, d]
        return self.projection(features) + self.residual(features)


def _residual(dim: int, dim_out: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, width), nn.LeakyReLU(SLOPE), nn.Linear(width, dim_out))


def classification_head(kind: str, projection: nn.Linear, *, width: int = RESIDUAL_WIDTH) -> nn.Module | None:
    """What classifies instead of the projection f; None where f itself does.

    Args:
        kind: "shared" (f classifies and distils), "transfer" (the published WT), or a control of it: "free" (W_P
            without W_D), "two_heads" (a second f of its own, that starts as the first), "frozen" (f frozen, and
            shared), "random_source" (WT from a random W_D).
        projection: f, which is left as it is; all kinds but "shared" and "two_heads" also want it frozen (see
            `freezes_projection`).

    Raises:
        ParamsError: If the kind is unknown.
    """
    dim_out, dim = projection.weight.shape
    if kind == "transfer":
        return WeightTransfer(projection.weight, width=width)
    if kind == "random_source":
        return WeightTransfer(nn.Linear(dim, dim_out).weight, width=width)
    if kind == "free":
        return FreeProjection(dim, dim_out, width=width)
    if kind == "two_heads":
        second = nn.Linear(dim, dim_out)
        second.load_state_dict(projection.state_dict())
        return second
    if kind in ("shared", "frozen"):
        return None
    raise ParamsError(f"head is {kind!r}. Expected one of: {', '.join(HEADS)}.")


def freezes_projection(kind: str) -> bool:
    """Whether f is frozen with this kind of head."""
    return kind in ("transfer", "free", "frozen", "random_source")


def linear_cka(a: Tensor, b: Tensor) -> float:
    """Linear centred kernel alignment of two sets of embeddings [N, d_a] and [N, d_b] of the same regions: 0 to 1."""
    a, b = ((x - x.mean(dim=0)).double() for x in (a, b))
    cross = (a.T @ b).square().sum()
    return float(cross / ((a.T @ a).square().sum() * (b.T @ b).square().sum()).sqrt().clamp(min=1e-30))
