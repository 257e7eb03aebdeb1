"""LRP on every classifier of torchvision, and on some of timm where it is installed: does it run, and does it add up?

A row holds if ``lrp.trace`` explains the unmodified model, if its outputs are those of the plain model, and if the
ledger accounts for all relevance: what it leaves unaccounted, and the worst that a single operation leaves
unexplained, are at most 1e-3 of the sum of |relevance| in the widest row, in float32. The composite is the preset
for the network, z+ with epsilon where there is none. The time is that of ``lrp.relevance`` over fb, the plain
forward pass and gradient to the input: one image, of the smallest size that is sensible for the network, so that it
shows what handling every operation costs; ``python -m benchmarks lrp`` has the time for images as they are used.
"""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from statistics import median
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from xaicourse import lrp

from .framework import THREADS, Result, Settings, timed
from .networks import gradient, images, network

SUBJECT = lrp
TOLERANCE = 1e-3

_SIZES = {"inception*": 96, "vit_*": 224, "maxvit*": 224, "*": 64}
_QUICK_SIZES = {"vit_h_14": 56, "vit_*": 64, "inception*": 96, "maxvit*": 224, "*": 64}
_TIMM = (
    "resnet10t", "resnet26d", "resnetv2_50", "ecaresnet26t", "skresnet18", "seresnet18", "nf_regnet_b0", "regnetx_002",
    "regnety_002", "regnetz_005", "efficientnet_lite0", "efficientnetv2_rw_t", "mobilenetv3_small_050",
    "mobilenetv4_conv_small", "mobileone_s0", "ghostnet_050", "hardcorenas_a", "lcnet_035", "tinynet_e", "fbnetc_100",
    "rexnet_100", "dla34", "densenet121", "cspresnet50", "darknet53", "vovnet39a", "hrnet_w18_small", "inception_v3",
    "inception_next_atto", "convnext_atto", "convnextv2_atto", "convmixer_768_32", "repvgg_a0", "starnet_s1", "ghostnetv2_100",
    "vit_tiny_patch16_224", "vit_relpos_small_patch16_224", "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224", "beit_base_patch16_224", "eva02_tiny_patch14_224", "cait_xxs24_224", "xcit_nano_12_p16_224",
    "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "swinv2_cr_tiny_ns_224", "twins_svt_small", "pvt_v2_b0",
    "coat_tiny", "coat_lite_tiny", "coatnet_nano_rw_224", "maxvit_tiny_rw_224", "convit_tiny", "levit_128s",
    "mixer_s16_224", "resmlp_12_224", "gmixer_12_224", "gmlp_ti16_224", "poolformer_s12", "poolformerv2_s12",
    "caformer_s18", "convformer_s18", "edgenext_xx_small", "mobilevit_xxs", "mobilevitv2_050", "efficientformer_l1",
    "efficientformerv2_s0", "efficientvit_b0", "efficientvit_m0", "fastvit_t8", "repvit_m0_9", "focalnet_tiny_srf",
    "davit_tiny", "hiera_tiny_224", "mvitv2_tiny", "nest_tiny", "crossvit_tiny_240", "pit_ti_224", "visformer_tiny",
    "sequencer2d_s", "volo_d1_224", "tnt_s_legacy_patch16_224", "tiny_vit_5m_224", "nextvit_small", "gcvit_xxtiny",
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """One network, explained with this composite at this size."""

    name: str
    composite: str
    size: int

    @property
    def configuration(self) -> Mapping[str, Any]:
        return {"batch": 1, "size": self.size, "dtype": "float32", "composite": self.composite}

    def measure(self, settings: Settings) -> Result:
        """Is it explained, are the outputs unchanged, is all accounted for, and how long does it take?"""
        gc.collect()  # of the model before, nothing is left
        torch.set_num_threads(THREADS)
        model, x = network(self.name, self.size), images(1, self.size)
        with torch.no_grad():
            plain = model(x)
        target = plain.argmax(1)
        try:
            trace = lrp.trace(model, x, target, composite=self.composite)
        except lrp.UnhandledOperation as refusal:
            return {"explained": False, "holds": False, "why": str(refusal)}
        result = {"explained": True, **_accounts(trace, plain)}
        del trace
        excess = [what for what in ("outputs", "unaccounted", "unexplained") if not result[what] <= TOLERANCE]
        if excess:
            result["why"] = ", ".join(f"{what} {result[what]:.1e}" for what in excess)
        return {**result, **self._times(model, x, target, settings.rounds), "holds": not excess}

    def _times(self, model: nn.Module, x: Tensor, target: Tensor, rounds: int) -> Result:
        explain = partial(lrp.relevance, model, x, target, composite=self.composite)
        fb = partial(gradient, model, x, target)
        fb(), explain()  # the first calls
        seconds = [(timed(explain)[0], timed(fb)[0]) for _ in range(rounds)]
        ours, plain = zip(*seconds, strict=True)
        return {"seconds": median(ours), "fb": median(plain), "ratio": median(a / b for a, b in seconds)}

    def report(self, result: Result) -> str:
        """The row as one line."""
        line = f"{self.name:36} {self.size:4} px"
        if result.get("explained"):
            line += (
                f"  outputs {result['outputs']:.0e}  unaccounted {result['unaccounted']:.0e}  "
                f"unexplained {result['unexplained']:.0e}  {result['ratio']:5.2f} x fb  {result['seconds']:7.3f} s  "
                f"{self.composite}"
            )
        return line if result["holds"] else f"{line}  DOES NOT HOLD: {result['why']}"


def _accounts(trace: lrp.Trace, plain: Tensor) -> Result:
    """How far outputs are from the plain model's, and what the ledger leaves open of the widest row's relevance."""
    widest = max(row.incoming_abs for row in trace.ledger)
    worst = max(trace.ledger, key=lambda row: abs(row.unexplained))
    return {
        "outputs": ((trace.output - plain).abs().max() / plain.abs().max()).item(),
        "unaccounted": abs(trace.ledger.unaccounted) / widest,
        "unexplained": abs(worst.unexplained) / widest,
        "worst": f"{worst.module}: {worst.function}",
        "operations": len(trace.ledger),
    }


# ------------------------------------------------------------------------------------------------------- rows


def rows(quick: bool = False) -> list[Model]:
    """One row per network; timm's if it is there."""
    names = torchvision.models.list_models(module=torchvision.models)
    if importlib.util.find_spec("timm"):
        names += [f"timm.{name}" for name in _timm()]
    sizes = _QUICK_SIZES if quick else _SIZES
    return [Model(name, _first(lrp.PRESETS, name.removeprefix("timm.")), _size(name, sizes)) for name in names]


def _first(table: Mapping[str, Any], name: str, otherwise: Any = "epsilon_plus") -> Any:
    """What a table of patterns says about a name."""
    return next((value for pattern, value in table.items() if fnmatchcase(name, pattern)), otherwise)


def _size(name: str, sizes: Mapping[str, int]) -> int:
    if name.startswith("timm."):
        import timm

        return timm.get_pretrained_cfg(name.removeprefix("timm."), allow_unregistered=False).input_size[-1]
    return _first(sizes, name)


def _timm() -> list[str]:
    """Those members of timm's families, the smallest, that the installed version has."""
    import timm

    known = set(timm.list_models())
    return [name for name in _TIMM if name in known]
