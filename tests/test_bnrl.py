"""The losses: hand-worked numbers, limits, high precision, extremes, and the published values."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from risf_core.bnrl import bnrl_loss, cross_entropy, get_loss, log_probs_and_complements
from risf_core.custom_loss import check_loss_name, loss_name
from risf_core.errors import ParamsError, RisfError, ShapeError

EXCERPT = Path(__file__).parent / "data_reference" / "bnrl_cases.npz"
CLIPPED = ("c087", "c105")  # where the published code clips log(1 - p) even in float64


def logits_of(*rows):
    """Logits whose softmax is exactly these probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log().requires_grad_()


def random_rois(num_rois=40, num_classes=5, scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(num_rois, num_classes + 1, generator=generator, dtype=dtype)
    labels = torch.randint(0, num_classes + 1, (num_rois,), generator=generator)
    return logits.requires_grad_(), labels


# ------------------------------------------------------------ the equation


def test_hand_worked_foreground_roi():
    loss = bnrl_loss(
        logits_of([0.7, 0.2, 0.1]),
        torch.tensor([0]),
        alpha=0.2,
        epsilon=1.0,
        gamma=2.0,
        background_weight=0.5,
    )
    positive = 0.2 * 0.3**2 * -math.log(0.7)
    # the background is a negative of weight 0.5
    negative = 0.8 * (0.2 * -math.log(0.8) + 0.5 * 0.1 * -math.log(0.9))
    assert loss.item() == pytest.approx(positive + negative, rel=1e-12)


def test_hand_worked_background_roi():
    loss = bnrl_loss(
        logits_of([0.7, 0.2, 0.1]), torch.tensor([2]), alpha=0.3, beta=0.4, epsilon=2.0, gamma=1.0
    )
    # here the background's default weight of 0.2 sits on the positive
    positive = 0.3 * 0.2 * 0.9 * -math.log(0.1)
    negative = 0.4 * (0.7**2 * -math.log(0.3) + 0.2**2 * -math.log(0.8))
    assert loss.item() == pytest.approx(positive + negative, rel=1e-12)


def test_beta_defaults_to_one_minus_alpha():
    logits, labels = random_rois()
    assert torch.equal(bnrl_loss(logits, labels, alpha=0.3), bnrl_loss(logits, labels, alpha=0.3, beta=0.7))
    assert not torch.equal(
        bnrl_loss(logits, labels, alpha=0.3), bnrl_loss(logits, labels, alpha=0.3, beta=0.8)
    )


def test_is_cross_entropy_without_focus_and_negatives():
    logits, labels = random_rois()
    loss = bnrl_loss(logits, labels, alpha=1.0, beta=0.0, gamma=0.0, background_weight=1.0)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels), rtol=1e-13, atol=0)
    (gradient,) = torch.autograd.grad(loss, logits)
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, labels), logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-16)


def test_is_focal_loss_without_negatives():
    logits, labels = random_rois()
    log_p = F.log_softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)
    focal = ((1 - log_p.exp()) ** 2 * -log_p).mean()
    loss = bnrl_loss(logits, labels, alpha=0.25, beta=0.0, gamma=2.0, background_weight=1.0)
    torch.testing.assert_close(loss, 0.25 * focal, rtol=1e-12, atol=0)


def test_reductions_agree_and_ignored_rois_do_not_count():
    logits, labels = random_rois(6)
    labels[[1, 4]] = -100
    each = bnrl_loss(logits, labels, reduction="none")
    kept = [0, 2, 3, 5]
    assert each.shape == (6,) and each[1] == 0 and each[4] == 0
    torch.testing.assert_close(bnrl_loss(logits, labels, reduction="sum"), each.sum())
    torch.testing.assert_close(bnrl_loss(logits, labels), bnrl_loss(logits[kept], labels[kept]))
    (gradient,) = torch.autograd.grad(bnrl_loss(logits, labels), logits)
    assert not gradient[[1, 4]].any() and gradient[kept].all()
    torch.testing.assert_close(cross_entropy(logits, labels), cross_entropy(logits[kept], labels[kept]))


def test_class_weight_replaces_the_background_weight():
    logits, labels = random_rois()
    weight = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.2], dtype=torch.float64)
    torch.testing.assert_close(
        bnrl_loss(logits, labels, class_weight=weight, background_weight=9.0), bnrl_loss(logits, labels)
    )
    double = bnrl_loss(logits, labels, class_weight=2 * weight)
    torch.testing.assert_close(double, 2 * bnrl_loss(logits, labels))


