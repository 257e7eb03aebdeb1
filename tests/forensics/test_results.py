"""What the course says of its forensics is what its stored results hold, and these are what its stored networks do."""

import pytest
import torch

from xaicourse import weights
from xaicourse.forensics import ablation, detectors, experiment, miniature, report

RESULTS = report.shipped()
GENERATORS = ("transposed", "nearest", "bilinear", "pixel shuffle")
NETWORKS = ("small", "efficientnet_lite0")


def over_generators(*path, what="precision"):
    """One number for each seed, where "*" stands for the mean over generators."""
    return report.values(RESULTS, *path, what)


def minus(one, other):
    assert len(one) == len(other) == len(RESULTS)
    return report.interval([a - b for a, b in zip(one, other, strict=True)])


def below_zero(interval):
    return interval.mean + interval.half < 0


def above_zero(interval):
    return interval.mean - interval.half > 0


@pytest.fixture(scope="module")
def of_seed_0():
    folder = weights.DATA / "forensics" / "seed-0"
    sets = miniature.sets(0, miniature.autoencoders(0, folder / "generators"))
    run = experiment.Run(folder / "small", sets, "small", 0, **miniature.SETTINGS["small"])
    return sets, run


def test_there_are_at_least_eight_fresh_seeds_and_none_of_development():
    assert len(RESULTS) >= 8
    assert not {"100", "101"} & set(RESULTS)
    for of_seed in RESULTS.values():
        assert {*NETWORKS, "planted", "fooled"} <= set(of_seed)


def test_the_stored_detector_and_generators_give_the_stored_figures(of_seed_0):
    sets, run = of_seed_0
    stored = RESULTS["0"]["small"]["ablate"]
    cut = run.cut()
    assert cut == pytest.approx(stored["threshold"], abs=1e-2)
    with ablation.ablated(run.detector(), run.rank().top(stored["k"])):
        pair = sets.test["nearest"]
        logits = detectors.logits(run.detector(), pair.real), detectors.logits(run.detector(), pair.fake)
        found = detectors.quality(*logits, cut)
    expected = stored["after"]["top"]["nearest"]
    assert found.precision == pytest.approx(expected["precision"], abs=5e-3)
    assert found.real == pytest.approx(expected["real"], abs=1e-2)
    assert found.fake == pytest.approx(expected["fake"], abs=1e-2)


def test_the_stored_ranking_is_of_the_stored_detector_and_comes_out_again(of_seed_0):
    from xaicourse.forensics import channels

    sets, run = of_seed_0
    again = channels.rank(run.detector(), sets.train.fake[:192])
    assert len(set(again.top(30)) & set(run.rank().top(30))) >= 27


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("control", ["random", "layer-matched", "low"])
def test_the_top_channels_matter_more_than_those_of_every_control(name, control):
    at = (name, "ablate", "after")
    assert below_zero(minus(over_generators(*at, "top", "*"), over_generators(*at, control, "*")))


def test_most_of_what_the_top_channels_of_the_large_network_do_is_done_by_their_layers():
    at = ("efficientnet_lite0", "ablate", "after")
    by_layers = minus(over_generators(*at, "layer-matched", "*"), over_generators(*at, "random", "*"))
    in_layers = minus(over_generators(*at, "top", "*"), over_generators(*at, "layer-matched", "*"))
    assert below_zero(by_layers) and by_layers.mean < 2 * in_layers.mean


def test_a_channel_set_to_zero_before_its_batch_norm_still_speaks():
    after, before = (
        over_generators("small", "ablate", where, "top", "*", what="real") for where in ("after", "before")
    )
    assert below_zero(minus(before, after))


def test_channels_tuned_to_colour_rank_higher_where_the_planted_trace_is_in_colour_and_not_where_it_is_in_brightness():
    chroma, luma, random = (
        report.interval(report.values(RESULTS, "planted", *path))
        for path in (("chroma", "outrank"), ("luma", "outrank"), ("chroma", "random"))
    )
    assert chroma.mean - chroma.half > 0.5 > luma.mean + luma.half
    assert abs(random.mean - 0.5) < 0.05


@pytest.mark.parametrize("name", NETWORKS)
def test_a_paired_test_finds_more_channels_that_shift_than_moods(name):
    at = (name, "evaluate", "activations", "top")
    assert above_zero(minus(report.values(RESULTS, *at, "paired"), report.values(RESULTS, *at, "median")))


def test_where_only_counterfeits_were_gray_in_training_gray_photographs_are_called_counterfeit():
    at = ("small", "evaluate", "arms")
    shortcut, control = (over_generators(*at, arm, "*", "all gray", what="real") for arm in ("gray", "both gray"))
    assert below_zero(minus(shortcut, control))


def test_top_channels_look_at_colour_hardly_more_than_random_ones_of_their_layers():
    for name in NETWORKS:
        at = (name, "evaluate", "looks")
        more = minus(report.values(RESULTS, *at, "top"), report.values(RESULTS, *at, "layer-matched"))
        assert abs(more.mean) < 0.1
        assert report.interval(report.values(RESULTS, *at, "layer-matched")).mean > 1


@pytest.mark.parametrize("name", NETWORKS)
def test_unseen_generators_do_not_lose_more_in_gray_than_the_seen_one(name):
    def loss(generator):
        at = (name, "evaluate", "arms", "colour", generator)
        in_colour, in_gray = (report.values(RESULTS, *at, shown, "precision") for shown in ("colour", "gray"))
        return [g - c for c, g in zip(in_colour, in_gray, strict=True)]

    unseen = [sum(each) / 3 for each in zip(*(loss(g) for g in GENERATORS[1:]), strict=True)]
    more = minus(unseen, loss("transposed"))
    assert more.mean - more.half > -0.05
    mean_loss = report.interval(unseen)
    assert mean_loss.mean - mean_loss.half < 0 < mean_loss.mean + mean_loss.half  # a null result


@pytest.mark.parametrize("name", NETWORKS)
def test_after_gray_training_gray_counterfeits_are_found_more_easily_than_coloured_ones(name):
    at = (name, "evaluate", "arms", "gray", "*")
    assert above_zero(minus(over_generators(*at, "gray"), over_generators(*at, "colour")))


def test_without_its_most_relevant_channels_a_generator_fools_the_detector_and_its_pictures_suffer():
    def of(kind, what):
        return report.values(RESULTS, "fooled", kind, "16", what)

    whole = report.values(RESULTS, "fooled", "whole")
    assert min(whole) > 0.5
    assert below_zero(minus(of("top", "detected"), whole))
    assert above_zero(minus(of("top", "distortion"), of("layer-matched", "distortion")))
    fewer = minus(of("top", "detected"), of("layer-matched", "detected"))
    assert fewer.mean - fewer.half < 0 < fewer.mean + fewer.half  # a null result: which channels, it does not matter


def test_the_most_active_channels_matter_more_than_the_most_relevant_ones():
    lrp, active = (over_generators("small", "rivals", name, "*") for name in ("LRP", "largest activation"))
    assert above_zero(minus(lrp, active))


def test_generators_of_the_course_are_four_and_detectors_are_right_on_all_of_them():
    for name in NETWORKS:
        for generator in GENERATORS:
            found = report.interval(report.values(RESULTS, name, "ablate", "baseline", generator, "precision"))
            assert found.mean - found.half > 0.7, (name, generator)
    assert torch.tensor(report.values(RESULTS, "small", "ablate", "baseline", "transposed", "precision")).mean() > 0.9
