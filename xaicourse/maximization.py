"""What does this unit respond to? The image that maximises it, and the samples that do (lecture 02; slides of section 1).

    found = maximization.maximize(model, 17, layer="head.bn", normalize=models.transform(), jitter=4)
    found.image, found.before, found.after               # the image in [0, 1], its activation at the start and at the end

    pool = maximization.photograph_crops()
    best = maximization.top_samples(model, pool, 17, layer="head.bn", normalize=models.transform(), k=3)
    best.images, best.values, best.boxes, best.relevance  # which crops, how strong, which part they see, and what in it counts

All images here lie in [0, 1], as a person looks at them. What a model wants to be given instead is said by ``normalize``, which
every function asks for: None for a model that takes images as they are, or a `models.Transform`, whose mean and standard
deviation are applied (its resizing and cropping are not), or any function of images (N, C, H, W).

Erhan, Bengio, Courville and Vincent, "Visualizing Higher-Layer Features of a Deep Network", University of Montreal, 2009.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torchvision.transforms.functional as vision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode

from . import images as photographs
from . import lrp
from .arguments import (
    check_count,
    check_finite,
    check_generator,
    check_layer,
    check_positive,
    check_switch,
    check_weight,
    kind,
)
from .models import Transform
from .progress import bar
from .removal import Removal
from .scores import check_model, run, unchanged

__all__ = [
    "COLOUR_CORRELATION",
    "Crops",
    "Hidden",
    "Maximized",
    "Ranking",
    "TopSamples",
    "activation",
    "deepdream",
    "hide",
    "maximize",
    "photograph_crops",
    "rank_samples",
    "receptive_fields",
    "top_samples",
    "voc_crops",
]

Unit = int | tuple[int, ...] | Tensor | Callable[[Tensor], Tensor]
Normalize = Transform | Callable[[Tensor], Tensor] | None
Callback = Callable[[int, Tensor, float], object]

COLOUR_CORRELATION = ((1.0, 0.83, 0.68), (0.83, 1.0, 0.94), (0.68, 0.94, 1.0))
"""Of red, green and blue in the course's nine colour photographs: each shrunk to 64 x 64 and about its own mean, as one."""

_STARTING_NOISE = 0.05


