"""Progress bars: they count what they are told, close, and are nothing where nobody asked or tqdm is missing."""

import sys

import pytest
import torch
import tqdm.auto
from torch import nn

from xaicourse import contrastive, lime, maximization, progress


@pytest.fixture
def bars(monkeypatch):
    made = []

    class Bar(tqdm.auto.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    return made


def test_a_bar_counts_and_closes_also_after_an_error(bars):
    with pytest.raises(RuntimeError), progress.bar(5, "steps", True) as advance:
        advance()
        advance(2)
        raise RuntimeError
    (one,) = bars
    assert (one.n, one.total, one.unit, one.disable) == (3, 5, " steps", True)  # closed


def test_without_being_asked_for_there_is_none(bars):
    with progress.bar(5, "steps", False) as advance:
        advance()
        advance(2)
    assert not bars


def test_without_tqdm_there_is_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with progress.bar(5, "steps", True) as advance:
        advance(3)


def test_methods_come_to_the_end_of_their_bars(bars):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    contrastive.pertinent_negative(linear, x, steps=2, searches=3, chunk=2, progress=True)
    maximization.maximize(linear, 0, normalize=None, size=(1, 4, 4), steps=4, progress=True)
    lime.lime(linear, x, 0, segments=torch.arange(16).view(4, 4) // 4, samples=8, progress=True)
    assert [(bar.n, bar.total) for bar in bars] == [(9, 9), (4, 4), (24, 24)]


@pytest.mark.parametrize("value", [1, "yes", None])
def test_another_value_is_named(value):
    with pytest.raises(TypeError, match=f"progress must be True or False, got {type(value).__name__}"):
        maximization.maximize(nn.Identity().eval(), 0, normalize=None, progress=value)
