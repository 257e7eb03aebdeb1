"""LRP on seven networks, images of 224 px, batch 1 and 8: ours, zennit's, captum's, and the plain forward and backward pass.

What is compared. Random weights, with batch norms calibrated on noise (``networks``); one class for each item.
Conventions are made equal: z+ and alpha-beta leave the bias out (zennit's ``zero_params="bias"``), gamma gives
it its share in both, zB has the same box in both, epsilon is 1e-6 everywhere. zennit also stabilises sums and
average poolings, which need no rule; there its stabiliser is 1e-15. That results are equal is checked on one
image of 64 px in float64. On ResNet, VGG and DenseNet zennit must agree; elsewhere zennit, and captum everywhere,
are tried, and the row says how they fail.

zennit's settings, the fastest that we know: batch norms folded into the convolutions beforehand by
PyTorch's own ``fuse_conv_bn_eval`` with the exact eps (zennit's merge leaves 1e-5 in the emptied batch
norm, and still runs it); ResNetCanonizer for the sums; the functions at the end of DenseNet made modules;
parameters without gradients; canonizer and composite registered once, outside the timed part. "zennit,
channels last" has weights and input in the memory layout that we use inside. "zennit, as documented" registers
within each call and lets zennit merge the batch norms, so that its result is a little off.

captum gets the folded model, too, with a dropout where a batch norm was, since it does not know nn.Identity, and
with activations that do not work in place; it takes its rules away after each call, so that giving them is part
of the work. Of the composites it has epsilon, and z+ as alpha1-beta0.

Ours gets the unmodified model and nothing prepared. "plain" is that model's forward pass and gradient to
the input, "plain, channels last" the same in the layout that we use inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache, partial
from typing import Any

import torch
from captum.attr import LRP
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, PropagationRule
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import DenseNet
from zennit.composites import LayerMapComposite, SpecialFirstLayerMapComposite
from zennit.core import Composite
from zennit.layer import Sum
from zennit.rules import AlphaBeta, Epsilon, Gamma, Norm, Pass, ZBox, ZPlus
from zennit.torchvision import ResNetCanonizer
from zennit.types import Activation, AvgPool, BatchNorm, Convolution

from xaicourse import lrp

from .framework import OURS, Contender, Goal, Row, Work
from .networks import BOX, gradient, images, network

SUBJECT = lrp

_LAST = torch.channels_last
_TINY = 1e-15


def folded(model: nn.Module, placeholder: type[nn.Module] = nn.Identity) -> nn.Module:
    """The model with each batch norm folded into the convolution before it, and nothing done in its place."""
    for parent in list(model.modules()):
        before: tuple[str, nn.Module] | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d) and before is not None and isinstance(before[1], nn.Conv2d):
                setattr(parent, before[0], fuse_conv_bn_eval(before[1], child))
                setattr(parent, name, placeholder())
            before = (name, child)
    return model


class DenseNetOfModules(nn.Module):
    """A DenseNet whose last activation and pooling are modules, which is all that the peers see."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.features, self.classifier = model.features, model.classifier
        self.activation, self.pool = nn.ReLU(), nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.activation(self.features(x))).flatten(1))


def prepared(model: nn.Module, placeholder: type[nn.Module] = nn.Identity) -> nn.Module:
    """The model as the peers want it."""
    model = folded(model, placeholder)
    return (DenseNetOfModules(model) if isinstance(model, DenseNet) else model).eval()


