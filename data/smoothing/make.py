"""Measure what averaging gradients does on every photograph (lecture 09): ``python data/smoothing/make.py``.

Writes smoothgrad.json, completeness.json, quadrature.json and lime.json beside itself, row by row; a row that is there is not
measured again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from xaicourse import evaluation, gradients, images, lime, models, scores

HERE = Path(__file__).parent
SAMPLES = 256
COUNTS = [1, 2, 4, 8, 16, 32, 64, 128]

network = models.load()
x = {name: models.transform()(images.load(name))[None] for name in images.names()}
with torch.no_grad():
    y = {name: int(network(image).argmax()) for name, image in x.items()}


def smoothgrad(name: str, noise: float) -> dict[str, Any]:
    """Two averages of n noisy gradients: how far they agree, and how grainy the first is."""
    generator = torch.Generator().manual_seed(0)
    sigma = noise * (x[name].max() - x[name].min())
    sums, squares, agreement, grain = [torch.zeros(x[name].shape[1:]) for _ in range(2)], 0.0, {}, {}
    for n in range(1, SAMPLES // 2 + 1):
        copies = x[name] + sigma * torch.randn(2, *x[name].shape[1:], generator=generator)
        both = scores.gradient(network, copies, y[name])[1]
        squares += both.square().sum().item()
        for total, one in zip(sums, both, strict=True):
            total += one
        if n in COUNTS:
            agreement[n] = torch.cosine_similarity(sums[0].flatten(), sums[1].flatten(), dim=0).item()
            grain[n] = evaluation.noisiness(sums[0].abs().sum(0, keepdim=True)[None]).item()
    pairs = (sums[0] + sums[1]).square().sum().item() - squares  # sum over i != j of g_i . g_j
    single = pairs / (SAMPLES - 1) / squares  # mean agreement of two single noisy gradients
    plain = evaluation.noisiness(scores.gradient(network, x[name], y[name])[1].abs().sum(1, keepdim=True)).item()
    return {"agreement": agreement, "grain": grain, "grain_of_gradient": plain, "rho_1": single}


def completeness(name: str, baseline: str) -> dict[str, Any]:
    """Integrated gradients until completeness holds to 1 %."""
    start = {"black": models.pixel_range()[0], "gray": 0.0}[baseline]
    found = gradients.integrate(network, x[name], y[name], baseline=start, steps="auto", tolerance=0.01, max_steps=4096)
    return {
        "steps": int(found.steps),
        "sum": found.relevance.sum().item(),
        "difference": found.difference.item(),
        "error": found.completeness_error.item(),
    }


def quadrature(name: str) -> dict[str, Any]:
    """Integrated gradients from black with few points: how wrong the sum is, and how wrong the map is."""
    black = models.pixel_range()[0]
    best = gradients.integrate(network, x[name], y[name], baseline=black, steps=512, quadrature="midpoint")
    difference = best.difference.item()
    wrong: dict[str, Any] = {"reference": best.completeness_error.item(), "sum": {}, "map": {}}
    for rule in ("right", "gausslegendre"):
        maps = {
            n: gradients.integrated_gradients(network, x[name], y[name], baseline=black, steps=n, quadrature=rule)
            for n in (16, 32, 64)
        }
        wrong["sum"][rule] = {n: abs(R.sum().item() / difference - 1) for n, R in maps.items()}
        wrong["map"][rule] = {n: ((R - best.relevance).norm() / best.relevance.norm()).item() for n, R in maps.items()}
    return wrong


def stability(name: str, samples: int) -> dict[str, Any]:
    """LIME with three draws of its samples."""
    segments = lime.slic(x[name], segments=50)
    generator = torch.Generator().manual_seed(0)
    found = lime.spread(network, x[name], y[name], segments=segments, samples=samples, runs=3, generator=generator)
    return {
        "r2": found.r2.mean().item(),
        "rank_correlation": found.rank_correlation.item(),
        "jaccard": found.jaccard(5).item(),
    }


def fill(file: str, measure: Callable[..., dict[str, Any]], asked: list[dict[str, Any]]) -> None:
    """Measure the rows that the file has not got."""
    path = HERE / file
    rows = json.loads(path.read_text()) if path.exists() else []
    for wanted in tqdm(asked, desc=file):
        if not any(wanted.items() <= row.items() for row in rows):
            rows.append(wanted | rounded(measure(*wanted.values())))
            path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


def rounded(value: Any) -> Any:
    """Six digits are plenty."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def reference() -> None:
    """Integrated gradients of chelsea with 1,024 points, to hold maps of fewer points against; half precision."""
    if not (HERE / "reference.pt").exists():
        map_ = gradients.integrated_gradients(
            network, x["chelsea"], y["chelsea"], baseline=models.pixel_range()[0], steps=1024, quadrature="midpoint"
        )
        torch.save({"chelsea": map_.half()}, HERE / "reference.pt")


if __name__ == "__main__":
    fill(
        "smoothgrad.json",
        smoothgrad,
        [{"photograph": name, "noise": noise} for noise in (0.05, 0.15, 0.3) for name in x],
    )
    fill("completeness.json", completeness, [{"photograph": n, "baseline": b} for n in x for b in ("black", "gray")])
    fill("quadrature.json", quadrature, [{"photograph": name} for name in x])
    reference()
    fill("lime.json", stability, [{"photograph": name, "samples": n} for n in (100, 300) for name in x])
