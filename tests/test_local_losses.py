"""Losses of blocks: gradients are those of the blocks alone, under any rule."""

import itertools
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lax_learning as ll
from tests.compare import assert_mean, assert_near, draws_of, normal, update
from tests.refusal import refusals

KEY = jax.random.key(3)
LOSS = ll.squared_error
SIZES, OUTPUTS, BATCH = (4, 6, 5, 3), 2, 7


def dense(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["w"] + p["b"])


def read_out(w: Any, a: Any) -> Any:
    return a @ w


BLOCKS = [(dense, read_out)] * (len(SIZES) - 1)
PARAMS: Any = [
    ({"w": normal(i, m, n), "b": jnp.zeros(n)}, normal(10 + i, n, OUTPUTS))
    for i, (m, n) in enumerate(itertools.pairwise(SIZES))
]
X, Y = normal(20, BATCH, SIZES[0]), normal(21, BATCH, OUTPUTS)


def all_losses(params: Any) -> Any:
    """Sum of the losses of all blocks, the flow cut between them."""
    x, total = X, 0.0
    for p, q in params:
        x = dense(p, jax.lax.stop_gradient(x))
        total += LOSS(read_out(q, x), Y).mean()
    return total


EXACT = jax.jit(jax.grad(all_losses))(PARAMS)


def test_gradients_are_those_of_the_blocks() -> None:
    rule = ll.local_losses(lambda model: ll.backprop(model, LOSS), BLOCKS)
    _, value, grads, _ = update(rule, KEY, PARAMS, X, Y)
    assert_near(grads, EXACT)
    output = X
    for p, _ in PARAMS:
        output = dense(p, output)
    np.testing.assert_allclose(value, LOSS(output @ PARAMS[-1][1], Y).mean(), rtol=1e-6)


def test_forward_gradients_are_unbiased() -> None:
    make = partial(ll.forward_gradient, loss=LOSS, perturb="activities")
    rule = ll.local_losses(make, BLOCKS)
    state = rule.init(KEY, PARAMS, X)
    draws = draws_of(lambda key: rule.value_and_grad(key, PARAMS, state, X, Y)[1], KEY, 4_000)
    assert_mean(draws, EXACT)
    # One key for all blocks would couple their draws: their correlation is 0 with an error of 1 / sqrt(K).
    first, second = (np.asarray(draws[i][0]["b"])[:, 0] for i in range(2))
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / 4_000**0.5


def trained(make: Any, blocks: Any, start: Any, optimizer: Any, num_updates: int) -> Any:
    train = ll.make_train(
        ll.local_losses(make, blocks), optimizer, init=lambda key: start, num_updates=num_updates,
        batch_size=BATCH,
    )  # fmt: skip
    return jax.jit(train)(KEY, ll.data.Splits(*[ll.data.Dataset(X, Y)] * 3))


def test_learns_with_states_that_move() -> None:
    optimizer = optax.sgd(0.05)
    make = partial(ll.kolen_pollack, loss=LOSS, optimizer=optimizer, decay=0.0)
    losses = trained(make, BLOCKS, PARAMS, optimizer, 300).losses
    assert float(losses[-1]) < 0.3 * float(losses[0])


def test_leaves_that_a_rule_does_not_train_stay() -> None:
    def make(model: ll.Model) -> ll.Rule:
        return ll.backprop(replace(model, trainable="*w"), LOSS)

    start = [(p, {"w": q}) for p, q in PARAMS]
    blocks = [(dense, lambda p, a: a @ p["w"])] * 3
    end = trained(make, blocks, start, optax.adamw(0.1, weight_decay=0.5), 2).state.params
    for (before, _), (after, _) in zip(start, end, strict=True):
        np.testing.assert_array_equal(before["b"], after["b"])
        assert bool((before["w"] != after["w"]).any())


RULE = ll.local_losses(lambda model: ll.backprop(model, LOSS), BLOCKS)
any_blocks: Any = ll.local_losses

test_bad_input = refusals(
    values={
        "^blocks: expected at least one": lambda: any_blocks(lambda model: RULE, []),
        r"^blocks\[0\]: expected a pair": lambda: any_blocks(lambda model: RULE, [(dense, read_out, dense)]),
        "^params: expected a list of 3 pairs": [
            lambda: RULE.init(KEY, PARAMS[:2], X),
            lambda: RULE.value_and_grad(KEY, [1, 2, 3], ((), (), ()), X, Y),
        ],
    },
    types={
        "^make_rule: ": [lambda: any_blocks(3, BLOCKS), lambda: any_blocks(lambda model: None, BLOCKS)],
        r"^blocks\[0\]: head: expected a function": lambda: any_blocks(lambda model: RULE, [(dense, 3)]),
        "^state: ": lambda: RULE.value_and_grad(KEY, PARAMS, None, X, Y),
    },
)
