"""The benchmarks' machinery, on work that takes no time. What they measure is nowhere asserted."""

import json
from functools import partial

import pytest
import torch
from torch import nn

from benchmarks.__main__ import main, names
from benchmarks.framework import (
    OURS,
    Contender,
    Goal,
    Row,
    Settings,
    Unequal,
    peak_memory,
    report,
    run,
    write,
)
from xaicourse import lrp


def tiny(exact: bool) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    dtype = torch.float64 if exact else torch.float32
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)).eval().to(dtype)
    return model, torch.randn(4, 6, dtype=dtype)


def relevance(exact: bool):
    model, x = tiny(exact)
    return lambda: lrp.relevance(model, x, 0, composite=lrp.Composite(linear=lrp.Epsilon(0.0)))


def gradient_x_input(exact: bool, times: float = 1.0):
    model, x = tiny(exact)

    def work():
        leaf = x.clone().requires_grad_()
        return times * x * torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)[0]

    return work


def row(peer: Contender) -> Row:
    yardstick = Contender(partial(gradient_x_input, times=7.0), agrees=False, memory=False)
    contenders = {OURS: Contender(relevance), "peer": peer, "yardstick": yardstick}
    goals = [Goal("time", OURS, "yardstick", at_most=1e9), Goal("memory", OURS, "peer", at_least=1e9)]
    return Row("tiny", contenders, tolerance=1e-9, goals=goals, configuration={"batch": 4})


def test_equal_results_are_timed_and_reported():
    shown: list[str] = []
    result = run([row(Contender(gradient_x_input))], Settings(rounds=2, memory=False), shown.append)
    (measured,) = result["rows"]
    assert measured["difference"]["peer"] <= 1e-9
    assert {len(seconds) for seconds in measured["later_calls"].values()} == {2}
    assert set(measured["later_calls"]) == set(measured["first_call"]) == {OURS, "peer", "yardstick"}
    assert measured["goals"][0]["met"] is True
    assert measured["goals"][1]["met"] is None, "memory was not measured, so no goal about it is judged"
    assert "time ours / yardstick <= 1e+09" in shown[-1]


def test_results_that_differ_are_never_timed():
    off_by_little = Contender(partial(gradient_x_input, times=1 + 1e-6))
    with pytest.raises(Unequal, match="ours and peer differ by 1.0e-06, allowed 1.0e-09"):
        run([row(off_by_little)], Settings(rounds=1, memory=False), lambda text: None)


@pytest.mark.parametrize("times", [float("nan"), float("inf")])
def test_a_result_that_is_not_finite_equals_nothing(times: float):
    peer = Contender(partial(gradient_x_input, times=times))
    with pytest.raises(Unequal):
        run([row(peer)], Settings(rounds=1, memory=False), lambda text: None)


def test_figures_can_be_read_back_and_name_no_place(tmp_path):
    result = run([row(Contender(gradient_x_input))], Settings(rounds=1, memory=False), lambda text: None)
    write({"tiny": result}, tmp_path / "figures.json")
    text = (tmp_path / "figures.json").read_text()
    assert report(json.loads(text)["tiny"]["rows"][0])
    assert json.loads(text)["tiny"]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert "/" not in text.replace("ours / yardstick", "").replace("ours / peer", "")


def allocate(exact: bool, mebibytes: int):
    return lambda: torch.ones(mebibytes * 2**18)


def test_peak_memory_is_that_of_the_work_alone():
    assert 150 <= peak_memory(Contender(partial(allocate, mebibytes=200))) <= 300


def test_every_benchmark_lists_its_rows(capsys):
    assert names() and main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert "lrp: resnet50 epsilon_plus" in listed
    assert all(f"{name}: " in listed for name in names())


def test_an_unknown_benchmark_is_refused_by_name(capsys):
    with pytest.raises(SystemExit):
        main(["pears"])
    assert "no benchmark called pears; there are lrp" in capsys.readouterr().err
