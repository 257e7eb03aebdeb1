"""Bad input is an error that names the argument, what came and what is expected, before any work is done."""

import math
import re

import pytest
import torch
from torch import nn

from xaicourse import lrp

from .networks import Functional, everywhere, same, snapshot


class Watched(nn.Module):
    """A model that counts how often it runs."""

    def __init__(self):
        super().__init__()
        self.features, self.head, self.runs = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), 0
        self.eval()

    def forward(self, x):
        self.runs += 1
        return self.head(self.features(x).relu().mean((2, 3)))


@pytest.fixture
def model() -> Watched:
    torch.manual_seed(0)
    return Watched()


X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def with_value(value: float, x: torch.Tensor = X) -> torch.Tensor:
    x = x.clone()
    x[1, 2, 3, 3] = value
    return x


def refused(model, error, message, inputs=X, target=0, **settings):
    """Both functions refuse with the same words, before the model has run, and leave it as it was."""
    before, runs = snapshot(model), getattr(model, "runs", 0)
    for explain in (lrp.relevance, lrp.trace):
        with pytest.raises(error, match=message):
            explain(model, inputs, target, **settings)
    assert same(snapshot(model), before)
    return getattr(model, "runs", 0) - runs


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (with_value(math.nan), ValueError, "inputs must be finite: 1 of 216 values"),
        (with_value(math.inf), ValueError, "inputs must be finite"),
        (with_value(-math.inf), ValueError, "inputs must be finite"),
        (X[:0], ValueError, r"inputs must have shape \(N, …\) with at least one item, got \(0, 3, 6, 6\)"),
        (X.flatten(), ValueError, r"inputs must have shape \(N, …\).* got \(216,\)"),
        (torch.tensor(1.0), ValueError, r"inputs must have shape \(N, …\).* got \(\)"),
        (
            (X * 100).byte(),
            TypeError,
            "inputs must have a float dtype, or be indices of an embedding.* got torch.uint8",
        ),
        (X > 0, TypeError, "inputs must have a float dtype.* got torch.bool"),
        (X.to(torch.complex64), TypeError, "inputs must have a float dtype.* got torch.complex64"),
        (X.numpy(), TypeError, "inputs must be a tensor, got ndarray"),
        (X.tolist(), TypeError, "inputs must be a tensor, got list"),
        (None, TypeError, "inputs must be a tensor, got NoneType"),
    ],
)
def test_inputs_that_are_no_batch_of_finite_floats_are_refused(model, inputs, error, message):
    assert refused(model, error, message, inputs) == 0


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (
            torch.tensor([0.0, 1.0]),
            ValueError,
            r"target must be a LongTensor of shape \(2,\).* got torch.float32",
        ),
        (torch.tensor([True, False]), ValueError, "target must be a LongTensor.* got torch.bool"),
        (
            torch.tensor([0, 1], dtype=torch.int32),
            ValueError,
            "target must be a LongTensor.* got torch.int32",
        ),
        (torch.tensor([0, 1, 2]), ValueError, r"target must be a LongTensor of shape \(2,\).* shape \(3,\)"),
        (
            torch.tensor([[0], [1]]),
            ValueError,
            r"target must be a LongTensor of shape \(2,\).* shape \(2, 1\)",
        ),
        (1.0, TypeError, "target must be an int, a LongTensor or a function of the outputs, got float"),
        (True, TypeError, "target must be an int.* got bool"),
        ("cat", TypeError, "target must be an int.* got str"),
        ([0, 1], TypeError, "target must be an int.* got list"),
        (None, TypeError, "target must be an int.* got None"),
    ],
)
def test_a_target_that_is_no_index_is_refused(model, target, error, message):
    assert refused(model, error, message, target=target) == 0


@pytest.mark.parametrize("target", [5, -1, 1000, torch.tensor([0, 5]), torch.tensor([-1, 0]), torch.tensor(7)])
def test_an_index_beyond_the_classes_is_refused(model, target):
    # how many classes there are only the model's output says
    refused(model, ValueError, r"target must be from 0 to 4, got (5|-1|1000|7)$", target=target)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (lambda y: y, ValueError, r"target must give one score for each item, shape \(2,\), got \(2, 5\)"),
        (lambda y: y.sum(), ValueError, r"target must give one score for each item.* got \(\)"),
        (lambda y: 1.0, ValueError, "target must give one score for each item.* got float"),
        (lambda y: torch.ones(2), ValueError, "target: the score does not depend on the inputs"),
        (lambda y: y[:, 0] * math.nan, ValueError, "the score must be finite: 2 of 2"),
        (lambda y: torch.fft.fft(y).real[:, 0], lrp.UnhandledOperation, "no rule for .*fft"),
        (lambda y: y.detach()[:, 0], ValueError, "target: the score does not depend on the inputs"),
        (lambda y: y.softmax(1)[:, 0], lrp.UnhandledOperation, "no rule for .*softmax.* Explain the logits"),
    ],
)
def test_a_target_that_is_no_score_is_refused(model, target, error, message):
    refused(model, error, message, target=target)


