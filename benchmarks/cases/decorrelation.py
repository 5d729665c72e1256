"""Updates of decorrelated backprop with Adam at the published sizes, in a scan."""

from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import lax_learning as ll
from benchmarks.cases.case import Case, Sizes, members
from benchmarks.timing import Ours
from experiments.decorrelation import notebook

BATCH_SIZE, CLASSES = 64, 10
LEARNING_RATE, ETA = 1e-4, 1e-5
NETWORKS = {"784-100": (784, 100), "784-100-10": (784, 100, 10)}


class Carry(NamedTuple):
    """Params, decorrelation matrices, and the state of Adam."""

    params: Any
    state: ll.decorrelation.RuleState
    optimizer_state: optax.OptState


class Learner(NamedTuple):
    """A decorrelated network with its optimiser.

    Fields:
      init: `key -> Carry`.
      update: `(key, carry, x, y) -> (carry, (loss, decorrelation losses by layer))`, losses before the
        update.
    """

    init: Callable[[jax.Array], Carry]
    update: Callable[[jax.Array, Carry, Any, Any], tuple[Carry, tuple[jax.Array, dict[str, jax.Array]]]]


def learner(widths: tuple[int, ...]) -> Learner:
    """Returns a network with leaky ReLU between its layers, trained on the cross-entropy."""
    network = ll.mlp(widths, activation=jax.nn.leaky_relu)
    dynamics = notebook.dynamics(ETA)
    rule = ll.decorrelation.rule(lambda n: ll.backprop(n, ll.softmax_cross_entropy), network, dynamics)
    optimizer = optax.adam(LEARNING_RATE)

    def init(key: jax.Array) -> Carry:
        params_key, rule_key = jax.random.split(key)
        params = network.init(params_key)
        state = rule.init(rule_key, params, jax.numpy.zeros((1, widths[0])))
        return Carry(params, state, optimizer.init(params))

    def update(key: jax.Array, carry: Carry, x: Any, y: Any) -> tuple[Carry, Any]:
        params, state, optimizer_state = carry
        loss, grads, state = rule.value_and_grad(key, params, state, x, y)
        updates, optimizer_state = optimizer.update(grads, optimizer_state, params)
        return Carry(optax.apply_updates(params, updates), state, optimizer_state), (loss, state.losses)

    return Learner(init, update)


def examples(widths: tuple[int, ...], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns batches of normal inputs `[count, 64, inputs]`, and labels `[count, 64]` of ten classes."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, BATCH_SIZE, widths[0]), np.float32)
    return x, rng.integers(CLASSES, size=(count, BATCH_SIZE))


def _ours(widths: tuple[int, ...], sizes: Sizes, seeds: int) -> Ours:
    made = learner(widths)
    x, labels = examples(widths, sizes.updates)
    y = jax.nn.one_hot(labels, widths[-1])

    def one(key: jax.Array, carry: Carry, x: Any, y: Any) -> Any:
        keys = jax.random.split(key, sizes.updates)
        return jax.lax.scan(lambda carry, each: made.update(each[0], carry, *each[1:]), carry, (keys, x, y))

    shared = jax.numpy.asarray(x), y
    return Ours(one, members(made.init, seeds), shared, seeds, pieces=sizes.updates, on_cpu=1)


def _reference(widths: tuple[int, ...], sizes: Sizes) -> Callable[[], object]:
    import torch  # pyright: ignore[reportMissingImports]

    from benchmarks.reference import decorrelation as reference

    theirs = reference.Learner(widths, LEARNING_RATE, ETA)
    batches = cycle(list(zip(*map(torch.from_numpy, examples(widths, sizes.updates)), strict=True)))
    return lambda: theirs.update(*next(batches))


CASES = [
    Case("decorrelation", f"update: {name}", 8.0, 12.0,
         partial(_ours, widths), partial(_reference, widths), requires="torch")
    for name, widths in NETWORKS.items()
]  # fmt: skip
