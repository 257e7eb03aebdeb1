"""Affine maps, y = W x + b: linear layers and convolutions of any kind, as the rules see them.

Lectures 11 and 12. A rule never needs to know what kind of layer it works on: it applies the layer with modified
weights, ``layer.forward(x, w)``, and carries relevance back with the transposed weights, ``layer.transpose(s, w)``.
A batch norm in evaluation mode is itself affine and is merged into the layer before it (``merge_batch_norm``), so that
a rule that looks at signs sees the weights that really act.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "linear": torch.nn.functional.linear,
    "conv1d": torch.conv1d,
    "conv2d": torch.conv2d,
    "conv3d": torch.conv3d,
    "conv_transpose1d": torch.conv_transpose1d,
    "conv_transpose2d": torch.conv_transpose2d,
    "conv_transpose3d": torch.conv_transpose3d,
}


@dataclass(frozen=True, eq=False)
class Affine:
    """One affine map y = W x + b.

    kind     "linear", "conv1d" … "conv3d", "conv_transpose1d" … "conv_transpose3d", or "scale" (W diagonal: a batch
             norm on its own)
    weight   as PyTorch stores it: (out, in), (out, in / groups, k …) or, transposed, (in, out / groups, k …);
             for "scale" of shape (1, C, 1 …)
    bias     (out,), broadcast along the channel axis, or None; for "scale" of shape (1, C, 1 …)
    cache    modified weights by name, kept as long as the weights do not change
    """

    kind: str
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    crop: tuple[int, ...] = ()  # outputs to leave out at the start of each axis: padding="same" of an even kernel
    groups: int = 1
    cache: dict[Hashable, Tensor] = field(default_factory=dict)

    @property
    def transposed(self) -> bool:
        return self.kind.startswith("conv_transpose")

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """W x + b with the given weight and bias in place of the layer's own."""
        if self.kind == "scale":
            return x * weight if bias is None else torch.addcmul(bias, x, weight)
        if self.kind == "linear":
            return torch.nn.functional.linear(x, weight, bias)
        if self.transposed:
            return _FUNCTIONS[self.kind](
                x, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
            )
        y = _FUNCTIONS[self.kind](x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        for axis, start in enumerate(self.crop, start=2):
            y = y.narrow(axis, start, y.shape[axis] - start) if start else y
        return y

    def transpose(self, s: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """W^T s, of the given input shape: the backward pass of ``forward`` with respect to x."""
        if self.kind == "scale":
            return s * weight
        if self.kind == "linear":
            return s @ weight
        if any(self.crop):
            s = torch.nn.functional.pad(s, [side for c in reversed(self.crop) for side in (c, 0)])
        # the values of the input do not matter for a linear map, only its shape and layout do: memory that nobody touches
        channels_last = s.dim() == 4 and s.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        like = torch.empty(shape, dtype=s.dtype, device=s.device, memory_format=layout)
        grad, _, _ = torch.ops.aten.convolution_backward(
            s,
            like,
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding or (0,) * len(self.stride),
            self.groups,
            [True, False, False],
        )
        return grad

    def forward_sum(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
        """W1 x1 + W2 x2 + … + bias, for inputs of one shape.

        A convolution of six channels takes hardly longer than one of three, so that images go through side by side.
        """
        if self._takes_few(len(weights), inputs[0].shape):
            return self.forward(torch.cat([*inputs], 1), torch.cat([*weights], 1), bias)
        y = self.forward(inputs[0], weights[0], bias)
        for x, w in zip(inputs[1:], weights[1:], strict=True):
            y = y.add_(self.forward(x, w))
        return y

    def transpose_each(self, s: Tensor, weights: Sequence[Tensor], shape: torch.Size) -> Sequence[Tensor]:
        """W1^T s, W2^T s, …: the transpose of ``forward_sum``, each of the given shape."""
        if self._takes_few(len(weights), shape):
            stacked = torch.Size((shape[0], shape[1] * len(weights), *shape[2:]))
            return self.transpose(s, torch.cat([*weights], 1), stacked).chunk(len(weights), 1)
        return [self.transpose(s, w, shape) for w in weights]

    def _takes_few(self, inputs: int, shape: torch.Size) -> bool:
        return self.kind in ("conv1d", "conv2d", "conv3d") and self.groups == 1 and inputs * shape[1] <= 8

    def constant(self, value: float) -> Tensor:
        """A bias that has this value everywhere."""
        if self.kind == "scale":
            return torch.full_like(self.weight, value)
        outputs = self.weight.shape[1] * self.groups if self.transposed else self.weight.shape[0]
        return self.weight.new_full((outputs,), value)

    def along_channels(self, vector: Tensor, dim: int) -> Tensor:
        """A vector (out,), shaped so that it broadcasts over the channel axis of an output with ``dim`` axes."""
        if self.kind == "scale":
            return vector
        return vector if self.kind == "linear" else vector.reshape(-1, *[1] * (dim - 2))

    def modified(self, name: Hashable, make: Callable[[Tensor], Tensor]) -> Tensor:
        """The weights under a modification, made once: ``layer.modified("plus", lambda w: w.clamp(min=0))``."""
        if name not in self.cache:
            with torch.no_grad():
                self.cache[name] = _laid_out(make(self.weight))
        return self.cache[name]

    @property
    def positive(self) -> Tensor:
        return self.modified("plus", lambda w: w.clamp(min=0))

    @property
    def negative(self) -> Tensor:
        return self.modified("minus", lambda w: w.clamp(max=0))


def from_call(kind: str, arguments: dict[str, Any]) -> Affine:
    """The affine map that a call of ``torch.nn.functional`` made; ``arguments`` by their names there."""
    weight, bias = arguments["weight"], arguments.get("bias")
    geometry: dict[str, Any] = {}
    if kind != "linear":
        dims = weight.dim() - 2
        padding = arguments.get("padding", 0)
        starts, ends = padding, padding
        if isinstance(padding, str):
            starts, ends = _sides(padding, weight, arguments.get("dilation", 1))
        geometry = {
            "stride": _tuple(arguments.get("stride", 1), dims),
            "padding": _tuple(ends, dims),
            "crop": tuple(e - s for s, e in zip(_tuple(starts, dims), _tuple(ends, dims), strict=True)),
            "dilation": _tuple(arguments.get("dilation", 1), dims),
            "groups": arguments.get("groups", 1),
        }
        if kind.startswith("conv_transpose"):
            geometry["output_padding"] = _tuple(arguments.get("output_padding", 0), dims)
    sources = [weight] if bias is None else [weight, bias]
    return _remembered(
        kind,
        weight,
        sources,
        lambda: Affine(kind, _laid_out(weight.detach()), None if bias is None else bias.detach(), **geometry),
        tuple(sorted(geometry.items())),
    )


def from_batch_norm(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dim: int
) -> Affine:
    """A batch norm in evaluation mode on its own: the diagonal map y = a x + (b - a mean), a = w / sqrt(var + eps)."""
    scale, shift = _scale_and_shift(mean, var, weight, bias, eps)
    shape = (1, -1, *[1] * (dim - 2))
    return Affine("scale", scale.reshape(shape), shift.reshape(shape))


def merge_batch_norm(
    layer: Affine,
    sources: list[Tensor],
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Affine:
    """The layer followed by a batch norm in evaluation mode, as one layer: W' = a W, b' = a (b - mean) + b_bn."""

    def make() -> Affine:
        scale, shift = _scale_and_shift(mean, var, weight, bias, eps)
        w = layer.weight
        if layer.transposed:  # (in, out / groups, k …): the outputs of group g stand in its own block of inputs
            blocks = w.reshape(layer.groups, -1, *w.shape[1:])
            factor = scale.reshape(layer.groups, 1, w.shape[1], *[1] * (w.dim() - 2))
            merged = (blocks * factor).reshape(w.shape)
        else:
            merged = w * scale.reshape(-1, *[1] * (w.dim() - 1))
        new_bias = shift if layer.bias is None else scale * layer.bias + shift
        return replace(layer, weight=_laid_out(merged), bias=new_bias, cache={})

    geometry = (layer.stride, layer.padding, layer.crop, layer.dilation, layer.output_padding, layer.groups)
    key = (layer.kind, geometry, eps, weight is None, bias is None)
    norm = [t for t in (mean, var, weight, bias) if t is not None]
    return _remembered("batch_norm", sources[0], [layer, *norm], make, key)


def _scale_and_shift(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        scale = torch.rsqrt(var + eps)
        if weight is not None:
            scale = scale * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        return scale, shift


# ------------------------------------------------------------------------------------------------- remembered layers
# Splitting and merging weights takes as long as a small batch. We keep the result beside the weight tensor, for as long
# as that lives, and take it only if every tensor that it was made from has the same fingerprint as then: also a change
# behind PyTorch's back (``weight.data[...] = 0``), which leaves no trace in the version counter, must be seen.

_REMEMBERED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _remembered(
    what: str, beside: Tensor, sources: Sequence[Tensor | Affine], make: Callable[[], Affine], key: Hashable
) -> Affine:
    shelf = _REMEMBERED.setdefault(beside, {})
    # a layer is a remembered one, whose sources have just been looked at: it is its own fingerprint
    prints = tuple(_fingerprint(source) if isinstance(source, Tensor) else source for source in sources)
    known = shelf.get((what, key))
    if known is None or known[0] != prints:
        shelf[what, key] = known = (prints, make())
    return known[1]


def _fingerprint(t: Tensor) -> tuple[Any, ...]:
    """Identity, version and two random projections u^T W v of the values: one cheap pass over the weights."""
    with torch.no_grad():
        matrix = t.detach().reshape(t.shape[0] if t.dim() else 1, -1)
        if matrix.dtype in (torch.float16, torch.bfloat16):  # too coarse to see a small change in a sum
            matrix = matrix.float()
        # elementwise on vectors, matrix-vector products on matrices; the probing vectors are fixed and irregular
        rows, columns = _probe(matrix.shape[0], _ROWS, matrix), _probe(matrix.shape[1], _COLUMNS, matrix)
        value = torch.dot(rows, torch.mv(matrix, columns)) if t.is_floating_point() else matrix.sum()
    return t.data_ptr(), None if t.is_inference() else t._version, t.dtype, value.item()


# irrational, so never periodic; two of them, so that a transposed matrix looks different
_ROWS, _COLUMNS = 0.7548776662466927, 0.5698402909980532
_PROBES: dict[tuple[int, float, torch.dtype, torch.device], Tensor] = {}


def _probe(n: int, angle: float, like: Tensor) -> Tensor:
    key = (n, angle, like.dtype, like.device)
    if key not in _PROBES:
        angles = torch.arange(1, n + 1, dtype=torch.float64) * angle
        _PROBES[key] = (0.5 + angles.frac()).to(like.dtype).to(like.device)
    return _PROBES[key]


def _laid_out(weight: Tensor) -> Tensor:
    """Convolutions on a CPU run twice as fast with channels last in memory; values and shapes are the same."""
    if weight.dim() == 4 and weight.device.type == "cpu":
        return weight.contiguous(memory_format=torch.channels_last)
    return weight


def _sides(padding: str, weight: Tensor, dilation: Any) -> tuple[list[int], list[int]]:
    """What padding="same" or "valid" adds at the start and at the end of each axis."""
    sizes, dilations = weight.shape[2:], _tuple(dilation, weight.dim() - 2)
    totals = [0 if padding == "valid" else d * (k - 1) for d, k in zip(dilations, sizes, strict=True)]
    return [total // 2 for total in totals], [total - total // 2 for total in totals]


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * dims if len(values) == 1 else values
