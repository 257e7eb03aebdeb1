"""Days of a bicycle hire, and the network that tells working days from days off."""

import pytest
import torch

from xaicourse import removal, rides, shapley


def test_there_are_731_days_each_in_one_split_and_people_commute_on_working_days():
    (train, working), (test, _) = rides.days("train"), rides.days("test")
    assert train.shape[1:] == test.shape[1:] == (1, rides.HOURS) and len(train) + len(test) == 731
    everything = {day.numpy().tobytes() for day in train} & {day.numpy().tobytes() for day in test}
    assert not everything
    assert train[working].mean(0)[0, 8] > 3 * train[~working].mean(0)[0, 8]
    assert train[~working].mean(0)[0, 13] > 1.5 * train[working].mean(0)[0, 13]


def test_the_network_tells_working_days_from_days_off_and_its_untrained_twin_does_not():
    assert min(rides.accuracy(rides.load())) > 0.95
    assert min(rides.accuracy(rides.load(pretrained=False))) < 0.6


def test_a_day_without_a_ride_is_a_working_day_to_the_network():
    """Break it, lecture 06: what is left when everything is removed is not nothing."""
    assert rides.load()(torch.zeros(1, 1, rides.HOURS)).sigmoid() > 0.999


def test_the_most_important_hours_depend_on_the_removal():
    """S9 on a series."""
    network, (days, working) = rides.load(), rides.days("test")
    day, players = days[working][20][None], shapley.intervals(rides.HOURS, 8)
    ways = [removal.baseline(0.0), removal.mean(), removal.interpolation(), removal.nearest(rides.days("train")[0])]
    values = [shapley.exact(shapley.masking_game(network, day, 0, players=players, removal=way)).values for way in ways]
    assert len({int(each.argmax()) for each in values}) == 4


def test_training_changes_the_network():
    before, after = rides.load(pretrained=False), rides.train(steps=2)
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert not after.training


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'dev'"):
        rides.days("dev")


def test_the_days_are_those_of_the_package_that_carries_them(tmp_path, monkeypatch):
    pytest.importorskip("shapiq")
    shipped = (rides._FOLDER / "days.csv").read_text()
    monkeypatch.setattr(rides, "_FOLDER", tmp_path)
    rides._copy_days()
    assert (tmp_path / "days.csv").read_text() == shipped
