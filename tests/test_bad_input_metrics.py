"""Bad input of metrics and losses: every message names the argument, what was expected and what came.

The checks of annotations that `conftest` adds are off here: these are the errors that a user sees.
"""

# pyright: reportArgumentType=false

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll
from lax_learning import metrics
from tests.refusal import refusals, refuses

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

# Everything is handed to functions that are typed otherwise.
m: Any = metrics
loss: Any = ll
KEY = jax.random.key(0)
MODEL = ll.mlp((3, 4, 2))
PARAMS = MODEL.init(KEY)
RULE = ll.backprop(MODEL, ll.squared_error)
X, Y = jnp.ones((5, 3)), jnp.zeros((5, 2))
MOMENTS = metrics.stacked_moments((X, Y))

KINDS = {
    "None": (None, "None"),
    "text": ("abc", "'abc'"),
    "complex": (X + 0j, r"complex64\[5, 3\]"),
    "key": (KEY, r"key<fry>\[\]"),
    "function": (jnp.tanh, ""),
    "set": ({1.0}, "set"),
}
TAKING_ONE = {
    "a": lambda value: m.cosine_similarity({"w": value}, {"w": X}),
    "b": lambda value: m.relative_norm({"w": X}, {"w": value}),
    "gradients": lambda value: m.snr({"w": value}),
    "reference": lambda value: m.bias_variance({"w": X}, {"w": value}),
    "draw(x)": lambda value: m.streamed_moments(lambda x: {"w": value}, X),
    "params": lambda value: m.weight_alignment({"w": value}, {"w": X}),
    "feedback": lambda value: m.weight_alignment({"w": X}, {"w": value}),
}
LOSSES = {
    "squared_error": ll.squared_error,
    "softmax_cross_entropy": ll.softmax_cross_entropy,
    "accuracy": ll.accuracy,
    "balanced_accuracy": ll.balanced_accuracy,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TAKING_ONE)
def test_leaves_of_wrong_kinds(name, kind):
    value, got = KINDS[kind]
    if value is None:  # as in JAX a part of the structure
        told = "feedback" if name == "params" else re.escape(name)
        refuses(lambda: TAKING_ONE[name](value), ValueError, f"^{told}: expected")
    else:
        pattern = rf"^{re.escape(name)}\['w'\]: expected an array of real numbers, got .*{got}"
        refuses(lambda: TAKING_ONE[name](value), TypeError, pattern)


