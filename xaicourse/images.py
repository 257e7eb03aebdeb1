"""Real photographs that installed packages carry, so that no lecture downloads anything (used from lecture 01
on).

::

    image = images.load("chelsea")      # float32 (3, 300, 451) in [0, 1]
    images.credit("chelsea")            # who took it, and under which licence it may be shown
"""

from __future__ import annotations

import difflib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision.transforms.functional as vision
from PIL import Image
from torch import Tensor

__all__ = ["credit", "load", "names"]


@dataclass(frozen=True)
class _Photograph:
    package: str  # what is imported
    distribution: str  # what is installed
    file: str
    credit: str


def _skimage(file: str, credit: str) -> _Photograph:
    return _Photograph("skimage", "scikit-image", f"data/{file}", f"{credit}; from scikit-image")


def _sklearn(file: str, credit: str) -> _Photograph:
    return _Photograph("sklearn", "scikit-learn", f"datasets/images/{file}", f"{credit}; from scikit-learn")


# The files are read from their place inside the packages, not through skimage.data, whose functions reach for
# the network where a file is missing. The credits are those of the packages' own documentation.
_PHOTOGRAPHS = {
    "astronaut": _skimage("astronaut.png", "the astronaut Eileen Collins; NASA; public domain"),
    "camera": _skimage("camera.png", "a photographer at work, in gray; Lav Varshney; CC0"),
    "chelsea": _skimage("chelsea.png", "Chelsea the cat; Stefan van der Walt; CC0"),
    "china": _sklearn("china.jpg", "a palace in China; danielbuechele, flickr.com; CC BY 2.0"),
    "coffee": _skimage("coffee.png", "a coffee cup at Pikolo Espresso Bar; Rachel Michetti; CC0"),
    "coins": _skimage("coins.png", "Greek coins, in gray; Brooklyn Museum; no known copyright restrictions"),
    "flower": _sklearn("flower.jpg", "a dahlia; vultilion, flickr.com; CC BY 2.0"),
    "hubble": _skimage("hubble_deep_field.jpg", "the Hubble eXtreme Deep Field; NASA; public domain"),
    "motorcycle": _skimage(
        "motorcycle_left.png",
        "a motorcycle; Scharstein et al., High-resolution stereo datasets with subpixel-accurate ground "
        "truth, GCPR 2014; Middlebury 2014 stereo benchmark, no licence stated",
    ),
    "retina": _skimage("retina.jpg", "a human retina; Mikael Häggström, WikiJournal of Medicine 1(2), 2014; CC0"),
    "rocket": _skimage("rocket.jpg", "Falcon 9 lifts off with DSCOVR; SpaceX; public domain"),
}


def names() -> list[str]:
    """Give the name of every photograph, in alphabetical order."""
    return sorted(_PHOTOGRAPHS)


def load(name: str) -> Tensor:
    """Load a photograph from an installed package; nothing is ever downloaded.

    Parameters
    ----------
    name
        One of `names()`.

    Returns
    -------
    Tensor
        Float32 of shape (3, H, W) in [0, 1], RGB at the photograph's full size; a gray one has three equal
        channels. A new tensor each time.

    Raises
    ------
    TypeError, ValueError
        If the name is not a string, or not known.
    ModuleNotFoundError, OSError
        If the package that carries the photograph is not installed, or its file is missing or damaged.
    """
    photograph = _photograph(name)
    package = importlib.util.find_spec(photograph.package)  # finds the package without importing it
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the photograph {name!r} comes with {photograph.distribution}, which is not installed. "
            f'Run: pip install "xaicourse[course]" (or: pip install {photograph.distribution})'
        )
    file = Path(package.submodule_search_locations[0]) / photograph.file
    try:
        with Image.open(file) as picture:
            return vision.to_tensor(picture.convert("RGB")).to(torch.float32)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the photograph {name!r} is missing from the installed {photograph.distribution} ({file}). "
            f"Run: pip install --force-reinstall --no-deps {photograph.distribution}"
        ) from error
    except OSError as error:
        raise OSError(
            f"the photograph {name!r} cannot be read from {file}: {error}. "
            f"Run: pip install --force-reinstall --no-deps {photograph.distribution}"
        ) from error


def credit(name: str) -> str:
    """Give the line to print below a photograph: what it shows; whose it is; licence; the package it is from.

    An unknown name is a ValueError. Example: 'Chelsea the cat; Stefan van der Walt; CC0; from scikit-image'.
    """
    return _photograph(name).credit


def _photograph(name: str) -> _Photograph:
    if not isinstance(name, str):
        raise TypeError(f"name must be a string out of images.names(), got {type(name).__qualname__}")
    if name not in _PHOTOGRAPHS:
        close = difflib.get_close_matches(name.lower(), _PHOTOGRAPHS)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise ValueError(f"name={name!r} is no known photograph: {hint}images.names() gives {', '.join(names())}")
    return _PHOTOGRAPHS[name]
