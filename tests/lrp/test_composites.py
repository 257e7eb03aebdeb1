"""Which layer gets which rule, and where relevance may begin."""

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn

from xaicourse import lrp

from .networks import Functional, agree, balanced, everywhere, network, photographs, randomised

LRP0 = everywhere(lrp.Epsilon(0))
A, B, C, D, E = (lrp.Epsilon(e) for e in (0.1, 0.2, 0.3, 0.4, 0.5))


def chain() -> nn.Module:
    """Eleven layers: nine convolutions, one with a batch norm, and two linear layers."""
    torch.manual_seed(0)
    model = nn.Sequential()
    for i in range(9):
        model.add_module(f"conv{i}", nn.Conv2d(3, 3, 3, padding=1))
        if i == 4:
            model.add_module("norm", nn.BatchNorm2d(3))
        model.add_module(f"relu{i}", nn.ReLU())
    model.add_module("pool", nn.AdaptiveAvgPool2d(2))
    model.add_module("flat", nn.Flatten())
    model.add_module("fc0", nn.Linear(12, 5))
    model.add_module("tanh", nn.Tanh())
    model.add_module("fc1", nn.Linear(5, 4))
    return randomised(model)


def x(items: int = 2) -> Tensor:
    return torch.randn(items, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def rules(composite: lrp.Composite, model: nn.Module | None = None, inputs: Tensor | None = None) -> list[str]:
    """The rule of each layer with weights, in the order of the calls."""
    trace = lrp.trace(model or chain(), x() if inputs is None else inputs, 1, composite=composite)
    balanced(trace)
    return [row.rule for row in trace.ledger if row.rule.startswith(("Epsilon", "Gamma", "ZPlus", "ZBox"))]


# which rule ------------------------------------------------------------------------------------------------------


def test_kinds_alone():
    assert rules(lrp.Composite(convolution=A, linear=B)) == [repr(A)] * 9 + [repr(B)] * 2


def test_first_and_last_come_before_kinds_and_names_before_all():
    composite = lrp.Composite(convolution=A, linear=B, first=C, last=D)
    assert rules(composite) == [repr(C), *[repr(A)] * 8, repr(B), repr(D)]
    composite = lrp.Composite(convolution=A, linear=B, first=C, last=D, depth={0.0: E})
    assert rules(composite) == [repr(C), *[repr(E)] * 9, repr(D)]
    composite = lrp.Composite(convolution=A, first=C, last=D, depth={0.0: E}, names={"conv0": A, "*1": B})
    assert rules(composite) == [repr(A), repr(B), *[repr(E)] * 8, repr(B)]


def test_the_first_pattern_that_matches_decides():
    assert (
        rules(lrp.Composite(names={"conv[0-4]": A, "conv*": B, "*": C}))
        == [repr(A)] * 5 + [repr(B)] * 4 + [repr(C)] * 2
    )
    assert rules(lrp.Composite(names={"*": C, "conv*": B})) == [repr(C)] * 11


def test_depth_counts_layers_and_a_rule_holds_from_its_depth_on():
    # eleven layers have depths 0, 0.1, …, 1
    assert rules(lrp.Composite(depth={0: A, 0.5: B})) == [repr(A)] * 5 + [repr(B)] * 6
    assert rules(lrp.Composite(depth={0: A, 0.501: B})) == [repr(A)] * 6 + [repr(B)] * 5
    assert rules(lrp.Composite(depth={0.5: B, 0: A, 1: C})) == [repr(A)] * 5 + [repr(B)] * 5 + [repr(C)]
    # below the lowest depth the kinds say what holds
    assert rules(lrp.Composite(convolution=C, depth={0.85: A})) == [repr(C)] * 9 + [repr(A)] * 2


def test_one_layer_alone_is_first_and_has_depth_zero():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2)).double().eval()
    inputs = x()[:, :, 0, 0]
    assert rules(lrp.Composite(depth={0: A, 0.5: B}), model, inputs) == [repr(A)]
    assert rules(lrp.Composite(last=C), model, inputs) == [repr(C)]
    assert rules(lrp.Composite(first=B, last=C), model, inputs) == [repr(B)]


