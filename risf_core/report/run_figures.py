"""Figures of one run: its training curve, a CLIP's confusion matrix, the losses' value and gradient."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from risf_core.loss_curves import BNRL
from risf_core.report.figure_style import (
    COLORS,
    LINES,
    MARKERS,
    Drawing,
    legend_below,
    look_of,
    message,
    panels,
    styled,
)

SITUATION_TITLES = {
    "p_y": "an object of class y",
    "p_k": "a hard negative: background, taken for class k",
}


@styled
def training_figure(curves: Mapping[str, Sequence[Mapping[str, float]]], *, parts: bool = True) -> Drawing:
    """The training losses over the steps, one panel for each training.

    Args:
        curves: Name of a training to its curve, a list of ``{"iteration": ..., "loss": ..., <part>: ...}``.
        parts: Whether to draw the parts of the loss too.
    """
    if not curves:
        return message("Nothing was trained here: the weights are those of a file.")
    figure, axes = panels(1, len(curves), width=3.8, height=2.7)
    for ax, (name, curve) in zip(axes[0], curves.items(), strict=True):
        points = pd.DataFrame(list(curve))
        others = [column for column in points if column not in ("iteration", "loss")]
        columns = ["loss", *(others if parts and len(others) > 1 else [])]  # one part alone is the sum
        for place, column in enumerate(columns):
            index = place % len(COLORS)
            label = "sum" if column == "loss" and len(columns) > 1 else column
            ax.plot(
                points["iteration"], points[column], color=COLORS[index], linestyle=LINES[index], label=label,
                marker=MARKERS[index], markersize=4, markevery=max(1, len(points) // 8),
            )  # fmt: skip
        ax.set(title=name, xlabel="step", ylabel="loss", ylim=(0, None))
        if len(columns) > 1:
            ax.legend()
    caption = "Training losses over the steps; each point is the mean since the point before it. No validation loss."
    return Drawing(figure, caption)


@styled
def confusion_figure(
    matrix: Sequence[Sequence[float]], class_names: Sequence[str], *, title: str = ""
) -> Drawing:
    """A confusion matrix of counts, shown as percent of each true class.

    Args:
        matrix: Counts [C, C], rows true, columns predicted.
        class_names: The C names.
        title: Name of the CLIP and the split.
    """
    import seaborn  # here alone: it takes a second to import, which most notebooks need not spend

    counts = np.asarray(matrix, dtype=float)
    totals = counts.sum(axis=1, keepdims=True)
    shares = 100 * np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    size = 0.36 * len(class_names) + 1.6
    figure, axes = panels(1, 1, width=size, height=size - 1.0)
    ax = axes[0, 0]
    texts = np.where(shares >= 0.5, np.char.mod("%.0f", shares), "")
    names = [f"{name} ({total:.0f})" for name, total in zip(class_names, totals[:, 0], strict=True)]
    seaborn.heatmap(
        shares, vmin=0, vmax=100, cmap="cividis", annot=texts, fmt="", annot_kws={"fontsize": 7}, square=True, ax=ax,
        xticklabels=class_names, yticklabels=names, cbar_kws={"label": "percent of the true class", "shrink": 0.8},
    )  # fmt: skip
    ax.tick_params(axis="x", rotation=90)
    ax.tick_params(axis="y", rotation=0)
    ax.set(xlabel="predicted", ylabel="true (number of crops)", title=title)
    accuracy = 100 * np.trace(counts) / max(1.0, counts.sum())
    caption = (
        f"Confusion matrix {f'of {title}, ' if title else ''}in percent of each true class (numbers below 0.5 are not "
        f"written). {accuracy:.1f} % of the {counts.sum():.0f} crops are right."
    )
    return Drawing(figure, caption)


@styled
def loss_curves_figure(curves: pd.DataFrame, *, bnrl: Mapping[str, float] = BNRL) -> Drawing:
    """Value (top) and gradient (below) of the losses over p_y and over a hard negative's p_k.

    Args:
        curves: The frame of :func:`risf_core.loss_curves.loss_curves`.
        bnrl: The hyper-parameters that it was made with; ``beta`` None means ``1 - alpha``.
    """
    names = list(dict.fromkeys(curves["loss"]))
    figure, axes = panels(2, 2, width=3.6, height=2.5, sharex="col")
    for column, situation in enumerate(("p_y", "p_k")):
        for row, what in enumerate(("value", "gradient")):
            ax = axes[row, column]
            for name in names:
                own = curves[(curves["situation"] == situation) & (curves["loss"] == name)]
                line, points = (own[own["kind"] == kind] for kind in ("closed form", "autograd"))
                look = look_of("loss", name, names)
                ax.plot(line["p"], line[what], color=look["color"], linestyle=look["linestyle"])
                ax.plot(
                    points["p"],
                    points[what],
                    label=name,
                    **look | {"linestyle": "none", "markerfacecolor": "none"},
                )
            ax.axhline(0, color="black", linewidth=0.6)
        axes[0, column].set_title(SITUATION_TITLES[situation])
        axes[0, column].set_ylim(0, 4.2)
        axes[1, column].set_xlabel(f"${situation}$")
    axes[0, 0].set_ylabel("loss of one RoI")
    axes[1, 0].set_ylabel("gradient by the logit of y")
    axes[1, 1].set_ylabel("gradient by the logit of k")
    legend_below(figure, axes[0, 0])
    beta = 1 - bnrl["alpha"] if bnrl.get("beta") is None else bnrl["beta"]
    caption = (
        "Value and gradient of the losses for one RoI: lines are the closed forms, open markers the code's autograd. "
        "Left: an object of class y, the rest of the probability spread evenly. Right: a RoI labelled background "
        "that the detector takes for class k, as happens where an object was not annotated; each other class has 0.1 "
        f"%. ce: cross-entropy; focal: γ 2; bnrl: α {bnrl['alpha']:g}, β {beta:g}, γ {bnrl['gamma']:g}, "
        f"ε {bnrl['epsilon']:g}, ω_bg {bnrl['background_weight']:g}."
    )
    return Drawing(figure, caption)
