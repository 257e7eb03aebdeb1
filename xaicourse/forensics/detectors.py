"""Detectors of counterfeit pictures: a backbone, one logit, and training that blurs and compresses. Lecture 15.

    detector = detectors.train(detectors.build("small"), real, fake, seed=0)
    scores = detectors.logits(detector, pictures)                       # above 0: more likely counterfeit than real
    cut = detectors.threshold(logits_of_real, logits_of_fake)           # on validation pictures, never on the tested ones
    detectors.quality(logits_of_real, logits_of_fake, cut)              # average precision, accuracy on real and on fake

Wang et al. 2020, CNN-generated images are surprisingly easy to spot... for now, CVPR: a network trained on ImageNet, fine-tuned
to tell real pictures from those of one generator, with random blur and JPEG compression, detects other generators' as well.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
import torchvision.transforms.functional as vision
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torchvision.io import decode_image, encode_jpeg

from .. import models
from ..arguments import check_count, check_generator, check_positive, check_weight, kind
from ..progress import bar
from ..scores import check_model
from . import patches

__all__ = [
    "AtChance",
    "NAMES",
    "Detector",
    "Quality",
    "augment",
    "build",
    "check_detects",
    "logits",
    "quality",
    "threshold",
    "train",
]

NAMES = ("small", "efficientnet_lite0", "resnet50")
"""Backbones: five convolutions trained from scratch, and two networks that ImageNet has trained."""

_RATES = {"small": 1e-3, "efficientnet_lite0": 3e-4, "resnet50": 3e-4}
_log = logging.getLogger(__name__)


class Detector(nn.Module):
    """Pictures (N, 3, H, W) in [0, 1] to the log odds that they are counterfeit, (N, 1).

    What the backbone sees is 2 x - 1, between -1 and 1.
    """

    def __init__(self, name: str, backbone: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        """Log odds of "counterfeit"."""
        return self.backbone(2 * x - 1)


def _block(channels_in: int, channels_out: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out), nn.ReLU()]


def _small() -> nn.Module:
    blocks = [*_block(3, 32), *_block(32, 32, 2), *_block(32, 64), *_block(64, 64, 2), *_block(64, 96)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 1))


def build(name: str = "small", *, pretrained: bool = True, seed: int = 0) -> Detector:
    """A detector that has not seen a counterfeit yet.

    name        one of ``NAMES``
    pretrained  start from ImageNet's weights, where the network has any; "small" has none
    seed        of the weights that are random: all of them, or the last layer's

    ValueError for another name; ``models.WeightsUnavailable`` where weights cannot be reached, which says what to do.
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if name == "small":
            return Detector(name, _small()).eval()
        network = models.load(name, pretrained=pretrained)
        head = "classifier" if name == "efficientnet_lite0" else "fc"
        setattr(network, head, nn.Linear(getattr(network, head).in_features, 1))
        return Detector(name, network).eval()


