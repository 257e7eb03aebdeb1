"""Grad-CAM and two of its relatives: a map of a layer's features, weighted by what the score makes of them (lecture 10; slides,
section 3, equations (14) to (16)).

A convolutional layer gives K channels A^k of H' x W' places. Gradient x input *in feature space* is a number for each channel
and place, dy/dA^k_ij A^k_ij; Grad-CAM differs from it in three steps, each of which is a switch here: it averages the gradient
over the places, adds up the channels, and keeps the positive part.

    cam.grad_cam(model, inputs, target, layer="blocks.14")                        # shaped like the inputs, as any relevance
    cam.grad_cam(model, inputs, target, layer="blocks.14", upsample=False)        # the map itself, (N, 1, H', W')
    cam.grad_cam(model, inputs, target, layer=["blocks.3", "blocks.14"])          # two layers, one forward pass

The model is run once, without a graph up to the layer, and the gradient is taken from the score back to the layer and no
further. Nothing is normalised: two maps can be compared, and the sum of a map without positive part says for or against.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .arguments import check_finite, check_layer, kind
from .scores import Target, check_inputs, check_model, check_target, scores, unchanged, wide

__all__ = ["grad_cam", "grad_cam_plus_plus", "layer_cam"]

Layers = list[str] | tuple[str, ...]
Reshape = Callable[[Tensor], Tensor]

_MODES = {3: "linear", 4: "bilinear", 5: "trilinear"}  # by the dimensions of (N, K, places …)


# ------------------------------------------------------------------------------------------------------------
# The maps
# ------------------------------------------------------------------------------------------------------------


@overload
def grad_cam(
    model: nn.Module, inputs: Tensor, target: Target, *, layer: str, average: bool = ..., channels: bool = ...,
    positive: bool = ..., upsample: bool = ..., reshape: Reshape | None = ...,
) -> Tensor: ...  # fmt: skip
@overload
def grad_cam(
    model: nn.Module, inputs: Tensor, target: Target, *, layer: Layers, average: bool = ..., channels: bool = ...,
    positive: bool = ..., upsample: bool = ..., reshape: Reshape | None = ...,
) -> dict[str, Tensor]: ...  # fmt: skip
def grad_cam(
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    *,
    layer: str | Layers,
    average: bool = True,
    channels: bool = True,
    positive: bool = True,
    upsample: bool = True,
    reshape: Reshape | None = None,
) -> Tensor | dict[str, Tensor]:
    """Weight each channel of a layer by its mean gradient, add the channels up, keep the positive part.

    model     an nn.Module in evaluation mode; it is not changed
    inputs    (N, C, H, W), any float dtype and device; also (N, C, T) or (N, C, D, H, W), if the layer has as many dimensions
    target    which score to explain: a class index, one for each item (LongTensor (N,)), or a function from the outputs to
              scores (N,)
    layer     path of a module out of ``model.named_modules()``, whose output has shape (N, K, H', W'); or a list or tuple of
              such paths, which are all answered by one forward pass
    average   True: every place has the mean gradient of its channel (14); False: each place its own
    channels  True: the channels are added up before the positive part is taken (15); False: they stay apart until then
    positive  True: what speaks against the score is left out (16); False: the map is signed
    upsample  True: the map in the shape of the inputs, as ``evaluation`` and plots take it, what stayed apart added up; False:
              the map at the layer, (N, 1, H', W'), or (N, K, H', W') with ``channels=False``
    reshape   what makes (N, K, H', W') of the layer's output, and of its gradient; it may move and drop values, no more. For
              the tokens of a vision transformer: ``lambda t: t[:, 1:].mT.unflatten(2, (7, 7))``

    Returns relevance with the dtype and device of the inputs, or a dict from path to relevance if several layers are asked
    for. With ``upsample`` the map is interpolated linearly, and the relevance of a place is shared out among the pixels that it
    stands for and their channels, so that the sum stays: exactly, if H and W are multiples of H' and W', else nearly.

    Raises ValueError or TypeError if an argument is not as above, if the layer is called never or more than once, if its output
    is no tensor of as many dimensions as the inputs or has no influence on the score, or if a NaN or an infinity appears.

    ::

        alpha_k = 1 / (H' W') sum_ij dy/dA^k_ij      (14)
        G_ij    = sum_k alpha_k A^k_ij               (15)
        L_ij    = max(G_ij, 0)                       (16)

    With all three switches off this is gradient x activation, dy/dA^k_ij A^k_ij.

    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017.
    """

    def make(A: Tensor, gradient: Tensor) -> Tensor:
        alpha = gradient.mean(_places(A), keepdim=True) if average else gradient
        G = alpha * A
        G = G.sum(1, keepdim=True) if channels else G
        return G.relu() if positive else G

    _check_switches(average=average, channels=channels, positive=positive, upsample=upsample)
    return _explain(model, inputs, target, layer, make, upsample, reshape)


@overload
def grad_cam_plus_plus(
    model: nn.Module, inputs: Tensor, target: Target, *, layer: str,
    positive: bool = ..., upsample: bool = ..., reshape: Reshape | None = ...,
) -> Tensor: ...  # fmt: skip
@overload
def grad_cam_plus_plus(
    model: nn.Module, inputs: Tensor, target: Target, *, layer: Layers,
    positive: bool = ..., upsample: bool = ..., reshape: Reshape | None = ...,
) -> dict[str, Tensor]: ...  # fmt: skip
def grad_cam_plus_plus(
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    *,
    layer: str | Layers,
    positive: bool = True,
    upsample: bool = True,
    reshape: Reshape | None = None,
) -> Tensor | dict[str, Tensor]:
    """Weight each channel by its positive gradients, those of seldom active channels more: Grad-CAM++.

    Arguments, result and errors as in `grad_cam`. The score y is taken for the logarithm of what is explained, Y = exp(y), and
    for linear in A around it, so that the n-th derivative of Y is exp(y) (dy/dA)^n. The published weights then become simple:

    ::

        w_k  = sum_ij a^k_ij max(dy/dA^k_ij, 0)      a^k_ij = 1 / (2 + dy/dA^k_ij sum_ab A^k_ab)
        L_ij = max(sum_k w_k A^k_ij, 0)

    The common factor exp(y) of an item is left out. The weights are not proportional to the score: twice the score is another
    map, which no other method here has. ValueError if a^k_ij is not positive where the gradient is, which cannot happen behind
    a ReLU.

    Chattopadhay et al., "Grad-CAM++: Generalized Gradient-based Visual Explanations for Deep Convolutional Networks", WACV
    2018.
    """

    def make(A: Tensor, gradient: Tensor) -> Tensor:
        places = _places(A)
        rising = gradient.relu()
        below = 2 + rising * A.sum(places, keepdim=True)
        if bool((below <= 0).any()):
            raise ValueError(
                "layer must have activations of at least 0 for Grad-CAM++, such as those behind a ReLU; got a channel whose "
                f"sum is {A.sum(places).min():.4g}"
            )
        G = ((rising / below).sum(places, keepdim=True) * A).sum(1, keepdim=True)
        return G.relu() if positive else G

    _check_switches(positive=positive, upsample=upsample)
    return _explain(model, inputs, target, layer, make, upsample, reshape)


@overload
def layer_cam(
    model: nn.Module, inputs: Tensor, target: Target, *, layer: str,
    positive: bool = ..., upsample: bool = ..., reshape: Reshape | None = ...,
) -> Tensor: ...  # fmt: skip
@overload
def layer_cam(
    model: nn.Module, inputs: Tensor, target: Target, *, layer: Layers,
    positive: bool = ..., upsample: bool = ..., reshape: Reshape | None = ...,
) -> dict[str, Tensor]: ...  # fmt: skip
def layer_cam(
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    *,
    layer: str | Layers,
    positive: bool = True,
    upsample: bool = True,
    reshape: Reshape | None = None,
) -> Tensor | dict[str, Tensor]:
    """Weight each place of each channel by its own gradient where that is positive: LayerCAM.

    Arguments, result and errors as in `grad_cam`. Behind a ReLU it equals ``grad_cam(..., average=False, channels=False)``:
    without the average, and with the positive part taken channel by channel.

    ::

        L_ij = max(sum_k max(dy/dA^k_ij, 0) A^k_ij, 0)

    Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE Transactions on Image
    Processing 30, 2021; without its scaling of shallow layers.
    """

    def make(A: Tensor, gradient: Tensor) -> Tensor:
        G = (gradient.relu() * A).sum(1, keepdim=True)
        return G.relu() if positive else G

    _check_switches(positive=positive, upsample=upsample)
    return _explain(model, inputs, target, layer, make, upsample, reshape)


# ------------------------------------------------------------------------------------------------------------
# From a layer to the inputs
# ------------------------------------------------------------------------------------------------------------


def _explain(
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    layer: str | Layers,
    make: Callable[[Tensor, Tensor], Tensor],
    upsample: bool,
    reshape: Reshape | None,
) -> Tensor | dict[str, Tensor]:
    """What ``make`` makes of activation and gradient, for each layer."""
    paths = _check_layers(model, layer)
    check_model(model)
    check_inputs(inputs)
    if inputs.dim() not in _MODES:
        raise ValueError(
            f"inputs must have shape (N, C, H, W), (N, C, T) or (N, C, D, H, W), got {tuple(inputs.shape)}"
        )
    if reshape is not None and not callable(reshape):
        raise TypeError(f"reshape must be a function of tensors or None, got {type(reshape).__name__}")
    target = check_target(target, len(inputs))
    found = {}
    for path, (activation, gradient) in _features(model, inputs, target, paths).items():
        A, slope = (_placed(path, t, reshape, inputs) for t in (activation, gradient))
        relevance = make(wide(A), wide(slope))
        relevance = (_spread(relevance, inputs) if upsample else relevance).to(inputs.dtype)
        check_finite("the relevance", relevance)
        found[path] = relevance
    return found[layer] if isinstance(layer, str) else found


def _features(model: nn.Module, inputs: Tensor, target: Target, paths: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """The output of each layer, and the gradient of the score with respect to it.

    The graph begins at the first of the layers: autograd is off until its hook turns it on, and the model is run once. A model
    that switches autograd itself, around a layer, switches it off again: then it is run once more, with autograd on from the
    start.
    """
    with unchanged(model), torch.inference_mode(False):
        score, outputs, undisturbed = _forward(model, inputs, target, paths, early=False)
        if not undisturbed:
            score, outputs, _ = _forward(model, inputs, target, paths, early=True)
    for path in paths:
        if path not in outputs:
            raise ValueError(f"layer: {path!r} is not called in a forward pass of the model")
    wanted = list(outputs.values())
    with torch.inference_mode(False), torch.enable_grad():
        found = (
            torch.autograd.grad(score.sum(), wanted, allow_unused=True) if score.requires_grad else [None] * len(wanted)
        )
    features = {}
    for path, gradient in zip(outputs, found, strict=True):
        if gradient is None:
            raise ValueError(
                f"layer: the score does not depend on the output of {path!r}, or the graph between them is cut (detach, "
                "no_grad, numpy, an argmax)"
            )
        check_finite(f"the gradient at {path!r}", gradient)
        features[path] = (outputs[path].detach(), gradient)
    return {path: features[path] for path in paths}


def _forward(
    model: nn.Module, inputs: Tensor, target: Target, paths: list[str], *, early: bool
) -> tuple[Tensor, dict[str, Tensor], bool]:
    """The score, the output of each layer in the order of their calls, and whether autograd stayed on behind the first.

    early  whether autograd is on from the start
    """
    outputs: dict[str, Tensor] = {}
    stayed = []

    def catch(path: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, output: Any) -> Tensor:
            if path in outputs:
                raise ValueError(
                    f"layer: {path!r} is called more than once in a forward pass, so that it has more than one map; "
                    "name the module around it, or one that is called once"
                )
            if not isinstance(output, Tensor) or not output.is_floating_point():
                raise ValueError(f"layer: {path!r} must give a tensor of a float dtype, got {kind(output)}")
            if outputs:
                stayed.append(torch.is_grad_enabled())
            if not early:
                torch.set_grad_enabled(True)
            kept = output.clone()  # the layer may have passed on a tensor on which the model works in place
            outputs[path] = kept if kept.requires_grad else kept.detach().requires_grad_()
            return outputs[path].clone()  # and the model may go on with this one in place

        return hook

    with torch.set_grad_enabled(early):
        handles = [model.get_submodule(path).register_forward_hook(catch(path)) for path in paths]
        handles.append(
            model.register_forward_pre_hook(lambda *_: outputs.clear())
        )  # see ``scores.run``: it may run twice
        try:
            score = scores(model, inputs.detach().clone(), target)
        finally:
            for handle in handles:
                handle.remove()
        return score, outputs, not outputs or (torch.is_grad_enabled() and all(stayed))


def _placed(path: str, values: Tensor, reshape: Reshape | None, inputs: Tensor) -> Tensor:
    """What the layer gives, or its gradient, as (N, K, H', W')."""
    placed = values if reshape is None else reshape(values)
    if not isinstance(placed, Tensor):
        raise TypeError(f"reshape must return a tensor, got {type(placed).__name__}")
    if placed.dim() != inputs.dim() or len(placed) != len(inputs) or 0 in placed.shape:
        expected = {3: "(N, K, T')", 4: "(N, K, H', W')", 5: "(N, K, D', H', W')"}[inputs.dim()]
        by = f"layer: {path!r} must give" if reshape is None else f"reshape must make of {path!r}"
        way_out = "; reshape= can bring tokens into that form" if reshape is None else ""
        raise ValueError(f"{by} {expected} with N = {len(inputs)}, got {tuple(placed.shape)}{way_out}")
    return placed


def _spread(relevance: Tensor, inputs: Tensor) -> Tensor:
    """A map (N, K, H', W') in the shape of the inputs, with the same sum."""
    size = inputs.shape[2:]
    share = relevance.shape[2:].numel() / (size.numel() * inputs.shape[1])
    total = relevance.sum(1, keepdim=True) * share
    fine = F.interpolate(total, tuple(size), mode=_MODES[inputs.dim()], align_corners=False)
    return fine.expand(inputs.shape).contiguous()


def _places(A: Tensor) -> tuple[int, ...]:
    return tuple(range(2, A.dim()))


# ------------------------------------------------------------------------------------------------------------
# Checks
# ------------------------------------------------------------------------------------------------------------


def _check_layers(model: nn.Module, layer: str | Layers) -> list[str]:
    """The paths, each of them once."""
    if not isinstance(layer, (list, tuple)):
        check_layer("layer", model, layer)
        return [layer]
    if not layer:
        raise ValueError("layer must name at least one module, got none")
    for path in layer:
        check_layer("layer", model, path)
    return list(dict.fromkeys(layer))


def _check_switches(**switches: bool) -> None:
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {type(value).__name__}")
