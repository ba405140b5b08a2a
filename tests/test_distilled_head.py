"""The distilled head, its training and its regions, on made-up features with known answers."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from risf_core.distilled_rescoring.head import DistilledHead, ridge_head
from risf_core.distilled_rescoring.pairs import KINDS, RegionPairs, choose_regions
from risf_core.distilled_rescoring.training import continue_head, distillation_loss, train_head
from risf_core.distilled_rescoring_params import HeadSolver, HeadSpec, RegionChoice
from risf_core.errors import CheckpointError, DataError
from risf_core.open_vocabulary.distillation import point_loss, relation_loss, text_kl

DIM, EMBED = 6, 4
SOLVER = HeadSolver(
    iterations=300, batch_size=64, lr=2.0e-2, weight_decay=0.0, hidden=32, shot_iterations=200, shot_lr=2.0e-2
)


def made_pairs(count: int = 400, *, seed: int = 0) -> RegionPairs:
    """Embeddings that are a linear function of the features, normalised; images of ten regions, half with novel."""
    rng = np.random.default_rng(seed)
    features = rng.normal(0.0, 3.0, (count, DIM)).astype(np.float32)
    weight = np.random.default_rng(99).normal(size=(DIM, EMBED)).astype(np.float32)
    embeds = features @ weight
    images = np.arange(count) // 10
    return RegionPairs(
        features,
        embeds / np.linalg.norm(embeds, axis=1, keepdims=True),
        np.arange(count) % len(KINDS),
        images,
        images % 2 == 0,
        np.tile(np.array([0, 0, 5, 5], np.float32), (count, 1)),
    )


def cosine(head: DistilledHead, pairs: RegionPairs) -> float:
    return float((head.embed(pairs.features) * pairs.embeds).sum(axis=1).mean())


def train(spec: HeadSpec, **changes) -> DistilledHead:
    texts = torch.eye(EMBED)
    return train_head(made_pairs(), spec, SOLVER.model_copy(update=changes), texts, temperature=5.0, seed=0)[
        0
    ]


# --- the head ---------------------------------------------------------------------------------------------------------


def test_ridge_finds_a_linear_map_with_an_offset():
    features = (
        torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0, 0.1]) + 4
    )
    targets = features @ torch.tensor([[1.0, 0.0], [0.5, -1.0], [3.0, 2.0]]) + torch.tensor([5.0, -7.0])
    head = ridge_head(features, targets, penalty=1e-9)
    assert torch.allclose(head(features), targets, atol=1e-3)  # float32 weights of values up to some tens


def test_a_large_penalty_leaves_the_mean_alone():
    features, targets = torch.randn(50, 3), torch.randn(50, 2)
    head = ridge_head(features, targets, penalty=1e9)
    assert torch.allclose(head(features), targets.mean(dim=0).expand(50, 2), atol=1e-4)


def test_a_constant_feature_gives_finite_numbers():
    features = torch.cat([torch.randn(20, 2), torch.full((20, 1), 3.0)], dim=1)
    assert np.isfinite(ridge_head(features, torch.randn(20, 2), penalty=1e-3).embed(features)).all()


@pytest.mark.parametrize("hidden", [0, 7])
def test_a_saved_head_is_the_same_head(tmp_path, hidden):
    head = DistilledHead(DIM, EMBED, hidden=hidden)
    features = torch.randn(30, DIM) * 4 + 1
    head.standardise(features)
    head.save(tmp_path / "head.pth")
    read = DistilledHead.load(tmp_path / "head.pth")
    assert read.hidden == hidden and np.array_equal(read.embed(features), head.embed(features))
    assert np.allclose(np.linalg.norm(read.embed(features), axis=1), 1, atol=1e-6)
    expected = DIM * EMBED + EMBED if not hidden else DIM * hidden + hidden + hidden * EMBED + EMBED
    assert read.num_parameters == expected


def test_a_file_that_is_no_head_is_named(tmp_path):
    torch.save({"head": {"weight": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="other.pth: not a distilled head"):
        DistilledHead.load(tmp_path / "other.pth")


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", ["ridge", "linear", "mlp"])
def test_each_kind_of_head_learns_on_regions_that_it_has_not_seen(layers):
    assert cosine(train(HeadSpec(layers=layers)), made_pairs(seed=1)) > 0.9


@pytest.mark.parametrize("loss", [{"l1": 1.0}, {"kl": 1.0, "cosine": 0.0}])
def test_other_losses_teach_the_same_names(loss):
    """Their texts are the axes, so the best name is the largest coordinate."""
    spec = HeadSpec(layers="linear", **({"cosine": 0.0} | loss))
    embeds, unseen = train(spec).embed(made_pairs(seed=1).features), made_pairs(seed=1).embeds
    assert (embeds.argmax(axis=1) == unseen.argmax(axis=1)).mean() > 0.9


def test_a_shuffled_teacher_teaches_nothing():
    right, shuffled = train(HeadSpec()), train(HeadSpec(teacher="shuffled"))
    assert cosine(shuffled, made_pairs(seed=1)) < 0.4 < 0.9 < cosine(right, made_pairs(seed=1))


def test_training_repeats_exactly_and_leaves_the_generator_as_it_was():
    state = torch.get_rng_state()
    first, second = train(HeadSpec(), iterations=20), train(HeadSpec(), iterations=20)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))


def test_the_loss_is_the_weighted_sum_of_its_parts():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(9, EMBED, generator=generator) for _ in range(2))
    texts, spec = torch.eye(EMBED), HeadSpec(l1=2.0, cosine=3.0, relation=0.5, kl=0.25)
    expected = 2 * point_loss(student, teacher) + 3 * point_loss(student, teacher, kind="cosine")
    expected += 0.5 * relation_loss(student, teacher) + 0.25 * text_kl(
        student, teacher, texts, temperature=7.0
    )
    assert torch.isclose(distillation_loss(student, teacher, texts, spec, temperature=7.0), expected)


def test_a_head_goes_on_with_the_shots_and_the_first_one_stays():
    """The shots lie where the first head is wrong: there the map is the opposite."""
    pairs, head = made_pairs(), train(HeadSpec())
    before = {name: value.clone() for name, value in head.state_dict().items()}
    shots = made_pairs(40, seed=5)
    features, embeds = shots.features + 30, -shots.embeds
    further = continue_head(
        head, pairs, (features, embeds), HeadSpec(), SOLVER, torch.eye(EMBED), temperature=5.0, seed=0
    )
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    agreement = [(one.embed(features) * embeds).sum(axis=1).mean() for one in (head, further)]
    assert agreement[1] > agreement[0] + 0.3
    still = SOLVER.model_copy(update={"shot_iterations": 0})
    same = continue_head(
        head, pairs, (features, embeds), HeadSpec(), still, torch.eye(EMBED), temperature=5.0, seed=0
    )
    assert np.array_equal(same.embed(features), head.embed(features))


# --- which regions ----------------------------------------------------------------------------------------------------


def test_images_without_novel_objects_and_as_many_others():
    pairs = made_pairs()
    without, as_many = pairs.images("no_novel", seed=0), pairs.images("as_many", seed=0)
    assert not without.has_novel.any() and len(np.unique(without.image_ids)) == 20
    assert as_many.has_novel.any() and len(np.unique(as_many.image_ids)) == 20
    assert np.array_equal(as_many.image_ids, pairs.images("as_many", seed=0).image_ids)
    assert pairs.images("all", seed=0) is pairs
    with pytest.raises(DataError, match="all 20 images show a novel object"):
        pairs.keep(pairs.has_novel).images("no_novel", seed=0)


def test_pairs_survive_the_file(tmp_path):
    pairs = made_pairs(20)
    pairs.save(tmp_path / "pairs.npz")
    read = RegionPairs.load(tmp_path / "pairs.npz")
    assert all(np.array_equal(getattr(read, name), value) for name, value in vars(pairs).items())
    joined = RegionPairs.join([read, read])
    assert len(joined) == 40 and np.array_equal(joined.features[20:], pairs.features)


def test_regions_are_of_the_kinds_that_were_asked_for():
    rng = np.random.default_rng(0)
    truth = torch.tensor([[10.0, 10, 40, 40], [60, 60, 90, 100]])
    corners = torch.from_numpy(rng.uniform(0, 80, (60, 2)).astype(np.float32))
    proposals = torch.cat([truth + 0.5, torch.cat([corners, corners + 15], dim=1)])
    choice = RegionChoice(annotated=1, jittered=2, proposals=5, background=3, jitter=0.1)
    boxes, kinds = choose_regions(truth, proposals, (100, 100), choice, np.random.default_rng(1))
    assert np.bincount(kinds).tolist() == [1, 2, 5, 3]
    assert any(torch.equal(boxes[0], one) for one in truth)
    proposed = boxes[kinds == KINDS.index("proposal")]
    assert torch.equal(proposed, proposals[2:7])  # the first two are the annotated objects again
    assert (boxes[:, 2:] > boxes[:, :2]).all() and boxes.min() >= 0 and boxes.max() <= 100
    moved = boxes[kinds == KINDS.index("jittered")]
    assert all((one - truth).abs().amax(dim=1).min() > 0 for one in moved)
    from torchvision.ops import box_iou

    assert (box_iou(boxes[kinds == KINDS.index("background")], truth) < 0.3).all()


def test_an_image_without_objects_gives_proposals_alone():
    proposals = torch.tensor([[0.0, 0, 10, 10]]).repeat(40, 1)
    boxes, kinds = choose_regions(
        torch.empty(0, 4), proposals, (50, 50), RegionChoice(), np.random.default_rng(0)
    )
    assert set(kinds.tolist()) == {2, 3} and len(boxes) == 12 + 4


def test_normalised_inputs_of_the_loss_need_no_normalising():
    """Scaling the student changes no loss, so a head's length is free."""
    student, teacher = torch.randn(8, EMBED), F.normalize(torch.randn(8, EMBED), dim=1)
    spec, texts = HeadSpec(l1=1.0, kl=1.0), torch.eye(EMBED)
    values = [distillation_loss(k * student, teacher, texts, spec, temperature=3.0) for k in (1.0, 50.0)]
    assert torch.isclose(*values, atol=1e-5)
