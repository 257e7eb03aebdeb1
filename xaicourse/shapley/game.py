"""A game: what every coalition of players is worth (lectures 05 and 06; slides "Shapley values").

A value function says what each of many coalitions is worth; a `Game` runs it in chunks, remembers what it said and counts how
often it was asked. Who the players are, and what "absent" means, is decided by whoever writes the value function:
`masking_game` does it for any model and removal, ``background`` for absence by other data. Every estimator takes a `Game` and
nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..arguments import check_count, check_finite, kind
from ..progress import bar
from ..removal import Removal, prepare
from ..scores import Model, Target, ask, check_model, check_outputs, check_target, laid_out, pick, unchanged

__all__ = ["MOST", "Game", "Value", "coalitions", "intervals", "masking_game", "patches"]

Value = Callable[[Tensor], Tensor | np.ndarray[Any, Any]]

MOST = 25
"""Players of whom all coalitions can be asked: 33,554,432 of them."""

_TABLE = 20  # up to so many players, a table tells by a coalition's number where its value is
_ALL = 2**24  # when all coalitions are asked, so many numbers are remembered at most: 128 MiB


class Game:
    """A set of players and what each coalition of them is worth.

    value    a function from coalitions, a BoolTensor (n, players), to their values, (n,) or (n, outputs): a tensor or a NumPy
             array of floats, whole numbers or bools
    players  how many, at least 1
    chunk    how many coalitions ``value`` sees at once, at most
    cache    remember values, so that no coalition is asked twice; ``value`` must be a function of the coalition alone. Where
             all coalitions are asked, values are not kept beyond 20 players or 2^24 numbers
    device   where ``value`` wants its coalitions

    ``game(coalitions)`` gives values in float64 on the CPU, wherever they were computed. ``game.evaluations`` counts the
    coalitions for which ``value`` was run.

    Raises TypeError or ValueError if an argument is not as above; when asked, if ``coalitions`` or what ``value`` gives has
    the wrong shape or dtype, or is not finite.
    """

    def __init__(
        self, value: Value, players: int, *, chunk: int = 2**14, cache: bool = True, device: torch.device | str = "cpu"
    ) -> None:
        if not callable(value):
            raise TypeError(f"value must be a function from coalitions to their values, got {type(value).__name__}")
        check_count("players", players)
        check_count("chunk", chunk)
        self.value, self.players, self.chunk, self.device = value, int(players), int(chunk), torch.device(device)
        self.evaluations = 0
        self.cache = cache
        self._shape: torch.Size | None = None  # of the value of one coalition: () or (outputs,)
        self._known = 0  # how many values are remembered, the first so many rows of
        self._values = torch.zeros(0, dtype=torch.float64)
        self._place = torch.zeros(0, dtype=torch.int32)  # in which row, by the coalition's number; -1 for none
        self._seen: dict[bytes, int] = {}  # the same by packed bits, where a table would be too large
        self._advance: Callable[..., object] = lambda by: None  # moves the progress bar that is shown, if one is

    def __repr__(self) -> str:
        return f"Game({self.players} players, {self.evaluations} evaluations)"

    def __call__(self, coalitions: Tensor) -> Tensor:
        """The values of coalitions, a BoolTensor (n, players): (n,) or (n, outputs)."""
        if not isinstance(coalitions, Tensor) or coalitions.dtype != torch.bool:
            raise TypeError(f"coalitions must be a BoolTensor, got {kind(coalitions)}")
        if coalitions.dim() != 2 or coalitions.shape[1] != self.players:
            raise ValueError(f"coalitions must have shape (n, {self.players}), got {tuple(coalitions.shape)}")
        coalitions = coalitions.cpu()
        if not self.cache or len(coalitions) == 0:
            return self._ask(coalitions)
        if self.players <= _TABLE:
            return self._look_up(coalitions)
        return self._remember(coalitions)

    def nobody_and_everyone(self) -> tuple[Tensor, Tensor]:
        """The values of the empty and of the full coalition."""
        nobody, everyone = self(torch.tensor([[False], [True]]).expand(2, self.players))
        return nobody, everyone

    def blocks(self, size: int = 2**14) -> Iterator[tuple[int, Tensor]]:
        """The values of all coalitions, block by block, in the order of their numbers (`coalitions`).

        size  how many coalitions a block has, a power of 2

        Yields the number of each block's first coalition, and the values (size,) or (size, outputs).
        """
        check_count("size", size)
        if size & (size - 1):
            raise ValueError(f"size must be a power of 2, got {size}")
        bits = min(int(size).bit_length() - 1, self.players)
        low = coalitions(self.players, 0, 2**bits)
        for first in range(0, 2**self.players, 2**bits):
            block = low.clone()
            for player in range(bits, self.players):
                if first >> player & 1:
                    block[:, player] = True
            yield first, self._block(first, block)

    @contextmanager
    def progress(self, evaluations: int, shown: bool) -> Iterator[None]:
        """Inside, a bar shows how many of so many coalitions have been asked; if ``shown``, and where tqdm is installed."""
        before = self._advance
        with bar(evaluations, "coalitions", shown) as advance:
            self._advance = advance if shown else before
            try:
                yield
            finally:
                self._advance = before

    def _block(self, first: int, block: Tensor) -> Tensor:
        """The values of a block of coalitions, numbered from the first on; what is asked is kept at once, chunk by chunk."""
        if not self.cache or self.players > _TABLE:
            return self._ask(block)
        self._prepare()
        rows = self._place[first : first + len(block)]
        if self._shape is not None and math.prod(self._shape) * 2**self.players > _ALL:
            return self._ask(block)
        if bool((rows >= 0).any()):
            return self._values[rows] if bool((rows >= 0).all()) else self._look_up(block)
        found = []
        for at in range(0, len(block), self.chunk):
            values = self._ask(block[at : at + self.chunk])
            rows[at : at + self.chunk] = self._keep(values)
            found.append(values)
        return torch.cat(found) if len(found) > 1 else found[0]

    def _ask(self, coalitions: Tensor) -> Tensor:
        found = []
        for part in coalitions.split(self.chunk):
            with torch.no_grad():
                values = _real(self.value(part.to(self.device)))
            shape = (len(part), *(self._shape or ())) if self._shape is not None else None
            if values.dim() not in (1, 2) or len(values) != len(part) or (shape and values.shape != shape):
                wanted = shape or f"{(len(part),)} or ({len(part)}, outputs)"
                raise ValueError(
                    f"value must give one value for each of {len(part)} coalitions, {wanted}, got {tuple(values.shape)}"
                )
            check_finite("what value gives", values)
            self.evaluations += len(part)
            self._shape = values.shape[1:]
            self._advance(len(part))
            found.append(values)
        if not found:
            return torch.zeros(0, *(self._shape or ()), dtype=torch.float64)
        return torch.cat(found) if len(found) > 1 else found[0]

    def _look_up(self, coalitions: Tensor) -> Tensor:
        self._prepare()
        number = (coalitions.long() << torch.arange(self.players)).sum(1)
        for part in torch.unique(number[self._place[number] < 0]).split(self.chunk):
            if len(part):
                self._place[part] = self._keep(self._ask((part[:, None] >> torch.arange(self.players) & 1).bool()))
        return self._values[self._place[number]]

    def _remember(self, coalitions: Tensor) -> Tensor:
        keys = packed(coalitions)
        missing = {key: row for row, key in enumerate(keys) if key not in self._seen}
        new = list(missing)
        for at in range(0, len(new), self.chunk):
            part = new[at : at + self.chunk]
            rows = self._keep(self._ask(coalitions[[missing[key] for key in part]]))
            self._seen.update(zip(part, rows.tolist(), strict=True))
        return self._values[[self._seen[key] for key in keys]]

    def _prepare(self) -> None:
        if not len(self._place):
            with torch.inference_mode(False):  # what is made in inference mode could not be changed outside
                self._place = torch.full((2**self.players,), -1, dtype=torch.int32)

    def _keep(self, values: Tensor) -> Tensor:
        """Remember these values; the rows in which they are, (n,)."""
        first, self._known = self._known, self._known + len(values)
        if self._known > len(self._values):
            with torch.inference_mode(False):
                room = torch.empty(max(2 * first, self._known), *values.shape[1:], dtype=torch.float64)
            if first:
                room[:first] = self._values[:first]
            self._values = room
        self._values[first : self._known] = values
        return torch.arange(first, self._known, dtype=torch.int32)


def _real(values: Tensor | np.ndarray[Any, Any]) -> Tensor:
    """What a value function gave, in float64 on the CPU; TypeError unless it is a tensor or an array of real numbers."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        values = torch.from_numpy(values.astype(np.float64, order="C"))
    if not isinstance(values, Tensor) or values.is_complex():
        got = f"an array of {values.dtype}" if isinstance(values, np.ndarray) else kind(values)
        raise TypeError(f"value must give a tensor or an array of real numbers, got {got}")
    return values.detach().to("cpu", torch.float64, copy=True)  # a function may write its next values over these