@pytest.mark.parametrize("loss_function", [bnrl_loss, cross_entropy])
def test_nothing_to_learn_from_is_zero_with_a_gradient(loss_function):
    for num_rois in (0, 3):
        logits = torch.randn(num_rois, 4, requires_grad=True)
        loss = loss_function(logits, torch.full((num_rois,), -100))
        loss.backward()
        assert loss.item() == 0 and not logits.grad.any()


# ------------------------------------------------------------ numerics


def exact_loss(logits, labels, weight, alpha, beta, epsilon, gamma):
    """Sum over the RoIs and its gradient with 200 digits, from the equation and its derivative by p."""
    total, gradient = mpmath.mpf(0), np.zeros(logits.shape)
    with mpmath.workdps(200):
        alpha, beta, epsilon, gamma = (mpmath.mpf(float(value)) for value in (alpha, beta, epsilon, gamma))
        weight = [mpmath.mpf(float(value)) for value in weight]
        for i, y in enumerate(labels):
            if y < 0:
                continue
            exps = [mpmath.exp(mpmath.mpf(float(value))) for value in logits[i]]
            p = [value / mpmath.fsum(exps) for value in exps]
            log, classes = mpmath.log, range(len(p))
            total += alpha * weight[y] * (1 - p[y]) ** gamma * -log(p[y])
            total += beta * mpmath.fsum(
                weight[k] * p[k] ** epsilon * -log(1 - p[k]) for k in classes if k != y
            )
            slope = [
                beta
                * weight[k]
                * (p[k] ** epsilon / (1 - p[k]) - epsilon * p[k] ** (epsilon - 1) * log(1 - p[k]))
                for k in classes
            ]
            focus = gamma * (1 - p[y]) ** (gamma - 1) * log(p[y]) if gamma else 0
            slope[y] = alpha * weight[y] * (focus - (1 - p[y]) ** gamma / p[y])
            mean_slope = mpmath.fsum(p[k] * slope[k] for k in classes)
            gradient[i] = [float(p[k] * (slope[k] - mean_slope)) for k in classes]
        return float(total), gradient


def run(logits, labels, dtype, **hyper):
    """Summed loss and its gradient as float64."""
    leaf = torch.as_tensor(logits).to(dtype).requires_grad_()
    loss = bnrl_loss(leaf, torch.as_tensor(labels).long(), reduction="sum", **hyper)
    loss.backward()
    return loss.item(), leaf.grad.double().numpy()


def excerpt_cases():
    with np.load(EXCERPT) as file:
        arrays = dict(file)
    for name in sorted({key.split("/")[0] for key in arrays}):
        yield name, {key.split("/")[1]: value for key, value in arrays.items() if key.startswith(name + "/")}


def all_cases():
    folder = os.environ.get("RISF_REFERENCE")
    if not folder or not (Path(folder) / "bnrl_ref.npz").is_file():
        pytest.skip("RISF_REFERENCE does not point at the folder with bnrl_ref.npz")
    with np.load(Path(folder) / "bnrl_ref.npz") as file:
        arrays = dict(file)
    for case in json.loads((Path(folder) / "bnrl_ref.json").read_text()):
        name = case["case"]
        found = {key.split("/")[1]: value for key, value in arrays.items() if key.startswith(name + "/")}
        yield name, found | {"hyper": np.array([case[key] for key in ("alpha", "beta", "epsilon", "gamma")])}


def check_against_published(name, case):
    alpha, beta, epsilon, gamma = case["hyper"].tolist()
    weight = torch.from_numpy(case["weight"])
    hyper = {"alpha": alpha, "beta": beta, "epsilon": epsilon, "gamma": gamma, "class_weight": weight}
    num_kept = (case["labels"] >= 0).sum()
    loss, gradient = run(case["logits"], case["labels"], torch.float64, **hyper)
    if name not in CLIPPED:
        assert loss / num_kept == pytest.approx(case["loss_f64"].item(), rel=1e-12)
        assert np.abs(gradient / num_kept - case["grad_f64"]).max() <= 1e-12 * np.abs(case["grad_f64"]).max()

    loss32, gradient32 = run(case["logits"], case["labels"], torch.float32, **hyper)
    assert loss32 == pytest.approx(loss, rel=1e-6)
    # logits of 200 keep 5 digits in float32
    assert np.abs(gradient32 - gradient).max() <= 5e-5 * np.abs(gradient).max()

    rows = slice(0, 16)  # high precision is slow, and the rows are independent
    loss, gradient = run(case["logits"][rows], case["labels"][rows], torch.float64, **hyper)
    exact, exact_gradient = exact_loss(
        case["logits"][rows], case["labels"][rows], case["weight"], *case["hyper"]
    )
    assert loss == pytest.approx(exact, rel=1e-13)
    # each entry, not just the largest
    np.testing.assert_allclose(gradient, exact_gradient, rtol=1e-10, atol=0)

    logits = torch.from_numpy(case["logits"]).double().requires_grad_()
    labels = torch.from_numpy(case["labels"]).long()
    released = cross_entropy(logits, labels, class_weight=weight)
    (gradient,) = torch.autograd.grad(released, logits)
    assert released.item() == pytest.approx(case["caller_loss_f64"].item(), rel=1e-12)
    np.testing.assert_allclose(gradient, case["caller_grad_f64"], rtol=1e-12, atol=1e-18)
    if len(set(case["weight"][:-1].tolist())) == 1:
        by_name = get_loss("ce_bg", background_weight=weight[-1].item())(logits, labels)
        assert by_name.item() == pytest.approx(released.item(), rel=1e-14)


