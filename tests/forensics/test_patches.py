import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from xaicourse import images
from xaicourse.forensics import folders, patches


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def halved(name: str) -> torch.Tensor:
    """The photograph at half its size as Pillow makes it, in its own arithmetic."""
    picture = Image.fromarray((images.load(name).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    return pil_to_tensor(picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BICUBIC)).float()


def is_in(patch: torch.Tensor, photograph: torch.Tensor) -> bool:
    """Whether the patch (3, 32, 32) in [0, 1] is somewhere in the photograph (3, H, W) in [0, 255].

    Pillow halves the width first and rounds and clips in between, which moves a few pixels by more than one level.
    """
    patch = 255 * patch
    windows = photograph.unfold(1, 32, 1).unfold(2, 32, 1)
    near = torch.ones(windows.shape[1:3], dtype=torch.bool)
    for y, x in ((0, 0), (0, 31), (31, 0), (31, 31), (13, 17), (22, 5)):
        near &= ((windows[..., y, x] - patch[:, y, x, None, None]).abs() <= 12).all(0)
    return any(bool((windows[:, top, left] - patch).abs().mean() < 0.6) for top, left in near.nonzero().tolist())


# ------------------------------------------------------------------------------------------------------------
# Photographs
# ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**40))
def test_every_seed_deals_each_photograph_to_one_part_only(seed):
    parts = patches.split(seed)
    assert [len(part) for part in parts] == [5, 2, 2]
    assert sorted(name for part in parts for name in part) == sorted(patches.PHOTOGRAPHS)
    assert patches.split(seed) == parts


def test_over_seeds_every_photograph_is_tested_on():
    assert {name for seed in range(20) for name in patches.split(seed)[2]} == set(patches.PHOTOGRAPHS)


def test_the_photographs_are_all_that_there_are_less_the_gray_ones():
    def colourful(name):
        red, green, blue = images.load(name)
        return not (torch.equal(red, green) and torch.equal(green, blue))

    assert tuple(name for name in images.names() if colourful(name)) == patches.PHOTOGRAPHS
    assert not any(colourful(name) for name in patches.GRAY)


@pytest.mark.parametrize("seed", [-1, 1.0, True, None, "3"])
def test_a_seed_that_is_no_count_is_refused(seed):
    with pytest.raises((TypeError, ValueError), match="^seed must be"):
        patches.split(seed)


# ------------------------------------------------------------------------------------------------------------
# Crops
# ------------------------------------------------------------------------------------------------------------


def test_crops_are_pictures_as_files_hold_them():
    x = patches.crop(patches.PHOTOGRAPHS, 40, generator=seeded(5))
    assert x.shape == (40, 3, 32, 32)
    assert x.dtype == torch.float32
    for picture in x[:9]:
        read_back = pil_to_tensor(to_pil_image((picture * 255).round().byte())).float().div(255)
        assert torch.equal(picture, read_back)
    assert torch.equal(x, (x * 255).round().div(255))
    assert x.min() >= 0
    assert x.max() <= 1


def test_the_same_generator_cuts_the_same_places_and_another_one_others():
    names = ("chelsea", "rocket")
    first = patches.crop(names, 8, generator=seeded(3))
    assert torch.equal(first, patches.crop(names, 8, generator=seeded(3)))
    assert not torch.equal(first, patches.crop(names, 8, generator=seeded(4)))
    assert torch.equal(patches.crop(names, 8), patches.crop(names, 8))


def test_cutting_leaves_the_global_random_numbers_alone():
    before = torch.get_rng_state()
    patches.crop(("chelsea",), 3)
    patches.crop(("chelsea",), 3, generator=seeded(1))
    patches.split(5)
    assert torch.equal(before, torch.get_rng_state())


def test_a_crop_is_found_in_the_photograph_that_it_was_asked_of_and_in_no_other():
    names = ("coffee", "flower", "astronaut")
    whole = {name: halved(name) for name in names}
    mirrored = []
    for at, patch in enumerate(patches.crop(names, 24, generator=seeded(7))):
        own = whole[names[at % 3]]
        assert is_in(patch, own) != is_in(patch.flip(-1), own)
        mirrored.append(is_in(patch.flip(-1), own))
        for name in names:
            if name != names[at % 3]:
                assert not is_in(patch, whole[name])
                assert not is_in(patch.flip(-1), whole[name])
    assert 4 <= sum(mirrored) <= 20


def test_flat_patches_are_left_out():
    x = patches.crop(("hubble", "rocket", "retina"), 60, generator=seeded(2))
    y = (0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]).flatten(1)
    assert y.std(1).min() > 0.0299


