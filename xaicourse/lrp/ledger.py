"""The ledger: where relevance went, operation by operation.

Lectures 11 and 12. LRP is said to conserve relevance; a heatmap does not show whether it does. The ledger has one row for
each operation that the model called: how much relevance came in from above, how much it passed down, and where the
difference went. Together with the relevance of the input the rows account for the whole output.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .rules import Part


@dataclass
class Row:
    """One operation. Sums of relevance over the batch; ``incoming`` comes from the output's side.

    bias        kept by biases and other constants
    stabiliser  kept by the epsilon in the denominators
    dead_end    lost where a rule has nobody to pass relevance to: its sum z is zero
    """

    module: str
    function: str
    rule: str
    incoming: float = 0.0
    passed: float = 0.0
    bias: float = 0.0
    stabiliser: float = 0.0
    dead_end: float = 0.0
    incoming_abs: float = 0.0
    passed_abs: float = 0.0

    @property
    def unexplained(self) -> float:
        """What came in and neither was passed on nor is accounted for; zero up to rounding, or the engine is wrong."""
        return self.incoming - self.passed - self.bias - self.stabiliser - self.dead_end


_COLUMNS = ("incoming", "passed", "bias", "stabiliser", "dead_end", "incoming_abs", "passed_abs")


@dataclass(frozen=True)
class Ledger(Sequence[Row]):
    """The rows, in the order in which the model called the operations, between output and input.

    output  relevance that LRP started with: the explained score, summed over the batch
    input   relevance that arrived at the input
    """

    rows: list[Row] = field(repr=False)
    output: float
    input: float

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def total(self, column: str) -> float:
        """Sum of a column over the rows."""
        return math.fsum(getattr(row, column) for row in self.rows)

    @property
    def unaccounted(self) -> float:
        """output - input - all that rows kept. Zero up to rounding: the rows account for the whole output."""
        return self.output - self.input - sum(self.total(name) for name in ("bias", "stabiliser", "dead_end"))

    def __str__(self) -> str:
        head = f"{'module':28} {'function':22} {'incoming':>10} {'passed':>10} {'bias':>10} {'stabil.':>10} {'dead end':>10}"
        lines = [head, "-" * len(head)]
        for row in self.rows:
            numbers = " ".join(f"{getattr(row, c):10.4g}" for c in _COLUMNS[:5])
            lines.append(f"{row.module[-28:]:28} {row.function[-22:]:22} {numbers}")
        kept = ", ".join(f"{c.replace('_', ' ')} {self.total(c):.4g}" for c in _COLUMNS[2:5])
        lines.append(f"output {self.output:.6g} = input {self.input:.6g} + {kept}; unaccounted {self.unaccounted:.1e}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        titles = (
            "module",
            "function",
            "rule",
            "incoming",
            "passed",
            "bias",
            "stabiliser",
            "dead end",
            "Σ|in|",
            "Σ|passed|",
        )
        head = "".join(f"<th>{t}</th>" for t in titles)
        body = "".join(
            "<tr>"
            + "".join(
                f"<td style='text-align:left'>{html.escape(v)}</td>" for v in (row.module, row.function, row.rule)
            )
            + "".join(f"<td>{getattr(row, c):.4g}</td>" for c in _COLUMNS)
            + "</tr>"
            for row in self.rows
        )
        foot = (
            f"<tr><th colspan=3>output {self.output:.6g}, input {self.input:.6g}, unaccounted {self.unaccounted:.1e}</th>"
            f"<th></th><th></th>{''.join(f'<th>{self.total(c):.4g}</th>' for c in _COLUMNS[2:5])}<th></th><th></th></tr>"
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody><tfoot>{foot}</tfoot></table>"


class _Probe(torch.autograd.Function):
    """The identity, on one edge of the graph: sees the c that flows back along it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, row: Row, is_relevance: bool) -> Tensor:
        ctx.row, ctx.is_relevance = row, is_relevance
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        relevance = gradients[0] if ctx.is_relevance else _times(gradients[0], x.detach())
        ctx.row.passed += _sum(relevance)
        ctx.row.passed_abs += _sum(relevance.abs())
        return gradients[0], None, None


class Recorder:
    """Writes the ledger, and the relevance at each module's output, while autograd runs back."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.layers: dict[str, Tensor] = {}
        self._holding_constants: list[Row] = []
        self._names: dict[str, int] = {}

    def row(self, module: str, functions: tuple[str, ...], rule: str, *, constants: bool = False) -> Row:
        """A row for an operation; ``constants``: it can hold some, and what it does not pass on is theirs."""
        row = Row(module, " + ".join(functions), rule)
        self.rows.append(row)
        if constants:
            self._holding_constants.append(row)
        return row

    def input(self, x: Tensor, row: Row, *, is_relevance: bool = False) -> Tensor:
        """x as the operation of this row reads it."""
        return _Probe.apply(x, row, is_relevance)

    def output(self, y: Tensor, row: Row, parts: Sequence[Part] = (), *, is_relevance: bool = False) -> None:
        """y is a result of the operation of this row; ``parts`` as its rule gave them."""
        value = y.detach()  # a hook that held y itself would keep the graph alive for ever

        def account(c: Tensor | None) -> None:
            if c is None:  # one of several results (of a chunk, say), and nobody uses it
                return
            relevance = c if is_relevance else _times(c, value)
            row.incoming += _sum(relevance)
            row.incoming_abs += _sum(relevance.abs())
            for part in parts:
                whole = part.z if part.bias is None else part.z + part.bias
                s = c * part.q
                kept = part.share * relevance - s * whole
                dead = whole == 0
                row.bias += 0.0 if part.bias is None else _sum(s * part.bias)
                row.dead_end += _sum(kept[dead])
                row.stabiliser += _sum(kept[~dead])

        y.register_hook(account)

    def layer(self, path: str, y: Tensor) -> None:
        """y is the output of the module at ``path``; later calls of the same module are called path:2, path:3 …"""
        self._names[path] = count = self._names.get(path, 0) + 1
        name, value = path if count == 1 else f"{path}:{count}", y.detach()

        def keep(c: Tensor | None) -> None:
            self.layers[name] = torch.zeros_like(value) if c is None else _times(c, value)

        y.register_hook(keep)

    def ledger(self, output: float, given: float) -> Ledger:
        """The finished ledger. What a sum, a padding or a concatenation kept, the constant in it kept; no other operation
        between layers has a place for relevance to stay, and there a difference remains unexplained."""
        for row in self._holding_constants:
            row.bias = row.incoming - row.passed
        return Ledger(self.rows, output, given)


def _times(c: Tensor, x: Tensor) -> Tensor:
    """c x, and 0 where c is, even if x is infinite: a max pooling may pad with minus infinity."""
    relevance = c * x
    return relevance.masked_fill_(c == 0, 0) if bool(relevance.isnan().any()) else relevance


def _sum(t: Tensor) -> float:
    return t.sum(dtype=torch.float64).item() if t.device.type != "mps" else t.sum().item()