def zennit_composite(name: str, canonizers: list[Any]) -> Composite:
    """zennit's composite of that name, by the conventions above."""
    convolution = {
        "epsilon": Epsilon(epsilon=1e-6),
        "epsilon_plus": ZPlus(stabilizer=1e-6, zero_params="bias"),
        "epsilon_alpha2_beta1": AlphaBeta(alpha=2, beta=1, stabilizer=1e-6, zero_params="bias"),
        "epsilon_gamma_box": Gamma(gamma=0.25, stabilizer=1e-6),
        "attention": Gamma(gamma=0.25, stabilizer=1e-6),
    }[name]
    linear = Gamma(gamma=0.05, stabilizer=1e-6) if name == "attention" else Epsilon(epsilon=1e-6)
    layers = [
        *[(Activation, Pass()), (AvgPool, Norm(_TINY)), (Sum, Norm(_TINY))],
        *[(BatchNorm, Epsilon(epsilon=1e-6)), (nn.Linear, linear), (Convolution, convolution)],
    ]
    if name == "epsilon_gamma_box":
        first = [(Convolution, ZBox(low=BOX[0], high=BOX[1], stabilizer=1e-6))]
        return SpecialFirstLayerMapComposite(layer_map=layers, first_map=first, canonizers=canonizers)
    return LayerMapComposite(layer_map=layers, canonizers=canonizers)


def captum_rule(name: str) -> PropagationRule:
    """captum's rule for convolutions in the composite of that name; each needs one of its own."""
    if name == "epsilon":
        return EpsilonRule(epsilon=1e-6)
    if name == "epsilon_plus":
        return Alpha1_Beta0_Rule(set_bias_to_zero=True)
    raise NotImplementedError("captum has no such rule")


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
    model = prepared(model).requires_grad_(False)
    if channels_last:
        model, x = model.to(memory_format=_LAST), x.contiguous(memory_format=_LAST)
    zennit_composite(composite, _canonizers(model_name)).register(model)
    return lambda: gradient(model, x, target, relevance=True)


def zennit_as_documented(exact: bool, model_name: str, composite: str, items: int, size: int) -> Work:
    """zennit as its documentation has it: everything within a context, batch norms merged by its canonizer."""
    model, x, target = _setting(exact, model_name, items, size)
    rules = zennit_composite(composite, _canonizers(model_name))

    def work() -> Tensor:
        with rules.context(model) as modified:
            return gradient(modified, x, target, relevance=True)

    return work


def captum(exact: bool, model_name: str, composite: str, items: int, size: int) -> Work:
    """captum's LRP, folded beforehand; it takes its rules away again after each call."""
    model, x, target = _setting(exact, model_name, items, size)
    model = prepared(model, nn.Dropout)
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    captum_rule(composite)  # says at once if there is none

    def work() -> Tensor:
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.rule = captum_rule(composite)
            elif isinstance(module, (nn.Linear, nn.BatchNorm2d)):
                module.rule = EpsilonRule(epsilon=1e-6)
            elif isinstance(module, (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)):
                module.rule = EpsilonRule(epsilon=_TINY)
        return LRP(model).attribute(x.detach().clone(), target=target).detach()

    return work


def plain(exact: bool, model_name: str, items: int, size: int, channels_last: bool = False) -> Work:
    """The forward pass and the gradient to the input, the least that explaining by a backward pass takes."""
    model, x, target = _setting(exact, model_name, items, size)
    if channels_last:
        model, x = model.to(memory_format=_LAST), x.contiguous(memory_format=_LAST)
    return lambda: gradient(model, x, target)


def _setting(exact: bool, model_name: str, items: int, size: int) -> tuple[nn.Module, Tensor, Tensor]:
    dtype = torch.float64 if exact else torch.float32
    items, size = (1, 64) if exact else (items, size)
    model = deepcopy(_network(model_name, size)).to(dtype)
    return model, images(items, size, dtype), torch.arange(items) * 7


_network = lru_cache(maxsize=1)(network)


def _canonizers(model_name: str) -> list[Any]:
    return [ResNetCanonizer()] if model_name.startswith("resnet") else []


# ------------------------------------------------------------------------------------------------------- rows

_RULES = ("epsilon", "epsilon_plus", "epsilon_alpha2_beta1", "epsilon_gamma_box")
_WORK: dict[str, dict[int, Sequence[str]]] = {
    "resnet18": {1: _RULES, 8: _RULES[:2]},
    "resnet50": {1: _RULES, 8: _RULES},
    "vgg16_bn": {1: _RULES, 8: _RULES[1:3]},
    "densenet121": {1: _RULES, 8: _RULES[:2]},
    "efficientnet_b0": {1: _RULES[:2], 8: _RULES[:1]},
    "convnext_tiny": {1: ("epsilon", "attention"), 8: ("attention",)},
    "vit_b_16": {1: ("epsilon", "attention"), 8: ("attention",)},
}
"""By network and batch: the composites that make sense there. z+ and alpha-beta want activations that are not negative;
batch 8 has what people would use, since large batches take long."""

