"""LRP on ResNet-50 and VGG16-bn, batch 8: ours, zennit's, and the plain forward and backward pass.

What is compared. Random weights, with batch norms calibrated on noise, so that nothing needs to be
downloaded and activations are of order one; one class for each item. Conventions are made equal: z+ and
alpha-beta leave the bias out (zennit's ``zero_params="bias"``), gamma gives it its share in both, zB has
the same box in both, epsilon is 1e-6 everywhere. zennit also stabilises sums and average poolings, which
need no rule; there its stabiliser is 1e-15.

zennit's settings, the fastest that we know: batch norms folded into the convolutions beforehand by
PyTorch's own ``fuse_conv_bn_eval`` with the exact eps (zennit's merge leaves 1e-5 in the emptied batch
norm, and still runs it); ResNetCanonizer for the sums; parameters without gradients; canonizer and
composite registered once, outside the timed part. "zennit, channels last" has weights and input in the
memory layout that we use inside. "zennit, as documented" registers within each call and lets zennit merge
the batch norms, so that its result is a little off.

Ours gets the unmodified model and nothing prepared. "plain" is that model's forward pass and gradient to
the input, "plain, channels last" the same in the layout that we use inside.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from zennit.composites import LayerMapComposite, SpecialFirstLayerMapComposite
from zennit.core import Composite
from zennit.layer import Sum
from zennit.rules import AlphaBeta, Epsilon, Gamma, Norm, Pass, ZBox, ZPlus
from zennit.torchvision import ResNetCanonizer, VGGCanonizer
from zennit.types import Activation, AvgPool, BatchNorm, Convolution

from xaicourse import lrp

from .framework import OURS, Contender, Goal, Row, Work

BOX = (-3.0, 3.0)
"""The inputs' bounds, for zB."""

_LAST = torch.channels_last


def network(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A torchvision classifier with random weights, its batch norms calibrated on noise; always the same."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0.0, 0.3)
        norm.momentum = None  # statistics are averages over all batches seen: here one
    with torch.no_grad():
        model.train()(images(4, 96, torch.float32, seed=1))
    return model.eval().to(dtype)


def images(items: int, size: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Smooth random images within the box."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(items, 3, size // 8, size // 8, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear").to(dtype)
    return BOX[0] + (BOX[1] - BOX[0]) * smooth


def folded(model: nn.Module) -> nn.Module:
    """The model with each batch norm folded into the convolution before it, nothing left in its place."""
    for parent in list(model.modules()):
        before: tuple[str, nn.Module] | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d) and before is not None and isinstance(before[1], nn.Conv2d):
                setattr(parent, before[0], fuse_conv_bn_eval(before[1], child))
                setattr(parent, name, nn.Identity())
            before = (name, child)
    return model


def zennit_composite(name: str, canonizers: list[Any]) -> Composite:
    """zennit's composite of that name, by the conventions above."""
    tiny = 1e-15
    base = [(Activation, Pass()), (BatchNorm, Pass()), (AvgPool, Norm(tiny)), (Sum, Norm(tiny))]
    base.append((nn.Linear, Epsilon(epsilon=1e-6)))
    convolution = {
        "epsilon": Epsilon(epsilon=1e-6),
        "epsilon_plus": ZPlus(stabilizer=1e-6, zero_params="bias"),
        "epsilon_alpha2_beta1": AlphaBeta(alpha=2, beta=1, stabilizer=1e-6, zero_params="bias"),
        "epsilon_gamma_box": Gamma(gamma=0.25, stabilizer=1e-6),
    }[name]
    layers = [*base, (Convolution, convolution)]
    if name == "epsilon_gamma_box":
        first = [(Convolution, ZBox(low=BOX[0], high=BOX[1], stabilizer=1e-6))]
        return SpecialFirstLayerMapComposite(layer_map=layers, first_map=first, canonizers=canonizers)
    return LayerMapComposite(layer_map=layers, canonizers=canonizers)


def our_composite(name: str) -> str | lrp.Composite:
    """Our composite of that name, zB with an explicit box."""
    if name == "epsilon_gamma_box":
        return lrp.Composite(convolution=lrp.Gamma(0.25), first=lrp.ZBox(*BOX))
    return name


# ------------------------------------------------------------------------------------------------- contenders


def ours(exact: bool, model_name: str, composite: str, items: int, size: int) -> Work:
    """``lrp.relevance`` on the unmodified model."""
    model, x, target = _setting(exact, model_name, items, size)
    rules = our_composite(composite)
    return lambda: lrp.relevance(model, x, target, composite=rules)


