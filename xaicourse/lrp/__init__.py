"""Layer-wise relevance propagation for any PyTorch model, unmodified. Lectures 11 and 12.

    relevance = lrp.relevance(model, inputs, target, composite="epsilon_plus")
    trace = lrp.trace(model, inputs, target)      # .output .relevance .layers .ledger

``rules`` holds the mathematics of a layer, ``operations`` what happens between layers, ``composed`` norms and recurrent layers
written out, ``engine`` how all meet a model, ``composites`` which layer gets which rule, ``ledger`` where relevance went,
``reference`` the rules as the textbook has them.
"""

from .composites import COMPOSITES, PRESETS, Composite, preset
from .engine import UnhandledOperation
from .explain import Trace, channel, relevance, trace
from .ledger import Ledger, Row
from .operations import register, unregister
from .rules import AlphaBeta, Epsilon, Flat, Gamma, Rule, WSquare, ZBox, ZPlus

__all__ = [
    "COMPOSITES", "PRESETS", "AlphaBeta", "Composite", "Epsilon", "Flat", "Gamma", "Ledger", "Row", "Rule", "Trace",
    "UnhandledOperation", "WSquare", "ZBox", "ZPlus", "channel", "preset", "register", "relevance", "trace", "unregister",
]  # fmt: skip
