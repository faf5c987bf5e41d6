import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from faqs.config import TrainingConfig
from faqs.data import Dataset
from faqs.supernet import new_supernet, shared_tensors
from faqs.train import Hyperparameters, Step, augmented, not_true_distillation, train_weights
from hwcost import BlockChoice, SearchSpace, Stage

SPACE = SearchSpace((1, 8, 8), 4, 4, (Stage(4, 2, 1),), kernels=(3,), expansions=(1, 2), weight_bits=(8,))
QUIET = Hyperparameters(batch_size=16, local_epochs=3, learning_rate=0.1, explore_share=0.0, keep_weight=0.0)


def test_hyperparameters_are_the_fields_of_a_configuration() -> None:
    training = TrainingConfig(batch_size=7, shift=2)
    settings = Hyperparameters.of(training.model_dump())
    assert (settings.batch_size, settings.shift) == (7, 2)
    defaults = {field.name: field.default for field in dataclasses.fields(Hyperparameters)}
    assert defaults == {name: TrainingConfig.model_fields[name].default for name in defaults}


def test_images_move_whole_over_zeros_and_are_mirrored_half_of_the_time() -> None:
    images = torch.arange(1.0, 1 + 200 * 6 * 5).view(200, 1, 6, 5)
    moved = augmented(images, True, 2, torch.Generator().manual_seed(0))
    assert torch.equal(moved, augmented(images, True, 2, torch.Generator().manual_seed(0)))
    seen = set()
    for image, result in zip(images, moved, strict=True):
        framed = [functional.pad(one, (2,) * 4) for one in (image, image.flip(2))]
        found = [
            (flip, down, right)
            for flip in (False, True)
            for down in range(5)
            for right in range(5)
            if torch.equal(framed[flip][:, down : down + 6, right : right + 5], result)
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert {flip for flip, _, _ in seen} == {False, True}
    assert {down for _, down, _ in seen} == {right for _, _, right in seen} == set(range(5))
    assert augmented(images, False, 0, torch.Generator()) is images


def test_not_true_distillation_is_the_divergence_over_the_other_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, before = torch.randn(2, 5, 4, generator=generator)
    labels = torch.tensor([0, 3, 1, 2, 2])
    expected = 0.0
    for said, kept, label in zip(scores, before, labels, strict=True):
        others = [c for c in range(4) if c != int(label)]
        p, q = torch.softmax(kept[others], dim=0), torch.softmax(said[others], dim=0)
        expected += float((p * (p / q).log()).sum()) / 5
    assert float(not_true_distillation(scores, before, labels)) == pytest.approx(expected, rel=1e-5)
    assert float(not_true_distillation(scores, scores + 3.0, labels)) == pytest.approx(0.0, abs=1e-6)
    leaf = scores.clone().requires_grad_(True)
    not_true_distillation(leaf, before, labels).backward()
    assert leaf.grad is not None
    assert not leaf.grad.gather(1, labels[:, None]).any() and bool(leaf.grad.any())
    assert float(not_true_distillation(scores[:, :2], before[:, :2], labels.clamp(max=1))) == 0.0


def test_a_client_with_two_classes_forgets_less_of_the_others_when_it_is_held_to_them() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 256)
    images = np.clip(0.15 * random.random((256, 1, 8, 8)) + 0.25 * labels[:, None, None, None], 0, 1).astype(np.float32)
    everyone = Dataset(images, labels.astype(np.int64), 4)
    own, foreign = everyone.subset(np.flatnonzero(labels < 2)), everyone.subset(np.flatnonzero(labels >= 2))
    lost, path = {}, SPACE.largest
    for weight in (0.0, 3.0):
        supernet, draw = new_supernet(SPACE, 0), torch.Generator().manual_seed(1)
        gates, longer = supernet.hard_gates(path), dataclasses.replace(QUIET, local_epochs=6)
        train_weights(supernet, lambda _: Step(path, []), everyone, longer, 0.1, draw)

        def loss_of_foreign() -> float:
            with torch.no_grad():  # by the statistics of everyone, as these would be recomputed
                scores = supernet.train()(torch.from_numpy(everyone.images), gates)[labels >= 2]  # noqa: B023
            return float(functional.cross_entropy(scores, torch.from_numpy(foreign.labels)))

        before = loss_of_foreign()
        held = dataclasses.replace(QUIET, keep_weight=weight)
        train_weights(supernet, lambda _: Step(path, []), own, held, 0.05, draw)
        lost[weight] = loss_of_foreign() - before
    assert lost[3.0] < 0.7 * lost[0.0]


@pytest.mark.parametrize("distil", [False, True])
@pytest.mark.parametrize("with_first", [False, True])
def test_a_step_trains_the_networks_that_are_drawn_for_it_and_nothing_else(with_first: bool, distil: bool) -> None:
    random = np.random.default_rng(0)
    data = Dataset(random.random((64, 1, 8, 8)).astype(np.float32), random.integers(0, 4, 64), 4)
    supernet, largest, drawn = new_supernet(SPACE, 0), SPACE.largest, []
    smallest = tuple(BlockChoice(3, 1, 8) for _ in largest)

    def draw(generator: torch.Generator) -> Step:
        drawn.append(smallest)
        return Step(largest if with_first else None, [smallest, smallest])

    settings = dataclasses.replace(QUIET, local_epochs=1, distil=distil)
    before = supernet.blocks[0].expand.norm.bias.detach().clone()
    loss = train_weights(supernet, draw, data, settings, 0.1, torch.Generator().manual_seed(0))
    assert math.isfinite(loss) and len(drawn) == 4
    moved = (supernet.blocks[0].expand.norm.bias.detach() - before).abs()
    hidden = SPACE.blocks[0].in_channels  # of the smallest; what is beyond belongs to the largest alone
    assert bool(moved[:hidden].any()) and bool(moved[hidden:].any()) == with_first


def test_distillation_changes_what_the_others_learn() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 256)
    images = np.clip(0.1 * random.random((256, 1, 8, 8)) + 0.25 * labels[:, None, None, None], 0, 1).astype(np.float32)
    data, smallest = Dataset(images, labels.astype(np.int64), 4), tuple(BlockChoice(3, 1, 8) for _ in SPACE.largest)
    trained = {}
    for distil in (False, True):
        supernet = new_supernet(SPACE, 0)
        settings = dataclasses.replace(QUIET, distil=distil, local_epochs=2)
        draw = torch.Generator().manual_seed(0)
        train_weights(supernet, lambda _: Step(SPACE.largest, [smallest]), data, settings, 0.1, draw)
        trained[distil] = {name: value.detach() for name, value in shared_tensors(supernet).items()}
    assert any(not torch.equal(value, trained[True][name]) for name, value in trained[False].items())
