"""Grad-CAM and its relatives, held against equations (14) to (16) by hand, captum, pytorch-grad-cam and autograd itself."""

import contextlib
import copy
import itertools

import pytest
import torch
from captum.attr import LayerGradCam
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck, ResNet

from xaicourse import cam, evaluation, images, models, mosaics, removal

METHODS = [cam.grad_cam, cam.grad_cam_plus_plus, cam.layer_cam]
SWITCHES = list(itertools.product([True, False], repeat=3))
methods = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def network(dtype=torch.float64, in_place=True):
    """A small convolutional network with all that a real one has; "0" to "9" are its layers, "6" the last ReLU."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=in_place), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=in_place), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(32, 4),
    ).to(dtype).eval()  # fmt: skip
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(0.4 * normal(*parameter.shape, seed=seed))
        model[1].running_mean.copy_(normal(6, seed=50))
        model[1].running_var.copy_(1 + normal(6, seed=51) ** 2)
    return model


def pooled(dtype=torch.float64):
    """The same body below global average pooling and a linear head, for which class activation maps were made."""
    model = nn.Sequential(*network(dtype)[:7], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).to(dtype).eval()
    with torch.no_grad():
        model[9].weight.copy_(normal(4, 8, seed=60))
        model[9].bias.copy_(normal(4, seed=61))
    return model


class Tokens(nn.Module):
    """A class token and 4 x 4 patches of which each is a token, mixed once by attention."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, stride=2)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.pair = Pair()
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).mT
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
        return self.head(self.pair(self.block(tokens).tanh())[0].mean(1))


class Pair(nn.Module):
    def forward(self, x):
        return x, x


def from_top(model, start, x, target):
    """Output A of the layer at a number, and the gradient of the score with respect to it, by slicing the network."""
    with torch.no_grad():
        A = model[: start + 1](x)
    A.requires_grad_()
    outputs = model[start + 1 :](A.clone())
    score = target(outputs) if callable(target) else outputs.gather(1, torch.as_tensor(target).expand(len(x))[:, None])
    return A.detach(), torch.autograd.grad(score.sum(), A)[0]


# The equations


def test_equations_14_to_16_by_hand():
    """Two channels of 2 x 2 places; the score is 2 A^1_11 - A^1_22 + 3 A^2_21."""
    A = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[5.0, 0.0], [-1.0, 2.0]]]], dtype=torch.float64)
    head = nn.Linear(8, 1, bias=False).double()
    head.weight.data = torch.tensor([[2.0, 0, 0, -1, 0, 0, 3, 0]], dtype=torch.float64)
    model = nn.Sequential(nn.Identity(), nn.Flatten(), head).eval()
    alpha = (0.25, 0.75)  # (2 - 1) / 4 and 3 / 4
    by_hand = torch.tensor([[0.25 + 3.75, 0.5], [0.75 - 0.75, 1.0 + 1.5]])
    G = cam.grad_cam(model, A, 0, layer="0", upsample=False, positive=False)
    torch.testing.assert_close(G[0, 0], by_hand.double())
    apart = cam.grad_cam(model, A, 0, layer="0", upsample=False, channels=False, positive=False)
    torch.testing.assert_close(apart[0, 1], 0.75 * A[0, 1])
    torch.testing.assert_close(apart[0, 0], alpha[0] * A[0, 0])
    own = cam.grad_cam(model, A, 0, layer="0", upsample=False, average=False, positive=False)
    assert own[0, 0].tolist() == [[2, 0], [-3, -4]]
    own = cam.grad_cam(model, A, 0, layer="0", upsample=False, average=False)
    assert own[0, 0].tolist() == [[2, 0], [0, 0]]


@pytest.mark.parametrize(("average", "channels", "positive"), SWITCHES)
@pytest.mark.parametrize("layer", [0, 1, 2, 4, 6])
def test_each_switch_does_what_its_equation_says_at_every_layer(layer, average, channels, positive):
    model, x, target = network(), normal(3, 3, 8, 8), torch.tensor([3, 0, 1])
    A, slope = from_top(model, layer, x, target)
    expected = torch.einsum("nkij,nkij->nkij", A, slope.mean((2, 3), keepdim=True).expand_as(A) if average else slope)
    expected = expected.sum(1, keepdim=True) if channels else expected
    expected = expected.clamp(min=0) if positive else expected
    switches = {"average": average, "channels": channels, "positive": positive}
    found = cam.grad_cam(model, x, target, layer=str(layer), upsample=False, **switches)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_with_all_three_switches_off_it_is_gradient_x_activation():
    model, x = network(), normal(2, 3, 8, 8)
    A, slope = from_top(model, 4, x, 1)
    off = cam.grad_cam(model, x, 1, layer="4", average=False, channels=False, positive=False, upsample=False)
    assert off.shape == A.shape
    torch.testing.assert_close(off, slope * A, rtol=1e-12, atol=1e-14)


