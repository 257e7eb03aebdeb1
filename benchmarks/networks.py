"""Networks and images to measure on: random weights, so that nothing needs to be downloaded, and always the same.

Weights as they are initialised make poor subjects: some heads and layer scales begin at zero, and batch norms have seen
nothing. Here both are random, and batch norms are calibrated on noise, so that activations are of order one.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from xaicourse import models

BOX = (-3.0, 3.0)
"""The images' bounds, for zB."""


def network(name: str, size: int = 96, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A classifier of torchvision, our default one, or "timm.NAME" of timm, in evaluation mode; made for this size if it
    takes only one."""
    torch.manual_seed(0)
    model = _architecture(name, size).eval()
    _wake_zeros(model)
    norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0.0, 0.3)
        norm.momentum = None  # statistics are averages over all batches seen: here one
        norm.train()
    if norms:
        with torch.no_grad():
            model(images(4, size if _takes_one_size(name) else 96, seed=1))
    return model.eval().to(dtype)


def images(items: int, size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Smooth random images within the box."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(items, 3, size // 8, size // 8, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear").to(dtype)
    return BOX[0] + (BOX[1] - BOX[0]) * smooth


def gradient(model: nn.Module, x: Tensor, target: Tensor, relevance: bool = False) -> Tensor:
    """d score / d x; hooks of zennit make relevance of it, if it starts with the scores in place of ones."""
    x = x.detach().clone().requires_grad_()
    outputs = model(x)
    start = torch.zeros_like(outputs)
    picked = outputs.detach().gather(1, target[:, None])
    start.scatter_(1, target[:, None], picked if relevance else torch.ones_like(picked))
    return torch.autograd.grad(outputs, x, start)[0]


def _takes_one_size(name: str) -> bool:
    return name.startswith(("vit_", "maxvit_", "timm."))


def _architecture(name: str, size: int) -> nn.Module:
    if name.startswith("timm."):
        import timm

        return timm.create_model(name.removeprefix("timm."), pretrained=False)
    if name == "efficientnet_lite0":
        return models.load(name, pretrained=False)
    options: dict[str, object] = {}
    if name.startswith("vit_"):
        options = {"image_size": size}
    elif name.startswith("maxvit_"):
        options = {"input_size": (size, size)}
    elif name in ("googlenet", "inception_v3"):  # the auxiliary heads are there for training
        options = {"aux_logits": False, "init_weights": False}
    return torchvision.models.get_model(name, weights=None, **options)


def _wake_zeros(model: nn.Module) -> None:
    """Random numbers for weights that all start at one value near zero, as heads and layer scales do; biases may stay."""
    for name, weight in model.named_parameters():
        if not name.endswith("bias") and weight.numel() > 1 and weight.abs().max() < 0.01 and weight.std() < 1e-9:
            nn.init.normal_(weight, 0.0, weight[0].numel() ** -0.5)