def zennit(exact: bool, model_name: str, composite: str, items: int, size: int, channels_last: bool = False) -> Work:
    """zennit, folded and registered beforehand."""
    model, x, target = _setting(exact, model_name, items, size)
    model = folded(model).requires_grad_(False)
    if channels_last:
        model, x = model.to(memory_format=_LAST), x.contiguous(memory_format=_LAST)
    zennit_composite(composite, [_canonizer(model_name)]).register(model)
    return lambda: _gradient(model, x, target, relevance=True)


def zennit_as_documented(exact: bool, model_name: str, composite: str, items: int, size: int) -> Work:
    """zennit as its documentation has it: everything within a context, batch norms merged by its canonizer."""
    model, x, target = _setting(exact, model_name, items, size)
    rules = zennit_composite(composite, [_canonizer(model_name)])

    def work() -> Tensor:
        with rules.context(model) as modified:
            return _gradient(modified, x, target, relevance=True)

    return work


def plain(exact: bool, model_name: str, items: int, size: int, channels_last: bool = False) -> Work:
    """The forward pass and the gradient to the input, the least that explaining by a backward pass takes."""
    model, x, target = _setting(exact, model_name, items, size)
    if channels_last:
        model, x = model.to(memory_format=_LAST), x.contiguous(memory_format=_LAST)
    return lambda: _gradient(model, x, target, relevance=False)


def _setting(exact: bool, model_name: str, items: int, size: int) -> tuple[nn.Module, Tensor, Tensor]:
    dtype = torch.float64 if exact else torch.float32
    items = 1 if exact else items
    return network(model_name, dtype), images(items, size, dtype), torch.arange(items) * 7


def _canonizer(model_name: str) -> Any:
    return VGGCanonizer() if model_name.startswith("vgg") else ResNetCanonizer()


def _gradient(model: nn.Module, x: Tensor, target: Tensor, relevance: bool) -> Tensor:
    """d score / d x; zennit's hooks make relevance of it, if it starts with the scores in place of ones."""
    x = x.detach().clone().requires_grad_()
    outputs = model(x)
    start = torch.zeros_like(outputs)
    picked = outputs.detach().gather(1, target[:, None])
    start.scatter_(1, target[:, None], picked if relevance else torch.ones_like(picked))
    return torch.autograd.grad(outputs, x, start)[0]


# ------------------------------------------------------------------------------------------------------- rows

# shared/design/oracles.md: time over plain, zennit's time over ours, memory over zennit's
_TARGETS: dict[tuple[str, str], tuple[float | None, float | None, float | None]] = {
    ("resnet50", "epsilon"): (1.05, None, 0.45),
    ("resnet50", "epsilon_plus"): (1.2, 3.2, 0.45),
    ("resnet50", "epsilon_alpha2_beta1"): (1.65, 4.0, 0.55),
    ("resnet50", "epsilon_gamma_box"): (1.7, 4.0, 0.45),
    ("vgg16_bn", "epsilon_plus"): (None, 2.2, None),
    ("vgg16_bn", "epsilon_alpha2_beta1"): (None, 2.5, None),
}


def rows(quick: bool = False) -> list[Row]:
    """One row per network and composite."""
    items, size = (2, 64) if quick else (8, 224)
    return [_row(model, composite, items, size) for model, composite in _TARGETS]


def _row(model: str, composite: str, items: int, size: int) -> Row:
    work: dict[str, Any] = {"model_name": model, "composite": composite, "items": items, "size": size}
    frame: dict[str, Any] = {"model_name": model, "items": items, "size": size}
    fold = "batch norms folded and hooks registered beforehand"
    contenders = {
        OURS: Contender(partial(ours, **work), settings="the unmodified model, as the user has it"),
        "zennit": Contender(partial(zennit, **work), settings=fold),
        "zennit, channels last": Contender(partial(zennit, **work, channels_last=True), settings=fold),
        "plain": Contender(partial(plain, **frame), agrees=False, settings="forward and gradient to the input"),
        "plain, channels last": Contender(
            partial(plain, **frame, channels_last=True), agrees=False, memory=False, settings="the same"
        ),
    }
    if (model, composite) == ("resnet50", "epsilon_plus"):
        contenders["zennit, as documented"] = Contender(
            partial(zennit_as_documented, **work),
            agrees=False,
            memory=False,
            settings="merges and registers within each call",
        )
    peers = ("zennit", "zennit, channels last")
    over_plain, speedup, memory = _TARGETS[model, composite]
    goals = [
        Goal("time", OURS, "plain", at_most=over_plain) if over_plain else None,
        *[Goal("time", peer, OURS, at_least=speedup) for peer in contenders if peer in peers and speedup],
        Goal("memory", OURS, "zennit", at_most=memory) if memory else None,
    ]
    return Row(
        name=f"{model} {composite}",
        contenders=contenders,
        tolerance=1e-9,
        goals=[goal for goal in goals if goal],
        configuration={"batch": items, "size": size, "dtype": "float32"},
    )
