"""The training loop: schedules, resuming, the images of a step, refusing bad losses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.errors import CheckpointError, RisfError
from risf_core.params import SolverParams
from risf_core.training import fit, image_batches, make_optimizer

SOLVER = SolverParams(
    iterations=12, batch_size=4, lr=0.1, weight_decay=0.0, precision="fp32", checkpoint_every=5
)


def _problem():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    inputs = torch.randn(32, 4)

    def step(iteration):
        chosen = inputs[torch.randint(32, (4,))]
        return {
            "loss_a": (model(chosen) - chosen[:, :1]).square().mean(),
            "loss_b": model[0].weight.square().mean(),
        }

    return model, step


def test_the_sum_of_the_losses_falls_and_its_parts_are_recorded():
    model, step = _problem()
    curve = fit(model, step, SOLVER.model_copy(update={"iterations": 200}), seed=0, desc="toy")
    assert curve[-1]["loss"] < 0.7 * curve[0]["loss"]
    assert set(curve[0]) == {"iteration", "loss", "loss_a", "loss_b"}
    assert curve[-1]["iteration"] == 200 and 50 <= len(curve) <= 70
    for point in curve:
        assert point["loss"] == pytest.approx(point["loss_a"] + point["loss_b"])


@pytest.mark.parametrize("stop", [5, 7, 11, 128])
def test_a_resumed_run_equals_an_undisturbed_one(tmp_path, stop):
    model, step = _problem()
    # 130 steps: two to a point of the curve, so that a checkpoint falls between two points
    solver = SOLVER.model_copy(update={"iterations": 130})
    curve = fit(model, step, solver, seed=1, desc="whole", checkpoint=tmp_path / "whole.pth")

    class Killed(Exception):
        pass

    interrupted, interrupted_step = _problem()

    def dying_step(iteration):
        if iteration == stop:
            raise Killed
        return interrupted_step(iteration)

    path = tmp_path / "part.pth"
    with pytest.raises(Killed):
        fit(interrupted, dying_step, solver, seed=1, desc="part", checkpoint=path)
    fresh, fresh_step = _problem()
    resumed = fit(fresh, fresh_step, solver, seed=1, desc="resumed", checkpoint=path)
    assert resumed == curve
    for a, b in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_of_another_solver_is_refused(tmp_path):
    model, step = _problem()
    fit(model, step, SOLVER, seed=0, desc="a", checkpoint=tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="other solver parameters"):
        fit(
            model,
            step,
            SOLVER.model_copy(update={"lr": 0.2}),
            seed=0,
            desc="a",
            checkpoint=tmp_path / "c.pth",
        )


def test_a_loss_that_is_not_finite_stops_at_once_and_names_its_parts():
    model, step = _problem()

    def bad_step(iteration):
        losses = step(iteration)
        return losses | {"loss_b": losses["loss_b"] * float("nan")} if iteration == 3 else losses

    with pytest.raises(RisfError, match=r"iteration 3.*loss_b': nan"):
        fit(model, bad_step, SOLVER, seed=0, desc="toy")
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_schedules():
    model = nn.Linear(1, 1)

    def rates(**changes):
        solver = SolverParams(**({"iterations": 10, "lr": 1.0} | changes))
        optimizer, schedule = make_optimizer(model, solver)
        values = []
        for _ in range(10):
            values.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return values

    assert rates(schedule="constant") == [1.0] * 10
    assert rates(schedule="multistep", milestones=(4, 8), gamma=0.1) == pytest.approx(
        [1] * 4 + [0.1] * 4 + [0.01] * 2
    )
    warm = rates(schedule="constant", warmup=5)
    assert warm[0] == pytest.approx(0.001) and warm[5] == 1.0 and warm[2] < warm[3]
    cycle = rates(schedule="onecycle")
    assert max(cycle) == pytest.approx(1.0, abs=0.02) and cycle[-1] < 0.01


def test_a_step_has_wide_images_or_others_where_the_solver_says_so():
    shapes = [(40, 30), (30, 40), (30, 30), (50, 20), (41, 40)]  # (width, height)
    none = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool))
    images = [
        ImageRecord(n, Path(f"{n}.png"), height, width, *none) for n, (width, height) in enumerate(shapes)
    ]
    data = DetectionData("data", ("cat",), (1,), tuple(images))

    def kinds(**options):
        batches = image_batches(data, SolverParams(batch_size=2, **options), seed=0)
        return [{shapes[image][0] > shapes[image][1] for image in batches(step)} for step in range(20)]

    apart = kinds(group_by_aspect=True)
    assert {True} in apart and {False} in apart and {True, False} not in apart
    assert {True, False} in kinds()
