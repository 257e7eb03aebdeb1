"""Molecules by the rules of valence, a network that finds acids, and atoms and bonds taken away."""

import pytest
import torch

from xaicourse import molecules, shapley
from xaicourse.molecules import Molecule


def molecule(atoms, *bonds):
    """Of letters and (from, to, order), hydrogens as valence asks."""
    kinds = torch.tensor([molecules.ATOMS.index(letter) for letter in atoms])
    matrix = torch.zeros(len(kinds), len(kinds), dtype=torch.long)
    for i, j, order in bonds:
        matrix[i, j] = matrix[j, i] = order
    return Molecule(kinds, matrix, molecules.VALENCES[kinds] - matrix.sum(1))


ACETIC_ACID = molecule("CCOO", (0, 1, 1), (1, 2, 2), (1, 3, 1))
METHYL_ACETATE = molecule("CCOOC", (0, 1, 1), (1, 2, 2), (1, 3, 1), (3, 4, 1))
HYDROXYACETONE = molecule("CCCOO", (0, 1, 1), (1, 2, 1), (1, 3, 2), (2, 4, 1))
ACETAMIDE = molecule("CCON", (0, 1, 1), (1, 2, 2), (1, 3, 1))
FORMIC_ACID = molecule("COO", (0, 1, 2), (0, 2, 1))


def test_an_acid_is_known_by_its_group_and_what_looks_alike_is_none():
    assert molecules.acid(ACETIC_ACID).tolist() == [False, True, True, True]
    assert molecules.acid(FORMIC_ACID).all()
    for other in (METHYL_ACETATE, HYDROXYACETONE, ACETAMIDE):
        assert not molecules.acid(other).any()


def test_a_bond_too_many_or_a_hydrogen_too_few_is_not_valid_and_pieces_are_not_connected():
    assert molecules.valid(ACETIC_ACID) and molecules.connected(ACETIC_ACID)
    wrong = Molecule(ACETIC_ACID.atoms, ACETIC_ACID.bonds, ACETIC_ACID.hydrogens - torch.tensor([1, 0, 0, 0]))
    assert not molecules.valid(wrong)
    pieces = molecule("CCO", (0, 1, 1))
    assert molecules.valid(pieces) and not molecules.connected(pieces)


def test_made_molecules_are_valid_connected_and_half_of_them_acids():
    made = molecules.sample(200)
    assert all(
        molecules.valid(each) and molecules.connected(each) and 6 <= len(each) <= molecules.MOST for each in made
    )
    assert sum(bool(molecules.acid(each).any()) for each in made) == 100
    again = molecules.sample(200)
    assert all(torch.equal(a.bonds, b.bonds) for a, b in zip(made, again, strict=True))


def test_no_molecule_of_the_test_is_one_to_train_on_whatever_the_order_of_its_atoms():
    order = torch.tensor([3, 1, 0, 2])
    shuffled = Molecule(ACETIC_ACID.atoms[order], ACETIC_ACID.bonds[order][:, order], ACETIC_ACID.hydrogens[order])
    assert molecules._fingerprint(shuffled) == molecules._fingerprint(ACETIC_ACID)
    assert molecules._fingerprint(ACETAMIDE) != molecules._fingerprint(ACETIC_ACID)
    trained = {molecules._fingerprint(each) for each in molecules.molecules("train")}
    assert not trained & {molecules._fingerprint(each) for each in molecules.molecules("test")}


def test_the_network_finds_acids_and_its_untrained_twin_does_not():
    test = molecules.molecules("test")
    assert molecules.accuracy(molecules.load(), test) > 0.98
    assert molecules.accuracy(molecules.load(pretrained=False), test) < 0.65


def test_the_order_of_the_atoms_and_padding_do_not_matter_to_the_network():
    network, each = molecules.load(), molecules.molecules("test")[0]
    order = torch.randperm(len(each), generator=torch.Generator().manual_seed(0))
    shuffled = Molecule(each.atoms[order], each.bonds[order][:, order], each.hydrogens[order])
    plain = network(molecules.pack(each)[None])
    assert torch.allclose(plain, network(molecules.pack(shuffled)[None]), atol=1e-4)
    assert torch.allclose(plain, network(molecules.pack([each])), atol=1e-4)


