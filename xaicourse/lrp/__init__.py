"""Layer-wise relevance propagation for any PyTorch model, unmodified. Lectures 11 and 12.

    relevance = lrp.relevance(model, inputs, target, composite="epsilon_plus")
    trace = lrp.trace(model, inputs, target)      # .output .relevance .layers .ledger

``rules`` holds the mathematics of a layer, ``operations`` what happens between layers, ``engine`` how both meet a model,
``composites`` which layer gets which rule, ``ledger`` where relevance went, ``reference`` the rules as the textbook has them.
"""

from .composites import COMPOSITES, Composite
from .engine import UnhandledOperation
from .explain import Trace, relevance, trace
from .ledger import Ledger, Row
from .rules import AlphaBeta, Epsilon, Flat, Gamma, Rule, WSquare, ZBox, ZPlus

__all__ = [
    "COMPOSITES", "AlphaBeta", "Composite", "Epsilon", "Flat", "Gamma", "Ledger", "Row", "Rule", "Trace",
    "UnhandledOperation", "WSquare", "ZBox", "ZPlus", "relevance", "trace",
]  # fmt: skip
