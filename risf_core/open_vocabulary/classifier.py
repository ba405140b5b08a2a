"""The fixed language-embedding classifier: region embeddings against the text features of class names.

``z = t * normalize(embedding) @ T (+ b)`` with the columns of T normalised, t = 50, scores by a sigmoid for each class.
The background has a column of zeros, so its logit is 0 (+ b): it takes no part in the detection loss nor in scores.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from risf_core.errors import ParamsError

TEMPERATURE = 50.0  # NORM_TEMP of the released configurations
FEDERATED_CLASSES, FEDERATED_POWER = 50, 0.5  # Detic's, for LVIS


class TextClassifier(nn.Module):
    """Cosine classifier whose weights are text features; nothing of it is trained but an optional bias.

    Args:
        texts: float [C, d], one text feature for each class; their length does not matter.
        temperature: Factor of the cosines.
        bias: Start of one learnable scalar added to all logits (-4.6 on LVIS); None: none (COCO).

    Attributes:
        texts_norm: float32 [d, C + 1], columns of length 1, the last of zeros; a buffer.

    Raises:
        ParamsError: If a text feature is zero or not finite.
    """

    def __init__(self, texts: Tensor, *, temperature: float = TEMPERATURE, bias: float | None = None) -> None:
        super().__init__()
        self.temperature = temperature
        self.bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))
        self.register_buffer("texts_norm", text_columns(texts), persistent=False)

    @property
    def num_classes(self) -> int:
        """C, without background."""
        return self.texts_norm.shape[1] - 1

    def set_texts(self, texts: Tensor) -> None:
        """Swap the vocabulary: text features [C', d] of other names, any number of them."""
        columns = text_columns(texts)
        if len(columns) != len(self.texts_norm):
            raise ParamsError(
                f"text features have {len(columns)} dimensions. Expected {len(self.texts_norm)}, those of the CLIP "
                "that the detector was trained with."
            )
        self.texts_norm = columns.to(self.texts_norm)

    def forward(self, embeddings: Tensor) -> Tensor:  # [R, d] -> logits [R, C + 1], background last
        logits = self.temperature * F.normalize(embeddings, dim=1) @ self.texts_norm.to(embeddings.dtype)
        return logits if self.bias is None else logits + self.bias


def text_columns(texts: Tensor) -> Tensor:
    """Text features [C, d] as normalised columns with background's zeros at the end: float32 [d, C + 1]."""
    texts = torch.as_tensor(texts).float()
    if texts.ndim != 2 or not torch.isfinite(texts).all() or not (texts != 0).any(dim=1).all():
        raise ParamsError(
            f"text features of shape {tuple(texts.shape)}: expected [C, d], finite, none of them zero. Encode the "
            "names anew."
        )
    return torch.cat([F.normalize(texts, dim=1), texts.new_zeros(1, texts.shape[1])]).T.contiguous()


def detection_loss(logits: Tensor, labels: Tensor, class_mask: Tensor) -> Tensor:
    """Sigmoid cross-entropy of the classes that have boxes, summed over classes, mean over RoIs.

    ``(1/R) sum_r sum_c m_c BCE(z_rc, 1[y_r = c])``; a background RoI has no positive class. The background's column is
    left out.

    Args:
        logits: [R, C + 1], background last.
        labels: int64 [R] in 0..C, C for background.
        class_mask: bool [C]: False for a class without boxes in the training set (novel, unused) or, in federated
            loss, not drawn for this batch; such a class gets no gradient.

    Returns:
        A scalar; 0 with a gradient of 0 without RoIs.
    """
    num_classes = logits.shape[1] - 1
    targets = F.one_hot(labels, num_classes + 1)[:, :-1].to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits[:, :-1], targets, reduction="none")
    return (losses * class_mask.to(losses.dtype)).sum() / max(len(labels), 1)


