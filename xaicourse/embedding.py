"""Maps of many dimensions in two, and how far to trust them (lecture 01; slides "low-dimensional embeddings").

`embed` draws the map: PCA, Isomap or t-SNE, which starts from `neighbor_probabilities`. `clusters` counts what looks like
groups on a map. `trustworthiness`, `continuity` and `stress` say what it does to the distances
that it was drawn from; `purity` and `purity_test` confirm in the original space what a map suggests. The features themselves
come from `features.extract`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .arguments import check_count, check_finite, check_generator, check_positive, kind

__all__ = [
    "Method",
    "Purity",
    "clusters",
    "continuity",
    "embed",
    "neighbor_probabilities",
    "purity",
    "purity_test",
    "stress",
    "trustworthiness",
]

Method = Literal["pca", "isomap", "t-sne"]
Start = Literal["pca", "random"]


@dataclass(frozen=True)
class Purity:
    """How often neighbours share a label, and how often they would if the labels were dealt out at random."""

    value: float  # the mean over all samples
    p: float  # share of the labellings, the given one among them, that are at least as pure
    null_mean: float  # of the purity under permuted labels
    null_spread: float  # its standard deviation
    permutations: int


def embed(
    features: Tensor,
    method: Method = "t-sne",
    *,
    dimensions: int = 2,
    neighbors: int = 10,
    perplexity: float = 30.0,
    start: Start = "pca",
    generator: torch.Generator | None = None,
) -> Tensor:
    """A map of the samples in few dimensions, made by scikit-learn.

    features    (N, D), any float dtype and device
    method      "pca": the directions of largest variance, always the same up to sign (here: fixed);
                "isomap": keeps path lengths in the graph of nearest neighbours (one that falls apart is joined at its gaps);
                "t-sne": keeps who is near to whom
    dimensions  of the map; 1 to 3 for t-SNE
    neighbors   of each sample in the graph, of Isomap alone: 1 to N - 1
    perplexity  effective number of neighbours, of t-SNE alone: at least 1, below N
    start       where t-SNE starts: at the "pca" map, shrunk (Kobak & Berens), or at a "random" one, as in the original paper
    generator   draws the seed of t-SNE and of a random start; None: from torch's global state

    Returns (N, dimensions) on the device and in the dtype of the features.

    Raises TypeError or ValueError if an argument is not as above, or if all samples coincide, before any work.

    Pearson, "On Lines and Planes of Closest Fit", Philosophical Magazine 1901; Tenenbaum et al., "A Global Geometric Framework
    for Nonlinear Dimensionality Reduction", Science 2000; van der Maaten & Hinton, "Visualizing Data using t-SNE", JMLR 2008.
    """
    _check_features("features", features)
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(map(repr, get_args(Method)))}, got {method!r}")
    if start not in get_args(Start):
        raise ValueError(f"start must be 'pca' or 'random', got {start!r}")
    count, width = features.shape
    check_generator(generator)
    if method == "t-sne":
        check_count("dimensions", dimensions, most=3, most_is="what t-SNE is made for")
        check_positive("perplexity", perplexity)
        if not 1 <= perplexity < count:
            raise ValueError(
                f"perplexity must be at least 1 and below the number of samples, {count}, got {perplexity}"
            )
    if method == "isomap":
        check_count("neighbors", neighbors, most=count - 1, most_is="the number of other samples")
        check_count("dimensions", dimensions, most=count - 1, most_is="the number of samples less one")
    if method == "pca" or (method == "t-sne" and start == "pca"):
        check_count("dimensions", dimensions, most=min(count, width), most_is="what the features span at most")

    wide = features.detach().double().cpu()
    extent = (wide.amax(0) - wide.amin(0)).amax().item()
    if extent == 0:  # and t-SNE would take the process down
        raise ValueError("features must not be the same for all samples: there is nothing to map")
    if method == "t-sne" and not 1e-12 < extent < 1e12:  # squares in float32; to t-SNE the scale is nothing
        wide = wide / extent

    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE, Isomap

    x = wide.numpy()
    if method == "pca":
        found = PCA(dimensions, svd_solver="full").fit_transform(x)
    elif method == "isomap":
        with warnings.catch_warnings():  # that the graph was joined, and that sparse matrices were changed for it
            warnings.simplefilter("ignore")
            found = Isomap(  # the other solver starts from NumPy's global random numbers
                n_neighbors=neighbors, n_components=dimensions, eigen_solver="dense"
            ).fit_transform(x)
    else:
        seed = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device if generator else "cpu"))
        found = TSNE(
            dimensions, perplexity=perplexity, init=start, random_state=seed, method="barnes_hut"
        ).fit_transform(x)
    return torch.as_tensor(found).to(features)


def neighbor_probabilities(features: Tensor, perplexity: float = 30.0) -> Tensor:
    """With which probability each sample picks each other one as its neighbour: what t-SNE wants to keep.

    features    (N, D), any float dtype and device
    perplexity  2 to the power of the entropy (in bits) of each row: at least 1, below N - 1

    With distances δ, every sample has its own width σ_i, found by bisection so that each row has the perplexity::

        p_{j|i} = exp(-δ_ij² / 2σ_i²) / Σ_{k≠i} exp(-δ_ik² / 2σ_i²),   p_{i|i} = 0

    Equally near samples cannot be told apart by any width: a row then has the smallest perplexity that there is above the
    wanted one, or as near as a width can bring it.

    Returns (N, N), float64, rows sum to 1. Raises TypeError or ValueError if an argument is not as above.

    Hinton & Roweis, "Stochastic Neighbor Embedding", NeurIPS 2002.
    """
    _check_features("features", features)
    check_positive("perplexity", perplexity)
    count = len(features)
    if not 1 <= perplexity < count - 1:
        raise ValueError(f"perplexity must be at least 1 and below the number of others, {count - 1}, got {perplexity}")
    x = features.detach().double()
    square = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()
    square.fill_diagonal_(math.inf)
    square = square - square.min(1, keepdim=True).values  # changes no probability, and no exponential underflows
    others = square.isfinite()
    scale = torch.where(others, square, 0).sum(1, keepdim=True) / (count - 1)
    square = square / scale.clamp(min=torch.finfo(scale.dtype).tiny)
    low, high = x.new_full((count, 1), -30.0), x.new_full((count, 1), 30.0)  # of log 1 / 2σ², in units of the row
    for _ in range(100):
        middle = (low + high) / 2
        p = torch.softmax(-square * middle.exp(), 1)
        wide = torch.special.entr(p).sum(1, keepdim=True) > math.log(perplexity)
        low, high = torch.where(wide, middle, low), torch.where(wide, high, middle)
    return p


def clusters(points: Tensor, *, gap: float = 4.0) -> Tensor:
    """Groups of points that are apart: single-linkage clusters, cut at hops that are wider than usual.

    points  (N, d), a map or the features themselves
    gap     two points are joined if they are at most this many times as far from each other as points are from their nearest
            neighbour, in the median

    Returns LongTensor (N,), the number of each point's group, from 0 on in the order of the points.

    Raises TypeError or ValueError if an argument is not as above.

    Gower & Ross, "Minimum Spanning Trees and Single Linkage Cluster Analysis", Applied Statistics 1969.
    """
    _check_features("points", points)
    check_positive("gap", gap)
    x = points.detach().double()
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distance.clone().fill_diagonal_(math.inf).min(1).values
    joined = distance <= gap * nearest.median()

    from scipy.sparse.csgraph import connected_components

    _, label = connected_components(joined.cpu().numpy(), directed=False)
    return torch.as_tensor(label, dtype=torch.long, device=points.device)


def trustworthiness(
    features: Tensor, embedding: Tensor, *, k: int = 10, per_point: bool = False, chunk: int = 512
) -> Tensor:
    """Whether neighbours on the map are neighbours: 1 if all are, and less the farther off the false ones are.

    features, embedding  (N, D) and (N, d): row i of both is sample i
    k                    neighbours that are looked at: at least 1, below N / 2
    per_point            a value for each sample, to colour the map by: (N,); their mean is the whole
    chunk                rows at once: the memory is that of chunk times N distances

    With U_i the k nearest of i on the map that are not among its k nearest in the features, and r(i, j) the place of j in the
    order of distance from i in the features::

        T_i = 1 - 2 / (k (2N - 3k - 1)) Σ_{j in U_i} (r(i, j) - k)

    Returns a float64 scalar, or (N,), on the device of the features. A map at random has about 1/2.

    Raises TypeError or ValueError if an argument is not as above.

    Venna & Kaski, "Neighborhood Preservation in Nonlinear Projection Methods", ICANN 2001.
    """
    _check_pair(features, embedding, k, chunk)
    count = len(features)
    found = []
    for true, drawn in zip(_orders(features, chunk), _orders(embedding, chunk), strict=True):
        place = true.new_empty(len(true), count)
        place.scatter_(1, true, torch.arange(1, count, device=true.device).expand_as(true))
        found.append((place.gather(1, drawn[:, :k].to(true.device)) - k).clamp(min=0).sum(1))
    each = 1 - 2 / (k * (2 * count - 3 * k - 1)) * torch.cat(found).double()
    return each if per_point else each.mean()


def continuity(
    features: Tensor, embedding: Tensor, *, k: int = 10, per_point: bool = False, chunk: int = 512
) -> Tensor:
    """Whether neighbours stay neighbours on the map: trustworthiness with the two spaces exchanged.

    Arguments, result and errors as in `trustworthiness`. It falls where the map tears apart what belongs together, as
    trustworthiness falls where the map puts together what does not.

    Venna & Kaski, "Neighborhood Preservation in Nonlinear Projection Methods", ICANN 2001.
    """
    _check_pair(features, embedding, k, chunk)
    return trustworthiness(embedding, features, k=k, per_point=per_point, chunk=chunk).to(features.device)


def stress(features: Tensor, embedding: Tensor, *, chunk: int = 512) -> Tensor:
    """How far the distances on the map are from the true ones, once the map has its best scale: 0 is perfect, 1 the worst.

    features, embedding  (N, D) and (N, d)

    With distances δ in the features and d on the map, over all pairs::

        min over a of sqrt(Σ (δ - a d)² / Σ δ²) = sqrt(1 - (Σ δ d)² / (Σ δ² Σ d²))

    Returns a float64 scalar. Raises TypeError or ValueError if an argument is not as above, or if all samples coincide.

    Kruskal, "Multidimensional Scaling by Optimizing Goodness of Fit to a Nonmetric Hypothesis", Psychometrika 1964.
    """
    _check_pair(features, embedding, None, chunk)
    product = true_square = drawn_square = torch.zeros((), dtype=torch.float64, device=features.device)
    for true, drawn in zip(_distances(features, chunk), _distances(embedding, chunk), strict=True):
        drawn = drawn.to(true.device)
        product = product + (true * drawn).sum()
        true_square, drawn_square = true_square + true.square().sum(), drawn_square + drawn.square().sum()
    for name, square in (("features", true_square), ("embedding", drawn_square)):
        if square == 0:
            raise ValueError(f"{name} must not be the same for all samples: there are no distances")
    return (1 - product.square() / (true_square * drawn_square)).clamp(min=0).sqrt()


def purity(features: Tensor, labels: Tensor, *, k: int = 10, chunk: int = 512) -> Tensor:
    """The share of each sample's k nearest neighbours that have its label.

    features  (N, D)
    labels    LongTensor (N,), at least two of them different
    k         1 to N - 1
    chunk     rows at once

    Returns (N,), float64. Raises TypeError or ValueError if an argument is not as above.
    """
    near = _neighbours_of_labelled(features, labels, k, chunk)
    return (labels[near] == labels[:, None]).double().mean(1)


def purity_test(
    features: Tensor,
    labels: Tensor,
    *,
    k: int = 10,
    permutations: int = 999,
    generator: torch.Generator | None = None,
    chunk: int = 512,
) -> Purity:
    """Whether samples of one label are nearer to each other than chance has it: a permutation test of the mean purity.

    features, labels, k, chunk  as in `purity`; not a map of the data, but the space that a claim is about
    permutations                how many times the labels are dealt out anew

    The p-value is (1 + #{permuted purity >= purity}) / (1 + permutations): it is at most α in at most a share α of the cases
    where labels and features have nothing to do with each other.

    Raises TypeError or ValueError if an argument is not as above.

    Phipson & Smyth, "Permutation P-values Should Never Be Zero", Statistical Applications in Genetics and Molecular Biology
    2010.
    """
    check_count("permutations", permutations, least=2)
    check_generator(generator)
    near = _neighbours_of_labelled(features, labels, k, chunk)
    hits = _hits(labels, near)  # counted in whole numbers, so that equal purities are equal
    device = generator.device if generator else labels.device
    null = torch.stack(
        [
            _hits(labels[torch.randperm(len(labels), generator=generator, device=device).to(labels.device)], near)
            for _ in range(permutations)
        ]
    )
    at_least = int((null >= hits).sum())
    null_purity = null.double() / near.numel()
    return Purity(
        value=hits.item() / near.numel(),
        p=(1 + at_least) / (1 + permutations),
        null_mean=null_purity.mean().item(),
        null_spread=null_purity.std().item(),
        permutations=permutations,
    )


def _hits(labels: Tensor, near: Tensor) -> Tensor:
    return (labels[near] == labels[:, None]).sum()


def _distances(x: Tensor, chunk: int) -> Iterator[Tensor]:
    """The distances of a part of the samples from all, part by part, exact also for small ones."""
    x = x.detach().double()
    for part in x.split(chunk):
        yield torch.cdist(part, x, compute_mode="donot_use_mm_for_euclid_dist")


def _orders(x: Tensor, chunk: int) -> Iterator[Tensor]:
    """For a part of the samples all others, the nearest first, part by part."""
    first = 0
    for distance in _distances(x, chunk):
        rows = torch.arange(len(distance), device=x.device)
        distance[rows, first + rows] = -1  # each sample comes first, and is dropped, also where another lies on it
        yield distance.argsort(dim=1, stable=True)[:, 1:]
        first += len(distance)


def _neighbours_of_labelled(features: Tensor, labels: Tensor, k: int, chunk: int) -> Tensor:
    _check_features("features", features)
    check_count("chunk", chunk)
    if not isinstance(labels, Tensor) or labels.dtype != torch.long or labels.shape != features.shape[:1]:
        raise ValueError(f"labels must be a LongTensor ({len(features)},), one for each sample, got {kind(labels)}")
    if bool((labels == labels[0]).all()):
        raise ValueError(f"labels must be of at least two classes, got {int(labels[0])} for all {len(labels)} samples")
    check_count("k", k, most=len(features) - 1, most_is="the number of other samples")
    return torch.cat([order[:, :k] for order in _orders(features, chunk)]).to(labels.device)


def _check_pair(features: Tensor, embedding: Tensor, k: int | None, chunk: int) -> None:
    _check_features("features", features)
    _check_features("embedding", embedding)
    if len(features) != len(embedding):
        raise ValueError(f"embedding must have a row for each of the {len(features)} samples, got {len(embedding)}")
    check_count("chunk", chunk)
    if k is not None:
        check_count("k", k, most=(len(features) - 1) // 2, most_is=f"below half of the {len(features)} samples")


def _check_features(name: str, values: Tensor) -> None:
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(values).__name__}")
    if not values.is_floating_point() or values.dim() != 2 or values.shape[1] == 0:
        raise ValueError(f"{name} must be vectors, a float Tensor (N, D), got {kind(values)}")
    if len(values) < 3:
        raise ValueError(f"{name} must be of at least 3 samples, got {len(values)}")
    check_finite(name, values)
