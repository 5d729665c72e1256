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
PARAMS = jax.jit(MODEL.init)(KEY)
RULE = ll.backprop(MODEL, ll.squared_error)
X, Y = jnp.ones((5, 3)), jnp.zeros((5, 2))
MOMENTS = jax.jit(metrics.stacked_moments)((X, Y))

KINDS = (
    ("abc", "'abc'"),
    (X + 0j, r"complex64\[5, 3\]"),
    (KEY, r"key<fry>\[\]"),
    (jnp.tanh, ""),
    ({1.0}, "set"),
)
TAKING_ONE = {
    "a": lambda value: m.cosine_similarity({"w": value}, {"w": X}),
    "b": lambda value: m.relative_norm({"w": X}, {"w": value}),
    "gradients": lambda value: m.snr({"w": value}),
    "reference": lambda value: m.bias_variance({"w": X}, {"w": value}),
    "draw(x)": lambda value: m.streamed_moments(lambda x: {"w": value}, X),
    "params": lambda value: m.weight_alignment({"w": value}, {"w": X}),
    "feedback": lambda value: m.weight_alignment({"w": X}, {"w": value}),
}
LOSSES = [ll.squared_error, ll.softmax_cross_entropy, ll.accuracy, ll.balanced_accuracy]


@pytest.mark.parametrize("name", TAKING_ONE)
def test_leaves_of_wrong_kinds(name):
    call, at = TAKING_ONE[name], re.escape(name)
    # None is as in JAX a part of the structure.
    refuses(lambda: call(None), ValueError, f"^{'feedback' if name == 'params' else at}: expected")
    for value, got in KINDS:
        pattern = rf"^{at}\['w'\]: expected an array of real numbers, got .*{got}"
        refuses(lambda value=value: call(value), TypeError, pattern)
    pattern = rf"^{at}\['w'\]: expected a floating-point array, got int32\[5, 3\](\n|$)"
    refuses(lambda: call(X.astype(int)), TypeError, pattern)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_of_wrong_kinds(loss):
    for value, got in (*KINDS, (None, "None")):
        expected = f"expected an array of real numbers, got .*{got}"
        refuses(lambda value=value: loss(value, Y), TypeError, f"^output: {expected}")
        refuses(lambda value=value: loss(Y, value), TypeError, f"^y: {expected}")
    for labels in (np.zeros(5, int), jnp.zeros(5, jnp.uint8), [0, 1, 0, 1, 1]):
        pattern = (
            r"^y: expected one-hot labels of shape \[5, 2\] as in output, got integer labels u?int\d+\[5\]; "
            r"use jax.nn.one_hot\(y, 2\)$"
        )
        refuses(lambda y=labels: loss(Y, y), ValueError, pattern)
    for y in (jnp.zeros(5), jnp.zeros((5, 3)), jnp.zeros((1, 2))):
        pattern = rf"^y: expected shape \[5, 2\] as in output.*{re.escape(str(list(y.shape)))}"
        refuses(lambda y=y: loss(Y, y), ValueError, pattern)
    # integers that do not fit are not wrapped
    pattern = f"^y: expected numbers that int32 can hold, got {2**40}"
    refuses(lambda: loss(Y, np.full((5, 2), 2**40)), ValueError, pattern)
    output, y = [[0.2, 0.8], [0.6, 0.4]], [[0, 1], [1, 0]]
    np.testing.assert_array_equal(loss(output, y), loss(jnp.array(output), jnp.array(y)))


def of_draws(rule: Any = RULE, key: Any = KEY, reference: Any = PARAMS, number: int = 5) -> Any:
    return lambda: m.draw_moments(rule, key, PARAMS, (), X, Y, reference, number)


def of_examples(model: Any = MODEL, key: Any = KEY, x: Any = X, y: Any = Y) -> Any:
    return lambda: m.example_moments(model, RULE, key, PARAMS, (), x, y)


STACKED = jnp.arange(12.0).reshape(4, 3)


