"""What a Shapley value comes with: how sure it is, what it cost, and whether it adds up (lectures 05 and 06)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Shapley", "spread"]

_FEW = 30  # draws, below which Student's t did not make up for contributions that are mostly 0


@dataclass(frozen=True, eq=False)  # tensors have no one truth of being equal
class Shapley:
    """A value for each player of a game; all tensors are float64 on the CPU.

    values           (players,), or (players, outputs) for a game of several outputs
    standard_errors  of ``values``, in the same shape; 0 where nothing was left to chance
    evaluations      how many coalitions were looked at; ``game.evaluations`` has those for which the value function was run
    total            v(everyone) - v(nobody), which the values have to share: () or (outputs,)
    nobody           v(nobody): with ``total`` what the values start from and where they end
    degrees          degrees of freedom of ``standard_errors``, in the same shape; infinite where nothing was left to chance

    A standard error is itself an estimate: ``doubtful`` says which of them not to rely on, and printing the result tells how
    many they are.
    """

    values: Tensor
    standard_errors: Tensor
    evaluations: int
    total: Tensor
    nobody: Tensor
    degrees: Tensor

    @property
    def gap(self) -> Tensor:
        """The sum of the values less ``total``: 0 for values that share out all there is, and only what there is."""
        return self.values.sum(0) - self.total

    @property
    def doubtful(self) -> Tensor:
        """Where a standard error may be far too small, a BoolTensor shaped like ``values``: it has fewer than 29 degrees of
        freedom (of orders: fewer than 30 draws), or is 0 though something was left to chance.

        A player who matters in few contexts may happen to add the same in all draws: then both his value and his standard
        error are wrong. A dummy adds the same in all draws as well; the draws cannot tell the two apart.
        """
        return (self.degrees < _FEW - 1) | ((self.standard_errors == 0) & self.degrees.isfinite())

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds within which the exact value lies at that rate, by Student's t distribution.

        Where ``doubtful``, at a lower rate: of 12 players, 5 random orders held four in five, and of a game in which only all
        together are worth something one in three.

        level  above 0 and below 1; ValueError otherwise
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be above 0 and below 1, got {level}")
        from scipy.special import stdtrit  # here, since it comes with what the lectures need, not with the package

        quantile = torch.from_numpy(stdtrit(self.degrees.clamp(max=1e10).numpy(), (1 + level) / 2))
        width = quantile * self.standard_errors
        return self.values - width, self.values + width

    def __repr__(self) -> str:
        outputs = "" if self.values.dim() == 1 else f" and {self.values.shape[1]} outputs"
        worst = self.standard_errors.max().item()
        return (
            f"Shapley({len(self.values)} players{outputs}, {self.evaluations} evaluations, standard errors up to {worst:.2g}, "
            f"gap up to {self.gap.abs().max().item():.2g}{self._doubts()})"
        )

    def _doubts(self) -> str:
        doubtful = int(self.doubtful.sum())
        if not doubtful:
            return ""
        zero = int((self.doubtful & (self.standard_errors == 0)).sum())
        why = [f"degrees of freedom from {self.degrees.min().item():.0f} on"] if self.degrees.min() < _FEW - 1 else []
        why += [f"{zero} are 0 by the draws alone"] if zero else []
        return f"; {doubtful} standard errors are doubtful: {', '.join(why)}"


def spread(values: Tensor, players: Tensor, *, share: bool = True) -> Tensor:
    """Paint the values of players onto what they hold: a map of relevance.

    values   (players,)
    players  which player each feature belongs to, a LongTensor of any shape; -1 belongs to nobody
    share    True: a player's value is shared equally among its features, so that the map sums to the values' sum; False: each
             of its features gets the whole value

    Returns a tensor shaped like ``players``, 0 where they are -1.

    Raises ValueError or TypeError if an argument is not as above.
    """
    if not isinstance(players, Tensor) or players.dtype != torch.long:
        raise TypeError(f"players must be a LongTensor, got {getattr(players, 'dtype', type(players).__name__)}")
    if not isinstance(values, Tensor) or values.dim() != 1:
        raise ValueError(f"values must be a tensor of shape (players,), got {getattr(values, 'shape', type(values))}")
    if players.numel() == 0 or int(players.min()) < -1 or int(players.max()) >= len(values):
        raise ValueError(f"players must be from -1 to {len(values) - 1}, one for each feature")
    held = torch.bincount(players[players >= 0].flatten(), minlength=len(values)).clamp(min=1)
    values = values / held.to(values) if share else values
    return torch.where(players >= 0, values[players.clamp(min=0)], 0)
