import os
import pickle
import random
import re
import shutil
import struct
import warnings
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torchvision.datasets.folder
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader

from xaicourse.forensics import folders


def write(path, size=(40, 36), mode="RGB", value=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if value is not None else 0).save(path, **options)
    return path


def tree(root, *groups, names=("a.png", "b.png"), size=(40, 36)):
    for group in groups:
        for side in ("0_real", "1_fake"):
            for name in names:
                write(root / group / side / name, size)
    return root


def png16(path, channels):
    """A PNG of 16 bits a channel, which Pillow cannot write for colour: 40 x 36 pixels, each value 0x8040."""
    row = b"\0" + struct.pack(">H", 0x8040) * 40 * channels
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 40, 36, 16, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(row * 36)),
        (b"IEND", b""),
    ]
    chunks = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def only(root, value=None, mode="RGB", name="a.png", **options):
    """A set whose first real image is the one asked for; its first item's tensor."""
    tree(root, "g", names=("z.png",))
    write(root / "g/0_real" / name, mode=mode, value=value, **options)
    return folders.Images(folders.find(root), size=32)[0][0]


# ------------------------------------------------------------------------------------------------------------
# Finding
# ------------------------------------------------------------------------------------------------------------


def test_both_layouts_are_found_side_by_side(tmp_path):
    tree(tmp_path, "progan/cat", "progan/airplane", "deepfake")
    groups = folders.find(tmp_path)
    assert [(g.generator, g.category) for g in groups] == [("deepfake", ""), ("progan", "airplane"), ("progan", "cat")]
    assert groups[0].real == (tmp_path / "deepfake/0_real/a.png", tmp_path / "deepfake/0_real/b.png")
    assert groups[2].fake == (tmp_path / "progan/cat/1_fake/a.png", tmp_path / "progan/cat/1_fake/b.png")


def test_a_generator_may_have_images_of_its_own_beside_its_classes(tmp_path):
    tree(tmp_path, "san", "san/cat")
    assert [(g.category, len(g.real)) for g in folders.find(tmp_path)] == [("", 2), ("cat", 2)]


def test_the_order_is_not_that_of_the_file_system(tmp_path, monkeypatch):
    names = [f"{number}.png" for number in (1, 10, 2, 33, 4)]
    tree(tmp_path, "b/y", "b/x", "a", "B/z", names=names)
    scan = os.scandir
    found = []
    for seed in range(3):

        @contextmanager
        def shuffled(path, seed=seed):
            with scan(path) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
                random.Random(seed).shuffle(listed)
                yield iter(listed)

        monkeypatch.setattr(os, "scandir", shuffled)
        found.append(folders.find(tmp_path))
    assert found[0] == found[1] == found[2]
    assert [(g.generator, g.category) for g in found[0]] == [("B", "z"), ("a", ""), ("b", "x"), ("b", "y")]
    assert all([path.name for path in side] == sorted(names) for g in found[0] for side in (g.real, g.fake))


def test_other_files_and_hidden_ones_are_left_alone(tmp_path):
    tree(tmp_path, "g")
    for name in (".hidden.png", "._a.png", "notes.txt", "Thumbs.db", "a.png.part", "a.gif", "png"):
        (tmp_path / "g/0_real" / name).write_bytes(b"no image")
    (tmp_path / "g/1_fake/folder.png").mkdir()
    (tmp_path / "readme.md").write_text("what this is")
    (tmp_path / ".cache/0_real").mkdir(parents=True)
    (tmp_path / "__MACOSX/g/0_real").mkdir(parents=True)
    (tmp_path / "__MACOSX/g/0_real/._a.png").write_bytes(b"")
    (group,) = folders.find(tmp_path)
    assert [path.name for path in group.real + group.fake] == ["a.png", "b.png"] * 2


def test_the_kinds_of_files_are_those_of_torchvision_in_capitals_too(tmp_path):
    assert sorted(folders.EXTENSIONS) == sorted(torchvision.datasets.folder.IMG_EXTENSIONS)
    tree(tmp_path, "g")
    for end in folders.EXTENSIONS:
        write(tmp_path / f"g/0_real/small{end}", mode="L" if end == ".pgm" else "RGB")
        shutil.copy(tmp_path / f"g/0_real/small{end}", tmp_path / f"g/0_real/LARGE{end.upper()}")
    assert len(folders.find(tmp_path)[0].real) == 2 + 2 * len(folders.EXTENSIONS)
    assert folders.check(tmp_path).sound