@pytest.mark.parametrize(
    ("start", "error", "message"),
    [
        (1.0, TypeError, "start must be None, a float tensor, or map modules to such, got float"),
        (torch.ones(2, dtype=torch.long), TypeError, "start must be None, a float tensor.* got torch.int64"),
        (torch.ones(3), ValueError, r"start must have shape \(2,\) or \(2, 5\), got \(3,\)"),
        (torch.ones(2, 4), ValueError, r"start must have shape .* got \(2, 4\)"),
        (torch.tensor([1.0, math.nan]), ValueError, "start must be finite"),
        (torch.full((2, 5), math.inf), ValueError, "start must be finite"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(model, start, error, message):
    refused(model, error, message, start=start)


def test_a_start_at_an_output_that_is_exactly_zero_is_refused():
    # no input is responsible for it; dividing by it would be a NaN
    model = nn.Linear(2, 2, bias=False).double().eval()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
    x = torch.ones(1, 2).double()
    with pytest.raises(ValueError, match="start must be 0 where the output is exactly 0"):
        lrp.relevance(model, x, 0, start=torch.ones(1).double())
    r = lrp.relevance(model, x, 0, start=torch.tensor([[0.0, 1.0]]).double())
    assert torch.allclose(r, torch.tensor([[0.5, 0.5]]).double())


@pytest.mark.parametrize(
    ("composite", "error", "message"),
    [
        ("zplus", ValueError, r"composite must be one of \['attention', .*\] or an lrp.Composite, got 'zplus'"),
        ("", ValueError, "composite must be one of"),
        (lrp.Epsilon(), TypeError, "composite must be a name or an lrp.Composite, not Epsilon"),
        (None, TypeError, "composite must be a name or an lrp.Composite, not NoneType"),
    ],
)
def test_an_unknown_composite_is_refused(model, composite, error, message):
    assert refused(model, error, message, composite=composite) == 0


def test_settings_are_keyword_only(model):
    with pytest.raises(TypeError, match="positional"):
        lrp.relevance(model, X, 0, "epsilon")


def test_training_mode_is_refused_and_the_module_named(model):
    model.head.train()
    assert refused(model, ValueError, r"model must be in evaluation mode, but module 'head' \(Linear\)") == 0
    assert model.head.training
    model.train()
    assert refused(model, ValueError, "model must be in evaluation mode.* call model.eval") == 0


@pytest.mark.parametrize("model", [None, 3, "resnet18", X])
def test_what_cannot_be_called_is_no_model(model):
    with pytest.raises(TypeError, match=f"model must be an nn.Module or a function.* got {type(model).__name__}"):
        lrp.relevance(model, X, 0)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda m, x: (m.c(x).flatten(1), 0), TypeError, "model must return a tensor, got tuple"),
        (lambda m, x: {"logits": m.c(x).flatten(1)}, TypeError, "model must return a tensor, got dict"),
        (lambda m, x: None, TypeError, "model must return a tensor, got NoneType"),
        (
            lambda m, x: m.c(x).flatten(1).sum(0, keepdim=True),
            ValueError,
            "model must return one row for each of 2 items",
        ),
        (lambda m, x: m.c(x).sum(), ValueError, "model must return one row for each of 2 items"),
        (lambda m, x: m.c(x), ValueError, r"target: an index needs outputs of shape \(N, classes\)"),
        (
            lambda m, x: m.c(x).flatten(1).mean(1),
            ValueError,
            r"target: an index needs outputs of shape \(N, classes\)",
        ),
        (lambda m, x: torch.ones(2, 4), ValueError, "target: the score does not depend on the inputs"),
        (
            lambda m, x: m.c.weight.flatten()[:8].reshape(2, 4),
            ValueError,
            "the score does not depend on the inputs",
        ),
        (lambda m, x: m.c(x).flatten(1) * math.nan, ValueError, "the model's outputs must be finite"),
        (lambda m, x: m.c(x).flatten(1) / 0, ValueError, "the model's outputs must be finite"),
        (lambda m, x: m.c(x * math.inf).flatten(1), ValueError, "the model's outputs must be finite"),
    ],
)
def test_a_model_whose_outputs_are_no_scores_is_refused(function, error, message):
    model = Functional(function, c=nn.Conv2d(3, 4, 6))
    refused(model, error, message, inputs=X.double())


def test_a_nan_inside_the_model_that_the_output_does_not_show_is_refused():
    # the output takes the finite half; a gradient of zero times a NaN is a NaN all the same
    model = Functional(
        lambda m, x: (m.c(x) * torch.tensor([1.0, math.nan]).reshape(2, 1, 1))[:, :1].flatten(1),
        c=nn.Conv2d(3, 2, 6),
    )
    refused(model, ValueError, "must be finite", inputs=X.double())


# settings of rules ----------------------------------------------------------------------------------------

