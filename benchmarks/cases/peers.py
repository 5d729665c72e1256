"""Updates of the tutorial's network, compared with hand-written JAX, evosax and PyTorch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

import lax_learning as ll
from benchmarks.cases import microlearning
from benchmarks.cases.case import Case, Sizes
from benchmarks.cases.microlearning import INPUTS, LEARNING_RATE, OUTPUTS, SIGMA, batch, network_of
from benchmarks.reference import jax_by_hand as by_hand
from benchmarks.timing import Ours

BY_HAND_DRAWS, LOW_RANK_DRAWS, POPULATION = 8, 256, 32

perturbed = partial(ll.weight_perturbation, sigma=SIGMA)
mirrored = partial(perturbed, difference="central")


def _ours(make: Callable[..., ll.Rule], draws: int, sizes: Sizes, seeds: int) -> Ours:
    return microlearning.training(lambda model: make(model, ll.squared_error), sizes, seeds, draws)


def _by_hand(name: str, draw: Callable[..., Any], draws: int, sizes: Sizes) -> Ours:
    model = network_of(sizes)
    params = list(microlearning.weights_of(model, ll.backprop(model, ll.squared_error), 1).params)
    updates = sizes.updates if draws == 1 else 1
    train = by_hand.training(by_hand.RULES[name], draw, draws, LEARNING_RATE)

    def one(key: jax.Array, member: Any, x: Any, y: Any) -> Any:
        return train(jax.random.split(key, updates), *member, x, y)

    return Ours(one, (params, params), batch(sizes), pieces=updates * draws)


def _open_es(sizes: Sizes) -> Ours:
    from benchmarks.reference import open_es

    model = network_of(sizes)
    params = microlearning.weights_of(model, ll.backprop(model, ll.squared_error), 1).params

    def loss(params: Any, x: Any, y: Any) -> jax.Array:
        return ll.squared_error(model.apply(params, x), y).mean()

    train = open_es.training(loss, params, POPULATION, SIGMA, LEARNING_RATE)

    def one(key: jax.Array, params: Any, x: Any, y: Any) -> Any:
        return train(key[None], params, x, y)

    return Ours(one, params, batch(sizes), pieces=POPULATION)


def _torch(sizes: Sizes) -> Callable[[], object]:
    import torch  # pyright: ignore[reportMissingImports]

    from benchmarks.reference import torch_feedback as reference

    net = reference.network(INPUTS, sizes.hidden, OUTPUTS)
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE)
    x, y = map(torch.from_numpy, microlearning.examples(sizes.batch_size))
    return lambda: reference.update(net, optimizer, x, y)


def _against_hand(label: str, goal: float, make: Any, rule: str, draw: Any = jax.random.normal) -> Case:
    return Case(
        "jax_by_hand", f"update: {label}", goal, None,
        partial(_ours, make, 1), partial(_by_hand, rule, draw, 1),
    )  # fmt: skip


low_rank = partial(perturbed, rank=1, num_samples=LOW_RANK_DRAWS)
CASES = [
    _against_hand("backprop", 1.0, ll.backprop, "backprop"),
    _against_hand("feedback alignment", 1.0, ll.feedback_alignment, "feedback_alignment"),
    _against_hand(
        "node perturbation", 1.0, partial(ll.node_perturbation, sigma=SIGMA), "node_perturbation"
    ),
    _against_hand("weight perturbation", 1.0, perturbed, "weight_perturbation"),
    _against_hand(
        "weight perturbation, signs", 1.5, partial(perturbed, noise="rademacher"), "weight_perturbation",
        jax.random.rademacher,
    ),
    Case(
        "jax_by_hand", "draw: weight perturbation, rank 1", 10.0, None,
        partial(_ours, low_rank, LOW_RANK_DRAWS),
        partial(_by_hand, "weight_perturbation", jax.random.normal, BY_HAND_DRAWS),
    ),
    Case(
        "peers", "member of a population: evosax", 1.0, None,
        partial(_ours, partial(mirrored, num_samples=POPULATION // 2), POPULATION), _open_es, "evosax",
    ),
    Case(
        "peers", "member, rank 1: evosax", 10.0, None,
        partial(_ours, partial(mirrored, rank=1, num_samples=LOW_RANK_DRAWS // 2), LOW_RANK_DRAWS), _open_es,
        "evosax",
    ),
    Case(
        "peers", "update: feedback alignment, PyTorch", 1.0, None,
        partial(_ours, ll.feedback_alignment, 1), _torch, "torch",
    ),
]  # fmt: skip