def test_equals_the_published_values_and_high_precision_in_the_excerpt():
    names = [check_against_published(name, case) or name for name, case in excerpt_cases()]
    assert len(names) == 9


def test_equals_the_published_values_and_high_precision_in_all_cases():
    names = [check_against_published(name, case) or name for name, case in all_cases()]
    assert len(names) == 36


@pytest.mark.parametrize("gamma, epsilon", [(4.0, 1.0), (0.0, 0.0), (0.5, 0.5), (0.01, 0.01), (8.0, 3.0)])
def test_any_logits_give_a_finite_value_and_the_right_gradient(gamma, epsilon):
    rows = [
        [1e4, -1e4, 0.0],
        [-1e4, 1e4, 1e4],
        [0.0, 800.0, 0.0],
        [0.0, 0.0, 40.0],
        [-1e4] * 3,
        [0.0, 0.0, 0.0],
    ]
    logits = np.array([row for row in rows for _ in range(3)])
    labels = np.array([label for _ in rows for label in range(3)])
    hyper = {"alpha": 0.2, "beta": 0.8, "epsilon": epsilon, "gamma": gamma}
    loss, gradient = run(logits, labels, torch.float64, **hyper)
    loss32, gradient32 = run(logits, labels, torch.float32, **hyper)
    assert math.isfinite(loss) and np.isfinite(gradient).all()
    assert loss32 == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(gradient32, gradient, rtol=1e-3, atol=1e-4)


def test_a_confident_error_costs_what_the_logarithm_says():
    """p_top is 1 - 2e^-1e4: -log(1 - p_top) = 1e4 - log 2, where the clipped form gives about 37."""
    loss = bnrl_loss(torch.tensor([[1e4, 0.0, 0.0]]), torch.tensor([1]), alpha=0.0, beta=1.0)
    assert loss.item() == pytest.approx(1e4 - math.log(2), rel=1e-6)


