"""Weights that the course ships come back as they were written, or not at all."""

import pytest
import torch
from torch import nn

from xaicourse import weights


def test_what_is_written_is_read_in_half_precision(tmp_path):
    model, other = nn.Linear(3, 2), nn.Linear(3, 2).train()
    weights.write(model, tmp_path / "folder" / "a.pt")
    weights.write(nn.Linear(1, 1), tmp_path / "folder" / "b.pt")  # the checksum of the first one stays
    assert weights.read(other, tmp_path / "folder" / "a.pt", made_by="x") is other and not other.training
    assert torch.equal(other.weight, model.weight.half().float())


def test_weights_that_are_missing_or_not_those_of_the_card_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the weights must be in .*a\.pt; `make them` makes them"):
        weights.read(nn.Linear(1, 1), tmp_path / "a.pt", made_by="make them")
    weights.write(nn.Linear(1, 1), tmp_path / "a.pt")
    with (tmp_path / "a.pt").open("ab") as stream:
        stream.write(b"!")
    with pytest.raises(RuntimeError, match=r"a\.pt must have the sha256 of its card, [0-9a-f]{64}, and has"):
        weights.read(nn.Linear(1, 1), tmp_path / "a.pt", made_by="make them")
