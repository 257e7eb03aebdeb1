import copy

import pytest
import torch
from torch import nn
from torch.func import jacrev, jvp, vjp

from xaicourse import lrp
from xaicourse.forensics import channels, detectors, fooling, generators, patches

from .networks import same_state, settled, state, without_biases

KINDS = tuple(generators.KINDS)
LRP0 = lrp.Composite(convolution=lrp.Epsilon(0.0), linear=lrp.Epsilon(0.0), normalisation=lrp.Epsilon(0.0))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(kind: str, seed: int = 0) -> fooling.Counterfeiter:
    """A generator with a detector, both random, batch norms as after training."""
    torch.manual_seed(seed)
    autoencoder = settled(generators.Autoencoder(kind, width=12), seed)
    return fooling.Counterfeiter(autoencoder, settled(detectors.build("small", seed=seed), seed + 1))


def codes(count: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 8, 16, 16, generator=seeded(seed))


# ------------------------------------------------------------------------------------------------------------
# Relevance through a generator conserves
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("composite", ["epsilon", "epsilon_plus", LRP0], ids=["epsilon", "epsilon_plus", "LRP-0"])
def test_the_ledger_accounts_for_the_whole_score_from_detector_to_code(kind, composite):
    model, z = network(kind).double(), codes().double()
    trace = lrp.trace(model, z, 0, composite=composite)
    score = model(z).sum().item()
    size = max(row.incoming_abs for row in trace.ledger)
    assert trace.ledger.output == pytest.approx(score, rel=1e-9)
    assert trace.ledger.input == pytest.approx(trace.relevance.sum().item(), abs=1e-9 * size)
    assert abs(trace.ledger.unaccounted) < 1e-9 * size
    assert all(abs(row.unexplained) < 1e-9 * size for row in trace.ledger)
    assert any(row.module.startswith("decoder.") and row.bias != 0 for row in trace.ledger) == (
        composite != "epsilon_plus" or kind == "pixel shuffle"
    ), "shifts of batch norms take their share, where the rule lets them"


