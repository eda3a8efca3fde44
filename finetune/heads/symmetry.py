r"""Crystal symmetry of second- and fourth-rank tensors.

Voigt order: xx, yy, zz, yz, xz, xy. In Mandel's form a second-rank tensor is the vector with its shear components
times :math:`\sqrt 2`, a fourth-rank tensor with the minor symmetries the 6 x 6 matrix between such vectors. The
Euclidean norm is then that of the tensor itself, and a rotation an orthogonal 6 x 6 matrix; in Voigt's form neither
holds.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

PAIRS = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
MANDEL = (1.0, 1.0, 1.0, math.sqrt(2), math.sqrt(2), math.sqrt(2))

# A tensor of even rank does not change under the inversion: only the rotations of a crystal class matter, and those of
# the eleven Laue classes are these groups. Axes as in the International Tables: the main axis along z, the twofold one
# of 32 and 622 along x, that of monoclinic crystals along y (unique axis b).
PointGroup = Literal["1", "2", "222", "4", "422", "3", "32", "6", "622", "23", "432"]
Z, X, Y, DIAGONAL = (0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (1.0, 1.0, 1.0)
GENERATORS: dict[str, tuple[tuple[tuple[float, float, float], int], ...]] = {
    "1": (),
    "2": ((Y, 2),),
    "222": ((X, 2), (Z, 2)),
    "4": ((Z, 4),),
    "422": ((Z, 4), (X, 2)),
    "3": ((Z, 3),),
    "32": ((Z, 3), (X, 2)),
    "6": ((Z, 6),),
    "622": ((Z, 6), (X, 2)),
    "23": ((Z, 2), (DIAGONAL, 3)),
    "432": ((Z, 4), (DIAGONAL, 3)),
}
assert set(GENERATORS) == set(get_args(PointGroup))


def rotation(axis: tuple[float, float, float], angle: float) -> Tensor:
    """Return the matrix (3, 3), float64, of a rotation by ``angle`` (radian) about an axis: exp of its generator."""
    x, y, z = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0).tolist()
    return torch.linalg.matrix_exp(
        angle * torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64)
    )


@cache
def point_group(name: PointGroup) -> Tensor:
    """Return the rotations (N, 3, 3), float64, of a group: all products of its generators."""
    generators = [rotation(axis, 2 * math.pi / fold) for axis, fold in GENERATORS[name]]
    found = [torch.eye(3, dtype=torch.float64)]
    for element in found:
        for generator in generators:
            product = generator @ element
            if not any(torch.allclose(product, other, atol=1e-9) for other in found):
                found.append(product)
    return torch.stack(found)


def mandel_rotation(rotations: Tensor) -> Tensor:
    """Return the orthogonal matrices (N, 6, 6) by which rotations (N, 3, 3) act on Mandel's vectors."""
    basis = torch.zeros(6, 3, 3, dtype=rotations.dtype, device=rotations.device)
    for index, (i, j) in enumerate(PAIRS):
        basis[index, i, j] += 0.5 * MANDEL[index]
        basis[index, j, i] += 0.5 * MANDEL[index]
    # off-diagonal elements of the basis are 1 / sqrt 2: it is orthonormal
    return torch.einsum("aij,nik,bkl,njl->nab", basis, rotations, basis, rotations)


def symmetrise(tensor: Tensor, rotations: Tensor, *, rank: int = 4) -> Tensor:
    """Return the mean of a tensor over a group: its projection onto what the group leaves unchanged.

    Parameters
    ----------
    tensor : Tensor
        In Mandel's form (Voigt's times `mandel_weights`): (..., 6, 6) of rank 4, (..., 6) of rank 2.
    rotations : Tensor
        (N, 3, 3), a whole group.
    rank : int
        4 or 2.
    """
    turned = mandel_rotation(rotations).to(tensor)
    if rank == 2:
        return torch.einsum("nij,...j->...i", turned, tensor) / len(turned)
    return torch.einsum("nij,...jk,nlk->...il", turned, tensor, turned) / len(turned)


def mandel_weights(rank: int) -> Tensor:
    """Return what Voigt's components (6,) of a stress-like tensor, or (6, 6) of a stiffness, are multiplied by."""
    weights = torch.tensor(MANDEL)
    return weights if rank == 2 else weights[:, None] * weights
