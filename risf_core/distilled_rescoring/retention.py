"""How much of a gain is kept: a ratio of two paired means, with Fieller's interval. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit


class Retention(NamedTuple):
    """A ratio of means with its 95 % interval.

    Attributes:
        ratio: (distilled - none) / (CM-CLIP - none), of the means; NaN without values or with a denominator of 0.
        low: Lower end; -inf or NaN where there is none.
        high: Upper end; inf or NaN where there is none.
        n: Number of pairs.
    """

    ratio: float
    low: float
    high: float
    n: int


def retention(kept: Sequence[float], whole: Sequence[float], *, confidence: float = 0.95) -> Retention:
    """The ratio of two paired means, ``mean(kept) / mean(whole)``, with the interval of Fieller (1954).

    The interval is all ratios r for which a paired t test cannot refuse ``mean(kept - r whole) = 0``. It is bounded
    where the mean of ``whole`` differs from 0 at that confidence; elsewhere the ends are infinite.

    Args:
        kept: Gains of the distilled head, one for each draw.
        whole: Gains of CM-CLIP for the same draws.
        confidence: Coverage, in (0, 1).
    """
    kept, whole = np.asarray(kept, dtype=float), np.asarray(whole, dtype=float)
    n = len(kept)
    if n == 0 or whole.mean() == 0:
        return Retention(math.nan, math.nan, math.nan, n)
    top, bottom = kept.mean(), whole.mean()
    if n == 1:
        return Retention(top / bottom, math.nan, math.nan, 1)
    (s_kk, s_kw), (_, s_ww) = np.cov(kept, whole) / n
    square = float(stdtrit(n - 1, 0.5 + confidence / 2)) ** 2
    a, b, c = bottom**2 - square * s_ww, top * bottom - square * s_kw, top**2 - square * s_kk
    root = b**2 - a * c
    if a <= 0 or root < 0:
        return Retention(top / bottom, -math.inf, math.inf, n)
    return Retention(top / bottom, (b - math.sqrt(root)) / a, (b + math.sqrt(root)) / a, n)