def packed(coalitions: Tensor) -> list[bytes]:
    """Each coalition as bytes, eight players to one."""
    bits = torch.nn.functional.pad(coalitions, (0, -coalitions.shape[1] % 8)).view(len(coalitions), -1, 8)
    rows = (bits.to(torch.uint8) << torch.arange(8, dtype=torch.uint8)).sum(2, dtype=torch.uint8).numpy()
    return [row.tobytes() for row in rows]


def coalitions(players: int, first: int = 0, count: int | None = None) -> Tensor:
    """Coalitions by their numbers, a BoolTensor (count, players): number c contains player j if bit j of c is 1.

    first  the number of the first one
    count  how many; None is all that follow, for up to 25 players

    Raises TypeError or ValueError if an argument is not as above, or there are not so many coalitions.
    """
    check_count("players", players, most=MOST if count is None else None, most_is="whose coalitions fit into memory")
    check_count("first", first, least=0)
    if count is not None:
        check_count("count", count, least=0)
    last = 2 ** int(players) if count is None else first + count
    if last > 2 ** int(players):
        raise ValueError(f"first + count must be at most 2^{players}, the number of coalitions, got {last}")
    number = torch.arange(first, last)
    return (number[:, None] >> torch.arange(players) & 1).bool()


# ------------------------------------------------------------------------------------------------------------
# Players and absence for a model
# ------------------------------------------------------------------------------------------------------------


