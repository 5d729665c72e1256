"""Updates of decorrelated backprop with Adam at the published sizes, in a scan."""

from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import lax_learning as ll
from benchmarks.cases.case import Case, Sizes, members, torch_and
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


def learner(widths: tuple[int, ...]) -> tuple[Callable[..., Carry], Callable[..., tuple[Carry, Any]]]:
    """Returns a network with leaky ReLU between its layers, trained on the cross-entropy, as two functions.

    They are `init(key) -> carry` and `update(key, carry, x, y) -> (carry, (loss, decorrelation losses))`; all
    losses are from before the update.
    """
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

    return init, update


def examples(widths: tuple[int, ...], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns batches of normal inputs `[count, 64, inputs]`, and labels `[count, 64]` of ten classes."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, BATCH_SIZE, widths[0]), np.float32)
    return x, rng.integers(CLASSES, size=(count, BATCH_SIZE))


def _ours(widths: tuple[int, ...], sizes: Sizes, seeds: int) -> Ours:
    init, update = learner(widths)
    x, labels = examples(widths, sizes.updates)
    y = jax.nn.one_hot(labels, widths[-1])

    def one(key: jax.Array, carry: Carry, x: Any, y: Any) -> Any:
        keys = jax.random.split(key, sizes.updates)
        return jax.lax.scan(lambda carry, each: update(each[0], carry, *each[1:]), carry, (keys, x, y))

    shared = jax.numpy.asarray(x), y
    return Ours(one, members(init, seeds), shared, seeds, pieces=sizes.updates, on_cpu=1)


def _reference(widths: tuple[int, ...], sizes: Sizes) -> Callable[[], object]:
    torch, reference = torch_and("decorrelation")
    theirs = reference.Learner(widths, LEARNING_RATE, ETA)
    batches = cycle(list(zip(*map(torch.from_numpy, examples(widths, sizes.updates)), strict=True)))
    return lambda: theirs.update(*next(batches))


CASES = [
    Case("decorrelation", f"update: {name}", 8.0, 12.0,
         partial(_ours, widths), partial(_reference, widths), requires="torch")
    for name, widths in NETWORKS.items()
]  # fmt: skip
