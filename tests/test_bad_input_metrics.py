"""Bad input to metrics and losses: as in `test_bad_input_options`, the errors that a user sees."""

# pyright: reportArgumentType=false

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll
from lax_learning import metrics
from tests.refusal import each, refusals, refuses

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

m: Any = metrics
KEY = jax.random.key(0)
MODEL = ll.mlp((3, 4, 2))
PARAMS = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), jax.eval_shape(MODEL.init, KEY))
RULE = ll.backprop(MODEL, ll.squared_error)
X, Y = np.ones((5, 3), "f"), np.zeros((5, 2), "f")

NO_NUMBERS = {"'abc'": "abc", "complex": X.astype("F"), r"key<fry>\[\]": KEY, "": jnp.tanh, "set": {1.0}}
TAKING_ONE = {
    "a": lambda value: m.cosine_similarity({"w": value}, {"w": X}),
    "b": lambda value: m.relative_norm({"w": X}, {"w": value}),
    "gradients": lambda value: m.snr({"w": value}),
    "reference": lambda value: m.bias_variance({"w": X}, {"w": value}),
    "draw(x)": lambda value: m.streamed_moments(lambda x: {"w": value}, X),
    "params": lambda value: m.weight_alignment({"w": value}, {"w": X}),
    "feedback": lambda value: m.weight_alignment({"w": X}, {"w": value}),
}


@pytest.mark.parametrize("name", TAKING_ONE)
def test_leaves_of_wrong_kinds(name):
    call, at = TAKING_ONE[name], re.escape(name)
    # None is as in JAX a part of the structure.
    refuses(partial(call, None), ValueError, f"^{'feedback' if name == 'params' else at}: expected")
    for got, value in NO_NUMBERS.items():
        pattern = rf"^{at}\['w'\]: expected an array( of real numbers)?, got .*{got}"
        refuses(partial(call, value), TypeError, pattern)
    pattern = rf"^{at}\['w'\]: expected a floating-point array, got int32\[5, 3\](\n|$)"
    refuses(partial(call, np.int32(X)), TypeError, pattern)


@pytest.mark.parametrize("name", ["squared_error", "softmax_cross_entropy", "accuracy", "balanced_accuracy"])
def test_losses_of_wrong_kinds(name):
    loss = getattr(ll, name)
    for got, value in {**NO_NUMBERS, "None": None}.items():
        pattern = f": expected an array of real numbers, got .*{got}"
        refuses(partial(loss, value, Y), TypeError, "^output" + pattern)
        refuses(partial(loss, Y, value), TypeError, "^y" + pattern)
    labels = r"one-hot labels of .* integer labels u?int\d+\[5\]; use jax.nn.one_hot\(y, 2\)$"
    shape = r"shape \[5, 2\] as in output, got "
    for y, expected in (
        *((of, labels) for of in (np.zeros(5, int), np.zeros(5, np.uint8), [0, 1, 0, 1, 1])),
        *((np.zeros(of), shape + re.escape(str(list(of)))) for of in ((5,), (5, 3), (1, 2))),
        (np.full((5, 2), 2**40), f"numbers that int32 can hold, got {2**40}"),  # which are not wrapped
    ):
        refuses(partial(loss, Y, y), ValueError, f"^y: expected {expected}")
    output, y = [[0.2, 0.8], [0.6, 0.4]], [[0, 1], [1, 0]]
    np.testing.assert_array_equal(*jax.jit(lambda: (loss(output, y), loss(np.array(output), np.array(y))))())


def of_draws(reference: Any, number: int) -> Any:
    return partial(m.draw_moments, RULE, KEY, PARAMS, (), X, Y, reference, number)


def measuring(metric: Any, rule: Any, y: Any = Y) -> Any:
    return in_trace(lambda: metric(MODEL, rule, KEY, PARAMS, (), X, y))


