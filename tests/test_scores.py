"""What every attribution asks of model, inputs and target: models and arguments that are easily got wrong."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xaicourse import cam, gradients, lime, lrp, occlusion, scores


class Viewing(nn.Module):
    """A network as many tutorials write it: ``view`` wants the memory in the usual order."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.linear = nn.Conv2d(3, 6, 3), nn.Linear(54, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.max_pool2d(F.relu(self.convolution(x)), 2).view(-1, 54))


def viewing() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return Viewing().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([2, 0])


METHODS = {
    "gradient": gradients.gradient,
    "guided_backprop": gradients.guided_backprop,
    "deconvolution": gradients.deconvolution,
    "integrated_gradients": lambda m, x, y: gradients.integrated_gradients(m, x, y, steps=5),
    "smoothgrad": lambda m, x, y: gradients.smoothgrad(m, x, y, generator=torch.Generator().manual_seed(0)),
    "grad_cam": lambda m, x, y: cam.grad_cam(m, x, y, layer="convolution"),
    "occlusion": lambda m, x, y: occlusion.occlusion(m, x, y, patch=4),
    "rise": lambda m, x, y: occlusion.rise(m, x, y, masks=8, cells=2, generator=torch.Generator().manual_seed(0)),
    "lime": lambda m, x, y: lime.lime(
        m, x, y, segments=torch.arange(64).view(8, 8) // 16, samples=20, generator=torch.Generator().manual_seed(0)
    ),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@every_method
def test_a_model_that_views_its_activations_is_explained_as_one_that_reshapes_them(method):
    model, x, y = viewing()

    class Reshaping(Viewing):
        def forward(self, x: Tensor) -> Tensor:
            return self.linear(F.max_pool2d(F.relu(self.convolution(x)), 2).reshape(-1, 54))

    other = Reshaping().double().eval()
    other.load_state_dict(model.state_dict())
    first, again, expected = method(model, x, y), method(model, x, y), method(other, x, y)
    torch.testing.assert_close(first, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(again, expected, rtol=1e-9, atol=1e-12)


@every_method
@pytest.mark.parametrize("inside", [False, True], ids=["target made outside", "target made inside"])
def test_inference_mode_takes_an_index_for_each_item(method, inside):
    model, x, y = viewing()
    expected = method(model, x, y)
    with torch.inference_mode():
        found = method(model, x, y.clone() if inside else y)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@every_method
def test_a_batch_norm_that_takes_its_statistics_from_the_batch_is_refused(method):
    _, x, y = viewing()
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2, track_running_stats=False), nn.ReLU(), nn.Flatten())
    model.convolution = model[0]
    with pytest.raises(ValueError, match="module '1' \\(BatchNorm2d\\) has no running statistics"):
        method(model.double().eval(), x, y)


