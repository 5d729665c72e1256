"""Memory of the rules: no program holds a tensor of shape (batch, in, out) for a weight, nor for a kernel."""

import re
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lax_learning._sites._equations import all_equations
from lax_learning.models import Model
from lax_learning.noise import normal
from lax_learning.rules import node_perturbation
from tests.compare import slow_but, squares
from tests.registry import RULES
from tests.zoo import ZOO

pytest.importorskip("flax")
pytest.importorskip("equinox")
pytest.importorskip("haiku")

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

BATCH = 97  # divides nothing else in the zoo
ON_THE_ZOO = (
    "feedback_alignment", "direct_feedback_alignment", "node_perturbation_activity",
    "node_perturbation_shared", "weight_perturbation_central_signs",
)  # fmt: skip


def normal_form(shape):
    """A shape whatever the order of its axes, without those of length 1."""
    return tuple(sorted(n for n in shape if n != 1))


def shapes_traced(function, *args):
    """Shapes of all values of a traced program, inside its calls too."""
    equations = all_equations(jax.make_jaxpr(function)(*args).jaxpr)
    return {normal_form(v.aval.shape) for each in equations for v in (*each.invars, *each.outvars)}


def per_weight_and_example(shapes, own, params):
    """Shapes with an axis of examples and as many numbers for each as a weight or kernel has.

    Where an activity of the model, `own`, happens to have as many numbers, those of the weight's axes alone.
    """
    weights = [leaf.shape for leaf in jax.tree.leaves(params) if len(normal_form(leaf.shape)) > 1]
    sizes = {prod(shape) for shape in weights} - {prod(shape) // BATCH for shape in own if BATCH in shape}
    exact = {normal_form((BATCH, *shape)) for shape in weights}
    found = {shape for shape in shapes if BATCH in shape and prod(shape) // BATCH in sizes}
    return (found | (shapes & exact)) - own


def problem(name):
    """A model on `BATCH` examples, and targets."""
    case = ZOO[name]()
    x = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * -(-BATCH // len(leaf)))[:BATCH], case.x)
    return case._replace(x=x), jnp.zeros(jax.eval_shape(case.apply, case.params, x).shape)


def by_rule(rule, params, x, y):
    key = jax.random.key(0)
    return rule.value_and_grad(key, params, rule.init(key, params, x), x, y)[:2]


@pytest.mark.parametrize("name", slow_but(["equinox_gru"], ["equinox_gru", "linen_residual_convolution"]))
def test_no_traced_program_holds_a_weight_for_each_example(name):
    case, y = problem(name)
    args = case.params, case.x, y

    def exact(params, x, y):
        return jax.value_and_grad(lambda params: squares(case.apply(params, x), y).mean())(params)

    def by_example(params, x, y):
        """Gradients of each example, squared: what must not happen."""
        each = jax.vmap(lambda *of: exact(params, *jax.tree.map(lambda leaf: leaf[None], of))[1])(x, y)
        return jax.tree.map(lambda g: jnp.square(g).sum(0), each)

    own = shapes_traced(exact, *args)
    for rule in ON_THE_ZOO:
        found = shapes_traced(partial(by_rule, RULES[rule](Model(case.apply), squares)), *args)
        assert not per_weight_and_example(found, own, case.params), rule
    assert per_weight_and_example(shapes_traced(by_example, *args), own, case.params)


def test_gradients_of_weights_sum_over_one_axis():
    # XLA transposes both operands of a product that sums over two axes, in memory.
    case, y = problem("layers_by_counter")
    rule = node_perturbation(Model(case.apply), squares, sigma=0.1)
    traced = jax.make_jaxpr(partial(by_rule, rule))(case.params, case.x, y)
    numbers = re.findall(r"dimension_numbers=\(\(\[([\d, ]*)\]", str(traced))
    assert len(numbers) > 3
    assert all("," not in contracted for contracted in numbers)


# Derivatives of the user's, `backward(w, x, d)`: gradients of a batch come from one product where that is
# possible.
BACKWARDS: dict[str, Any] = {
    "cut": lambda w, x, d: (jax.jit(jnp.dot)(x.T, -d) / 3, jnp.zeros_like(x)),
    "clipped": lambda w, x, d: (jnp.clip(x.T @ d, -0.01, 0.01), d @ w.T),
    "with itself": lambda w, x, d: (x.T @ (d / d.sum()), d @ w.T),
}


@pytest.mark.parametrize("name", BACKWARDS)
def test_derivatives_of_the_user_are_used_as_they_are(name, x64):
    # Each example has an input of its own, so that rows of the plain gradient are the errors of the examples.
    w, x, y = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3))), jnp.eye(5), jnp.ones((5, 3))
    key, product = jax.random.key(1), jax.custom_vjp(lambda w, x: x @ w)
    product.defvjp(lambda w, x: (x @ w, (w, x)), lambda saved, d: BACKWARDS[name](*saved, d))

    def grads(w):
        rules = [node_perturbation(Model(f), squares, sigma=0.1) for f in (lambda w, x: x @ w, product)]
        return [rule.value_and_grad(key, w, (), x, y)[1] for rule in rules]

    errors, found = jax.jit(grads)(w)
    each = [BACKWARDS[name](w, x[i : i + 1], errors[i : i + 1])[0] for i in range(5)]
    np.testing.assert_allclose(found, sum(each), rtol=1e-12)
    assert ((3, 5, 5) in shapes_traced(grads, w)) == (name != "cut")


def test_noise_is_drawn_in_long_rows():
    shape, key = (341, 5), jax.random.key(0)
    like = jax.ShapeDtypeStruct(shape, jnp.float32)
    expected = jax.jit(lambda key: jax.random.normal(jax.random.split(key, 1)[0], shape))(key)
    # The inverse error function is two polynomials of degree 8: roundings of ten terms.
    drawn = jax.jit(lambda key: normal(key, like))(key)
    np.testing.assert_allclose(drawn, expected, rtol=10 * float(np.finfo(np.float32).eps))
    if jax.default_backend() == "cpu":
        assert (853,) in shapes_traced(lambda key: normal(key, like), key)
