"""Explanations by training samples: the nearest ones, and what each is worth (lecture 03; slides "most similar samples").

Which training samples support a prediction? `nearest` finds those that are most similar in the features of a network, exactly.
`shapley_values` says what each training sample is worth to a classifier that votes among nearest neighbours: the Shapley
values of a game whose players are the samples, in closed form. `retrain_without` puts a claim about samples to the test: take
them away, train again, and look at the score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .arguments import check_count, check_finite, kind
from .scores import Model, Target, check_target, scores

__all__ = ["Metric", "Neighbors", "nearest", "retrain_without", "shapley_values"]

Metric = Literal["euclidean", "manhattan", "cosine"]


@dataclass(frozen=True)
class Neighbors:
    """The nearest samples of each query, from the nearest on: (queries, k) each."""

    distances: Tensor
    indices: Tensor  # LongTensor, rows of the samples


def nearest(
    queries: Tensor, samples: Tensor, *, k: int = 5, metric: Metric = "euclidean", chunk: int = 256
) -> Neighbors:
    """The k samples that are nearest to each query, exactly.

    queries  (Q, D), features of any float dtype and device
    samples  (M, D), features in the same dtype and on the same device
    k        1 to M
    metric   "euclidean"; "manhattan", the sum of absolute differences; "cosine", 1 - the cosine of the angle, from 0 to 2
    chunk    how many queries at once: the memory is that of chunk times M distances

    Of equally near samples the one that comes first is taken. Raises TypeError or ValueError if an argument is not as above, or
    if a vector of length 0 has no angle.
    """
    _check_features(queries, samples, metric, chunk)
    check_count("k", k, most=len(samples), most_is="the number of samples")
    found = [distance.sort(dim=1, stable=True) for distance in _distances(queries, samples, metric, chunk)]
    return Neighbors(
        torch.cat([distance[:, :k] for distance, _ in found]), torch.cat([order[:, :k] for _, order in found])
    )


def shapley_values(
    queries: Tensor,
    query_labels: Tensor,
    samples: Tensor,
    labels: Tensor,
    *,
    k: int = 5,
    metric: Metric = "euclidean",
    chunk: int = 256,
) -> Tensor:
    """What each training sample is worth to the nearest-neighbour classifier, as its Shapley value.

    queries, query_labels  (Q, D) and LongTensor (Q,): on which the classifier is judged
    samples, labels        (M, D) and LongTensor (M,): the players
    k, metric, chunk       as in `nearest`

    Players S are worth the share of right votes among the k nearest of them (fewer, if there are fewer), divided by k, averaged
    over the queries. With the samples in the order of their distance to a query of label y::

        s_M = [y_M = y] min(k, M) / (k M)        s_i = s_(i+1) + ([y_i = y] - [y_(i+1) = y]) / k · min(k, i) / i

    Returns (M,), float64: the mean over the queries. They sum to the worth of all samples.

    Raises TypeError or ValueError if an argument is not as above.

    Jia et al., "Efficient Task-Specific Data Valuation for Nearest Neighbor Algorithms", VLDB 2019.
    """
    _check_features(queries, samples, metric, chunk)
    _check_labels("query_labels", query_labels, queries)
    _check_labels("labels", labels, samples)
    count = len(samples)
    check_count("k", k, most=count, most_is="the number of samples")
    place = torch.arange(1, count, dtype=torch.float64, device=samples.device)
    weight = place.clamp(max=k) / (k * place)
    total = torch.zeros(count, dtype=torch.float64, device=samples.device)
    for part, distance in zip(query_labels.split(chunk), _distances(queries, samples, metric, chunk), strict=True):
        order = distance.sort(dim=1, stable=True).indices
        right = (labels[order] == part[:, None]).double()
        steps = (right[:, :-1] - right[:, 1:]) * weight
        last = right[:, -1:] / count
        values = torch.cat([steps, last], 1).flip(1).cumsum(1).flip(1)
        total.index_add_(0, order.flatten(), values.flatten())
    return total / len(queries)


def retrain_without(
    fit: Callable[[Tensor], Model], samples: int, removed: Sequence[Tensor], query: Tensor, target: Target
) -> Tensor:
    """The score of a query by models that were trained without some of the samples.

    fit      trains a model from scratch on the samples whose indices it is given, a LongTensor (m,), and returns it in
             evaluation mode; it should draw the same random numbers each time
    samples  how many there are
    removed  sets of indices, LongTensors: one training for each; an empty one is the model with all samples
    query    one input (1, …)
    target   which score of the query

    Returns (len(removed),), float64. Raises TypeError or ValueError if an argument is not as above.
    """
    if not callable(fit):
        raise TypeError(f"fit must be a function from indices to a trained model, got {type(fit).__name__}")
    check_count("samples", samples)
    if not isinstance(query, Tensor) or query.dim() < 2 or len(query) != 1:
        raise ValueError(f"query must be one input, (1, …), got {kind(query)}")
    target = check_target(target, 1)
    for number, indices in enumerate(removed):
        if not isinstance(indices, Tensor) or indices.dtype != torch.long or indices.dim() != 1:
            raise TypeError(f"removed[{number}] must be a LongTensor of indices, got {kind(indices)}")
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < samples:
            raise ValueError(f"removed[{number}] must be indices from 0 to {samples - 1}")
        if len(indices.unique()) == samples:
            raise ValueError(f"removed[{number}] must leave at least one sample")
    found = []
    for indices in removed:
        stays = torch.ones(samples, dtype=torch.bool)
        stays[indices.cpu()] = False
        model = fit(stays.nonzero()[:, 0])
        with torch.no_grad():
            found.append(scores(model, query, target).double().cpu())
    return torch.cat(found)


def _distances(queries: Tensor, samples: Tensor, metric: Metric, chunk: int) -> Iterator[Tensor]:
    """Distances (n, M), chunk by chunk."""
    if metric == "cosine":
        queries, samples = (each / each.norm(dim=1, keepdim=True) for each in (queries, samples))
    for part in queries.split(chunk):
        if metric == "cosine":
            yield 1 - part @ samples.T
        elif metric == "euclidean":  # without the shortcut by a matrix product, which loses digits of small distances
            yield torch.cdist(part, samples, compute_mode="donot_use_mm_for_euclid_dist")
        else:
            yield torch.cdist(part, samples, p=1)


def _check_features(queries: Tensor, samples: Tensor, metric: Metric, chunk: int) -> None:
    for name, features in (("queries", queries), ("samples", samples)):
        if not isinstance(features, Tensor) or not features.is_floating_point():
            raise TypeError(f"{name} must be a tensor of a float dtype, got {kind(features)}")
        if features.dim() != 2 or 0 in features.shape:
            raise ValueError(f"{name} must have shape (n, D) and not be empty, got {tuple(features.shape)}")
        check_finite(name, features)
    if (queries.shape[1], queries.dtype, queries.device) != (samples.shape[1], samples.dtype, samples.device):
        raise ValueError(
            f"samples must have the width, dtype and device of queries, {kind(queries)} on {queries.device}, "
            f"got {kind(samples)} on {samples.device}"
        )
    if metric not in get_args(Metric):
        raise ValueError(f"metric must be one of {', '.join(map(repr, get_args(Metric)))}, got {metric!r}")
    if metric == "cosine":
        for name, features in (("queries", queries), ("samples", samples)):
            if empty := (features == 0).all(1).nonzero()[:, 0].tolist():
                raise ValueError(f"{name}: the cosine needs vectors of some length; row {empty[0]} is zero")
    check_count("chunk", chunk)


def _check_labels(name: str, labels: Tensor, features: Tensor) -> None:
    if not isinstance(labels, Tensor) or labels.dtype != torch.long or labels.shape != features.shape[:1]:
        raise TypeError(f"{name} must be a LongTensor of shape {(len(features),)}, got {kind(labels)}")
