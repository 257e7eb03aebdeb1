"""The networks that the tests of LRP explain: small, with random weights, in float64."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from xaicourse import lrp

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def agree(got: Tensor, wanted: Tensor, tolerance: float = 1e-9) -> None:
    """Equal up to ``tolerance`` times the largest wanted value."""
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    scale = wanted.abs().max().item() or 1.0
    error = (got.double() - wanted.double()).abs().max().item() / scale
    assert error <= tolerance, f"relative error {error:.2e} exceeds {tolerance:.0e}"


def everywhere(rule: lrp.Rule) -> lrp.Composite:
    """The same rule for every layer, batch norms on their own too."""
    return lrp.Composite(convolution=rule, linear=rule, normalisation=rule)


def gradient_x_input(model: Callable[[Tensor], Tensor], x: Tensor, target: int) -> Tensor:
    x = x.detach().clone().requires_grad_()
    return x.detach() * torch.autograd.grad(model(x)[:, target].sum(), x)[0]


def balanced(trace: lrp.Trace, tolerance: float = 1e-9) -> None:
    """The ledger accounts for the whole output, and each row for itself; relative to the widest row."""
    widest = max(row.incoming_abs for row in trace.ledger)
    assert abs(trace.ledger.unaccounted) <= tolerance * widest, trace.ledger
    assert all(abs(row.unexplained) <= tolerance * max(widest, row.passed_abs) for row in trace.ledger), trace.ledger


def explained_as(
    model: Callable[[Tensor], Tensor],
    by_hand: Callable[[Tensor], Tensor],
    x: Tensor,
    target: int = 1,
    tolerance: float = 1e-9,
) -> lrp.Trace:
    """LRP-0 of the model is gradient x input of ``by_hand``, which gives the same with its gates detached; and adds up."""
    composite = everywhere(lrp.Epsilon(0))
    trace = lrp.trace(model, x, target, composite=composite)
    with torch.no_grad():
        agree(trace.output, model(x.clone()), 1e-12)
        agree(by_hand(x.clone()), trace.output, 1e-9)
    agree(trace.relevance, gradient_x_input(by_hand, x, target), tolerance)
    agree(lrp.relevance(model, x, target, composite=composite), trace.relevance, 1e-9)
    balanced(trace)
    return trace


def secant(g: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    """g(h) with the secant through (0, g(0)) for a slope, by autograd."""
    zero = g(torch.zeros((), dtype=h.dtype, device=h.device))
    return zero + h * torch.where(h == 0, 0, (g(h) - zero) / h).detach()


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms with statistics of their own, biases that are not zero; evaluation mode, float64."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator, dtype=torch.float64)

    module = module.double().eval()
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, BATCH_NORMS):
                part.running_mean.copy_(uniform(part.running_mean, -0.5, 0.5))
                part.running_var.copy_(uniform(part.running_var, 0.5, 2.0))
                if part.weight is not None:
                    # some are negative: the merged weights differ in sign from the layer's
                    part.weight.copy_(uniform(part.weight, 0.5, 1.5) * uniform(part.weight, -0.3, 0.7).sign())
                    part.bias.copy_(uniform(part.bias, -0.5, 0.5))
            elif getattr(part, "bias", None) is not None and isinstance(part.bias, Tensor):
                part.bias.copy_(uniform(part.bias, -0.3, 0.3))
    return module


def calibrated(model: nn.Module, x: Tensor) -> nn.Module:
    """Batch norms that have seen x: activations are of order one in every layer, as in a trained network."""
    model.double().train()
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.eval()
        if isinstance(part, BATCH_NORMS):
            part.momentum = None
            part.reset_running_stats()
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.3, 0.3)
    with torch.no_grad():
        model(x)
    return model.eval()


def photographs(items: int, size: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(items, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small_head(vgg: nn.Module) -> nn.Module:
    """A VGG with a classifier of 64 units; torchvision's of 4096 takes 1 GB in float64."""
    vgg.avgpool = nn.AdaptiveAvgPool2d(2)
    vgg.classifier = nn.Sequential(
        nn.Linear(512 * 4, 64),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(64, 64),
        nn.ReLU(True),
        nn.Linear(64, 10),
    )
    return vgg


def small_convolutional() -> nn.Module:
    """What ReLU networks are made of, in 13 modules."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 16),
        nn.ReLU(),
        nn.Linear(16, 10),
    )


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "small": small_convolutional,
    "resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "resnet50": lambda: torchvision.models.resnet50(num_classes=10),
    "vgg11_bn": lambda: small_head(torchvision.models.vgg11_bn()),
    "vgg16_bn": lambda: small_head(torchvision.models.vgg16_bn()),
}


_BUILT: dict[str, nn.Module] = {}


def network(name: str) -> nn.Module:
    """A copy of the network of that name, always with the same weights."""
    if name not in _BUILT:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            _BUILT[name] = calibrated(BUILDERS[name](), photographs(4, seed=1))
    return copy.deepcopy(_BUILT[name])


def with_batch_norms_merged(model: nn.Module) -> nn.Module:
    """A copy in which every batch norm is part of the convolution before it, and an identity itself."""
    model = copy.deepcopy(model)

    def walk(parent: nn.Module) -> None:
        previous: nn.Module | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, BATCH_NORMS):
                assert isinstance(previous, (nn.Conv2d, nn.Linear))
                scale = child.weight / torch.sqrt(child.running_var + child.eps)
                bias = torch.zeros_like(scale) if previous.bias is None else previous.bias
                shape = (-1, *[1] * (previous.weight.dim() - 1))
                previous.weight = nn.Parameter((previous.weight * scale.reshape(shape)).detach())
                previous.bias = nn.Parameter(((bias - child.running_mean) * scale + child.bias).detach())
                setattr(parent, name, nn.Identity().eval())
            if list(child.children()):
                walk(child)
            elif isinstance(child, (nn.Conv2d, nn.Linear, *BATCH_NORMS)):
                previous = child

    # in a torchvision block conv1, bn1, conv2, bn2 … stand in this order
    walk(model)
    return model


class Functional(nn.Module):
    """A model whose forward pass is the given function of itself and x; other arguments are submodules."""

    def __init__(self, function: Callable[["Functional", Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)
        self.double().eval()

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that an explanation must leave as it is."""
    from torch.nn.modules import module as hooks

    return {
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "identity": {k: id(v) for k, v in [*model.named_parameters(), *model.named_buffers()]},
        "pointers": {k: v.data_ptr() for k, v in model.state_dict().items()},
        "strides": {k: v.stride() for k, v in model.state_dict().items()},
        "requires_grad": {k: p.requires_grad for k, p in model.named_parameters()},
        "grad": {k: None if p.grad is None else p.grad.clone() for k, p in model.named_parameters()},
        "training": {k: m.training for k, m in model.named_modules()},
        "hooks": {
            k: [len(getattr(m, h)) for h in dir(m) if h.endswith("_hooks") and isinstance(getattr(m, h), dict)]
            for k, m in model.named_modules()
        },
        "attributes": {k: sorted(vars(m)) for k, m in model.named_modules()},
        "global hooks": {h: len(v) for h, v in vars(hooks).items() if h.startswith("_global") and isinstance(v, dict)},
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "function modes": len(torch.overrides._get_current_function_mode_stack()),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return a == b
