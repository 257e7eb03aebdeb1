"""Small molecules as graphs, made by the rules of valence, and a network that finds carboxylic acids (lecture 06).

A molecule is a graph of carbon, nitrogen and oxygen atoms, whose bonds (single or double) and hydrogens add up to 4, 3 and 2.
The question put to the network is whether it has a carboxyl group, C(=O)–OH. Other molecules have what looks alike (an ester,
C(=O)–O–C; or a ketone C=O and an alcohol C–OH in different places), so that no atom and no bond says it alone. So one knows why
a molecule is an acid: because of three atoms and the two bonds between them.

The network passes messages along the bonds; its weights are in ``data/molecules``, and this made them:

    python -m xaicourse.molecules train
"""

from __future__ import annotations

import argparse
import logging
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import weights
from .arguments import check_count, check_generator
from .shapley import Game

__all__ = [
    "ATOMS", "MOST", "REMOVALS", "VALENCES", "Molecule", "Network", "accuracy", "acid", "atom_game", "bond_game", "connected",
    "load", "molecules", "pack", "sample", "valid",
]  # fmt: skip

ATOMS, VALENCES = "CNO", torch.tensor([4, 3, 2])
MOST = 12
"""Atoms of the largest molecule, hydrogens not counted."""
REMOVALS = ("zero", "delete", "cap", "carbon")
_FOLDER = weights.DATA / "molecules"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Molecule:
    """A molecule, or what is left of one.

    atoms      0 for carbon, 1 for nitrogen, 2 for oxygen; -1 where nothing is: LongTensor (n,)
    bonds      0 for none, 1 for a single, 2 for a double bond: symmetric LongTensor (n, n)
    hydrogens  of each atom, LongTensor (n,)

    Fields may have further dimensions in front: many molecules (N, n) with bonds (N, n, n).
    """

    atoms: Tensor
    bonds: Tensor
    hydrogens: Tensor

    def __len__(self) -> int:
        return self.atoms.shape[-1]


def valid(molecule: Molecule) -> Tensor:
    """Whether bonds and hydrogens of every atom add up to its valence: bool, one for each molecule."""
    there = molecule.atoms >= 0
    wanted = VALENCES[molecule.atoms.clamp(min=0)]
    return (~there | (molecule.bonds.sum(-1) + molecule.hydrogens == wanted)).all(-1)


def connected(molecule: Molecule) -> Tensor:
    """Whether all atoms hang together, and there is one: bool, one for each molecule."""
    there = molecule.atoms >= 0
    reach = F.one_hot(there.long().argmax(-1), len(molecule)).bool() & there
    for _ in range(len(molecule)):
        reach = reach | (((molecule.bonds > 0) & reach[..., None, :]).any(-1) & there)
    return (reach == there).all(-1) & there.any(-1)


def acid(molecule: Molecule) -> Tensor:
    """Which atoms belong to a carboxyl group, C(=O)–OH: BoolTensor (n,), no atom if there is none."""
    carbon, oxygen = molecule.atoms == 0, molecule.atoms == 2
    hydroxyl = oxygen & (molecule.hydrogens == 1)
    double, single = molecule.bonds == 2, molecule.bonds == 1
    centre = carbon & (double & oxygen[None]).any(1) & (single & hydroxyl[None]).any(1)
    around = (double & oxygen[:, None] & centre[None]).any(1) | (single & hydroxyl[:, None] & centre[None]).any(1)
    return centre | around


# ------------------------------------------------------------------------------------------------------------
# Making molecules
# ------------------------------------------------------------------------------------------------------------


def sample(count: int, *, generator: torch.Generator | None = None) -> list[Molecule]:
    """Make molecules of 6 to 12 atoms, half of them acids, in random order; some may be the same.

    generator  None: the same ones each time
    """
    check_count("count", count)
    check_generator(generator)
    generator = generator or torch.Generator().manual_seed(0)
    dice = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
    made: list[Molecule] = []
    while len(made) < count:
        molecule = _make(len(made) % 2 == 0, dice)
        if 6 <= len(molecule) <= MOST and bool(acid(molecule).any()) == (len(made) % 2 == 0):
            made.append(molecule)
    return [made[i] for i in torch.randperm(count, generator=generator).tolist()]


