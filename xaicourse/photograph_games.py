"""Coalitions of parts of a photograph: what they are worth by six removals, and how far they lie from real pictures.

Lecture 06 (slides "Shapley values": how to remove a region in an image? plausible or outlier?). Asking a network about all
coalitions takes minutes for each photograph, so that what it said is stored in ``data/photograph_games``:

    python data/photograph_games/make.py
"""

from __future__ import annotations

import difflib
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import functional as vision

from . import images, lime, models, removal, shapley
from .scores import check_target

__all__ = [
    "CONTROL",
    "FILE",
    "NAMES",
    "REMOVALS",
    "SIZE",
    "Photograph",
    "patches",
    "real_crops",
    "recorded",
    "recorded_game",
]

SIZE = 168
"""The side of the pictures in pixels: 3 x 3 patches of 56, 6 x 6 of 28."""
NAMES = ("astronaut", "camera", "chelsea", "china", "coffee", "flower", "motorcycle", "rocket")
"""The photographs of things for which ImageNet has a word."""
REMOVALS = ("black", "mean", "blur", "inpainting", "marginal", "nearest")
CONTROL = "wider blur"
"""The blur, a quarter wider: a change of the removal that should not matter much."""
FILE = Path(__file__).parents[1] / "data" / "photograph_games" / "photographs.npz"

_CROPS, _BACKGROUND = 40, 20  # of each photograph: to know what is real, to put in the place of what is removed


