"""One network of each torchvision family, unmodified: explained, accounted for, and left as it was."""

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import efficientnet

from xaicourse import lrp

from .networks import agree, balanced, calibrated, everywhere, gradient_x_input, photographs, same, snapshot

LRP0 = everywhere(lrp.Epsilon(0))


def small(name: str, **settings) -> nn.Module:
    if name in ("googlenet", "inception_v3"):
        settings |= {"aux_logits": False, "init_weights": False}
    return torchvision.models.get_model(name, weights=None, num_classes=10, **settings)


BUILDERS = {
    "alexnet": lambda: narrowed(small("alexnet")),
    "vgg": lambda: narrowed(
        torchvision.models.VGG(
            torchvision.models.vgg.make_layers([16, "M", 32, "M", 64, 64, "M", 128, "M", 512, "M"]), num_classes=10
        )
    ),
    "resnet18": lambda: small("resnet18"),
    "resnext": lambda: torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=10, groups=8, width_per_group=4
    ),
    "wide_resnet": lambda: torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=10, width_per_group=128
    ),
    "squeezenet1_1": lambda: small("squeezenet1_1"),
    "densenet": lambda: torchvision.models.DenseNet(8, (2, 3, 2, 2), 16, num_classes=10),
    "googlenet": lambda: small("googlenet"),
    "inception_v3": lambda: small("inception_v3"),
    "mnasnet0_5": lambda: small("mnasnet0_5"),
    "shufflenet_v2_x0_5": lambda: small("shufflenet_v2_x0_5"),
    "regnet_x_400mf": lambda: small("regnet_x_400mf"),
    "regnet_y_400mf": lambda: small("regnet_y_400mf"),
    "mobilenet_v2": lambda: small("mobilenet_v2"),
    "mobilenet_v3_small": lambda: small("mobilenet_v3_small"),
    "efficientnet_b0": lambda: small("efficientnet_b0"),
    "efficientnet_v2": lambda: torchvision.models.EfficientNet(
        [
            efficientnet.FusedMBConvConfig(1, 3, 1, 24, 24, 1),
            efficientnet.FusedMBConvConfig(4, 3, 2, 24, 32, 1),
            efficientnet.MBConvConfig(4, 3, 2, 32, 48, 2),
        ],
        dropout=0.1, num_classes=10, last_channel=64,
    ),
    "convnext": lambda: torchvision.models.ConvNeXt(
        [torchvision.models.convnext.CNBlockConfig(*c) for c in ((16, 32, 1), (32, 48, 2), (48, None, 1))], num_classes=10
    ),
    "vit": lambda: torchvision.models.VisionTransformer(64, 16, 3, 4, 32, 64, num_classes=10),
    "swin": lambda: torchvision.models.SwinTransformer([4, 4], 24, [2, 2, 2], [2, 4, 4], [4, 4], num_classes=10),
    "swin_v2": lambda: torchvision.models.SwinTransformer(
        [4, 4], 24, [2, 2, 2], [2, 4, 4], [4, 4], num_classes=10,
        block=torchvision.models.swin_transformer.SwinTransformerBlockV2,
        downsample_layer=torchvision.models.swin_transformer.PatchMergingV2,
    ),
    "maxvit": lambda: torchvision.models.MaxVit(
        (64, 64), 8, 4, [16, 24], [1, 2], 8, 0.1, num_classes=10
    ),
}  # fmt: skip
RELU = list(BUILDERS)[: list(BUILDERS).index("regnet_y_400mf")]
SIZE = {"inception_v3": 75}


def narrowed(model: nn.Module) -> nn.Module:
    """Its classifier of 4096 units, with 32."""
    first = next(m for m in model.classifier if isinstance(m, nn.Linear))
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    channels = first.in_features // (36 if first.in_features == 9216 else 49)
    model.classifier = nn.Sequential(nn.Linear(channels, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 10))
    return model


def built(name: str) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BUILDERS[name]()
        x = photographs(2, SIZE.get(name, 64))
        for module in model.modules():
            if isinstance(module, torchvision.ops.StochasticDepth):
                module.p = 0.0
            if isinstance(module, (nn.Linear, nn.MultiheadAttention, nn.LayerNorm)):  # some begin at zero
                for key, p in module.named_parameters(recurse=False):
                    if "bias" in key or not p.any():
                        nn.init.normal_(p, std=0.1)
        for key, p in model.named_parameters():
            if "layer_scale" in key:
                nn.init.constant_(p, 0.5)
            if not p.any() and p.dim() > 1:
                nn.init.normal_(p, std=0.1)
        return calibrated(model, x), x[:1]


@pytest.mark.parametrize("name", BUILDERS)
def test_every_family_is_explained_as_it_is(name):
    model, x = built(name)
    before = snapshot(model)
    with torch.no_grad():
        wanted = model(x)
    trace = lrp.trace(model, x, 3, composite="epsilon")
    agree(trace.output, wanted, 1e-9)
    balanced(trace, 1e-6)
    got = lrp.relevance(model, x, 3, composite="epsilon")
    assert got.isfinite().all() and got.abs().max() > 0
    agree(got, trace.relevance, 1e-9)
    assert same(snapshot(model), before)
    if name in RELU:  # LRP-0 is gradient x input
        agree(lrp.relevance(model, x, 3, composite=LRP0), gradient_x_input(model, x, 3), 1e-5)