def test_photographs_have_flat_places_to_be_left_out():
    whole = halved("hubble").mean(0) / 255
    assert whole.unfold(0, 32, 32).unfold(1, 32, 32).flatten(2).std(2).min() < 0.02


@pytest.mark.parametrize("names", ["chelsea", (), [], ("chelsea", "camera"), ("nobody",), ("chelsea", 3)])
def test_names_that_are_not_colour_photographs_are_refused(names):
    with pytest.raises(ValueError, match="names must be some of .*chelsea.*, got"):
        patches.crop(names, 2)


@pytest.mark.parametrize(("count", "generator"), [(0, None), (2.0, None), (True, None), (2, 7)])
def test_a_count_or_generator_that_is_none_is_refused(count, generator):
    with pytest.raises((TypeError, ValueError), match="^(count|generator) must be"):
        patches.crop(("chelsea",), count, generator=generator)


# ------------------------------------------------------------------------------------------------------------
# Pictures
# ------------------------------------------------------------------------------------------------------------


def test_gray_copies_are_those_that_pillow_makes():
    x = patches.crop(patches.PHOTOGRAPHS, 18, generator=seeded(1))
    gray = patches.grayscale(x)
    assert gray.shape == x.shape
    assert torch.equal(gray[:, 0], gray[:, 1])
    assert torch.equal(gray[:, 0], gray[:, 2])
    assert torch.equal(gray, (gray * 255).round().div(255))
    for picture, copy in zip(x, gray, strict=True):
        pillow = pil_to_tensor(to_pil_image((picture * 255).round().byte()).convert("L")).float()[0]
        assert (copy[0] * 255 - pillow).abs().max() <= 1  # Pillow's weights are multiples of 2^-16
        assert (copy[0] * 255 - pillow).abs().mean() < 0.01


def test_what_is_gray_stays_as_it_is():
    x = patches.grayscale(patches.crop(("flower",), 6))
    assert torch.equal(patches.grayscale(x), x)
    torch.testing.assert_close(patches.luma(x), x[:, :1])


def test_one_picture_may_be_made_gray_as_well_as_many():
    x = patches.crop(("flower",), 4)
    assert torch.equal(patches.grayscale(x[1]), patches.grayscale(x)[1])
    assert torch.equal(patches.grayscale(x[None]), patches.grayscale(x)[None])


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (3, 8), (8, 8, 3), (2, 4, 8, 8)])
def test_gray_copies_of_what_has_no_three_channels_are_refused(shape):
    with pytest.raises(ValueError, match=r"pictures must have shape \(…, 3, H, W\), got"):
        patches.grayscale(torch.zeros(shape))


def test_quantising_is_what_writing_and_reading_a_file_does():
    x = torch.rand(2, 3, 8, 8, generator=seeded(0)) * 1.4 - 0.2
    array = (x.clamp(0, 1) * 255).round().numpy().astype(np.uint8)
    assert torch.equal(patches.quantise(x), torch.from_numpy(array).float().div(255))
    assert torch.equal(patches.quantise(patches.quantise(x)), patches.quantise(x))


def test_a_tensor_and_a_data_set_give_the_same_pictures(tmp_path):
    data = folders.Images(folders.find(folders.make_sample(tmp_path / "sample", count=3)), size=32)
    x = torch.stack([data[at][0] for at in range(len(data))])
    for at in ([0], range(2, 7), [5, 5, 1]):
        assert torch.equal(patches.take(data, at), x[list(at)])
        assert torch.equal(patches.take(x, at), x[list(at)])
        assert torch.equal(patches.take(list(x), at), x[list(at)])