def _make(wanted: bool, dice: random.Random) -> Molecule:
    atoms: list[int] = []
    bonds: dict[tuple[int, int], int] = {}

    def free(atom: int) -> int:
        return int(VALENCES[atoms[atom]]) - sum(order for pair, order in bonds.items() if atom in pair)

    def add(kind: int, to: int | None, order: int = 1) -> int:
        atoms.append(kind)
        if to is not None:
            bonds[to, len(atoms) - 1] = order
        return len(atoms) - 1

    def carbon(least: int) -> int | None:
        able = [atom for atom, kind in enumerate(atoms) if kind == 0 and free(atom) > least]
        return dice.choice(able) if able else None

    add(0, None)
    for _ in range(dice.randint(2, 5)):  # the skeleton
        kind = dice.choices([0, 1, 2], [8, 1, 1])[0]
        able = [atom for atom in range(len(atoms)) if free(atom) and not (kind and atoms[atom])]
        if able:
            add(kind, dice.choice(able))
    groups = ["acid"] if wanted else dice.choices([["ester"], ["ketone", "alcohol"], ["amide"]], [4, 4, 1])[0]
    groups = groups + dice.choices(["ketone", "alcohol", "amine", "double", "ester", "none"], k=dice.randint(0, 2))
    for group in groups:
        at = carbon(1 if group in ("ketone", "double") else 0)
        if at is None:
            continue
        if group in ("acid", "ester", "amide"):
            centre = add(0, at)
            add(2, centre, 2)
            last = add(1 if group == "amide" else 2, centre)
            if group == "ester":
                add(0, last)
        elif group in ("ketone", "double"):
            add(2 if group == "ketone" else 0, at, 2)
        elif group in ("alcohol", "amine"):
            add(2 if group == "alcohol" else 1, at)
    size = len(atoms)
    matrix = torch.zeros(size, size, dtype=torch.long)
    for (i, j), order in bonds.items():
        matrix[i, j] = matrix[j, i] = order
    kinds = torch.tensor(atoms)
    return Molecule(kinds, matrix, VALENCES[kinds] - matrix.sum(1))


@cache
def molecules(split: str) -> tuple[Molecule, ...]:
    """The course's own molecules: 4,000 to "train", 400 to choose settings on ("development"), 600 to "test".

    No molecule of the test has the counts of atoms and bonds around each atom that one of the others has.

    ValueError for another split.
    """
    sizes = {"train": slice(0, 4000), "development": slice(4000, 4400)}
    if split not in (*sizes, "test"):
        raise ValueError(f"split must be 'train', 'development' or 'test', got {split!r}")
    if split != "test":
        return tuple(sample(4400)[sizes[split]])
    known = {_fingerprint(molecule) for molecule in sample(4400)}
    other = sample(4000, generator=torch.Generator().manual_seed(1))
    found = [molecule for molecule in other if _fingerprint(molecule) not in known]
    acids, rest = ([m for m in found if bool(acid(m).any()) == wanted] for wanted in (True, False))
    return tuple(molecule for both in zip(acids[:300], rest[:300], strict=True) for molecule in both)


def _fingerprint(molecule: Molecule) -> str:
    """The same for the same molecule, however its atoms are numbered: what is around each atom, three bonds deep."""
    label = [f"{ATOMS[kind]}{h}" for kind, h in zip(molecule.atoms.tolist(), molecule.hydrogens.tolist(), strict=True)]
    rows = molecule.bonds.tolist()
    for _ in range(3):
        around = ["".join(sorted(f"{bond}{label[j]}" for j, bond in enumerate(row) if bond)) for row in rows]
        label = [str(zlib.crc32(f"{own}({other})".encode())) for own, other in zip(label, around, strict=True)]
    return "".join(sorted(label))


# ------------------------------------------------------------------------------------------------------------
# The network
# ------------------------------------------------------------------------------------------------------------


