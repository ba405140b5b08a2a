"""The rule that rescales a schedule to another batch size, alone and in the parameters of a solver."""

import pytest
from pydantic import ValidationError

from risf_core.params import SolverParams
from risf_core.schedules import rescale

COCO_BASE = {
    "iterations": 110_000,
    "batch_size": 16,
    "lr": 0.02,
    "schedule": "multistep",
    "milestones": [85_000, 100_000],
    "warmup": 1000,
    "checkpoint_every": 5000,
}


def test_images_seen_and_share_of_each_decay_stay():
    values = rescale(COCO_BASE, batch_size=4)
    assert values == COCO_BASE | {
        "iterations": 440_000,
        "batch_size": 4,
        "lr": 0.005,
        "milestones": (340_000, 400_000),
        "warmup": 4000,
        "checkpoint_every": 20_000,
    }
    assert list(values) == list(COCO_BASE)


@pytest.mark.parametrize(
    ("batch_size", "iterations", "milestone"),
    [(16, 800, 640), (1, 12_800, 10_240), (8, 1600, 1280), (12, 1067, 853), (32, 400, 320), (4096, 3, 3)],
)
def test_numbers_of_steps_are_rounded(batch_size, iterations, milestone):
    values = {"iterations": 800, "batch_size": 16, "lr": 0.01, "milestones": (640,), "warmup": 0}
    found = rescale(values, batch_size=batch_size)
    assert (found["iterations"], found["milestones"], found["warmup"]) == (iterations, (milestone,), 0)
    assert found["lr"] == pytest.approx(0.01 * batch_size / 16)


def test_a_solver_follows_its_batch_size_and_records_what_runs():
    solver = SolverParams(**COCO_BASE | {"reference_batch": 16, "batch_size": 2})
    assert (solver.iterations, solver.milestones, solver.warmup) == (880_000, (680_000, 800_000), 8000)
    assert (solver.lr, solver.batch_size, solver.reference_batch) == (0.0025, 2, 2)
    assert SolverParams.model_validate(solver.model_dump(mode="json")) == solver
    assert SolverParams(**COCO_BASE, reference_batch=16).iterations == 110_000
    assert SolverParams(**COCO_BASE | {"batch_size": 2}).iterations == 110_000  # without it nothing follows


def test_defaults_follow_as_well():
    assert SolverParams(reference_batch=16).iterations == 2400 and SolverParams(reference_batch=16).lr == 0.01


@pytest.mark.parametrize("wrong", [{"lr": "0.1"}, {"milestones": 3}, {"batch_size": 0}, {"iterations": 1.5}])
def test_wrong_values_are_refused_by_their_own_field(wrong):
    with pytest.raises(ValidationError) as caught:
        SolverParams(**COCO_BASE | {"reference_batch": 16} | wrong)
    assert [error["loc"][0] for error in caught.value.errors()] == list(wrong)
