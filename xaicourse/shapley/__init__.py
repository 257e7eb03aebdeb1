"""Shapley values of any game, exactly and estimated, and the games that explain a model. Lectures 05 and 06.

    game = shapley.masking_game(model, x, target, players=shapley.patches(224, 224, 32), removal=removal.blur(10))
    result = shapley.exact(game)                      # up to 25 players
    result = shapley.kernel(game, 2000)               # an estimate: .values .standard_errors .interval() .gap

``game`` holds what players and coalitions are, ``background`` games on other data, ``games`` games with known values;
``exact``, ``sampling`` and ``regression`` compute or estimate the values, ``running`` while one looks on; ``indices`` has
other values of the same game, and interactions; ``result`` is what all of them return.
"""

from . import games
from .background import conditional_game, marginal_game
from .exact import exact
from .game import Game, coalitions, intervals, masking_game, patches
from .indices import add_one_in, banzhaf, interactions, leave_one_out, moebius, owen
from .regression import kernel
from .result import Shapley, spread
from .running import running
from .sampling import permutation

__all__ = [
    "Game", "Shapley", "add_one_in", "banzhaf", "coalitions", "conditional_game", "exact", "games", "interactions",
    "intervals", "kernel", "leave_one_out", "marginal_game", "masking_game", "moebius", "owen", "patches", "permutation",
    "running", "spread",
]  # fmt: skip
