"""Folders of real and counterfeit images as people have them on disk, in the layout of the ForenSynths data. Lecture 15.

    groups = folders.find("ForenSynths/test")            # which generators, which classes, which files
    print(folders.check("ForenSynths/test"))             # opens every image: what is damaged, what is tiny
    pictures = folders.Images(groups, size=224)          # a torch Dataset that reads one file at a time

Wang et al. 2020, CNN-generated images are surprisingly easy to spot... for now, CVPR.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision.transforms.functional as vision
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..arguments import check_count, check_generator
from ..progress import bar
from . import patches

__all__ = ["EXTENSIONS", "LAYOUT", "Group", "Images", "Report", "check", "find", "make_sample"]

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What the name of an image ends with, in capitals or not; files of other names are left alone."""

LAYOUT = """\
    root/generator/class/0_real/*.png      real images, and
    root/generator/class/1_fake/*.png      counterfeits; or without classes
    root/generator/0_real/*.png
    root/generator/1_fake/*.png"""
"""The folders that ``find`` looks for."""

_REAL, _FAKE = "0_real", "1_fake"
_NAMED = 10  # files that an error names
# Pillow reads 16 bits, floats and CIELAB as well, but its way to RGB clips or misreads their values.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_LIST = "made_sample.json"  # of the files of the made sample
_MADE_BY = "xaicourse.forensics.folders.make_sample"
# Each group of the made sample has a photograph of its own, so that a split by group is one by photograph.
_SAMPLE = {
    ("half", "nature"): ("chelsea", 2), ("half", "things"): ("coffee", 2),
    ("quarter", "nature"): ("flower", 4), ("quarter", "things"): ("motorcycle", 4),
}  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Real images and counterfeits that belong together: of one generator and one class, or of one generator.

    generator  name of its folder
    category   name of the class's folder, "" if there are no classes
    real       files in ``0_real``, in order of their names
    fake       files in ``1_fake``, in order of their names
    """

    generator: str
    category: str
    real: tuple[Path, ...]
    fake: tuple[Path, ...]


# ------------------------------------------------------------------------------------------------------------
# Finding
# ------------------------------------------------------------------------------------------------------------


def find(root: str | os.PathLike[str]) -> list[Group]:
    """Find the groups of a folder; no image is opened.

    root  the folder above the generators, laid out as in ``LAYOUT``; generators with and without classes may stand side by side

    Returns groups in order of generator and class, whatever order the file system lists them in. Images are the files directly
    in ``0_real`` and ``1_fake`` whose names end as in ``EXTENSIONS``; links are followed. Names that begin with a dot and
    ``__MACOSX`` are left out, and so are folders that hold neither of the two: ``check`` lists those.

    FileNotFoundError or NotADirectoryError if root is no folder, TypeError if it is no path. ValueError if it holds no group,
    if a group has no real images or no counterfeits, or if groups lie a level deeper, which says that root is too high.
    """
    return _scan(_folder(root))[0]


def _scan(root: Path) -> tuple[list[Group], list[Path]]:
    """The groups, and the folders where one might stand and none does."""
    if _is_group(root):
        raise ValueError(
            f"root={str(root)!r} has {_REAL} or {_FAKE} directly in it: give the folder above, which holds the generators"
            f"\n{LAYOUT}"
        )
    groups: list[Group] = []
    left_out: list[Path] = []
    lacking: list[str] = []
    for generator in _folders(root):
        categories = [folder for folder in _folders(generator) if folder.name not in (_REAL, _FAKE)]
        for folder in categories:
            deeper = next((below for below in _folders(folder) if _is_group(below) and not _is_group(folder)), None)
            if deeper is not None:
                raise ValueError(
                    f"{str(deeper)!r} lies a level too deep for root={str(root)!r}: give a folder further down\n{LAYOUT}"
                )
        found = [folder for folder in (generator, *categories) if _is_group(folder)]
        left_out += [folder for folder in categories if folder not in found] if found else [generator]
        for folder in found:
            real, fake = (_images(folder / side) for side in (_REAL, _FAKE))
            groups.append(Group(generator.name, "" if folder == generator else folder.name, real, fake))
            lacking += [
                f"{folder} has no {what}: "
                + (f"no image in {side}" if (folder / side).is_dir() else f"{side} is missing")
                for images, side, what in ((real, _REAL, "real images"), (fake, _FAKE, "counterfeits"))
                if not images
            ]
    if lacking:
        raise ValueError(
            f"each group must have real images and counterfeits, files that end in {', '.join(EXTENSIONS)}\n{_some(lacking)}"
        )
    if not groups:
        raise ValueError(f"root={str(root)!r} has no group of images; what is expected is\n{LAYOUT}")
    return groups, left_out


def _folder(root: str | os.PathLike[str]) -> Path:
    if not isinstance(root, (str, os.PathLike)):
        raise TypeError(f"root must be the path of a folder, got {type(root).__name__}")
    path = Path(root)
    if not path.exists():
        raise FileNotFoundError(f"root={str(path)!r} is not there; what is expected is\n{LAYOUT}")
    if not path.is_dir():
        raise NotADirectoryError(f"root={str(path)!r} is no folder; what is expected is\n{LAYOUT}")
    return path


def _folders(above: Path) -> list[Path]:
    with os.scandir(above) as entries:
        names = [entry.name for entry in entries if entry.is_dir()]
    return [above / name for name in sorted(names) if not name.startswith(".") and name != "__MACOSX"]


def _is_group(folder: Path) -> bool:
    return (folder / _REAL).is_dir() or (folder / _FAKE).is_dir()


def _images(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        return ()
    with os.scandir(folder) as entries:  # a link to nothing is kept: opening it will say so
        names = [entry.name for entry in entries if entry.is_file() or (entry.is_symlink() and not entry.is_dir())]
    return tuple(folder / name for name in sorted(names) if _is_image(name))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(EXTENSIONS)


def _some(lines: list[str]) -> str:
    more = f"\n  … and {len(lines) - _NAMED} more" if len(lines) > _NAMED else ""
    return "\n".join(f"  {line}" for line in lines[:_NAMED]) + more


# ------------------------------------------------------------------------------------------------------------
# Reading
# ------------------------------------------------------------------------------------------------------------


class Images(Dataset[tuple[Tensor, int]]):
    """The images of one group or several as a torch Dataset: the middle of each, and whether it is real or counterfeit.

    groups  a Group or several, such as ``find(root)``
    size    height and width of what is cut out of the middle, in pixels
    least   images with a side below this are refused; None: ``size``, and never less

    An item is a tensor, float32 (3, size, size) in [0, 1], RGB, and its label, 0 for real and 1 for counterfeit. In order of
    the groups, real ones first: ``labels`` LongTensor (N,), ``paths`` and ``generators`` lists of length N.

    **Nothing is ever resized.** What tells a counterfeit are faint regularities from pixel to pixel, the traces of the
    generator's upsampling. Resizing averages neighbours: it blurs those traces and leaves its own, on real images too.

    Gray and palette images get three channels, transparency is dropped, CMYK is converted without a colour profile, of
    several frames the first is taken, and images are not turned as their EXIF says. More than 8 bits a channel, floats
    and CIELAB are refused. A file is read when its item is asked for and then forgotten, so that the set may be larger than
    memory, and workers of a DataLoader may share it.

    ValueError, which names ten files and says how many there are, if images are too small, cannot be opened or are of a refused
    kind: the headers of all files are read first. A file that is damaged further on is an OSError, with its name, when its item
    is read; ``check`` finds such files beforehand. ValueError or TypeError for other arguments.
    """

    def __init__(self, groups: Group | Iterable[Group], *, size: int, least: int | None = None) -> None:
        groups = _group_list(groups)
        check_count("size", size)
        least = size if least is None else least
        check_count("least", least)
        if least < size:
            raise ValueError(
                f"least must be at least size={size}, got {least}: from smaller images no such crop can be cut, "
                "and none is enlarged, because that leaves traces of its own"
            )
        self.size = size
        self.paths = [path for group in groups for path in (*group.real, *group.fake)]
        self.generators = [group.generator for group in groups for _ in range(len(group.real) + len(group.fake))]
        counts = [len(side) for group in groups for side in (group.real, group.fake)]
        self.labels = torch.arange(2).repeat(len(groups)).repeat_interleave(torch.tensor(counts))
        refused = [f"{path}: {why}" for path in self.paths if (why := _header(path, least))]
        if refused:
            raise ValueError(
                f"{len(refused)} of {len(self.paths)} images cannot be used with size={size}, least={least}; move them away, "
                f"choose a smaller size, or see all that folders.check lists\n{_some(refused)}"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path = self.paths[index]
        try:
            picture = _decoded(path)
            if why := _tiny(picture.size, self.size):  # it has changed since; the crop would be filled up with black
                raise ValueError(why)
            picture = vision.center_crop(picture, [self.size, self.size])
            if picture.mode == "P":
                picture = picture.convert("RGBA")  # Pillow warns of transparency if a palette becomes RGB at once
            picture = picture.convert("RGB")
        except Exception as error:  # Pillow raises many kinds for damaged files
            raise OSError(f"{path} cannot be read, {_reason(error)}; folders.check finds all such files") from error
        return vision.pil_to_tensor(picture).to(torch.float32).div(255), int(self.labels[index])


def _group_list(groups: Group | Iterable[Group]) -> list[Group]:
    if isinstance(groups, Group):
        groups = [groups]
    if isinstance(groups, (str, os.PathLike)) or not isinstance(groups, Iterable):
        raise TypeError(f"groups must be a Group or several, out of folders.find(root), got {type(groups).__name__}")
    groups = list(groups)
    other = next((group for group in groups if not isinstance(group, Group)), None)
    if other is not None:
        raise TypeError(f"groups must hold Groups, out of folders.find(root), got one that is {type(other).__name__}")
    if not groups:
        raise ValueError("groups must be at least one Group, got none")
    return groups


def _header(path: Path, least: int) -> str:
    """Why an image cannot be used, as far as its header tells; "" if it can."""
    try:
        with Image.open(path) as picture:
            return _refusal(picture) or _tiny(picture.size, least)
    except Exception as error:  # Pillow raises many kinds for damaged files
        return f"cannot be read, {_reason(error)}"


def _decoded(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        why = _refusal(picture)
        if why:
            raise ValueError(why)
        picture.load()
    return picture


def _refusal(picture: Image.Image) -> str:
    """Whether it is of a kind whose values would not come through, asked before it is decoded."""
    if picture.mode not in _MODES:
        return f"its mode is {picture.mode}, expected 8 bits a channel and one of {', '.join(_MODES)}"
    # Pillow gives colour of 16 bits as 8 bits and says nothing; what it is about to decode tells.
    for tile in getattr(picture, "tile", []):
        deep = any(f";16{order}" in str(tile[3]) for order in "BLN")
        if deep or (picture.format == "PPM" and isinstance(tile[3], tuple) and int(tile[3][-1]) > 255):
            return f"it has more than 8 bits a channel, expected 8 (mode {picture.mode})"
    return ""


def _tiny(size: tuple[int, int], least: int) -> str:
    return f"{size[0]} x {size[1]} pixels, expected at least {least} x {least}" if min(size) < least else ""


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is no image that Pillow knows"
    if isinstance(error, FileNotFoundError):
        return "the file is gone, or a link to nothing"
    return " ".join(str(error).split()) or type(error).__name__


# ------------------------------------------------------------------------------------------------------------
# Checking
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """What ``check`` found; ``str(report)`` has a line for each group and for each file that is not sound.

    groups      all that there are
    left_out    folders in the place of a group that are none
    unreadable  files that cannot be read, with the reason
    tiny        files with a side below ``least`` pixels, with their size
    smallest    the shortest side of all images that can be read, in pixels: the largest ``size`` for ``Images``; 0 if there is
                none
    """

    root: Path
    least: int
    groups: tuple[Group, ...]
    left_out: tuple[Path, ...]
    unreadable: dict[Path, str]
    tiny: dict[Path, str]
    smallest: int

    @property
    def sound(self) -> bool:
        """Whether every image can be read and none is tiny."""
        return not self.unreadable and not self.tiny

    def __str__(self) -> str:
        real, fake = (sum(len(getattr(group, side)) for group in self.groups) for side in ("real", "fake"))
        return "\n".join([
            f"{self.root}: {real} real images, {fake} counterfeits; shortest side {self.smallest} pixels",
            *(
                f"{group.generator}{group.category and '/'}{group.category}: "
                f"{len(group.real)} real, {len(group.fake)} counterfeit"
                for group in self.groups
            ),
            *(f"left out: {path}: holds neither {_REAL} nor {_FAKE}" for path in self.left_out),
            *(f"unreadable: {path}: {why}" for path, why in self.unreadable.items()),
            *(f"tiny: {path}: {why}" for path, why in self.tiny.items()),
        ])  # fmt: skip


def check(root: str | os.PathLike[str], *, least: int = 32, progress: bool = False) -> Report:
    """Open and decode every image of a folder, and list those that cannot be read and those that are tiny.

    root   as for ``find``
    least  a side below so many pixels makes an image tiny

    One image at a time is in memory. Errors as of ``find``: damaged files are listed, not raised.
    """
    check_count("least", least)
    groups, left_out = _scan(_folder(root))
    paths = [path for group in groups for path in (*group.real, *group.fake)]
    unreadable: dict[Path, str] = {}
    tiny: dict[Path, str] = {}
    sides: list[int] = []
    with bar(len(paths), "images", progress) as advance:
        for path in paths:
            try:
                with Image.open(path) as picture:
                    picture.verify()  # checksums, which decoding does not look at
                size = _decoded(path).size
            except Exception as error:  # Pillow raises many kinds for damaged files
                unreadable[path] = _reason(error)
            else:
                sides.append(min(size))
                if why := _tiny(size, least):
                    tiny[path] = why
            advance()
    return Report(Path(root), least, tuple(groups), tuple(left_out), unreadable, tiny, min(sides, default=0))


# ------------------------------------------------------------------------------------------------------------
# A made sample
# ------------------------------------------------------------------------------------------------------------


def make_sample(root: str | os.PathLike[str], *, count: int = 8, generator: torch.Generator | None = None) -> Path:
    """Write a tiny set in this layout, made of real photographs, to try the command line and for tests.

    root       a folder that is new or empty, or holds nothing but such a sample, which is then replaced
    count      real images, and counterfeits, of each generator and class
    generator  where patches are cut; None: the same sample each time

    Returns root. Two made-up generators, "half" and "quarter", with the classes "nature" and "things", each of a photograph
    of its own. Images are PNG, 32 x 32 pixels. A counterfeit is the real image of the same name, made smaller by two or by four
    and enlarged again, both bilinear: the simplest thing that leaves the traces of upsampling.

    ValueError, and nothing is touched, if the folder holds anything else, or a file of the sample was changed. TypeError
    or ValueError for other arguments.
    """
    if not isinstance(root, (str, os.PathLike)):
        raise TypeError(f"root must be the path of a folder, got {type(root).__name__}")
    check_count("count", count)
    check_generator(generator)
    root = Path(root)
    old = _own(root)
    generator = generator or torch.Generator().manual_seed(0)
    new: dict[str, bytes] = {}
    for (made_by, category), (photograph, factor) in _SAMPLE.items():
        real = patches.crop((photograph,), count, generator=generator)
        side = real.shape[-1]
        small = F.interpolate(real, side // factor, mode="bilinear", antialias=True, align_corners=False)
        fake = patches.quantise(F.interpolate(small, side, mode="bilinear", align_corners=False))
        for folder, pictures in ((_REAL, real), (_FAKE, fake)):
            for number, picture in enumerate(pictures):
                new[f"{made_by}/{category}/{folder}/{number:04d}.png"] = _png(picture)
    for path in old:
        path.unlink()
    root.mkdir(parents=True, exist_ok=True)
    listed = {name: hashlib.sha256(content).hexdigest() for name, content in new.items()}
    # The list comes first: a sample that is cut off while it is written is still known as ours.
    (root / _LIST).write_text(json.dumps({"made_by": _MADE_BY, "sha256": listed}, indent=1) + "\n")
    for name, content in new.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def _own(root: Path) -> list[Path]:
    """The files of an earlier sample, without its list; ValueError if there is anything else."""
    if not root.exists() and not root.is_symlink():
        return []
    if not root.is_dir():
        raise ValueError(f"root={str(root)!r} must be a folder, or not be there yet")
    listed: dict[str, str] | None = None
    try:
        found = json.loads((root / _LIST).read_text())
        if found["made_by"] == _MADE_BY:
            listed = dict(found["sha256"])
    except (OSError, KeyError, TypeError, ValueError):
        pass  # no list, or another file of that name
    own = []
    for path in sorted(root.rglob("*")):
        linked, name = path.is_symlink(), path.relative_to(root).as_posix()
        if not linked and (path.is_dir() or (name == _LIST and listed is not None)):
            continue
        if linked or hashlib.sha256(path.read_bytes()).hexdigest() != (listed or {}).get(name):
            raise ValueError(
                f"root={str(root)!r} must be new or empty, or hold nothing but an unchanged sample made by this function: "
                f"{name} is something else"
            )
        own.append(path)
    return own


def _png(picture: Tensor) -> bytes:
    buffer = io.BytesIO()
    vision.to_pil_image(picture.mul(255).round().to(torch.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
