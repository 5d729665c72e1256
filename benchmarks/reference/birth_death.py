"""A step of gradient descent with birth and death of neurons in eager PyTorch (Rotskoff et al., 2019).

https://arxiv.org/abs/1902.01843. Student `f(x) = sum_i c_i relu(w_i . x)`, mean squared error. After every
step neurons with `V = c dL/dc > 0` are killed and become copies of survivors, those with V < 0 are copied
over others, each with probability `alpha |V|`. As published: gradients by autograd from before the step with
charges from after it, an optimizer of PyTorch's, masks, and each clone draws its own slot.
"""

from typing import NamedTuple

import torch  # pyright: ignore[reportMissingImports]


class Student(torch.nn.Module):
    """A network of one hidden layer: weights `w [neurons, features]`, charges `c [1, neurons]`."""

    def __init__(self, w: torch.Tensor, c: torch.Tensor) -> None:
        super().__init__()
        self.w, self.c = torch.nn.Parameter(w), torch.nn.Parameter(c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`f(x)`, `[batch, 1]`."""
        hidden = torch.nn.functional.relu(torch.nn.functional.linear(x, self.w))
        return torch.nn.functional.linear(hidden, self.c)


class Draws(NamedTuple):
    """Uniform numbers in 0..1, one a neuron and purpose, each `[neurons]`."""

    kill: torch.Tensor
    survivor: torch.Tensor
    clone: torch.Tensor
    slot: torch.Tensor


def draw_inputs(batch_size: int, num_features: int) -> torch.Tensor:
    """Points on the unit sphere, `[batch, features]`."""
    x = torch.randn(batch_size, num_features)
    return x / torch.norm(x, dim=1, keepdim=True)


def _pick(u: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    return candidates[(u * len(candidates)).long().clamp(max=len(candidates) - 1)]


def resample(student: Student, rates: torch.Tensor, draws: Draws, alpha: float) -> tuple[int, int]:
    """Kills and clones, in place; returns how many of each."""
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
    student: Student,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    draws: Draws,
    alpha: float,
) -> tuple[int, int]:
    """One step on `x [batch, features]` and `y [batch, 1]`, in place; returns kills and clones."""
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(student(x), y).backward()
    optimizer.step()
    rates = student.c.data * torch.as_tensor(student.c.grad)
    return resample(student, rates[0], draws, alpha)
