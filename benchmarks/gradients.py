"""Integrated gradients, SmoothGrad, occlusion, RISE and Grad-CAM, on ResNet-50 and EfficientNet-Lite0, images of 224 px: ours,
captum's, pytorch-grad-cam's, and what the model alone costs.

What is compared. Random weights, with batch norms calibrated on noise (``networks``), and the class that the model gives the
highest score. Integrated gradients has 32 nodes of Gauss and Legendre and a baseline of zeros; SmoothGrad 32 samples with the
same noise for everybody; occlusion a window of 32 px that moves by its own width, and the whole fall at every pixel, as captum
has it; RISE 128 masks of 7 x 7 cells; Grad-CAM the last features before the pooling, brought to the size of the image. That
results are equal is checked in float64 on images of 64 px; to 1e-6 where captum itself has a step in float32: the nodes'
weights of integrated gradients, the averages of occlusion.

Yardsticks. "model" is the model alone on as many images as the explanation needs, in the same chunks: forward and gradient to
the input for the first two, forward without a graph for the others. "model, channels last" is the same with weights and
images in the memory layout that convolutions on a CPU like best, laid out beforehand. Ours gets the model as the user has it
and lays out the images itself, so that it can be faster than "model"; what it adds to the work shows beside the other.

captum's settings: how many images at once is tried at several values, since its default is all of them or one. "captum,
channels last" is the better one of them on a model laid out beforehand, as only someone who knows would have it. It shares
our advantage, so that no goal is about it.

pytorch-grad-cam's map is scaled to [0, 1]. What is compared is the map that it had before, interpolated as we do; that takes
it less than a millisecond more. As documented it also computes the gradients of all parameters; "frozen" has them off in all
but the layer's last, which it needs for its hooks. It is a class whose object is made beforehand.

No other library that we know has RISE, so that its row has no peer.
"""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache, partial
from typing import Any

import torch
from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam, NoiseTunnel, Occlusion, Saliency
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

import xaicourse
from xaicourse import cam, gradients, occlusion

from .framework import OURS, Contender, Goal, Row, Work
from .networks import gradient, images, network

SUBJECT = xaicourse

_LAST = torch.channels_last
_STEPS, _NOISE, _MASKS, _WINDOW = 32, 0.15, 128, 32
_LAYERS = {"resnet50": "layer4", "efficientnet_lite0": "head"}


def _setting(
    exact: bool, model_name: str, size: int, items: int = 1, channels_last: bool = False
) -> tuple[nn.Module, Tensor, Tensor]:
    dtype, size = (torch.float64, 64) if exact else (torch.float32, size)
    model, x = deepcopy(_network(model_name)).to(dtype), images(items, size, dtype)
    with torch.no_grad():
        target = torch.cat([model(part).argmax(1) for part in x.split(8)])
    if channels_last:
        model, x = model.to(memory_format=_LAST), x.contiguous(memory_format=_LAST)
    return model, x, target


_network = lru_cache(maxsize=2)(network)


# -------------------------------------------------------------------------------------------- the model alone


def model_alone(
    exact: bool, model_name: str, size: int, items: int, chunk: int, backward: bool, channels_last: bool = False
) -> Work:
    """The model on so many images: forward and gradient to the input, or forward without a graph."""
    model, x, target = _setting(exact, model_name, size, items, channels_last)

    def work() -> Tensor:
        if backward:
            return torch.cat([gradient(model, *part) for part in zip(x.split(chunk), target.split(chunk), strict=True)])
        with torch.no_grad():
            return torch.cat([model(part) for part in x.split(chunk)])

    return work


# -------------------------------------------------------------------------------------- integrated gradients


def integrated_gradients(exact: bool, model_name: str, size: int, chunk: int) -> Work:
    """Ours."""
    model, x, target = _setting(exact, model_name, size)
    return lambda: gradients.integrated_gradients(
        model, x, target, steps=_STEPS, quadrature="gausslegendre", chunk=chunk
    )


def captum_integrated_gradients(
    exact: bool, model_name: str, size: int, chunk: int, channels_last: bool = False
) -> Work:
    """captum's, with ``internal_batch_size``."""
    model, x, target = _setting(exact, model_name, size, channels_last=channels_last)
    explainer = IntegratedGradients(model)
    return lambda: explainer.attribute(
        x, target=target, n_steps=_STEPS, method="gausslegendre", internal_batch_size=chunk
    ).detach()


# ------------------------------------------------------------------------------------------------- SmoothGrad


