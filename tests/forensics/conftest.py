"""What the tests of case C share beside ``networks.py``: photographs, and a generator and a detector trained for seconds."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from xaicourse.forensics import detectors, generators, patches


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """On networks this small threads mostly wait for each other; and sums in one thread are the same each time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Material:
    """Real patches, their counterfeits, and who made and who detects them."""

    real: Tensor
    fake: Tensor
    autoencoder: generators.Autoencoder
    detector: detectors.Detector


@pytest.fixture(scope="package")
def _trained(one_thread: None) -> Material:
    photographs = patches.split(0)[0]
    real = patches.crop(photographs, 160, generator=torch.Generator().manual_seed(1))
    autoencoder = generators.train("transposed", photographs, seed=0, steps=20)
    fake = generators.counterfeit(autoencoder, real)
    detector = detectors.train(detectors.build("small"), real, fake, seed=0, steps=40, rate=3e-3)
    return Material(real, fake, autoencoder, detector)


@pytest.fixture
def trained(_trained: Material) -> Material:
    """A generator of 20 steps, and a detector of 40 that recognises it; each test gets copies of its own."""
    return copy.deepcopy(_trained)
