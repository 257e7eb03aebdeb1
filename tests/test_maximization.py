"""Activation maximization, held against hand calculations, full sorts and the geometry of convolutions."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from xaicourse import digits, images, lrp, maximization, models, removal


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def model():
    ready = small()
    ready(torch.rand(1, 3, 12, 12))
    return ready


@pytest.fixture(scope="module")
def lite0():
    return models.load()


SIZE = (3, 12, 12)


# ------------------------------------------------------------------------------------------------------------
# The ascent
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parametrisation", ["pixels", "fourier"])
@pytest.mark.parametrize("decorrelate", [True, False])
def test_the_best_input_of_a_linear_filter_is_the_filter_itself(parametrisation, decorrelate):
    w = 0.6 * torch.rand(SIZE, generator=seeded()) - 0.3
    linear = nn.Sequential(nn.Flatten(), nn.Linear(432, 1, bias=False)).eval()
    linear[1].weight.data = w.reshape(1, -1)
    found = maximization.maximize(
        linear, 0, normalize=None, size=SIZE, l2=432.0, steps=600, rate=0.1,
        parametrisation=parametrisation, decorrelate=decorrelate, generator=seeded(),
    )  # fmt: skip
    # the maximum of w x - sum (x - 1/2)^2 is at x = 1/2 + w / 2, inside [0, 1]
    assert torch.allclose(found.image, 0.5 + w / 2, atol=5e-3)
    assert found.after == pytest.approx((w * (0.5 + w / 2)).sum().item(), rel=1e-3)


@pytest.mark.parametrize("unit", [3, (3, 1, 2), torch.tensor([1.0, 0, 0, -1, 0, 2]), lambda a: a[:, 3].amax((1, 2))])
def test_a_channel_a_unit_a_direction_and_a_function_are_activated_and_measured_at_the_layer(model, unit):
    found = maximization.maximize(
        model, unit, layer="3", normalize=None, size=SIZE, steps=15, rate=0.1, generator=seeded()
    )
    with torch.no_grad():
        features = model[:4](found.image[None])[0]
    mean = features.mean((1, 2))
    if isinstance(unit, tuple):
        expected = features[unit]
    elif isinstance(unit, torch.Tensor):
        expected = mean @ unit
    else:
        expected = mean[unit] if isinstance(unit, int) else features[3].amax()
    assert found.after == pytest.approx(expected.item(), abs=1e-5) and found.after > found.before
    assert found.image.shape == SIZE and found.image.min() >= 0 and found.image.max() <= 1


def test_a_logit_is_maximised_where_no_layer_is_named(model):
    found = maximization.maximize(model, 2, normalize=None, size=SIZE, steps=15, rate=0.1, generator=seeded())
    with torch.no_grad():
        assert found.after == pytest.approx(model(found.image[None])[0, 2].item(), abs=1e-5)
        assert found.before == pytest.approx(model(found.start[None])[0, 2].item(), abs=1e-5)
    assert found.after > found.before


@pytest.mark.parametrize("parametrisation", ["pixels", "fourier"])
@pytest.mark.parametrize("size", [(3, 12, 12), (3, 11, 14), (1, 9, 10)])
def test_the_ascent_begins_at_the_image_that_is_given(parametrisation, size):
    start = 0.05 + 0.9 * torch.rand(size, generator=seeded())
    shown = []
    flat = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(size), 2)).eval()
    found = maximization.maximize(
        flat, 0, normalize=None, start=start, steps=1, rate=1e-9, parametrisation=parametrisation,
        callback=lambda step, image, activation: shown.append(image),
    )  # fmt: skip
    assert torch.equal(found.start, start) and torch.allclose(shown[0], start, atol=1e-4)


def test_every_regulariser_changes_the_image_and_keeps_it_an_image(model):
    def run(**settings):
        return maximization.maximize(
            model, 3, layer="3", normalize=None, size=SIZE, steps=10, generator=seeded(), **settings
        )

    plain = run()
    switches = [
        {"jitter": 2}, {"scale": 0.3}, {"blur": 0.5}, {"total_variation": 1.0}, {"l2": 5.0}, {"decorrelate": False},
        {"parametrisation": "pixels"}, {"parametrisation": "pixels", "blur": 0.5},
    ]  # fmt: skip
    for switch in switches:
        found = run(**switch)
        assert not torch.allclose(found.image, plain.image, atol=1e-3), switch
        assert found.image.min() >= 0 and found.image.max() <= 1


def variation(image):
    return (image.diff(dim=1).abs().mean() + image.diff(dim=2).abs().mean()).item()


def test_blur_and_total_variation_smooth_and_l2_takes_the_image_to_gray(model):
    def run(**settings):
        return maximization.maximize(
            model, 3, layer="3", normalize=None, size=SIZE, steps=40, rate=0.1, generator=seeded(),
            parametrisation="pixels", decorrelate=False, **settings,
        ).image  # fmt: skip

    plain = run()
    assert variation(run(blur=0.6)) < 0.7 * variation(plain)
    assert variation(run(total_variation=1.0)) < 0.7 * variation(plain)
    assert (run(l2=20.0) - 0.5).abs().mean() < 0.7 * (plain - 0.5).abs().mean()


def test_the_same_seed_gives_the_same_image_and_another_seed_another(model):
    def run(seed):
        return maximization.maximize(
            model, 1, layer="3", normalize=None, size=SIZE, steps=5, jitter=3, scale=0.2, generator=seeded(seed)
        )

    assert torch.equal(run(1).image, run(1).image) and torch.equal(run(1).history, run(1).history)
    assert not torch.allclose(run(1).image, run(2).image)


def test_the_callback_sees_the_image_grow(model):
    steps = []
    found = maximization.maximize(
        model, 1, normalize=None, size=SIZE, steps=4, generator=seeded(), callback=lambda *now: steps.append(now)
    )
    assert [step for step, _, _ in steps] == [0, 1, 2, 3]
    assert torch.equal(steps[-1][1], found.image) and not torch.equal(steps[0][1], found.image)
    assert [activation for _, _, activation in steps] == found.history.tolist()


def test_the_model_is_run_no_further_than_the_layer(model):
    calls = []
    handle = model[6].register_forward_hook(lambda *_: calls.append(1))
    try:
        maximization.maximize(model, 1, layer="3", normalize=None, size=SIZE, steps=7)
    finally:
        handle.remove()
    assert len(calls) == 1  # to see that the layer is called once


def test_a_progress_bar_is_shown_where_it_is_asked_for(model, capfd):
    for shown in (False, True):
        maximization.maximize(model, 1, normalize=None, size=SIZE, steps=4, progress=shown, generator=seeded())
        assert ("0/4" in capfd.readouterr().err) is shown


def test_a_shift_moves_and_a_zoom_keeps_the_middle():
    image = torch.zeros(1, 9, 9)
    image[0, 4, 4] = 1
    moved = maximization._shifted(image, 3, seeded())
    assert moved.sum() == 1 and not torch.equal(moved, image)
    assert torch.equal(maximization._shifted(image, 0, None), image)
    found = {divmod(int(maximization._shifted(image, 1, seeded(seed))[0].argmax()), 9) for seed in range(100)}
    assert found == {(row, column) for row in (3, 4, 5) for column in (3, 4, 5)}
    ramp = torch.arange(9.0).expand(1, 9, 9) / 8
    factor = 1 + 0.5 * (2 * torch.rand((), generator=seeded(1)).item() - 1)
    zoomed = maximization._zoomed(ramp, 0.5, seeded(1))
    assert abs(factor - 1) > 0.1
    assert torch.allclose(zoomed[0, :, 3:6], 0.5 + (ramp[0, :, 3:6] - 0.5) / factor, atol=1e-5)
    assert torch.equal(maximization._zoomed(ramp, 0.0, None), ramp)


@given(st.integers(4, 20), st.integers(4, 20), st.floats(0.2, 3))
@settings(max_examples=20)
def test_a_blur_keeps_the_mean_and_is_the_same_in_both_parametrisations(height, width, sigma):
    z = torch.randn(2, height, width, generator=seeded(), dtype=torch.float64)
    size = (2, height, width)
    plain = maximization._blurred(z, sigma, size, False)
    assert torch.allclose(plain.mean((1, 2)), z.mean((1, 2))) and variation(plain) < variation(z)
    back = maximization._spectrum(height, width, z.device, z.dtype)
    assert torch.allclose(back(maximization._to_spectrum(z)), z)
    assert torch.allclose(back(maximization._blurred(maximization._to_spectrum(z), sigma, size, True)), plain)


def test_the_colours_correlate_as_in_the_courses_photographs():
    covariances = []
    for name in images.names():
        image = images.load(name)
        if not torch.equal(image[0], image[1]):  # not those in gray
            covariances.append(torch.cov(F.interpolate(image[None], size=(64, 64), mode="area")[0].flatten(1).double()))
    mean = sum(covariances) / len(covariances)
    deviation = mean.diag().sqrt()
    stated = torch.tensor(maximization.COLOUR_CORRELATION, dtype=torch.float64)
    assert len(covariances) == 9 and torch.allclose(mean / deviation / deviation[:, None], stated, atol=0.006)
    mix = maximization._colours(True)
    assert torch.allclose(mix @ mix.T, stated)


def test_the_ascent_normalises_as_the_transform_does(lite0):
    image = torch.rand(3, 224, 224, generator=seeded())
    transform = models.transform()
    found = maximization.maximize(lite0, 5, normalize=transform, start=image, steps=1, rate=1e-9)
    by_hand = transform.__class__(224, 224, transform.mean, transform.std, transform.interpolation)
    with torch.no_grad():
        assert found.before == pytest.approx(lite0(by_hand(image)[None])[0, 5].item(), abs=1e-4)


def test_the_activation_of_many_images_is_that_of_each(model):
    pictures = torch.rand(5, *SIZE, generator=seeded())
    with torch.no_grad():
        maps, logits = model[:4](pictures), model(pictures)
    found = maximization.activation(model, pictures, 3, layer="3", normalize=None, chunk=2)
    assert torch.allclose(found, maps[:, 3].mean((1, 2))) and not found.requires_grad
    assert torch.allclose(maximization.activation(model, pictures, 1, normalize=None), logits[:, 1])
    strongest = maximization.activation(model, pictures, lambda a: a[:, 3].amax((1, 2)), layer="3", normalize=None)
    assert torch.allclose(strongest, maps[:, 3].amax((1, 2)))
    with pytest.raises(ValueError, match="unit must be from 0 to 5"):
        maximization.activation(model, pictures, 6, layer="3", normalize=None)
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        maximization.activation(model, -pictures, 3, layer="3", normalize=None)


# ------------------------------------------------------------------------------------------------------------
# DeepDream
# ------------------------------------------------------------------------------------------------------------


def test_a_dream_raises_what_the_layer_sees_and_keeps_the_size_of_the_photograph(model):
    photograph = torch.rand(3, 40, 52, generator=seeded())
    convolutions = model[:5].eval()
    sizes = []
    found = maximization.deepdream(
        convolutions, photograph, layer="3", normalize=None, octaves=3, steps=4, jitter=2, generator=seeded(),
        callback=lambda step, image, activation: sizes.append(tuple(image.shape[1:])),
    )  # fmt: skip
    assert found.image.shape == photograph.shape and torch.equal(found.start, photograph)
    assert found.after > 1.1 * found.before and len(found.history) == 12
    assert sizes[::4] == [(20, 27), (29, 37), (40, 52)]
    with torch.no_grad():
        assert found.before == pytest.approx(convolutions[:4](photograph[None]).square().mean().item() / 2, rel=1e-5)


def test_a_dream_carries_what_was_added_from_octave_to_octave():
    model = nn.Sequential(nn.Conv2d(3, 2, 1)).eval()
    photograph = 0.4 + 0.2 * torch.rand(3, 40, 52, generator=seeded())
    found = maximization.deepdream(
        model, photograph, 1, layer="0", normalize=None, octaves=3, steps=2, rate=0.005, jitter=0
    )
    w = model[0].weight[1].detach()  # the gradient is the same everywhere: 3 x 2 steps along it
    assert torch.allclose(found.image, photograph + 6 * 0.005 * w / w.abs().mean(), atol=1e-5)


def test_a_step_of_a_dream_moves_a_pixel_by_the_rate_on_average(model):
    photograph = 0.4 + 0.2 * torch.rand(3, 40, 52, generator=seeded())
    found = maximization.deepdream(
        model[:5].eval(), photograph, 2, layer="3", normalize=None, octaves=1, steps=1, rate=0.003, jitter=0
    )
    assert (found.image - photograph).abs().mean().item() == pytest.approx(0.003, rel=1e-3)


# ------------------------------------------------------------------------------------------------------------
# The best samples
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["max", "mean"])
@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_the_best_of_a_stream_equal_the_first_of_a_full_sort(model, pool, chunk):
    samples = torch.rand(40, *SIZE, generator=seeded())
    with torch.no_grad():
        features = model[:4](samples).flatten(2)
    everything = features.amax(2) if pool == "max" else features.mean(2)
    values, indices = everything.sort(dim=0, descending=True, stable=True)
    found = maximization.rank_samples(model, samples, layer="3", normalize=None, k=6, pool=pool, chunk=chunk)
    assert torch.allclose(found.values, values[:6], atol=1e-6) and torch.equal(found.indices, indices[:6])
    assert found.samples == 40


def test_equal_samples_are_ranked_in_their_order(model):
    samples = torch.rand(1, *SIZE, generator=seeded()).expand(9, -1, -1, -1)
    found = maximization.rank_samples(model, samples, layer="3", normalize=None, k=4, chunk=3)
    assert (found.indices == torch.arange(4)[:, None]).all()


def test_a_stream_holds_no_more_than_a_chunk_of_the_samples(model):
    class Made:
        most = alive = 0

        def __len__(self):
            return 50

        def __getitem__(self, number):
            Made.most = max(Made.most, number)
            return torch.rand(SIZE, generator=seeded(number)), number  # as torchvision: with a label

    seen = []
    handle = model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    try:
        found = maximization.rank_samples(model, Made(), layer="3", normalize=None, k=2, chunk=8)
    finally:
        handle.remove()
    assert max(seen) == 8 and Made.most == 49 and found.values.shape == (2, 6)


def test_the_best_samples_come_with_place_receptive_field_and_relevance(model):
    samples = torch.rand(30, *SIZE, generator=seeded())
    best = maximization.top_samples(model, samples, 2, layer="3", normalize=None, k=3, composite="epsilon")
    with torch.no_grad():
        maps = model[:4](samples)[:, 2]
    assert torch.equal(best.images, samples[best.indices])
    assert torch.allclose(best.values, maps.flatten(1).amax(1).sort(descending=True).values[:3])
    for index, (row, column), value in zip(best.indices, best.places.tolist(), best.values, strict=True):
        assert maps[index, row, column] == value
    # the second convolution sees 2 x (2 + 3) + ... = 8 pixels through the pooling, and the first one pixel more on each side
    for (row, column), box in zip(best.places.tolist(), best.boxes.tolist(), strict=True):
        assert box == [max(2 * row - 1, 0), max(2 * column - 1, 0), min(2 * row + 7, 12), min(2 * column + 7, 12)]
    outside = torch.ones_like(best.relevance, dtype=torch.bool)
    for item, (top, left, bottom, right) in zip(outside, best.boxes.tolist(), strict=True):
        item[:, top:bottom, left:right] = False
    assert (best.relevance[outside] == 0).all() and best.relevance.abs().sum() > 0
    assert [crop.shape[1:] for crop in best.crops()] == [(b - t, r - m) for t, m, b, r in best.boxes.tolist()]


def test_the_relevance_of_a_mean_activation_is_lrp_from_the_whole_channel(model):
    samples = torch.rand(10, *SIZE, generator=seeded())
    best = maximization.top_samples(model, samples, 2, layer="3", normalize=None, k=2, pool="mean")
    whole = lrp.relevance(model, best.images, None, start=lrp.channel("3", 2))
    assert torch.allclose(best.relevance, whole / 16, atol=1e-6)  # 4 x 4 places
    assert best.boxes.tolist() == [[0, 0, 12, 12]] * 2


def test_a_ranking_that_is_given_is_used_and_gives_the_same(model):
    samples = torch.rand(20, *SIZE, generator=seeded())
    setting = {"layer": "3", "normalize": None, "k": 3}
    ranking = maximization.rank_samples(model, samples, **setting)
    for unit in (0, 5):
        alone = maximization.top_samples(model, samples, unit, **setting)
        again = maximization.top_samples(model, samples, unit, ranking=ranking, **setting)
        assert torch.equal(alone.indices, again.indices) and torch.allclose(alone.relevance, again.relevance)


def test_relevance_for_a_class_ranks_by_what_the_channel_carries_of_the_score(model):
    samples = torch.rand(20, *SIZE, generator=seeded())
    layers = lrp.trace(model, samples, 1).layers["4"]
    expected = layers.flatten(2).sum(2)
    setting = {"layer": "4", "normalize": None, "by": "relevance", "target": 1}
    found = maximization.rank_samples(model, samples, k=4, chunk=6, **setting)
    assert torch.allclose(found.values, expected.sort(dim=0, descending=True).values[:4], atol=1e-5)
    best = maximization.top_samples(model, samples, 3, k=2, **setting)
    assert torch.equal(best.indices, found.indices[:2, 3])
    only = torch.zeros_like(layers)
    only[:, 3] = layers[:, 3]
    chosen = best.indices
    assert torch.allclose(
        best.relevance, lrp.relevance(model, samples[chosen], None, start={"4": only[chosen]}), atol=1e-5
    )


@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 3), st.booleans()), min_size=1, max_size=4
    )  # kernel, stride, pooling
)
@settings(max_examples=25)
def test_receptive_fields_are_those_of_the_layers_geometry(stack):
    layers, size, jump = [], 1, 1
    for kernel, stride, pooling in stack:
        layers.append(nn.MaxPool2d(kernel, stride) if pooling else nn.Conv2d(1, 1, kernel, stride))
        size, jump = size + (kernel - 1) * jump, jump * stride
    height, width = size + 2 * jump, size + 3 * jump
    stack = nn.Sequential(*layers, nn.ReLU()).eval()
    places = torch.tensor([[0, 0], [1, 2], [2, 3]])
    boxes = maximization.receptive_fields(stack, (1, height, width), places, layer=str(len(layers) - 1))
    expected = [[r * jump, c * jump, r * jump + size, c * jump + size] for r, c in places.tolist()]
    assert boxes.tolist() == expected


def test_a_global_pooling_sees_the_whole_image():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gate = nn.Conv2d(3, 2, 3), nn.Identity()

        def forward(self, x):
            y = self.conv(x)
            return self.gate(y * y.mean((2, 3), keepdim=True).sigmoid()).mean((2, 3))

    model, place = Gated().eval(), torch.tensor([[0, 0]])
    assert maximization.receptive_fields(model, (3, 9, 9), place, layer="conv").tolist() == [[0, 0, 3, 3]]
    assert maximization.receptive_fields(model, (3, 9, 9), place, layer="gate").tolist() == [[0, 0, 9, 9]]


def test_a_place_that_sees_nothing_but_padding_sees_nothing_of_the_image():
    padded = nn.Sequential(nn.Conv2d(3, 4, 1, stride=4, padding=2)).eval()
    places = torch.tensor([[0, 0], [1, 0], [1, 1]])
    found = maximization.receptive_fields(padded, (3, 16, 16), places, layer="0")
    assert found.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [2, 2, 3, 3]]
    assert maximization.receptive_fields(padded, (3, 16, 16), places[:0], layer="0").shape == (0, 4)


# ------------------------------------------------------------------------------------------------------------
# Hiding
# ------------------------------------------------------------------------------------------------------------


def test_hiding_the_only_pixel_that_counts_takes_the_activation_away():
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU()).eval()
    model[0].weight.data.fill_(4.0)
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 5, 6] = 0.5
    hidden = maximization.hide(
        model, image, image, 0, layer="1", normalize=None, removal=removal.baseline(0.0), side=1, controls=400,
        generator=seeded(),
    )  # fmt: skip
    assert hidden.active.item() == 2 and hidden.relevant.item() == 0 and hidden.corners.tolist() == [[5, 6]]
    assert (hidden.random == 0).double().mean().item() == pytest.approx(1 / 64, abs=0.02)
    assert hidden.fall.item() == pytest.approx(hidden.random.mean().item() / 2)


def test_the_square_with_the_largest_sum_is_hidden_and_squares_lie_within_the_image(model):
    pictures = torch.rand(2, *SIZE, generator=seeded())
    relevance = torch.zeros(2, 1, 12, 12)
    relevance[0, 0, 3:6, 7:10] = 1
    relevance[1, 0, 9:, :3] = 1
    seen = []

    def watching(inputs, removed):
        seen.append(removed)
        return removal.mean()(inputs, removed)

    found = maximization.hide(
        model, pictures, relevance, 1, layer="3", normalize=None, removal=watching, side=3, controls=50,
        generator=seeded(),
    )  # fmt: skip
    assert found.corners.tolist() == [[3, 7], [9, 0]]
    assert (torch.cat(seen).sum((1, 2, 3)) == 27).all() and len(torch.cat(seen)) == 102
    with torch.no_grad():
        active = model[:4](pictures)[:, 1].flatten(1).amax(1)
    assert torch.allclose(found.active, active) and found.random.shape == (2, 50)


# ------------------------------------------------------------------------------------------------------------
# The claims, on the course's network
# ------------------------------------------------------------------------------------------------------------


def test_ascent_raises_a_channel_and_each_regulariser_changes_what_appears_and_how_high_it_gets(lite0):
    def run(**settings):
        return maximization.maximize(
            lite0, 17, layer="head.bn", normalize=models.transform(), size=(3, 96, 96), steps=24, generator=seeded(),
            **settings,
        )  # fmt: skip

    plain = run()
    assert plain.after > plain.before + 10
    for switch in ({"jitter": 8}, {"blur": 0.4}, {"parametrisation": "pixels"}):
        found = run(**switch)
        assert found.before + 3 < found.after < plain.after - 2, switch
        assert (found.image - plain.image).abs().mean() > 0.03, switch
    smooth = run(
        total_variation=50.0
    )  # it costs so little height that rounding decides its sign (lecture 02: 0.1 of 6)
    assert smooth.after > smooth.before + 3 and (smooth.image - plain.image).abs().mean() > 0.03
    assert variation(smooth.image) < 0.9 * variation(plain.image)


def test_hiding_what_is_relevant_lowers_a_channel_more_than_hiding_as_much_at_random(lite0):
    pool = maximization.photograph_crops(["chelsea", "coffee", "motorcycle", "astronaut", "china"], stride=128)
    setting = {"layer": "blocks.10.expand.bn", "normalize": models.transform()}
    ranking = maximization.rank_samples(lite0, pool, k=1, **setting)
    falls = []
    for unit in range(0, 480, 40):
        best = maximization.top_samples(lite0, pool, unit, k=1, ranking=ranking, **setting)
        hidden = maximization.hide(
            lite0, best.images, best.relevance, unit, removal=removal.mean(), side=32, controls=8,
            generator=seeded(unit), **setting,
        )  # fmt: skip
        falls.append(hidden.fall)
    falls = torch.cat(falls).double()
    assert falls.mean() > 3 * falls.std() / len(falls) ** 0.5 and (falls > 0).double().mean() > 0.75


def test_maximal_activation_and_maximal_relevance_for_a_class_pick_different_images():
    network = digits.load()
    pictures = digits.samples("test")[0][:200]
    setting = {"normalize": None, "k": 5}
    layer = next(name for name, module in network.named_modules() if isinstance(module, nn.Conv2d))
    active = maximization.rank_samples(network, pictures, layer=layer, **setting)
    relevant = maximization.rank_samples(network, pictures, layer=layer, by="relevance", target=3, **setting)
    shared = (active.indices[:, None] == relevant.indices[None]).any(1).double().mean()
    assert shared < 0.5


# ------------------------------------------------------------------------------------------------------------
# Pools
# ------------------------------------------------------------------------------------------------------------


def test_crops_cover_the_photographs_on_a_grid():
    pool = maximization.photograph_crops(["chelsea", "coins"], size=64, stride=64, shorter=128)
    assert pool.corners[0] == ("chelsea", 0, 0) and len(pool) == 2 * 3 + 2 * 2
    name, top, left = pool.corners[4]
    assert torch.equal(pool[4], pool.photographs[name][:, top : top + 64, left : left + 64])
    whole = maximization.photograph_crops(["coffee"], size=100, stride=100, shorter=None)
    assert len(whole) == 4 * 6 and torch.equal(whole[0], images.load("coffee")[:, :100, :100])


def test_pascal_voc_is_read_from_where_it_lies_and_its_absence_says_the_way_out(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder must hold VOCdevkit .*download=True"):
        maximization.voc_crops(tmp_path)
    base = tmp_path / "VOCdevkit/VOC2012"
    for part in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (base / part).mkdir(parents=True)
    (base / "ImageSets/Main/val.txt").write_text("one\ntwo\n")
    for number, name in enumerate(("one", "two")):
        image = torch.full((3, 60, 90), number, dtype=torch.uint8) * 255
        from torchvision.transforms.functional import to_pil_image

        to_pil_image(image).save(base / f"JPEGImages/{name}.jpg")
        (base / f"Annotations/{name}.xml").write_text("<annotation><object><name>bus</name></object></annotation>")
    pool = maximization.voc_crops(tmp_path, size=48)
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 46 * 46, 2)).eval()
    network[0].weight.data.fill_(1.0)
    found = maximization.rank_samples(network, pool, layer="0", normalize=None, k=1)
    assert len(pool) == 2 and found.indices.tolist() == [[1, 1]]


# ------------------------------------------------------------------------------------------------------------
# The model, and what is refused
# ------------------------------------------------------------------------------------------------------------


def test_the_model_is_as_it_was_also_after_an_error(model):
    def stop(*_):
        raise RuntimeError("stop")

    before = copy.deepcopy(model.state_dict())
    samples = torch.rand(4, *SIZE, generator=seeded())
    maximization.maximize(model, 1, layer="3", normalize=None, size=SIZE, steps=2)
    best = maximization.top_samples(model, samples, 1, layer="3", normalize=None, k=2)
    maximization.hide(
        model, best.images, best.relevance, 1, layer="3", normalize=None, removal=removal.mean(), side=3, controls=2
    )
    with pytest.raises(RuntimeError, match="stop"):
        maximization.maximize(model, 1, layer="3", normalize=None, size=SIZE, steps=2, callback=stop)
    with pytest.raises(RuntimeError):
        maximization.maximize(model, 1, layer="3", normalize=None, size=(3, 5, 5), steps=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters()) and not model.training


def refuse_maximize(model, error, match, unit=1, **settings):
    with pytest.raises(error, match=match):
        maximization.maximize(model, unit, **{"normalize": None, "size": SIZE, "steps": 2} | settings)


def test_a_direction_and_a_start_made_in_inference_mode_serve_as_well(model):
    direction, start = torch.linspace(-1, 1, 6), torch.rand(SIZE)
    with torch.inference_mode():
        made = direction.clone(), start.clone()
    one, other = (
        maximization.maximize(model, unit, layer="3", normalize=None, start=image, steps=2)
        for unit, image in ((direction, start), made)
    )
    assert torch.equal(one.image, other.image) and one.after == other.after


def test_the_start_that_is_kept_is_a_copy():
    model, start = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.rand(3, 20, 20)
    for found in (
        maximization.maximize(model, 1, layer="0", normalize=None, start=start, steps=1),
        maximization.deepdream(model, start, layer="0", normalize=None, octaves=1, steps=1),
    ):
        assert torch.equal(found.start, start) and found.start.data_ptr() != start.data_ptr()


def test_a_unit_that_does_not_exist_is_refused_and_it_is_said_how_many_there_are(model):
    refuse_maximize(model, ValueError, "unit must be from 0 to 4, since the model's output has 5 channels, got 5", 5)
    refuse_maximize(
        model, ValueError, "unit must be from 0 to 5, since layer '3' has 6 channels, got 99", 99, layer="3"
    )
    refuse_maximize(model, ValueError, "unit must lie within the 6 x 4 x 4 of layer '3', got", (1, 4, 0), layer="3")
    refuse_maximize(model, ValueError, "at layer '3' must have 6 components, got 2", torch.ones(2), layer="3")
    refuse_maximize(model, ValueError, "unit must be at least 0, got -1", -1)
    refuse_maximize(model, TypeError, "unit must be an int, got float", 1.0)
    refuse_maximize(model, ValueError, "unit must give one float score", lambda a: a, layer="3")
    refuse_maximize(model, ValueError, "does not depend on the image", lambda a: torch.zeros(1), layer="3")
    with pytest.raises(ValueError, match="unit must be from 0 to 5"):
        maximization.top_samples(model, torch.rand(3, *SIZE), 6, layer="3", normalize=None, k=1)


def test_a_model_without_the_layer_is_refused_and_it_is_said_which_there_are(model):
    match = "layer must be the path of a module of the model, got 'head'; there are 7, such as '0', '1'"
    refuse_maximize(model, ValueError, match, layer="head")
    with pytest.raises(ValueError, match=match):
        maximization.rank_samples(model, torch.rand(3, *SIZE), layer="head", normalize=None, k=1)
    with pytest.raises(ValueError, match=match):
        maximization.deepdream(model, torch.rand(3, 32, 32), layer="head", normalize=None)
    shared = nn.ReLU()
    twice = nn.Sequential(nn.Conv2d(3, 2, 3), shared, nn.Conv2d(2, 2, 3), shared, nn.Flatten()).eval()
    refuse_maximize(twice, ValueError, "'1' must be called once in a forward pass, and was called 2 times", layer="1")
    with pytest.raises(ValueError, match="'1' must be called once in a forward pass, and was called 2 times"):
        maximization.rank_samples(twice, torch.rand(3, *SIZE), layer="1", normalize=None, k=1)


def test_settings_that_make_no_sense_are_refused_before_any_work(model):
    def fail(*_):
        raise AssertionError("the model was run")

    handle = model.register_forward_pre_hook(fail)
    try:
        refuse_maximize(model, ValueError, "steps must be at least 1, got 0", steps=0)
        refuse_maximize(model, ValueError, "rate must be above 0", rate=0.0)
        refuse_maximize(model, ValueError, "jitter must be at least 0", jitter=-1)
        refuse_maximize(model, ValueError, "scale must be below 1", scale=1.0)
        refuse_maximize(model, ValueError, "blur must be at least 0", blur=-0.1)
        refuse_maximize(model, TypeError, "l2 must be a number", l2="strong")
        refuse_maximize(model, ValueError, "parametrisation must be 'pixels' or 'fourier'", parametrisation="wavelet")
        refuse_maximize(model, TypeError, "decorrelate must be True or False", decorrelate=1)
        refuse_maximize(model, TypeError, "generator must be", generator=3)
        refuse_maximize(model, TypeError, "callback must be a function", callback=3)
        refuse_maximize(model, TypeError, "normalize must be None, a models.Transform or a function", normalize="lite0")
        refuse_maximize(
            model, ValueError, r"start must lie in \[0, 1\], got values from 2 to 2", start=2 * torch.ones(SIZE)
        )
        refuse_maximize(model, ValueError, "size must be", size=(12, 12))
        with pytest.raises(ValueError, match=r"photograph must lie in \[0, 1\]"):
            maximization.deepdream(model, torch.full((3, 32, 32), math.nan), layer="3", normalize=None)
        with pytest.raises(ValueError, match="octaves must leave at least 16 pixels"):
            maximization.deepdream(model, torch.rand(3, 32, 32), layer="3", normalize=None, octaves=5)
        samples = torch.rand(4, *SIZE)
        for settings_, message in (
            ({"k": 5}, "k must be from 1 to 4, the number of samples"),
            ({"k": 1, "pool": "sum"}, "pool must be 'max' or 'mean'"),
            ({"k": 1, "by": "relevance"}, "target must be a class with by='relevance'"),
            ({"k": 1, "target": 1}, "target must be a class with by='relevance'"),
            ({"k": 1, "chunk": 0}, "chunk"),
        ):
            with pytest.raises(ValueError, match=message):
                maximization.rank_samples(model, samples, layer="3", normalize=None, **settings_)
        with pytest.raises(ValueError, match=r"samples\[0\] must lie in \[0, 1\]"):
            maximization.rank_samples(model, 255 * samples, layer="3", normalize=None, k=1)
        ranking = maximization.Ranking(torch.zeros(2, 6), torch.zeros(2, 6, dtype=torch.long), 9)
        with pytest.raises(ValueError, match="ranking must be of these 4 samples, got one of 9"):
            maximization.top_samples(model, samples, 0, layer="3", normalize=None, k=1, ranking=ranking)
        with pytest.raises(TypeError, match="ranking must be a Ranking or None, got tuple"):
            maximization.top_samples(model, samples, 0, layer="3", normalize=None, k=1, ranking=(1, 2))
        hiding = {"layer": "3", "normalize": None, "side": 3}
        for channels in (0, 2):
            with pytest.raises(ValueError, match=r"relevance must have the shape of images, .* or one channel"):
                relevance = torch.ones(4, channels, *SIZE[1:])
                maximization.hide(model, samples, relevance, 1, removal=removal.mean(), **hiding)
        with pytest.raises(TypeError, match="removal must be a function"):
            maximization.hide(model, samples, samples, 1, removal=0.0, **hiding)
        with pytest.raises(ValueError, match="side must be from 1 to 12"):
            maximization.hide(
                model, samples, samples, 1, layer="3", normalize=None, removal=removal.mean(), side=13
            )  # fmt: skip
    finally:
        handle.remove()
    with pytest.raises(ValueError, match="evaluation mode"):
        maximization.maximize(small().train(), 0, normalize=None, size=SIZE)
    with pytest.raises(ValueError, match="size must be at most 128, the shorter side of 'chelsea', got 200"):
        maximization.Crops({"chelsea": torch.rand(3, 128, 300)}, size=200, stride=10)