def test_a_layer_that_is_called_again_keeps_its_depth():
    torch.manual_seed(0)
    model = Functional(
        lambda m, t: m.c(m.b(m.a(m.b(m.a(t).relu()).relu()).relu()).relu()), **{n: nn.Linear(3, 3) for n in "abc"}
    )
    got = rules(lrp.Composite(depth={0: A, 0.5: B, 1: C}), model, x()[:, :, 0, 0])
    assert got == [repr(A), repr(B), repr(A), repr(B), repr(C)]


def test_all_that_read_the_input_are_first():
    torch.manual_seed(0)
    model = Functional(lambda m, t: m.c(m.a(t).relu() + m.b(t.flip(1)).relu()), **{n: nn.Linear(3, 3) for n in "abc"})
    assert rules(lrp.Composite(first=A, linear=B), model, x()[:, :, 0, 0]) == [repr(A), repr(A), repr(B)]


def test_the_layers_that_attention_and_recurrent_layers_call_count_too():
    torch.manual_seed(0)
    model = Functional(
        lambda m, t: m.fc(m.rnn(m.attention(t, t, t)[0])[0][:, -1]),
        attention=nn.MultiheadAttention(4, 2, batch_first=True), rnn=nn.RNN(4, 4, batch_first=True), fc=nn.Linear(4, 2)
    )  # fmt: skip
    inputs = torch.randn(2, 3, 4).double()
    composite = lrp.Composite(names={"attention*": A, "rnn": B}, last=C)
    got = set(rules(composite, model, inputs))
    assert got == {repr(A), repr(B), repr(C)}


@pytest.mark.parametrize(("pattern", "hint"), [("convv3", "conv3"), ("Conv1", "conv1"), ("fc", "fc"), ("layer4.*", "")])
def test_a_pattern_that_matches_no_module_is_an_error_with_a_hint(pattern, hint):
    with pytest.raises(
        ValueError, match=f"names has the pattern '{pattern}', which matches no module.*{hint}".replace("*'", r"\*'")
    ):
        lrp.relevance(chain(), x(), 1, composite=lrp.Composite(names={pattern: A}))


@pytest.mark.parametrize("depth", [{-0.1: A}, {1.1: A}, {True: A}, {"0.5": A}, {float("nan"): A}])
def test_a_depth_beyond_the_network_is_an_error(depth):
    with pytest.raises(ValueError, match="depth must have keys from 0 to 1"):
        lrp.Composite(depth=depth)


def test_depths_must_map_numbers_to_rules():
    with pytest.raises(TypeError, match="depth must map depths from 0 to 1 to rules, not list"):
        lrp.Composite(depth=[(0, A)])
    with pytest.raises(TypeError, match=r"depth\[0.5\] must be a rule"):
        lrp.Composite(depth={0.5: "epsilon"})
    with pytest.raises(TypeError, match="last must be a rule"):
        lrp.Composite(last="epsilon")


# presets ----------------------------------------------------------------------------------------------------------


def test_every_family_of_torchvision_that_classifies_has_a_preset():
    without = []
    for name in torchvision.models.list_models(module=torchvision.models):
        try:
            assert isinstance(lrp.preset(name), lrp.Composite)
        except ValueError:
            without.append(name)
    assert {n.split("_")[0] for n in without} <= {"shufflenet", "regnet"}


@pytest.mark.parametrize(
    ("name", "composite"),
    [("vgg16_bn", "epsilon_alpha2_beta1_flat"), ("resnet50", "epsilon_plus_flat"), ("efficientnet_b0", "epsilon"),
     ("vit_b_16", "attention"), ("vit_base_patch16_224", "attention"), ("alexnet", "epsilon_plus_flat")],
)  # fmt: skip
def test_a_preset_is_the_composite_of_its_network(name, composite):
    assert lrp.preset(name) is lrp.COMPOSITES[composite]


def test_an_unknown_network_has_no_preset():
    with pytest.raises(ValueError, match=r"network must match one of alexnet, vgg\*.* got 'lenet'"):
        lrp.preset("lenet")


