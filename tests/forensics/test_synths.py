"""Folders are divided within real and counterfeit, nothing is in two parts, and other generators are tested whole."""

import pytest
import torch
import torchvision.transforms.functional as vision
from PIL import Image

from xaicourse.forensics import folders, patches, synths


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return folders.make_sample(tmp_path_factory.mktemp("synths"), count=10)


def _files(pictures):
    return {str(path) for path in pictures.paths}


def test_the_seen_generator_is_divided_and_nothing_is_in_two_parts(root):
    sets = synths.sets(root, "quarter", size=32, seed=3)
    parts = [sets.train, sets.validation, sets.test["quarter"]]
    for side, folder in (("real", "0_real"), ("fake", "1_fake")):
        files = [_files(getattr(part, side)) for part in parts]
        assert [len(part) for part in files] == [12, 4, 4]  # 60, 20 and 20 % of two classes with ten each
        assert len(set.union(*files)) == 20, "disjoint, and together all"
        assert set.union(*files) == {str(path) for path in (root / "quarter").glob(f"*/{folder}/*.png")}


def test_other_generators_are_tested_whole_and_the_seen_one_comes_first(root):
    sets = synths.sets(root, "quarter", size=32)
    assert sets.seen == "quarter" and list(sets.test) == ["quarter", "half"]
    assert _files(sets.test["half"].real) == {str(path) for path in (root / "half").glob("*/0_real/*.png")}
    assert _files(sets.test["half"].fake) == {str(path) for path in (root / "half").glob("*/1_fake/*.png")}
    assert synths.sets(root, size=32).seen == "half", "the first, if none is named"


def test_the_division_is_the_same_for_a_seed_and_another_for_another(root):
    def order(seed):
        return [str(path) for path in synths.sets(root, size=32, seed=seed).train.fake.paths]

    assert order(1) == order(1)
    assert order(1) != order(2) and set(order(1)) != set(order(2))


def test_pictures_are_the_files_without_their_labels(root):
    fake = synths.sets(root, size=16).validation.fake
    assert len(fake) == 4
    with Image.open(fake.paths[2]) as file:
        expected = vision.pil_to_tensor(file)[:, 8:24, 8:24] / 255
    assert torch.equal(fake[2], expected)
    assert torch.equal(patches.take(fake, [3, 2])[1], expected)


def test_an_unknown_generator_and_too_few_pictures_are_refused(root, tmp_path):
    with pytest.raises(ValueError, match="seen must be a generator in .*, one of half, quarter, got 'third'"):
        synths.sets(root, "third", size=32)
    few = folders.make_sample(tmp_path, count=1)
    with pytest.raises(
        ValueError, match="enough pictures to be divided in three, 'half' has 2 real and 2 counterfeit ones"
    ):
        synths.sets(few, size=32)
    assert len(synths.sets(folders.make_sample(tmp_path, count=3), size=32).validation.real) == 1


def test_other_generators_may_have_few_pictures(root, tmp_path):
    mixed = folders.make_sample(tmp_path, count=5)
    for file in (mixed / "quarter").glob("*/*/000[1-4].png"):
        file.unlink()
    assert len(synths.sets(mixed, "half", size=32).test["quarter"].fake) == 2


def test_a_counterfeit_and_the_picture_that_it_was_made_from_are_in_one_part(tmp_path):
    found = synths.sets(folders.make_sample(tmp_path, count=10), "half", size=32)

    def names(pair):
        return {(path.parent.parent, path.stem) for of_class in (pair.real, pair.fake) for path in of_class.paths}

    parts = [names(pair) for pair in (found.train, found.validation, found.test["half"])]
    assert all(parts) and sum(map(len, parts)) == len(set().union(*parts)) == 20
