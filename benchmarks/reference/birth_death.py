"""Gradient descent with birth and death of neurons in eager PyTorch.

Student `f(x) = sum_i c_i relu(w_i . x)` with mean squared error. After every step, neurons with
`V = c dL/dc > 0` are killed and replaced by copies of survivors, and those with V < 0 are copied over others,
each with probability `alpha |V|`. As published, V combines gradients from before the step with charges from
after it.

Source: Rotskoff et al., Global convergence of neuron birth-death dynamics, 2019,
https://arxiv.org/abs/1902.01843
"""

from typing import NamedTuple

import torch  # pyright: ignore[reportMissingImports]
from torch import Tensor  # pyright: ignore[reportMissingImports]
from torch.optim import Optimizer  # pyright: ignore[reportMissingImports]


class Student(torch.nn.Module):
    """Network with one hidden layer: weights `w [neurons, features]`, charges `c [1, neurons]`."""

    def __init__(self, w: Tensor, c: Tensor) -> None:
        super().__init__()
        self.w, self.c = torch.nn.Parameter(w), torch.nn.Parameter(c)

    def forward(self, x: Tensor) -> Tensor:
        """Returns `f(x)`, `[batch, 1]`."""
        hidden = torch.nn.functional.relu(torch.nn.functional.linear(x, self.w))
        return torch.nn.functional.linear(hidden, self.c)


class Draws(NamedTuple):
    """Uniform random numbers in 0..1 for every neuron, each `[neurons]`."""

    kill: Tensor
    survivor: Tensor
    clone: Tensor
    slot: Tensor


def draw_inputs(batch_size: int, num_features: int) -> Tensor:
    """Draws points on the unit sphere, `[batch, features]`."""
    x = torch.randn(batch_size, num_features)
    return x / torch.norm(x, dim=1, keepdim=True)


def _pick(u: Tensor, candidates: Tensor) -> Tensor:
    return candidates[(u * len(candidates)).long().clamp(max=len(candidates) - 1)]


def resample(student: Student, rates: Tensor, draws: Draws, alpha: float) -> tuple[int, int]:
    """Kills and clones neurons in place; returns the numbers of both."""
    w, c = student.w.data, student.c.data
    neurons = torch.arange(len(rates))
    killed = (rates > 0) & (draws.kill < alpha * torch.abs(rates))
    kills = int(torch.sum(killed))
    if kills == len(rates):
        kills = 0
    if kills > 0:
        origin = torch.where(killed, _pick(draws.survivor, neurons[~killed]), neurons)
        w.copy_(w[origin])
        c.copy_(c[:, origin])
    cloned = (rates < 0) & (draws.clone < alpha * torch.abs(rates))
    clones = int(torch.sum(cloned))
    if 0 < clones < len(rates):
        slots = _pick(draws.slot[cloned], neurons[~cloned])
        w[slots] = w[cloned]
        c[:, slots] = c[:, cloned]
    return kills, clones


def step(
    student: Student, optimizer: Optimizer, x: Tensor, y: Tensor, draws: Draws, alpha: float
) -> tuple[int, int]:
    """Performs a step on `x [batch, features]` and `y [batch, 1]`, in place; returns kills and clones."""
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(student(x), y).backward()
    optimizer.step()
    rates = student.c.data * torch.as_tensor(student.c.grad)
    return resample(student, rates[0], draws, alpha)