@pytest.mark.parametrize("name", LOSSES)
def test_integers_that_do_not_fit_are_not_wrapped(name):
    y = np.array([[2**40, 1], [0, 1]])
    refuses(
        lambda: LOSSES[name](jnp.ones((2, 2)), y),
        ValueError,
        f"^y: expected numbers that int32 can hold, got {2**40}",
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", LOSSES)
def test_lists_are_arrays(name):
    output, y = [[0.2, 0.8], [0.6, 0.4]], [[0, 1], [1, 0]]
    np.testing.assert_array_equal(LOSSES[name](output, y), LOSSES[name](jnp.array(output), jnp.array(y)))


test_functions_and_arrays_of_other_kinds = refusals(
    types={
        "^metric: expected a function of 1 pytrees, got a function of ": lambda: m.by_path(
            m.cosine_similarity, [X]
        ),
        r"^draw: expected a function x -> gradients, got a function of \(x, y\)": lambda: m.streamed_moments(
            lambda x, y: x, X
        ),
        "^gradients: expected an array of real numbers, got float64": lambda: m.snr(
            np.ma.masked_less(np.eye(3, 2), 1)
        ),
    }
)


@pytest.mark.parametrize("name", TAKING_ONE)
def test_wide_integers_are_no_gradients(name):
    value = jnp.ones((5, 3), jnp.int32)
    with pytest.raises(TypeError) as raised:
        TAKING_ONE[name](value)
    assert str(raised.value) == f"{name}['w']: expected a floating-point array, got int32[5, 3]"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_wrong_kinds(name, kind):
    value, got = KINDS[kind]
    expected = f"expected an array of real numbers, got .*{got}"
    refuses(lambda: LOSSES[name](value, Y), TypeError, f"^output: {expected}")
    refuses(lambda: LOSSES[name](Y, value), TypeError, f"^y: {expected}")


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("labels", [np.zeros(5, int), jnp.zeros(5, jnp.uint8), [0, 1, 0, 1, 1]], ids=str)
def test_integer_labels(name, labels):
    refuses(
        lambda: LOSSES[name](Y, labels),
        ValueError,
        r"^y: expected one-hot labels of shape \[5, 2\] as output, got integer labels u?int\d+\[5\]; "
        r"use jax.nn.one_hot\(y, 2\)$",
    )


test_bad_input = refusals(
    values={
        "^a: expected at least one array, got {}": lambda: m.cosine_similarity({}, {}),
        "^b: expected at least one array, got None": lambda: m.angle_degrees(X, None),
        r"^a: expected the structure of b, PyTreeDef\(\*\), got PyTreeDef\({'w': \*}\)": lambda: (
            m.inner_product({"w": X}, X)
        ),
        "^a: expected the structure of b": lambda: m.cosine_similarity([X], (X,)),
        r"^a\['w'\]: expected shape \[5, 2\] as in b, got \[5, 3\]": lambda: m.relative_norm(
            {"w": X}, {"w": Y}
        ),
        r"^trees\[1\]: expected the leaves \['0'\] as in trees\[0\], got \[''\]": lambda: m.by_path(
            m.cosine_similarity, (X,), X
        ),
        r"^trees\[1\]: expected the leaves \['0', '1'\] as in trees\[0\], got \['0'\]": lambda: m.by_path(
            m.cosine_similarity, (X, X), (X,), depth=1
        ),
        r"^trees\[1\]: expected the leaves \['in'\] as in trees\[0\], got \['out'\]": lambda: m.by_path(
            m.cosine_similarity, {"in": X}, {"out": X}
        ),
        r"^trees\[0\]: expected at least one leaf, got none": lambda: m.by_path(m.cosine_similarity, (), ()),
        "^trees: expected one leaf at each path, got several at 'a/b'": lambda: m.by_path(
            m.relative_norm, *[{"a/b": X, "a": {"b": Y}}] * 2
        ),
        "^trees: expected at least one, got none": lambda: m.by_path(m.cosine_similarity),
        "^depth: expected .*, got 0": lambda: m.by_path(m.relative_norm, (X,), (X,), depth=0),
        "^depth: expected .*, got -1": lambda: MOMENTS.parts(depth=-1),
        "^feedback: expected at least one leaf, got none": lambda: m.weight_alignment({"w": X}, {"w": None}),
        r"^feedback: expected paths of params, \['w'\], got \['v'\]": lambda: m.weight_alignment(
            {"w": X}, {"v": X}
        ),
        r"^feedback\['w'\]: expected shape \[5, 3\] as in params, got \[5, 2\]": lambda: m.weight_alignment(
            {"w": X}, {"w": Y}
        ),
        "^gradients: expected stacked gradients or one Moments, got a dict of Moments": lambda: m.snr(
            MOMENTS.parts()
        ),
        r"^x, d: expected shapes \[T, in\] and \[T, out\], got \(5, 3\) and \(4, 2\)": lambda: (
            m.product_moments(X, Y[1:])
        ),
        r"^rest: expected shape \[3, 2\], got \[5, 2\]": lambda: m.product_moments(X, Y, Y),
        "^gradients: expected leaves with one leading axis": lambda: m.snr([1.0, 2.0, 3.0]),
        "^reference: expected one given to the function that made the moments, got it beside them": lambda: (
            m.bias_variance(MOMENTS, (X[0], Y[0]))
        ),
        r"^reference: expected the structure of the gradients, PyTreeDef\(\(\*,\)\), got": lambda: (
            m.bias_variance((X,), [X[0]])
        ),
        r"^draw\(x\): expected at least one array, got \(\)": lambda: m.streamed_moments(lambda x: (), X),
        r"^key: expected one key, .*got key<fry>\[2\]": lambda: m.example_moments(
            MODEL, RULE, jax.random.split(KEY), PARAMS, (), X, Y
        ),
        "^reference: expected the structure of the gradients": lambda: m.draw_moments(
            RULE, KEY, PARAMS, (), X, Y, PARAMS[:1], 5
        ),
        r"^x: expected shape \[batch, 3\], got \[1, 4\]": lambda: m.example_moments(
            MODEL, RULE, KEY, PARAMS, (), jnp.ones((5, 4)), Y
        ),
        r"^y: expected a leading axis of 5 examples as in x, got shapes \[\[4, 2\]\]": lambda: (
            m.example_moments(MODEL, RULE, KEY, PARAMS, (), X, Y[:4])
        ),
        r"^output: expected shape \[batch, ...\], got \[\]": lambda: loss.squared_error(1.0, 1.0),
        r"^output: expected shape \[batch, ..., classes\], got \[\]": lambda: loss.accuracy(1.0, 1.0),
        r"^output: expected shape \[batch, ..., classes\], got \[5\]": lambda: loss.accuracy(
            jnp.zeros(5, jnp.int32), jnp.zeros(5, jnp.int32)
        ),
        r"^output: expected at least two classes, got shape \[5, 1\]": [
            lambda: loss.balanced_accuracy(jnp.ones((5, 1)), jnp.ones((5, 1))),
            lambda: loss.softmax_cross_entropy(jnp.ones((5, 1)), jnp.ones((5, 1))),
        ],
        r"^output: expected at least one example, got shape \[0, 2\]": lambda: loss.accuracy(Y[:0], Y[:0]),
        r"^y: expected shape \[5, 1\] as output, got \[5\]": lambda: loss.squared_error(
            jnp.ones((5, 1)), jnp.ones(5)
        ),
    },
    types={
        "^gradients: expected an array of real numbers, got object": lambda: m.snr(
            np.array([None, 1, 2], dtype=object)
        ),
        "^metric: expected a function of .*pytrees, got 'cosine'": lambda: m.by_path("cosine", (X,), (X,)),
        r"^draw: expected a function x -> gradients, got float32\[5, 3\]": lambda: m.streamed_moments(X, X),
        "^rule: expected a Rule, got None": lambda: m.draw_moments(None, KEY, PARAMS, (), X, Y, PARAMS, 5),
        "^model: expected a Model, got Rule": lambda: m.example_moments(RULE, RULE, KEY, PARAMS, (), X, Y),
        "^key: expected one key, such as jax.random.key.0., got 0": lambda: m.draw_moments(
            RULE, 0, PARAMS, (), X, Y, PARAMS, 5
        ),
        "^reference: expected the exact gradients, got None": lambda: m.draw_moments(
            RULE, KEY, PARAMS, (), X, Y, None, 5
        ),
        r"^output: expected a floating-point array, got int32\[5, 2\]": lambda: loss.softmax_cross_entropy(
            jnp.zeros((5, 2), jnp.int32), Y
        ),
    },
)


def test_what_is_converted():
    assert metrics.cosine_similarity([1.0, 2], [2.0, 4]) == 1
    assert metrics.inner_product(np.array([1, 2], np.float64), np.array([3, 4], np.int16)) == 11
    assert metrics.inner_product({"w": True, "b": None}, {"w": 0.5, "b": None}) == 0.5
    assert loss.accuracy([[0.2, 0.8]], [[0, 1]]) == 1
