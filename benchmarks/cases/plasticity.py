"""Passes of a k-cap network with plasticity tables, and meta-learning of the tables, as in the notebooks."""

from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lax_learning as ll
from benchmarks.cases.case import Case, Sizes, images, members, torch_and
from benchmarks.timing import Ours
from experiments.plasticity_transfer.models import double_softmax
from lax_learning import plasticity
from lax_learning.plasticity import KCapNetwork, State, Tables

INPUTS, LABELS = 784, 10
FEATURES, SIDES = 16, 2
SIDE_BY_SIDE = 4
HIDDEN_TABLE = ((1.06, 0.45), (0.45, 0.96))
OUTPUT_TABLE = ((0.80, -0.80), (-0.73, 0.73))


def network_of(sizes: Sizes, inputs: int, labels: int, dtype: Any = jnp.float32) -> KCapNetwork:
    """Returns a k-cap network with two hidden layers."""
    return plasticity.k_cap_mlp((inputs, sizes.width, sizes.width, labels), cap_of(sizes), dtype=dtype)


def cap_of(sizes: Sizes) -> int:
    """Returns the maximum number of firing units per layer, half of them."""
    return (sizes.width + 1) // 2


def learned_tables(dtype: Any = jnp.float32) -> Tables:
    """Returns tables like those from meta-learning on half-spaces."""
    return Tables((jnp.asarray(HIDDEN_TABLE, dtype),), jnp.asarray(OUTPUT_TABLE, dtype))


def points(sizes: Sizes) -> ll.data.Splits:
    """Draws the points of all batches of a call from a half-space."""
    count = sizes.rule_batches * sizes.rule_batch_size
    return ll.data.half_space(jax.random.key(2), FEATURES, sizes=(count, 0, 1))


def train_of(sizes: Sizes, state: State) -> ll.Train:
    """Returns meta-learning as published: Adam with L2 decay in the gradient, and softmax applied twice."""
    optimizer = optax.chain(optax.add_decayed_weights(1e-2), optax.adam(1e-2))
    return plasticity.meta_learn(
        network_of(sizes, FEATURES, SIDES), state, optimizer, num_updates=sizes.rule_batches,
        batch_size=sizes.rule_batch_size, loss=double_softmax,
    )  # fmt: skip


def start_of(sizes: Sizes, data: ll.data.Splits, key: jax.Array) -> tuple[State, ll.TrainState]:
    """Returns a network, and the initial state of its meta-learning."""
    structure_key, train_key = jax.random.split(key)
    state = network_of(sizes, FEATURES, SIDES).init(structure_key)
    return state, train_of(sizes, state).init(train_key, data)


def as_reference(state: State, tables: Tables, cap: int, *, requires_grad: bool = False) -> tuple[Any, Any]:
    """Converts network and tables to those of the reference, in float64."""
    torch, reference = torch_and("plasticity")

    def tensor(a: Any) -> Any:
        return torch.tensor(np.asarray(a, np.float64))

    weights, masks = ([tensor(layer[entry]).T.contiguous() for layer in state] for entry in ("w", "mask"))
    theirs = reference.Tables(tensor(tables.hidden[0]), tensor(tables.output))
    for each in (weights[0], *theirs):
        each.requires_grad_(requires_grad)
    return reference.Network(weights, masks, cap), theirs


def _ours_pass(sizes: Sizes, seeds: int) -> Ours:
    network = network_of(sizes, INPUTS, LABELS)

    def one(key: jax.Array, state: State, tables: Tables, x: Any, y: Any) -> Any:
        return plasticity.plastic_pass(network, tables, state, x, y)[:2]

    shared = learned_tables(), *map(jnp.asarray, images(sizes.samples))
    return Ours(one, members(network.init, seeds), shared, seeds, pieces=sizes.samples, on_cpu=SIDE_BY_SIDE)


def _ours_meta_learning(sizes: Sizes, seeds: int) -> Ours:
    data = points(sizes)

    def one(key: jax.Array, start: tuple[State, ll.TrainState], data: ll.data.Splits) -> Any:
        state, train = start
        return train_of(sizes, state).advance(train, 0, data)

    member = members(partial(start_of, sizes, data), seeds)
    return Ours(one, member, (data,), seeds, pieces=sizes.rule_batches, on_cpu=SIDE_BY_SIDE)


def _reference_pass(sizes: Sizes) -> Callable[[], object]:
    torch, reference = torch_and("plasticity")
    state = members(network_of(sizes, INPUTS, LABELS).init, 1)
    network, tables = as_reference(state, learned_tables(), cap_of(sizes))
    x, labels = map(torch.from_numpy, images(sizes.samples))
    samples = cycle(zip(x.double().split(1), labels.split(1), strict=True))
    return lambda: reference.one_pass(network, tables, *next(samples)).item()


def _reference_meta_learning(sizes: Sizes) -> Callable[[], object]:
    torch, reference = torch_and("plasticity")
    data = points(sizes)
    state, train = members(partial(start_of, sizes, data), 1)
    network, tables = as_reference(state, train.params.tables, cap_of(sizes), requires_grad=True)
    adam = reference.optimizer(network, tables)
    x = torch.tensor(np.asarray(data.train.x, np.float64)).split(sizes.rule_batch_size)
    labels = torch.from_numpy(np.argmax(np.asarray(data.train.y), axis=-1)).split(sizes.rule_batch_size)
    batches = cycle(zip(x, labels, strict=True))
    return lambda: reference.meta_update(network, tables, adam, *next(batches))


CASES = [
    Case("plasticity", "k-cap sample", 35.0, 35.0, _ours_pass, _reference_pass, requires="torch"),
    Case("plasticity", "meta-learning, a batch of a rule epoch", 20.0, 20.0,
         _ours_meta_learning, _reference_meta_learning, requires="torch"),
]  # fmt: skip
