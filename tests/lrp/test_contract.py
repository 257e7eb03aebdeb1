"""The contract of every attribution: what comes back, and that the model comes back as it was."""

import copy
import gc
import threading
import weakref

import pytest
import torch
from torch import nn

from xaicourse import lrp

from .networks import (
    Functional,
    agree,
    everywhere,
    network,
    photographs,
    randomised,
    same,
    small_convolutional,
    snapshot,
)

PLUS = everywhere(lrp.ZPlus())


@pytest.fixture
def model() -> nn.Module:
    return network("small")


@pytest.fixture
def x() -> torch.Tensor:
    return photographs(2, 32)


# what comes back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("composite", lrp.COMPOSITES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relevance_has_the_shape_dtype_and_device_of_the_inputs(model, x, dtype, composite):
    r = lrp.relevance(model.to(dtype), x.to(dtype), 3, composite=composite)
    assert (r.shape, r.dtype, r.device) == (x.shape, dtype, x.device)
    assert not r.requires_grad and r.grad_fn is None and r.is_leaf
    assert torch.isfinite(r).all() and (r < 0).any()  # signed, not clipped


@pytest.mark.parametrize("composite", lrp.COMPOSITES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_what_it_can_or_says_that_it_cannot(model, x, dtype, composite):
    wanted = lrp.relevance(model, x.to(dtype).double(), 3, composite=composite)
    try:
        r = lrp.relevance(model.to(dtype), x.to(dtype), 3, composite=composite)
    except ValueError as error:
        # a bias of 0.3 over a stabiliser of 1e-6 is more than float16 can hold
        assert dtype == torch.float16 and "the relevance must be finite" in str(error)
    else:
        assert (r.shape, r.dtype) == (x.shape, dtype)
        assert torch.nn.functional.cosine_similarity(r.double().flatten(), wanted.flatten(), 0) > 0.95


def test_a_trace_holds_output_relevance_layers_and_ledger(model, x):
    trace = lrp.trace(model, x, 3)
    agree(trace.relevance, lrp.relevance(model, x, 3), 1e-12)
    agree(trace.output, model(x).detach(), 1e-12)
    assert not trace.output.requires_grad and not trace.relevance.requires_grad
    assert set(trace.layers) == {"", *(name for name, _ in model.named_children())} - {
        "0",
        "6",
    }  # merged: "1", "7"
    assert len(trace.ledger) == sum(row.rule != "" for row in trace.ledger) > 10


def test_explaining_twice_gives_the_same_numbers(model, x):
    for composite in lrp.COMPOSITES:
        first = lrp.relevance(model, x, 3, composite=composite)
        assert torch.equal(lrp.relevance(model, x, 3, composite=composite), first)


def test_the_memory_layout_of_the_inputs_makes_no_difference(model, x):
    wanted = lrp.relevance(model, x, 3)
    strange = x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    for layout in (x.contiguous(memory_format=torch.channels_last), strange):
        agree(lrp.relevance(model, layout, 3), wanted, 1e-12)
    agree(lrp.relevance(model, x[:1].expand(4, -1, -1, -1), 3)[2:3], wanted[:1], 1e-12)


def test_the_inputs_are_not_written_to(x):
    model = Functional(lambda m, t: m.c(t.sub_(0.1).div_(0.5)).flatten(1), c=nn.Conv2d(3, 1, 3))
    x.requires_grad_()
    before, version = x.detach().clone(), x._version
    lrp.relevance(model, x, 3)
    assert torch.equal(x, before) and x._version == version and x.grad is None and x.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_gradient_mode_makes_no_difference(model, x, mode):
    wanted = lrp.relevance(model, x, 3)
    with mode():
        enabled, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        assert torch.equal(lrp.relevance(model, x, 3), wanted)
        assert torch.equal(lrp.relevance(model, x.clone(), 3), wanted)  # an inference tensor
        agree(lrp.trace(model, x.clone(), 3).relevance, wanted, 1e-12)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == (enabled, inference)


def test_a_model_made_in_inference_mode_can_be_explained(x):
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(0)
        model = randomised(small_convolutional())
    clone = small_convolutional().double().eval()
    clone.load_state_dict(model.state_dict())
    agree(lrp.relevance(model, x, 3), lrp.relevance(clone, x, 3))


def test_frozen_parameters_make_no_difference(model, x):
    wanted = lrp.relevance(model, x, 3)
    assert torch.equal(lrp.relevance(model.requires_grad_(False), x, 3), wanted)


# the model comes back as it was ---------------------------------------------------------------------------


def test_the_model_is_untouched(model, x):
    model.requires_grad_(True)
    model[3].weight.requires_grad_(False)
    model[11].weight.grad = torch.ones_like(model[11].weight)
    before = snapshot(model)
    for composite in lrp.COMPOSITES:
        lrp.relevance(model, x, 3, composite=composite)
        lrp.trace(model, x, 3, composite=composite)
        assert same(snapshot(model), before)


class Oops(Exception):
    pass


@pytest.mark.parametrize("error", [Oops("mine"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("explain", [lrp.relevance, lrp.trace])
def test_the_model_is_untouched_after_an_exception_in_its_midst(model, x, explain, error):
    class Fails(nn.Module):
        def forward(self, t):
            raise error

    wanted = lrp.relevance(model, x, 3)
    broken = nn.Sequential(*model[:8], Fails(), *model[8:]).eval()
    before, whole = snapshot(broken), snapshot(model)
    with pytest.raises(type(error)):
        explain(broken, x, 3)
    assert same(snapshot(broken), before) and same(snapshot(model), whole)
    assert torch.equal(lrp.relevance(model, x, 3), wanted)


@pytest.mark.parametrize("explain", [lrp.relevance, lrp.trace])
def test_the_model_is_untouched_after_an_operation_that_nobody_knows_in_its_last_layer(model, x, explain):
    broken = Functional(lambda m, t: torch.fft.fft(m.part(t)).real, part=model)
    before = snapshot(broken)
    with pytest.raises(lrp.UnhandledOperation):
        explain(broken, x, 3)
    assert same(snapshot(broken), before)


def test_the_model_is_untouched_after_an_exception_in_the_target(model, x):
    def target(y):
        raise Oops

    before = snapshot(model)
    with pytest.raises(Oops):
        lrp.relevance(model, x, target)
    assert same(snapshot(model), before)


def test_the_model_still_trains_afterwards(model, x):
    lrp.relevance(model, x, 3)
    lrp.trace(model, x, 3)
    model(x).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_model_can_be_copied_and_saved_afterwards(model, x, tmp_path):
    wanted = lrp.relevance(model, x, 3)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    fresh = network("small")
    fresh.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(lrp.relevance(fresh, x, 3), wanted)
    assert torch.equal(lrp.relevance(copy.deepcopy(model), x, 3), wanted)


@pytest.mark.parametrize("explain", [lrp.relevance, lrp.trace])
def test_a_users_hook_that_keeps_a_layers_output_finds_its_values_there(model, x, explain):
    kept = {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda m, i, o, name=name: kept.update({name: o}))
    explain(model, x, 3)
    hooked = {name: value.detach().clone() for name, value in kept.items()}
    model(x)
    for name, value in kept.items():
        if not isinstance(model[int(name)], nn.ReLU) and name not in ("1",):  # "1" is written over by an in-place ReLU
            agree(hooked[name], value.detach(), 1e-12)


def test_a_users_hook_that_changes_an_output_is_part_of_the_model(model, x):
    without = lrp.relevance(model, x, 3)
    model[8].register_forward_hook(lambda m, i, o: 0 * o + 1.0)
    trace = lrp.trace(model, x, 3)
    with torch.no_grad():
        agree(trace.output, model(x), 1e-12)
    assert torch.equal(trace.relevance, torch.zeros_like(x)) and without.abs().max() > 0


def test_users_global_hooks_stay(model, x):
    calls = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, i, o: calls.append(type(m).__name__))
    try:
        before = snapshot(model)
        lrp.relevance(model, x, 3)
        assert same(snapshot(model), before) and calls.count("Conv2d") == 3
    finally:
        handle.remove()


def test_models_and_their_activations_are_not_kept_alive(x):
    model = network("small")
    parts = [weakref.ref(t) for t in (model, model[0].weight, *(p for p in model.parameters()))]
    trace = lrp.trace(model, x, 3)
    lrp.relevance(model, x, 3)
    del model
    gc.collect()
    assert not any(part() is not None for part in parts)
    assert trace.relevance.shape == x.shape


# weights that change between calls ------------------------------------------------------------------------
# Split and merged weights are remembered between calls. Whatever changes a weight must be noticed.


def swap_entries(w):
    w.data[0, 0], w.data[1, 0] = w.data[1, 0].clone(), w.data[0, 0].clone()


CHANGES = {
    "in place": lambda m: m[0].weight.detach().mul_(-1),
    "by no_grad": lambda m: torch.no_grad()(m[0].weight.neg_)(),
    "one entry through .data": lambda m: m[0].weight.data[0, 0, 0, 0].add_(0.5),
    "one entry through .data, a little": lambda m: m[0].weight.data[0, 0, 0, 0].add_(1e-6),
    "through .data, to zero": lambda m: m[0].weight.data.zero_(),
    "through .data, signs": lambda m: m[3].weight.data.neg_(),
    "entries swapped": lambda m: swap_entries(m[0].weight),
    "channels swapped": lambda m: m[0].weight.data.copy_(m[0].weight.data.flip(0).clone()),
    "square matrix transposed": lambda m: m[13].weight.data.copy_(m[13].weight.data.T.clone()),
    "rows swapped": lambda m: m[13].weight.data.copy_(m[13].weight.data.roll(1, 0).clone()),
    "columns swapped": lambda m: m[13].weight.data.copy_(m[13].weight.data.roll(1, 1).clone()),
    "a new parameter": lambda m: setattr(m[0], "weight", nn.Parameter(-m[0].weight.detach())),
    "a new tensor as .data": lambda m: setattr(m[0].weight, "data", -m[0].weight.data),
    "a bias": lambda m: m[3].bias.data.neg_(),
    "a bias taken away": lambda m: setattr(m[3], "bias", None),
    "the mean of a batch norm": lambda m: m[1].running_mean.data.add_(0.5),
    "the variance of a batch norm": lambda m: m[1].running_var.data.mul_(2),
    "the scale of a batch norm": lambda m: m[1].weight.data.neg_(),
    "the shift of a batch norm": lambda m: m[1].bias.data.add_(0.5),
    "the eps of a batch norm": lambda m: setattr(m[1], "eps", 0.1),
    "the stride": lambda m: setattr(m[6], "stride", (2, 2)),
    "the padding": lambda m: setattr(m[6], "padding", (0, 0)),
    "the groups": lambda m: (
        setattr(m[6], "groups", 2),
        setattr(m[6].weight, "data", m[6].weight.data[:, :4].clone()),
    ),
    "a state dict": lambda m: m.load_state_dict(
        {k: v.flip(0) if v.dim() > 1 else v for k, v in m.state_dict().items()}
    ),
    "an optimiser": lambda m: torch.optim.SGD(m.parameters(), 0.1).step() or [p.data.mul_(0.9) for p in m.parameters()],
    "another dtype and back": lambda m: m.float().double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_weight_is_noticed(model, x, change):
    square = nn.Linear(16, 16, dtype=torch.float64)
    nn.init.normal_(square.weight, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(*model[:13], square, *model[13:]).eval()
    before = {name: lrp.relevance(model, x, 3, composite=c) for name, c in composites().items()}
    CHANGES[change](model)
    fresh = copy.deepcopy(model)
    for name, composite in composites().items():
        got, wanted = (
            lrp.relevance(model, x, 3, composite=composite),
            lrp.relevance(fresh, x, 3, composite=composite),
        )
        agree(got, wanted, 1e-12)
        assert not torch.equal(got, before[name]), "the change makes no difference, so that the test shows nothing"


def composites():
    return {"plus": PLUS, "gamma": everywhere(lrp.Gamma()), "alpha-beta": everywhere(lrp.AlphaBeta(1))}


def test_a_transposed_square_matrix_is_noticed_where_no_rounding_gives_it_away():
    # u^T W u = u^T W^T u to the last bit, if one probing vector u serves both sides
    model = nn.Linear(2, 2).double().eval()
    x = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    model.bias.data.fill_(5)
    model.weight.data = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    agree(lrp.relevance(model, x, 0, composite=PLUS), torch.tensor([[0.0, 8.0]]).double(), 1e-5)
    model.weight.data.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    assert torch.equal(lrp.relevance(model, x, 0, composite=PLUS), torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_small_change_of_a_low_precision_weight_is_noticed(dtype):
    torch.manual_seed(0)
    model = nn.Linear(256, 256).to(dtype).eval()
    x = torch.rand(1, 256).to(dtype)
    for i in range(0, 256, 5):
        lrp.relevance(model, x, i, composite=PLUS)
        model.weight.data[i, i] += 4e-3
        fresh = copy.deepcopy(model)
        assert torch.equal(lrp.relevance(model, x, i, composite=PLUS), lrp.relevance(fresh, x, i, composite=PLUS))


# threads --------------------------------------------------------------------------------------------------


def test_threads_that_explain_at_the_same_time_do_not_disturb_each_other(x):
    jobs = [(network(name), photographs(2, 32, seed), c) for name, seed, c in THREADED]
    shared = jobs[0][0]
    jobs.append((shared, photographs(2, 32, 9), "epsilon_gamma_box"))  # two threads, one model
    wanted = [lrp.relevance(m, t, 3, composite=c) for m, t, c in jobs]
    got: list = [None] * len(jobs)
    barrier = threading.Barrier(len(jobs))

    def work(i):
        m, t, c = jobs[i]
        barrier.wait()
        got[i] = [lrp.relevance(m, t, 3, composite=c) for _ in range(4)] + [lrp.trace(m, t, 3, composite=c)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for results, r in zip(got, wanted, strict=True):
        for result in results[:-1]:
            agree(result, r, 1e-12)
        agree(results[-1].relevance, r, 1e-12)
        assert abs(results[-1].ledger.unaccounted) < 1e-6
        assert {row.module for row in results[-1].ledger} <= {
            "",
            *map(str, range(14)),
            "fc",
            "conv1",
            "maxpool",
        } | {row.module for row in results[-1].ledger if row.module.startswith(("layer", "bn", "relu", "avgpool"))}


THREADED = [("small", 2, "epsilon_plus"), ("resnet18", 3, "epsilon_alpha2_beta1"), ("small", 4, "epsilon")]


def test_a_thread_that_only_runs_a_model_sees_nothing_of_an_explanation_beside_it(model, x):
    other, stop, seen = network("small"), threading.Event(), []
    with torch.no_grad():
        wanted = other(x)

    def run():
        with torch.no_grad():
            while not stop.is_set():
                seen.append(torch.equal(other(x), wanted))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        rows = [row.module for _ in range(10) for row in lrp.trace(model, x, 3).ledger]
    finally:
        stop.set()
        thread.join()
    assert seen and all(seen) and len(rows) % 10 == 0


# devices --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("composite", lrp.COMPOSITES)
@pytest.mark.parametrize("name", ["small", "resnet18"])
def test_a_gpu_gives_what_the_cpu_gives(name, composite):
    model, x = network(name), photographs(2, 64 if name == "resnet18" else 32)
    wanted = lrp.trace(model, x, torch.tensor([3, 5]), composite=composite)
    model, x = model.cuda(), x.cuda()
    got = lrp.relevance(model, x, torch.tensor([3, 5]), composite=composite)  # the target may stay on the CPU
    assert got.device == x.device
    agree(got.cpu(), wanted.relevance, 1e-8)
    trace = lrp.trace(model, x, torch.tensor([3, 5], device="cuda"), composite=composite)
    agree(trace.relevance.cpu(), wanted.relevance, 1e-8)
    assert abs(trace.ledger.input - wanted.ledger.input) < 1e-8 * max(row.incoming_abs for row in wanted.ledger)
