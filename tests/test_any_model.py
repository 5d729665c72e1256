"""Estimators take a loss of any model as it stands: its parameters may have any structure."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lax_learning import estimators
from tests.compare import slow_but
from tests.zoo import ZOO

KEY = jax.random.key(0)
FACTORIES: dict[str, Callable[[Any], Any]] = {
    "backprop": estimators.backprop,
    "weight_perturbation": lambda f: estimators.weight_perturbation(f, sigma=0.1, num_samples=2),
    "forward_gradient": lambda f: estimators.forward_gradient(f, num_samples=2),
    "spsa": lambda f: with_count(estimators.spsa(f, perturbation=lambda count: 0.1 / (count + 1))),
}


def with_count(estimate: Any) -> Any:
    return lambda key, params, *args: estimate(key, params, *args, count=3)


class Case(NamedTuple):
    """A model: its parameters, and per-example losses `(params, x, y) -> [batch]`."""

    params: Any
    loss_fn: Callable[[Any, Any, Any], Any]


def data() -> tuple[Any, Any]:
    return jax.random.normal(jax.random.key(1), (6, 2)), jax.random.normal(jax.random.key(2), (6, 1))


def squares(output: Any, y: Any) -> Any:
    return jnp.sum((output - y) ** 2, axis=-1)


class OfNnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(2, 3, param_dtype=float, rngs=rngs)
        self.output = nnx.Linear(3, 1, param_dtype=float, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.output(jnp.tanh(self.hidden(x)))


FOREIGN = ("linen_separable_strided_convolution", "nnx_layer_used_twice", "equinox_mlp", "haiku_lstm")


@pytest.mark.parametrize("name", slow_but(FOREIGN[:3], FOREIGN))
def test_estimators_take_parameters_of_any_structure(name: str) -> None:
    """Noise and gradients are those of the same leaves in a list."""
    case = ZOO[name]()
    leaves, structure = jax.tree.flatten(case.params)

    def loss(params: Any) -> Any:
        return jnp.mean(jnp.square(case.apply(params, case.x)))

    @jax.jit
    def both(params: Any, leaves: Any) -> Any:
        in_list = {n: make(lambda leaves: loss(structure.unflatten(leaves))) for n, make in FACTORIES.items()}
        pairs = {n: (make(loss)(KEY, params), in_list[n](KEY, leaves)) for n, make in FACTORIES.items()}
        return loss(params), pairs

    exact, found = both(case.params, leaves)
    for of, ((value, grads), (expected, in_list)) in found.items():
        assert jax.tree.structure(grads) == structure
        np.testing.assert_allclose([value, expected], exact, rtol=1e-5, err_msg=of)
        # Roundings of a loss of order 1 over sigma.
        largest = max(np.abs(leaf).max() for leaf in in_list)
        for grad, other in zip(jax.tree.leaves(grads), in_list, strict=True):
            np.testing.assert_allclose(grad, other, rtol=1e-4, atol=1e-4 * largest, err_msg=of)


def test_gradients_go_into_the_optimizer_of_nnx() -> None:
    model, (x, y) = OfNnx(nnx.Rngs(0)), data()
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    estimate = FACTORIES["weight_perturbation"](lambda model, x, y: squares(model(x), y))

    @nnx.jit
    def step(key: Any, model: Any, optimizer: Any) -> Any:
        loss, grads = estimate(key, model, x, y)
        optimizer.update(model, grads)
        return loss

    losses = [float(step(key, model, optimizer)) for key in jax.random.split(KEY, 100)]
    assert np.mean(losses[-10:]) < 0.95 * np.mean(losses[:10])


def test_what_is_no_parameter_stays_outside() -> None:
    """A model with random numbers of its own, split; one with functions among its leaves, partitioned."""
    x, y = data()
    rngs = nnx.Rngs(0, dropout=1)
    dropout = nnx.Sequential(
        nnx.Linear(2, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)
    )
    graph, params, rest = nnx.split(dropout, nnx.Param, ...)
    mlp = eqx.nn.MLP(2, 1, 3, 1, key=KEY)
    arrays, functions = eqx.partition(mlp, eqx.is_inexact_array)
    cases = [
        Case(params, lambda params, x, y: squares(nnx.merge(graph, params, rest, copy=True)(x), y)),
        Case(arrays, lambda arrays, x, y: squares(jax.vmap(eqx.combine(arrays, functions))(x), y)),
    ]
    for case in cases:
        estimate = FACTORIES["forward_gradient"](case.loss_fn)
        both = jax.jit(
            lambda params, estimate=estimate, case=case: (
                estimate(KEY, params, x, y),
                case.loss_fn(params, x, y).mean(),
            )
        )
        (value, grads), expected = both(case.params)
        assert jax.tree.structure(grads) == jax.tree.structure(case.params)
        assert all(bool(jnp.any(grad != 0)) for grad in jax.tree.leaves(grads))
        np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_integers_among_the_parameters_are_refused() -> None:
    x, y = data()
    rngs = nnx.Rngs(0, dropout=1)
    model = nnx.Sequential(nnx.Linear(2, 1, rngs=rngs), nnx.Dropout(0.5, rngs=rngs))
    with pytest.raises(TypeError, match=r"^params.*: expected .*, got"):
        FACTORIES["weight_perturbation"](lambda model, x, y: squares(model(x), y))(KEY, model, x, y)
