"""LIME: a linear model fitted to the score around one input (lecture 09, claim G8; slide "Linearizations").

Where a Taylor expansion takes the slope at the input itself, LIME takes the slope of a line through many scores in its
neighbourhood: pieces of the input, segments of an image or features of a table, are taken away at random, the model is asked
each time, and a weighted linear regression says what each piece adds to the score.

- `lime` gives the relevance, as every attribution does
- `fit` gives all that the regression knows: coefficients, how well the line fits, the samples and their weights
- `spread` fits again and again with other samples: how much of an explanation is luck?
- `slic` makes segments of an image

The regression is done in float64 on the CPU; the model runs wherever it is.
"""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from .arguments import check_count, check_finite, check_generator, check_positive, check_switch, kind
from .progress import bar
from .removal import Filling, Removal, prepare
from .scores import Model, Target, check_inputs, check_model, check_target, unchanged, vary, wide

__all__ = ["Fit", "Spread", "fit", "lime", "slic", "spread"]

Penalty = Literal["ridge", "lasso"]


@dataclass(frozen=True)
class Fit:
    """The line that was fitted to the scores of each item, and how well it fits; float64, all on the CPU.

    coefficients      what each segment adds to the score where it is there, (N, S); the column is the segment's number, and a
                      segment that an item has not got adds 0
    intercept         the line where every segment is gone, (N,)
    r2                share of the scores' weighted variance that the line explains, (N,): 1 - sum w (y - line)^2 /
                      sum w (y - mean)^2; NaN where the scores are constant. It is taken on the samples of the fit itself,
                      and means little unless there are many more of them than segments
    local_prediction  the line at the input itself, intercept + sum of coefficients, (N,)
    score             what the model says there, (N,)
    segments          the segment of each place, LongTensor (N, …)
    samples           which segments are there in each sample, BoolTensor (n, S); the first is the whole input
    weights           how much each sample counts, (N, n)
    scores            what the model says of it, (N, n)
    """

    coefficients: Tensor
    intercept: Tensor
    r2: Tensor
    local_prediction: Tensor
    score: Tensor
    segments: Tensor
    samples: Tensor
    weights: Tensor
    scores: Tensor

    @property
    def coefficient_map(self) -> Tensor:
        """At each place its segment's coefficient, (N, …): the picture that papers on LIME show."""
        return _at_places(self.coefficients, self.segments)