def test_links_to_files_and_folders_are_followed(tmp_path):
    tree(tmp_path / "far", "g/cat", "h")
    (tmp_path / "near/g").mkdir(parents=True)
    (tmp_path / "near/g/cat").symlink_to(tmp_path / "far/g/cat", target_is_directory=True)
    (tmp_path / "near/h").symlink_to(tmp_path / "far/h", target_is_directory=True)
    (tmp_path / "far/h/0_real/c.png").symlink_to(tmp_path / "far/h/0_real/a.png")
    (tmp_path / "root").symlink_to(tmp_path / "near", target_is_directory=True)
    groups = folders.find(tmp_path / "root")
    assert [(g.generator, len(g.real), len(g.fake)) for g in groups] == [("g", 2, 2), ("h", 3, 2)]
    assert len(folders.Images(groups, size=36)) == 9


def test_a_root_that_is_not_there_or_a_file_or_empty_is_told_what_is_expected(tmp_path):
    expected = re.escape("root/generator/class/0_real/*.png")
    with pytest.raises(FileNotFoundError, match=rf"nowhere(.|\n)*{expected}"):
        folders.find(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=rf"file(.|\n)*{expected}"):
        folders.find(tmp_path / "file")
    (tmp_path / "empty/some/folder").mkdir(parents=True)
    with pytest.raises(ValueError, match=rf"empty(.|\n)*no group(.|\n)*{expected}"):
        folders.find(tmp_path / "empty")
    with pytest.raises(TypeError, match="root must be the path of a folder, got int"):
        folders.find(3)


def test_a_root_too_low_or_too_high_is_told_so(tmp_path):
    tree(tmp_path, "sets/test/progan/cat", "sets/test/biggan")
    with pytest.raises(ValueError, match="biggan' has 0_real or 1_fake directly in it: give the folder above"):
        folders.find(tmp_path / "sets/test/biggan")
    with pytest.raises(ValueError, match="progan/cat' lies a level too deep .* give a folder further down"):
        folders.find(tmp_path / "sets")


def test_every_group_without_real_or_counterfeit_images_is_named_with_what_is_missing(tmp_path):
    tree(tmp_path, "good", "one/cat", "two", "three")
    shutil.rmtree(tmp_path / "one/cat/1_fake")
    for path in (tmp_path / "two/0_real").iterdir():
        path.rename(path.with_suffix(".txt"))
    for path in (tmp_path / "three/1_fake").iterdir():
        path.unlink()
    with pytest.raises(ValueError) as error:
        folders.find(tmp_path)
    message = str(error.value)
    assert f"{tmp_path}/one/cat has no counterfeits: 1_fake is missing" in message
    assert f"{tmp_path}/two has no real images: no image in 0_real" in message
    assert f"{tmp_path}/three has no counterfeits: no image in 1_fake" in message
    assert "good has" not in message and ".jpeg" in message
    with pytest.raises(ValueError, match="no counterfeits"):
        folders.check(tmp_path)


# ------------------------------------------------------------------------------------------------------------
# Reading
# ------------------------------------------------------------------------------------------------------------


def test_labels_paths_and_generators_go_with_the_items(tmp_path):
    tree(tmp_path, "g/cat", "h", names=("a.png",))
    for group, colour in (("g/cat", (255, 0, 0)), ("h", (0, 255, 0))):
        write(tmp_path / group / "1_fake/a.png", value=colour)
    write(tmp_path / "g/cat/0_real/b.png", value=(0, 0, 255))
    groups = folders.find(tmp_path)
    images = folders.Images(groups, size=32)
    assert len(images) == 5 and images.labels.tolist() == [0, 0, 1, 0, 1] and images.labels.dtype == torch.long
    assert images.generators == ["g", "g", "g", "h", "h"]
    assert images.paths == [path for group in groups for path in group.real + group.fake]
    seen = [(pixels[:, 0, 0].tolist(), label) for pixels, label in images]  # ends by itself
    assert seen == [([0, 0, 0], 0), ([0, 0, 1], 0), ([1, 0, 0], 1), ([0, 0, 0], 0), ([0, 1, 0], 1)]
    assert all(type(label) is int for _, label in seen)
    one = folders.Images(groups[1], size=32)
    assert one.generators == ["h", "h"] and one.labels.tolist() == [0, 1]


