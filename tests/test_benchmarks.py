"""The benchmarks' machinery, on work that takes no time. What they measure is nowhere asserted."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from benchmarks import lrp_models, questions
from benchmarks.__main__ import main, names
from benchmarks.framework import (
    OURS,
    Contender,
    Goal,
    Row,
    Settings,
    peak_memory,
    read,
    report,
    run,
    write,
)
from benchmarks.networks import network
from xaicourse import contrastive, lrp

QUICK = Settings(rounds=1, memory=False)


def silent(text: str) -> None:
    pass


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
    assert "time ours / yardstick <= 1e+09" in shown[-2]
    assert "1 of 1 hold" in shown[-1]


def test_results_that_differ_are_never_timed():
    off_by_little = Contender(partial(gradient_x_input, times=1 + 1e-6))
    (measured,) = run([row(off_by_little)], QUICK, silent)["rows"]
    assert measured["holds"] is False and "median" not in measured
    assert "ours and peer differ by 1.0e-06, allowed 1.0e-09" in measured["why"]


@pytest.mark.parametrize("times", [float("nan"), float("inf")])
def test_a_result_that_is_not_finite_equals_nothing(times: float):
    peer = Contender(partial(gradient_x_input, times=times))
    (measured,) = run([row(peer)], QUICK, silent)["rows"]
    assert measured["holds"] is False


def unable(exact: bool):
    raise TypeError("no rule for SiLU. Set one, please\nhere")


def test_a_peer_that_is_only_tried_is_left_out_and_the_row_says_why():
    shown: list[str] = []
    for peer, why in (
        (Contender(unable, tried="young"), "TypeError: no rule for SiLU"),
        (Contender(partial(gradient_x_input, times=4.0), tried="young"), "runs, but differs by 3.0e+00: young"),
    ):
        tried = replace(row(peer), goals=())
        (measured,) = run([tried], QUICK, shown.append)["rows"]
        assert measured["holds"] and measured["unable"] == {"peer": why}
        assert set(measured["median"]) == {OURS, "yardstick"}
        assert f"unable: peer ({why})" in shown[-2]


def test_a_row_that_raises_does_not_hold_and_the_next_one_follows(capsys):
    shown: list[str] = []
    broken = replace(row(Contender(unable)), name="broken")
    result = run([broken, row(Contender(gradient_x_input))], QUICK, shown.append)
    assert [measured["holds"] for measured in result["rows"]] == [False, True]
    assert "1 of 2 hold; not broken" in shown[-1]
    assert "no rule for SiLU" in capsys.readouterr().err


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    file = tmp_path / "figures.json"
    good, other = row(Contender(gradient_x_input)), replace(row(Contender(gradient_x_input)), name="other")

    def save(result) -> None:
        write({"tiny": result}, file)

    before = run([good], QUICK, silent, save=save)
    after = run([good, other], QUICK, silent, earlier=read(file)["tiny"], save=save)
    assert after["rows"][0] == before["rows"][0], "not measured again"
    assert [measured["name"] for measured in read(file)["tiny"]["rows"]] == ["tiny", "other"]
    again = run([good], replace(QUICK, rounds=2), silent, earlier=read(file)["tiny"])
    assert len(again["rows"]) == 1 and len(again["rows"][0]["later_calls"][OURS]) == 2, "measured in another way"


def test_every_network_is_made_the_same_each_time_and_no_part_of_it_is_idle():
    one, two = network("convnext_tiny").state_dict(), network("convnext_tiny").state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert all(weight.any() and weight.std() > 1e-3 for name, weight in one.items() if "layer_scale" in name)


def test_figures_can_be_read_back_and_name_no_place(tmp_path):
    result = run([row(Contender(gradient_x_input))], QUICK, silent)
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
    assert "lrp: resnet50 epsilon_plus, batch 8" in listed and "lrp_models: resnet50" in listed
    assert "gradients: resnet50 integrated gradients, 32 steps" in listed
    assert all(f"{name}: " in listed for name in names())


def test_an_unknown_benchmark_is_refused_by_name(capsys):
    with pytest.raises(SystemExit):
        main(["pears"])
    assert "no benchmark called pears; there are gradients, lrp" in capsys.readouterr().err


def test_a_model_that_adds_up_holds(tmp_path, capsys):
    file = tmp_path / "figures.json"
    arguments = ["lrp_models", "--quick", "--only", "squeezenet1_1", "--json", str(file)]
    assert main(arguments) == 0
    assert "1 of 1 hold" in capsys.readouterr().out
    (measured,) = read(file)["lrp_models"]["rows"]
    assert measured["explained"] and measured["outputs"] <= 1e-3 and measured["ratio"] > 0


def test_a_model_that_lrp_refuses_does_not_hold(monkeypatch, capsys):
    class Refused(nn.Module):
        def forward(self, x):
            return torch.fft.fft(x.mean((2, 3))).real

    monkeypatch.setattr(lrp_models, "network", lambda name, size: Refused().eval())
    assert main(["lrp_models", "--quick", "--only", "alexnet"]) == 1
    out = capsys.readouterr().out
    assert "DOES NOT HOLD" in out and "fft" in out and "0 of 1 hold; not alexnet" in out


def test_a_row_of_the_comparison_says_what_peers_cannot(tmp_path, capsys):
    assert main(["lrp", "--quick", "--only", "efficientnet_b0 epsilon, batch 1"]) == 0
    out = capsys.readouterr().out
    assert "unable: captum (TypeError" in out and "unable: zennit (runs, but differs" in out


def test_all_explainers_of_a_row_give_the_same_and_the_model_alone_stands_beside_them(capsys):
    assert main(["gradients", "--quick", "--only", "efficientnet_lite0 Grad-CAM, batch 1"]) == 0
    out = capsys.readouterr().out
    assert "equal: ours and captum differ" in out and "equal: ours and pytorch-grad-cam, frozen differ" in out
    assert "time ours / model, channels last <= 1.1" in out and "unable" not in out


def test_contrasts_that_the_model_confirms_are_counted(capsys):
    assert main(["questions", "--quick", "--only", "negatives"]) == 0
    out = capsys.readouterr().out
    assert "held by the model: 10 of 10 (10 said to be found)" in out and "met" in out


def test_contrasts_that_the_model_does_not_confirm_do_not_hold(monkeypatch, capsys):
    def invented(model, pictures, **_):
        found = contrastive.pertinent_negative(model, pictures, steps=1, searches=1)
        return replace(found, found=torch.ones_like(found.found), picture=pictures)

    monkeypatch.setitem(questions._SEARCHES, "negatives", invented)
    assert main(["questions", "--quick", "--only", "negatives"]) == 1
    assert "the model does not say of a picture what was reported" in capsys.readouterr().out