@dataclass(frozen=True)
class Spread:
    """What came out when the same line was fitted to other random samples; float64, all on the CPU.

    coefficients  of each run, (runs, N, S)
    r2            of each run, (runs, N)
    segments      the segment of each place, LongTensor (N, …), the same in all runs
    """

    coefficients: Tensor
    r2: Tensor
    segments: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean coefficients over the runs, (N, S)."""
        return self.coefficients.mean(0)

    @property
    def standard_deviations(self) -> Tensor:
        """Standard deviations of the coefficients over the runs, (N, S): those of one explanation, not of the mean."""
        return self.coefficients.std(0)

    @property
    def rank_correlation(self) -> Tensor:
        """Spearman's rank correlation of the coefficients of two runs, (N,): the mean over all pairs of runs.

        NaN where all coefficients of a run are equal.
        """
        found = []
        for item, ids in enumerate(map(_ids, self.segments)):
            ranks = _ranks(self.coefficients[:, item, ids])
            found.append(_mean_of_pairs(torch.corrcoef(ranks)))
        return torch.stack(found)

    def jaccard(self, top: int = 5) -> Tensor:
        """Which segments come out as the ``top`` most important, by |coefficient|: do two runs name the same? (N,)

        |A and B| / |A or B| of the sets A, B that two runs name, the mean over all pairs of runs: 1 where all name the same.
        Raises TypeError or ValueError unless ``top`` is from 1 to the number of segments of every item.
        """
        fewest = min(len(_ids(segments)) for segments in self.segments)
        check_count("top", top, most=fewest, most_is="the number of segments")
        found = []
        for item, ids in enumerate(map(_ids, self.segments)):
            size = self.coefficients[:, item, ids].abs()
            named = torch.zeros_like(size).scatter_(1, size.argsort(dim=1, descending=True, stable=True)[:, :top], 1.0)
            both = named @ named.T
            found.append(_mean_of_pairs(both / (2 * top - both)))
        return torch.stack(found)


# ------------------------------------------------------------------------------------------------------------
# Explaining
# ------------------------------------------------------------------------------------------------------------


def lime(
    model: Model,
    inputs: Tensor,
    target: Target,
    *,
    segments: Tensor | None = None,
    samples: int | Tensor = 1000,
    removal: Removal | None = None,
    penalty: Penalty = "ridge",
    alpha: float | None = None,
    kernel_width: float = 0.25,
    generator: torch.Generator | None = None,
    chunk: int = 32,
    progress: bool = False,
) -> Tensor:
    """Explain the score by a line through the scores of inputs of which segments are missing.

    model         an nn.Module in evaluation mode, or a function of tensors; it is not changed
    inputs        images (N, C, H, W), tables (N, D), or anything (N, C, …), any float dtype and device
    target        which score to explain: a class index, one for each item (LongTensor (N,)), or a function from the outputs of
                  all N items to scores (N,). The paper explains probabilities: ``target=lambda y: y.softmax(1)[:, 3]``
    segments      the segment of each place, numbered from 0: LongTensor (H, W), the same for all items, or (N, H, W); for
                  tables (D,) or (N, D), for inputs (N, C, …) without the C. At least two for each item. None is
                  ``slic(inputs)`` for images, and for tables each feature by itself
    samples       how many samples the line is fitted to, at least 2, the input itself being the first: in the others each
                  segment is there with probability 1/2, drawn for all items alike, so that a batch gives what its items
                  give. Or the samples themselves, BoolTensor (n, S) for segments numbered up to S - 1; the input is put
                  before them
    removal       what takes the place of missing segments, one of ``xaicourse.removal``. None: the mean of each channel over
                  the segment, the mean colour; a segment of one colour then has nothing that could go. Tables need a
                  removal, since the mean of a single feature is the feature itself
    penalty       "ridge": sum w (y - line)^2 + alpha sum c^2; "lasso": sum w (y - line)^2 / (2 sum w) + alpha sum |c|, with
                  coefficients of exactly 0. The intercept is free in both
    alpha         weight of the penalty, in ridge 0 or above (0 is least squares, and needs more samples than segments), in
                  lasso above 0. None is 1 in ridge and 0.01 in lasso. Ridge adds up over the samples: the same alpha weighs
                  less where there are more
    kernel_width  how fast the weight of a sample falls with its distance from the input; above 0, and not so small that the
                  input alone has a weight
    generator     where the samples come from; None is torch's global one
    chunk         how many inputs the model sees at once
    progress      show a progress bar of the inputs that the model has seen, where tqdm is installed: 1000 samples of a
                  photograph can take a minute

    Returns relevance, shaped like the inputs. Each element, of a pixel each channel, gets **its part of the coefficient**:
    c_s / (elements of segment s). So the relevance of a segment sums to its coefficient, and all of it to the line at the
    input less the intercept; sums over a region thus mean the same as in other attributions, and compare with them. The
    price: of two segments that add the same, the smaller is drawn more strongly. LIME's own pictures, and lecture 09, give
    each pixel the *whole* coefficient, which counts a segment as often as it has pixels: that is
    ``fit(...).coefficient_map``.

    With z in {0, 1}^S the segments that are there, S of them in all, and y(z) the score: line(z) = b + sum_s c_s z_s,
    w(z) = exp(-d(z)^2 / (2 kernel_width^2)), d(z) = 1 - sqrt(|z| / S), the cosine distance of z from (1, …, 1).

    Raises ValueError or TypeError if an argument is not as above, if there are too few samples for the line, or if a NaN or
    an infinity appears. Warns (RuntimeWarning) if there are fewer samples than the line has numbers to fit, one for each
    segment and the intercept: only the penalty then keeps it from going through every one of them.

    Ribeiro et al., "Why Should I Trust You? Explaining the Predictions of Any Classifier", KDD 2016.
    """
    found = fit(
        model, inputs, target,
        segments=segments, samples=samples, removal=removal, penalty=penalty, alpha=alpha, kernel_width=kernel_width,
        generator=generator, chunk=chunk, progress=progress,
    )  # fmt: skip
    channels = inputs.shape[1] if inputs.dim() > 2 else 1
    places = torch.stack([segment.flatten().bincount(minlength=len(found.samples[0])) for segment in found.segments])
    share = _at_places(found.coefficients / (channels * places).clamp(min=1), found.segments)
    relevance = _over_channels(share, inputs).to(inputs).expand(inputs.shape).contiguous()
    check_finite("the relevance", relevance)
    return relevance


def fit(
    model: Model,
    inputs: Tensor,
    target: Target,
    *,
    segments: Tensor | None = None,
    samples: int | Tensor = 1000,
    removal: Removal | None = None,
    penalty: Penalty = "ridge",
    alpha: float | None = None,
    kernel_width: float = 0.25,
    generator: torch.Generator | None = None,
    chunk: int = 32,
    progress: bool = False,
) -> Fit:
    """Fit LIME's line and report all of it, as a `Fit`; arguments and errors are those of `lime`."""
    if not isinstance(samples, Tensor):
        check_count("samples", samples, least=2)
    target, segments, alpha = _checked(
        model, inputs, target, segments, removal, penalty, alpha, kernel_width, generator, chunk, progress
    )
    count = int(segments.max()) + 1
    if isinstance(samples, Tensor):
        _check_samples(samples, count)
        drawn = samples.cpu()
    else:
        drawn = _draw(samples - 1, count, generator)
    present = torch.cat([torch.ones(1, count, dtype=torch.bool), drawn])
    _check_enough(present, segments, alpha)
    with unchanged(model):
        scores = _scores(model, inputs.detach(), target, segments, present, removal, chunk, progress)
    return _fit(scores, segments.cpu(), present, penalty, alpha, kernel_width)


