"""Updates of the tutorial's network, compared with hand-written JAX, evosax and PyTorch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

import lax_learning as ll
from benchmarks.cases import microlearning as tutorial
from benchmarks.cases.case import Case, Sizes, torch_and
from benchmarks.cases.microlearning import LEARNING_RATE, SIGMA, network_of
from benchmarks.reference import jax_by_hand
from benchmarks.timing import Ours

BY_HAND_DRAWS, LOW_RANK_DRAWS, POPULATION = 8, 256, 32

perturbed = partial(ll.weight_perturbation, sigma=SIGMA)
low_rank = partial(perturbed, rank=1, num_samples=LOW_RANK_DRAWS)
mirrored = partial(perturbed, difference="central", num_samples=POPULATION // 2)
mirrored_low_rank = partial(perturbed, difference="central", rank=1, num_samples=LOW_RANK_DRAWS // 2)


def _ours(make: Callable[..., ll.Rule], draws: int, sizes: Sizes, seeds: int) -> Ours:
    return tutorial.training(lambda model: make(model, ll.squared_error), sizes, seeds, draws)


def _params(sizes: Sizes) -> Any:
    model = network_of(sizes)
    return tutorial.weights_of(model, ll.backprop(model, ll.squared_error), 1).params


def by_hand(name: str, draw: Callable[..., Any], draws: int, sizes: Sizes) -> Ours:
    """Returns updates by hand-written code in a scan; with several draws, one update."""
    params, updates = list(_params(sizes)), sizes.updates if draws == 1 else 1
    train = jax_by_hand.training(jax_by_hand.RULES[name], draw, draws, LEARNING_RATE)

    def one(key: jax.Array, member: Any, x: Any, y: Any) -> Any:
        return train(jax.random.split(key, updates), *member, x, y)

    return Ours(one, (params, params), tutorial.batch(sizes), pieces=updates * draws)


def _open_es(sizes: Sizes) -> Ours:
    from benchmarks.reference import open_es

    model = network_of(sizes)

    def loss(params: Any, x: Any, y: Any) -> jax.Array:
        return ll.squared_error(model.apply(params, x), y).mean()

    train = open_es.training(loss, _params(sizes), POPULATION, SIGMA, LEARNING_RATE)

    def one(key: jax.Array, params: Any, x: Any, y: Any) -> Any:
        return train(key[None], params, x, y)

    return Ours(one, _params(sizes), tutorial.batch(sizes), pieces=POPULATION)


def _torch(sizes: Sizes) -> Callable[[], object]:
    torch, reference = torch_and("torch_feedback")
    net = reference.network(tutorial.INPUTS, sizes.hidden, tutorial.OUTPUTS)
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE)
    x, y = map(torch.from_numpy, tutorial.examples(sizes.batch_size))
    return lambda: reference.update(net, optimizer, x, y)


def _against_hand(
    piece: str, goal: float, make: Any, rule: str, draw: Any = jax.random.normal,
    draws: tuple[int, int] = (1, 1),
) -> Case:  # fmt: skip
    ours, theirs = draws
    return Case(
        "jax_by_hand", piece, goal, None, partial(_ours, make, ours), partial(by_hand, rule, draw, theirs)
    )


def _peer(piece: str, goal: float, make: Any, draws: int, reference: Any, requires: str) -> Case:
    return Case("peers", piece, goal, None, partial(_ours, make, draws), reference, requires)


CASES = [
    _against_hand("update: backprop", 1.0, ll.backprop, "backprop"),
    _against_hand("update: feedback alignment", 1.0, ll.feedback_alignment, "feedback_alignment"),
    _against_hand(
        "update: node perturbation", 1.0, partial(ll.node_perturbation, sigma=SIGMA), "node_perturbation"
    ),
    _against_hand("update: weight perturbation", 1.0, perturbed, "weight_perturbation"),
    _against_hand(
        "update: weight perturbation, signs", 1.5, partial(perturbed, noise="rademacher"),
        "weight_perturbation", jax.random.rademacher,
    ),
    _against_hand(
        "draw: weight perturbation, rank 1", 10.0, low_rank, "weight_perturbation",
        draws=(LOW_RANK_DRAWS, BY_HAND_DRAWS),
    ),
    _peer("member of a population: evosax", 1.0, mirrored, POPULATION, _open_es, "evosax"),
    _peer("member, rank 1: evosax", 10.0, mirrored_low_rank, LOW_RANK_DRAWS, _open_es, "evosax"),
    _peer("update: feedback alignment, PyTorch", 1.0, ll.feedback_alignment, 1, _torch, "torch"),
]  # fmt: skip
