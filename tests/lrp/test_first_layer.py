"""zB, w2 and flat at the first layer: relevance itself, and none for padding."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from xaicourse import lrp

RULES = [lrp.ZBox(-1, 1), lrp.ZBox(), lrp.WSquare(), lrp.Flat()]


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(4, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def inputs() -> Tensor:
    return torch.rand(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def _explain(first: Callable[[Tensor], Tensor], inputs: Tensor, rule: lrp.Rule) -> lrp.Trace:
    return lrp.trace(
        lambda x: first(x).relu().flatten(1).sum(1, keepdim=True),
        inputs,
        0,
        composite=lrp.Composite(first=rule),
    )


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_padding_before_the_layer_is_padding_inside_it(rule: lrp.Rule, weight: Tensor, inputs: Tensor) -> None:
    inside = _explain(lambda x: F.conv2d(x, weight, stride=2, padding=1), inputs, rule)
    before = _explain(lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1)), weight, stride=2), inputs, rule)
    torch.testing.assert_close(before.relevance, inside.relevance, rtol=0, atol=1e-12)
    assert abs(before.ledger.unaccounted) < 1e-9


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_relevance_goes_back_through_what_only_moves_pixels(rule: lrp.Rule, weight: Tensor, inputs: Tensor) -> None:
    straight = _explain(lambda x: F.conv2d(x, weight), inputs, rule)
    moved = _explain(lambda x: F.conv2d(x.flip(3).transpose(2, 3), weight), inputs.transpose(2, 3).flip(3), rule)
    torch.testing.assert_close(moved.relevance.flip(3).transpose(2, 3), straight.relevance, rtol=0, atol=1e-12)


def test_a_normalisation_inside_the_model_does_not_move_relevance(weight: Tensor, inputs: Tensor) -> None:
    outside = _explain(lambda x: F.conv2d(x, weight), (inputs - 0.1) / 0.5, lrp.ZBox(-3, 3))
    inside = _explain(lambda x: F.conv2d((x - 0.1) / 0.5, weight), inputs, lrp.ZBox(-3, 3))
    torch.testing.assert_close(inside.relevance, outside.relevance, rtol=0, atol=1e-12)