def test_everyone_is_the_molecule_itself_by_every_removal():
    whole = torch.ones(1, len(ACETIC_ACID), dtype=torch.bool)
    for how in molecules.REMOVALS:
        assert torch.equal(molecules.without_atoms(ACETIC_ACID, whole, how)[0], molecules.pack(ACETIC_ACID))
    for how in ("delete", "cap"):
        left = molecules.left_of_bonds(ACETIC_ACID, torch.ones(1, 3, dtype=torch.bool), how)
        assert torch.equal(molecules.pack(left)[0], molecules.pack(ACETIC_ACID))


def test_zero_silences_an_atom_and_leaves_its_bonds():
    packed = molecules.without_atoms(ACETIC_ACID, torch.tensor([[True, False, True, True]]), "zero")[0]
    whole = molecules.pack(ACETIC_ACID)
    assert (packed[1, :4] == 0).all() and torch.equal(packed[:, 4:], whole[:, 4:])
    assert torch.equal(packed[[0, 2, 3]], whole[[0, 2, 3]])


def test_without_its_methyl_group_acetic_acid_is_formic_acid_if_capped():
    present = torch.tensor([[False, True, True, True]])
    left = molecules.left_of_atoms(ACETIC_ACID, present, "cap")
    assert left.hydrogens[0, 1:].tolist() == FORMIC_ACID.hydrogens.tolist()
    assert molecules.valid(left) and molecules.connected(left) and molecules.acid(Molecule(*(
        part[0] for part in (left.atoms, left.bonds, left.hydrogens)
    ))).any()  # fmt: skip
    assert not molecules.valid(molecules.left_of_atoms(ACETIC_ACID, present, "delete"))


def test_no_coalition_of_atoms_or_bonds_is_a_molecule_when_the_others_are_deleted():
    """S10: a graph with removed bonds is not a molecule; by carbons in their place, every one is."""
    for each in molecules.molecules("test")[:20]:
        atoms, bonds = shapley.coalitions(len(each))[1:-1], shapley.coalitions(len(molecules.bond_list(each)))[:-1]
        assert not molecules.valid(molecules.left_of_atoms(each, atoms, "delete")).any()
        assert not molecules.valid(molecules.left_of_bonds(each, bonds, "delete")).any()
        assert molecules.valid(molecules.left_of_atoms(each, atoms, "cap")).all()
        assert molecules.valid(molecules.left_of_bonds(each, bonds, "cap")).all()
        carbon = molecules.left_of_atoms(each, atoms, "carbon")
        assert (molecules.valid(carbon) & molecules.connected(carbon)).all()


def test_carbons_are_dummies_where_carbons_take_their_place():
    network, each = molecules.load(), next(m for m in molecules.molecules("test") if molecules.acid(m).any())
    values = shapley.exact(molecules.atom_game(network, each, "carbon")).values
    assert values[each.atoms == 0].abs().max() < 1e-4 < values[each.atoms == 2].abs().max()


def test_groups_of_atoms_are_players_too():
    network = molecules.load()
    game = molecules.atom_game(network, ACETIC_ACID, "delete", groups=torch.tensor([0, 1, 1, 1]))
    single = molecules.atom_game(network, ACETIC_ACID, "delete")
    assert game.players == 2
    part = torch.tensor([[False, True]])
    assert torch.allclose(game(part), single(torch.tensor([[False, True, True, True]])))


def test_training_changes_the_network():
    before, after = molecules.load(pretrained=False), molecules.train(steps=2)
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


@pytest.mark.parametrize(("call", "match"), [
    (lambda: molecules.atom_game(None, ACETIC_ACID, "burn"), "how must be one of zero, delete, cap, carbon, got 'burn'"),
    (lambda: molecules.bond_game(None, ACETIC_ACID, "zero"), "how must be 'delete' or 'cap', got 'zero'"),
    (lambda: molecules.molecules("dev"), "split must be 'train', 'development' or 'test', got 'dev'"),
    (lambda: molecules.sample(-1), "count must be at least 1"),
])  # fmt: skip
def test_bad_arguments_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