def spread(
    model: Model,
    inputs: Tensor,
    target: Target,
    *,
    runs: int = 10,
    segments: Tensor | None = None,
    samples: int = 1000,
    removal: Removal | None = None,
    penalty: Penalty = "ridge",
    alpha: float | None = None,
    kernel_width: float = 0.25,
    generator: torch.Generator | None = None,
    chunk: int = 32,
    progress: bool = False,
) -> Spread:
    """Fit LIME's line several times, each time to new samples: an explanation that changes with them is no explanation.

    runs       how many times, at least 2
    samples    how many in each run, at least 2
    generator  where the samples of all runs come from, one run after the other; None is torch's global one

    All others as in `lime`; the segments stay the same in all runs. Returns a `Spread`.
    """
    check_count("runs", runs, least=2)
    check_count("samples", samples, least=2)
    if segments is None:
        check_inputs(inputs)
        segments = _default_segments(inputs)
    fits = [
        fit(
            model, inputs, target,
            segments=segments, samples=samples, removal=removal, penalty=penalty, alpha=alpha, kernel_width=kernel_width,
            generator=generator, chunk=chunk, progress=progress,
        )
        for _ in range(runs)
    ]  # fmt: skip
    coefficients, r2 = torch.stack([each.coefficients for each in fits]), torch.stack([each.r2 for each in fits])
    return Spread(coefficients, r2, fits[0].segments)


def slic(inputs: Tensor, *, segments: int = 50, compactness: float = 10.0, sigma: float = 0.0) -> Tensor:
    """Cut each image into segments of similar colour.

    inputs       images (N, C, H, W), any float dtype and device; scaled to [0, 1] here, each image by its own extremes
    segments     about how many for each image; there can be fewer or more
    compactness  how much nearness counts beside colour: high values give squares. Colours of three channels are taken as RGB
                 and compared in CIELAB, whose units go to about 100, others as they are, from 0 to 1
    sigma        width of the Gaussian that blurs the image beforehand, in pixels; 0 for none

    Returns the segment of each pixel, numbered from 0, LongTensor (N, H, W), the same at every call.

    Raises ValueError or TypeError if an argument is not as above.

    Achanta et al., "SLIC Superpixels Compared to State-of-the-Art Superpixel Methods", IEEE TPAMI 34(11), 2012; the
    implementation is scikit-image's.
    """
    from skimage.segmentation import slic as superpixels

    check_inputs(inputs, images=True)
    check_count("segments", segments)
    check_positive("compactness", compactness)
    if sigma != 0:
        check_positive("sigma", sigma)
    found = []
    for image in inputs.detach().double().cpu().permute(0, 2, 3, 1):
        cut = superpixels(image.numpy(), segments, compactness, sigma=sigma, start_label=0, channel_axis=-1)
        found.append(torch.from_numpy(cut).unique(return_inverse=True)[1])
    return torch.stack(found).to(inputs.device)


# ------------------------------------------------------------------------------------------------------------
# Samples and their scores
# ------------------------------------------------------------------------------------------------------------


def _draw(samples: int, count: int, generator: torch.Generator | None) -> Tensor:
    """Random samples (samples, count), drawn segment by segment: further segments leave those before them as they are."""
    device = generator.device if generator is not None else None
    columns = [torch.randint(2, (samples,), generator=generator, device=device).bool().cpu() for _ in range(count)]
    return torch.stack(columns, 1)