def augment(
    pictures: Tensor,
    *,
    blur: float = 0.5,
    jpeg: float = 0.5,
    sigma: float = 3.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Blur and compress some of the pictures, so that a detector cannot live on what every copy loses.

    pictures  (N, 3, H, W) in [0, 1]
    blur      the probability of a Gaussian blur, whose sigma is drawn from 0 to ``sigma`` pixels
    jpeg      the probability of JPEG, whose quality is drawn from 30 to 100; it comes after the blur

    ``generator`` None: by PyTorch's own random numbers. Returns new pictures of the same shape. ValueError for a probability
    above 1. (Wang et al. 2020, with both at one half.)
    """
    for name, probability in (("blur", blur), ("jpeg", jpeg)):
        check_weight(name, probability)
        if probability > 1:
            raise ValueError(f"{name} must be a probability, from 0 to 1, got {probability}")
    check_positive("sigma", sigma)
    check_generator(generator)
    count, sides = len(pictures), min(pictures.shape[-2:])
    blurred, compressed = torch.rand(2, count, generator=generator) < torch.tensor([[blur], [jpeg]])
    sigmas = (sigma * torch.rand(count, generator=generator)).tolist()
    qualities = torch.randint(30, 101, (count,), generator=generator).tolist()
    out = pictures.clone()
    for at in range(count):
        if blurred[at] and sigmas[at] > 0.1:
            radius = min(round(3 * sigmas[at]), sides - 1)
            out[at] = vision.gaussian_blur(out[at], [2 * radius + 1] * 2, sigmas[at])
        if compressed[at]:
            file = encode_jpeg(out[at].mul(255).round().byte().cpu(), qualities[at])
            out[at] = decode_image(file).to(out).div(255)
    return out


def train(
    detector: Detector,
    real: patches.Pictures,
    fake: patches.Pictures,
    *,
    seed: int = 0,
    steps: int = 500,
    rate: float | None = None,
    gray: float = 0.0,
    gray_real: float = 0.0,
    sigma: float = 3.0,
    progress: bool = False,
) -> Detector:
    """Train a detector, in place, with binary cross-entropy, Adam, and blur and JPEG for half of the pictures.

    real, fake  pictures (N, 3, H, W) in [0, 1], or data sets of such; each step draws 32 of each
    rate        the step size; None: 1e-3 from scratch, 3e-4 for a network that ImageNet has trained
    gray        the share of counterfeits that lose their colour first (lecture 15: one half)
    gray_real   the same for real pictures
    sigma       the strongest blur, in pixels

    Returns the detector in evaluation mode. Random numbers outside are left as they were.
    """
    _check_pictures("real", real)
    _check_pictures("fake", fake)
    check_count("steps", steps)
    for name, share in (("gray", gray), ("gray_real", gray_real)):
        check_weight(name, share)
        if share > 1:
            raise ValueError(f"{name} must be a share, from 0 to 1, got {share}")
    check_positive("sigma", sigma)
    rate = _RATES[detector.name] if rate is None else rate
    check_positive("rate", rate)
    generator = torch.Generator().manual_seed(seed)
    device = next(detector.parameters()).device
    colourless = [torch.rand(len(p), generator=generator) < share for p, share in ((real, gray_real), (fake, gray))]
    optimiser = torch.optim.Adam(detector.parameters(), rate)
    truth = torch.cat([torch.zeros(32, 1), torch.ones(32, 1)]).to(device)
    detector.train().to(memory_format=torch.channels_last)
    try:
        with bar(steps, "steps", progress) as advance, torch.random.fork_rng():
            torch.manual_seed(seed)  # of dropout
            for _ in range(steps):
                drawn = [_draw(*each, generator) for each in zip((real, fake), colourless, strict=True)]
                x = augment(torch.cat(drawn), sigma=sigma, generator=generator)
                x = x.to(device, memory_format=torch.channels_last)
                loss = F.binary_cross_entropy_with_logits(detector(x), truth)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                advance()
    finally:
        detector.eval().to(memory_format=torch.contiguous_format)
    _log.info("%s: loss %.3f", detector.name, loss.item())
    return detector


def _draw(pictures: patches.Pictures, colourless: Tensor, generator: torch.Generator) -> Tensor:
    at = torch.randint(len(pictures), (32,), generator=generator)
    x = patches.take(pictures, at.tolist())
    return torch.where(colourless[at][:, None, None, None], patches.grayscale(x), x)


def logits(detector: nn.Module, pictures: patches.Pictures, *, gray: bool = False, chunk: int = 128) -> Tensor:
    """Log odds of "counterfeit" for every picture: float32 (N,), on the CPU.

    pictures  (N, 3, H, W) in [0, 1], or a data set, which is read chunk by chunk
    gray      take their colour first

    Where torch.distributed is initialised, the processes share the chunks out, and all return all logits.
    """
    check_model(detector, "detector")
    check_count("chunk", chunk)
    _check_pictures("pictures", pictures)
    device = next(detector.parameters()).device
    shared = distributed.is_available() and distributed.is_initialized()
    here, processes = (distributed.get_rank(), distributed.get_world_size()) if shared else (0, 1)
    found = torch.zeros(len(pictures))
    with torch.no_grad():
        for start in range(here * chunk, len(pictures), processes * chunk):
            x = patches.take(pictures, range(start, min(start + chunk, len(pictures)))).to(device)
            found[start : start + len(x)] = detector(patches.grayscale(x) if gray else x)[:, 0].cpu()
    if shared:  # every entry comes from one process, and is 0 in the others
        on = found.to(device) if distributed.get_backend() == "nccl" else found
        distributed.all_reduce(on)
        found = on.cpu()
    return found


def threshold(real: Tensor, fake: Tensor) -> float:
    """The logit from which on a picture is called counterfeit: it maximises the mean of both accuracies.

    real, fake  logits (N,) of validation pictures. Chosen on tested ones, accuracies would flatter.
    """
    from sklearn.metrics import roc_curve  # with sklearn only for those who measure

    truth = torch.cat([torch.zeros(len(real)), torch.ones(len(fake))])
    false_alarms, hits, cuts = roc_curve(truth.numpy(), torch.cat([real, fake]).double().numpy())
    best = int((hits - false_alarms).argmax())
    if best == 0:  # no cut beats calling everything real
        return float(cuts[1] + 1)
    below = torch.cat([real, fake]).double()
    below = below[below < cuts[best]]
    return float((cuts[best] + below.max().item()) / 2)  # half way to the next picture, not on one


@dataclass(frozen=True)
class Quality:
    """How well a detector does on one generator.

    precision  average precision (AP): the area under precision against recall; one half is chance where classes are even
    real       share of real pictures called real
    fake       share of counterfeits called counterfeit
    """

    precision: float
    real: float
    fake: float


def quality(real: Tensor, fake: Tensor, cut: float) -> Quality:
    """Average precision (scikit-learn's) and both accuracies at a threshold, from logits (N,) of real and of fake."""
    from sklearn.metrics import average_precision_score

    truth = torch.cat([torch.zeros(len(real)), torch.ones(len(fake))]).numpy()
    precision = float(average_precision_score(truth, torch.cat([real, fake]).double().numpy()))
    below, above = real.double() < cut, fake.double() >= cut  # in float32 the cut itself would be rounded
    return Quality(precision, below.float().mean().item(), above.float().mean().item())


class AtChance(ValueError):
    """The detector does not tell counterfeits from real pictures, so that there is nothing to explain."""


def check_detects(real: Tensor, fake: Tensor, *, level: float = 0.01) -> None:
    """``AtChance``, a ValueError, if these logits do not tell counterfeits from real pictures (Mann-Whitney, one-sided)."""
    from scipy.stats import mannwhitneyu

    test = mannwhitneyu(fake.double().numpy(), real.double().numpy(), alternative="greater")
    if not test.pvalue < level:
        area = test.statistic / (len(real) * len(fake))
        raise AtChance(
            f"detector must tell counterfeits from real pictures for its channels to be ranked: on these {len(real)} real "
            f"and {len(fake)} counterfeit ones it is at chance (area under the ROC curve {area:.2f}, p = {test.pvalue:.2g}; "
            "with few pictures p cannot be small), and a ranking would explain what it does not know"
        )


def _check_pictures(name: str, pictures: patches.Pictures) -> None:
    if not isinstance(pictures, Tensor):
        if not (hasattr(pictures, "__getitem__") and hasattr(pictures, "__len__")):
            raise TypeError(f"{name} must be a float tensor (N, 3, H, W) in [0, 1] or a data set, got {kind(pictures)}")
        if not len(pictures):
            raise ValueError(f"{name} must hold at least one picture, got none")
        return
    if not pictures.is_floating_point():
        raise TypeError(f"{name} must be a float tensor (N, 3, H, W) in [0, 1], got {kind(pictures)}")
    if pictures.dim() != 4 or pictures.shape[1] != 3 or not len(pictures):
        raise ValueError(f"{name} must have shape (N, 3, H, W), N at least 1, got {tuple(pictures.shape)}")
    low, high = pictures.aminmax()
    if not (low >= 0 and high <= 1):  # also where a value is NaN
        raise ValueError(f"{name} must lie in [0, 1], got values from {low:.3g} to {high:.3g}")
