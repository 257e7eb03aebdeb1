"""Which channels of a detector speak for "counterfeit": relevance per channel, averaged over pictures, ranked. Lecture 15.

    ranking = channels.rank(detector, fake)
    ranking.top(27)            # [("backbone.13", 71), …]: batch norm and channel

For picture i and the channels c of one layer the lecture has

    R_i[c] = sum_hw (R[i, c, h, w])+  /  sum_chw |R[i, c, h, w]|,        R[c] = 1/n sum_i R_i[c],

with R from LRP: no bias of a convolution takes a share, z+ for convolutions (beta = 0), zB at the pixels, epsilon for the last
layer, and each batch norm merged into its convolution. Only counterfeits count that the detector calls so with a probability of
at least 0.9. All layers are pooled. As each is normalised by itself, its channels share 1 between them: a narrow layer's have
more each. So the lecture compares the top k with random channels of the same layers, too (``ablation.choose``).

A large set is cut into shards. What a shard adds is kept in a folder as soon as it is known, so that nothing is computed twice
after a kill, and under ``torchrun`` the processes share the shards out. Sums are whole numbers of 2^-40, which add up to the
same in any order: two processes find what one does, to the last bit.

Chandrasegaran et al. 2022, Discovering transferable forensic features for CNN-generated images detection, ECCV.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from .. import lrp
from ..arguments import check_count, check_finite
from ..progress import bar
from ..scores import check_model
from .patches import Pictures, take

__all__ = ["COMPOSITE", "Channel", "Ranking", "fingerprint", "norms", "rank", "relevance"]

COMPOSITE = lrp.Composite(convolution=lrp.ZPlus(), linear=lrp.Epsilon(), first=lrp.ZBox(-1.0, 1.0))
"""The rules of the paper; what the first convolution sees lies between -1 and 1."""

Channel = tuple[str, int]
"""The path of a batch norm and the number of one of its channels."""

_UNIT = 2.0**40


@dataclass(frozen=True)
class Ranking:
    """Channels from the most relevant to the least.

    channels   of all batch norms, in falling order of relevance
    relevance  R[c] in the same order, float64 (C,)
    pictures   how many counterfeits it is the mean of
    model      fingerprint of the model that it was made for
    """

    channels: tuple[Channel, ...]
    relevance: Tensor
    pictures: int
    model: str

    def top(self, k: int) -> list[Channel]:
        """The k most relevant channels."""
        check_count("k", k, most=len(self.channels), most_is="the channels that are ranked")
        return list(self.channels[:k])

    def low(self, k: int) -> list[Channel]:
        """The k least relevant channels."""
        check_count("k", k, most=len(self.channels), most_is="the channels that are ranked")
        return list(self.channels[-k:])

    def check_model(self, model: nn.Module) -> None:
        """ValueError if the model is another one than the ranking was made for, or the same with other weights."""
        found = fingerprint(model)
        if found != self.model:
            raise ValueError(f"ranking must be of this model, {found}, and was made for {self.model}")

    def save(self, file: Path, about: dict[str, Any] | None = None) -> None:
        """Write it as JSON, whole or not at all; ``about`` is written beside it: seed, versions, configuration."""
        written = {"model": self.model, "pictures": self.pictures, "channels": list(map(list, self.channels))}
        _replace(file, json.dumps((about or {}) | written | {"relevance": self.relevance.tolist()}).encode())

    @classmethod
    def load(cls, file: Path, model: nn.Module | None = None) -> Ranking:
        """Read what ``save`` wrote; with a model, ValueError if it was made for another one."""
        read = json.loads(Path(file).read_text(encoding="utf-8"))
        channels = tuple((path, index) for path, index in read["channels"])
        ranking = cls(channels, torch.tensor(read["relevance"], dtype=torch.float64), read["pictures"], read["model"])
        if model is not None:
            ranking.check_model(model)
        return ranking


def norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """The batch norms by path, whose channels are ranked and ablated; ValueError if the model has none."""
    found = {path: module for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    if not found:
        raise ValueError(f"model must have batch norms, whose channels are ranked; {type(model).__name__} has none")
    return found


def relevance(
    model: nn.Module, inputs: Tensor, *, composite: str | lrp.Composite = COMPOSITE, within: str = ""
) -> dict[str, Tensor]:
    """R_i[c] of every batch norm's channels for the log odds of "counterfeit".

    model      with outputs (N, 1), such as a ``Detector``
    inputs     what it takes, (N, …)
    composite  the rules of LRP
    within     only batch norms whose path begins like this: "decoder." of a generator with its detector

    Returns float64 (N, channels) by path of the batch norm. The relevance is that of its output, before the activation.
    """
    layers = lrp.trace(model, inputs, 0, composite=composite).layers
    shares = {}
    for path in norms(model):
        if path.startswith(within):
            R = layers[path].double().flatten(2)
            total = R.abs().sum((1, 2))[:, None]
            shares[path] = R.clamp(min=0).sum(2) / total.masked_fill(total == 0, 1)
    return shares


def rank(
    model: nn.Module,
    fake: Pictures,
    *,
    least: float = 0.9,
    composite: str | lrp.Composite = COMPOSITE,
    within: str = "",
    shard: int = 64,
    folder: Path | None = None,
    progress: bool = False,
) -> Ranking:
    """Rank the channels of a detector by their mean relevance for counterfeits.

    model      a ``Detector``, or a generator with its detector; in evaluation mode
    fake       counterfeits; a data set is read shard by shard
    least      only those count that the model calls counterfeit with at least this probability
    within     rank only batch norms whose path begins like this
    shard      pictures that are worked on, kept and resumed together
    folder     where shards are kept; a run that was killed goes on from there. None: nothing is kept
    progress   show a bar

    Where torch.distributed is initialised, each process works on its shards, and all return the same ranking.

    ValueError if no counterfeit is called so with that probability. Whether the detector knows real pictures from counterfeits,
    this cannot tell: ``detectors.check_detects`` does.
    """
    check_model(model)
    check_count("shard", shard)
    if not 0 <= least < 1:
        raise ValueError(f"least must be a probability, from 0 to below 1, got {least}")
    if not len(fake):
        raise ValueError("fake must hold at least one picture, got none")
    owners = [(path, i) for path, n in norms(model).items() if path.startswith(within) for i in range(n.num_features)]
    if not owners:
        raise ValueError(
            f"within must begin the path of a batch norm, got {within!r}; there are {', '.join(norms(model))}"
        )
    made_for = fingerprint(model)
    here, processes = (distributed.get_rank(), distributed.get_world_size()) if _shared() else (0, 1)
    if folder is not None:
        key = hashlib.sha256(repr((made_for, least, composite, within, shard, _identity(fake))).encode()).hexdigest()
        folder = Path(folder) / f"shards-{key[:16]}"
        folder.mkdir(parents=True, exist_ok=True)

    device = next(model.parameters()).device
    sums = torch.zeros(1 + len(owners), dtype=torch.int64)  # how many counted, then 2^40 R[c]
    mine = range(here * shard, len(fake), processes * shard)
    with bar(len(mine), "shards", progress and not here) as advance:
        for start in mine:
            pictures = range(start, min(start + shard, len(fake)))
            file = None if folder is None else folder / f"{start // shard:06d}.pt"
            sums += _kept(file, partial(_shard, model, fake, pictures, least, composite, within, device))
            advance()
    if _shared():
        on = sums.to(device) if distributed.get_backend() == "nccl" else sums
        distributed.all_reduce(on)
        sums = on.cpu()
    counted = int(sums[0])
    if not counted:
        raise ValueError(
            f"fake must hold counterfeits that the detector calls so with a probability of at least {least}: none of "
            f"{len(fake)} is; a ranking would explain what the detector does not know"
        )
    mean = sums[1:].double() / _UNIT / counted
    order = mean.argsort(descending=True, stable=True)
    return Ranking(tuple(owners[at] for at in order.tolist()), mean[order], counted, made_for)


def _shard(
    model: nn.Module, fake: Pictures, pictures: range, least: float, composite: Any, within: str, device: torch.device
) -> Tensor:
    x = take(fake, pictures).to(device)
    with torch.no_grad():
        logit = model(x)
    if logit.shape != (len(x), 1):
        raise ValueError(
            f"model must have outputs (N, 1), the log odds of counterfeit, got {tuple(logit.shape)} for {len(x)}"
        )
    check_finite(f"the model's outputs for pictures {pictures.start} to {pictures.stop - 1}", logit)
    sure = logit[:, 0].sigmoid() >= least
    width = sum(n.num_features for path, n in norms(model).items() if path.startswith(within))
    sums = torch.zeros(1 + width, dtype=torch.int64)
    if bool(sure.any()):
        shares = relevance(model, x[sure], composite=composite, within=within)
        sums[0] = int(sure.sum())
        sums[1:] = torch.cat([(share * _UNIT).round().long().sum(0) for share in shares.values()]).cpu()
    return sums


def _kept(file: Path | None, compute: Callable[[], Tensor]) -> Tensor:
    """What the file holds, or else the result of the computation, which is then written whole or not at all."""
    if file is None:
        return compute()
    # where it was cut off with the power, it is computed again
    with contextlib.suppress(OSError, EOFError, RuntimeError, pickle.UnpicklingError):
        return torch.load(file, weights_only=True)
    sums = compute()
    beside = file.with_suffix(f".{os.getpid()}")
    torch.save(sums, beside)
    beside.replace(file)
    return sums


def fingerprint(model: nn.Module) -> str:
    """The name of the model's class and sixteen digits of a hash of all its weights and buffers."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return f"{type(model).__name__}:{digest.hexdigest()[:16]}"


def _identity(fake: Pictures) -> object:
    """What tells one set of pictures from another: the files of a data set and how it reads them, or a tensor's numbers."""
    paths: Sequence[Path] | None = getattr(fake, "paths", None)
    if paths is not None:
        first = _digest(take(fake, [0]))  # another one where the same files are cropped to another size, or made gray
        return [first, *((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in map(Path, paths))]
    if isinstance(fake, Tensor):
        return _digest(fake)
    raise TypeError(f"fake must be a tensor or a data set with paths for shards to be kept, got {type(fake).__name__}")


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def _shared() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _replace(file: Path, content: bytes) -> None:
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f"{file.name}.{os.getpid()}")
    beside.write_bytes(content)
    beside.replace(file)
