"""What seeds say together agrees with SciPy and with hand calculation; tables come from what runs have written."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from xaicourse.forensics import report


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12).filter(lambda x: np.std(x) > 1e-6))
def test_the_interval_is_students_t_interval_of_scipy(of_seeds):
    found = report.interval(of_seeds)
    low, high = stats.t.interval(0.95, len(of_seeds) - 1, loc=np.mean(of_seeds), scale=stats.sem(of_seeds))
    assert found.mean - found.half == pytest.approx(low, abs=1e-12)
    assert found.mean + found.half == pytest.approx(high, abs=1e-12)


def test_the_interval_of_two_seeds_by_hand():
    found = report.interval([0.4, 0.6])  # sd = sqrt(0.02), and t with one degree of freedom is tan(0.475 pi)
    assert found.mean == pytest.approx(0.5)
    assert found.half == pytest.approx(math.tan(0.475 * math.pi) * 0.1)
    assert str(found) == "0.50 ± 1.27"


def test_a_single_seed_has_no_interval_and_none_is_refused():
    assert report.interval([0.25]) == (0.25, math.inf) and str(report.interval([0.25])) == "0.25"
    with pytest.raises(ValueError, match="of_seeds must hold at least one number, got none"):
        report.interval([])


def _quality(precision: float) -> dict[str, float]:
    return {"precision": precision, "real": precision - 0.1, "fake": precision - 0.2}


def _seed(folder, seed: int, baseline: float, top: float, low: float) -> None:
    """Results as a run writes them, of one detector on two generators; on the second all is 0.1 less."""

    def on_each(precision):
        return {"a": _quality(precision), "b": _quality(precision - 0.1)}

    def shown(colour, gray):
        on = {
            name: {"colour": _quality(c), "gray": _quality(g)} for name, c, g in (("a", colour, gray), ("b", gray, 0.5))
        }
        return {"threshold": 0.0, **on}

    place = folder / f"seed-{seed}" / "small"
    place.mkdir(parents=True)
    kinds = {"top": on_each(top), "low": on_each(low)}
    ablated = {"k": 3, "threshold": 0.0, "baseline": on_each(baseline), "after": kinds, "before": kinds}
    (place / "ablate.json").write_text(json.dumps(ablated))
    arms = {"colour": shown(baseline, top), "gray": shown(baseline, low)}
    (place / "evaluate.json").write_text(json.dumps({"arms": arms}))
    (place / "ranking.json").write_text("{}")
    planted = {"chroma": {"outrank": top, "precision": 1.0, "random": 0.5}, "seed": seed}
    (place.parent / "planted.json").write_text(json.dumps(planted))


@pytest.fixture
def results(tmp_path):
    _seed(tmp_path, 10, baseline=0.9, top=0.5, low=0.9)
    _seed(tmp_path, 2, baseline=0.8, top=0.6, low=0.8)
    return report.collect(tmp_path)


def test_results_are_collected_by_seed_in_order_of_numbers_without_rankings(results):
    assert list(results) == ["2", "10"]
    assert set(results["10"]) == {"small", "planted"} and set(results["10"]["small"]) == {"ablate", "evaluate"}
    assert report.values(results, "small", "ablate", "after", "top", "b", "precision") == pytest.approx([0.5, 0.4])
    assert report.values(results, "planted", "chroma", "outrank") == [0.6, 0.5]
    assert report.values(results, "planted", "luma", "outrank") == []


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"folder must hold results of .*; .* has none"):
        report.collect(tmp_path / "nowhere")
    (tmp_path / "seed-3" / "small").mkdir(parents=True)
    (tmp_path / "seed-3" / "small" / "ranking.json").write_text("{}")  # a ranking alone is no result
    with pytest.raises(ValueError, match="has none"):
        report.collect(tmp_path)


def test_the_ablation_table_has_a_row_for_the_whole_detector_and_each_kind(results):
    rows = report.ablation_table(results, "small")
    assert [row[0] for row in rows] == ["ablated", "baseline", "top", "low"] and rows[0][1:] == ["a", "b"]
    cell = [str(report.interval([0.6 - less, 0.5 - less])) for less in (0.1, 0.2, 0.3)]
    assert rows[2][2] == "  ".join(cell) and cell[0].startswith("0.45 ± ")


def test_the_colour_table_has_a_row_for_each_training_and_kind_of_picture(results):
    rows = report.colour_table(results, "small")
    assert rows[0] == ["training", "pictures", "a", "b"]
    labels = [("colour", "colour"), ("colour", "gray"), ("gray", "colour"), ("gray", "gray")]
    assert [tuple(row[:2]) for row in rows[1:]] == labels
    assert rows[2][2:] == [str(report.interval([0.6, 0.5])), "0.50 ± 0.00"]


def test_differences_are_taken_within_seeds(results):
    at = ("small", "ablate", "after")
    found = report.difference(results, (*at, "top", "a", "precision"), (*at, "low", "a", "precision"))
    test = stats.ttest_rel([0.6, 0.5], [0.8, 0.9]).confidence_interval()
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx(tuple(test))
    # where every seed has the same difference there is no doubt, however much the seeds differ
    same = report.difference(results, (*at, "top", "a", "precision"), (*at, "top", "b", "precision"))
    assert same.mean == pytest.approx(0.1) and same.half == pytest.approx(0, abs=1e-12)


def test_a_seed_that_lacks_one_side_takes_no_part_in_a_difference(results):
    del results["2"]["small"]["ablate"]["after"]["low"]
    at = ("small", "ablate", "after")
    found = report.difference(results, (*at, "top", "a", "precision"), (*at, "low", "a", "precision"))
    assert found == (pytest.approx(-0.4), math.inf)
    with pytest.raises(ValueError, match="path and other must be numbers of one seed at least, got small / x"):
        report.difference(results, ("small", "x"), ("small", "y"))


def test_the_table_of_differences_compares_with_each_control_and_gray_with_colour(results):
    rows = report.difference_table(results, "small")
    assert [row[0] for row in rows] == [
        "difference",
        "top minus low, ablated",
        "gray minus colour, trained in colour",
        "gray minus colour, trained in gray",
        "trained in gray minus in colour, on gray",
    ]
    assert rows[1][1] == str(report.interval([-0.2, -0.4])) and rows[3][1] == "0.00 ± 0.00"
    assert rows[4][1:] == [str(report.interval([0.2, 0.4])), "0.00 ± 0.00"]


def test_tables_of_a_detector_without_results_are_refused(results):
    for table, step in ((report.ablation_table, "ablate"), (report.colour_table, "evaluate")):
        with pytest.raises(ValueError, match=f"results must hold those of step '{step}' for detector 'resnet50'"):
            table(results, "resnet50")
    assert report.difference_table(results, "resnet50") == [["difference"]]


def test_a_star_is_the_mean_over_generators_and_leaves_out_what_stands_beside_them():
    one = {"threshold": 0.5, "nearest": {"colour": {"precision": 0.5}}, "bilinear": {"colour": {"precision": 1.0}}}
    results = {"0": {"small": {"arms": one}}, "1": {"small": {}}}
    assert report.values(results, "small", "arms", "*", "colour", "precision") == [0.75]
    assert report.values(results, "small", "arms", "*", "gray", "precision") == []
    assert report.values(results, "small", "arms", "nearest") == []
