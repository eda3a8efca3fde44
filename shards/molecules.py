"""Molecules from SMILES: parsing by RDKit, with reasons where that fails, graphs and tags.

Atoms are ordered by the canonical SMILES, so that every spelling of a molecule gives the same arrays.
RDKit is the optional extra ``molecules``.
"""

from __future__ import annotations

import contextlib
import io
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from shards.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rdkit.Chem import Atom, Bond, Mol

MAX_CHARACTERS = 5_000
ACYCLIC = "acyclic"

DEGREES: Final = (0, 1, 2, 3, 4, 5, 6)
CHARGES: Final = (-2, -1, 0, 1, 2)
HYDROGENS: Final = (0, 1, 2, 3, 4)
HYBRIDISATIONS: Final = ("S", "SP", "SP2", "SP2D", "SP3", "SP3D", "SP3D2")
CHIRALITIES: Final = ("", "R", "S")
BOND_TYPES: Final = ("SINGLE", "DOUBLE", "TRIPLE", "AROMATIC")
BOND_STEREO: Final = ("STEREONONE", "STEREOE", "STEREOZ")
# every one-hot block has one more column, for any other value; then come the flags
ATOM_FEATURES = sum(len(block) + 1 for block in (DEGREES, CHARGES, HYDROGENS, HYBRIDISATIONS, CHIRALITIES)) + 2
BOND_FEATURES = sum(len(block) + 1 for block in (BOND_TYPES, BOND_STEREO)) + 2


def rdkit_chem() -> Any:
    """Return ``rdkit.Chem``, or raise `ConfigError` naming the extra that is missing."""
    try:
        from rdkit import Chem
    except ImportError as error:
        raise ConfigError(
            "molecules need RDKit, which is not installed", why=str(error), do="pip install 'matloom[molecules]'"
        ) from None
    return Chem


@lru_cache(maxsize=32)
def parse_smiles(smiles: str, *, largest_fragment: bool = False) -> Mol:
    """Parse a SMILES into a molecule whose atoms stand in the order of its canonical SMILES.

    Parameters
    ----------
    smiles : str
        A SMILES without name and extensions; white space at its ends does not count.
    largest_fragment : bool
        Keep the fragment with the most heavy atoms alone (of equal ones the heavier one, then the first in
        the alphabet), which leaves out counter-ions and solvents.

    Returns
    -------
    rdkit Mol
        Sanitised, hydrogens implicit. It is shared between callers: copy it before changing it.

    Raises
    ------
    DataError
        Where RDKit refuses the SMILES, with RDKit's reason.
    """
    Chem = rdkit_chem()
    from rdkit import rdBase

    smiles = smiles.strip()
    if not smiles or len(smiles) > MAX_CHARACTERS:
        raise DataError(f"a SMILES of {len(smiles)} characters, not 1 to {MAX_CHARACTERS}")
    parameters = Chem.SmilesParserParams()
    parameters.parseName = parameters.allowCXSMILES = False
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles, parameters)
    if mol is None or not mol.GetNumAtoms():
        raise DataError(f"'{_shown(smiles)}' is no molecule", why=_reason(smiles), do="correct the SMILES")
    if largest_fragment:
        fragments = Chem.GetMolFrags(mol, asMols=True)
        mol = min(fragments, key=_fragment_order) if len(fragments) > 1 else mol
    with rdBase.BlockLogs():
        # read again: the numbering of a molecule follows its spelling
        canonical = Chem.MolFromSmiles(Chem.MolToSmiles(mol))
    if canonical is None:
        raise DataError(f"the canonical SMILES of '{_shown(smiles)}' is no molecule", do="leave the record out")
    return canonical


def _shown(smiles: str) -> str:
    return smiles if len(smiles) <= 80 else f"{smiles[:77]}..."


def _fragment_order(fragment: Mol) -> tuple[int, float, str]:
    Chem = rdkit_chem()
    from rdkit.Chem.rdMolDescriptors import CalcExactMolWt

    return -fragment.GetNumHeavyAtoms(), -CalcExactMolWt(fragment), Chem.MolToSmiles(fragment)


def _reason(smiles: str) -> str:
    """Return why RDKit refuses a SMILES."""
    Chem = rdkit_chem()
    from rdkit import rdBase

    parameters = Chem.SmilesParserParams()
    parameters.sanitize = parameters.parseName = parameters.allowCXSMILES = False
    if any(character.isspace() for character in smiles):
        return "there is white space in it"
    # RDKit gives the reason of a syntax error to its log alone
    rdBase.LogToPythonStderr()
    try:
        with contextlib.redirect_stderr(io.StringIO()) as log:
            mol = Chem.MolFromSmiles(smiles, parameters)
    finally:
        rdBase.LogToCppStreams()
    if mol is not None:
        with rdBase.BlockLogs():
            problems = [problem.Message() for problem in Chem.DetectChemistryProblems(mol)]
        return " ".join("; ".join(problems).split()) or "it has no atoms"
    return (log.getvalue().strip().splitlines() or ["no reason given"])[0].partition("] ")[2]