def test_of_eight_maps_in_the_shape_of_the_inputs_six_differ():
    """To be drawn, channels are added up in any case: their switch matters only if the positive part is taken before."""
    model, x = network(), normal(1, 3, 8, 8)
    maps = {s: cam.grad_cam(model, x, 1, layer="4", average=s[0], channels=s[1], positive=s[2]) for s in SWITCHES}
    for a, b in itertools.combinations(SWITCHES, 2):
        same = a[0] == b[0] and not a[2] and not b[2]
        assert torch.allclose(maps[a], maps[b], rtol=1e-9, atol=1e-12) == same


def test_before_average_pooling_and_a_linear_head_it_is_the_class_activation_map_over_z():
    model, x = pooled(), normal(2, 3, 8, 8)
    A = model[:7](x).detach()
    weights = model[9].weight[2].detach()
    class_activation_map = torch.einsum("k,nkij->nij", weights, A)  # Zhou et al., CVPR 2016
    G = cam.grad_cam(model, x, 2, layer="6", upsample=False, positive=False)[:, 0]
    torch.testing.assert_close(G, class_activation_map / 16, rtol=1e-12, atol=1e-14)
    score = model(x)[:, 2].detach() - model[9].bias[2].detach()
    torch.testing.assert_close(G.sum((1, 2)), score)  # what the map adds up to is the score without its bias


@given(seed=st.integers(0, 2**16), layer=st.sampled_from([4, 6]))
@settings(max_examples=15)
def test_averaging_moves_relevance_between_places_and_loses_what_gradient_and_activation_share(seed, layer):
    """Sum of gradient x activation = sum of G + covariance over the places; the second is 0 where the gradient is constant."""
    model, x = network(), normal(2, 3, 8, 8, seed=seed)
    A, slope = from_top(model, layer, x, 0)
    G, plain = (
        cam.grad_cam(model, x, 0, layer=str(layer), average=average, positive=False, upsample=False).sum((1, 2, 3))
        for average in (True, False)
    )
    centred = (slope - slope.mean((2, 3), keepdim=True)) * (A - A.mean((2, 3), keepdim=True))
    torch.testing.assert_close(plain, G + centred.sum((1, 2, 3)), rtol=1e-9, atol=1e-10)


def test_it_is_linear_in_the_score_before_the_positive_part():
    model, x = network(), normal(2, 3, 8, 8)
    maps = [cam.grad_cam(model, x, c, layer="4", positive=False) for c in (0, 1)]
    both = cam.grad_cam(model, x, lambda y: 2 * y[:, 0] - y[:, 1], layer="4", positive=False)
    torch.testing.assert_close(both, 2 * maps[0] - maps[1], rtol=1e-9, atol=1e-12)


def test_grad_cam_plus_plus_has_the_weights_of_the_paper():
    """Its derivatives of Y = exp(y) by autograd, on a score that is linear above the layer, as the paper assumes."""
    model, x = pooled(), 0.5 * normal(1, 3, 8, 8)
    A = model[:7](x).detach()

    def Y(A):
        return model[7:](A)[0, 2].exp()

    A.requires_grad_()
    first = torch.autograd.grad(Y(A), A, create_graph=True)[0]
    second, third = torch.zeros_like(A), torch.zeros_like(A)
    for place in itertools.product(*map(range, A.shape)):  # pure derivatives, place by place
        slope = torch.autograd.grad(first[place], A, create_graph=True)[0][place]
        second[place] = slope.detach()
        third[place] = torch.autograd.grad(slope, A, retain_graph=True)[0][place]
    A, first = A.detach(), first.detach()
    weights = second / (2 * second + A.sum((2, 3), keepdim=True) * third)
    expected = ((weights * first.clamp(min=0)).sum((2, 3), keepdim=True) * A).sum(1, keepdim=True) / Y(A).detach()
    found = cam.grad_cam_plus_plus(model, x, 2, layer="6", upsample=False, positive=False)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_grad_cam_plus_plus_refuses_channels_for_which_its_weights_are_not_positive():
    model, x = network(), normal(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"at least 0 for Grad-CAM\+\+, such as those behind a ReLU; got a channel"):
        cam.grad_cam_plus_plus(model, x, lambda y: 1e3 * y[:, 0], layer="4")