class Moody(nn.Module):
    """Nothing in it is known to depend on the mode, and yet it does."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (2 if self.training else 1)


@pytest.mark.parametrize(
    ("model", "part"),
    [
        (nn.Sequential(nn.Linear(3, 3), Moody()), r"as a whole it \(Sequential\)"),
        (nn.Sequential(nn.Linear(3, 3), nn.Dropout()).eval(), r"module '1' \(Dropout\)"),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval(), r"module '1' \(BatchNorm1d\)"),
    ],
)
def test_training_mode_is_refused_and_the_message_says_why_and_what_to_do(model, part):
    if not model.training:
        model[1].train()
    words = rf"evaluation mode, but {part} is in training mode; call model\.eval\(\) first, .* asks self\.training"
    with pytest.raises(ValueError, match=words):
        gradients.gradient(model, torch.ones(1, 3), 0)
    gradients.gradient(model.eval(), torch.ones(1, 3), 0)


@every_method
def test_an_array_is_no_target(method):
    model, x, _ = viewing()
    with pytest.raises(
        TypeError, match="target must be an int, a LongTensor or a function of the outputs, got ndarray"
    ):
        method(model, x, np.array([0, 1]))


def test_a_numpy_integer_is_a_target_and_a_count():
    model, x, _ = viewing()
    found = gradients.integrated_gradients(model, x, np.int64(2), steps=np.int64(3))
    torch.testing.assert_close(found, gradients.integrated_gradients(model, x, 2, steps=3))


def test_outputs_that_are_no_floats_are_refused():
    _, x, _ = viewing()
    with pytest.raises(TypeError, match="model must return outputs of a float dtype, got torch.int64"):
        occlusion.occlusion(lambda x: (x.flatten(1) > 0).long(), x, 0, patch=4)


def test_a_relu_that_is_not_between_inputs_and_score_does_not_count():
    weights = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    seen = []

    def of_weights(x: Tensor) -> Tensor:
        return torch.tanh(x @ F.relu(weights))

    def beside(x: Tensor) -> Tensor:
        seen.append(F.relu(x).mean())
        return torch.tanh(x @ weights)

    x = torch.randn(2, 4, dtype=torch.float64)
    for model in (of_weights, beside):
        for method in (gradients.guided_backprop, gradients.deconvolution):
            with pytest.raises(ValueError, match="model must call a ReLU"):
                method(model, x, 0)


def test_a_recurrent_cell_of_relus_is_refused_as_the_whole_network_is():
    cell = nn.RNNCell(4, 3, nonlinearity="relu").double()
    with pytest.raises(ValueError, match="must not hide its ReLUs in an nn.RNN or nn.RNNCell"):
        gradients.guided_backprop(lambda x: F.relu(cell(x)), torch.randn(2, 4, dtype=torch.float64), 0)


def test_buffers_are_put_back_also_those_made_in_inference_mode():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.inference_mode():
                self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            with torch.inference_mode():
                self.calls += 1
            return 2 * x

    model = Counting().eval()
    with scores.unchanged(model):
        model(torch.ones(1, 2))
        assert model.calls == 1
    assert model.calls == 0


def test_the_compiler_compiles_again_when_the_last_of_many_has_left():
    torch.compiler.reset()
    compilations = []

    def backend(graph, examples):
        compilations.append(graph)
        return graph.forward

    double = torch.compile(lambda x: 2 * x, backend=backend)
    one, other = (
        scores.uncompiled(),
        scores.uncompiled(),
    )  # as from two threads, which do not leave in the order they came
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    double(torch.ones(2))
    assert not compilations
    with pytest.raises(RuntimeError), scores.uncompiled():
        raise RuntimeError
    double(torch.ones(2))
    assert not compilations
    other.__exit__(None, None, None)
    assert double(torch.ones(2)).tolist() == [2, 2] and len(compilations) == 1


@pytest.mark.parametrize(
    "explain",
    [
        lambda model, x: gradients.gradient(model, x, 1),
        lambda model, x: gradients.guided_backprop(model, x, 1),
        lambda model, x: gradients.integrated_gradients(model, x, 1, steps=2),
        lambda model, x: gradients.integrated_gradients(model, x, 1, steps="auto"),
        lambda model, x: gradients.smoothgrad(model, x, 1, samples=2),
        lambda model, x: gradients.expected_gradients(model, x, 1, baselines=torch.zeros(2, *x.shape[1:])),
        lambda model, x: lrp.relevance(model, x, 1),
        lambda model, x: lrp.trace(model, x, 1),
        lambda model, x: cam.grad_cam(model, x, 1, layer="0"),
    ],
)
def test_a_photograph_without_the_axis_of_the_items_is_told_apart_from_other_failures(explain):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    with pytest.raises(ValueError, match=r"inputs must have shape .*\(3, 8, 8\).*3 items.*give inputs\[None\]"):
        explain(model, torch.randn(3, 8, 8))
    with pytest.raises(RuntimeError):  # another size fails with or without the axis: PyTorch says what is wrong
        explain(model, torch.randn(1, 3, 9, 9))
