r"""The LRP rules as the textbook has them: on the matrix of a layer, in float64, nothing optimised.

Lecture 11. Any affine layer, a padded and strided convolution too, is y = W x + b for one big matrix W, and that matrix is
its Jacobian. On a matrix each rule is the formula on the slide. The fast rules (``rules.py``) must give the same numbers.

Every rule here takes W (outputs, inputs), b (outputs,), x (inputs,) and the relevance R (outputs,) of the outputs, and
returns the relevance (inputs,) of the inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

MatrixRule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def matrix(layer: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """W (outputs, inputs) and b (outputs,) of an affine layer, for one item x without a batch dimension."""
    x = x.detach().double()
    b = layer(torch.zeros_like(x)[None])[0].detach()
    w = torch.autograd.functional.jacobian(lambda t: layer(t[None])[0], x)
    return w.reshape(b.numel(), x.numel()), b.flatten()


def _stable(z: Tensor, epsilon: float) -> Tensor:
    """z + epsilon sign z, with sign 0 = 1."""
    return z + epsilon * torch.where(z >= 0, 1.0, -1.0).to(z)


def _shares(contributions: Tensor, bias: Tensor, relevance: Tensor, epsilon: float) -> Tensor:
    """R_i = sum_k z_ki / (sum_i' z_ki' + b_k) R_k for contributions z (outputs, inputs)."""
    z = contributions.sum(1) + bias
    return (contributions / _stable(z, epsilon)[:, None] * relevance[:, None]).sum(0)


def epsilon(w: Tensor, b: Tensor, x: Tensor, relevance: Tensor, *, epsilon: float = 1e-6, bias: bool = True) -> Tensor:
    """z_ki = w_ki x_i."""
    return _shares(w * x, b * bias, relevance, epsilon)


def alpha_beta(
    w: Tensor, b: Tensor, x: Tensor, relevance: Tensor, *, beta: float, epsilon: float = 1e-6, bias: bool = False
) -> Tensor:
    """(1 + beta) times the shares of positive contributions, less beta times those of negative ones."""
    z = w * x
    positive = _shares(z.clamp(min=0), b.clamp(min=0) * bias, relevance, epsilon)
    negative = _shares(-z.clamp(max=0), -b.clamp(max=0) * bias, relevance, epsilon)
    return (1 + beta) * positive - beta * negative


def z_plus(w: Tensor, b: Tensor, x: Tensor, relevance: Tensor, *, epsilon: float = 1e-6, bias: bool = False) -> Tensor:
    """z_ki = (w_ki x_i)+, which is alpha-beta with beta = 0."""
    return alpha_beta(w, b, x, relevance, beta=0, epsilon=epsilon, bias=bias)


def gamma(
    w: Tensor, b: Tensor, x: Tensor, relevance: Tensor, *, gamma: float, epsilon: float = 1e-6, bias: bool = True
) -> Tensor:
    """z_ki = w_ki x_i + gamma (w_ki x_i)^s, with s the sign of the neuron's output; nothing for a neuron at zero."""
    z, y = w * x, w @ x + b
    fires = (y > 0)[:, None]
    favoured = torch.where(fires, z.clamp(min=0), z.clamp(max=0))
    favoured_bias = torch.where(y > 0, b.clamp(min=0), b.clamp(max=0))
    return _shares(z + gamma * favoured, (b + gamma * favoured_bias) * bias, relevance * (y != 0), epsilon)


def z_box(
    w: Tensor, b: Tensor, x: Tensor, relevance: Tensor, *, low: Tensor, high: Tensor, epsilon: float = 1e-6
) -> Tensor:
    """z_ki = w_ki x_i - w+_ki low_i - w-_ki high_i, never negative in the box; the bias cancels."""
    z = w * x - w.clamp(min=0) * low - w.clamp(max=0) * high
    return _shares(z, torch.zeros_like(b), relevance, epsilon)


def w_square(
    w: Tensor, b: Tensor, x: Tensor, relevance: Tensor, *, epsilon: float = 1e-6, bias: bool = False
) -> Tensor:
    """z_ki = w_ki^2, whatever the input."""
    return _shares(w.square(), b.square() * bias, relevance, epsilon)


def flat(w: Tensor, b: Tensor, x: Tensor, relevance: Tensor, *, epsilon: float = 1e-6) -> Tensor:
    """z_ki = 1 for every input that the neuron reads."""
    reads = (w != 0).to(w)
    return _shares(reads, torch.zeros_like(b), relevance, epsilon)


def sequential(layers: Sequence[nn.Module], x: Tensor, target: int, rule: MatrixRule) -> list[Tensor]:
    """Relevance of every activation of a small network of affine layers, ReLUs and reshapes, for one item x.

    Returns one tensor for the input and one for the output of each layer, shaped like the activations. A ReLU and a
    reshape hand relevance on as it is: one entry in, one entry out.
    """
    layers = [copy.deepcopy(layer).double() for layer in layers]
    activations = [x.detach().double()]
    for layer in layers:
        activations.append(layer(activations[-1][None])[0].detach())
    start = torch.zeros_like(activations[-1])
    start[target] = activations[-1][target]
    relevance = [start]
    for layer, a in zip(reversed(layers), reversed(activations[:-1]), strict=True):
        if isinstance(layer, (nn.ReLU, nn.Flatten, nn.Identity)):
            relevance.append(relevance[-1].reshape(a.shape))
        else:
            w, b = matrix(layer, a)
            relevance.append(rule(w, b, a.flatten(), relevance[-1].flatten()).reshape(a.shape))
    return relevance[::-1]