@pytest.mark.parametrize("name", lrp.COMPOSITES)
def test_a_named_composite_is_the_composite(name):
    model, inputs = network("small"), photographs(1, 16)
    named = lrp.relevance(model, inputs, 3, composite=name)
    assert torch.equal(named, lrp.relevance(model, inputs, 3, composite=lrp.COMPOSITES[name]))


@pytest.mark.parametrize("seed", range(5))
def test_deep_taylor_finds_no_negative_relevance_in_a_relu_network_with_biases_that_are_not_positive(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 16),
        nn.ReLU(), nn.Linear(16, 4), nn.ReLU()
    )  # fmt: skip
    model.double().eval()
    for p in model:
        if hasattr(p, "bias"):
            p.bias.data.copy_(-0.05 * torch.rand_like(p.bias))
    inputs = torch.randn(4, 3, 12, 12).double()
    with torch.no_grad():
        target = model(inputs).argmax(1)
    trace = lrp.trace(model, inputs, target, composite="deep_taylor")
    assert trace.output.amax() > 0
    assert trace.relevance.min() >= 0
    assert all(r.min() >= 0 for r in trace.layers.values())


# where relevance begins ---------------------------------------------------------------------------------------------


def truncated(model: nn.Module, path: str) -> nn.Module:
    """The chain up to the module of this name."""
    names = [n for n, _ in model.named_children()]
    return copy.deepcopy(model[: names.index(path) + 1]).eval()


@pytest.mark.parametrize("path", ["conv2", "relu2", "norm", "relu8", "pool", "fc0", "tanh", "fc1"])
@pytest.mark.parametrize("composite", ["epsilon_plus", LRP0])
def test_a_channel_is_explained_as_the_score_of_a_network_that_ends_there(path, composite):
    model, cut = chain(), truncated(chain(), path)
    got = lrp.relevance(model, x(), None, start=lrp.channel(path, 2), composite=composite)
    wanted = lrp.relevance(
        cut, x(), lambda y: y[:, 2].flatten(1).sum(1) if y.dim() > 2 else y[:, 2], composite=composite
    )
    agree(got, wanted)
    trace = lrp.trace(model, x(), None, start=lrp.channel(path, 2), composite=composite)
    agree(trace.relevance, wanted)
    balanced(trace)
    with torch.no_grad():
        agree(trace.output, model(x()), 1e-12)  # the whole model has run
        y = cut(x())[:, 2]
    assert trace.ledger.output == pytest.approx(y.sum().item(), rel=1e-9)