def masking_game(
    model: Model,
    x: Tensor,
    target: Target | None,
    *,
    players: Tensor | None = None,
    removal: Removal,
    chunk: int = 32,
    cache: bool = True,
) -> Game:
    """The game of an input's features: v(S) is the score of the input from which all players outside S are removed.

    model    an nn.Module in evaluation mode, or a function of tensors; it is not changed
    x        one input, (1, …): an image (1, C, H, W), a row of a table (1, D), a time series (1, C, T), tokens (1, T)
    target   which score: a class index, a function from outputs (n, …) to scores (n,), or None for all outputs (n, outputs)
    players  which player each feature belongs to, a LongTensor that broadcasts to the input, such as (H, W) for an image, (T,)
             for a time series: numbers from 0 without holes; -1 belongs to nobody and always stays. None: every feature of a
             table, pixel of an image, moment of a series or token is a player
    removal  what takes the place of what is removed, one of ``xaicourse.removal``
    chunk    how many inputs the model sees at once
    cache    remember values; with a removal that draws at random, the first draw stays

    Returns a `Game` with as many players as ``players`` names.

    Raises ValueError or TypeError if an argument is not as above; when asked, if the model's outputs do not fit the target or
    a NaN or an infinity appears.
    """
    check_model(model)
    check_input(x)
    if target is not None:
        target = check_target(target, 1)
    check_count("chunk", chunk)
    x = x.detach()
    owner = check_players(players, x)
    remove = prepare(removal, x)

    def value(coalitions: Tensor) -> Tensor:
        present = absent_to_false(coalitions, owner)
        item = torch.zeros(len(present), dtype=torch.long, device=x.device)
        return score_of(model, remove(item, ~present), target)

    return Game(value, int(owner.max()) + 1, chunk=chunk, cache=cache, device=x.device)