@pytest.mark.parametrize("size", [(32, 32), (33, 32), (32, 47), (61, 40), (200, 33)])
def test_an_item_is_the_middle_of_the_image_and_its_pixels_are_untouched(tmp_path, size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    tree(tmp_path, "g", names=("z.png",))
    Image.fromarray(pixels).save(tmp_path / "g/0_real/a.png")
    item, _ = folders.Images(folders.find(tmp_path), size=32)[0]
    assert item.shape == (3, 32, 32) and item.dtype == torch.float32 and item.min() >= 0 and item.max() <= 1
    margins = [((side - 32) // 2, -((32 - side) // 2)) for side in size]  # the odd pixel falls on either side
    crops = [pixels[top : top + 32, left : left + 32] for left in margins[0] for top in margins[1]]
    mine = (item * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert any((mine == crop).all() for crop in crops)


def test_every_kind_of_8_bits_becomes_rgb(tmp_path):
    def colour(what, value, mode, **options):
        item = only(tmp_path / what, value, mode, **options)
        assert item.shape == (3, 32, 32) and (item == item[:, :1, :1]).all()
        return (item[:, 0, 0] * 255).round().tolist()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert colour("gray", 100, "L") == [100, 100, 100]
        assert colour("gray and alpha", (100, 7), "LA") == [100, 100, 100]
        assert colour("alpha", (10, 20, 30, 0), "RGBA") == [10, 20, 30]  # not blended with a background
        assert colour("black or white", 1, "1") == [255, 255, 255]
        assert colour("inks", (255, 0, 0, 0), "CMYK", name="a.tif") == [0, 255, 255]
        assert colour("black ink", (0, 0, 0, 255), "CMYK", name="a.tif") == [0, 0, 0]
        palette = Image.new("P", (40, 36), 1)
        palette.putpalette([0, 0, 0, 10, 200, 30])
        for name, options in (
            ("palette", {}),
            ("transparent", {"transparency": 1}),
            ("alphas", {"transparency": b"\x07\x09"}),
        ):
            tree(tmp_path / name, "g", names=("z.png",))
            palette.save(tmp_path / name / "g/0_real/a.png", **options)
            item = folders.Images(folders.find(tmp_path / name), size=32)[0][0]
            assert (item[:, 5, 5] * 255).round().tolist() == [10, 200, 30]
            assert folders.check(tmp_path / name).sound


def test_a_cmyk_jpeg_has_the_colours_that_were_put_in(tmp_path):
    item = only(tmp_path, (255, 0, 0, 0), "CMYK", "a.jpg", quality=100)
    assert torch.allclose(item[:, 9, 9], torch.tensor([0.0, 1.0, 1.0]), atol=0.02)


def deep(path, how):
    if how.startswith("PNG"):
        png16(path, int(how[-1]))
    elif how == "PPM":
        path.write_bytes(b"P6 40 36 65535\n" + b"\x80\x40" * 40 * 36 * 3)
    elif how == "float TIFF":
        Image.new("F", (40, 36), 0.5).save(path, "TIFF")
    elif how == "16-bit TIFF":
        Image.fromarray(np.full((36, 40), 0x8040, np.uint16)).save(path, "TIFF")
    else:
        Image.new("LAB", (40, 36), (50, 60, 70)).save(path, "TIFF")


@pytest.mark.parametrize("how", ["PNG 1", "PNG 2", "PNG 3", "PNG 4", "PPM", "float TIFF", "16-bit TIFF", "LAB"])
def test_more_than_8_bits_a_channel_floats_and_lab_are_refused_by_name(tmp_path, how):
    tree(tmp_path, "g")
    end = {"PNG": ".png", "PPM": ".ppm"}.get(how[:3], ".tif")
    deep(tmp_path / f"g/1_fake/deep{end}", how)
    with pytest.raises(ValueError, match=rf"1 of 5 images cannot be used(.|\n)*deep\{end}: it.*expected 8"):
        folders.Images(folders.find(tmp_path), size=32)
    (line,) = folders.check(tmp_path).unreadable.values()
    assert "expected 8" in line


def test_all_images_too_small_are_refused_in_one_error_that_names_ten(tmp_path):
    tree(tmp_path, "g", names=[f"{number:02d}.png" for number in range(7)], size=(31, 40))
    tree(tmp_path, "h", size=(32, 32))
    with pytest.raises(ValueError) as error:
        folders.Images(folders.find(tmp_path), size=32)
    message = str(error.value)
    assert "14 of 18 images cannot be used with size=32" in message and "… and 4 more" in message
    assert message.count("31 x 40 pixels, expected at least 32 x 32") == 10
    assert f"{tmp_path}/g/0_real/00.png" in message and "/h/" not in message


def test_one_row_short_is_too_small_and_least_may_ask_for_more(tmp_path):
    groups = folders.find(tree(tmp_path, "g", size=(40, 36)))
    assert folders.Images(groups, size=36)[3][0].shape == (3, 36, 36)
    with pytest.raises(ValueError, match="4 of 4 images"):
        folders.Images(groups, size=37)
    assert len(folders.Images(groups, size=16, least=36)) == 4
    with pytest.raises(ValueError, match="4 of 4 images cannot be used with size=16, least=37"):
        folders.Images(groups, size=16, least=37)


def test_an_image_of_one_pixel_can_be_read_and_is_tiny(tmp_path):
    groups = folders.find(tree(tmp_path, "g", names=("a.png",), size=(1, 1)))
    assert folders.Images(groups, size=1)[1][0].shape == (3, 1, 1)
    with pytest.raises(ValueError, match="1 x 1 pixels, expected at least 8 x 8"):
        folders.Images(groups, size=8)
    assert len(folders.check(tmp_path).tiny) == 2 and folders.check(tmp_path, least=1).sound


def test_arguments_of_another_kind_are_named(tmp_path):
    groups = folders.find(tree(tmp_path, "g"))
    for error, given, settings, words in [
        (TypeError, str(tmp_path), {"size": 32}, "groups must be a Group or several, .* got str"),
        (TypeError, tmp_path, {"size": 32}, "groups must be a Group or several"),
        (TypeError, [tmp_path], {"size": 32}, "groups must hold Groups"),
        (ValueError, [], {"size": 32}, "groups must be at least one Group, got none"),
        (ValueError, groups, {"size": 0}, "size must be at least 1, got 0"),
        (TypeError, groups, {"size": 32.0}, "size must be an int, got float"),
        (ValueError, groups, {"size": 32, "least": 16}, "least must be at least size=32, got 16"),
    ]:
        with pytest.raises(error, match=words):
            folders.Images(given, **settings)
    with pytest.raises(ValueError, match="least must be at least 1, got 0"):
        folders.check(tmp_path, least=0)


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


@pytest.mark.parametrize("end", [".png", ".jpg", ".bmp", ".webp"])
def test_a_file_cut_off_is_listed_and_named_when_it_is_read(tmp_path, end):
    tree(tmp_path, "g")
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    bad = tmp_path / f"g/0_real/0{end}"
    Image.fromarray(noise).save(bad)
    truncate(bad)
    report = folders.check(tmp_path)
    assert list(report.unreadable) == [bad] and not report.sound
    try:
        images = folders.Images(folders.find(tmp_path), size=32)
    except ValueError as error:  # WebP says so in its header
        assert str(bad) in str(error) and end == ".webp"
    else:
        with pytest.raises(OSError, match=re.escape(f"{bad} cannot be read")):
            images[0]
        assert images[1][1] == 0  # the others are as they were


def test_what_is_no_image_is_listed_with_the_reason_and_refused_before_any_is_read(tmp_path):
    tree(tmp_path, "g")
    real = tmp_path / "g/0_real"
    (real / "empty.png").write_bytes(b"")
    (real / "text.jpg").write_text("not an image")
    (real / "gone.png").symlink_to(tmp_path / "nothing.png")
    flipped = bytearray((real / "a.png").read_bytes())
    flipped[-13] ^= 1  # of the checksum of the pixels, which decoding alone does not look at
    (real / "flipped.png").write_bytes(bytes(flipped))
    report = folders.check(tmp_path)
    assert {path.name for path in report.unreadable} == {"empty.png", "text.jpg", "gone.png", "flipped.png"}
    assert report.unreadable[real / "text.jpg"] == "it is no image that Pillow knows"
    assert report.unreadable[real / "gone.png"] == "the file is gone, or a link to nothing"
    with pytest.raises(ValueError, match="3 of 8 images") as error:
        folders.Images(folders.find(tmp_path), size=32)
    assert "a link to nothing" in str(error.value)


def test_files_are_read_when_asked_for_and_then_forgotten(tmp_path):
    images = folders.Images(folders.find(tree(tmp_path, "g", size=(200, 200))), size=200)
    before = len(pickle.dumps(images))
    for _ in images:
        pass
    assert len(pickle.dumps(images)) == before < 4000  # one image alone has 120,000 values
    write(tmp_path / "g/0_real/a.png", (200, 200), value=(255, 255, 255))
    assert (images[0][0] == 1).all()
    write(tmp_path / "g/0_real/a.png", (200, 199))
    with pytest.raises(OSError, match="cannot be read, 200 x 199 pixels, expected at least 200 x 200"):
        images[0]
    images.paths[0].unlink()
    with pytest.raises(OSError, match=re.escape(f"{tmp_path}/g/0_real/a.png cannot be read, the file is gone")):
        images[0]


def test_workers_of_a_loader_give_what_the_set_gives(tmp_path):
    images = folders.Images(folders.find(folders.make_sample(tmp_path / "s", count=3)), size=32)
    batches = list(DataLoader(images, batch_size=5, num_workers=2))
    assert torch.equal(torch.cat([pixels for pixels, _ in batches]), torch.stack([pixels for pixels, _ in images]))
    assert torch.equal(torch.cat([labels for _, labels in batches]), images.labels)
    assert len(ConcatDataset([images, images])) == 48


# ------------------------------------------------------------------------------------------------------------
# Checking
# ------------------------------------------------------------------------------------------------------------


def test_a_report_has_a_line_for_each_group_and_each_file_that_is_not_sound(tmp_path):
    tree(tmp_path, "progan/cat", "deepfake")
    (tmp_path / "notes").mkdir()
    (tmp_path / "progan/car").mkdir()
    tiny = write(tmp_path / "deepfake/1_fake/c.png", (31, 90))
    (tmp_path / "progan/cat/0_real/0.png").write_bytes(b"")
    report = folders.check(str(tmp_path))
    assert str(report).splitlines() == [
        f"{tmp_path}: 5 real images, 5 counterfeits; shortest side 31 pixels",
        "deepfake: 2 real, 3 counterfeit",
        "progan/cat: 3 real, 2 counterfeit",
        f"left out: {tmp_path}/notes: holds neither 0_real nor 1_fake",
        f"left out: {tmp_path}/progan/car: holds neither 0_real nor 1_fake",
        f"unreadable: {tmp_path}/progan/cat/0_real/0.png: it is no image that Pillow knows",
        f"tiny: {tiny}: 31 x 90 pixels, expected at least 32 x 32",
    ]
    assert not report.sound and report.groups == tuple(folders.find(tmp_path))


def test_a_sound_set_has_a_sound_report_and_its_shortest_side_can_be_cut(tmp_path):
    report = folders.check(tree(tmp_path, "g", size=(90, 41)), progress=True)
    assert report.sound and report.smallest == 41 and not report.left_out
    assert len(folders.Images(report.groups, size=41)) == 4


# ------------------------------------------------------------------------------------------------------------
# The made sample
# ------------------------------------------------------------------------------------------------------------


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_sample_has_two_generators_with_two_classes_and_is_sound(tmp_path):
    root = folders.make_sample(tmp_path / "new/sample", count=5)
    report = folders.check(root)
    names = [(group.generator, group.category) for group in report.groups]
    assert names == [("half", "nature"), ("half", "things"), ("quarter", "nature"), ("quarter", "things")]
    assert report.sound and report.smallest == 32
    assert all(len(group.real) == len(group.fake) == 5 for group in report.groups)
    assert {path.suffix for group in report.groups for path in group.real} == {".png"}


def test_a_counterfeit_of_the_sample_is_its_real_image_made_smaller_and_enlarged(tmp_path):
    for group in folders.find(folders.make_sample(tmp_path, count=3)):
        images = folders.Images(group, size=32)
        side = {"half": 16, "quarter": 8}[group.generator]
        for number in range(3):
            real, fake = (np.array(Image.open(images.paths[at])) for at in (number, number + 3))
            small = Image.fromarray(real).resize((side, side), Image.Resampling.BILINEAR)
            again = np.array(small.resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
            assert np.abs(fake - again).max() <= 3  # Pillow rounds in between
            assert np.abs(fake - real.astype(int)).mean() > 1


def test_the_sample_is_the_same_each_time_and_another_for_another_generator(tmp_path):
    first, second = (contents(folders.make_sample(tmp_path / name, count=2)) for name in ("a", "b"))
    assert first == second
    seeded = [
        contents(folders.make_sample(tmp_path / f"c{n}", count=2, generator=torch.Generator().manual_seed(seed)))
        for n, seed in enumerate((5, 5, 6))
    ]
    assert seeded[0] == seeded[1] and seeded[0] != seeded[2] and seeded[0] != first


def test_a_sample_may_be_replaced_by_another_of_which_nothing_old_remains(tmp_path):
    folders.make_sample(tmp_path / "a", count=4)
    folders.make_sample(tmp_path / "a", count=2, generator=torch.Generator().manual_seed(1))
    fresh = folders.make_sample(tmp_path / "b", count=2, generator=torch.Generator().manual_seed(1))
    assert contents(tmp_path / "a") == contents(fresh)


def test_files_of_somebody_else_are_never_touched(tmp_path):
    def refused(root, name):
        before = contents(root) if root.is_dir() else None
        with pytest.raises(ValueError, match=re.escape(name)):
            folders.make_sample(root, count=2)
        assert before is None or contents(root) == before

    tree(tmp_path / "real set", "half/nature")
    refused(tmp_path / "real set", "half/nature/0_real/a.png")
    sample = folders.make_sample(tmp_path / "sample", count=2)
    (sample / "half/mine.txt").write_text("notes")
    refused(sample, "half/mine.txt is something else")
    (sample / "half/mine.txt").unlink()
    write(sample / "half/nature/0_real/0001.png", value=(1, 2, 3))
    refused(sample, "half/nature/0_real/0001.png is something else")
    (sample / "half/nature/0_real/0001.png").unlink()
    (sample / "linked").symlink_to(tmp_path / "real set", target_is_directory=True)
    refused(sample, "linked is something else")
    (sample / "linked").unlink()
    folders.make_sample(sample, count=1)  # a file that is gone does no harm
    for text in ('{"made_by": "me", "sha256": {}}', '{"half/nature/0_real/0000.png": "1"}', "[1]", "3", "no json"):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other/made_sample.json").write_text(text)
        refused(tmp_path / "other", "made_sample.json is something else")
    (tmp_path / "file").write_text("mine")
    refused(tmp_path / "file", "must be a folder")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_count_or_generator_of_another_kind_is_named_and_nothing_is_written(tmp_path):
    for settings, error, words in [
        ({"count": 0}, ValueError, "count must be at least 1, got 0"),
        ({"count": 2.5}, TypeError, "count must be an int"),
        ({"generator": 3}, TypeError, "generator must be a torch.Generator or None, got int"),
    ]:
        with pytest.raises(error, match=words):
            folders.make_sample(tmp_path / "s", **settings)
    with pytest.raises(TypeError, match="root must be the path of a folder, got NoneType"):
        folders.make_sample(None)
    assert not (tmp_path / "s").exists()


def test_resizing_takes_away_most_of_what_tells_the_counterfeits_of_the_sample(tmp_path):
    """Why images are cut, not resized: counterfeits lack the finest detail, and resized, so do real images."""
    images = folders.Images(folders.find(folders.make_sample(tmp_path, count=16)), size=32)
    pixels, labels = torch.stack([item for item, _ in images]), images.labels.bool()

    def detail(x):
        return torch.log((x - F.avg_pool2d(x, 3, 1, 1)).abs().mean((1, 2, 3)))

    gap = detail(pixels)[~labels].mean() - detail(pixels)[labels].mean()
    resized = F.interpolate(pixels, 12, mode="bilinear", antialias=True, align_corners=False)
    assert gap > 0.3 and gap > 2 * (detail(resized)[~labels].mean() - detail(resized)[labels].mean())
