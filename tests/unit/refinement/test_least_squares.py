"""Damped least squares by products, against the direct solution."""

import torch

from lbm_lora.refinement.least_squares import solve


class Dense:
    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix

    def times(self, vector: torch.Tensor) -> torch.Tensor:
        return self.matrix @ vector

    def transposed(self, rows: torch.Tensor) -> torch.Tensor:
        return self.matrix.T @ rows


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    matrix = torch.randn(12, 5, generator=draw)
    return matrix, torch.randn(12, generator=draw), torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])


def test_as_many_iterations_as_values_solve_the_problem() -> None:
    matrix, residual, scales = problem()
    found = solve(Dense(matrix), residual, scales, damping=0.3, iterations=5)
    normal = matrix.T @ matrix + 0.3 * torch.diag(scales**-2)
    torch.testing.assert_close(found.change, torch.linalg.solve(normal, matrix.T @ residual), rtol=1e-4, atol=1e-5)
    left = float((residual - matrix @ found.change).square().sum())
    assert abs(found.left - left) <= 1e-5 * left


def test_each_iteration_leaves_less() -> None:
    matrix, residual, scales = problem()
    left = [solve(Dense(matrix), residual, scales, damping=0.0, iterations=count).left for count in range(6)]
    assert left[0] == float(residual.double().square().sum())
    assert left == sorted(left, reverse=True)


def test_nothing_changes_without_a_residual() -> None:
    matrix, residual, scales = problem()
    found = solve(Dense(matrix), torch.zeros_like(residual), scales, damping=0.0, iterations=3)
    assert (found.change == 0).all()
    assert found.left == 0
