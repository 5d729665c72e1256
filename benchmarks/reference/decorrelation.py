"""Decorrelated backprop in eager PyTorch.

Every layer transforms its input by `z = R x`. With `C = mean z z^T` over a batch and
`n_i = variance / mean z_i^2` for every row, `R <- R - eta n (C R - R)`; the decorrelation loss is
`mean (C - variance I)^2`. In the same step, Adam updates the weights on the cross-entropy.

As in the public class, C is formed, C R takes `2 inputs^3` operations, and every update of R computes its
loss.

Source: Ahmad et al., Constrained parameter inference as a principle for learning, 2022,
https://arxiv.org/abs/2203.13203
"""

from collections.abc import Sequence
from itertools import pairwise

import torch  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]

VARIANCE = 1.0
DEAD = 1e-8
"""Mean square below which an input counts as dead, and its row of R is not updated."""


class DecorrelatedLinear(nn.Module):
    """Layer `w R x + b`, with R `[inputs, inputs]` outside autograd; it stores z for the update of R."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.R = nn.Parameter(torch.eye(inputs), requires_grad=False)
        self.variance = torch.full((inputs,), VARIANCE)
        self.z = torch.empty(0, inputs)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `x [batch, inputs]` to `[batch, outputs]`."""
        self.z = x @ self.R.T
        return self.linear(self.z)

    def decorrelate(self) -> Tensor:
        """Sets the gradient of R from the latest z, and returns the loss."""
        with torch.no_grad():
            squares = torch.mean(self.z**2, dim=0)
            normaliser = self.variance / squares
            normaliser[squares < DEAD] = 0.0
            c = self.z.T @ self.z / len(self.z)
            self.R.grad = normaliser[:, None] * (c @ self.R) - normaliser[:, None] * self.R
            return torch.mean((c - torch.diag(self.variance)) ** 2)


class Learner:
    """Decorrelated layers with leaky ReLU between them, and optimisers for the weights and for R."""

    def __init__(self, widths: Sequence[int], learning_rate: float, eta: float) -> None:
        self.layers = [DecorrelatedLinear(*pair) for pair in pairwise(widths)]
        self.network = nn.Sequential(*[part for layer in self.layers for part in (nn.LeakyReLU(), layer)][1:])
        weights = [w for layer in self.layers for w in layer.linear.parameters()]
        self.adam = torch.optim.Adam(weights, lr=learning_rate)
        self.descent = torch.optim.SGD([layer.R for layer in self.layers], lr=eta)

    def update(self, x: Tensor, labels: Tensor) -> tuple[float, list[float]]:
        """Performs a step on `x [batch, inputs]` and `labels [batch]`; returns all losses before it."""
        self.adam.zero_grad()
        loss = nn.functional.cross_entropy(self.network(x), labels)
        loss.backward()
        self.adam.step()
        losses = [layer.decorrelate() for layer in self.layers]
        self.descent.step()
        return loss.item(), [each.item() for each in losses]
