"""Which teacher layers each student layer reads: a row-stochastic matrix M [L_s, L_t], aligned = M · teacher.

Strategies differ only in how M is made; every other stage sees the matrix alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

STRATEGIES = ("uniform", "ratio", "skip")
# A teacher layer is overloaded when it is read this many times as often as if reading were even.
OVERLOAD = 1.5


def layer_map(L_s: int, L_t: int, strategy: str | Sequence[Sequence[float]] | Tensor = "uniform") -> Tensor:
    """The layer map [L_s, L_t], float32, every row non-negative and summing to 1.

    - ``uniform``: student layer i covers teacher layers [i·L_t/L_s, (i+1)·L_t/L_s); weights are the
      overlaps, so borders are shared in fractions and L_s > L_t works the same way.
    - ``ratio``: the v4.0 report's rule, teacher layer l_t goes to l_s = min(round(l_t·L_s/L_t), L_s−1); teacher
      layers that land on one student layer are averaged, a student layer that is hit by none takes its nearest.
      It loads layers unevenly and is kept for comparison.
    - ``skip``: one teacher layer each, evenly spaced, the last on the last.
    - a matrix: its rows are renormalised.

    Raises ValueError for an unknown strategy, fewer than one layer, or a matrix that has the wrong shape, a negative or
    non-finite weight, or a row of zeros.
    """
    if L_s < 1 or L_t < 1:
        raise ValueError(f"a layer map needs at least one layer on each side, got {L_s} and {L_t}")
    if not isinstance(strategy, str):
        return _explicit(L_s, L_t, strategy)
    if strategy == "uniform":
        return _uniform(L_s, L_t)
    if strategy == "ratio":
        return _ratio(L_s, L_t)
    if strategy == "skip":
        return _skip(L_s, L_t)
    raise ValueError(f"unknown layer strategy {strategy!r}: use one of {', '.join(STRATEGIES)}, or a matrix")


def _uniform(L_s: int, L_t: int) -> Tensor:
    # In units of 1/L_s of a teacher layer all borders are integers, so the overlaps are exact.
    student = torch.arange(L_s)[:, None]
    teacher = torch.arange(L_t)[None, :]
    upper = torch.minimum((student + 1) * L_t, (teacher + 1) * L_s)
    lower = torch.maximum(student * L_t, teacher * L_s)
    return (upper - lower).clamp(min=0).double().div(L_t).float()


def _ratio(L_s: int, L_t: int) -> Tensor:
    matrix = torch.zeros(L_s, L_t, dtype=torch.float64)
    for teacher in range(L_t):
        matrix[min(round(teacher * L_s / L_t), L_s - 1), teacher] = 1.0
    for student in range(L_s):
        if matrix[student].sum() == 0:
            matrix[student, min(range(L_t), key=lambda t: abs(t * L_s - student * L_t))] = 1.0
    return _rows_to_one(matrix)


def _skip(L_s: int, L_t: int) -> Tensor:
    matrix = torch.zeros(L_s, L_t)
    for student in range(L_s):
        # The last teacher layer of the block that `uniform` would give to this student layer.
        matrix[student, -(-(student + 1) * L_t // L_s) - 1] = 1.0
    return matrix


def _explicit(L_s: int, L_t: int, rows: Sequence[Sequence[float]] | Tensor) -> Tensor:
    try:
        matrix = torch.as_tensor(rows, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError) as error:
        raise ValueError(f"the layer map is not a matrix of numbers: {error}") from error
    if matrix.shape != (L_s, L_t):
        raise ValueError(
            f"the layer map must be {L_s} student × {L_t} teacher layers, got {tuple(matrix.shape)}"
        )
    if not torch.isfinite(matrix).all():
        raise ValueError("the layer map holds a weight that is not finite")
    if (matrix < 0).any():
        raise ValueError("the layer map holds a negative weight")
    empty = (matrix.sum(dim=1) == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"student layer {empty[0]} reads no teacher layer: give its row one weight above 0")
    return _rows_to_one(matrix)


def _rows_to_one(matrix: Tensor) -> Tensor:
    # Dividing by the largest first keeps rows of huge weights from overflowing in the sum.
    matrix = matrix / matrix.amax(dim=1, keepdim=True)
    return (matrix / matrix.sum(dim=1, keepdim=True)).float()


def cka_map(similarity: Tensor, top_k: int) -> Tensor:
    """A layer map from similarities [L_s, L_t]: each student layer reads its `top_k` most similar teacher layers,
    with weights proportional to the similarity (negative ones count as 0; if all are 0, evenly).

    `top_k` above L_t means all. Raises ValueError for top_k < 1, a wrong shape or a similarity that is not finite.
    """
    if similarity.ndim != 2 or similarity.numel() == 0:
        raise ValueError(f"similarity must be [L_s, L_t], got {tuple(similarity.shape)}")
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if not torch.isfinite(similarity).all():
        raise ValueError("a similarity is not finite")
    values, columns = similarity.detach().cpu().double().topk(min(top_k, similarity.shape[1]), dim=1)
    values = values.clamp(min=0)
    values = torch.where(values.sum(dim=1, keepdim=True) > 0, values, torch.ones_like(values))
    matrix = torch.zeros(similarity.shape, dtype=torch.float64)
    return _rows_to_one(matrix.scatter_(1, columns, values))


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of activations x [N, a] and y [N, b] over the same N samples, in [0, 1] (Kornblith et al. 2019,
    arXiv:1905.00414, eq. 3): ‖YᵀX‖² / (‖XᵀX‖·‖YᵀY‖), Frobenius norms, columns centred, in float64.

    0 where one side is constant. Raises ValueError when the shapes do not fit.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[0] != y.shape[0]:
        raise ValueError(f"linear CKA needs [N, a] and [N, b], got {tuple(x.shape)} and {tuple(y.shape)}")
    x, y = (side.detach().double() - side.detach().double().mean(dim=0) for side in (x, y))
    if x.shape[0] < x.shape[1] + y.shape[1]:
        # Same value from the N × N Gram matrices, which are the smaller ones here.
        gram_x, gram_y = x @ x.T, y @ y.T
        cross, own_x, own_y = (gram_x * gram_y).sum(), gram_x.norm(), gram_y.norm()
    else:
        cross, own_x, own_y = (y.T @ x).square().sum(), (x.T @ x).norm(), (y.T @ y).norm()
    scale = own_x * own_y
    return float((cross / scale).clamp(0, 1)) if scale > 0 else 0.0


def with_weight(matrix: Tensor, row: int, col: int, weight: float) -> Tensor:
    """A copy of the map in which one cell is `weight` (clamped to 0…1) and the row's other cells are rescaled so that
    the row still sums to 1. Where the others are all 0 the remainder goes to the neighbouring teacher layers.

    Raises IndexError for a cell outside the map, ValueError for a weight that is not finite.
    """
    L_s, L_t = matrix.shape
    if not (0 <= row < L_s and 0 <= col < L_t):
        raise IndexError(f"cell ({row}, {col}) is outside the {L_s} × {L_t} layer map")
    if not torch.isfinite(torch.tensor(float(weight))):
        raise ValueError(f"a layer weight must be a finite number, got {weight}")
    weight = min(max(float(weight), 0.0), 1.0)
    edited = matrix.clone()
    if L_t == 1:
        return edited
    others = matrix[row].double()
    others[col] = 0.0
    if others.sum() == 0:
        for neighbour in (col - 1, col + 1):
            if 0 <= neighbour < L_t:
                others[neighbour] = 1.0
    others = others * ((1.0 - weight) / others.sum())
    others[col] = weight
    edited[row] = others.to(matrix.dtype)
    return edited


def unmapped(matrix: Tensor) -> list[int]:
    """Teacher layers that no student layer reads."""
    return (matrix.sum(dim=0) == 0).nonzero().flatten().tolist()


def overloaded(matrix: Tensor) -> list[int]:
    """Teacher layers whose column sum exceeds 1.5 · L_s/L_t, the sum they would have if reading were even, by half."""
    L_s, L_t = matrix.shape
    return (matrix.double().sum(dim=0) > OVERLOAD * L_s / L_t + 1e-6).nonzero().flatten().tolist()
