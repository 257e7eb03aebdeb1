"""Composites: which rule each layer of a network gets.

Lectures 11 and 12. A composite is plain data: a rule for convolutions, one for linear layers, one for batch norms that
stand alone; perhaps one for the first or the last layer or by depth; and exceptions by module name.

Kohlbrenner et al. 2020, Towards best practice in explaining neural network decisions with LRP, IJCNN. Montavon et al. 2019,
Layer-wise relevance propagation: an overview, LNCS 11700. Achtibat et al. 2024, AttnLRP: attention-aware layer-wise relevance
propagation for transformers, ICML.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase

from .rules import AlphaBeta, Epsilon, Flat, Gamma, Rule, ZBox, ZPlus


@dataclass(frozen=True)
class Composite:
    """A rule for each layer. The first of these that says something decides: names, first, last, depth, kind of layer.

    convolution    all convolutions, transposed ones too
    linear         fully connected layers
    normalisation  batch norms that no layer before them takes in; a diagonal linear map
    first          the layers that the input reaches first, whatever their kind; None: as their kind says
    last           the layer that is called last; None: as its kind says
    depth          rules by depth, ``{0: Gamma(), 0.5: Epsilon()}``: each holds from its depth on, where 0 is the first layer
                   and 1 the last, in the order in which the model first calls them
    names          exceptions: glob patterns of module paths, such as "layer4.*"; the first that matches decides

    ``last`` and ``depth`` need to know how many layers there are: the model then runs once more.
    """

    convolution: Rule = Epsilon()
    linear: Rule = Epsilon()
    normalisation: Rule = Epsilon()
    first: Rule | None = None
    last: Rule | None = None
    depth: Mapping[float, Rule] = field(default_factory=dict)
    names: Mapping[str, Rule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, what in (("names", "patterns of module paths"), ("depth", "depths from 0 to 1")):
            if not isinstance(getattr(self, name), Mapping):
                raise TypeError(f"{name} must map {what} to rules, not {type(getattr(self, name)).__name__}")
        rules = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("names", "depth")}
        for mapping in ("names", "depth"):
            rules |= {f"{mapping}[{k!r}]": v for k, v in getattr(self, mapping).items()}
        for name, rule in rules.items():
            if not hasattr(rule, "propagate") and not (name in ("first", "last") and rule is None):
                raise TypeError(f"{name} must be a rule such as lrp.Epsilon(), not {rule!r}")
        for start in self.depth:
            if isinstance(start, bool) or not isinstance(start, (int, float)) or not 0 <= start <= 1:
                raise ValueError(f"depth must have keys from 0 to 1, got {start!r}")

    @property
    def counts_layers(self) -> bool:
        """Whether rules depend on how many layers there are."""
        return self.last is not None or bool(self.depth)

    def rule(self, kind: str, path: str, first: bool, depth: int = 0, layers: int | None = None) -> Rule:
        """The rule for a layer of this kind ("conv2d", "linear", "scale" …) that the module at ``path`` calls.

        ``depth`` is its place among the model's ``layers``, from 0.
        """
        for pattern, rule in self.names.items():
            if fnmatchcase(path, pattern):
                return rule
        if kind == "scale":
            return self.normalisation
        if first and self.first is not None:
            return self.first
        if layers is not None:
            if self.last is not None and depth == layers - 1:
                return self.last
            relative = depth / max(layers - 1, 1)
            begun = [start for start in self.depth if start <= relative]
            if begun:
                return self.depth[max(begun)]
        return self.linear if kind == "linear" else self.convolution

    def check_names(self, paths: Collection[str]) -> None:
        """ValueError if a pattern matches no module."""
        for pattern in self.names:
            if not any(fnmatchcase(path, pattern) for path in paths):
                close = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.4)
                hint = f"; there are {', '.join(map(repr, close))}" if close else ""
                raise ValueError(f"composite: names has the pattern {pattern!r}, which matches no module{hint}")


COMPOSITES: dict[str, Composite] = {
    "epsilon": Composite(),
    "epsilon_plus": Composite(convolution=ZPlus()),
    "epsilon_plus_flat": Composite(convolution=ZPlus(), first=Flat()),
    "epsilon_alpha2_beta1": Composite(convolution=AlphaBeta(beta=1)),
    "epsilon_alpha2_beta1_flat": Composite(convolution=AlphaBeta(beta=1), first=Flat()),
    "epsilon_gamma_box": Composite(convolution=Gamma(gamma=0.25), first=ZBox()),
    "deep_taylor": Composite(convolution=ZPlus(), linear=ZPlus(), first=ZBox()),
    "by_depth": Composite(depth={0.0: Gamma(gamma=0.25), 0.4: Epsilon(epsilon=0.25), 0.8: Epsilon()}),
    "attention": Composite(convolution=Gamma(gamma=0.25), linear=Gamma(gamma=0.05)),
}
"""By name. "deep_taylor" is Montavon et al. 2017 with each item's own box; "by_depth" the composite of Montavon et al. 2019
(gamma below, epsilon in the middle, LRP-0 above); "attention" the gammas of Achtibat et al. 2024 for vision transformers."""

PRESETS: dict[str, str] = {
    "alexnet": "epsilon_plus_flat",
    "vgg*": "epsilon_alpha2_beta1_flat",
    "resnet*": "epsilon_plus_flat",
    "resnext*": "epsilon_plus_flat",
    "wide_resnet*": "epsilon_plus_flat",
    "densenet*": "epsilon_plus_flat",
    "inception*": "epsilon_plus_flat",
    "googlenet": "epsilon_plus_flat",
    "squeezenet*": "epsilon_plus_flat",
    "efficientnet*": "epsilon",
    "mobilenet*": "epsilon",
    "mnasnet*": "epsilon",
    "convnext*": "attention",
    "vit*": "attention",
    "swin*": "attention",
    "maxvit*": "attention",
}
"""Which composite suits which network, by torchvision's and timm's names: z+ and alpha-beta where activations are not negative
and neurons have many inputs (Kohlbrenner et al. 2020), epsilon for depthwise convolutions, where positive parts die out
(lecture 11), gamma for transformers (Achtibat et al. 2024)."""


def preset(network: str) -> Composite:
    """A composite that suits the network of this name, from ``lrp.PRESETS``; ValueError if there is none."""
    for pattern, composite in PRESETS.items():
        if fnmatchcase(network, pattern):
            return COMPOSITES[composite]
    raise ValueError(f"network must match one of {', '.join(PRESETS)}, got {network!r}")


def named(composite: str | Composite) -> Composite:
    """The composite of that name, or the one given."""
    if isinstance(composite, Composite):
        return composite
    if not isinstance(composite, str):
        raise TypeError(f"composite must be a name or an lrp.Composite, not {type(composite).__name__}")
    if composite not in COMPOSITES:
        raise ValueError(f"composite must be one of {sorted(COMPOSITES)} or an lrp.Composite, got {composite!r}")
    return COMPOSITES[composite]