def canonical_smiles(smiles: str, *, largest_fragment: bool = False) -> str:
    """Return RDKit's canonical isomeric SMILES."""
    return str(rdkit_chem().MolToSmiles(parse_smiles(smiles, largest_fragment=largest_fragment)))


def molecule_tags(smiles: str) -> dict[str, str]:
    """Describe a molecule by strings for splits and tables.

    Parameters
    ----------
    smiles : str
        Any spelling.

    Returns
    -------
    dict of str to str
        ``smiles`` (canonical, isomeric), ``formula`` (Hill order), ``chemical_system`` (``C-H-O``) and
        ``scaffold``: the Bemis-Murcko framework (rings and what links them, without stereo-chemistry; J. Med.
        Chem. 39 (1996) 2887), ``acyclic`` for a molecule without rings.

    Raises
    ------
    DataError
        As in `parse_smiles`.
    """
    Chem = rdkit_chem()
    from rdkit.Chem.rdMolDescriptors import CalcMolFormula
    from rdkit.Chem.Scaffolds import MurckoScaffold

    mol = parse_smiles(smiles)
    elements = {atom.GetSymbol() for atom in Chem.AddHs(mol).GetAtoms()}
    scaffold = Chem.MolToSmiles(MurckoScaffold.GetScaffoldForMol(mol), isomericSmiles=False)
    return {
        "smiles": Chem.MolToSmiles(mol),
        "formula": CalcMolFormula(mol),
        "chemical_system": "-".join(sorted(elements)),
        "scaffold": scaffold or ACYCLIC,
    }


def check_size(atoms: int, max_atoms: int, *, where: object = None) -> None:
    """Raise `DataError` for a molecule with more than ``max_atoms`` atoms."""
    if atoms > max_atoms:
        raise DataError(
            f"the molecule has {atoms} atoms, the step takes {max_atoms}", where=where, do="raise max_atoms"
        )


def molecule_arrays(mol: Mol) -> dict[str, np.ndarray]:
    """Turn a molecule into the arrays of a graph whose edges are its bonds.

    Parameters
    ----------
    mol : rdkit Mol
        From `parse_smiles`.

    Returns
    -------
    dict of str to ndarray
        n atoms, E = 2 x bonds: ``atomic_numbers`` (n,) uint8 (0 = a place holder ``*``); ``masses_u``
        (n,) float32, that of the isotope where one is given; ``atom_features`` (n, `ATOM_FEATURES`) uint8:
        one-hot blocks of the degree with hydrogens, formal charge, number of hydrogens, hybridisation and
        chirality (CIP label), then aromatic, in a ring; ``edge_index`` (2, E) int32, both directions,
        row 0 the neighbour, row 1 the centre (ascending); ``bond_features`` (E, `BOND_FEATURES`) uint8: one-hot
        blocks of the type and of the stereo-chemistry (E or Z), then conjugated, in a ring.

    Notes
    -----
    The choice of features follows chemprop v2 (Heid et al., J. Chem. Inf. Model. 64 (2024) 9). Chirality is
    the CIP label instead of RDKit's tag, which depends on the order of the neighbours.
    """
    atoms, bonds = list(mol.GetAtoms()), list(mol.GetBonds())
    ends = np.array([(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in bonds], dtype=np.int32).reshape(-1, 2)
    edges = np.concatenate([ends, ends[:, ::-1]])
    order = np.lexsort((edges[:, 0], edges[:, 1]))
    rows = np.array([_bond_features(bond) for bond in bonds], dtype=np.uint8).reshape(-1, BOND_FEATURES)
    return {
        "atomic_numbers": np.array([atom.GetAtomicNum() for atom in atoms], dtype=np.uint8),
        "masses_u": np.array([atom.GetMass() for atom in atoms], dtype=np.float32),
        "atom_features": np.array([_atom_features(atom) for atom in atoms], dtype=np.uint8),
        "edge_index": np.ascontiguousarray(edges[order].T),
        "bond_features": np.concatenate([rows, rows])[order],
    }


def _one_hot(value: object, block: tuple[object, ...]) -> list[int]:
    row = [0] * (len(block) + 1)
    row[block.index(value) if value in block else len(block)] = 1
    return row


def _atom_features(atom: Atom) -> list[int]:
    return [
        *_one_hot(atom.GetTotalDegree(), DEGREES),
        *_one_hot(atom.GetFormalCharge(), CHARGES),
        *_one_hot(atom.GetTotalNumHs(), HYDROGENS),
        *_one_hot(atom.GetHybridization().name, HYBRIDISATIONS),
        *_one_hot(atom.GetProp("_CIPCode") if atom.HasProp("_CIPCode") else "", CHIRALITIES),
        int(atom.GetIsAromatic()),
        int(atom.IsInRing()),
    ]


def _bond_features(bond: Bond) -> list[int]:
    return [
        *_one_hot(bond.GetBondType().name, BOND_TYPES),
        *_one_hot(bond.GetStereo().name, BOND_STEREO),
        int(bond.GetIsConjugated()),
        int(bond.IsInRing()),
    ]
