"""The box head of an open-vocabulary detector: projection, text classifier and class-agnostic boxes."""

import torch
from torch import Tensor, nn

from risf_core.detector.rpn import at_least_float32
from risf_core.open_vocabulary.classifier import TextClassifier
from risf_core.open_vocabulary.weight_transfer import (
    RESIDUAL_WIDTH,
    classification_head,
    freezes_projection,
)


class OpenVocabularyPredictor(nn.Module):
    """Logits ``z(h(e))`` and one box regression for all classes; ``f`` gives the embeddings that are distilled.

    ``h`` is f itself, or another head that `use_head` puts in its place (weight transfer and its controls).

    Args:
        dim: D of the RoI features.
        texts: float [C, d].
        temperature: Factor of the cosines.
        bias: Start of the classifier's one bias; None: none.
    """

    def __init__(self, dim: int, texts: Tensor, *, temperature: float, bias: float | None) -> None:
        super().__init__()
        self.classifier = TextClassifier(texts, temperature=temperature, bias=bias)
        self.projection = nn.Linear(dim, len(self.classifier.texts_norm))  # f
        self.head: nn.Module | None = None  # h where it is not f
        hidden, deltas = nn.Linear(dim, dim), nn.Linear(dim, 4)
        nn.init.kaiming_uniform_(hidden.weight, a=1)
        nn.init.normal_(deltas.weight, std=0.001)
        nn.init.zeros_(hidden.bias)
        nn.init.zeros_(deltas.bias)
        self.bbox_pred = nn.Sequential(hidden, nn.ReLU(), deltas)

    @property
    def num_classes(self) -> int:
        """C of the present vocabulary, without background."""
        return self.classifier.num_classes

    def use_head(self, kind: str, *, width: int = RESIDUAL_WIDTH) -> None:
        """Classify by another head than f, and freeze f where that kind wants it; see `classification_head`."""
        self.head = classification_head(kind, self.projection, width=width)
        if self.head is not None:
            self.head.to(self.projection.weight.device)
        self.projection.requires_grad_(not freezes_projection(kind))

    def distilled(self, features: Tensor) -> Tensor:
        """``u`` before normalisation, what RKD compares with CLIP: [R, D] -> [R, d]."""
        return at_least_float32(self.projection(features))

    def classified(self, features: Tensor) -> Tensor:
        """The embedding that is compared with texts: [R, D] -> [R, d]."""
        return at_least_float32((self.head or self.projection)(features))

    def logits(self, features: Tensor) -> Tensor:
        """[R, D] -> [R, C + 1], background last."""
        embeddings = self.classified(features)
        with torch.autocast(features.device.type, enabled=False):
            return self.classifier(embeddings)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:  # [R, D] -> [R, C + 1], [R, 4]
        return self.logits(features), at_least_float32(self.bbox_pred(features))
