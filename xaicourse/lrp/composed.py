"""Functions written in terms of others, so that LRP needs no further rule for them.

Lecture 12, slides "signal takes all" and "two principles when using LRP for RNNs". A norm is a subtraction of the mean and
a scale that is held constant; a recurrent layer is a loop of linear layers, gates and sums. Each function here has the
arguments of the torch function of its name and gives the same values; ``detach`` says which of them are constants.

Arras et al. 2017, WASSA; Ali et al. 2022, ICML.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# normalisation: the scale is a constant, the rest is linear -----------------------------------------------------------------


def _centred_and_scaled(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred * torch.rsqrt(centred.detach().square().mean(axes, keepdim=True) + eps)


def _weighted(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    return _weighted(_centred_and_scaled(input, axes, eps), weight, bias)


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    return _weighted(input * torch.rsqrt(input.detach().square().mean(axes, keepdim=True) + eps), weight, None)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    grouped = input.reshape(input.shape[0], num_groups, -1)
    normed = _centred_and_scaled(grouped, (2,), eps).reshape(input.shape)
    shape = (1, -1, *[1] * (input.dim() - 2))
    return _weighted(
        normed, None if weight is None else weight.reshape(shape), None if bias is None else bias.reshape(shape)
    )


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    if use_input_stats:
        return group_norm(input, input.shape[1], weight, bias, eps)
    return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)


def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """The logarithm of the sum is a constant: what is explained is the logit."""
    axis = (0 if input.dim() in (0, 1, 3) else 1) if dim is None else dim
    x = input if dtype is None else input.to(dtype)
    return x - torch.logsumexp(x.detach(), axis, keepdim=True)


def var_mean(input: Tensor, dim: Any = None, *rest: Any, **settings: Any) -> tuple[Tensor, Tensor]:
    keepdim = settings.get("keepdim", rest[-1] if len(rest) == 2 else False)
    mean = input.mean() if dim is None or isinstance(dim, bool) else input.mean(dim, keepdim=keepdim)
    return torch.var(input, *(() if dim is None else (dim,)), *rest, **settings), mean


def std_mean(input: Tensor, *args: Any, **settings: Any) -> tuple[Tensor, Tensor]:
    var, mean = var_mean(input, *args, **settings)
    return torch.sqrt(var), mean


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    norms = [torch.linalg.vector_norm(x.detach(), dim=dim, keepdim=True).clamp(min=eps) for x in (x1, x2)]
    return ((x1 / norms[0]) * (x2 / norms[1])).sum(dim)


# gates ------------------------------------------------------------------------------------------------------------------


def glu(input: Tensor, dim: int = -1) -> Tensor:
    signal, gate = input.chunk(2, dim)
    return signal * torch.sigmoid(gate)


def rrelu(
    input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Tensor:
    if training:
        raise NotImplementedError("it draws its slope at random (training mode)")
    return F.leaky_relu(input, (lower + upper) / 2)


def lerp(input: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    return input + weight * (end - input)


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    if input.dim() != 2 or padding_idx is not None or max_norm is not None:
        raise NotImplementedError("it must read indices (N, T), without padding_idx and max_norm")
    rows = F.embedding(input, weight)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights[..., None]
    return rows.amax(1) if mode == "max" else rows.sum(1) if mode == "sum" else rows.mean(1)


def embedding(weight: Tensor, indices: Tensor, *settings: Any, **named: Any) -> Tensor:
    return F.embedding(indices, weight)


def _nested_tensor_from_mask_left_aligned(src: Tensor, mask: Tensor) -> bool:
    """Whether a transformer may take a fast path, which LRP cannot see into: no."""
    return False


# recurrent layers ---------------------------------------------------------------------------------------------------------
# A cell takes what the input adds to its gates, the state, and the weights of the state; it returns the new state, whose
# first tensor is the output. Its gates are constants from the first step on, where the state is one too.

State = tuple[Tensor, ...]


def _gate(z: Tensor) -> Tensor:
    return torch.sigmoid(z).detach()


def _lstm_step(
    added: Tensor, state: State, w: Tensor, b: Tensor | None, _: Tensor | None, w_projection: Tensor | None
) -> State:
    h, c = state
    i, f, g, o = (added + F.linear(h, w, b)).chunk(4, -1)
    c = _gate(f) * c + _gate(i) * torch.tanh(g)
    h = _gate(o) * torch.tanh(c)
    return (h if w_projection is None else F.linear(h, w_projection)), c


def _gru_step(added: Tensor, state: State, w: Tensor, b: Tensor | None, *_: Any) -> State:
    (h,) = state
    (r, z, n), (r_h, z_h, n_h) = added.chunk(3, -1), F.linear(h, w, b).chunk(3, -1)
    r, z = _gate(r + r_h), _gate(z + z_h)
    return ((1 - z) * torch.tanh(n + r * n_h) + z * h,)


def _rnn_step(activation: Callable[[Tensor], Tensor]) -> Callable[..., State]:
    return lambda added, state, w, b, *_: (activation(added + F.linear(state[0], w, b)),)


def _run_direction(
    step: Callable[..., State], x: Tensor, sizes: list[int], state: State, weights: Sequence[Any], backward: bool
) -> tuple[Tensor, State]:
    """One layer in one direction over packed steps (sum of sizes, F); ``sizes`` items each, never more than before."""
    w_input, w_state, b_input, b_state, w_projection = weights
    pieces = F.linear(x, w_input, b_input).split(sizes)
    initial, outputs, finished = state, [], []
    state = tuple(s[: sizes[-1 if backward else 0]] for s in state)
    for t in reversed(range(len(sizes))) if backward else range(len(sizes)):
        n, now = sizes[t], state[0].shape[0]
        if n < now:  # some items end here
            finished.append(tuple(s[n:] for s in state))
            state = tuple(s[:n] for s in state)
        elif n > now:  # backward, some items begin here
            state = tuple(torch.cat([s, s0[now:n]]) for s, s0 in zip(state, initial, strict=True))
        state = step(pieces[t], state, w_state, b_state, None, w_projection)
        outputs.append(state[0])
    if finished:
        state = tuple(torch.cat(parts) for parts in zip(state, *reversed(finished), strict=True))
    return torch.cat(outputs[::-1] if backward else outputs), state


def _layers(
    step: Callable[..., State],
    x: Tensor,
    sizes: list[int],
    state: State,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    projected: bool = False,
) -> tuple[Tensor, State]:
    """All layers; ``state`` tensors have shape (layers x directions, N, H)."""
    per, directions = 2 + 2 * has_biases + projected, 1 + bidirectional
    finals = []
    for layer in range(num_layers):
        results = []
        for direction in range(directions):
            k = layer * directions + direction
            own = list(params[k * per : (k + 1) * per])
            w_projection = own.pop() if projected else None
            weights = [*own, *[None] * (4 - len(own)), w_projection]
            initial = tuple(s[k] for s in state)
            results.append(_run_direction(step, x, sizes, initial, weights, backward=direction == 1))
        x = results[0][0] if directions == 1 else torch.cat([y for y, _ in results], -1)
        finals += [final for _, final in results]
    return x, tuple(torch.stack(parts) for parts in zip(*finals, strict=True))


def _recurrent(step: Callable[..., State], states: int) -> Callable[..., tuple[Tensor, ...]]:
    def packed(
        data: Tensor, batch_sizes: Tensor, hx: Any, params: Any, has_biases: bool, num_layers: int, *rest: Any
    ) -> Any:
        _, _, bidirectional = rest
        state = tuple(hx) if states == 2 else (hx,)
        projected = states == 2 and state[0].shape[-1] != state[1].shape[-1]
        y, final = _layers(
            step, data, batch_sizes.tolist(), state, params, has_biases, num_layers, bidirectional, projected
        )
        return y, *final

    def run(input: Tensor, *args: Any) -> tuple[Tensor, ...]:
        is_packed = isinstance(args[0], Tensor) and not args[0].is_floating_point()
        dropout, training = args[5:7] if is_packed else args[4:6]
        if dropout and training:
            raise NotImplementedError("it drops entries at random (training mode)")
        if is_packed:
            return packed(input, *args)
        hx, params, has_biases, num_layers, _, _, bidirectional, batch_first = args
        state = tuple(hx) if states == 2 else (hx,)
        x = input.transpose(0, 1) if batch_first else input
        steps, items = x.shape[:2]
        projected = states == 2 and state[0].shape[-1] != state[1].shape[-1]
        flat = x.reshape(steps * items, x.shape[-1])
        y, final = _layers(step, flat, [items] * steps, state, params, has_biases, num_layers, bidirectional, projected)
        y = y.reshape(steps, items, y.shape[-1])
        return y.transpose(0, 1) if batch_first else y, *final

    return run


def lstm_cell(
    input: Tensor,
    hx: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> State:
    return _lstm_step(F.linear(input, w_ih, b_ih), (hx[0], hx[1]), w_hh, b_hh, None, None)


def _cell(step: Callable[..., State]) -> Callable[..., Tensor]:
    def cell(
        input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
    ) -> Tensor:
        return step(F.linear(input, w_ih, b_ih), (hx,), w_hh, b_hh)[0]

    return cell


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "log_softmax": log_softmax,
    "var_mean": var_mean,
    "std_mean": std_mean,
    "cosine_similarity": cosine_similarity,
    "glu": glu,
    "rrelu": rrelu,
    "lerp": lerp,
    "_nested_tensor_from_mask_left_aligned": _nested_tensor_from_mask_left_aligned,
    "embedding_bag": embedding_bag,
    "lstm": _recurrent(_lstm_step, 2),
    "gru": _recurrent(_gru_step, 1),
    "rnn_tanh": _recurrent(_rnn_step(torch.tanh), 1),
    "rnn_relu": _recurrent(_rnn_step(torch.relu), 1),
    "lstm_cell": lstm_cell,
    "gru_cell": _cell(_gru_step),
    "rnn_tanh_cell": _cell(_rnn_step(torch.tanh)),
    "rnn_relu_cell": _cell(_rnn_step(torch.relu)),
}
"""By the name of the torch function."""

__all__ = ["FUNCTIONS"]