def smoothgrad(exact: bool, model_name: str, size: int, chunk: int) -> Work:
    """Ours."""
    model, x, target = _setting(exact, model_name, size)
    return lambda: gradients.smoothgrad(
        model, x, target, samples=_STEPS, noise=_NOISE, generator=torch.Generator().manual_seed(0), chunk=chunk
    )


class SameNoise(NoiseTunnel):
    """captum's, with noise that is drawn as ours is: sample by sample, from a generator of its own."""

    def _add_noise_to_input(self, input: Tensor, stdev: float, nt_samples_partition: int) -> Tensor:
        drawn = [torch.randn(input.shape[1:], generator=self.generator) for _ in range(nt_samples_partition)]
        return input + stdev * torch.stack(drawn).to(input)


def captum_smoothgrad(exact: bool, model_name: str, size: int, chunk: int, channels_last: bool = False) -> Work:
    """captum's, with ``nt_samples_batch_size``."""
    model, x, target = _setting(exact, model_name, size, channels_last=channels_last)
    explainer = SameNoise(Saliency(model))
    std = float(_NOISE * (x.max() - x.min()))

    def work() -> Tensor:
        explainer.generator = torch.Generator().manual_seed(0)
        return explainer.attribute(
            x,
            target=target,
            abs=False,
            nt_type="smoothgrad",
            nt_samples=_STEPS,
            nt_samples_batch_size=chunk,
            stdevs=std,
        ).detach()

    return work


# ------------------------------------------------------------------------------------------ occlusion and RISE


def our_occlusion(exact: bool, model_name: str, size: int, chunk: int) -> Work:
    """Ours."""
    model, x, target = _setting(exact, model_name, size)
    return lambda: occlusion.occlusion(model, x, target, patch=_WINDOW, share=False, chunk=chunk)


def captum_occlusion(exact: bool, model_name: str, size: int, chunk: int, channels_last: bool = False) -> Work:
    """captum's, with ``perturbations_per_eval``."""
    model, x, target = _setting(exact, model_name, size, channels_last=channels_last)
    window = (3, _WINDOW, _WINDOW)
    explainer = Occlusion(model)

    def work() -> Tensor:
        with torch.no_grad():
            return explainer.attribute(
                x,
                target=target,
                sliding_window_shapes=window,
                strides=window,
                baselines=0,
                perturbations_per_eval=chunk,
            )

    return work


def our_rise(exact: bool, model_name: str, size: int, chunk: int) -> Work:
    """Ours."""
    model, x, target = _setting(exact, model_name, size)
    return lambda: occlusion.rise(
        model, x, target, masks=_MASKS, cells=7, generator=torch.Generator().manual_seed(0), chunk=chunk
    )


# --------------------------------------------------------------------------------------------------- Grad-CAM


def our_grad_cam(exact: bool, model_name: str, size: int, items: int) -> Work:
    """Ours."""
    model, x, target = _setting(exact, model_name, size, items)
    return lambda: cam.grad_cam(model, x, target, layer=_LAYERS[model_name])


def captum_grad_cam(exact: bool, model_name: str, size: int, items: int, channels_last: bool = False) -> Work:
    """captum's, interpolated by its own function."""
    model, x, target = _setting(exact, model_name, size, items, channels_last)
    explainer = LayerGradCam(model, model.get_submodule(_LAYERS[model_name]))

    def work() -> Tensor:
        found = explainer.attribute(x, target=target, relu_attributions=True).detach()
        return _shared(found, LayerAttribution.interpolate(found, x.shape[2:], "bilinear"), x)

    return work


class Remembering(GradCAM):
    """pytorch-grad-cam's, which keeps the map as it is before it is scaled to [0, 1]."""

    def get_cam_image(self, *args: Any, **kwargs: Any) -> Any:
        """The map of a layer."""
        self.unscaled = super().get_cam_image(*args, **kwargs)
        return self.unscaled


def pytorch_grad_cam(exact: bool, model_name: str, size: int, items: int, frozen: bool = False) -> Work:
    """pytorch-grad-cam's."""
    model, x, target = _setting(exact, model_name, size, items)
    layer = model.get_submodule(_LAYERS[model_name])
    if frozen:
        model.requires_grad_(False)
        list(layer.parameters())[-1].requires_grad_(True)
    explainer = Remembering(model, [layer])
    classes = [ClassifierOutputTarget(int(index)) for index in target]

    def work() -> Tensor:
        explainer(x, classes)
        found = torch.from_numpy(explainer.unscaled)[:, None].relu()
        return _shared(found, nn.functional.interpolate(found, x.shape[2:], mode="bilinear"), x)

    return work


