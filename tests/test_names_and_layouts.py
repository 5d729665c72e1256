"""Names: of modules and functions, and of parameters whose signals, taps and matrices stay apart."""

import importlib
import pkgutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lax_learning as ll
from lax_learning import metrics

KEY = jax.random.key(0)


def drawn(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def gradients_of_examples(model, params, x, y):
    """Mean over examples by `jax.grad`."""
    return jax.grad(lambda p: ll.squared_error(model.apply(p, x), y).mean())(params)


@pytest.mark.parametrize("name", ["w#", "w#2", "a/b", "w*"])
def test_a_weight_used_twice_under_any_name(name):
    model = ll.Model(lambda p, x: jnp.tanh(jnp.tanh(x @ p[name]) @ p[name]) @ p["w"])
    params, x, y = {name: drawn(3, 2, 2), "w": drawn(4, 2, 2)}, drawn(1, 6, 2), drawn(2, 6, 2)
    exact = gradients_of_examples(model, params, x, y)
    moments = metrics.example_moments(model, ll.backprop(model, ll.squared_error), KEY, params, (), x, y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), moments.mean, exact)
    assert len(ll.tapped(model).shapes(params, x)) == 3
    rule = ll.decorrelation.rule(
        lambda m: ll.backprop(m, ll.squared_error), model, ll.decorrelation.dynamics(0.1)
    )
    assert len(rule.init(KEY, params, x).layers) == 3


def test_products_over_other_axes_of_a_value_have_a_matrix_each():
    def mixer(p, x):
        return (jnp.einsum("bij,jk->bik", x, p["a"]) + jnp.einsum("bij,ik->bkj", x, p["b"])).reshape(
            len(x), -1
        )

    model, params = ll.Model(mixer), {"a": drawn(3, 4, 4), "b": drawn(4, 4, 4)}
    x = drawn(1, 50, 4, 4) @ drawn(2, 4, 4)
    rule = ll.decorrelation.rule(
        lambda m: ll.backprop(m, ll.squared_error), model, ll.decorrelation.dynamics(0.02, kappa=0.5)
    )
    y = jnp.zeros((50, 16))
    state = rule.init(KEY, params, x)
    assert list(state.layers) == ["a", "b"]
    step = jax.jit(lambda state: rule.value_and_grad(KEY, params, state, x, y)[2])
    first = step(state).losses
    for _ in range(50):
        state = step(state)
    assert all(state.losses[name] < 0.2 * first[name] for name in ("a", "b"))


@pytest.mark.parametrize("function", [jnp.abs, lambda w: jnp.sort(w, axis=0), jax.nn.relu])
def test_weights_behind_a_function_cannot_be_folded(function):
    model = ll.Model(lambda p, x: x @ function(p["w"]))
    with pytest.raises(ValueError, match="params: expected parameters that one product reads as they are"):
        layers = {"w": ll.decorrelation.State(drawn(4, 4, 4))}
        ll.decorrelation.fold(model, {"w": drawn(3, 4, 4)}, layers, drawn(1, 6, 4))


def test_signals_of_backprop_pass_what_feedback_cannot():
    def apply(p, x):
        return jax.lax.cond(x.sum() > 0, lambda x: jnp.tanh(x @ p["w"]) @ p["v"], lambda x: x @ p["w"], x)

    model, params = ll.Model(apply), {"w": drawn(3, 2, 2), "v": drawn(4, 2, 2)}
    x, y = drawn(9, 1, 2), drawn(8, 1, 2)
    rule = ll.backprop(model, ll.squared_error)
    assert rule.signals is not None
    pulled = ll.tapped(model).pull_back(params, x, rule.signals(KEY, params, (), x, y).deltas)
    exact = gradients_of_examples(model, params, x, y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), pulled, exact)


def test_feedback_moves_by_optimizers_that_look_at_the_loss():
    model = ll.mlp((3, 4, 2))
    params, x, y = model.init(KEY), drawn(1, 5, 3), drawn(2, 5, 2)
    for optimizer in (optax.polyak_sgd(), optax.MultiSteps(optax.sgd(0.1), 1)):
        rule = ll.kolen_pollack(model, ll.squared_error, optimizer=optimizer)
        state = rule.init(KEY, params, x)
        _, _, after = rule.value_and_grad(KEY, params, state, x, y)
        assert np.any(after.feedback[1]["w"] != state.feedback[1]["w"])


def test_no_module_is_hidden_by_what_its_package_calls_the_same():
    packages = [ll, *(importlib.import_module(m.name)
                      for m in pkgutil.walk_packages(ll.__path__, "lax_learning.") if m.ispkg)]  # fmt: skip
    assert len(packages) > 8
    hidden = {
        f"{package.__name__}.{module.name}"
        for package in packages
        for module in pkgutil.iter_modules(package.__path__)
        if not isinstance(getattr(package, module.name, sys), types.ModuleType)
    }
    assert hidden == set()


def test_flat_names_are_few():
    flat = [name for name in ll.__all__ if not isinstance(getattr(ll, name), types.ModuleType)]
    assert flat == sorted(flat) and len(set(flat).difference(ll.rules.__all__)) <= 21