def test_layer_cam_is_grad_cam_without_average_and_with_the_positive_part_before_the_sum():
    model, x = network(), normal(2, 3, 8, 8)
    found = cam.layer_cam(model, x, 2, layer="6")
    torch.testing.assert_close(found, cam.grad_cam(model, x, 2, layer="6", average=False, channels=False))
    A, slope = from_top(model, 4, x, 2)  # where activations have both signs it is another map
    expected = (slope.clamp(min=0) * A).sum(1, keepdim=True)
    torch.testing.assert_close(cam.layer_cam(model, x, 2, layer="4", upsample=False, positive=False), expected)
    torch.testing.assert_close(cam.layer_cam(model, x, 2, layer="4", upsample=False), expected.clamp(min=0))


# Peers


@pytest.mark.parametrize("layer", ["layer1.0.conv2", "layer2", "layer3.0.bn3", "layer4"])
def test_captum_gives_the_same_map(layer):
    torch.manual_seed(0)
    model = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5, width_per_group=8).double().eval()
    x = normal(2, 3, 64, 64)
    # captum reads the activation after the ReLU that works in place on it, we before: give it a model without
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    expected = LayerGradCam(plain, plain.get_submodule(layer)).attribute(
        x, torch.tensor([4, 1]), relu_attributions=False
    )
    found = cam.grad_cam(model, x, torch.tensor([4, 1]), layer=layer, positive=False, upsample=False)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-9 * expected.abs().max().item())


def test_captum_gives_the_same_map_of_a_photograph():
    model, x = models.load().double(), models.transform()(images.load("chelsea"))[None].double()
    for layer in ("head", "blocks.10"):
        expected = LayerGradCam(model, model.get_submodule(layer)).attribute(x, 282, relu_attributions=True)
        found = cam.grad_cam(model, x, 282, layer=layer, upsample=False)
        torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "peer"),
    [(cam.grad_cam, "GradCAM"), (cam.grad_cam_plus_plus, "GradCAMPlusPlus"), (cam.layer_cam, "LayerCAM")],
)
def test_pytorch_grad_cam_gives_the_same_map_up_to_its_scaling(method, peer):
    library = pytest.importorskip("pytorch_grad_cam", exc_type=ImportError)
    model, x = pooled(torch.float32), normal(2, 3, 8, 8, dtype=torch.float32)
    # a steep score, or the 1e-6 that they add below the fraction of Grad-CAM++ counts
    explainer = getattr(library, peer)(model, [model[6]])
    expected = torch.from_numpy(explainer(x, [lambda y: 100 * y[2]] * 2))  # each map scaled to 0 … 1, and interpolated
    found = method(model, x, lambda y: 100 * y[:, 2], layer="6").sum(1)
    low, high = (getattr(found.flatten(1), name)(1)[:, None, None] for name in ("amin", "amax"))
    torch.testing.assert_close((found - low) / (high - low), expected, rtol=1e-3, atol=1e-3)


# In the shape of the inputs


@methods
@pytest.mark.parametrize("layer", ["0", "6"])
def test_the_result_has_the_shape_of_the_inputs_and_the_sum_of_the_map(method, layer):
    model, x = network(), normal(2, 3, 8, 8)
    found, at_layer = (method(model, x, 1, layer=layer, upsample=upsample) for upsample in (True, False))
    assert found.shape == x.shape and found.dtype == x.dtype and found.device == x.device
    torch.testing.assert_close(found.sum((1, 2, 3)), at_layer.sum((1, 2, 3)))
    assert torch.equal(found[:, 0], found[:, 1]) and torch.equal(found[:, 0], found[:, 2])
    size = at_layer.shape[2]
    interpolated = F.interpolate(at_layer, (8, 8), mode="bilinear") * (size / 8) ** 2
    torch.testing.assert_close(found.sum(1, keepdim=True), interpolated)