def test_probabilities_and_complements_sum_to_one():
    logits = torch.cat([random_rois(scale=8.0)[0].detach(), torch.zeros(1, 6, dtype=torch.float64)])
    log_p, log_not_p = log_probs_and_complements(logits)
    torch.testing.assert_close(log_p, F.log_softmax(logits, dim=1), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(log_p.exp() + log_not_p.exp(), torch.ones_like(logits), rtol=1e-14, atol=0)


@pytest.mark.parametrize("gamma, epsilon", [(4.0, 1.0), (0.5, 0.5), (0.0, 0.0)])
def test_gradcheck(gamma, epsilon):
    logits, labels = random_rois(6)
    labels[2] = -100
    weight = torch.tensor([0.5, 1.0, 2.0, 0.0, 1.0, 0.3], dtype=torch.float64)

    def loss(logits):
        return bnrl_loss(logits, labels, alpha=0.3, gamma=gamma, epsilon=epsilon, class_weight=weight)

    assert torch.autograd.gradcheck(loss, logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spec", ["bnrl", "ce", "ce_bg"])
def test_half_precision_and_autocast_compute_in_float32(spec, dtype):
    labels = torch.tensor([0, 1, 2, 2, 1])
    rows = [[6e4, -6e4, 0], [20.0, -5, 1], [0, 9, 0.3], [0, 0, 0], [1e4, -1e4, 1e4]]
    logits = torch.tensor(rows, dtype=dtype, requires_grad=True)
    expected = get_loss(spec)(logits.detach().float(), labels)
    with torch.autocast("cpu", dtype=dtype):
        loss = get_loss(spec)(logits, labels)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and torch.equal(loss.detach(), expected)
    assert logits.grad.isfinite().all() and logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_classifier_under_autocast_gets_a_finite_gradient_for_logits_of_1e4(dtype):
    classifier = torch.nn.Linear(4, 3)
    with torch.no_grad():
        classifier.weight.copy_(torch.tensor([[1e4, 0, 0, 1.0], [0, 1e4, 0, -1.0], [0, 0, -1e4, 0.5]]))
    with torch.autocast("cpu", dtype=dtype):
        loss = bnrl_loss(classifier(torch.eye(4)), torch.tensor([0, 0, 2, 1]))
    loss.backward()
    assert loss.isfinite() and classifier.weight.grad.isfinite().all() and classifier.weight.grad.any()


# ------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "logits, labels, message",
    [
        (torch.zeros(3), torch.tensor([0]), "logits are torch.float32 of shape \\[3\\]"),
        (torch.zeros(3, 1), torch.tensor([0, 0, 0]), "expected a floating tensor"),
        (torch.zeros(3, 4, dtype=torch.int64), torch.tensor([0, 0, 0]), "expected a floating tensor"),
        (torch.zeros(3, 4), torch.tensor([0, 0]), "expected int64 of shape \\[3\\]"),
        (torch.zeros(2, 4), torch.tensor([0.0, 1.0]), "expected int64"),
        (torch.zeros(2, 4), torch.tensor([0, 4]), "labels hold \\[4\\]; expected 0 to 2"),
        (torch.zeros(2, 4), torch.tensor([-1, 3]), "labels hold \\[-1\\]"),
    ],
)
def test_wrong_tensors_are_named(logits, labels, message):
    for loss_function in (bnrl_loss, cross_entropy):
        with pytest.raises(ShapeError, match=message) as error:
            loss_function(logits, labels)
        assert isinstance(error.value, ValueError) and isinstance(error.value, RisfError)


@pytest.mark.parametrize(
    "name, value",
    [
        ("alpha", -0.1),
        ("alpha", 1.1),
        ("beta", -1.0),
        ("gamma", math.nan),
        ("epsilon", -2.0),
        ("background_weight", math.inf),
    ],
)
def test_wrong_hyper_parameters_are_named(name, value):
    with pytest.raises(ParamsError, match=f"{name} of the loss is {value}"):
        bnrl_loss(torch.zeros(1, 3), torch.tensor([0]), **{name: value})
    with pytest.raises(ParamsError, match=name):
        get_loss("bnrl", **{name: value})


def test_wrong_class_weight_and_reduction_are_named():
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 2])
    with pytest.raises(ShapeError, match="expected 3 finite weights"):
        bnrl_loss(logits, labels, class_weight=torch.ones(2))
    with pytest.raises(ShapeError, match="expected 3 finite weights"):
        bnrl_loss(logits, labels, class_weight=torch.tensor([1.0, -1.0, 1.0]))
    with pytest.raises(ParamsError, match='expected "mean", "sum" or "none"'):
        bnrl_loss(logits, labels, reduction="max")


# ------------------------------------------------------------ losses by name


def test_losses_by_name():
    logits, labels = random_rois()
    hyper = {"alpha": 0.4, "gamma": 1.0, "epsilon": 2.0, "background_weight": 0.7}
    assert torch.equal(get_loss("bnrl", **hyper)(logits, labels), bnrl_loss(logits, labels, **hyper))
    assert get_loss("ce", **hyper) is cross_entropy  # alone: BNRL is not computed beside it
    torch.testing.assert_close(cross_entropy(logits, labels), F.cross_entropy(logits, labels))
    weight = torch.tensor([1.0, 1, 1, 1, 1, 0.7], dtype=torch.float64)
    # by N, not by the weights
    expected = F.cross_entropy(logits, labels, weight=weight, reduction="sum") / len(labels)
    torch.testing.assert_close(get_loss("ce_bg", **hyper)(logits, labels), expected)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("bnlr", 'did you mean "bnrl"'),
        ("CE", 'did you mean "ce"'),
        ("xyz", "expected bnrl, ce, ce_bg or path"),
        ("my.py", "no function"),
    ],
)
def test_unknown_name_shows_the_choices(spec, message):
    with pytest.raises(ParamsError, match=message):
        get_loss(spec)
    with pytest.raises(ParamsError, match=message):
        check_loss_name(spec)