class Samples(Protocol):
    """A data set: so many images, by their numbers. A tensor (N, C, H, W) is one, and so is a torchvision data set."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, number: int, /) -> Any:
        """An image (C, H, W) in [0, 1], or a tuple that begins with one."""


# ------------------------------------------------------------------------------------------------------------
# The image that maximises a unit
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Maximized:
    """An image that was made to activate a unit.

    image    (C, H, W) in [0, 1]
    start    (C, H, W) in [0, 1], what it began with
    before, after    the activation of the unit for ``start`` and for ``image``
    history  (steps,), the activation in each step, of the image as it was shown in that step, moved and scaled
    """

    image: Tensor
    start: Tensor
    before: float
    after: float
    history: Tensor


def maximize(
    model: nn.Module,
    unit: Unit,
    *,
    normalize: Normalize,
    layer: str | None = None,
    size: tuple[int, int, int] = (3, 128, 128),
    start: Tensor | None = None,
    parametrisation: str = "fourier",
    decorrelate: bool = True,
    steps: int = 64,
    rate: float = 0.05,
    jitter: int = 0,
    scale: float = 0.0,
    blur: float = 0.0,
    total_variation: float = 0.0,
    l2: float = 0.0,
    generator: torch.Generator | None = None,
    progress: bool = False,
    callback: Callback | None = None,
) -> Maximized:
    """Make an image that activates a unit, by gradient ascent on the image.

    model      an nn.Module in evaluation mode; it is not changed
    unit       what to maximise at the layer: an int, a channel (the mean over its places) or a logit; a tuple (channel, row,
               column), one unit; a float tensor (C,), a direction (the scalar product with the mean over the places); or a
               function from the layer's output, for one image, to a score (1,)
    normalize  from images in [0, 1] to what the model takes; see the module
    layer      path of a module, as in ``model.named_modules()``; None: the model's output
    size       of the image, (C, H, W)
    start      an image (C, H, W) in [0, 1] to begin with, which then has the size; None: faint noise around gray
    parametrisation    "pixels" or "fourier": of what the ascent is made. In the spectrum, divided by its frequency, each step
               moves coarse and fine structure alike
    decorrelate        whether red, green and blue move together as they do in photographs; images of 3 channels only
    steps, rate        of Adam
    jitter     shift the image in each step by up to so many pixels, cyclically
    scale      zoom it in each step by a random factor from 1 - scale to 1 + scale, in [0, 1)
    blur       blur z after each step by a Gaussian of so many pixels
    total_variation    weight of the mean absolute difference between neighbouring pixels
    l2         weight of the mean squared distance from gray, 0.5
    generator  of the noise to begin with, of the shifts and of the zooms
    progress   show a progress bar, where tqdm is installed
    callback   called after each step with its number, the image so far (C, H, W) and the activation

    ::

        image = sigmoid(M z),    z = pixels, or the inverse Fourier transform of s(f) times what is optimised, s(f) = 1 / f
        maximise  activation(shifted, zoomed image) - total_variation TV(image) - l2 mean (image - 1/2)^2

    where M M^T is `COLOUR_CORRELATION`, or M = 1. TypeError or ValueError if an argument is not as above, no module has that
    path (saying which do), the unit does not exist (saying how many there are), or if a NaN or an infinity appears.

    Erhan et al. 2009; Mahendran and Vedaldi, "Understanding Deep Image Representations by Inverting Them", CVPR 2015; Olah,
    Mordvintsev and Schubert, "Feature Visualization", Distill 2017.
    """
    if parametrisation not in ("pixels", "fourier"):
        raise ValueError(f"parametrisation must be 'pixels' or 'fourier', got {parametrisation!r}")
    check_switch("decorrelate", decorrelate)
    check_switch("progress", progress)
    check_count("steps", steps)
    check_count("jitter", jitter, least=0)
    check_positive("rate", rate)
    for name, value in (("scale", scale), ("blur", blur), ("total_variation", total_variation), ("l2", l2)):
        check_weight(name, value)
    if scale >= 1:
        raise ValueError(f"scale must be below 1, got {scale}")
    check_generator(generator)
    _check_callback(callback)
    place, dtype = _home(model)
    if start is not None:
        _check_image("start", start)
        size = (start.shape[0], start.shape[1], start.shape[2])
    _check_size(size)
    mix = (
        _colours(decorrelate and size[0] == 3).to(place, dtype) if size[0] == 3 else torch.eye(size[0]).to(place, dtype)
    )
    spectral = parametrisation == "fourier"
    to_z = _spectrum(size[1], size[2], place, dtype) if spectral else (lambda p: p)

    def shown(p: Tensor) -> Tensor:
        return torch.einsum("ij,jhw->ihw", mix, to_z(p)).sigmoid()

    with torch.inference_mode(False), unchanged(model):
        if start is None:
            parameters = _STARTING_NOISE * _normal(_shape(size, spectral), generator, place, dtype)
        else:
            z = torch.linalg.solve(mix, start.detach().to(place, dtype).clamp(0.01, 0.99).logit().flatten(1))
            z = z.reshape(size)
            parameters = _to_spectrum(z) if spectral else z
        first = shown(parameters).detach() if start is None else start.detach().to(place, dtype, copy=True)
        ascended = _Ascent(model, unit, layer, normalize)
        before = ascended.check(first)
        history = torch.zeros(steps)
        parameters = parameters.clone().requires_grad_()
        adam = torch.optim.Adam([parameters], lr=rate)
        with torch.enable_grad(), bar(steps, "steps", progress) as advance:
            for step in range(steps):
                image = shown(parameters)
                seen = _zoomed(_shifted(image, jitter, generator), scale, generator)
                activation = ascended.activation(seen)
                penalty = total_variation * _variation(image) + l2 * (image - 0.5).square().mean()
                parameters.grad = torch.autograd.grad(penalty - activation, parameters)[0]
                check_finite("the gradient", parameters.grad)
                adam.step()
                if blur:
                    with torch.no_grad():
                        parameters.copy_(_blurred(parameters, blur, size, spectral))
                history[step] = activation.item()
                advance()
                if callback is not None:
                    callback(step, shown(parameters).detach(), history[step].item())
        image = shown(parameters).detach()
        return Maximized(image, first, before, ascended.value(image), history)


def deepdream(
    model: nn.Module,
    photograph: Tensor,
    unit: Unit | None = None,
    *,
    normalize: Normalize,
    layer: str,
    octaves: int = 4,
    octave_scale: float = 1.4,
    steps: int = 10,
    rate: float = 0.01,
    jitter: int = 8,
    generator: torch.Generator | None = None,
    progress: bool = False,
    callback: Callback | None = None,
) -> Maximized:
    """Enhance in a photograph what a layer sees in it, from coarse to fine: DeepDream.

    photograph    (C, H, W) in [0, 1]
    unit          as in `maximize`; None: half the mean square of all activations of the layer, whatever it sees
    layer         path of a module
    octaves, octave_scale    on how many sizes, each so many times larger than the one before; the last is the photograph's
    steps, rate   on each size; a step changes a pixel by ``rate`` on average
    jitter        shift the image in each step by up to so many pixels, cyclically
    normalize, generator, progress, callback    as in `maximize`; the callback's image has the size of its octave

    Returns a `Maximized`, whose ``start`` is the photograph and whose history has octaves x steps activations. Errors as in
    `maximize`. Each step adds rate * gradient / mean |gradient|; between sizes only what was added is enlarged.

    Mordvintsev, Olah and Tyka, "Inceptionism: Going Deeper into Neural Networks", Google Research blog, 2015.
    """
    _check_image("photograph", photograph)
    for name, count, least in (("octaves", octaves, 1), ("steps", steps, 1), ("jitter", jitter, 0)):
        check_count(name, count, least=least)
    check_positive("rate", rate)
    check_positive("octave_scale", octave_scale)
    if octave_scale <= 1:
        raise ValueError(f"octave_scale must be above 1, got {octave_scale}")
    check_generator(generator)
    check_switch("progress", progress)
    _check_callback(callback)
    check_layer("layer", model, layer)
    place, dtype = _home(model)
    original = photograph.detach().to(place, dtype, copy=True)
    sizes = [[round(side / octave_scale**back) for side in original.shape[1:]] for back in range(octaves - 1, -1, -1)]
    if min(sizes[0]) < 16:
        raise ValueError(
            f"octaves must leave at least 16 pixels on each side, got {octaves}, whose smallest is {tuple(sizes[0])}"
        )
    whatever = (lambda features: features.square().flatten(1).mean(1) / 2) if unit is None else unit
    with torch.inference_mode(False), unchanged(model):
        ascended = _Ascent(model, whatever, layer, normalize)
        before = ascended.check(original)
        history: list[float] = []
        added = torch.zeros_like(original)
        with torch.enable_grad(), bar(octaves * steps, "steps", progress) as advance:
            for size in sizes:
                base = vision.resize(original, size, antialias=True).clamp(0, 1)
                image = (base + vision.resize(added, size, antialias=True)).clamp(0, 1)
                for _ in range(steps):
                    image = image.detach().requires_grad_()
                    activation = ascended.activation(_shifted(image, jitter, generator))
                    slope = torch.autograd.grad(activation, image)[0]
                    check_finite("the gradient", slope)
                    image = (image + rate * slope / slope.abs().mean().clamp(min=1e-12)).detach().clamp(0, 1)
                    history.append(activation.item())
                    advance()
                    if callback is not None:
                        callback(len(history) - 1, image, history[-1])
                added = image - base
        return Maximized(image, original, before, ascended.value(image), torch.tensor(history))


def activation(
    model: nn.Module,
    images: Tensor,
    unit: Unit,
    *,
    normalize: Normalize,
    layer: str | None = None,
    chunk: int = 64,
) -> Tensor:
    """How active a unit is for each image, (N,), without a graph.

    images  (N, C, H, W) in [0, 1]
    chunk   how many the model sees at once

    All else, and the errors, as in `maximize`; a function as unit is asked chunk by chunk.
    """
    _check_batch("images", images)
    check_model(model)
    if layer is not None:
        check_layer("layer", model, layer)
    unit, to_inputs = _check_unit(unit), _normalizing(normalize)
    check_count("chunk", chunk)
    found: list[Tensor] = []
    with torch.inference_mode(False), torch.no_grad(), unchanged(model):
        for part in images.detach().to(*_home(model)).split(chunk):
            features = (_features if found else _whole)(model, layer, to_inputs(part))
            if not found:
                _check_fits(unit, features, layer)
            found.append(_score(unit, features))
    values = torch.cat(found)
    check_finite("the activation", values)
    return values


class _Ascent:
    """The activation of a unit as a function of one image in [0, 1]; the model is run no further than the layer."""

    def __init__(self, model: nn.Module, unit: Unit, layer: str | None, normalize: Normalize) -> None:
        check_model(model)
        if layer is not None:
            check_layer("layer", model, layer)
        self.model, self.unit, self.layer = model, _check_unit(unit), layer
        self.normalize = _normalizing(normalize)

    def check(self, image: Tensor) -> float:
        """Run the whole model once, to see that the layer is called once and has such a unit; its activation."""
        with torch.no_grad():
            features = _whole(self.model, self.layer, self.normalize(image[None]))
            _check_fits(self.unit, features, self.layer)
        with torch.enable_grad():
            leaf = image.detach().clone().requires_grad_()
            score = self.activation(leaf)
            if not score.requires_grad:
                raise ValueError("unit: its activation does not depend on the image, or the graph is cut on the way")
        return score.item()

    def activation(self, image: Tensor) -> Tensor:
        """Of the unit, a scalar."""
        score = _score(self.unit, _features(self.model, self.layer, self.normalize(image[None])))
        check_finite("the activation", score)
        return score[0]

    def value(self, image: Tensor) -> float:
        with torch.no_grad():
            return self.activation(image).item()


# ------------------------------------------------------------------------------------------------------------
# Of what the ascent is made, and what it is shown
# ------------------------------------------------------------------------------------------------------------


def _colours(correlated: bool) -> Tensor:
    """M with M M^T = the correlation of the colours: one column for each direction in which they vary by themselves."""
    if not correlated:
        return torch.eye(3, dtype=torch.float64)
    values, directions = torch.linalg.eigh(torch.tensor(COLOUR_CORRELATION, dtype=torch.float64))
    return directions * values.sqrt()


def _shape(size: tuple[int, int, int], spectral: bool) -> tuple[int, ...]:
    return (size[0], size[1], size[2] // 2 + 1, 2) if spectral else size


def _scales(height: int, width: int, place: torch.device, dtype: torch.dtype) -> Tensor:
    """One over the frequency, in cycles per pixel, (H, W // 2 + 1, 1); the constant counts as the lowest frequency."""
    f = _frequencies(height, width, place, dtype)
    return 1 / f.clamp(min=1 / max(height, width))[..., None]


def _frequencies(height: int, width: int, place: torch.device, dtype: torch.dtype) -> Tensor:
    down = torch.fft.fftfreq(height, device=place, dtype=dtype)[:, None]
    across = torch.fft.rfftfreq(width, device=place, dtype=dtype)[None]
    return (down.square() + across.square()).sqrt()


def _spectrum(height: int, width: int, place: torch.device, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    scales = _scales(height, width, place, dtype)
    return lambda p: torch.fft.irfft2(torch.view_as_complex(p * scales), s=(height, width), norm="ortho")


def _to_spectrum(z: Tensor) -> Tensor:
    scales = _scales(z.shape[1], z.shape[2], z.device, z.dtype)
    return torch.view_as_real(torch.fft.rfft2(z, norm="ortho")) / scales


def _blurred(parameters: Tensor, sigma: float, size: tuple[int, int, int], spectral: bool) -> Tensor:
    """Convolved with a Gaussian, cyclically: in the spectrum a product."""
    f = _frequencies(size[1], size[2], parameters.device, parameters.dtype)
    kept = (-2 * (math.pi * sigma * f).square()).exp()
    if spectral:
        return parameters * kept[..., None]
    return torch.fft.irfft2(torch.fft.rfft2(parameters) * kept, s=size[1:])


def _shifted(image: Tensor, most: int, generator: torch.Generator | None) -> Tensor:
    if not most:
        return image
    device = generator.device if generator else None
    down, across = torch.randint(-most, most + 1, (2,), generator=generator, device=device).tolist()
    return image.roll((down, across), (1, 2))


def _zoomed(image: Tensor, most: float, generator: torch.Generator | None) -> Tensor:
    """Seen larger or smaller about its middle, at the same size; what is missing at the rim is mirrored."""
    if not most:
        return image
    device = generator.device if generator else None
    factor = 1 + most * (2 * torch.rand((), generator=generator, device=device).item() - 1)
    turn = image.new_tensor([[1 / factor, 0, 0], [0, 1 / factor, 0]])[None]
    places = F.affine_grid(turn, [1, *image.shape], align_corners=False)
    return F.grid_sample(image[None], places, padding_mode="reflection", align_corners=False)[0]


def _variation(image: Tensor) -> Tensor:
    return image.diff(dim=1).abs().mean() + image.diff(dim=2).abs().mean()


def _normal(
    shape: tuple[int, ...], generator: torch.Generator | None, place: torch.device, dtype: torch.dtype
) -> Tensor:
    device = generator.device if generator else None
    return torch.randn(shape, generator=generator, device=device, dtype=dtype).to(place)


# ------------------------------------------------------------------------------------------------------------
# The samples that maximise a channel
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Ranking:
    """The best k samples of each channel of a layer, best first.

    values   (k, channels), the activation or the relevance
    indices  LongTensor (k, channels), the sample's number in the data set
    samples  how many there were
    """

    values: Tensor
    indices: Tensor
    samples: int


@dataclass(frozen=True, eq=False)
class TopSamples:
    """The best k samples of one channel, best first.

    indices    LongTensor (k,), their numbers in the data set
    values     (k,), what they were chosen by
    images     (k, C, H, W) in [0, 1]
    places     LongTensor (k, 2), row and column at the layer where the channel is strongest
    boxes      LongTensor (k, 4), what that place sees of the image: top, left, bottom, right, the last two excluded
    relevance  (k, C, H, W), of each pixel for the activation (by relevance: for the share of the class's score that it carries)
    """

    indices: Tensor
    values: Tensor
    images: Tensor
    places: Tensor
    boxes: Tensor
    relevance: Tensor

    def crops(self) -> list[Tensor]:
        """The receptive fields, (C, h, w) each."""
        return [
            image[:, top:bottom, left:right]
            for image, (top, left, bottom, right) in zip(self.images, self.boxes.tolist(), strict=True)
        ]


def rank_samples(
    model: nn.Module,
    samples: Samples,
    *,
    layer: str,
    normalize: Normalize,
    k: int = 9,
    pool: str = "max",
    by: str = "activation",
    target: int | None = None,
    composite: str | lrp.Composite = "epsilon_plus",
    chunk: int = 32,
    progress: bool = False,
) -> Ranking:
    """The best k samples of every channel of a layer, in one pass over a data set that never holds more than a chunk of it.

    samples    images (C, H, W) in [0, 1] of one size by their numbers: a tensor (N, C, H, W), `photograph_crops`, a torchvision
               data set whose items begin with such an image
    layer      path of a module whose output is (N, channels) or (N, channels, H', W')
    pool       "max": a channel is as active as its strongest place; "mean": as active as its places are on average
    by         "activation"; or "relevance": the share of the score of ``target``, a class, that the channel carries (all its
               places together), by LRP
    composite  the rules of LRP
    chunk      how many samples the model sees at once
    progress   show a progress bar, where tqdm is installed

    Equal values go to the sample that comes first. TypeError or ValueError if an argument is not as above, there are fewer
    samples than k, no module has that path, or if a NaN or an infinity appears.

    Borowski et al., "Exemplary Natural Images Explain CNN Activations Better than State-of-the-Art Feature Visualization", ICLR
    2021; by relevance: Achtibat et al., "From attribution maps to human-understandable explanations through concept relevance
    propagation", Nature Machine Intelligence 5, 2023.
    """
    _check_pass(model, samples, layer, pool, by, target, chunk)
    check_count("k", k, most=len(samples), most_is="the number of samples")
    check_switch("progress", progress)
    to_inputs = _normalizing(normalize)
    values = indices = torch.empty(0)
    with torch.inference_mode(False), unchanged(model), bar(-(-len(samples) // chunk), "chunks", progress) as advance:
        for first in range(0, len(samples), chunk):
            part = _take(samples, range(first, min(first + chunk, len(samples))), model)
            features = _carried(model, part, layer, to_inputs, by, target, composite, whole=first == 0)
            found = _pooled(features, pool if by == "activation" else "sum")
            numbers = torch.arange(first, first + len(part), device=found.device)[:, None].expand_as(found)
            if first:
                found, numbers = torch.cat([values, found]), torch.cat([indices, numbers])
            order = found.sort(dim=0, descending=True, stable=True).indices[:k]
            values, indices = found.gather(0, order), numbers.gather(0, order)
            advance()
    return Ranking(values, indices, len(samples))


def top_samples(
    model: nn.Module,
    samples: Samples,
    unit: int,
    *,
    layer: str,
    normalize: Normalize,
    k: int = 9,
    pool: str = "max",
    by: str = "activation",
    target: int | None = None,
    composite: str | lrp.Composite = "epsilon_plus",
    ranking: Ranking | None = None,
    chunk: int = 32,
    progress: bool = False,
) -> TopSamples:
    """The k samples that maximise a channel, which part of each it sees, and what in that part made it active.

    unit       number of the channel
    ranking    what `rank_samples` gave for the same arguments: then no pass over the samples is made
    all else   as in `rank_samples`

    The relevance of an activation is that of LRP begun at the channel's output: at its strongest place, or with ``pool="mean"``
    at all places, an equal part each (`lrp.channel`). It sums to the activation, less what biases and stabilisers keep. By
    relevance it begins with the relevance that all places of the channel have for the class.
    """
    _check_pass(model, samples, layer, pool, by, target, chunk)
    check_count("unit", unit, least=0)
    if ranking is not None and not isinstance(ranking, Ranking):
        raise TypeError(f"ranking must be a Ranking or None, got {type(ranking).__name__}")
    if ranking is not None and ranking.samples != len(samples):
        raise ValueError(f"ranking must be of these {len(samples)} samples, got one of {ranking.samples}")
    if ranking is None:
        ranking = rank_samples(
            model, samples, layer=layer, normalize=normalize, k=k, pool=pool, by=by, target=target, composite=composite,
            chunk=chunk, progress=progress,
        )  # fmt: skip
    channels = ranking.indices.shape[1]
    _check_index(unit, channels, layer)
    check_count("k", k, most=len(ranking.indices), most_is="the samples of the ranking")
    indices, values = ranking.indices[:k, unit], ranking.values[:k, unit]
    to_inputs = _normalizing(normalize)
    with torch.inference_mode(False), unchanged(model):
        chosen = _take(samples, indices.tolist(), model)
        maps, places, begin = [], [], {}
        for part in chosen.split(chunk):
            features = _carried(model, part, layer, to_inputs, by, target, composite, whole=False)
            of_channel = features[:, unit].reshape(len(part), -1)
            strongest = of_channel.argmax(1)
            started = torch.zeros_like(features)
            if by == "relevance":
                started[:, unit] = features[:, unit]
            elif pool == "mean":
                started[:, unit] = features[:, unit] / of_channel.shape[1]
            else:
                at = torch.zeros_like(of_channel).scatter(1, strongest[:, None], 1.0)
                started[:, unit] = (of_channel * at).reshape(features[:, unit].shape)
            begin = {layer: started.contiguous()}
            maps.append(lrp.relevance(model, to_inputs(part), None, composite=composite, start=begin))
            width = features.shape[3] if features.dim() == 4 else 1
            places.append(torch.stack([strongest // width, strongest % width], 1))
        where = torch.cat(places)
        local = pool == "max" and by == "activation" and features.dim() == 4
        boxes = (
            receptive_fields(model, chosen.shape[1:], where, layer=layer, chunk=chunk) if local else _everything(chosen)
        )
        return TopSamples(indices, values, chosen, where, boxes, torch.cat(maps))


def receptive_fields(model: nn.Module, size: Sequence[int], places: Tensor, *, layer: str, chunk: int = 32) -> Tensor:
    """The part of an image that a place of a layer can see: exactly, whatever lies between.

    size    of the image, (C, H, W)
    places  LongTensor (k, 2), row and column at the layer, whose output is (N, channels, H', W')

    Returns a LongTensor (k, 4): top, left, bottom, right in pixels, the last two excluded, within the image. Where an
    operation looks at the whole image, such as a global pooling or attention, so does the place. A place that sees nothing but
    padding has four zeros.

    A pixel can be seen if NaN in its place makes the place NaN, whatever the weights are: 0 * NaN is NaN. The four sides are
    found by bisection, for all places at once. A model that compares (``torch.where(x > 0, x, 0)``) hides a NaN and makes the
    field too small; ReLU, pooling and clamping do not.
    """
    check_model(model)
    check_layer("layer", model, layer)
    check_count("chunk", chunk)
    _check_size(tuple(size))
    if not isinstance(places, Tensor) or places.dtype != torch.long or places.dim() != 2 or places.shape[1] != 2:
        raise ValueError(f"places must be a LongTensor of shape (k, 2), got {kind(places)}")
    place, dtype = _home(model)
    blank = torch.zeros(tuple(size), device=place, dtype=dtype)
    with torch.no_grad(), unchanged(model), torch.backends.cudnn.flags(enabled=False):  # its tiles would spread a NaN
        shape = _whole(model, layer, blank[None]).shape
        if len(shape) != 4:
            raise ValueError(f"layer: {layer!r} must give (N, channels, H', W') to have places, got {tuple(shape)}")
        if bool((places < 0).any()) or bool((places >= places.new_tensor(shape[2:])).any()):
            raise ValueError(
                f"places must lie within the {shape[2]} x {shape[3]} of layer {layer!r}, got {places.tolist()}"
            )

        def is_seen(sides: Tensor, axis: int, backwards: bool) -> Tensor:
            """Whether NaN in the first ``sides`` rows (or columns, or last ones) reaches each place, BoolTensor (k,)."""
            line = torch.arange(size[axis + 1], device=place)
            line = line.flip(0) if backwards else line
            reached = []
            for first in range(0, len(sides), chunk):
                part, at = sides[first : first + chunk], places[first : first + chunk].to(place)
                struck = line[None] < part[:, None]
                struck = struck[:, None, :, None] if axis == 0 else struck[:, None, None, :]
                batch = blank.expand(len(part), *blank.shape).masked_fill(struck, math.nan)
                output = _features(model, layer, batch)
                reached.append(output[torch.arange(len(part), device=place), :, at[:, 0], at[:, 1]].isnan().any(1))
            return torch.cat(reached)

        ends = []
        for axis, backwards in ((0, False), (1, False), (0, True), (1, True)):
            low = torch.zeros(len(places), dtype=torch.long, device=place)  # so many lines do not reach it
            high = torch.full_like(low, size[axis + 1])  # and so many do
            while bool((high - low > 1).any()):
                middle = (low + high) // 2
                seen = is_seen(middle, axis, backwards)
                low, high = torch.where(seen, low, middle), torch.where(seen, middle, high)
            ends.append(size[axis + 1] - low if backwards else low)
        sees = is_seen(torch.full_like(low, size[2]), 1, False) if len(places) else low.bool()
    return torch.stack(ends, 1) * sees[:, None]


# ------------------------------------------------------------------------------------------------------------
# Does the relevant region matter?
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Hidden:
    """What an activation loses when a square of the image is hidden.

    active     (N,), the activation with nothing hidden
    relevant   (N,), with the square hidden that has the most relevance
    random     (N, controls), with squares of the same size in random places hidden
    corners    LongTensor (N, 2), top and left of the square with the most relevance
    """

    active: Tensor
    relevant: Tensor
    random: Tensor
    corners: Tensor

    @property
    def fall(self) -> Tensor:
        """(N,), how much further the activation falls than under the random squares' mean, relative to the activation."""
        return (self.random.mean(1) - self.relevant) / self.active.abs()


def hide(
    model: nn.Module,
    images: Tensor,
    relevance: Tensor,
    unit: int,
    *,
    layer: str,
    normalize: Normalize,
    removal: Removal,
    side: int,
    pool: str = "max",
    controls: int = 16,
    generator: torch.Generator | None = None,
    chunk: int = 64,
) -> Hidden:
    """Hide the most relevant square of each image, and as a control random squares of the same size, and see what is left.

    images     (N, C, H, W) in [0, 1]
    relevance  (N, C, H, W) or (N, 1, H, W), any map: the square with the largest sum is hidden
    unit, layer, normalize, pool    the channel, as in `top_samples`
    removal    what stands in the place of the square, in the image; see ``xaicourse.removal``
    side       of the square, in pixels
    controls   random squares for each image, uniform over all places

    The activation is taken anew after hiding: a channel may be as active in another place. TypeError or ValueError if an
    argument is not as above.
    """
    _check_batch("images", images)
    _check_pass(model, images, layer, pool, "activation", None, chunk)
    if not isinstance(relevance, Tensor) or relevance.shape not in (images.shape, images[:, :1].shape):
        raise ValueError(
            f"relevance must have the shape of images, {tuple(images.shape)}, or one channel, got {kind(relevance)}"
        )
    check_finite("relevance", relevance)
    check_count("side", side, most=min(images.shape[2:]), most_is="the sides of the images")
    check_count("controls", controls)
    check_count("unit", unit, least=0)
    check_generator(generator)
    if not callable(removal):
        raise TypeError(f"removal must be a function of inputs and removed places, got {type(removal).__name__}")
    to_inputs = _normalizing(normalize)
    height, width = (length - side + 1 for length in images.shape[2:])
    with torch.inference_mode(False), torch.no_grad(), unchanged(model):
        images = images.detach().to(*_home(model))
        sums = F.avg_pool2d(relevance.detach().to(images).sum(1, keepdim=True), side, stride=1).flatten(1)
        best = sums.argmax(1)
        device = generator.device if generator else None
        drawn = torch.randint(height * width, (len(images), controls), generator=generator, device=device).to(best)
        corner = torch.cat([best[:, None], drawn], 1)
        corner = torch.stack([corner // width, corner % width], 2)
        down, across = (torch.arange(length, device=images.device) for length in images.shape[2:])
        found = []
        for number, image in enumerate(images):
            top, left = corner[number].unbind(1)
            rows = (down >= top[:, None]) & (down < top[:, None] + side)
            columns = (across >= left[:, None]) & (across < left[:, None] + side)
            away = (rows[:, None, :, None] & columns[:, None, None, :]).expand(-1, len(image), -1, -1)
            hidden = removal(image.expand(len(away), *image.shape).contiguous(), away)
            _check_batch("what removal put in place", hidden)
            left_over: list[Tensor] = []
            for part in torch.cat([image[None], hidden]).split(chunk):
                features = _features(model, layer, to_inputs(part)) if number or left_over else _whole(
                    model, layer, to_inputs(part)
                )  # fmt: skip
                _check_index(unit, features.shape[1], layer)
                left_over.append(_pooled(features, pool)[:, unit])
            found.append(torch.cat(left_over))
        values = torch.stack(found)
        check_finite("the activation", values)
        return Hidden(values[:, 0], values[:, 1], values[:, 2:], corner[:, 0])


# ------------------------------------------------------------------------------------------------------------
# Pools of images
# ------------------------------------------------------------------------------------------------------------


class Crops:
    """Square crops on a grid over photographs, by their numbers; only the photographs are held."""

    def __init__(self, photographs: dict[str, Tensor], *, size: int, stride: int) -> None:
        check_count("size", size)
        check_count("stride", stride)
        self.photographs, self.size = photographs, size
        self.corners: list[tuple[str, int, int]] = []
        for name, image in photographs.items():
            _check_image(f"the photograph {name!r}", image)
            if min(image.shape[1:]) < size:
                raise ValueError(
                    f"size must be at most {min(image.shape[1:])}, the shorter side of {name!r}, got {size}"
                )
            self.corners += [
                (name, top, left)
                for top in range(0, image.shape[1] - size + 1, stride)
                for left in range(0, image.shape[2] - size + 1, stride)
            ]

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, number: int, /) -> Tensor:
        name, top, left = self.corners[number]
        return self.photographs[name][:, top : top + self.size, left : left + self.size]


def photograph_crops(
    names: Sequence[str] | None = None, *, size: int = 128, stride: int = 64, shorter: int | None = 256
) -> Crops:
    """Crops of the photographs that come with the course, to find in them what activates a unit most.

    names    out of ``images.names()``; None: all
    size     of the square crops, in pixels
    stride   from one crop to the next
    shorter  resize each photograph so that its shorter side has so many pixels; None: as it is

    Returns `Crops`: ``len(crops)``, ``crops[i]`` (3, size, size) in [0, 1], and ``crops.corners[i]``, (name, top, left).
    """
    check_count("size", size)
    if shorter is not None:
        check_count("shorter", shorter, least=size)
    found = {}
    for name in photographs.names() if names is None else names:
        image = photographs.load(name)
        if shorter is not None:
            image = vision.resize(image, [shorter], interpolation=InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
        found[name] = image
    if not found:
        raise ValueError("names must name at least one photograph, got none")
    return Crops(found, size=size, stride=stride)


def voc_crops(folder: str | Path, *, year: str = "2012", split: str = "val", size: int = 224) -> Samples:
    """The central squares of the photographs of Pascal VOC, where it lies on this computer; nothing is downloaded.

    folder  that holds VOCdevkit, as torchvision expects it
    size    of the squares, in pixels, after the shorter side was resized to it

    Returns a data set for `rank_samples`. FileNotFoundError, with the way out, if the data set is not there.

    Everingham et al., "The Pascal Visual Object Classes Challenge", International Journal of Computer Vision 88, 2010.
    """
    from torchvision.datasets import VOCDetection

    check_count("size", size)
    if not (Path(folder) / "VOCdevkit").is_dir():
        raise FileNotFoundError(
            f"folder must hold VOCdevkit of Pascal VOC, and {str(folder)!r} does not; fetch it with "
            f"torchvision.datasets.VOCDetection(folder, year={year!r}, image_set={split!r}, download=True), about 2 GB"
        )

    def square(picture: Any) -> Tensor:
        pixels = vision.to_tensor(picture)
        return vision.center_crop(vision.resize(pixels, [size], antialias=True).clamp(0, 1), [size])

    return VOCDetection(str(folder), year=year, image_set=split, transform=square)


# ------------------------------------------------------------------------------------------------------------
# The output of a layer
# ------------------------------------------------------------------------------------------------------------


class _Enough(BaseException):
    """The layer was reached, the rest of the model need not run; no ``except Exception`` of a model holds it up."""


def _features(model: nn.Module, layer: str | None, inputs: Tensor) -> Tensor:
    """The output of the layer; the model is run no further."""
    if layer is None:
        return run(model, inputs)
    seen: list[Tensor] = []

    def leave(module: nn.Module, args: Any, output: Tensor) -> None:
        seen.append(output)
        raise _Enough

    handle = model.get_submodule(layer).register_forward_hook(leave)
    try:
        run(model, inputs)
    except _Enough:
        pass
    finally:
        handle.remove()
    return seen[0]


def _whole(model: nn.Module, layer: str | None, inputs: Tensor) -> Tensor:
    """The output of the layer, after the whole model has run: ValueError if it is called never or more than once."""
    if layer is None:
        features = run(model, inputs)
    else:
        seen: list[Any] = []
        handles = [
            model.register_forward_pre_hook(lambda *_: seen.clear()),  # ``run`` may run it twice
            model.get_submodule(layer).register_forward_hook(
                lambda module, args, output: seen.append(output.clone() if isinstance(output, Tensor) else output)
            ),
        ]
        try:
            run(model, inputs)
        finally:
            for handle in handles:
                handle.remove()
        if len(seen) != 1:
            raise ValueError(
                f"layer: {layer!r} must be called once in a forward pass, and was called {len(seen)} times"
            )
        features = seen[0]
    name = "the model's output" if layer is None else f"layer: {layer!r}"
    if (
        not isinstance(features, Tensor)
        or not features.is_floating_point()
        or features.dim() < 2
        or len(features) != len(inputs)
    ):
        raise ValueError(f"{name} must be a float tensor (N, …) with N = {len(inputs)}, got {kind(features)}")
    return features


def _carried(
    model: nn.Module,
    part: Tensor,
    layer: str,
    to_inputs: Callable[[Tensor], Tensor],
    by: str,
    target: int | None,
    composite: str | lrp.Composite,
    *,
    whole: bool,
) -> Tensor:
    """The activations of the layer, or the relevance that they carry for the class."""
    with torch.no_grad():
        features = (_whole if whole else _features)(model, layer, to_inputs(part))
    if by == "relevance":
        layers = lrp.trace(model, to_inputs(part), target, composite=composite).layers
        if layer not in layers:
            raise ValueError(f"layer: {layer!r} has no relevance of its own; if a batch norm follows it, name that one")
        features = layers[layer].reshape(features.shape)
    if features.dim() not in (2, 4):
        raise ValueError(
            f"layer: {layer!r} must give (N, channels) or (N, channels, H', W'), got {tuple(features.shape)}"
        )
    check_finite(f"the {by} at {layer!r}", features)
    return features


def _pooled(features: Tensor, pool: str) -> Tensor:
    flat = features.reshape(*features.shape[:2], -1)
    if pool == "max":
        return flat.amax(2)
    return flat.mean(2) if pool == "mean" else flat.sum(2)


def _score(unit: Unit, features: Tensor) -> Tensor:
    """The activation of the unit for each image, (N,)."""
    if callable(unit) and not isinstance(unit, Tensor):
        return unit(features)
    if isinstance(unit, tuple):
        at: tuple[Any, ...] = (slice(None), *unit)
        return features[at]
    by_channel = features.flatten(2).mean(2) if features.dim() > 2 else features
    if isinstance(unit, Tensor):
        return by_channel @ unit.to(by_channel)
    return by_channel[:, unit]


def _home(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where the model lives, and in which dtype."""
    weights = (w for w in model.parameters() if w.is_floating_point()) if isinstance(model, nn.Module) else iter(())
    first = next(weights, torch.empty(0))
    return first.device, first.dtype


def _normalizing(normalize: Normalize) -> Callable[[Tensor], Tensor]:
    if normalize is None:
        return lambda x: x
    if isinstance(normalize, Transform):
        mean, std = list(normalize.mean), list(normalize.std)
        return lambda x: vision.normalize(x, mean, std)
    if not callable(normalize):
        raise TypeError(f"normalize must be None, a models.Transform or a function, got {type(normalize).__name__}")
    return normalize


def _take(samples: Samples, numbers: Sequence[int], model: nn.Module) -> Tensor:
    """Some of the samples as a batch, (n, C, H, W), where the model is."""
    found: list[Tensor] = []
    for number in numbers:
        item = samples[number]
        image = item[0] if isinstance(item, (tuple, list)) else item
        _check_image(f"samples[{number}]", image)
        if found and image.shape != found[0].shape:
            raise ValueError(
                f"samples must have one size: samples[{number}] has {tuple(image.shape)}, not {tuple(found[0].shape)}"
            )
        found.append(image)
    return torch.stack(found).to(*_home(model))


def _everything(chosen: Tensor) -> Tensor:
    return torch.tensor([0, 0, *chosen.shape[2:]], device=chosen.device).expand(len(chosen), 4)


# ------------------------------------------------------------------------------------------------------------
# Checks, before any work
# ------------------------------------------------------------------------------------------------------------


def _check_unit(unit: Unit) -> Unit:
    if isinstance(unit, Tensor):
        if unit.dim() != 1 or not unit.is_floating_point():
            raise ValueError(f"unit: a direction must be a float tensor (channels,), got {kind(unit)}")
        check_finite("unit", unit)
        return unit.detach().clone()  # out of inference mode, or autograd could not keep it
    if isinstance(unit, tuple):
        for part in unit:
            check_count("unit: each part of a tuple", part, least=0)
        return tuple(int(part) for part in unit)
    if callable(unit):
        return unit
    check_count("unit", unit, least=0)
    return int(unit)


def _check_fits(unit: Unit, features: Tensor, layer: str | None) -> None:
    """ValueError, saying how many there are, if the layer has no such unit."""
    name = "the model's output" if layer is None else f"layer {layer!r}"
    shape = tuple(features.shape[1:])
    if isinstance(unit, Tensor):
        if len(unit) != shape[0]:
            raise ValueError(f"unit: a direction at {name} must have {shape[0]} components, got {len(unit)}")
    elif isinstance(unit, tuple):
        if len(unit) != len(shape) or any(not 0 <= at < most for at, most in zip(unit, shape, strict=False)):
            raise ValueError(f"unit must lie within the {' x '.join(map(str, shape))} of {name}, got {unit}")
    elif isinstance(unit, int):
        _check_index(unit, shape[0], layer)
    else:
        score = unit(features)
        if not (isinstance(score, Tensor) and score.shape == (len(features),) and score.is_floating_point()):
            raise ValueError(
                f"unit must give one float score for each image, shape ({len(features)},), got {kind(score)}"
            )


def _check_index(unit: int, channels: int, layer: str | None) -> None:
    if not 0 <= unit < channels:
        name = "the model's output" if layer is None else f"layer {layer!r}"
        raise ValueError(f"unit must be from 0 to {channels - 1}, since {name} has {channels} channels, got {unit}")


def _check_image(name: str, image: Tensor) -> None:
    if not isinstance(image, Tensor) or not image.is_floating_point():
        raise TypeError(f"{name} must be an image, a float tensor (C, H, W) in [0, 1], got {kind(image)}")
    if image.dim() != 3 or 0 in image.shape:
        raise ValueError(f"{name} must be an image (C, H, W), not empty, got shape {tuple(image.shape)}")
    _check_range(name, image)


def _check_batch(name: str, batch: Tensor) -> None:
    if not isinstance(batch, Tensor) or not batch.is_floating_point():
        raise TypeError(f"{name} must be images, a float tensor (N, C, H, W) in [0, 1], got {kind(batch)}")
    if batch.dim() != 4 or 0 in batch.shape:
        raise ValueError(f"{name} must be images (N, C, H, W), not empty, got shape {tuple(batch.shape)}")
    _check_range(name, batch)


def _check_range(name: str, values: Tensor) -> None:
    low, high = values.min().item(), values.max().item()
    if not (low >= 0 and high <= 1):  # so that NaN is refused too
        raise ValueError(f"{name} must lie in [0, 1], got values from {low:.4g} to {high:.4g}")


def _check_size(size: tuple[int, ...]) -> None:
    if not isinstance(size, tuple) or len(size) != 3:
        raise ValueError(f"size must be (C, H, W), got {size!r}")
    for name, value in zip(("channels", "height", "width"), size, strict=True):
        check_count(f"size: {name}", value)


def _check_callback(callback: Callback | None) -> None:
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a function of step, image and activation, got {type(callback).__name__}")


def _check_pass(
    model: nn.Module, samples: Samples, layer: str, pool: str, by: str, target: int | None, chunk: int
) -> None:
    check_model(model)
    check_layer("layer", model, layer)
    if not isinstance(samples, Sized) or not hasattr(samples, "__getitem__"):
        raise TypeError(f"samples must be a data set of images with a length and items, got {type(samples).__name__}")
    if not len(samples):
        raise ValueError("samples must hold at least one image, got none")
    if pool not in ("max", "mean"):
        raise ValueError(f"pool must be 'max' or 'mean', got {pool!r}")
    if by not in ("activation", "relevance"):
        raise ValueError(f"by must be 'activation' or 'relevance', got {by!r}")
    if (by == "relevance") != (target is not None):
        raise ValueError(
            f"target must be a class with by='relevance', and None otherwise, got {target!r} with by={by!r}"
        )
    if target is not None:
        check_count("target", target, least=0)
    check_count("chunk", chunk)
