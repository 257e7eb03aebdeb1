"""Lecture 01's closing claim: four questions put to one prediction rank its features differently (Q1)."""

import pytest
import torch
from scipy import stats

from xaicourse import features, images, lrp, maximization, models


@pytest.fixture(scope="module")
def answers():
    """Which of the 1,280 features matter, by four questions, each asked twice with what can be new."""
    model, to_input = models.load(), models.transform()
    generator = torch.Generator().manual_seed(0)
    crops = []
    for name in images.names():
        photograph = images.load(name)
        for _ in range(12):
            side = int(min(photograph.shape[1:]) * (0.4 + 0.5 * torch.rand((), generator=generator)))
            top, left = (int(torch.randint(n - side + 1, (), generator=generator)) for n in photograph.shape[1:])
            crops.append(to_input(photograph[:, top : top + side, left : left + side]))
    pool = features.extract(model, torch.stack(crops))
    halves = pool[0::2], pool[1::2]  # of each photograph the same number of crops

    x = to_input(images.load("chelsea"))[None]
    z = features.extract(model, x)[0]
    target = int(model(x).argmax())
    weight, bias = model.classifier.weight[target].detach(), model.classifier.bias[target].item()
    start = models.denormalize(x)[0].clamp(0, 1)

    def place_on_the_map(samples):
        mean = samples.mean(0)
        plane = torch.linalg.svd(samples - mean, full_matrices=False).Vh[:2]
        return (z - mean) * (plane.T @ (plane @ (z - mean)))

    def nearness(samples):
        near = samples[(samples - z).norm(dim=1).topk(5, largest=False).indices]
        return ((samples.mean(0) - near) ** 2 - (z - near) ** 2).mean(0)

    def rise(seed):
        more = maximization.maximize(
            model, target, normalize=to_input, start=start, parametrisation="pixels", steps=15, rate=0.005, jitter=8,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        assert more.after > more.before + 3
        return features.extract(model, (more.image[None] - to_input.mean[0]) / to_input.std[0])[0] - z

    def share(picture):
        trace = lrp.trace(model, picture, target, composite="epsilon_plus")
        return trace.layers["pool"].flatten()

    faint = x + 0.02 * torch.randn(x.shape, generator=generator)
    once = [place_on_the_map(halves[0]), nearness(halves[0]), rise(0), share(x)]
    again = [place_on_the_map(halves[1]), nearness(halves[1]), rise(1), share(faint)]
    assert torch.allclose(once[3], weight * z, atol=1e-4), "LRP shares the score among the features as weight x feature"
    assert once[3].sum().item() + bias == pytest.approx(model(x)[0, target].item(), abs=1e-3)
    return once, again


def test_each_question_ranks_the_features_as_it_did_before_and_any_two_differently(answers):
    once, again = answers
    table = torch.tensor([[stats.spearmanr(a.detach(), b.detach())[0] for b in again] for a in once])
    off = table[~torch.eye(4, dtype=torch.bool)]
    assert table.diagonal().min() > off.abs().max() + 0.1, table
