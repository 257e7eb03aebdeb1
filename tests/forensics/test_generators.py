import pytest
import torch
from torch import nn

from xaicourse.forensics import generators, patches

from .networks import same_state, settled, state

KINDS = tuple(generators.KINDS)


def test_there_are_the_four_ways_to_enlarge_that_the_lecture_compares():
    assert KINDS == ("transposed", "nearest", "bilinear", "pixel shuffle")


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_has_half_the_height_and_width_and_the_decoder_doubles_them(kind):
    model = generators.Autoencoder(kind).eval()
    z = model.encoder(torch.rand(2, 3, 32, 32))
    assert z.shape == (2, 8, 16, 16)
    assert model.decoder(z).shape == (2, 3, 32, 32)
    assert model.decoder(z[:, :, :5, :9]).shape == (2, 3, 10, 18)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(x), model.decoder(model.encoder(x)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_has_no_bias_but_in_its_batch_norms(kind):
    decoder = generators.Autoencoder(kind, width=12).decoder
    layers = [m for m in decoder if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    assert len(layers) == 3
    assert all(layer.bias is None for layer in layers)
    assert [m.num_features for m in decoder if isinstance(m, nn.BatchNorm2d)] == [12, 12]


def test_generators_differ_in_nothing_but_how_they_enlarge():
    def without_enlarging(kind):
        decoder = generators.Autoencoder(kind).decoder
        known = (nn.BatchNorm2d, nn.ReLU)
        return [str(decoder[0]), *(str(m) for m in decoder if isinstance(m, known)), str(decoder[-1])]

    assert len({str(without_enlarging(kind)) for kind in KINDS}) == 1
    assert len({str(generators.Autoencoder(kind).encoder) for kind in KINDS}) == 1
    assert len({str(generators.Autoencoder(kind).decoder) for kind in KINDS}) == 4


def enlarged(kind: str, z: torch.Tensor) -> torch.Tensor:
    """What the enlarging layers alone make of features; their weights are those of seed 0."""
    torch.manual_seed(0)
    with torch.no_grad():
        return nn.Sequential(*generators.KINDS[kind](4, 4))(z)


def test_the_four_ways_to_enlarge_leave_their_traces_on_a_flat_field():
    def periods(kind):
        """Whether the inside of an enlarged constant varies from pixel to pixel: the grid of period two."""
        inside = enlarged(kind, torch.ones(1, 4, 8, 8))[0, :, 4:-4, 4:-4]
        assert torch.allclose(inside[:, 2:], inside[:, :-2])
        assert torch.allclose(inside[:, :, 2:], inside[:, :, :-2])
        return float((inside[:, 1:] - inside[:, :-1]).abs().max())

    assert periods("transposed") > 0.01
    assert periods("pixel shuffle") > 0.01
    assert periods("nearest") < 1e-6
    assert periods("bilinear") < 1e-6


def test_nearest_repeats_pixels_and_bilinear_does_not():
    z = torch.rand(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    nearest, bilinear = (generators.KINDS[kind](4, 4)[0](z) for kind in ("nearest", "bilinear"))
    assert torch.equal(nearest[..., ::2, ::2], z)
    assert torch.equal(nearest[..., 1::2, 1::2], z)
    torch.testing.assert_close(bilinear[..., 1:-1:2, 2], 0.75 * bilinear_row(z, 0) + 0.25 * bilinear_row(z, 1))


def bilinear_row(z: torch.Tensor, below: int) -> torch.Tensor:
    """Rows of z between whose centres the enlarged ones lie, at column 0.75: a quarter of the first, the rest of the second."""
    rows = z[..., below : 7 + below, :]
    return 0.25 * rows[..., 0] + 0.75 * rows[..., 1]


def test_an_unknown_way_to_enlarge_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="kind must be one of transposed, nearest, bilinear, pixel shuffle, got 'sub'"):
        generators.Autoencoder("sub")
    with pytest.raises(ValueError, match="kind must be one of"):
        generators.train("sub", ("chelsea",), steps=1)


@pytest.mark.parametrize("steps", [0, -1, 2.5, True])
def test_steps_that_are_no_count_are_refused(steps):
    with pytest.raises((TypeError, ValueError), match="^steps must be"):
        generators.train("nearest", ("chelsea",), steps=steps)


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_error_on_other_photographs(kind):
    train, _, test = patches.split(1)
    real = patches.crop(test, 48)
    untrained = generators.train(kind, train, seed=2, steps=1)
    model = generators.train(kind, train, seed=2, steps=20)
    assert not any(module.training for module in model.modules())
    with torch.no_grad():
        before, after = ((m(real) - real).abs().mean().item() for m in (untrained, model))
    assert after < 0.75 * before


def test_training_is_a_function_of_the_seed_and_leaves_random_numbers_alone():
    before = torch.get_rng_state()
    first = generators.train("bilinear", ("flower",), seed=3, steps=2)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    again = generators.train("bilinear", ("flower",), seed=3, steps=2)
    other = generators.train("bilinear", ("flower",), seed=4, steps=2)
    assert same_state(state(first), state(again))
    assert not same_state(state(first), state(other))


@pytest.fixture(scope="module")
def vivid() -> generators.Autoencoder:
    """A generator some of whose output leaves [0, 1]."""
    model = settled(generators.Autoencoder("nearest"), seed=1)
    with torch.no_grad():
        model.decoder[-1].weight.mul_(4)
    return model


def test_codes_are_drawn_near_those_of_real_patches_as_far_as_is_asked_for(vivid):
    real = patches.crop(("coffee", "china"), 24)
    with torch.no_grad():
        own = vivid.encoder(real)
    assert torch.equal(generators.codes(vivid, real, noise=0), own)
    spread = own.std((0, 2, 3))
    for noise in (0.1, 0.5):
        away = generators.codes(vivid, real, noise=noise, generator=torch.Generator().manual_seed(3)) - own
        torch.testing.assert_close(away.std((0, 2, 3)), noise * spread, rtol=0.05, atol=0)
        assert (away.mean((0, 2, 3)).abs() < 0.06 * noise * spread).all()
    assert generators.codes(vivid, real).requires_grad is False


@pytest.mark.parametrize("draw", [generators.codes, generators.counterfeit])
def test_what_is_drawn_is_a_function_of_the_generator(vivid, draw):
    real = patches.crop(("coffee", "china"), 6)
    before = torch.get_rng_state()
    first = draw(vivid, real)
    assert torch.equal(first, draw(vivid, real))
    seeded = [draw(vivid, real, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("change", "message"), [({"noise": -0.1}, "noise"), ({"generator": 3}, "generator")])
def test_noise_that_is_none_is_refused(vivid, change, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message} must be"):
        generators.codes(vivid, patches.crop(("coffee",), 2), **change)


def test_counterfeits_are_the_generators_pictures_as_files_hold_them(vivid):
    real = patches.crop(("coffee", "china"), 21)
    for noise in (0.0, 0.3):
        fake = generators.counterfeit(vivid, real, noise=noise)
        with torch.no_grad():
            whole = vivid.decoder(generators.codes(vivid, real, noise=noise))
        assert whole.min() < 0 or whole.max() > 1
        assert torch.equal(fake, whole.clamp(0, 1).mul(255).round().div(255))
        assert not fake.requires_grad


def test_without_noise_counterfeits_do_not_depend_on_how_patches_are_cut_into_chunks(vivid):
    real = patches.crop(("coffee", "china"), 21)
    whole, cut = (generators.counterfeit(vivid, real, noise=0, chunk=chunk) for chunk in (21, 4))
    assert (whole - cut).abs().max() <= 1.001 / 255


def test_a_generator_in_training_mode_is_refused_and_its_statistics_stay():
    model = generators.Autoencoder("nearest", width=8).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="evaluation mode"):
        generators.counterfeit(model, torch.rand(2, 3, 32, 32))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