def patches(height: int, width: int, size: int) -> Tensor:
    """Square patches of an image as players: a LongTensor (height, width), numbered row by row.

    size  of the side in pixels; the last row and column of patches may be smaller

    Raises TypeError or ValueError unless all are ints of at least 1, ``size`` at most the longer side.
    """
    check_count("height", height)
    check_count("width", width)
    check_count("size", size, most=max(height, width), most_is="the longer side of the image")
    rows, columns = torch.arange(height) // size, torch.arange(width) // size
    return rows[:, None] * math.ceil(width / size) + columns


def intervals(length: int, count: int) -> Tensor:
    """Intervals of a time series as players: a LongTensor (length,), ``count`` intervals whose lengths differ by 1 at most.

    Raises TypeError or ValueError unless both are ints and ``count`` is from 1 to ``length``.
    """
    check_count("length", length)
    check_count("count", count, most=length, most_is="the length of the series")
    return torch.arange(length) * count // length


# ------------------------------------------------------------------------------------------------------------
# Shared with the games of ``background``
# ------------------------------------------------------------------------------------------------------------


def check_input(x: Tensor) -> None:
    """TypeError or ValueError unless it is one input (1, …), finite, of floats or of whole numbers (tokens)."""
    if not isinstance(x, Tensor) or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"x must be a tensor of floats, or of whole numbers for tokens, got {kind(x)}")
    if x.dim() < 2 or len(x) != 1 or 0 in x.shape:
        raise ValueError(f"x must be one input of shape (1, …), not empty, got {tuple(x.shape)}")
    check_finite("x", x)


def check_players(players: Tensor | None, x: Tensor) -> Tensor:
    """The player of each feature, in as many dimensions as an item of ``x``, on its device."""
    dimensions = x.dim() - 1
    if players is None:
        sizes = x.shape[1:] if dimensions == 1 else x.shape[2:]  # channels belong together
        players = torch.arange(math.prod(sizes)).view(sizes)
    if not isinstance(players, Tensor) or players.dtype != torch.long:
        raise TypeError(f"players must be a LongTensor, the player of each feature, got {kind(players)}")
    try:
        fits = torch.broadcast_shapes(players.shape, x.shape[1:]) == x.shape[1:]
    except RuntimeError:
        fits = False
    if not fits or players.numel() == 0:
        raise ValueError(
            f"players must broadcast to an input of shape {tuple(x.shape[1:])}, got {tuple(players.shape)}"
        )
    found = torch.unique(players)
    found = found[found != -1]
    if len(found) == 0 or not torch.equal(found, torch.arange(len(found), device=found.device)):
        raise ValueError(
            f"players must be numbered from 0 without holes, -1 for what always stays, got {found[:8].tolist()} …"
        )
    return players.view(*[1] * (dimensions - players.dim()), *players.shape).to(x.device)


def absent_to_false(coalitions: Tensor, owner: Tensor) -> Tensor:
    """Which features are present: (n, players) -> (n, *owner.shape)."""
    present = coalitions[:, owner.clamp(min=0).flatten()].view(len(coalitions), *owner.shape)
    return present | (owner < 0)


def score_of(model: Model, inputs: Tensor, target: Target | None) -> Tensor:
    """The score of each input, (n,), or all outputs, (n, outputs), where the target is None; no gradient is kept."""
    with torch.no_grad(), unchanged(model):
        outputs = model(laid_out(inputs))
        check_outputs(outputs, len(inputs), target)
        if target is None:
            return outputs.flatten(1) if outputs.dim() > 1 else outputs
        return pick(outputs, target) if isinstance(target, (int, Tensor)) else ask(target, outputs)
