"""Small generators of counterfeit patches, which differ in one thing: how they make a picture larger. Lecture 15.

An autoencoder squeezes a patch into a code of half its height and width, and its decoder, the generator G, makes a patch of the
code: x = G(z). Four of them are the same but for the step that doubles height and width, and each leaves traces of its own: a
transposed convolution weaves a checkerboard (Odena et al. 2016, Deconvolution and checkerboard artifacts, Distill), a pixel
shuffle a grid of period two, and every way of enlarging has its spectrum (Durall et al. 2020, Watch your up-convolution, CVPR).

    G = generators.train("transposed", photographs, seed=0)
    fake = generators.counterfeit(G, real)          # patches like these, made by G, as a file would have them

A counterfeit is not a copy: its code is drawn at random near that of a real patch, so that G makes something new.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arguments import check_count, check_generator, check_weight
from ..progress import bar
from ..scores import check_model
from . import patches

__all__ = ["KINDS", "NOISE", "Autoencoder", "codes", "counterfeit", "train"]

NOISE = 0.2
"""How far codes are drawn from those of real patches, relative to their spread."""

_log = logging.getLogger(__name__)
_CODE = 8  # channels of the code, at half the width and height: 2,048 numbers for a patch of 3,072


def _transposed(channels_in: int, channels_out: int) -> list[nn.Module]:
    return [nn.ConvTranspose2d(channels_in, channels_out, 3, stride=2, padding=1, output_padding=1, bias=False)]


def _interpolated(mode: str, channels_in: int, channels_out: int) -> list[nn.Module]:
    return [nn.Upsample(scale_factor=2, mode=mode), nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)]


def _pixel_shuffle(channels_in: int, channels_out: int) -> list[nn.Module]:
    return [nn.Conv2d(channels_in, 4 * channels_out, 3, padding=1, bias=False), nn.PixelShuffle(2)]


KINDS: dict[str, Callable[[int, int], list[nn.Module]]] = {
    "transposed": _transposed,
    "nearest": partial(_interpolated, "nearest"),
    "bilinear": partial(_interpolated, "bilinear"),
    "pixel shuffle": _pixel_shuffle,
}
"""The ways to double height and width: transposed convolution, two interpolations, and a pixel shuffle."""


class Autoencoder(nn.Module):
    """Patches (N, 3, 32, 32) to codes (N, 8, 16, 16) and back; ``decoder`` is the generator.

    The decoder has no bias in its convolutions, and batch norms after all but the last. Its output is not clipped: values
    outside [0, 1] are possible, and ``counterfeit`` clips them. ValueError for a kind that is none of ``KINDS``.
    """

    def __init__(self, kind: str, width: int = 32) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        self.kind = kind
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, _CODE, 3, padding=1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(_CODE, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            *KINDS[kind](width, width), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 3, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """The patch as the decoder makes it of its code."""
        return self.decoder(self.encoder(x))


def codes(
    model: Autoencoder, real: Tensor, *, noise: float = NOISE, generator: torch.Generator | None = None
) -> Tensor:
    """Draw codes near those of real patches: (N, 3, 32, 32) to (N, 8, 16, 16).

    noise      its standard deviation, relative to that of each channel over the patches given; 0: the patches' own codes
    generator  of the noise; None: the same each time
    """
    check_model(model)
    check_weight("noise", noise)
    check_generator(generator)
    with torch.no_grad():
        z = model.encoder(real)
    drawn = torch.randn(z.shape, generator=generator or torch.Generator().manual_seed(0)).to(z)
    return z + noise * z.std((0, 2, 3), keepdim=True) * drawn


def counterfeit(
    model: Autoencoder,
    real: Tensor,
    *,
    noise: float = NOISE,
    generator: torch.Generator | None = None,
    chunk: int = 256,
) -> Tensor:
    """Counterfeits made of codes near those of real patches: (N, 3, 32, 32) in [0, 1], in multiples of 1/255.

    noise  as in ``codes``, relative to the spread in ``chunk`` patches at a time: their number matters a little
    """
    check_count("chunk", chunk)
    generator = generator or torch.Generator().manual_seed(0)
    with torch.no_grad():
        parts = [model.decoder(codes(model, x, noise=noise, generator=generator)) for x in real.split(chunk)]
    return patches.quantise(torch.cat(parts))


def train(
    kind: str, photographs: tuple[str, ...], *, seed: int = 0, steps: int = 350, progress: bool = False
) -> Autoencoder:
    """Train one autoencoder to reproduce patches of these photographs (mean absolute error, Adam, one cycle).

    Returns it in evaluation mode. Random numbers outside are left as they were.
    """
    check_count("steps", steps)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Autoencoder(kind).train().to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(seed)
    pool = patches.crop(photographs, 3000, generator=generator)
    optimiser = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    with bar(steps, "steps", progress) as advance:
        for _ in range(steps):
            x = pool[torch.randint(len(pool), (40,), generator=generator)].contiguous(memory_format=torch.channels_last)
            loss = F.l1_loss(model(x), x)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            advance()
    _log.info("%s: mean absolute error %.4f", kind, loss.item())
    return model.eval().to(memory_format=torch.contiguous_format)
