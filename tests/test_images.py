import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
import skimage.data
import sklearn.datasets
import torch
from hypothesis import given
from hypothesis import strategies as st

from xaicourse import images


@pytest.mark.parametrize("name", images.names())
def test_a_photograph_is_rgb_in_float32_between_0_and_1(name):
    image = images.load(name)
    assert image.dtype == torch.float32
    assert image.ndim == 3 and image.shape[0] == 3 and min(image.shape[1:]) >= 300
    assert 0 <= image.min() < 0.2 and 0.6 < image.max() <= 1  # a full range, neither in bytes nor divided twice
    assert image.std() > 0.05


@pytest.mark.parametrize(
    ("name", "function"),
    [(name, name) for name in ("astronaut", "camera", "chelsea", "coffee", "coins", "retina", "rocket")]
    + [("hubble", "hubble_deep_field")],
)
def test_a_photograph_is_the_one_that_scikit_image_shows(name, function):
    theirs = torch.from_numpy(getattr(skimage.data, function)().copy())
    theirs = theirs[..., None].expand(-1, -1, 3) if theirs.ndim == 2 else theirs
    assert torch.equal((images.load(name) * 255).round().to(torch.uint8), theirs.permute(2, 0, 1))


def test_the_motorcycle_is_the_left_picture_of_the_pair():
    left, right, _ = skimage.data.stereo_motorcycle()
    ours = (images.load("motorcycle") * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert (ours == left).all() and (ours != right).any()


@pytest.mark.parametrize("name", ["china", "flower"])
def test_a_photograph_is_the_one_that_scikit_learn_shows(name):
    theirs = torch.from_numpy(sklearn.datasets.load_sample_image(f"{name}.jpg").copy())
    assert torch.equal((images.load(name) * 255).round().to(torch.uint8), theirs.permute(2, 0, 1))


@pytest.mark.parametrize("name", images.names())
def test_every_file_is_in_the_wheel_and_as_it_was_published(name):
    photograph = images._PHOTOGRAPHS[name]
    record = {str(file): file for file in importlib.metadata.files(photograph.distribution)}
    assert f"{photograph.package}/{photograph.file}" in record


def test_the_expected_photographs_are_there_in_alphabetical_order():
    assert images.names() == sorted(images.names())
    assert {
        "astronaut", "chelsea", "china", "coffee", "flower", "hubble", "motorcycle", "retina", "rocket"
    } <= set(images.names())  # fmt: skip


def test_a_gray_photograph_has_three_equal_channels():
    image = images.load("camera")
    assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])


def test_each_load_is_a_new_tensor():
    images.load("chelsea").zero_()
    assert images.load("chelsea").max() > 0


@pytest.mark.parametrize("name", images.names())
def test_every_photograph_has_a_credit_with_owner_licence_and_package(name):
    parts = images.credit(name).split("; ")
    assert len(parts) >= 4
    assert re.search("CC0|CC BY 2.0|public domain|no known copyright|no licence stated", parts[-2])
    assert parts[-1] in ("from scikit-image", "from scikit-learn")


def test_importing_and_loading_pull_in_neither_scikit_nor_matplotlib_nor_a_network_connection():
    program = """
import socket, sys
def refuse(*arguments): raise AssertionError("no network")
socket.socket.connect = refuse
from xaicourse import images
for name in images.names(): images.load(name)
print([package for package in ("skimage", "sklearn", "matplotlib", "ipywidgets") if package in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("function", [images.load, images.credit])
def test_an_unknown_name_is_an_error_with_names_like_it(function):
    with pytest.raises(ValueError, match="name='Chelsey'.*did you mean 'chelsea'.*astronaut"):
        function("Chelsey")
    with pytest.raises(TypeError, match=r"name must be a string out of images.names\(\), got int"):
        function(3)


@given(st.text().filter(lambda text: text not in images.names()))
def test_only_the_listed_names_load(name):
    with pytest.raises(ValueError, match="no known photograph"):
        images.load(name)


@pytest.mark.parametrize(
    ("name", "package", "distribution"),
    [("chelsea", "skimage", "scikit-image"), ("china", "sklearn", "scikit-learn")],
)
def test_a_missing_package_is_an_error_that_says_what_to_install(monkeypatch, name, package, distribution):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf'pip install "xaicourse\[course\]".*{distribution}'):
        images.load(name)


@pytest.fixture
def other_skimage(tmp_path, monkeypatch) -> Path:
    """An installed scikit-image without its photographs; gives its folder for them."""
    (tmp_path / "skimage" / "data").mkdir(parents=True)
    (tmp_path / "skimage" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "skimage")
    return tmp_path / "skimage" / "data"


def test_a_missing_file_is_an_error_that_says_where_it_should_be(other_skimage):
    with pytest.raises(FileNotFoundError, match="'chelsea' is missing.*chelsea.png.*force-reinstall"):
        images.load("chelsea")


def test_a_damaged_file_is_an_error_that_says_which(other_skimage):
    (other_skimage / "chelsea.png").write_bytes(b"no picture")
    with pytest.raises(OSError, match="'chelsea' cannot be read from .*chelsea.png.*force-reinstall"):
        images.load("chelsea")