def federated_mask(
    labels: Tensor,
    image_counts: Tensor,
    *,
    num_classes: int = FEDERATED_CLASSES,
    power: float = FEDERATED_POWER,
) -> Tensor:
    """The classes that count in one batch of LVIS, where images are not annotated with all classes (Detic's way).

    The classes of the batch's labels, filled up to ``num_classes`` by others drawn without replacement with a chance
    proportional to ``image_count ** power``. Background is no class here and takes no place.

    Args:
        labels: int64 [R]; C and above is background.
        image_counts: [C], images that have boxes of the class; a class with 0 is never drawn.

    Returns:
        bool [C], from torch's global generator.
    """
    chances = image_counts.float().pow(power) * (image_counts > 0)
    chosen = torch.zeros(len(image_counts), dtype=torch.bool, device=labels.device)
    chosen[labels[labels < len(image_counts)].unique()] = True
    chances = chances.to(labels.device).masked_fill(chosen, 0.0)
    missing = min(num_classes - int(chosen.sum()), int((chances > 0).sum()))
    if missing > 0:
        chosen[torch.multinomial(chances, missing)] = True
    return chosen


def image_label_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Image-level supervision on pseudo boxes (PMS and ILS).

    ``sum_n w_n sum_k BCE(z_nk, 1[k = y_n])`` over ALL C + 1 columns, background's and those without boxes too: this is
    where classes that have names alone get their gradient. With ``w_n = 1 / (B |Y_n|)`` for image n of B with |Y_n|
    labels it is the released loss, before its weight of 0.1.

    Args:
        logits: [N, C + 1] of one pseudo box for each label.
        labels: int64 [N] in 0..C-1.
        weights: float [N].

    Returns:
        A scalar; 0 with a gradient of 0 for N = 0.
    """
    targets = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (losses.sum(dim=1) * weights.to(logits.dtype)).sum()


def with_common_offset(texts: Tensor, cosine: float) -> tuple[Tensor, Tensor]:
    """Text features moved along one common direction until their mean pairwise cosine has a value.

    CLIP's genuine texts stand in one narrow cone (mean pairwise cosine 0.77 for COCO's names); those of a small CLIP
    do not. The direction is orthogonal to all texts, so that the differences between them stay as they are.

    Args:
        texts: float [C, d], C from 2 to d - 1.
        cosine: The mean pairwise cosine wanted, above the present one and below 1.

    Returns:
        The moved features [C, d], and the direction, a unit vector [d].

    Raises:
        ParamsError: If no direction is left, or the cosine is out of range.
    """
    rows, now = F.normalize(texts.float(), dim=1), mean_pairwise_cosine(texts)
    if not now < cosine < 1:
        raise ParamsError(f"cosine is {cosine}. Expected more than the present {now:.3f} and less than 1.")
    if len(rows) >= rows.shape[1]:
        raise ParamsError(
            f"{len(rows)} texts of {rows.shape[1]} dimensions leave no direction orthogonal to all of them. Expected "
            "fewer texts than dimensions."
        )
    direction = torch.linalg.svd(rows, full_matrices=True).Vh[-1]
    # (x + s e)(y + s e) = xy + s^2 and |x + s e|^2 = 1 + s^2 for a unit vector e orthogonal to all x and y
    return rows + ((cosine - now) / (1 - cosine)) ** 0.5 * direction, direction


def mean_pairwise_cosine(texts: Tensor) -> float:
    """Mean cosine between different rows of [C, d]."""
    rows = F.normalize(texts.float(), dim=1)
    count = len(rows)
    return float(((rows @ rows.T).sum() - count) / (count * (count - 1)))


def class_columns(names: Sequence[str], class_names: Sequence[str]) -> list[int]:
    """The column of each name among the class names.

    Raises:
        ParamsError: If a name has none.
    """
    if missing := [name for name in names if name not in class_names]:
        raise ParamsError(
            f"{missing[0]!r} is no class of the vocabulary ({', '.join(list(class_names)[:5])}, ...)."
        )
    return [class_names.index(name) for name in names]
