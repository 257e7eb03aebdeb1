"""Activation maximization on EfficientNet-Lite0, measured (lecture 02): ``python data/maximization/make.py``.

Writes regularisers.json, hidden.json and rankings.json beside itself; a file that is there already is not made again.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torchvision.transforms.functional as vision
from torch import Tensor
from tqdm.auto import tqdm

from xaicourse import images, lrp, maximization, models, removal

HERE = Path(__file__).parent
LAYER = "blocks.10.expand.bn"
NORMAL = models.transform()
PIXELS = {"parametrisation": "pixels", "decorrelate": False}
SETTINGS = {
    "pixels, nothing else": PIXELS,
    "decorrelated colours": {"parametrisation": "pixels"},
    "Fourier": {"decorrelate": False},
    "jitter 8": {**PIXELS, "jitter": 8},
    "scale 0.15": {**PIXELS, "scale": 0.15},
    "blur 0.3": {**PIXELS, "blur": 0.3},
    "total variation 20": {**PIXELS, "total_variation": 20.0},
    "L2 40": {**PIXELS, "l2": 40.0},
    "all together": {"jitter": 8, "scale": 0.15, "blur": 0.1, "total_variation": 5.0, "l2": 5.0},
}


def seeded(seed: int) -> torch.Generator:
    """A generator of its own for each run."""
    return torch.Generator().manual_seed(seed)


def drawn(channels: int, number: int) -> list[int]:
    """So many channels at random, always the same."""
    return sorted(torch.randperm(channels, generator=seeded(0))[:number].tolist())


def turned(image: Tensor) -> Tensor:
    """Four small turns of an image, none of which is among what a regulariser does, (4, C, H, W)."""
    turns = [
        vision.rotate(image, angle, vision.InterpolationMode.BILINEAR, fill=[0.5] * 3) for angle in (-10, -5, 5, 10)
    ]
    return torch.stack(turns).clamp(0, 1)


def regularisers(model: torch.nn.Module, number: int = 24) -> dict[str, list]:
    """For each setting and channel, with two seeds: activation, share that survives small turns, mean neighbour difference."""
    setting = {"layer": LAYER, "normalize": NORMAL}
    found: dict[str, list] = {"channels": drawn(672, number)}
    for name, switches in tqdm(SETTINGS.items()):
        found[name] = []
        for channel in found["channels"]:
            runs = []
            for seed in (0, 1):
                made = maximization.maximize(
                    model, channel, size=(3, 96, 96), generator=seeded(seed), **setting, **switches
                )
                survived = maximization.activation(model, turned(made.image), channel, **setting).mean().item()
                rough = sum(made.image.diff(dim=axis).abs().mean().item() for axis in (1, 2))
                runs.append([round(value, 4) for value in (made.before, made.after, survived, rough)])
            found[name].append(runs)
    return found


def at_the_place(size: int, places: Tensor, grid: int) -> Tensor:
    """A map that is highest in the middle of what lies behind a place, (N, 1, size, size)."""
    middle = (places + 0.5) * size / grid
    at = torch.arange(size) + 0.5
    down, across = (at - middle[:, 0, None]).square(), (at - middle[:, 1, None]).square()
    return (-(down[:, :, None] + across[:, None, :]) / 512).exp()[:, None]


def gradient_x_input(model: torch.nn.Module, image: Tensor, channel: int, layer: str, place: Tensor) -> Tensor:
    """Of one activation at one place, (1, C, H, W)."""
    x = vision.normalize(image[None], list(NORMAL.mean), list(NORMAL.std)).requires_grad_()
    kept: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, args, output: kept.append(output))
    model(x)
    handle.remove()
    activation = kept[0][0, channel, place[0], place[1]]
    return (torch.autograd.grad(activation, x)[0] * x).detach()


def hidden(model: torch.nn.Module, number: int = 120, side: int = 32) -> dict[str, dict]:
    """What the activation of channels loses when a square of their best crop is hidden, by four maps and at random."""
    pool = maximization.photograph_crops(shorter=320, stride=96)
    found: dict[str, dict] = {}
    for layer, grid in (("blocks.7.expand.bn", 8), (LAYER, 8), ("head.bn", 4)):
        setting = {"layer": layer, "normalize": NORMAL}
        ranking = maximization.rank_samples(model, pool, k=1, **setting)
        channels = drawn(ranking.values.shape[1], number + 1)
        rows: dict[str, list] = {"channels": channels[:number], "crop": [], "box": [], "active": []}
        for channel, other in tqdm(list(zip(channels[:-1], channels[1:], strict=True)), desc=layer):
            best = maximization.top_samples(model, pool, channel, k=1, ranking=ranking, **setting)
            ours = best.relevance
            theirs = lrp.relevance(model, _inputs(best.images), None, start=lrp.channel(layer, other))
            maps = {
                "LRP": ours,
                "LRP of another channel": theirs,
                "gradient x input": gradient_x_input(model, best.images[0], channel, layer, best.places[0]),
                "the place": at_the_place(128, best.places, grid),
            }
            rows["crop"].append(int(best.indices[0]))
            rows["box"].append(best.boxes[0].tolist())
            for how, filled in {"mean": removal.mean(), "blur": removal.blur(8.0)}.items():
                for name, one in maps.items():
                    controls = 16 if name == "LRP" else 1
                    out = maximization.hide(
                        model, best.images, one, channel, removal=filled, side=side, controls=controls,
                        generator=seeded(channel), **setting,
                    )  # fmt: skip
                    rows.setdefault(f"{how}/{name}", []).append(round(out.relevant.item(), 4))
                    if name == "LRP":
                        rows.setdefault(f"{how}/random", []).append(round(out.random.mean().item(), 4))
            rows["active"].append(round(best.values[0].item(), 4))
        found[layer] = rows
    return found


def _inputs(pictures: Tensor) -> Tensor:
    return vision.normalize(pictures, list(NORMAL.mean), list(NORMAL.std))


def rankings(model: torch.nn.Module, k: int = 5) -> dict[str, dict]:
    """For each layer, class and channel: how many of the best k crops by activation are also among those by relevance.

    Layers behind their ReLU6, since what it cuts off has no relevance for anything; channels as active as their places on
    average. Controls: by the strongest place instead of the average; by relevance for this class and for the next; by relevance
    and by the score of the class itself.
    """
    pool = maximization.photograph_crops(shorter=320, stride=96)
    crops = _inputs(torch.stack([pool[number] for number in range(len(pool))]))
    layers = ("blocks.7.expand", "blocks.10.expand", "blocks.14.expand", "head")
    with torch.no_grad():
        said = [int(model(NORMAL(images.load(name))[None]).argmax()) for name in images.names()]
    classes = sorted(set(said))
    relevance: dict[tuple[str, int], Tensor] = {}
    for target in tqdm(classes):
        parts: dict[str, list[Tensor]] = {layer: [] for layer in layers}
        for chunk in crops.split(8):
            traced = lrp.trace(model, chunk, target).layers
            for layer in layers:
                parts[layer].append(traced[layer].flatten(2).sum(2))
        for layer in layers:
            relevance[layer, target] = torch.cat(parts[layer])
    with torch.no_grad():
        scores = torch.cat([model(chunk) for chunk in crops.split(8)])
    found: dict[str, dict] = {"crops": len(pool), "k": k, "classes": classes, "layers": {}}
    for layer in layers:
        kept: list[Tensor] = []
        handle = model.get_submodule(layer).register_forward_hook(
            lambda m, a, output, kept=kept: kept.append(output.clone())
        )
        with torch.no_grad():
            for chunk in crops.split(8):
                model(chunk)
        handle.remove()
        activation = torch.cat(kept).flatten(2)
        average = activation.mean(2)
        rows = {"active": (average.amax(0) > 0).tolist(), "strongest place": _shared(average, activation.amax(2), k)}
        for target, other in zip(classes, classes[1:] + classes[:1], strict=True):
            rows[f"{target}"] = _shared(average, relevance[layer, target], k)
            rows[f"{target}, next class"] = _shared(relevance[layer, target], relevance[layer, other], k)
            score = scores[:, [target]].expand(-1, average.shape[1])
            rows[f"{target}, score"] = _shared(score, relevance[layer, target], k)
            rows[f"{target}, most relevant"] = relevance[layer, target].sum(0).argsort(descending=True)[:20].tolist()
        found["layers"][layer] = rows
    return found


def _shared(one: Tensor, other: Tensor, k: int) -> list[int]:
    """For each channel, how many of the best k samples by two rankings are the same, (channels,)."""
    first, second = (values.sort(dim=0, descending=True, stable=True).indices[:k] for values in (one, other))
    return (first[:, None] == second[None]).any(1).sum(0).tolist()


def main() -> None:
    """Make what is not there."""
    model = models.load()
    for make in (hidden, rankings, regularisers):
        file = HERE / f"{make.__name__}.json"
        if not file.exists():
            file.write_text(json.dumps(make(model), separators=(",", ":")).replace('"},', '"},\n') + "\n")


if __name__ == "__main__":
    main()
