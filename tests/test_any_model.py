"""Estimators take a loss of any model as it stands: linen, NNX and Equinox agree with plain JAX."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from lax_learning import estimators

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


def of_linen() -> Case:
    model = linen.Sequential([linen.Dense(3, param_dtype=float), jnp.tanh, linen.Dense(1, param_dtype=float)])
    return Case(
        model.init(KEY, data()[0]), lambda params, x, y: squares(jnp.asarray(model.apply(params, x)), y)
    )


class OfNnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(2, 3, param_dtype=float, rngs=rngs)
        self.output = nnx.Linear(3, 1, param_dtype=float, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.output(jnp.tanh(self.hidden(x)))


def of_nnx() -> Case:
    return Case(OfNnx(nnx.Rngs(0)), lambda model, x, y: squares(model(x), y))


class OfEquinox(eqx.Module):
    hidden: eqx.nn.Linear
    output: eqx.nn.Linear

    def __init__(self, key: Any):
        hidden, output = jax.random.split(key)
        self.hidden = eqx.nn.Linear(2, 3, key=hidden)
        self.output = eqx.nn.Linear(3, 1, key=output)

    def __call__(self, x: Any) -> Any:
        return self.output(jnp.tanh(self.hidden(x)))


def of_equinox() -> Case:
    return Case(OfEquinox(KEY), lambda model, x, y: squares(jax.vmap(model)(x), y))


MODELS = {"linen": of_linen, "nnx": of_nnx, "equinox": of_equinox}


def plain_losses(leaves: list[Any], x: Any, y: Any) -> Any:
    """The same network on a list of arrays, in whatever order and with the kernels either way round."""
    by_shape = {leaf.shape: leaf for leaf in leaves}
    w1 = by_shape[2, 3] if (2, 3) in by_shape else by_shape[3, 2].T
    w2 = by_shape[3, 1] if (3, 1) in by_shape else by_shape[1, 3].T
    return squares(jnp.tanh(x @ w1 + by_shape[3,]) @ w2 + by_shape[1,], y)


@pytest.mark.parametrize("of", MODELS)
def test_estimators_agree_with_the_same_network_as_a_plain_pytree(of: str, x64: None) -> None:
    case, (x, y) = MODELS[of](), data()
    leaves, structure = jax.tree.flatten(case.params)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float64)} and len(leaves) == 4

    @jax.jit
    def both(params: Any, leaves: Any) -> Any:
        pairs = {name: (make(case.loss_fn), make(plain_losses)) for name, make in FACTORIES.items()}
        return {
            name: (estimate(KEY, params, x, y), plain(KEY, leaves, x, y))
            for name, (estimate, plain) in pairs.items()
        }

    for name, ((value, grads), (expected, plain)) in both(case.params, leaves).items():
        assert jax.tree.structure(grads) == structure
        np.testing.assert_allclose(value, expected, rtol=1e-12, err_msg=name)
        for grad, other in zip(jax.tree.leaves(grads), plain, strict=True):
            np.testing.assert_allclose(grad, other, rtol=1e-9, atol=1e-12, err_msg=name)


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