test_bad_input = refusals(
    values={
        "^a: expected at least one array, got {}": lambda: m.cosine_similarity({}, {}),
        r"^a: expected the structure of.*got PyTreeDef\({'w': \*}\)": lambda: m.inner_product({"w": X}, X),
        r"^a\['w'\]: expected shape \[5, 2\].*got \[5, 3\]": lambda: m.relative_norm({"w": X}, {"w": Y}),
        r"^trees\[1\]: expected the leaves \['0', '1'\] as in trees\[0\], got \['0'\]": lambda: m.by_path(
            m.cosine_similarity, (X, X), (X,), depth=1
        ),
        "^trees: expected one leaf at each path, got several at 'a/b'": lambda: m.by_path(
            m.relative_norm, *[{"a/b": X, "a": {"b": Y}}] * 2
        ),
        "^depth: expected .*, got 0": lambda: m.by_path(m.relative_norm, (X,), (X,), depth=0),
        "^feedback: expected at least one leaf, got none": lambda: m.weight_alignment({"w": X}, {"w": None}),
        r"^feedback: expected paths of.*got \['v'\]": lambda: m.weight_alignment({"w": X}, {"v": X}),
        r"^feedback\['w'\]: expected shape.*got \[5, 2\]": lambda: m.weight_alignment({"w": X}, {"w": Y}),
        "^gradients: expected stacked gradients or.*got a dict of Moments": lambda: m.snr(MOMENTS.parts()),
        r"^x, d: expected shapes \[T,.*got \(5, 3\) and \(4, 2\)": lambda: m.product_moments(X, Y[1:]),
        "^gradients: expected leaves with one leading axis": [
            lambda: m.snr([1.0, 2.0, 3.0]),
            lambda: m.snr({}),
            lambda: m.snr((STACKED, STACKED[:3])),
        ],
        "^number of gradients: expected at least 3, got 2": [
            lambda: m.snr(STACKED[:2]),
            lambda: m.bias_variance(STACKED[:2], jnp.ones(3)),
            lambda: m.streamed_moments(lambda key: X, jax.random.split(KEY, 2)),
        ],
        "^chunk_size: ": lambda: m.streamed_moments(lambda g: g, STACKED, chunk_size=0),
        "^num_samples: expected at least 3, got 2": of_draws(number=2),
        "^variant: expected one of": lambda: m.snr(STACKED, variant="other"),
        "^reference: expected the exact gradients, got None": [
            lambda: m.bias_variance(STACKED),
            lambda: m.bias_variance(m.stacked_moments(STACKED)),
        ],
        "^reference: expected None, as the moments hold one": lambda: m.bias_variance(
            m.stacked_moments(STACKED, jnp.ones(3)), jnp.ones(3)
        ),
        "^reference: expected .*the gradients": [
            lambda: m.bias_variance(STACKED, jnp.ones(1)),
            lambda: m.bias_variance(STACKED, {"w": jnp.ones(3)}),
        ],
        r"^draw\(x\): expected at least one array, got \(\)": lambda: m.streamed_moments(lambda x: (), X),
        r"^key: expected one key, .*got key<fry>\[2\]": of_examples(key=jax.random.split(KEY)),
        r"^y: expected a leading axis of 5 examples as in x, got shapes \[\[4, 2\]\]": of_examples(y=Y[:4]),
        r"^output: expected shape \[batch, ...\], got \[\]": lambda: loss.squared_error(1.0, 1.0),
        r"^output: expected shape \[batch, ..., classes\], got \[5\]": lambda: loss.accuracy(
            jnp.zeros(5), jnp.zeros(5)
        ),
        r"^output: expected at least two classes, got shape \[5, 1\]": [
            lambda: loss.balanced_accuracy(jnp.ones((5, 1)), jnp.ones((5, 1))),
            lambda: loss.softmax_cross_entropy(jnp.ones((5, 1)), jnp.ones((5, 1))),
        ],
    },
    types={
        "^gradients: expected an array of.*got float64": lambda: m.snr(np.ma.masked_less(np.eye(3, 2), 1)),
        "^metric: expected a function of .*pytrees, got 'cosine'": lambda: m.by_path("cosine", (X,), (X,)),
        r"^draw: expected a function x -> gradients, got float32\[5, 3\]": lambda: m.streamed_moments(X, X),
        "^rule: expected a Rule, got None": of_draws(None),
        "^model: expected a Model, got Rule": of_examples(RULE),
        "^reference: expected the exact gradients, got None": of_draws(reference=None),
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
