"""Relevance carried on into the generator: which of its channels give a counterfeit away, and what is left without. Lecture 15.

A generator with its detector, z -> D(G(z)), is one network, and LRP explains it as it is: relevance starts at the log odds of
"counterfeit", passes through the picture x = G(z), and reaches the generator's channels. Those are ranked as a detector's are,
and switched off: does the detector still call the picture counterfeit, and what does the picture look like?

    network = fooling.Counterfeiter(autoencoder, detector)
    ranking = channels.rank(network, generators.codes(autoencoder, real), composite="epsilon_plus", within="decoder.")
    fooling.attack(network, codes, ranking.top(8))      # Attack(detected=…, distortion=…, pictures=…)

Chandrasegaran et al. 2022, ECCV; the lecture reports that the detector is fooled, by pictures that look absurd.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..scores import check_model
from . import patches
from .ablation import ablated
from .channels import Channel
from .generators import Autoencoder

__all__ = ["Attack", "Counterfeiter", "attack"]


class Counterfeiter(nn.Module):
    """A generator and a detector of its pictures in one: codes (N, 8, 16, 16) to log odds of "counterfeit", (N, 1).

    The picture goes from one to the other as it is, neither clipped nor rounded. Both must be in evaluation mode.
    """

    def __init__(self, autoencoder: Autoencoder, detector: nn.Module) -> None:
        super().__init__()
        self.decoder = autoencoder.decoder
        self.detector = detector
        check_model(autoencoder.decoder, "autoencoder")
        check_model(detector, "detector")
        self.training = False

    def forward(self, z: Tensor) -> Tensor:
        """D(G(z))."""
        return self.detector(self.decoder(z))


@dataclass(frozen=True)
class Attack:
    """What ablating channels of the generator does.

    detected    log odds of "counterfeit" for the pictures as files, (N,)
    distortion  mean absolute difference to the pictures of the whole generator, (N,), where 1 is white against black
    pictures    (N, 3, 32, 32), as files
    """

    detected: Tensor
    distortion: Tensor
    pictures: Tensor


def attack(network: Counterfeiter, z: Tensor, channels: Sequence[Channel], *, where: str = "after") -> Attack:
    """Make pictures of codes with these channels of the generator at 0, and show them to the detector, which is left whole.

    channels  of ``decoder.…``, as ``channels.rank`` gives them; an empty sequence is the generator as it is

    ValueError for a channel outside the generator.
    """
    outside = [c for c in channels if not c[0].startswith("decoder.")]
    if outside:
        raise ValueError(f"channels must be of the generator, 'decoder.…', got {outside[0]!r}")
    with torch.no_grad():
        whole = patches.quantise(network.decoder(z))
        with ablated(network, channels, where=where):
            pictures = patches.quantise(network.decoder(z))
        detected = network.detector(pictures)[:, 0]
    return Attack(detected, (pictures - whole).abs().mean((1, 2, 3)), pictures)