def pack(molecules: list[Molecule] | Molecule) -> Tensor:
    """Molecules as the network reads them, float (N, n, 4 + n): which atom it is, its hydrogens, its bonds; 0 where none is."""
    if isinstance(molecules, Molecule):
        kinds = F.one_hot(molecules.atoms + 1, 4)[..., 1:]
        return torch.cat([kinds, molecules.hydrogens[..., None], molecules.bonds], -1).float()
    packed = torch.zeros(len(molecules), MOST, 4 + MOST)
    for row, molecule in zip(packed, molecules, strict=True):
        size = len(molecule)
        row[:size, : 4 + size] = pack(molecule)
    return packed


class Network(nn.Module):
    """Three rounds of messages along single and double bonds, then a sum over the atoms.

    Packed molecules (N, n, 4 + n) to the log odds that there is a carboxyl group, (N, 1). With h_i what an atom knows and
    N_b(i) its neighbours by a bond of kind b: ``h_i <- relu(W h_i + sum over b and j in N_b(i) of W_b h_j)``.

    Schlichtkrull et al., "Modeling Relational Data with Graph Convolutional Networks", ESWC 2018.
    """

    def __init__(self, width: int = 32, rounds: int = 3) -> None:
        super().__init__()
        sizes = [4, *[width] * rounds]
        self.own = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.onefold = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in zip(sizes, sizes[1:], strict=False))
        self.twofold = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in zip(sizes, sizes[1:], strict=False))
        self.hidden, self.head = nn.Linear(width, width), nn.Linear(width, 1)

    def features(self, packed: Tensor) -> Tensor:
        """What the last layer sees, (N, width)."""
        h, bonds = packed[..., :4], packed[..., 4:]
        for own, single, double in zip(self.own, self.onefold, self.twofold, strict=True):
            h = F.relu(own(h) + single((bonds == 1).float() @ h) + double((bonds == 2).float() @ h))
        there = packed[..., :3].any(-1, keepdim=True)
        return F.relu(self.hidden((h * there).sum(1)))

    def forward(self, packed: Tensor) -> Tensor:
        """Log odds (N, 1) of an acid."""
        return self.head(self.features(packed))