FOCAL = """
import torch.nn.functional as F

def focal(logits, labels, gamma=2.0):
    log_p = F.log_softmax(logits, dim=1).gather(1, labels[:, None])
    return -((1 - log_p.exp()) ** gamma * log_p).mean()
"""


def test_own_loss_from_a_file(tmp_path):
    path = tmp_path / "my.py"
    path.write_text(FOCAL)
    spec = f"{path}:focal"
    logits, labels = random_rois()
    state = torch.get_rng_state()
    loss = get_loss(spec, alpha=0.7)
    assert torch.equal(torch.get_rng_state(), state), "the check must not move the random state"
    expected = bnrl_loss(logits, labels, alpha=1.0, beta=0.0, gamma=2.0, background_weight=1.0)
    torch.testing.assert_close(loss(logits, labels), expected)
    assert loss_name(spec) == "focal" and loss_name("bnrl") == "bnrl" and loss_name("a/my.py:ce") == "my:ce"


def test_own_file_is_read_anew_when_its_content_changes(tmp_path):
    path = tmp_path / "my.py"
    path.write_text(FOCAL)
    spec = f"{path}:focal"
    logits, labels = random_rois()
    before = get_loss(spec)(logits, labels)
    path.write_text(FOCAL.replace("gamma=2.0", "gamma=0.0"))
    torch.testing.assert_close(get_loss(spec)(logits, labels), F.cross_entropy(logits, labels))
    assert not torch.equal(before, get_loss(spec)(logits, labels))


CE = "torch.nn.functional.cross_entropy(logits, labels)"


@pytest.mark.parametrize(
    "body, message",
    [
        (
            "return torch.nn.functional.cross_entropy(logits, labels, reduction='none')",
            "returned torch.float32 of shape \\[32\\]",
        ),
        (f"return {CE}.item()", "returned a float, not a tensor"),
        (f"return {CE}.detach()", "without a gradient"),
        (f"return {CE} * float('nan')", "returned nan, not a finite number"),
        (f"return {CE} * 0", "gradient of zero"),
        (
            "return (logits - logits.max()).sqrt().nan_to_num().sum() + logits.sum()",
            "gradient that is not finite",
        ),
        ("labels[0] = 0; logits = logits.mul_(2); return logits.sum()", "changed its inputs"),
        ("return logits[:, labels.max() + 1].mean()", "raised IndexError: .*my.py, line 3"),
        ("return torch.nn.functional.cross_entropy(logits[:, :-1], labels)", "raised IndexError"),
        (
            f"return {CE} if (labels < logits.shape[1] - 1).any() else None",
            "NoneType, not a tensor, on RoIs of background alone",
        ),
    ],
)
def test_own_loss_that_breaks_the_contract_is_refused_in_one_line(tmp_path, body, message):
    path = tmp_path / "my.py"
    path.write_text(f"import torch\ndef idea(logits, labels):\n    {body}\n")
    with pytest.raises(ParamsError, match=message) as error:
        get_loss(f"{path}:idea")
    assert "\n" not in str(error.value) and "idea" in str(error.value)


@pytest.mark.parametrize(
    "source, name, message",
    [
        ("x = 1\n", "idea", 'no function "idea"; it defines no function'),
        ("def ideas(a): pass\n", "idea", "it defines ideas"),
        ("import no_such_package\n", "idea", "cannot be imported: ModuleNotFoundError"),
        ("def idea(:\n", "idea", "cannot be imported: SyntaxError"),
        ("raise SystemExit(3)\n", "idea", "cannot be imported: SystemExit"),
    ],
)
def test_file_without_the_function_is_refused(tmp_path, source, name, message):
    (tmp_path / "my.py").write_text(source)
    with pytest.raises(ParamsError, match=message):
        get_loss(f"{tmp_path / 'my.py'}:{name}")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(ParamsError, match="there is no file"):
        get_loss(f"{tmp_path / 'none.py'}:idea")


def test_a_relative_path_starts_from_the_project_wherever_one_works(tmp_path, monkeypatch):
    (tmp_path / "ideas").mkdir()
    (tmp_path / "ideas" / "my.py").write_text(FOCAL)
    monkeypatch.setenv("RISF_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path / "ideas")
    logits, labels = random_rois()
    assert get_loss("ideas/my.py:focal")(logits, labels).isfinite()
    with pytest.raises(ParamsError, match="there is no file"):
        get_loss("my.py:focal")


def test_naming_a_loss_does_not_import_torch():
    code = "import sys, risf_core.custom_loss as c; c.loss_name('ce'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