NUMBERS = [
    *[(rule, "epsilon") for rule in (lrp.Epsilon, lrp.ZPlus, lrp.Gamma, lrp.ZBox, lrp.WSquare, lrp.Flat)],
    (lambda epsilon: lrp.AlphaBeta(1, epsilon=epsilon), "epsilon"),
    (lrp.AlphaBeta, "beta"),
    (lrp.Gamma, "gamma"),
]


@pytest.mark.parametrize(("rule", "name"), NUMBERS)
@pytest.mark.parametrize("value", [-1, -1e-9, math.nan, math.inf, -math.inf])
def test_a_negative_or_infinite_setting_is_refused(rule, name, value):
    with pytest.raises(ValueError, match=re.escape(f"{name} must be finite and at least 0, got {value}")):
        rule(**{name: value})


@pytest.mark.parametrize(("rule", "name"), NUMBERS)
@pytest.mark.parametrize("value", ["1", None, True, torch.tensor(1.0), [1]])
def test_a_setting_that_is_no_number_is_refused(rule, name, value):
    with pytest.raises(TypeError, match=f"{name} must be a number, not {type(value).__name__}"):
        rule(**{name: value})


@pytest.mark.parametrize(
    ("low", "high"),
    [(1, 0), (torch.tensor([0.0, 2.0]), 1.0), (torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]))],
)
def test_a_box_with_its_corners_exchanged_is_refused(low, high):
    with pytest.raises(ValueError, match="low must not exceed high"):
        lrp.ZBox(low, high)


def test_a_corner_that_is_no_number_is_refused():
    with pytest.raises(TypeError, match="low must be a number, a tensor or None, not str"):
        lrp.ZBox("0", 1)
    with pytest.raises(TypeError, match="high must be a number, a tensor or None, not list"):
        lrp.ZBox(0, [1])


@pytest.mark.parametrize(("low", "high"), [(-1, 5), (-5, 1), (0, 1), (None, 1), (-1, None)])
def test_an_input_that_leaves_its_box_is_refused(model, low, high):
    refused(
        model,
        ValueError,
        "ZBox: the input spans .* leaves the box",
        composite=lrp.Composite(first=lrp.ZBox(low, high)),
    )


@pytest.mark.parametrize("shape", [(2,), (4, 1, 1), (3, 7, 7)])
def test_a_corner_that_does_not_fit_the_input_is_refused(model, shape):
    composite = lrp.Composite(first=lrp.ZBox(torch.full(shape, -9.0), 9))
    refused(model, ValueError, r"ZBox: low and high must broadcast against .*\(2, 3, 6, 6\)", composite=composite)


@pytest.mark.parametrize("rule", [lrp.ZBox(), lrp.WSquare(), lrp.Flat()])
def test_a_rule_for_the_first_layer_is_refused_elsewhere(model, rule):
    name = type(rule).__name__
    for composite in (lrp.Composite(linear=rule), lrp.Composite(names={"head": rule})):
        refused(
            model,
            ValueError,
            f"{name} is for a layer that reads the network's input.*'head'",
            composite=composite,
        )


@pytest.mark.parametrize(
    "before",
    [
        lambda x: x + x.flip(3),  # relevance of a sum belongs to both, in a proportion that these rules do not know
        lambda x: x - x.mean((2, 3), keepdim=True),
        lambda x: x.sum(1, keepdim=True).expand(-1, 3, -1, -1),
        lambda x: torch.nn.functional.max_pool2d(x, 2, 1, 1),
        torch.relu,
        torch.tanh,
    ],
)
@pytest.mark.parametrize("rule", [lrp.ZBox(), lrp.WSquare(), lrp.Flat()])
def test_a_rule_for_the_first_layer_is_refused_after_a_function_that_mixes_or_bends_pixels(before, rule):
    model = Functional(lambda m, x: m.c(before(x)).mean((2, 3)), c=nn.Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match=f"{type(rule).__name__} is for a layer that reads the network's input"):
        lrp.relevance(model, X.double(), 0, composite=everywhere(rule))


@pytest.mark.parametrize("field", ["convolution", "linear", "normalisation", "first"])
@pytest.mark.parametrize("value", ["epsilon", 0.25, object()])
def test_a_composite_of_things_that_are_no_rules_is_refused(field, value):
    with pytest.raises(TypeError, match=f"{field} must be a rule such as"):
        lrp.Composite(**{field: value})


def test_exceptions_by_name_must_map_patterns_to_rules():
    with pytest.raises(TypeError, match="names must map patterns"):
        lrp.Composite(names=[("layer4.*", lrp.ZPlus())])
    with pytest.raises(TypeError, match=r"names\['layer4.\*'\] must be a rule"):
        lrp.Composite(names={"layer4.*": "z+"})


def test_a_layer_on_a_single_item_is_refused():
    model = Functional(lambda m, x: torch.stack([m.c(item) for item in x]).flatten(1), c=nn.Conv2d(3, 1, 6))
    refused(model, lrp.UnhandledOperation, "without the batch dimension", inputs=X.double())


def test_an_unhandled_operation_is_a_not_implemented_error():
    assert issubclass(lrp.UnhandledOperation, NotImplementedError)