def test_the_sum_nearly_stays_where_sizes_are_no_multiples():
    model, x = pooled(), normal(2, 3, 23, 17)
    found, at_layer = (cam.grad_cam(model, x, 1, layer="6", upsample=upsample) for upsample in (True, False))
    assert found.shape == x.shape
    torch.testing.assert_close(found.sum((1, 2, 3)), at_layer.sum((1, 2, 3)), rtol=0.05, atol=0)


def test_signals_and_volumes_too():
    for convolution, pool, size in (
        (nn.Conv1d, nn.AdaptiveAvgPool1d, (12,)),
        (nn.Conv3d, nn.AdaptiveAvgPool3d, (4, 6, 4)),
    ):
        torch.manual_seed(0)
        model = nn.Sequential(
            convolution(2, 5, 3, stride=2, padding=1), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(5, 3)
        )
        model, x = model.double().eval(), normal(2, 2, *size)
        found = cam.grad_cam(model, x, 0, layer="1", positive=False)
        assert found.shape == x.shape
        score = model(x)[:, 0] - model[4].bias[0]
        torch.testing.assert_close(found.flatten(1).sum(1), score.detach())


def test_tokens_are_brought_into_a_grid_by_reshape():
    torch.manual_seed(0)
    model, x = Tokens().double().eval(), normal(2, 3, 8, 8)
    found = cam.grad_cam(
        model, x, 1, layer="block", positive=False, upsample=False, reshape=lambda t: t[:, 1:].mT.unflatten(2, (4, 4))
    )
    caught = {}
    model.block.register_forward_hook(lambda module, args, output: caught.update(tokens=output))
    slope = torch.autograd.grad(model(x)[:, 1].sum(), caught["tokens"])[0]
    alpha = slope[:, 1:].mean(1)  # over the patches
    expected = (alpha[:, None] * caught["tokens"][:, 1:]).sum(2).reshape(2, 1, 4, 4)
    torch.testing.assert_close(found, expected.detach())


def test_evaluation_takes_it_like_any_other_explainer():
    network, (pictures, classes, masks) = mosaics.load("efficientnet"), mosaics.sample(4)

    def explainer(model, inputs, target):
        return cam.grad_cam(model, inputs, target, layer="features")

    relevance = explainer(network, pictures, classes)
    assert evaluation.localisation(relevance, masks).shape == (4,)
    curve = evaluation.deletion(network, pictures, classes, relevance, removal=removal.baseline(0), steps=4, patch=14)
    assert curve.scores.shape == (4, 5)
    check = evaluation.randomisation_check(network, pictures, classes, explainer, layers=["classifier"])
    assert check.cosine.shape == (1, 4)


# Many layers, one forward pass


class Counting(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, x):
        self.calls += 1
        return self.model(x)


@methods
@pytest.mark.parametrize("kind", [list, tuple])
def test_several_layers_are_answered_by_one_forward_pass(method, kind):
    model, x = Counting(network()).eval(), normal(2, 3, 8, 8)
    paths = ["model.6", "model.2", "model.7", "model.2"]
    found = method(model, x, 1, layer=kind(paths))
    assert model.calls == 1 and list(found) == ["model.6", "model.2", "model.7"]
    for path, relevance in found.items():
        assert torch.equal(relevance, method(model, x, 1, layer=path))


def test_a_layer_and_the_last_layer_inside_it_have_the_same_map():
    torch.manual_seed(0)
    model = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5, width_per_group=8).double().eval()
    found = cam.grad_cam(model, normal(1, 3, 64, 64), 1, layer=["layer3", "layer3.0"])
    torch.testing.assert_close(found["layer3"], found["layer3.0"])


def test_layers_on_parallel_branches():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 4)

        def forward(self, x):
            return self.head((self.left(x) * self.right(x)).mean((2, 3)))

    torch.manual_seed(0)
    model, x = Branches().double().eval(), normal(2, 3, 8, 8)
    found = cam.grad_cam(model, x, 0, layer=["left", "right"], positive=False)
    for path in ("left", "right"):
        torch.testing.assert_close(found[path], cam.grad_cam(model, x, 0, layer=path, positive=False))


# What every attribution promises


@methods
def test_a_batch_is_explained_as_its_items_are_one_by_one(method):
    model, x, target = network(), normal(4, 3, 8, 8), torch.tensor([3, 0, 1, 1])
    together = method(model, x, target, layer="6")
    for i in range(4):
        torch.testing.assert_close(together[i : i + 1], method(model, x[i : i + 1], int(target[i]), layer="6"))


