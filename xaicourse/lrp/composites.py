"""Composites: which rule each layer of a network gets.

Lectures 11 and 12. A composite is plain data: a rule for convolutions, one for linear layers, one for batch norms that
stand alone, perhaps one for the first layer, and exceptions by module name.

Kohlbrenner et al. 2020, Towards best practice in explaining neural network decisions with LRP, IJCNN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase

from .rules import AlphaBeta, Epsilon, Gamma, Rule, ZBox, ZPlus


@dataclass(frozen=True)
class Composite:
    """A rule for each kind of layer.

    convolution    all convolutions, transposed ones too
    linear         fully connected layers
    normalisation  batch norms that no layer before them takes in; a diagonal linear map
    first          the layers that the input reaches first, whatever their kind; None: as their kind says
    names          exceptions: glob patterns of module paths, such as "layer4.*"; the first that matches decides
    """

    convolution: Rule = Epsilon()
    linear: Rule = Epsilon()
    normalisation: Rule = Epsilon()
    first: Rule | None = None
    names: Mapping[str, Rule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rules = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "names"}
        if not isinstance(self.names, Mapping):
            raise TypeError(f"names must map patterns of module paths to rules, not {type(self.names).__name__}")
        for name, rule in {**rules, **{f"names[{k!r}]": v for k, v in self.names.items()}}.items():
            if not hasattr(rule, "propagate") and not (name == "first" and rule is None):
                raise TypeError(f"{name} must be a rule such as lrp.Epsilon(), not {rule!r}")

    def rule(self, kind: str, path: str, first: bool) -> Rule:
        """The rule for a layer of this kind ("conv2d", "linear", "scale" …) that the module at ``path`` calls."""
        for pattern, rule in self.names.items():
            if fnmatchcase(path, pattern):
                return rule
        if first and self.first is not None and kind != "scale":
            return self.first
        return {"linear": self.linear, "scale": self.normalisation}.get(kind, self.convolution)


COMPOSITES: dict[str, Composite] = {
    "epsilon": Composite(),
    "epsilon_plus": Composite(convolution=ZPlus()),
    "epsilon_alpha2_beta1": Composite(convolution=AlphaBeta(beta=1)),
    "epsilon_gamma_box": Composite(convolution=Gamma(gamma=0.25), first=ZBox()),
}


def named(composite: str | Composite) -> Composite:
    """The composite of that name, or the one given."""
    if isinstance(composite, Composite):
        return composite
    if not isinstance(composite, str):
        raise TypeError(f"composite must be a name or an lrp.Composite, not {type(composite).__name__}")
    if composite not in COMPOSITES:
        raise ValueError(f"composite must be one of {sorted(COMPOSITES)} or an lrp.Composite, got {composite!r}")
    return COMPOSITES[composite]