def _scores(
    model: Model,
    inputs: Tensor,
    target: Target,
    segments: Tensor,
    present: Tensor,
    removal: Removal | None,
    chunk: int,
    progress: bool,
) -> Tensor:
    """The score of every item in every sample, (N, n), in float64 on the CPU."""
    missing = ~present.to(inputs.device)
    remove = prepare(Filling(partial(_mean_colours, segments)) if removal is None else removal, inputs)

    def make(sample: Tensor, item: Tensor) -> Tensor:
        removed = missing[sample].gather(1, segments[item].flatten(1)).view(-1, *segments.shape[1:])
        return remove(item, _over_channels(removed, inputs))

    asked = vary(model, make, target, items=len(inputs), variants=len(present), chunk=chunk, device=inputs.device)
    found = []
    with bar(len(present) * len(inputs), "inputs", progress) as advance:
        for _, _, score in asked:
            found.append(score)
            advance(len(score))
    return torch.cat(found).view(len(present), len(inputs)).T.cpu().double()


def _mean_colours(segments: Tensor, inputs: Tensor) -> Tensor:
    """Each channel's mean over the segment of each place, shaped like the inputs."""
    values = wide(inputs).flatten(2)
    index = segments.flatten(1)[:, None].expand(values.shape)
    sums = values.new_zeros(*values.shape[:2], int(segments.max()) + 1)
    counts = sums.scatter_add(2, index, torch.ones_like(values)).clamp(min=1)
    return (sums.scatter_add(2, index, values) / counts).gather(2, index).view_as(inputs).to(inputs.dtype)


def _over_channels(places: Tensor, inputs: Tensor) -> Tensor:
    """Values at places (n, …) with an axis for the channels, if the inputs have channels."""
    return places.unsqueeze(1) if inputs.dim() > 2 else places


def _at_places(values: Tensor, segments: Tensor) -> Tensor:
    """Each place gets the value of its segment: (N, S) and (N, …) -> (N, …)."""
    return values.gather(1, segments.flatten(1)).view(segments.shape)


# ------------------------------------------------------------------------------------------------------------
# The line
# ------------------------------------------------------------------------------------------------------------


def _fit(scores: Tensor, segments: Tensor, present: Tensor, penalty: Penalty, alpha: float, kernel_width: float) -> Fit:
    coefficients = torch.zeros(len(scores), present.shape[1], dtype=torch.float64)
    intercept, r2, weights = torch.empty_like(scores[:, 0]), torch.empty_like(scores[:, 0]), torch.empty_like(scores)
    for item, y in enumerate(scores):
        ids = _ids(segments[item])
        z = present[:, ids].double()
        weights[item] = w = torch.exp(-0.5 * ((1 - (z.sum(1) / len(ids)).sqrt()) / kernel_width) ** 2)
        _check_weights(w, z, kernel_width)
        c, b = _ridge(z, y, w, alpha) if penalty == "ridge" else _lasso(z, y, w, alpha)
        coefficients[item, ids], intercept[item] = c, b
        residual, centred = y - b - z @ c, y - (w @ y) / w.sum()
        r2[item] = 1 - (w @ residual**2) / (w @ centred**2) if y.min() < y.max() else math.nan
    check_finite("the coefficients", coefficients)
    at_input = intercept + coefficients.sum(1)
    return Fit(coefficients, intercept, r2, at_input, scores[:, 0], segments, present, weights, scores)


