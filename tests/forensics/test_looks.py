"""Receptive fields agree with arithmetic and with experiment; the strongest place is the largest entry of LRP's map."""

import pytest
import torch
from torch import nn

from xaicourse import lrp
from xaicourse.forensics import channels, detectors, looks

from .networks import same_state, settled, state

# Five convolutions of 3 x 3 with strides 1, 2, 1, 2, 1: one step in the map is so many pixels, and from the middle so many are
# seen to either side. Each convolution adds the step before it to what is seen.
STEP = [1, 2, 2, 4, 4]
RADIUS = [1, 1 + 1, 2 + 2, 4 + 2, 6 + 4]


def _by_hand(depth: int, row: int, side: int) -> tuple[int, int]:
    middle, radius = STEP[depth] * row, RADIUS[depth]
    return max(middle - radius, 0), min(middle + radius + 1, side)


@pytest.mark.parametrize("depth", range(5))
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_receptive_fields_of_the_small_detector_by_hand(depth, share):
    height, width = 48, 32
    row, column = int(share * (height // STEP[depth] - 1)), int((1 - share) * (width // STEP[depth] - 1))
    (top, bottom), (left, right) = _by_hand(depth, row, height), _by_hand(depth, column, width)
    found = looks.receptive_field(detectors.build("small"), f"backbone.{3 * depth + 1}", (row, column), (height, width))
    assert found == (top, left, bottom, right)


def test_inside_the_last_convolution_of_the_small_detector_sees_21_pixels():
    assert looks.receptive_field(detectors.build("small"), "backbone.13", (4, 3), (32, 32)) == (6, 2, 27, 23)


def test_receptive_fields_of_efficientnet_lite0():
    detector = detectors.build("efficientnet_lite0", pretrained=False)
    first, *_, last = channels.norms(detector)
    # 3 x 3 with stride 2 and TensorFlow's "same": at an even side all of the padding lies below and on the right
    assert looks.receptive_field(detector, first, (0, 3), (64, 64)) == (0, 6, 3, 9)
    assert looks.receptive_field(detector, first, (31, 31), (64, 64)) == (62, 62, 64, 64)
    assert looks.receptive_field(detector, last, (1, 0), (64, 64)) == (0, 0, 64, 64), "the last sees everything"


class _Seen(Exception):
    """Raised where what follows in a network is of no interest."""


def _changes(model: nn.Module, path: str, place: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    """What a row or column of noise changes at a place: the receptive field by experiment."""

    def look(_module, _inputs, y):
        differs = (y[1:, :, place[0], place[1]] != y[0, :, place[0], place[1]]).any(1)
        raise _Seen(*(part.nonzero()[:, 0].tolist() for part in differs.split(side)))

    draw = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, side, side, generator=draw, dtype=torch.float64)
    changed = x.expand(2 * side, -1, -1, -1).clone()
    for at in range(side):
        changed[at, :, at] = torch.rand(3, side, generator=draw, dtype=torch.float64)
        changed[side + at, :, :, at] = torch.rand(3, side, generator=draw, dtype=torch.float64)
    channels.norms(model)[path].register_forward_hook(look)
    with pytest.raises(_Seen) as seen:
        model(torch.cat([x, changed]))
    rows, columns = seen.value.args
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


@pytest.mark.parametrize(
    ("name", "path", "place"),
    [
        ("small", "backbone.13", (3, 6)),
        ("efficientnet_lite0", "backbone.blocks.3.expand.bn", (5, 2)),
        ("resnet50", "backbone.layer1.0.bn1", (3, 5)),  # behind the max pooling
        ("resnet50", "backbone.layer1.1.bn2", (6, 0)),
    ],
)
def test_what_a_place_is_said_to_see_is_what_changes_it(name, path, place):
    detector = settled(detectors.build(name, pretrained=False)).double()
    assert looks.receptive_field(detector, path, place, (32, 32)) == _changes(detector, path, place, 32)


def test_many_places_at_once_are_each_alone_and_the_model_is_left_as_it_was():
    detector = settled(detectors.build("small")).train()
    before, places = state(detector), [(0, 0), (3, 5), (7, 7), (3, 5), (0, 5)]
    found = looks.receptive_fields(detector, "backbone.10", places, (32, 32))
    assert found == [looks.receptive_field(detector, "backbone.10", place, (32, 32)) for place in places]
    assert same_state(state(detector), before) and detector.training
    assert not any(module._forward_hooks for module in detector.modules())


def test_places_and_paths_that_are_not_there_are_refused():
    detector = detectors.build("small")
    with pytest.raises(ValueError, match=r"path must be of a batch norm, got 'backbone.0'; there are backbone.1, "):
        looks.receptive_field(detector, "backbone.0", (0, 0), (32, 32))
    for place in ((8, 0), (0, -1)):
        with pytest.raises(ValueError, match=r"place must lie in a map of 8 x 8, got \("):
            looks.receptive_field(detector, "backbone.13", place, (32, 32))
    for channel in (("backbone.0", 1), ("backbone.1", 32), ("backbone.1", -1)):
        with pytest.raises(ValueError, match=r"channels must be of the model's batch norms, got \('backbone"):
            looks.strongest(detector, torch.rand(1, 3, 32, 32), [channel])


def test_the_strongest_place_is_the_largest_entry_of_the_map_of_lrp(trained):
    chosen = [("backbone.4", 3), ("backbone.13", 60), ("backbone.13", 0), ("backbone.1", 31)]
    pictures = trained.fake[:7]
    places, most = looks.strongest(trained.detector, pictures, chosen, chunk=3)
    assert places.shape == (7, 4, 2) and most.shape == (7, 4)
    layers = lrp.trace(trained.detector, pictures, 0, composite=channels.COMPOSITE).layers
    for i in range(7):
        for c, (path, index) in enumerate(chosen):
            R = layers[path][i, index]
            row, column = places[i, c].tolist()
            assert R[row, column] == pytest.approx(R.max().item(), abs=1e-6)
            assert most[i, c].item() == pytest.approx(R.max().item(), abs=1e-6)
    assert places[:, 3].max() > 7, "channels of different maps have places of their own size"


def test_colourfulness_is_nothing_on_gray_and_by_hand_on_colour():
    gray = torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1)
    assert torch.allclose(looks.colourfulness(gray), torch.zeros(2, 4, 5), atol=1e-7)
    red = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None]
    assert looks.colourfulness(red).item() == pytest.approx((2 / 9) ** 0.5)  # mean 1/3: (4/9 + 1/9 + 1/9) / 3