def patches() -> Tensor:
    """The nine patches of a picture as players, (SIZE, SIZE)."""
    return shapley.patches(SIZE, SIZE, SIZE // 3)


def real_crops(name: str, count: int, seed: int) -> Tensor:
    """Random crops of a photograph, half to all of its shorter side wide, some mirrored: (count, 3, SIZE, SIZE)."""
    image = images.load(name)
    generator = torch.Generator().manual_seed(seed)
    shorter, found = min(image.shape[1:]), []
    for _ in range(count):
        share, down, right, flip = torch.rand(4, generator=generator).tolist()
        side = int(shorter * (0.5 + 0.5 * share))
        top, left = int(down * (image.shape[1] - side + 1)), int(right * (image.shape[2] - side + 1))
        crop = vision.resized_crop(image, top, left, side, side, [SIZE, SIZE], antialias=True).clamp(0, 1)
        found.append(crop.flip(2) if flip < 0.5 else crop)
    low, high = models.pixel_range()
    return low + torch.stack(found) * (high - low)


class Photograph:
    """A photograph as the network sees it, and the games of its parts.

    name  one of ``NAMES``; the score to explain is the logit of the class that the network gives the photograph

    The network is the course's own, on pictures of ``SIZE`` pixels.
    """

    def __init__(self, name: str) -> None:
        if name not in NAMES:
            raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
        self.name = name
        full = models.transform()(images.load(name))[None]
        self.x = F.interpolate(full, size=SIZE, mode="bilinear", antialias=True)

    @cached_property
    def network(self) -> models.EfficientNetLite0:
        """The course's network, laid out for speed."""
        network = models.load()
        assert isinstance(network, models.EfficientNetLite0)
        return network.to(memory_format=torch.channels_last)

    @cached_property
    def target(self) -> int:
        """The class that the network gives the photograph."""
        with torch.no_grad():
            return int(self.network(self.x).argmax())

    @cached_property
    def segments(self) -> Tensor:
        """At most nine segments of similar colour as players, (SIZE, SIZE), with edges on every fourth pixel."""
        small = F.avg_pool2d(self.x, 4)
        cuts = [lime.slic(small, segments=count, compactness=20)[0] for count in range(4, 20)]
        cut = max((cut for cut in cuts if cut.max() < 9), key=lambda cut: int(cut.max()))
        return cut.repeat_interleave(4, 0).repeat_interleave(4, 1)

    @cached_property
    def background(self) -> Tensor:
        """Crops of all other photographs of the course."""
        others = [name for name in images.names() if name != self.name]
        return torch.cat([real_crops(name, _BACKGROUND, 2) for name in others])

    @cached_property
    def held_out(self) -> Tensor:
        """Crops of this photograph that are not among those which say what is real."""
        return real_crops(self.name, 40, 1)

    @cached_property
    def perturbed(self) -> Tensor:
        """The photograph mirrored, moved by 14 and 28 pixels, enlarged, darker, brighter, and with less contrast: (16, …)."""
        low, high = models.pixel_range()
        image = ((self.x - low) / (high - low)).clamp(0, 1)
        moved = [vision.affine(image, 0, [dx, dy], 1.25, [0.0]) for dx in (-14, 0, 14) for dy in (-14, 0, 14)]
        larger = [vision.affine(image, 0, [0, 0], scale, [0.0]) for scale in (1.1, 1.4)]
        light = [image * 0.6, (image * 1.4).clamp(0, 1), image.lerp(image.mean(), 0.4), image.flip(3)]
        turned = [vision.affine(image, 5.0, [0, 0], 1.25, [0.0])]
        return low + torch.cat(moved + larger + light + turned) * (high - low)

    @cached_property
    def _features(self) -> tuple[Tensor, Tensor]:
        """Features of real pictures: of this photograph, and of all others."""
        own = self.features(real_crops(self.name, _CROPS, 0))
        others = torch.cat([self.features(real_crops(name, _CROPS, 0)) for name in images.names() if name != self.name])
        return own, others

    def features(self, pictures: Tensor) -> Tensor:
        """What the last layer sees of pictures, (N, 1280)."""
        head = torch.nn.Sequential(self.network.stem, self.network.blocks, self.network.head, self.network.pool)
        with torch.no_grad():
            return torch.cat([head(part).flatten(1) for part in pictures.split(16)])

    def described(self, pictures: Tensor) -> Tensor:
        """What the network makes of pictures, (N, 5).

        Columns: the score; the highest probability; its class; the distance of the features to those of the nearest of 440
        real pictures, 40 of them of this photograph; the same without these 40. Distances are Euclidean.
        """
        features = self.features(pictures)
        with torch.no_grad():
            logits = self.network.classifier(features)
        sure, of = logits.softmax(1).max(1)
        own, others = (torch.cdist(features, real).min(1).values for real in self._features)
        return torch.stack([logits[:, self.target], sure, of.float(), torch.minimum(own, others), others], 1)

    def removal(self, how: str) -> removal.Removal:
        """One of ``REMOVALS``, or ``CONTROL``; "marginal" draws at random, for which `game` has its own way."""
        if how == "black":
            return removal.baseline(models.pixel_range()[0])
        if how == "mean":
            return removal.mean()
        if how == "blur":
            return removal.blur(SIZE / 20)
        if how == CONTROL:
            return removal.blur(SIZE / 16)
        if how == "inpainting":
            return _inpainting
        if how == "marginal":
            return removal.marginal(self.background, generator=torch.Generator().manual_seed(0))
        if how == "nearest":
            return removal.nearest(self.background)
        raise ValueError(f"how must be one of {', '.join(REMOVALS)}, got {how!r}")

    def game(self, players: Tensor, how: str, *, everything: bool = False) -> shapley.Game:
        """The game of parts of the photograph.

        players     which player each pixel belongs to, (SIZE, SIZE)
        how         one of ``REMOVALS``, or ``CONTROL``; "marginal" is the mean over crops of two other photographs
        everything  False: a coalition's value is its score; True: all that `described` says of it
        """
        model = self.described if everything else self.network
        target = None if everything else check_target(self.target, 1)
        if how == "marginal":
            chosen = self.background[[0, 5 * _BACKGROUND]]
            return shapley.marginal_game(model, self.x, target, background=chosen, players=players, chunk=16)
        return shapley.masking_game(model, self.x, target, players=players, removal=self.removal(how), chunk=16)


def _inpainting(inputs: Tensor, removed: Tensor) -> Tensor:
    """Inpainting at a quarter of the resolution, a hundred times as fast; for holes with edges on every fourth pixel."""
    filled = removal.inpainting()(F.avg_pool2d(inputs, 4), removed[..., ::4, ::4])
    return torch.where(removed, F.interpolate(filled, scale_factor=4, mode="bilinear"), inputs)


@cache
def _stored() -> dict[str, np.ndarray]:
    if not FILE.exists():
        raise FileNotFoundError(f"{FILE} must be there; `python data/photograph_games/make.py` makes it")
    with np.load(FILE) as content:
        return dict(content)


def recorded(name: str, what: str) -> Tensor:
    """What ``data/photograph_games/make.py`` has measured of a photograph.

    name  one of ``NAMES``
    what  "patches/black" and the like, of nine patches or of segments: what `Photograph.described` says of every coalition,
          by its number (`shapley.coalitions`), (2^players, 5); "fine/black" and the like: Shapley values of 6 x 6 patches and
          their standard errors, (2, 36); "runs/black", of coffee only: the same by other seeds, (runs, 2, 36);
          "real" and "perturbed": (N, 5); "segments": the players, LongTensor (SIZE, SIZE)

    By "marginal", all five are means over two pictures, so that the class says nothing.

    ValueError for another name, FileNotFoundError if the file is not there: it comes with the course's folder, not with an
    installed package.
    """
    key = f"{name}/{what}"
    if key not in _stored():
        near = difflib.get_close_matches(key, _stored(), n=3)
        raise ValueError(
            f"name and what must be of a photograph that was measured, such as {near}, got {name!r}, {what!r}"
        )
    values = torch.from_numpy(_stored()[key])
    return values.long() if what == "segments" else values.double()


def recorded_game(name: str, players: str, how: str) -> shapley.Game:
    """The game of the scores that are recorded: as `Photograph.game`, without asking the network.

    players  "patches" or "segments"
    how      one of ``REMOVALS``, or for patches ``CONTROL``

    Errors as `recorded`.
    """
    scores = recorded(name, f"{players}/{how}")[:, 0]
    count = len(scores).bit_length() - 1
    number = 1 << torch.arange(count)
    return shapley.Game(lambda coalitions: scores[coalitions.long() @ number], count)