@methods
def test_a_function_of_the_outputs_is_a_target(method):
    model, x = network(), normal(3, 3, 8, 8)
    torch.testing.assert_close(method(model, x, lambda y: y[:, 2], layer="6"), method(model, x, 2, layer="6"))
    probability = cam.grad_cam(model, x, lambda y: y.softmax(1)[:, 2], layer="6", upsample=False)
    A, slope = from_top(model, 6, x, lambda y: y.softmax(1)[:, 2])
    expected = (slope.mean((2, 3), keepdim=True) * A).sum(1, keepdim=True).clamp(min=0)
    torch.testing.assert_close(probability, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@methods
def test_every_float_dtype(method, dtype):
    model, x = network(dtype), normal(2, 3, 8, 8, dtype=dtype)
    found = method(model, x, 1, layer="6")
    assert found.dtype == dtype
    expected = method(network(), x.double(), 1, layer="6")
    tolerance = {torch.float16: 2e-2, torch.bfloat16: 3e-1, torch.float32: 1e-4}[dtype] * expected.abs().max().item()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


@methods
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_mode_of_the_caller_does_not_matter_and_stays(method, mode):
    model = network()
    expected = method(model, normal(2, 3, 8, 8), 1, layer="6")
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        found = method(model, normal(2, 3, 8, 8), 1, layer="6")
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    assert torch.equal(found, expected) and not found.requires_grad


def test_layers_that_work_in_place_change_nothing():
    x = normal(2, 3, 8, 8)
    for layer in ("1", "2", "5", "6"):  # a batch norm whose output the next ReLU overwrites, and the ReLU
        found = cam.grad_cam(network(in_place=True), x, 1, layer=layer)
        assert torch.equal(found, cam.grad_cam(network(in_place=False), x, 1, layer=layer))
    assert torch.equal(x, normal(2, 3, 8, 8))


def test_the_memory_format_of_the_images_does_not_matter():
    model, x = network(), normal(2, 3, 8, 8)
    found = cam.grad_cam(model, x.contiguous(memory_format=torch.channels_last), 1, layer="6")
    torch.testing.assert_close(found, cam.grad_cam(model, x, 1, layer="6"))


def state(model):
    hooks = [dict(m._forward_hooks) for m in model.modules()], [dict(m._forward_pre_hooks) for m in model.modules()]
    tensors = [(t.clone(), t.requires_grad, t.grad) for t in (*model.parameters(), *model.buffers())]
    return hooks, tensors, [m.training for m in model.modules()]


def same_state(model, before):
    hooks, tensors, training = state(model)
    assert hooks == before[0] and training == before[2]
    for (a, needs, slope), (b, needed, was) in zip(tensors, before[1], strict=True):
        assert torch.equal(a, b) and needs == needed and slope is was


@methods
def test_the_model_comes_back_as_it_was(method):
    model = network()
    model[0].weight.requires_grad_(False)
    before = state(model)
    method(model, normal(2, 3, 8, 8), 1, layer=["2", "6"])
    same_state(model, before)


def test_products_that_half_precision_cannot_hold():
    head = nn.Linear(8, 1, bias=False).half()
    head.weight.data = torch.tensor([[300.0] * 4 + [-300.0] * 4]).half()
    model, x = nn.Sequential(nn.Identity(), nn.Flatten(), head).eval(), torch.full((1, 2, 2, 2), 300.0).half()
    assert (cam.grad_cam(model, x, 0, layer="0", average=False, positive=False) == 0).all()  # 90,000 less 90,000
    apart = {"average": False, "channels": False, "upsample": False}
    with pytest.raises(ValueError, match="the relevance must be finite: 4 of 8"):  # 90,000 itself is too much
        cam.grad_cam(model, x, 0, layer="0", **apart)


def test_every_channel_of_the_result_has_memory_of_its_own():
    found = cam.grad_cam(network(), normal(2, 3, 8, 8), 1, layer="6")
    before = found.clone()
    found[:, 0] = 0
    assert torch.equal(found[:, 1:], before[:, 1:])


def test_a_model_that_counts_its_calls_and_works_in_place_on_its_input():
    class Restless(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.body(x.mul_(2))

    model, x = Restless().eval(), normal(2, 3, 8, 8)
    x = x.contiguous(memory_format=torch.channels_last)
    found = cam.grad_cam(model, x, 1, layer="body.6")
    assert model.calls == 0 and torch.equal(x, normal(2, 3, 8, 8))
    torch.testing.assert_close(found, cam.grad_cam(network(), 2 * x, 1, layer="6"))


@pytest.mark.parametrize("failing", ["model", "target", "reshape", "unused"])
def test_also_after_an_error(failing):
    model = network()
    model.register_module("7", Failing(failing))
    before = state(model)
    x, target = normal(2, 3, 8, 8), lambda y: y[:, 0] if failing != "target" else y.missing
    with pytest.raises((ArithmeticError, AttributeError, ValueError)):
        cam.grad_cam(model, x, target, layer="6", reshape=(lambda t: t.missing) if failing == "reshape" else None)
    same_state(model, before)
    assert torch.is_grad_enabled()


class Failing(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.way = way

    def forward(self, x):
        if self.way == "model":
            raise ArithmeticError
        return F.adaptive_avg_pool2d(x.detach() if self.way == "unused" else x, 2)


def test_the_part_below_the_layer_has_no_graph():
    seen = {}

    class Watch(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, x):
            seen[self.name] = (torch.is_grad_enabled(), x.requires_grad)
            return x

    model = nn.Sequential(*network()[:4], Watch("below"), *network()[4:7], Watch("above"), *network()[7:]).eval()
    cam.grad_cam(model, normal(1, 3, 8, 8), 1, layer="7")
    assert seen == {"below": (False, False), "above": (True, True)}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@methods
def test_a_gpu_gives_what_the_cpu_gives(method):
    model, x, target = network(), normal(3, 3, 8, 8), torch.tensor([3, 0, 1])
    expected = method(model, x, target, layer="6")
    found = method(model.cuda(), x.cuda(), target, layer="6")
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-9, atol=1e-12)


# Errors


def test_a_path_that_does_not_exist_is_answered_by_those_that_do():
    model, x = mosaics.load("resnet"), torch.rand(1, 3, 56, 56)
    with pytest.raises(ValueError, match="layer must be the path of a module of the model, got 'layer5'; .*'layer4'"):
        cam.grad_cam(model, x, 0, layer="layer5")
    with pytest.raises(ValueError, match="layer must be the path .* got 'nothing'"):
        cam.grad_cam(model, x, 0, layer=["layer1", "nothing"])


WRONG = {
    "function": ({"model": lambda x: x}, TypeError, "model must be an nn.Module for layer .* got function"),
    "training": ({"model": network().train()}, ValueError, "model must be in evaluation mode"),
    "integers": ({"inputs": torch.ones(1, 3, 8, 8).long()}, TypeError, "inputs must be a tensor of a float dtype"),
    "no image": ({"inputs": normal(3, 8)}, ValueError, r"inputs must have shape \(N, C, H, W\), .* got \(3, 8\)"),
    "empty": ({"inputs": normal(0, 3, 8, 8)}, ValueError, "inputs must have shape"),
    "nan": ({"inputs": normal(1, 3, 8, 8) / 0}, ValueError, "inputs must be finite: 192 of 192"),
    "class 4": ({"target": 4}, ValueError, "target must be from 0 to 3, got 4"),
    "class -1": ({"target": -1}, ValueError, "target must be from 0 to 3, got -1"),
    "two classes": ({"target": torch.tensor([1, 2, 3])}, ValueError, r"target must be a LongTensor of shape \(2,\)"),
    "a word": ({"target": "cat"}, TypeError, "target must be an int, a LongTensor or a function"),
    "a sum": ({"target": lambda y: y.sum()}, ValueError, "target must give one float score for each item"),
    "a number": ({"layer": 6}, TypeError, "layer must be the path of a module, a string, got int"),
    "no layers": ({"layer": []}, ValueError, "layer must name at least one module, got none"),
    "the model": ({"layer": ""}, ValueError, "layer must be the path of a module of the model, got ''"),
    "the head": ({"layer": "9"}, ValueError, r"layer: '9' must give \(N, K, H', W'\) with N = 2, got \(2, 4\)"),
    "average": ({"average": 1}, TypeError, "average must be True or False, got int"),
    "channels": ({"channels": "all"}, TypeError, "channels must be True or False, got str"),
    "positive": ({"positive": None}, TypeError, "positive must be True or False, got NoneType"),
    "upsample": ({"upsample": (8, 8)}, TypeError, "upsample must be True or False, got tuple"),
    "reshape": ({"reshape": 3}, TypeError, "reshape must be a function of tensors or None, got int"),
    "reshaped": ({"reshape": lambda t: t.flatten(1)}, ValueError, r"reshape must make of '6' \(N, K, H', W'\)"),
    "other items": ({"reshape": lambda t: t[:1]}, ValueError, r"reshape must make of '6' .* N = 2, got \(1, 8"),
    "listed": ({"reshape": lambda t: [t]}, TypeError, "reshape must return a tensor, got list"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_bad_input_is_refused_by_name(wrong):
    change, error, message = WRONG[wrong]
    arguments = {"model": network(), "inputs": normal(2, 3, 8, 8), "target": 1, "layer": "6", **change}
    with pytest.raises(error, match=message):
        cam.grad_cam(arguments.pop("model"), arguments.pop("inputs"), arguments.pop("target"), **arguments)


@methods
def test_bad_switches_of_all_three(method):
    for name in ("positive", "upsample"):
        with pytest.raises(TypeError, match=f"{name} must be True or False, got int"):
            method(network(), normal(2, 3, 8, 8), 1, layer="6", **{name: 1})


def test_a_layer_that_is_called_twice_is_refused():
    model = mosaics.load("resnet")
    with pytest.raises(ValueError, match="layer: 'layer4.0.relu' is called more than once"):
        cam.grad_cam(model, torch.rand(1, 3, 56, 56), 0, layer="layer4.0.relu")


def test_a_layer_that_is_not_called_is_refused():
    model = network()
    model[6].register_module("spare", nn.ReLU().eval())
    with pytest.raises(ValueError, match="layer: '6.spare' is not called in a forward pass"):
        cam.grad_cam(model, normal(1, 3, 8, 8), 1, layer=["6", "6.spare"])


def test_a_layer_without_influence_on_the_score_is_refused():
    class Aside(nn.Module):
        def __init__(self, cut):
            super().__init__()
            self.body, self.aside, self.cut = network(), nn.Conv2d(3, 3, 1).double(), cut

        def forward(self, x):
            aside = self.aside(x)
            return self.body(x) + (aside.detach().mean() if self.cut else 0)

    for cut in (True, False):
        for layers in ("aside", ["body.6", "aside"]):
            with pytest.raises(ValueError, match="layer: the score does not depend on the output of 'aside'"):
                cam.grad_cam(Aside(cut).eval(), normal(1, 3, 8, 8), 1, layer=layers)


def test_tokens_and_pairs_are_refused_with_the_way_out():
    torch.manual_seed(0)
    model, x = Tokens().double().eval(), normal(2, 3, 8, 8)
    with pytest.raises(
        ValueError, match=r"'block' must give \(N, K, H', W'\) .* got \(2, 17, 8\); reshape= can bring tokens"
    ):
        cam.grad_cam(model, x, 1, layer="block")
    with pytest.raises(ValueError, match="layer: 'pair' must give a tensor of a float dtype, got tuple"):
        cam.grad_cam(model, x, 1, layer="pair")


def test_what_is_not_finite_is_an_error_and_never_a_map():
    model, x = network(), normal(1, 3, 8, 8)
    with pytest.raises(ValueError, match="the score must be finite"):
        cam.grad_cam(model, x, lambda y: y[:, 0] / 0, layer="6")
    with pytest.raises(ValueError, match="the gradient at '6' must be finite"):
        cam.grad_cam(model, x, lambda y: (y[:, 0] - y[:, 0].detach()).abs().sqrt(), layer="6")


# What lecture 10 claims


def test_claim_c1_the_equations_by_hand_equal_the_package_and_captum_in_a_real_network():
    model, x = models.load().double(), models.transform()(images.load("coffee"))[None].double()
    A = model.head(model.blocks(model.stem(x))).detach().requires_grad_()
    score = model.classifier(A.mean((2, 3)))[0, 967]
    alpha = torch.autograd.grad(score, A)[0].mean((2, 3))  # (14)
    G = torch.einsum("nk,nkij->nij", alpha, A).detach()[:, None]  # (15)
    signed = cam.grad_cam(model, x, 967, layer="head", positive=False, upsample=False)
    torch.testing.assert_close(signed, G, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(cam.grad_cam(model, x, 967, layer="head", upsample=False), G.relu())  # (16)
    peer = LayerGradCam(model, model.head).attribute(x, 967, relu_attributions=False)
    torch.testing.assert_close(signed, peer.detach(), rtol=1e-9, atol=1e-12)


def test_claim_c2_averaging_costs_the_sum_over_channels_gains_and_the_positive_part_hardly_counts():
    layers = {
        "efficientnet": ("features", "features.3"),
        "resnet": ("layer4", "layer3"),
        "densenet": ("features", "features.denseblock2"),
    }
    digits, classes, masks = mosaics.sample(120, generator=torch.Generator().manual_seed(11))
    for name, (last, middle) in layers.items():
        model = mosaics.load(name)
        with torch.no_grad():
            right = model(digits).argmax(1) == classes
        x, y, where = (t[right] for t in (digits, classes, masks))

        def located(layer, model=model, x=x, y=y, where=where, **switches):
            return evaluation.localisation(cam.grad_cam(model, x, y, layer=layer, **switches), where)

        def gain(switch, layer=middle, located=located):
            difference = located(layer) - located(layer, **{switch: False})
            return difference.mean().item(), 2.6 * difference.std().item() / len(difference) ** 0.5

        mean, half = gain("average")
        assert mean + half < 0
        mean, half = gain("channels")
        assert mean - half > 0.15
        mean, half = gain("positive")
        assert abs(mean) < 0.1
        control = mosaics.load(name, pretrained=False)
        assert abs(located(middle, model=control).nanmean() - 0.25) < 0.1
        assert located(middle).mean() > 0.45
        if name != "densenet":  # a ReLU stands between its last layer and the mean over the places
            maps = [cam.grad_cam(model, x, y, layer=last, average=average) for average in (True, False)]
            torch.testing.assert_close(*maps, rtol=1e-3, atol=1e-6)


class PassesOn(nn.Module):
    """A layer that hands on the very tensor on which the model then works in place."""

    def __init__(self):
        super().__init__()
        self.conv, self.layer, self.head = nn.Conv2d(3, 4, 3), nn.Identity(), nn.Linear(4, 2)

    def forward(self, x):
        h = self.conv(x)
        marked = self.layer(h)
        h.mul_(0).add_(7)
        return self.head((marked * marked).mean((2, 3)))


def test_a_layer_that_hands_on_a_tensor_that_is_changed_in_place_later_has_its_own_values():
    model, x = PassesOn().double().eval(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    A = model.conv(x).detach().requires_grad_()
    slope = torch.autograd.grad(model.head((A * A).mean((2, 3)))[:, 1].sum(), A)[0]
    expected = (slope.mean((2, 3), keepdim=True) * A).sum(1, keepdim=True).detach()
    found = cam.grad_cam(model, x, 1, layer="layer", positive=False, upsample=False)
    assert torch.allclose(found, expected, rtol=0, atol=1e-14)


class SwitchesAutograd(nn.Module):
    """Some of its layers stand in a block that switches autograd on; what follows must be differentiated all the same."""

    def __init__(self, block):
        super().__init__()
        self.block = block
        self.one, self.two, self.three = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv2d(4, 4, 1),
        )
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        with self.block():
            a = self.one(x).tanh()
        b = self.two(a).tanh()
        return self.head((self.three(b) + a).mean((2, 3)))


@pytest.mark.parametrize("layer", ["one", ["one", "three"], ["two", "three"]])
def test_a_model_that_switches_autograd_around_a_layer_is_explained_as_one_that_does_not(layer):
    torch.manual_seed(0)
    model = SwitchesAutograd(torch.enable_grad).double().eval()
    plain = SwitchesAutograd(contextlib.nullcontext).double().eval()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    found, expected = (cam.grad_cam(m, x, 1, layer=layer, positive=False) for m in (model, plain))
    for path in [layer] if isinstance(layer, str) else layer:
        one, other = (r if isinstance(layer, str) else r[path] for r in (found, expected))
        assert torch.allclose(one, other, rtol=0, atol=1e-14) and one.abs().max() > 0
    assert torch.is_grad_enabled()


def test_a_model_that_cuts_the_graph_behind_a_layer_is_refused():
    model = SwitchesAutograd(torch.no_grad).double().eval()
    with pytest.raises(ValueError, match="'one'.*cut"):
        cam.grad_cam(model, torch.randn(1, 3, 6, 6, dtype=torch.float64), 1, layer="one")
