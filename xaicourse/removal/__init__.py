"""Ways to take features away: what stands in their place (lectures 04, 06 and 12; used by ``evaluation``, occlusion, Shapley).

A network needs a number at every pixel, so that no pixel can be taken away: it can only be replaced, and by what decides
what the network makes of it. A removal is a plain function from inputs and from the places to remove to inputs::

    remove = removal.blur(sigma=5)
    remove(inputs, removed)     # inputs (N, …); removed is True where a feature goes: a BoolTensor that broadcasts to inputs

The result has the shape, dtype and device of ``inputs``, and equals them where nothing is removed. Write another removal as a
function of the same two arguments.

========================================  ========================  ========================  =============  ============
what stands in the place                  images (N, C, H, W)       time series (N, C, T)     tables (N, D)  tokens (N, T)
========================================  ========================  ========================  =============  ============
something that looks at nothing           `baseline`, `noise`       `baseline`, `noise`       the same       `token`
the item itself, coarser                  `mean`, `blur`            `mean`, `blur`
what is left of the item goes on          `mean(kept=True)`,        `mean(kept=True)`,
                                          `noisy_linear`,           `interpolation`,
                                          `inpainting`              `inpainting`
what other data have there                `marginal`                `marginal`                `marginal`     `marginal`
the same, of data like what is left       `nearest`                 `nearest`                 `nearest`
========================================  ========================  ========================  =============  ============

A removal may draw at random, by its ``generator=``; whatever it does, each item is filled by itself. Asked for many places
in the same inputs, `prepare` makes what does not depend on the places only once.
"""

from .filling import Filling, baseline, blur, mean, prepare, token
from .places import Removal
from .samples import marginal, nearest, noise
from .surroundings import inpainting, interpolation, noisy_linear

__all__ = [
    "Filling",
    "Removal",
    "baseline",
    "blur",
    "inpainting",
    "interpolation",
    "marginal",
    "mean",
    "nearest",
    "noise",
    "noisy_linear",
    "prepare",
    "token",
]