def _shared(found: Tensor, large: Tensor, x: Tensor) -> Tensor:
    """A map brought to the size of the image, shared out among pixels and channels."""
    return (large * (found[0].numel() / x[0].numel())).expand(x.shape)


# ------------------------------------------------------------------------------------------------------- rows


def rows(quick: bool = False) -> list[Row]:
    """One row for each network and method."""
    size = 64 if quick else 224
    found = []
    for model in _LAYERS:
        frame: dict[str, Any] = {"model_name": model, "size": size}
        windows = 1 + (size // _WINDOW) ** 2
        found += [
            _row(f"{model} integrated gradients, {_STEPS} steps", frame, _STEPS, integrated_gradients,
                 captum_integrated_gradients, at_once=(4, 8, 32), chunk=8, most=1.03, tolerance=1e-6),
            _row(f"{model} SmoothGrad, {_STEPS} samples", frame, _STEPS, smoothgrad, captum_smoothgrad,
                 at_once=(4, 8, 32), chunk=8, most=1.03),
            _row(f"{model} occlusion, {windows - 1} windows", frame, windows, our_occlusion, captum_occlusion,
                 at_once=(8, 32), chunk=8, most=1.05, speedup=1.4, tolerance=1e-6),
            _row(f"{model} RISE, {_MASKS} masks", frame, _MASKS, our_rise, None, at_once=(), chunk=8, most=1.05),
            *(_grad_cam_row(model, frame, items) for items in (1, 8)),
        ]  # fmt: skip
    return found


def _row(
    name: str,
    frame: dict[str, Any],
    evaluations: int,
    ours: Any,
    captum: Any,
    *,
    at_once: tuple[int, ...],
    chunk: int,
    most: float,
    speedup: float | None = None,
    tolerance: float = 1e-9,
) -> Row:
    """Ours, captum's with so many images at once, and the model alone on as many images."""
    backward = ours in (integrated_gradients, smoothgrad)
    contenders = {OURS: Contender(partial(ours, **frame, chunk=chunk), memory=False, settings=f"{chunk} at once")}
    for number in at_once:
        contenders[f"captum, {number} at once"] = Contender(partial(captum, **frame, chunk=number), memory=False)
    if captum is not None:
        contenders["captum, channels last"] = Contender(
            partial(captum, **frame, chunk=chunk, channels_last=True), memory=False, settings=f"{chunk} at once"
        )
    contenders |= _alone(frame, evaluations, chunk, backward)
    goals = [Goal("time", OURS, name, at_most=most) for name in ("model", "model, channels last")]
    if speedup:
        goals += [Goal("time", f"captum, {number} at once", OURS, at_least=speedup) for number in at_once]
    return Row(name, contenders, tolerance=tolerance, goals=goals, configuration=_configuration(1, frame))


def _grad_cam_row(model: str, frame: dict[str, Any], items: int) -> Row:
    work = {**frame, "items": items}
    contenders = {
        OURS: Contender(partial(our_grad_cam, **work), memory=False),
        "captum": Contender(partial(captum_grad_cam, **work), memory=False),
        "captum, channels last": Contender(partial(captum_grad_cam, **work, channels_last=True), memory=False),
        "pytorch-grad-cam": Contender(partial(pytorch_grad_cam, **work), memory=False, settings="as documented"),
        "pytorch-grad-cam, frozen": Contender(
            partial(pytorch_grad_cam, **work, frozen=True), memory=False, settings="one parameter with a gradient"
        ),
        **_alone(frame, items, items, backward=False),
    }
    goals = [Goal("time", OURS, name, at_most=1.1) for name in ("model", "model, channels last")]
    goals.append(Goal("time", "pytorch-grad-cam", OURS, at_least=3.0))
    return Row(
        f"{model} Grad-CAM, batch {items}", contenders, tolerance=1e-9, goals=goals,
        configuration=_configuration(items, frame),
    )  # fmt: skip


def _alone(frame: dict[str, Any], evaluations: int, chunk: int, backward: bool) -> dict[str, Contender]:
    work = {**frame, "items": evaluations, "chunk": chunk, "backward": backward}
    what = f"{'forward and gradient' if backward else 'forward'}, {evaluations} images, {chunk} at once"
    return {
        "model": Contender(partial(model_alone, **work), agrees=False, memory=False, settings=what),
        "model, channels last": Contender(
            partial(model_alone, **work, channels_last=True), agrees=False, memory=False, settings=what
        ),
    }


def _configuration(items: int, frame: dict[str, Any]) -> dict[str, Any]:
    return {"batch": items, "size": frame["size"], "dtype": "float32"}
