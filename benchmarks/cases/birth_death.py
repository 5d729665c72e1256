"""Steps of gradient descent with birth and death of neurons on the planted problem, in a scan."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.nn.initializers import normal

import lax_learning as ll
from benchmarks.cases.case import Case, Sizes, members, torch_and
from benchmarks.timing import Ours

ALPHA, LEARNING_RATE = 1.0, 2e-2
AHEAD = 10  # number of steps whose examples are drawn at once; halves the time of a step

Carry = tuple[Any, ll.birth_death.State]


def student_of(neurons: int) -> ll.Model:
    """Returns a ReLU network with as many inputs as hidden neurons, one output and no biases."""
    return ll.mlp((neurons, neurons, 1), activation=jax.nn.relu, w_init=normal(neurons**-0.5), b_init=None)


def dynamics_of(draws: Callable[..., ll.birth_death.Draws] = ll.birth_death.draws) -> ll.Dynamics:
    """Returns the published cloning scheme, in which each clone draws its own slot."""
    axes = ({"w": 1}, {"w": 0})
    return ll.birth_death.dynamics(ALPHA, axes=axes, charges=lambda p: p[1], slots="independent", draws=draws)


def step(dynamics: ll.Dynamics, network: ll.Model, key: jax.Array, carry: Carry, x: Any, y: Any) -> Carry:
    """Performs a step of gradient descent, and births and deaths determined by its gradients."""
    params, state = carry
    rule_key, event_key = jax.random.split(key)
    _, grads, _ = ll.backprop(network, ll.squared_error).value_and_grad(rule_key, params, (), x, y)
    params = jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, grads)
    carry, _ = dynamics.update(event_key, params, state, grads)
    return carry


def as_reference(params: Any) -> tuple[np.ndarray, np.ndarray]:
    """Converts params to the weights `[neurons, features]` and charges `[1, neurons]` of the reference."""
    w, c = (np.array(layer["w"]).T for layer in params)
    return w, c


def _start(sizes: Sizes, key: jax.Array) -> tuple[Any, Carry]:
    teacher_key, student_key = jax.random.split(key)
    params = student_of(sizes.neurons).init(student_key)
    return ll.data.planted(sizes.neurons).init(teacher_key), (params, dynamics_of().init(params))


def _ours(sizes: Sizes, seeds: int) -> Ours:
    network, dynamics = student_of(sizes.neurons), dynamics_of()
    problem = ll.data.planted(sizes.neurons)
    ahead = max(number for number in range(1, AHEAD + 1) if sizes.steps % number == 0)

    def one(key: jax.Array, start: tuple[Any, Carry]) -> Carry:
        teacher, carry = start

        def next_steps(carry: Carry, keys: jax.Array) -> tuple[Carry, None]:
            drawn = problem.sample(keys[0], teacher, ahead * sizes.points)
            data = jax.tree.map(lambda a: a.reshape(ahead, sizes.points, -1), drawn)

            def next_step(carry: Carry, each: Any) -> tuple[Carry, None]:
                key, (x, y) = each
                return step(dynamics, network, key, carry, x, y), None

            return jax.lax.scan(next_step, carry, (keys[1:], data))

        keys = jax.random.split(key, (sizes.steps // ahead, 1 + ahead))
        return jax.lax.scan(next_steps, carry, keys)[0]

    return Ours(one, members(partial(_start, sizes), seeds), seeds=seeds, pieces=sizes.steps)


def _reference(sizes: Sizes) -> Callable[[], object]:
    torch, reference = torch_and("birth_death")
    teacher, (params, _) = members(partial(_start, sizes), 1)
    teacher, student = (reference.Student(*map(torch.tensor, as_reference(p))) for p in (teacher, params))
    optimizer = torch.optim.SGD(student.parameters(), lr=LEARNING_RATE)

    def call() -> None:
        x = reference.draw_inputs(sizes.points, sizes.neurons)
        draws = reference.Draws(*torch.rand(4, sizes.neurons))
        with torch.no_grad():
            y = teacher(x)
        reference.step(student, optimizer, x, y, draws, ALPHA)

    return call


CASES = [Case("birth_death", "step", 4.0, 6.0, _ours, _reference, requires="torch")]