in_trace: Any = partial(partial, jax.eval_shape)  # the same call, for which nothing is compiled
frozen: Any = partial(m.train_only, MODEL)
STACKED = np.arange(12, dtype="f").reshape(4, 3)
ONES, EMPTY, ONE_CLASS = np.ones(3), np.zeros(5), np.ones((5, 1))
alignment, bias_variance, by_path, snr = m.weight_alignment, m.bias_variance, m.by_path, m.snr
test_structures = refusals(
    values={
        "^a: expected at least one array, got {}": partial(m.cosine_similarity, {}, {}),
        r"^a: expected the structure of.*got PyTreeDef\({'w': \*}\)": partial(m.inner_product, {"w": X}, X),
        r"^a\['w'\]: expected shape \[5, 2\].*got \[5, 3\]": partial(m.relative_norm, {"w": X}, {"w": Y}),
        r"^trees\[1\]: expected .*'1'\] as in trees\[0\], got \['0'\]": partial(
            by_path, m.relative_norm, (X, X), (X,)
        ),
        "^trees: expected one leaf .*got several at 'a/b'": partial(
            by_path, jnp.exp, {"a/b": X, "a": {"b": Y}}
        ),
        "^feedback: expected at least one array, got {}": partial(alignment, {"w": X}, {"w": None}),
        r"^feedback: expected paths of.*got \['v'\]": partial(alignment, {"w": X}, {"v": X}),
        r"^feedback\['w'\]: expected shape.*got \[5, 2\]": partial(alignment, {"w": X}, {"w": Y}),
        r"^x, d: expected shapes \[T,.*got \(5, 3\) and \(4, 2\)": partial(m.product_moments, X, Y[1:]),
        "^gradients: .*got a dict of Moments": in_trace(lambda: snr(m.stacked_moments((X, Y)).parts())),
        "^gradients: expected leaves with the same leading axis": each(
            snr, [1.0, 2.0, 3.0], (STACKED, STACKED[:3])
        ),
        "^number of samples: expected at least 3, got 2": partial(m.pairwise_cosine, STACKED[:2]),
        "^number of gradients: expected at least 3, got 2": [
            partial(snr, STACKED[:2]),
            partial(bias_variance, STACKED[:2], ONES),
            partial(m.streamed_moments, lambda key: X, jax.random.split(KEY, 2)),
        ],
        "^num_samples: expected at least 3, got 2": of_draws(PARAMS, 2),
        "^reference: expected the exact gradients, got None": [
            partial(bias_variance, STACKED),
            in_trace(lambda: bias_variance(m.stacked_moments(STACKED))),
        ],
        "^reference: expected None, as Moments contain": in_trace(
            lambda: bias_variance(m.stacked_moments(STACKED, ONES), X)
        ),
        "^reference: expected .*the gradients": [
            partial(bias_variance, STACKED, wrong) for wrong in (np.ones(1), {"w": ONES})
        ],
        r"^draw\(x\): expected at least one array, got \(\)": partial(m.streamed_moments, lambda x: (), X),
        r"^y: expected a leading axis of 5 examples as in x, got shapes \[\[4, 2\]\]": measuring(
            m.example_moments, RULE, Y[:4]
        ),
        r"^signals.deltas: expected a dict with the entries \['0/w', '1/w'\]": measuring(
            m.example_moments, RULE._replace(signals=lambda *_: ll.Signals({"0/b": ONES}))
        ),
        "^rule: expected a rule with teaching signals, got one without": measuring(
            m.depth_scales, ll.weight_perturbation(MODEL, ll.squared_error, sigma=0.1)
        ),
        r"^rule: expected signals at the taps of model, .*, got \[": measuring(
            m.depth_scales, ll.backprop(frozen("1/*"), ll.squared_error)
        ),
        "^trainable: expected to select a parameter": in_trace(
            lambda: ll.backprop(frozen("2"), ll.squared_error).value_and_grad(KEY, PARAMS, (), X, Y)
        ),
        "^error: expected the structure of b": partial(m.resolved_cosine, [X], [X], X),
        r"^losses: expected shape \[n\] with n >= 2": each(
            partial(m.steps_to_decrease, decrease=1.0), [2.0], X
        ),
        "^steps: expected shape": partial(m.steps_to_decrease, [2.0, 1.0], 0.5, [0.0]),
        r"^output: expected shape \[batch, ...\], got \[\]": partial(ll.squared_error, 1.0, 1.0),
        r"^output: expected shape \[batch, ..., classes\], got \[5\]": partial(ll.accuracy, EMPTY, EMPTY),
        r"^output: expected at least two classes, got shape \[5, 1\]": [
            partial(loss, ONE_CLASS, ONE_CLASS) for loss in (ll.balanced_accuracy, ll.softmax_cross_entropy)
        ],
    },
    types={
        "^gradients: expected an array, got float64": partial(snr, np.ma.masked_less(np.eye(3, 2), 1)),
        "^reference: expected the exact gradients, got None": of_draws(None, 5),
        "^output: expected a floating.*, got int32": partial(
            ll.softmax_cross_entropy, np.zeros((5, 2), int), Y
        ),
    },
)


def test_what_is_converted():
    pairs: Any = (
        ([1.0, 2], [2.0, 4]), (np.array([1, 2], np.float64), np.array([3, 4], np.int16)),
        ({"w": True, "b": None}, {"w": 0.5, "b": None}),
    )  # fmt: skip
    assert jax.jit(lambda: [metrics.inner_product(*pair) for pair in pairs])() == [10, 11, 0.5]