# at batch 8: time over plain, zennit's time over ours, memory over zennit's
_TARGETS: dict[tuple[str, str], tuple[float | None, float | None, float | None]] = {
    ("resnet50", "epsilon"): (1.05, None, 0.45),
    ("resnet50", "epsilon_plus"): (1.2, 3.2, 0.45),
    ("resnet50", "epsilon_alpha2_beta1"): (1.65, 4.0, 0.55),
    ("resnet50", "epsilon_gamma_box"): (1.7, 4.0, 0.45),
    ("vgg16_bn", "epsilon_plus"): (None, 2.2, None),
    ("vgg16_bn", "epsilon_alpha2_beta1"): (None, 2.5, None),
}


def rows(quick: bool = False) -> list[Row]:
    """One row per network, composite and batch."""
    size = 64 if quick else 224
    return [
        _row(model, composite, items, size)
        for model, batches in _WORK.items()
        for items, composites in batches.items()
        for composite in composites
    ]


def _row(model: str, composite: str, items: int, size: int) -> Row:
    frame: dict[str, Any] = {"model_name": model, "items": items, "size": size}
    work: dict[str, Any] = {**frame, "composite": composite}
    targets = _TARGETS.get((model, composite)) if items == 8 else None
    memory = targets is not None and targets[2] is not None
    unknown = (
        ""
        if model.startswith(("resnet", "vgg", "densenet"))
        else "it sees modules only, and has no canonizer for this network"
    )
    signed = "its alpha1-beta0 is for inputs that are not negative" if composite == "epsilon_plus" else ""
    fold = "batch norms folded and hooks registered beforehand"
    contenders = {
        OURS: Contender(partial(ours, **work), memory=memory, settings="the unmodified model, as the user has it"),
        "zennit": Contender(partial(zennit, **work), tried=unknown, memory=memory, settings=fold),
        "captum": Contender(
            partial(captum, **work),
            tried=signed or "it sees modules only",
            memory=False,
            settings="batch norms folded beforehand",
        ),
        "plain": Contender(
            partial(plain, **frame), agrees=False, memory=memory, settings="forward and gradient to the input"
        ),
    }
    if targets:
        contenders |= _at_their_best(frame, work)
    return Row(
        name=f"{model} {composite}, batch {items}",
        contenders=contenders,
        tolerance=1e-9,
        goals=_goals(*targets) if targets else (),
        configuration={"batch": items, "size": size, "dtype": "float32"},
    )


def _at_their_best(frame: dict[str, Any], work: dict[str, Any]) -> dict[str, Contender]:
    """More ways to set up the others, where there is a goal."""
    fold = "batch norms folded and hooks registered beforehand"
    found = {
        "zennit, channels last": Contender(partial(zennit, **work, channels_last=True), memory=False, settings=fold),
        "plain, channels last": Contender(
            partial(plain, **frame, channels_last=True), agrees=False, memory=False, settings="the same"
        ),
    }
    if (work["model_name"], work["composite"]) == ("resnet50", "epsilon_plus"):
        found["zennit, as documented"] = Contender(
            partial(zennit_as_documented, **work),
            agrees=False,
            memory=False,
            settings="merges and registers within each call",
        )
    return found


def _goals(over_plain: float | None, speedup: float | None, memory: float | None) -> list[Goal]:
    goals = []
    if over_plain:
        goals.append(Goal("time", OURS, "plain", at_most=over_plain))
    if speedup:
        goals += [Goal("time", peer, OURS, at_least=speedup) for peer in ("zennit", "zennit, channels last")]
    if memory:
        goals.append(Goal("memory", OURS, "zennit", at_most=memory))
    return goals
