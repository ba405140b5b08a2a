import numpy as np
import pytest
import torch

from risf_core.loss_curves import BNRL, CE, FOCAL, closed_form, largest_difference, loss_curves, situation


def test_probabilities_sum_to_one_and_hold_the_one_that_varies():
    p = np.array([0.1, 0.7])
    for name in ("p_y", "p_k"):
        probs, label, column = situation(name, p)
        np.testing.assert_allclose(probs.sum(axis=1), 1)
        np.testing.assert_array_equal(probs[:, 0], p)
        assert (label, column) == ((0, 0) if name == "p_y" else (5, 0))


def test_cross_entropy_and_focal_by_hand():
    probs, label, column = situation("p_y", np.array([0.5]))
    value, gradient = closed_form(probs, label, column, **CE)
    assert value[0] == pytest.approx(np.log(2)) and gradient[0] == pytest.approx(-0.5)  # p_y - 1
    value, _ = closed_form(probs, label, column, **FOCAL)
    assert value[0] == pytest.approx(0.25 * np.log(2))


def test_bnrl_by_hand_for_two_columns():
    probs = np.array([[0.25, 0.75]])  # label background: w = 0.2, p_y = 0.75, p_k = 0.25
    value, _ = closed_form(probs, 1, 0, **BNRL)
    positive = 0.2 * 0.2 * 0.25**4 * -np.log(0.75)
    assert value[0] == pytest.approx(positive + 0.8 * 0.25 * -np.log(0.75))


def test_closed_forms_equal_autograd():
    assert largest_difference() < 1e-10
    assert (
        largest_difference(
            bnrl={"alpha": 0.5, "beta": None, "gamma": 2.0, "epsilon": 2.0, "background_weight": 1.0}
        )
        < 1e-10
    )


def test_a_users_loss_is_drawn_from_autograd_alone():
    curves = loss_curves(
        own={"mine": lambda logits, labels: torch.nn.functional.cross_entropy(logits, labels) * 2}
    )
    mine, ce = (curves[(curves["loss"] == name) & (curves["kind"] == "autograd")] for name in ("mine", "ce"))
    np.testing.assert_allclose(mine["value"], 2 * ce["value"])
    assert set(curves.loc[curves["loss"] == "mine", "kind"]) == {"autograd"}