def plain_detector(seed: int = 0) -> nn.Module:
    """No biases, and no shift of the picture: f(a x) = a f(x) for a > 0."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 1, bias=False)
    ).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_lrp_0_conserves_exactly_where_there_are_no_biases(kind):
    torch.manual_seed(1)
    autoencoder = generators.Autoencoder(kind, width=12).eval()
    for at, module in enumerate(autoencoder.decoder):
        if isinstance(module, nn.BatchNorm2d):
            autoencoder.decoder[at] = nn.Identity().eval()
    model, z = fooling.Counterfeiter(autoencoder, plain_detector()).double(), codes().double()
    relevance = lrp.relevance(model, z, 0, composite=LRP0)
    with torch.no_grad():
        torch.testing.assert_close(relevance.sum((1, 2, 3)), model(z)[:, 0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_every_channel_of_the_generator_has_the_whole_score_where_batch_norms_only_scale(kind):
    model = network(kind).double()
    without_biases(model.decoder)
    model.detector = plain_detector().double()
    z = codes().double()
    trace = lrp.trace(model, z, 0, composite=LRP0)
    with torch.no_grad():
        score = model(z)[:, 0]
    for layer in (trace.relevance, *(trace.layers[path] for path in channels.norms(model))):
        torch.testing.assert_close(layer.sum((1, 2, 3)), score, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------
# Relevance through a generator is adjoint to its Jacobian
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_lrp_0_carries_relevance_to_the_code_by_the_transpose_of_the_jacobian(kind):
    G, z = network(kind).decoder.double(), codes(2).double()[:, :, :4, :4].contiguous()
    c = torch.randn(2, 3, 8, 8, generator=seeded(5)).double()
    last = str(len(G) - 1)
    relevance = lrp.relevance(G, z, None, start={last: lambda x: x * c}, composite=LRP0)
    for i in range(2):
        J = jacrev(lambda code: G(code[None])[0])(z[i])  # (3, 8, 8, 8, 4, 4): all of it, entry by entry
        transposed = (J * c[i, :, :, :, None, None, None]).sum((0, 1, 2))
        torch.testing.assert_close(relevance[i], z[i] * transposed, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_map_that_lrp_0_makes_is_the_adjoint_of_the_directional_derivative(kind):
    G, z = network(kind, seed=3).decoder.double(), codes(2).double()
    generator = seeded(6)
    for _ in range(3):
        v = torch.randn(z.shape, generator=generator).double()
        c = torch.randn(2, 3, 32, 32, generator=generator).double()
        x, Jv = jvp(G, (z,), (v,))
        relevance = lrp.relevance(G, z, None, start={str(len(G) - 1): x.detach() * c}, composite=LRP0)
        back = relevance / z  # J^T c, if LRP is right
        torch.testing.assert_close((Jv * c).sum(), (v * back).sum(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(back, vjp(G, z)[1](c)[0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_from_the_detectors_score_lrp_0_is_code_times_gradient_and_channel_times_gradient(kind):
    model, z = network(kind).double(), codes(2).double().requires_grad_()
    kept: dict[str, torch.Tensor] = {}

    def keep(path):
        def hook(_module, _x, y):
            y.retain_grad()
            kept[path] = y

        return hook

    norms = [path for path in channels.norms(model) if path.startswith("decoder.")]
    handles = [model.get_submodule(path).register_forward_hook(keep(path)) for path in norms]
    # the ReLUs after them do not work in place, so that what the batch norm gave is still there
    model(z).sum().backward()
    for handle in handles:
        handle.remove()
    trace = lrp.trace(model, z.detach(), 0, composite=LRP0)
    torch.testing.assert_close(trace.relevance, (z * z.grad).detach(), rtol=1e-7, atol=1e-12)
    assert len(norms) == 2
    for path in norms:
        expected = (kept[path] * kept[path].grad).detach()
        torch.testing.assert_close(trace.layers[path], expected, rtol=1e-7, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------
# Batch norms are merged
# ------------------------------------------------------------------------------------------------------------


def merged(decoder: nn.Sequential) -> nn.Sequential:
    """The same decoder with its batch norms in the weights and biases of the convolutions before them."""
    layers: list[nn.Module] = []
    for module in copy.deepcopy(decoder):
        if not isinstance(module, nn.BatchNorm2d):
            layers.append(module)
            continue
        scale = module.weight / (module.running_var + module.eps).sqrt()
        convolution = layers[-1]
        if isinstance(convolution, nn.ConvTranspose2d):  # its weights are (in, out, …)
            convolution.weight.data = convolution.weight.data * scale[None, :, None, None]
        else:
            convolution.weight.data = convolution.weight.data * scale[:, None, None, None]
        convolution.bias = nn.Parameter((module.bias - module.running_mean * scale).detach())
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("kind", ["transposed", "nearest", "bilinear"])  # a pixel shuffle stands between
def test_a_batch_norm_counts_as_part_of_the_convolution_before_it_a_transposed_one_too(kind):
    model, z = network(kind).double(), codes().double()
    with torch.no_grad():
        model.decoder[1].weight[::2] *= -1  # merged, some weights change their sign, which z+ looks at
        next(m for m in reversed(model.decoder) if isinstance(m, nn.BatchNorm2d)).weight[::3] *= -1
    by_hand = copy.deepcopy(model)
    by_hand.decoder = merged(model.decoder)
    torch.testing.assert_close(by_hand(z), model(z))
    for composite in ("epsilon_plus", "epsilon_alpha2_beta1"):
        found, expected = (lrp.relevance(m, z, 0, composite=composite) for m in (model, by_hand))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9 * expected.abs().max().item())


# ------------------------------------------------------------------------------------------------------------
# Codes, ranking, attack
# ------------------------------------------------------------------------------------------------------------


def test_the_network_is_the_detector_of_the_generators_pictures(trained):
    model = fooling.Counterfeiter(trained.autoencoder, trained.detector)
    z = generators.codes(trained.autoencoder, trained.real[:4], noise=0)
    assert z.shape == (4, 8, 16, 16)
    assert not z.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(model(z), trained.detector(trained.autoencoder(trained.real[:4])))
    assert not any(m.training for m in model.modules())


def test_channels_of_the_generator_are_ranked_for_the_detectors_score(trained):
    model = fooling.Counterfeiter(trained.autoencoder, trained.detector)
    z = generators.codes(trained.autoencoder, trained.real[:40])
    ranking = channels.rank(model, z, composite="epsilon_plus", within="decoder.", shard=16)
    assert {path for path, _ in ranking.channels} == {"decoder.1", "decoder.4"}
    assert len(ranking.channels) == sum(trained.autoencoder.decoder[at].num_features for at in (1, 4))
    assert ranking.pictures == int((model(z)[:, 0].sigmoid() >= 0.9).sum())
    with pytest.raises(ValueError, match="ranking must be of this model"):
        ranking.check_model(trained.detector)


def test_an_attack_on_no_channel_is_the_generator_as_it_is(trained):
    model = fooling.Counterfeiter(trained.autoencoder, trained.detector)
    z = generators.codes(trained.autoencoder, trained.real[:6])
    found = fooling.attack(model, z, [])
    assert torch.equal(found.pictures, generators.counterfeit(trained.autoencoder, trained.real[:6]))
    assert torch.equal(found.distortion, torch.zeros(6))
    torch.testing.assert_close(found.detected, detectors.logits(trained.detector, found.pictures))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["after", "before"])
def test_an_attack_is_the_generator_without_these_channels_as_its_detector_sees_it(kind, where):
    model, z = network(kind), codes(5)
    paths = [path for path in channels.norms(model) if path.startswith("decoder.")]
    chosen = [(paths[0], 2), (paths[1], 0), (paths[1], 7)]
    by_hand = copy.deepcopy(model.decoder)
    with torch.no_grad():
        for path, channel in chosen:
            norm = by_hand[int(path.split(".")[1])]
            if where == "before":
                norm.bias[channel] -= (
                    norm.weight[channel] * norm.running_mean[channel] / (norm.running_var[channel] + norm.eps).sqrt()
                )
                norm.running_mean[channel] = 0
            else:
                norm.bias[channel] = 0
            norm.weight[channel] = 0
        expected, whole = by_hand(z).clamp(0, 1), model.decoder(z).clamp(0, 1)
    before = state(model)
    found = fooling.attack(model, z, chosen, where=where)
    assert same_state(before, state(model))
    assert (found.pictures - expected).abs().max() <= 0.5 / 255 + 1e-5
    assert torch.equal(found.pictures, patches.quantise(found.pictures))
    torch.testing.assert_close(found.distortion, (expected - whole).abs().mean((1, 2, 3)), atol=1 / 255, rtol=0)
    assert found.distortion.min() > 0
    assert found.detected.shape == (5,)
    torch.testing.assert_close(found.detected, detectors.logits(model.detector, found.pictures))


def test_channels_outside_the_generator_are_refused():
    model = network("nearest")
    with pytest.raises(ValueError, match=r"must be of the generator, 'decoder.…', got \('detector.backbone.1', 0\)"):
        fooling.attack(model, codes(), [("decoder.1", 0), ("detector.backbone.1", 0)])
    with pytest.raises(ValueError, match=r"batch norms, got \('decoder.1', 24\)"):
        fooling.attack(model, codes(), [("decoder.1", 24)])
    with pytest.raises(ValueError, match="where must be 'after' or 'before'"):
        fooling.attack(model, codes(), [("decoder.1", 0)], where="inside")


def test_a_generator_without_the_one_channel_that_gives_it_away_is_believed():
    """The detector looks for red; one channel of the generator paints it."""
    torch.manual_seed(0)
    autoencoder = settled(generators.Autoencoder("nearest", width=12))
    with torch.no_grad():
        autoencoder.decoder[-1].weight[0] = 0
        autoencoder.decoder[-1].weight[0, 5, 1, 1] = 1
        autoencoder.decoder[5].bias[5] = 1
    red = nn.Conv2d(3, 2, 1, bias=False)
    detector = nn.Sequential(red, nn.BatchNorm2d(2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1))
    with torch.no_grad():
        red.weight.copy_(torch.tensor([[1.0, 0, 0], [1.0, 0, 0]])[:, :, None, None])
        detector[-1].weight.fill_(20)
        detector[-1].bias.fill_(-4)
    model, z = fooling.Counterfeiter(autoencoder, detector.eval()), codes(6)
    ranking = channels.rank(model, z, composite="epsilon_plus", within="decoder.")
    assert ranking.top(1) == [("decoder.5", 5)]
    assert (fooling.attack(model, z, []).detected > 0).all()
    assert (fooling.attack(model, z, ranking.top(1)).detected < 0).all()
    assert (fooling.attack(model, z, ranking.low(5)).detected > 0).all()