def test_a_channel_of_tokens_lies_on_their_last_axis():
    torch.manual_seed(0)
    model = Functional(lambda m, t: m.b(m.a(t).relu()).mean(1), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    tokens = torch.randn(2, 5, 3).double()
    got = lrp.relevance(model, tokens, None, start=lrp.channel("a", -1, axis=-1), composite=LRP0)
    agree(got, lrp.relevance(lambda t: model.a(t)[..., 3], tokens, lambda y: y.sum(1), composite=LRP0))


def test_a_start_is_a_tensor_or_a_function_of_the_activation():
    model = chain()
    cut = truncated(model, "relu3")
    with torch.no_grad():
        y = cut(x())
    r = y * torch.rand(y.shape, generator=torch.Generator().manual_seed(1)).double()
    got = lrp.relevance(model, x(), None, start={"relu3": r}, composite=LRP0)
    share = (r / y.masked_fill(y == 0, 1)).detach()
    agree(got, lrp.relevance(cut, x(), lambda y: (y * share).flatten(1).sum(1), composite=LRP0))
    agree(lrp.relevance(model, x(), None, start={"relu3": lambda a: a * share}, composite=LRP0), got)
    # for a part of the positions: what do these pixels of the map see?
    where = torch.zeros_like(y)
    where[:, :, 1, 1] = 1
    middle = lrp.relevance(model, x(), None, start={"relu0": lambda a: a * where}, composite=LRP0)
    seen = middle.abs().sum((0, 1)) > 0
    assert seen[:3, :3].any() and not seen[3].any() and not seen[:, 3].any()


def test_several_starts_add_up():
    model, both = chain(), {**lrp.channel("relu2", 0), **lrp.channel("relu6", 1), **lrp.channel("fc1", 3)}
    parts = [lrp.relevance(model, x(), None, start={path: begin}) for path, begin in both.items()]
    agree(lrp.relevance(model, x(), None, start=both), sum(parts))
    trace = lrp.trace(model, x(), None, start=both)
    agree(trace.relevance, sum(parts))
    balanced(trace)


def test_relevance_that_begins_where_it_came_by_is_the_explanation():
    """Begun at a layer with the relevance that this layer had, LRP continues as if it had come from the output."""
    model = chain()
    trace = lrp.trace(model, x(), 1)
    for path in ("relu1", "relu5", "pool", "tanh"):
        agree(lrp.relevance(model, x(), None, start={path: trace.layers[path]}), trace.relevance)


def test_a_module_that_is_called_twice_begins_at_its_first_call():
    torch.manual_seed(0)
    model = Functional(lambda m, t: m.b(m.a(m.a(t).relu()).relu()), a=nn.Linear(3, 3), b=nn.Linear(3, 2))
    inputs = x()[:, :, 0, 0]
    got = lrp.relevance(model, inputs, None, start=lrp.channel("a", 1), composite=LRP0)
    agree(got, lrp.relevance(model.a, inputs, 1, composite=LRP0))


def test_a_start_may_sit_in_front_of_a_batch_norm_by_the_norms_name():
    with pytest.raises(ValueError, match="module 'conv4' has no output of its own.* batch norm"):
        lrp.relevance(chain(), x(), None, start=lrp.channel("conv4", 0))


@pytest.mark.parametrize(
    ("start", "error", "message"),
    [
        ({"conv99": torch.ones(1)}, ValueError, "start must name modules of the model, got 'conv99'; there are .*conv"),
        ({3: torch.ones(1)}, ValueError, "start must name modules of the model, got 3"),
        (
            {"relu2": 1.0},
            TypeError,
            r"start\['relu2'\] must be a float tensor or a function of the activation, got float",
        ),
        ({"relu2": torch.ones(2, 3, 4, 4, dtype=torch.long)}, TypeError, r"start\['relu2'\] must be a float tensor"),
        ({"relu2": torch.ones(2, 3)}, ValueError, r"start\['relu2'\] must have shape \(2, 3, 4, 4\)"),
        ({"relu2": lambda a: a.sum()}, ValueError, r"start\['relu2'\] must have shape \(2, 3, 4, 4\)"),
        ({"relu2": lambda a: 1.0}, ValueError, r"start\['relu2'\] must have shape .* got float"),
        ({"relu2": lambda a: a * float("nan")}, ValueError, "start must be finite"),
        ({"relu2": lambda a: torch.ones_like(a)}, ValueError, "start must be 0 where the output is exactly 0"),
        (lrp.channel("relu2", 3), ValueError, "index must be from 0 to 2 for module 'relu2', got 3"),
        ([("relu2", torch.ones(1))], TypeError, "start must be None, a float tensor, or map modules to such, got list"),
        ({}, ValueError, "start"),
    ],
)
def test_a_start_that_fits_no_module_is_refused(start, error, message):
    target = 1 if isinstance(start, list) else None
    for explain in (lrp.relevance, lrp.trace):
        with pytest.raises(error, match=message):
            explain(chain(), x(), target, start=start)


def test_a_target_and_a_start_at_modules_exclude_each_other():
    with pytest.raises(TypeError, match="target must be None where start names modules"):
        lrp.relevance(chain(), x(), 1, start=lrp.channel("relu2", 0))
    with pytest.raises(TypeError, match="target must be an int, a LongTensor or a function of the outputs, got None"):
        lrp.relevance(chain(), x(), None)
    with pytest.raises(TypeError, match="target must be an int.* got None"):
        lrp.relevance(chain(), x(), None, start=torch.ones(2, 4).double())


def test_a_model_that_returns_no_scores_can_begin_at_a_module():
    model = chain()
    cut = truncated(model, "relu3")  # (N, 3, 4, 4): no index picks a score of it
    agree(
        lrp.relevance(cut, x(), None, start=lrp.channel("relu2", 1), composite=LRP0),
        lrp.relevance(model, x(), None, start=lrp.channel("relu2", 1), composite=LRP0),
    )