def _ridge(z: Tensor, y: Tensor, w: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """The coefficients and the intercept that minimise sum w (y - b - z c)^2 + alpha sum c^2."""
    middle, height = (w @ z) / w.sum(), (w @ y) / w.sum()  # the best line goes through the weighted mean
    root = w.sqrt()[:, None]
    a = root * (z - middle)
    if alpha == 0 and torch.linalg.matrix_rank(a) < a.shape[1]:
        raise ValueError("samples do not determine the coefficients; take more of them, or an alpha above 0")
    c = torch.linalg.solve(a.T @ a + alpha * torch.eye(a.shape[1], dtype=a.dtype), a.T @ (root[:, 0] * (y - height)))
    return c, height - middle @ c


def _lasso(z: Tensor, y: Tensor, w: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """The coefficients and the intercept that minimise sum w (y - b - z c)^2 / (2 sum w) + alpha sum |c|."""
    from sklearn.linear_model import Lasso

    line = Lasso(alpha=alpha, tol=1e-10, max_iter=100_000).fit(z.numpy(), y.numpy(), sample_weight=w.numpy())
    return torch.from_numpy(line.coef_), torch.tensor(float(line.intercept_), dtype=torch.float64)


def _ids(segments: Tensor) -> Tensor:
    """The numbers of the segments of one item, in order."""
    return segments.unique()


def _ranks(values: Tensor) -> Tensor:
    """Rank of each value in its row, from 0; equal values share the mean of their ranks."""
    one, other = values[:, :, None], values[:, None, :]
    return (one > other).double().sum(2) + ((one == other).double().sum(2) - 1) / 2


def _mean_of_pairs(table: Tensor) -> Tensor:
    """The mean of a symmetric table (runs, runs) over all pairs of different runs."""
    first, second = zip(*itertools.combinations(range(len(table)), 2), strict=True)
    return table[list(first), list(second)].mean()


# ------------------------------------------------------------------------------------------------------------
# Checks
# ------------------------------------------------------------------------------------------------------------


def _checked(
    model: Model,
    inputs: Tensor,
    target: Target,
    segments: Tensor | None,
    removal: Removal | None,
    penalty: Penalty,
    alpha: float | None,
    kernel_width: float,
    generator: torch.Generator | None,
    chunk: int,
    progress: bool,
) -> tuple[Target, Tensor, float]:
    """Target, segments (N, …) and alpha, checked."""
    check_model(model)
    check_inputs(inputs)
    target = check_target(target, len(inputs))
    if removal is None and inputs.dim() == 2:
        raise ValueError(
            "removal must be given for tables: the mean of a single feature is the feature itself, so that nothing would go"
        )
    if removal is not None and not callable(removal):
        raise TypeError(f"removal must be a function of inputs and removed places, got {type(removal).__name__}")
    if penalty not in ("ridge", "lasso"):
        raise ValueError(f'penalty must be "ridge" or "lasso", got {penalty!r}')
    if alpha is None:
        alpha = 1.0 if penalty == "ridge" else 0.01
    elif isinstance(alpha, bool) or alpha != 0 or penalty == "lasso":
        check_positive("alpha", alpha)
    check_positive("kernel_width", kernel_width)
    check_generator(generator)
    check_count("chunk", chunk)
    check_switch("progress", progress)
    return target, _default_segments(inputs) if segments is None else _check_segments(segments, inputs), float(alpha)


def _default_segments(inputs: Tensor) -> Tensor:
    if inputs.dim() == 2:
        return _check_segments(torch.arange(inputs.shape[1]), inputs)
    if inputs.dim() == 4:
        return _check_segments(slic(inputs), inputs)
    raise ValueError(f"segments must be given for inputs of shape {tuple(inputs.shape)}, which are no images")


def _check_segments(segments: Tensor, inputs: Tensor) -> Tensor:
    """The segments of each item, (N, …), on the device of the inputs."""
    places = inputs.shape[2:] if inputs.dim() > 2 else inputs.shape[1:]
    shapes = tuple(places), (len(inputs), *places)
    if not isinstance(segments, Tensor) or segments.dtype != torch.long or segments.shape not in shapes:
        raise ValueError(f"segments must be a LongTensor of shape {shapes[0]} or {shapes[1]}, got {kind(segments)}")
    low, high = int(segments.min()), int(segments.max())
    if low < 0 or high >= places.numel():
        raise ValueError(
            f"segments must be numbered from 0 to at most {places.numel() - 1}, one below the number of places, got "
            f"{low if low < 0 else high}"
        )
    segments = segments.to(inputs.device).expand(len(inputs), *places)
    if any(len(_ids(each)) < 2 for each in segments):
        raise ValueError(
            "segments must be at least two in each item, got one; slic needs contours, or a higher compactness"
        )
    return segments


def _check_samples(samples: Tensor, count: int) -> None:
    if samples.dtype != torch.bool or samples.dim() != 2 or samples.shape[1] != count or len(samples) == 0:
        raise ValueError(
            f"samples must be an int, or a BoolTensor (n, {count}) with a column for each segment, got {kind(samples)}"
        )


def _check_enough(present: Tensor, segments: Tensor, alpha: float) -> None:
    most = max(len(_ids(each)) for each in segments)
    if alpha == 0 and len(present) <= most:
        raise ValueError(f"samples must be above the number of segments, {most}, where alpha is 0, got {len(present)}")
    if len(present) <= most:
        warnings.warn(
            f"LIME's line has {most + 1} numbers to fit, one for each of {most} segments and the intercept, and {len(present)} "
            "samples to fit them to: only the penalty decides between the many lines that would go through all of them, and r2 "
            "means nothing; take several times as many samples",
            RuntimeWarning,
            stacklevel=3,
        )


def _check_weights(weights: Tensor, present: Tensor, kernel_width: float) -> None:
    """ValueError if samples lack segments, but all that do count for nothing beside the input."""
    lacking = ~present.bool().all(1)
    if lacking.any() and weights[lacking].sum() < 1e-12:
        raise ValueError(
            f"kernel_width must be larger: at {kernel_width:.4g} all samples but the input have weights of nearly 0, so that "
            "there is nothing to fit a line to"
        )
