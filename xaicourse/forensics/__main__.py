"""Case C on the command line: ``python -m xaicourse.forensics {data,train,rank,ablate,evaluate,report}``. Lecture 15.

Without ``--data`` it runs the miniature: patches of the photographs that installed packages carry. With ``--data ROOT`` it
works on images in the ForenSynths layout, ROOT/generator/class/{0_real,1_fake}. Every command goes on where it was interrupted,
and runs the steps before it where they are missing. Large image sets are ranked, ablated and evaluated by several processes;
training comes first, in one:

    python -m xaicourse.forensics train --data ROOT --out OUT --detector resnet50
    torchrun --nproc-per-node 4 -m xaicourse.forensics evaluate --data ROOT --out OUT --detector resnet50
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from ..arguments import check_count
from . import colour, detectors, folders, miniature, patches, report, synths
from .channels import norms
from .experiment import Run, keep

_log = logging.getLogger("xaicourse.forensics")
COMMANDS = ("data", "train", "rank", "ablate", "evaluate", "report")
_SIZE = 224
_CONFIGURATION = "configuration.json"


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m xaicourse.forensics",
        description=__doc__.split("\n\n")[0],
        epilog="Images of your own: --data ROOT with ROOT/generator/class/{0_real,1_fake}. Each step goes on where it stopped.",
    )
    parser.add_argument(
        "command",
        choices=COMMANDS,
        help="data: what there is; train: detectors (and generators); rank: channels by relevance; ablate: without them; "
        "evaluate: in colour and gray, and all before it; report: tables over seeds",
    )
    parser.add_argument("--data", type=Path, help="images in the ForenSynths layout; without it the miniature")
    parser.add_argument("--out", type=Path, default=Path("forensics-runs"), help="where results go (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run each (%(default)s)")
    parser.add_argument("--detector", nargs="+", default=["small"], choices=detectors.NAMES, help="(%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    parser.add_argument("--seen", help="with --data: the generator to train on (the first)")
    parser.add_argument("--size", type=int, help=f"with --data: pixels along a side ({_SIZE})")
    parser.add_argument("--steps", type=int, help="of a detector's training")
    parser.add_argument("--k", type=int, help="channels to ablate")
    parser.add_argument(
        "--shard", type=int, default=64, help="pictures that are ranked and kept together (%(default)s)"
    )
    parser.add_argument("--from-scratch", action="store_true", help="do not start from ImageNet's weights")
    asked = parser.parse_args(given)
    if any(seed < 0 for seed in asked.seeds):
        parser.error(f"--seeds must be at least 0, got {min(asked.seeds)}")
    for name in ("size", "steps", "k", "shard"):
        if getattr(asked, name) is not None and getattr(asked, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(asked, name)}")
    if asked.data is None and (asked.seen or asked.size):
        parser.error("--seen and --size are for images of your own, give their folder with --data")
    if _processes() > 1 and asked.command in ("data", "train", "report"):
        parser.error(
            f"{asked.command} runs in one process; start it without torchrun; it is for rank, ablate and evaluate"
        )
    if _processes() > 1 and asked.data is None:
        parser.error("torchrun is for large sets of images, which --data names; the miniature runs in one process")
    asked.size = asked.size or _SIZE
    return asked


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def _data(asked: argparse.Namespace) -> str:
    if asked.data is None:
        lines = [
            f"seed {seed}: train {', '.join(train)}; validate {', '.join(validation)}; test {', '.join(test)}"
            for seed in asked.seeds
            for train, validation, test in [patches.split(seed)]
        ]
        return "\n".join(["Photographs in the installed packages, split by photograph:", *lines])
    found = folders.check(asked.data, least=asked.size, progress=True)
    if not found.sound:
        raise ValueError(str(found))
    return str(found)


def _configuration(asked: argparse.Namespace) -> dict[str, Any]:
    """What results depend on, besides seed and detector."""
    data = None if asked.data is None else str(asked.data.resolve())
    seen, size = (asked.seen, asked.size) if data else (miniature.SEEN, patches.SIZE)
    return {
        "data": data,
        "seen": seen,
        "size": size,
        "steps": asked.steps,
        "k": asked.k,
        "from_scratch": asked.from_scratch,
    }


def _check_settings(asked: argparse.Namespace) -> None:
    """Before any work: is there such a device, are there k channels, are the results in the folder of the same settings?"""
    try:
        torch.empty(0, device=asked.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device must be one that this machine has, got {asked.device!r}: {reason}") from error
    for name in asked.detector if asked.k else ():
        width = sum(norm.num_features for norm in norms(detectors.build(name, pretrained=False)).values())
        check_count("--k", asked.k, most=width, most_is=f"the channels of {name}")
    file = asked.out / _CONFIGURATION
    there = json.loads(file.read_text(encoding="utf-8")) if file.exists() else _configuration(asked)
    differs = {name: value for name, value in _configuration(asked).items() if there.get(name) != value}
    if differs:
        was = "; ".join(f"{name}: {there.get(name)!r} there, {new!r} asked for" for name, new in differs.items())
        raise ValueError(
            f"--out must be of the same settings, {asked.out} was made with others ({was}); name another folder"
        )


def _run(asked: argparse.Namespace, seed: int) -> None:
    folder = asked.out / f"seed-{seed}"
    if asked.data is not None:
        sets = synths.sets(asked.data, asked.seen, size=asked.size, seed=seed)
    keep(asked.out / _CONFIGURATION, lambda: _configuration(asked))  # settings that were refused claim no folder
    made: dict[str, Any] = {}
    if asked.data is None:
        made = miniature.autoencoders(seed, folder / "generators", progress=True)
        sets = miniature.sets(seed, made)
    steps = COMMANDS[1 : COMMANDS.index(asked.command) + 1]
    for name in asked.detector:
        run = _detector(asked, seed, name, sets)
        for step in steps:
            getattr(run, step)()
            _log.info("seed %d, %s: %s done", seed, name, step)
        if "evaluate" in steps:
            run.rivals()
    if asked.data is None and "evaluate" in steps:
        about: dict[str, Any] = {"seed": seed, "configuration": {"detector": "small"}}
        keep(
            folder / "planted.json", lambda: {kind: miniature.planted(seed, kind) for kind in colour.ARTEFACTS} | about
        )
        if "small" in asked.detector:
            small = _detector(asked, seed, "small", sets, device="cpu")  # where the generators are
            keep(
                folder / "tuned.json",
                lambda: {"outrank": miniature.outrank(small.rank(), colour.tuning(small.detector())), "seed": seed},
            )
            keep(
                folder / "fooled.json",
                lambda: (
                    miniature.fooled(seed, made[miniature.SEEN], small.detector(), sets, small.cut())
                    | {"seed": seed, "configuration": small.settings()}
                ),
            )


def _detector(asked: argparse.Namespace, seed: int, name: str, sets: miniature.Sets, device: str | None = None) -> Run:
    return Run(
        asked.out / f"seed-{seed}" / name,
        sets,
        name,
        seed,
        device or asked.device,
        pretrained=not asked.from_scratch,
        steps=asked.steps,
        k=asked.k,
        shard=asked.shard,
        **({} if asked.data else miniature.SETTINGS[name]),
        progress=True,
    )


def _report(asked: argparse.Namespace) -> str:
    results = report.collect(asked.out)
    (asked.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if report.complete(results):
        (asked.out / "summary.json").write_text(json.dumps(report.summary(results), indent=1) + "\n", encoding="utf-8")
    lines = [
        f"{len(results)} {'seed' if len(results) == 1 else 'seeds'}; mean ± half of the 95 % interval over seeds, written to "
        f"{asked.out / 'results.json'}"
    ]
    for name in detectors.NAMES:
        if any("ablate" in of_seed.get(name, {}) for of_seed in results.values()):
            lines += [
                "",
                f"{name}: AP, accuracy on real and on counterfeit pictures, channels ablated after the batch norm",
            ]
            lines += _aligned(report.ablation_table(results, name))
        if any("evaluate" in of_seed.get(name, {}) for of_seed in results.values()):
            lines += ["", f"{name}: AP in colour and gray, by training"]
            lines += _aligned(report.colour_table(results, name))
        table = report.difference_table(results, name)
        if len(table) > 1:
            lines += ["", f"{name}: AP, paired differences"]
            lines += _aligned(table)
    for artefact in colour.ARTEFACTS:
        found = {what: report.values(results, "planted", artefact, what) for what in ("precision", "outrank", "random")}
        if found["outrank"]:
            said = ", ".join(f"{what} {report.interval(of_seeds)}" for what, of_seeds in found.items())
            lines += ["", f"planted in {artefact}: {said}"]
    if report.values(results, "planted", "chroma", "outrank"):
        apart = report.difference(results, ("planted", "chroma", "outrank"), ("planted", "luma", "outrank"))
        lines += [f"outrank, chroma minus luma: {apart}"]
    table = report.fooled_table(results)
    if len(table) > 1:
        lines += ["", "channels of the generator ablated: share of its pictures found, distortion"]
        lines += _aligned(table)
    return "\n".join(lines)


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _try(asked: argparse.Namespace, seed: int) -> Exception | None:
    """Run a seed; one whose detector is at chance is said to be so, and does not stop those after it."""
    try:
        _run(asked, seed)
    except detectors.AtChance as error:
        return detectors.AtChance(f"seed {seed}: {error}")
    return None


def _said(error: Exception) -> Exception:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return error


def main(given: list[str] | None = None) -> int:
    """Run one command; 0 if it came to its end, 1 with a line that says what is wrong."""
    asked = _arguments(given)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if _processes() > 1:
            if asked.device == "cuda":
                asked.device = f"cuda:{os.environ['LOCAL_RANK']}"
            if asked.device.startswith("cuda"):
                torch.cuda.set_device(asked.device)
            backend = "nccl" if asked.device.startswith("cuda") else "gloo"
            distributed.init_process_group(backend, timeout=timedelta(days=1))  # shards are not all equally long
        if asked.command == "data":
            print(_data(asked))
        elif asked.command == "report":
            print(_report(asked))
        else:
            _check_settings(asked)
            refused = [_said(error) for error in (_try(asked, seed) for seed in asked.seeds) if error is not None]
            return int(bool(refused))
    except (OSError, RuntimeError, ValueError) as error:
        _said(error)
        return 1
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