@pytest.mark.parametrize("name", ["regnet_y_400mf", "mobilenet_v3_small", "efficientnet_b0"])
def test_squeeze_and_excitation_steers_and_gets_nothing(name):
    model, x = built(name)
    trace = lrp.trace(model, x, 3, composite=LRP0)
    squeezed = [row for row in trace.ledger if row.module.endswith((".fc1", ".fc2"))]
    assert squeezed and all(row.incoming_abs == 0 for row in squeezed)


def by_constants(name: str, model: nn.Module):
    """The model run by autograd with constants in place of what LRP holds constant, function by function."""
    from torch.overrides import TorchFunctionMode

    class Held(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            key = getattr(function, "__name__", "")
            if key in ("softmax", "sigmoid", "hardsigmoid"):
                return function(*args, **kwargs).detach()
            if key in ("gelu", "tanh", "silu", "hardswish", "silu_", "hardswish_"):
                x = args[0]
                y = function(x.detach().clone(), *args[1:], **kwargs).detach()
                return x * torch.where(x == 0, 0, y / x).detach()
            if key == "layer_norm":
                x, shape, weight, bias, eps = (*args, *kwargs.values())[:5]
                axes = tuple(range(-len(shape), 0))
                centred = x - x.mean(axes, keepdim=True)
                return centred / (centred.square().mean(axes, keepdim=True) + eps).sqrt().detach() * weight + bias
            if key == "scaled_dot_product_attention":
                q, k, v = args[:3]
                return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1).detach() @ v
            if key == "multi_head_attention_forward":
                q, k, v, _, heads, w, b = args[:7]
                out_w, out_b = args[11], args[12]
                q, k, v = F.linear(q, w, b).chunk(3, -1)  # (T, N, C)
                q, k, v = (t.unflatten(-1, (heads, -1)).permute(1, 2, 0, 3) for t in (q, k, v))
                y = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1).detach() @ v
                return F.linear(y.permute(2, 0, 1, 3).flatten(2), out_w, out_b), None
            return function(*args, **kwargs)

    def run(x):
        with Held():
            return model(x)

    return run


@pytest.mark.parametrize(
    "name", ["regnet_y_400mf", "efficientnet_b0", "mobilenet_v3_small", "convnext", "vit", "swin", "maxvit"]
)
def test_networks_with_gates_and_attention_are_their_gradients_with_constants(name):
    model, x = built(name)
    wanted = gradient_x_input(by_constants(name, model), x, 3)
    agree(lrp.relevance(model, x, 3, composite=LRP0), wanted, 1e-6)


# half precision ------------------------------------------------------------------------------------------------------


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(128, 5)

    def forward(self, x):
        return self.head(self.features(x))


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.norm, self.attention = nn.LayerNorm(16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        t = self.patches(x).flatten(2).mT
        h = self.norm(t)
        t = t + self.attention(h, h, h, need_weights=False)[0]
        return self.head((t + self.mlp(t)).mean(1))


TRAINED: dict = {}


def trained(kind: type) -> tuple[nn.Module, Tensor]:
    """A few steps on which of five corners is bright: weights that mean something."""
    if kind not in TRAINED:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = kind().train()
            optimiser = torch.optim.Adam(model.parameters(), 3e-3)
            for _ in range(40):
                y = torch.randint(0, 5, (32,))
                x = 0.3 * torch.randn(32, 3, 16, 16)
                for n, c in enumerate(y):
                    x[n, :, 4 * (c % 4) : 4 * (c % 4) + 4, 8 * (c // 4) : 8 * (c // 4) + 8] += 1
                optimiser.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimiser.step()
            TRAINED[kind] = model.eval().requires_grad_(False), x[:4]
    model, x = TRAINED[kind]
    return copy.deepcopy(model), x


def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a.double().cpu().flatten(), b.double().cpu().flatten()]))[0, 1].item()


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [Convolutional, Attentive])
@pytest.mark.parametrize("composite", ["epsilon", "epsilon_plus", "attention"])
def test_half_precision_is_close_to_single(kind, dtype, composite, device):
    model, x = trained(kind)
    # an epsilon of 1e-6 is nothing beside numbers of three digits
    wanted = lrp.relevance(model, x, 1, composite=composite)
    got = lrp.relevance(model.to(device, dtype), x.to(device, dtype), 1, composite=composite)
    assert got.dtype == dtype and got.device.type == device
    assert correlation(got, wanted) >= 0.99


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [Convolutional, Attentive])
def test_autocast_outside_or_inside_of_a_model_changes_little(kind, dtype, device):
    model, x = trained(kind)
    wanted = lrp.relevance(model, x, 1)
    model, x = model.to(device), x.to(device)

    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model
            self.eval()

        def forward(self, x):
            with torch.autocast(device, dtype=dtype):
                return self.model(x).float()

    inside = Inside()
    got = lrp.relevance(inside, x, 1)
    assert got.dtype == torch.float32 and correlation(got, wanted) >= 0.99
    trace = lrp.trace(lambda t: inside(t), x, 1)  # its outputs may differ by the rounding of half precision
    assert correlation(trace.relevance, wanted) >= 0.99
    balanced(trace, 1e-3)
    with torch.autocast(device, dtype=dtype):
        got = lrp.relevance(model, x, 1)
        trace = lrp.trace(model, x, 1)
        assert torch.is_autocast_enabled(device)
    assert not torch.is_autocast_enabled(device)
    for r in (got, trace.relevance):
        assert r.dtype == torch.float32 and correlation(r, wanted) >= 0.99