def load(*, pretrained: bool = True) -> Network:
    """The network in evaluation mode; ``pretrained=False``: with the random weights that it began with.

    FileNotFoundError if the weights are not there, RuntimeError if they are not those of the card.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Network().eval()
    if pretrained:
        weights.read(model, _FOLDER / "network.pt", made_by="python -m xaicourse.molecules train")
    return model


def accuracy(model: nn.Module, graphs: tuple[Molecule, ...]) -> float:
    """The share of molecules that the model gets right."""
    with torch.no_grad():
        found = model(pack(list(graphs)))[:, 0] > 0
    return (found == torch.tensor([bool(acid(graph).any()) for graph in graphs])).float().mean().item()


def train(steps: int = 2000) -> Network:
    """Train the network on the molecules to train on."""
    model = load(pretrained=False).train()
    graphs = molecules("train")
    packed, labels = pack(list(graphs)), torch.tensor([float(acid(graph).any()) for graph in graphs])
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps)
    for step in range(steps):
        batch = torch.randint(len(graphs), (64,), generator=generator)
        loss = F.binary_cross_entropy_with_logits(model(packed[batch])[:, 0], labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 200 == 199:
            _log.info("step %d, loss %.3f", step + 1, loss.item())
    return model.eval()


# ------------------------------------------------------------------------------------------------------------
# Taking atoms and bonds away
# ------------------------------------------------------------------------------------------------------------


def without_atoms(molecule: Molecule, present: Tensor, how: str) -> Tensor:
    """The molecule with some of its atoms only, packed (N, n, 4 + n).

    present  BoolTensor (N, n)
    how      "zero": an absent atom says nothing, its bonds stay; "delete": it goes with its bonds, and its neighbours are left
             with open ends; "cap": the same, and hydrogens close the open ends; "carbon": a carbon takes its place, with the
             hydrogens that it needs

    ValueError for another one.
    """
    whole = Molecule(*(part.expand(len(present), *part.shape) for part in _parts(molecule)))
    if how == "zero":
        packed = pack(whole)
        packed[..., :4] *= present[..., None]
        return packed
    return pack(left_of_atoms(molecule, present, how))


def left_of_atoms(molecule: Molecule, present: Tensor, how: str) -> Molecule:
    """What is left, as molecules (N, n), for all ways but "zero", which leaves bonds of nothing; see `without_atoms`."""
    atoms, bonds, hydrogens = (part.expand(len(present), *part.shape) for part in _parts(molecule))
    if how == "carbon":
        atoms = atoms.masked_fill(~present, 0)
        return Molecule(atoms, bonds, VALENCES[atoms] - bonds.sum(-1))
    if how not in ("delete", "cap"):
        raise ValueError(f"how must be one of {', '.join(REMOVALS)}, got {how!r}")
    both = present[:, :, None] & present[:, None]
    left = bonds * both
    more = (bonds - left).sum(-1) if how == "cap" else 0
    return Molecule(atoms.masked_fill(~present, -1), left, (hydrogens + more) * present)


def left_of_bonds(molecule: Molecule, present: Tensor, how: str) -> Molecule:
    """The molecule with some of its bonds only, as molecules (N, n).

    present  BoolTensor (N, bonds), in the order of `bond_list`
    how      "delete": open ends stay; "cap": hydrogens close them

    ValueError for another one.
    """
    if how not in ("delete", "cap"):
        raise ValueError(f"how must be 'delete' or 'cap', got {how!r}")
    atoms, bonds, hydrogens = (part.expand(len(present), *part.shape) for part in _parts(molecule))
    left = bonds.clone()
    for number, (i, j) in enumerate(bond_list(molecule)):
        left[:, i, j] = left[:, j, i] = bonds[:, i, j] * present[:, number]
    more = (bonds - left).sum(-1) if how == "cap" else 0
    return Molecule(atoms, left, hydrogens + more)


def bond_list(molecule: Molecule) -> list[tuple[int, int]]:
    """The two atoms of each bond."""
    return [(i, j) for i, j in molecule.bonds.triu().nonzero().tolist()]


def atom_game(model: nn.Module, molecule: Molecule, how: str, *, groups: Tensor | None = None) -> Game:
    """The game of a molecule's atoms: the log odds of an acid; ``how`` as in `without_atoms`.

    groups  which player each atom belongs to, LongTensor (n,), numbered from 0; None: each atom is one
    """
    if how not in REMOVALS:
        raise ValueError(f"how must be one of {', '.join(REMOVALS)}, got {how!r}")
    groups = torch.arange(len(molecule)) if groups is None else groups
    return _game(model, int(groups.max()) + 1, lambda present: without_atoms(molecule, present[:, groups], how))


def bond_game(model: nn.Module, molecule: Molecule, how: str) -> Game:
    """The game of a molecule's bonds, in the order of `bond_list`; ``how`` as in `left_of_bonds`."""
    left_of_bonds(molecule, torch.ones(1, len(bond_list(molecule)), dtype=torch.bool), how)
    return _game(model, len(bond_list(molecule)), lambda present: pack(left_of_bonds(molecule, present, how)))


def _game(model: nn.Module, players: int, make: Callable[[Tensor], Tensor]) -> Game:
    return Game(lambda present: model(make(present))[:, 0], players, chunk=4096)


def _parts(molecule: Molecule) -> tuple[Tensor, Tensor, Tensor]:
    return molecule.atoms, molecule.bonds, molecule.hydrogens


def main() -> None:
    """Train the network if it has no weights yet."""
    parser = argparse.ArgumentParser("python -m xaicourse.molecules", description="Train a network of lecture 06.")
    parser.add_argument("command", choices=["train"])
    parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    file = _FOLDER / "network.pt"
    if file.exists():
        _log.info("%s: there already", file.name)
    else:
        weights.write(train(), file)
    _log.info("%.1f %% of new molecules right", 100 * accuracy(load(), molecules("test")))


if __name__ == "__main__":
    main()
