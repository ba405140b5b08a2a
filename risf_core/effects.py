"""The effects that claims rest on, as contrasts of fine-tunings: loss, learning rate, re-scoring. Imports no torch."""

from typing import NamedTuple

SELECT_SPLIT = 2  # learning rates are chosen on it, so that what they give is not reported on it
ON_SELECT_SPLIT = f", on split {SELECT_SPLIT}, where the rates were chosen"


class Cell(NamedTuple):
    """One side of an effect: loss, whether at its best learning rate, whether re-scored."""

    loss: str
    is_best: bool = False
    is_rescored: bool = False

    @property
    def name(self) -> str:
        """As tables have it, such as ``ce at its best rate + CM-CLIP``."""
        rate = " at its best rate" if self.is_best else ""
        return f"{self.loss}{rate}{' + CM-CLIP' if self.is_rescored else ''}"


class Effect(NamedTuple):
    """A contrast of cells.

    Attributes:
        name: As the column ``effect`` has it.
        loss: The loss that both sides share, or nothing.
        terms: The cells with their signs.
        is_claim: Whether it belongs to the family of claims that are tested together; the others describe.
    """

    name: str
    loss: str
    terms: tuple[tuple[int, Cell], ...]
    is_claim: bool = True

    @property
    def takes_best(self) -> bool:
        """Whether a learning rate was chosen for a side."""
        return any(cell.is_best for _, cell in self.terms)


def _gain(loss: str, *, is_best: bool = False) -> Effect:
    sides = (1, Cell(loss, is_best, True)), (-1, Cell(loss, is_best))
    return Effect("cm_clip - none", Cell(loss, is_best).name, sides, is_claim=not is_best)


def _difference(
    name: str, second: Cell, first: Cell, *, is_rescored: bool = False, is_claim: bool = True
) -> Effect:
    sides = second._replace(is_rescored=is_rescored), first._replace(is_rescored=is_rescored)
    terms = (1, sides[0]), (-1, sides[1])
    return Effect(f"{name}{', with cm_clip' if is_rescored else ''}", "", terms, is_claim)


CE, BNRL = Cell("ce"), Cell("bnrl")
CE_BEST, BNRL_BEST = Cell("ce", True), Cell("bnrl", True)
CELLS = tuple(
    cell._replace(is_rescored=is_rescored)
    for is_rescored in (False, True)
    for cell in (CE, CE_BEST, BNRL, BNRL_BEST)
)
EFFECTS = (
    _gain("ce"),
    _gain("bnrl"),
    _gain("ce", is_best=True),
    _gain("bnrl", is_best=True),
    _difference("bnrl - ce", BNRL, CE),
    _difference("bnrl - ce", BNRL, CE, is_rescored=True),
    _difference("bnrl - ce at its best rate", BNRL, CE_BEST, is_claim=False),
    _difference("bnrl - ce at its best rate", BNRL, CE_BEST, is_rescored=True),
    _difference("bnrl - ce, both at their best rate", BNRL_BEST, CE_BEST),
    _difference("bnrl - ce, both at their best rate", BNRL_BEST, CE_BEST, is_rescored=True, is_claim=False),
    _difference("ce at its best rate - ce", CE_BEST, CE, is_claim=False),
    _difference("bnrl at its best rate - bnrl", BNRL_BEST, BNRL, is_claim=False),
    Effect("interaction", "", (*_gain("bnrl").terms, *((-sign, cell) for sign, cell in _gain("ce").terms))),
)
