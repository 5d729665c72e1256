"""Training of a critic of symbolic functions in eager PyTorch, after https://github.com/fabxy/symrep (2022).

Every epoch draws functions with random coefficients (real curves, their values at fixed points) and a new
network (fake curves), and takes Adam steps with L2 weight decay on the loss, with one eps per curve,

    -mean critic(real) + mean critic(fake) + penalty mean((|grad critic(eps real + (1 - eps) fake)| - 1)^2)

As in the public code, coefficients are drawn one by one, functions are evaluated one after another with their
derivatives, and every step reads out losses and accuracy. Unlike there, functions are not parsed at every
evaluation.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]
from torch.optim import Optimizer  # pyright: ignore[reportMissingImports]


class Draws(NamedTuple):
    """Curves of an epoch, each `[number, points]`, and `eps [iterations, number, 1]`."""

    real: Tensor
    fake: Tensor
    eps: Tensor


class Metrics(NamedTuple):
    """Metrics of a step, before the update."""

    loss_real: float
    loss_fake: float
    penalty: float
    accuracy: float


def parabola(n: list[float], u: list[float], x: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluates `N0*0.05*(x + 0.5*N1)**2 + 0.15*N2` and its derivative at the first column of `x`."""
    values = n[0] * 0.05 * (x[:, 0] + 0.5 * n[1]) ** 2 + 0.15 * n[2]
    return values, 2 * n[0] * 0.05 * (x[:, 0] + 0.5 * n[1])


LIBRARY = ((parabola, 3),)
"""Functions, each with its number of normal (N) and of uniform coefficients (U)."""


def perceptron(widths: Sequence[int]) -> nn.Sequential:
    """Returns ReLU layers and a linear layer; weights and biases are uniform in `+-1 / sqrt(inputs)`."""
    return nn.Sequential(*[part for pair in pairwise(widths) for part in (nn.ReLU(), nn.Linear(*pair))][1:])


def adam(critic: nn.Module, learning_rate: float, decay: float) -> Optimizer:
    """Returns the optimiser of the critic; weight decay is part of the gradient."""
    return torch.optim.Adam(critic.parameters(), lr=learning_rate, weight_decay=decay)


def draw_coefficients(number: int) -> tuple[list[float], list[float]]:
    """Draws normal coefficients, and uniform ones in 0..1, one by one."""
    pairs = [(torch.randn(1).item(), torch.rand(1).item()) for _ in range(number)]
    return [n for n, _ in pairs], [u for _, u in pairs]


def draw(x: Tensor, widths: Sequence[int], iterations: int) -> Draws:
    """Draws a network, and as many functions as it has outputs, evaluated at `x [points, columns]`."""
    with torch.no_grad():
        fake = perceptron(widths)(x).T
    chosen = [LIBRARY[i] for i in torch.randint(len(LIBRARY), (len(fake),))]
    drawn = [(function, draw_coefficients(number)) for function, number in chosen]
    real = torch.stack([torch.stack(function(*of, x)).T for function, of in drawn])[..., 0]
    return Draws(real, fake, torch.rand(iterations, len(fake), 1))


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
    """Returns the mean of `(|grad critic| - 1)^2` between curves `[number, points]`; eps is `[number, 1]`."""
    between = (eps * real + (1 - eps) * fake).requires_grad_()
    logits = critic(between)
    (slopes,) = torch.autograd.grad(logits, between, torch.ones_like(logits), create_graph=True)
    return ((slopes.norm(2, dim=1) - 1) ** 2).mean()


def step(
    critic: nn.Module, optimizer: Optimizer, real: Tensor, fake: Tensor, eps: Tensor, penalty: float
) -> Metrics:
    """Performs an Adam step on curves `[number, points]`; eps is `[number, 1]`."""
    optimizer.zero_grad()
    of_real, of_fake = critic(real), critic(fake)
    loss_real, loss_fake = -of_real.mean(), of_fake.mean()
    slope = gradient_penalty(critic, real, fake, eps)
    (loss_real + loss_fake + penalty * slope).backward()
    optimizer.step()
    right = (of_real > 0).sum() + (of_fake <= 0).sum()
    accuracy = right / (len(of_real) + len(of_fake))
    return Metrics(loss_real.item(), loss_fake.item(), slope.item(), accuracy.item())


def epoch(critic: nn.Module, optimizer: Optimizer, draws: Draws, penalty: float) -> list[Metrics]:
    """Performs a step for each eps, all on the same curves."""
    return [step(critic, optimizer, draws.real, draws.fake, eps, penalty) for eps in draws.eps]
