"""Bad input of training runs, ensembles, metrics and data."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lax_learning
from tests.refusal import parametrize_cases, refuses

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

# What a type checker would refuse is asked for here.
ll: Any = lax_learning
data, metrics = ll.data, ll.metrics

KEY, W = jax.random.key(0), jnp.ones((3, 2))
X, Y = jnp.ones((5, 3)), jnp.zeros((5, 2))
DATA = data.Dataset(X, Y)
SPLITS = data.Splits(DATA, DATA, DATA)
BACKPROP = ll.backprop(ll.Model(lambda w, x: x @ w), ll.squared_error)
WITH_AUX = ll.backprop(ll.Model(lambda w, x: (x @ w, w), has_aux=True), ll.squared_error)


def train(splits: Any = SPLITS, rule: Any = BACKPROP, optimizer: Any = None, **options: Any) -> Any:
    optimizer = optax.sgd(0.1) if optimizer is None else optimizer
    options = {"num_updates": 6, "batch_size": 1, "init": lambda key: W, **options}
    return lambda: ll.make_train(rule, optimizer, **options)(KEY, splits)


def of_train(x: Any = X, y: Any = Y) -> Any:
    return train(data.Splits(data.Dataset(x, y), None, None))


@parametrize_cases(
    {
        "num_updates": (train(num_updates=0), ValueError, "^num_updates: expected at least 1, got 0"),
        "num_updates float": (train(num_updates=1e3), TypeError, "^num_updates: expected an int"),
        "num_updates large": (train(num_updates=2**31), ValueError, "^num_updates: expected at most"),
        "batch_size": (train(batch_size=0), ValueError, "^batch_size: expected at least 1, got 0"),
        "every 0": (train(every=0), ValueError, "^every: expected at least 1, got 0"),
        "every": (train(every=4), ValueError, r"^every: expected a divisor of num_updates \(6\), got 4"),
        "every long": (train(every=12), ValueError, "^every: .*got 12"),
        "large batch": (
            train(batch_size=6),
            ValueError,
            r"^batch_size: expected at most num_examples \(5\), got 6",
        ),
        "optimizer": (train(optimizer=0.1), TypeError, "^optimizer: .*got 0.1"),
        "rule": (train(rule=jnp.sum), TypeError, "^rule: expected a Rule.*got"),
        "init": (train(init=W), TypeError, "^init: expected the model's function .*got float32"),
        "init of two": (
            train(init=lambda key, x: W),
            TypeError,
            r"^init: expected the model's function key -> params, got a function of \(key, x\)",
        ),
        "init of text": (train(init=lambda key: "w"), TypeError, "^init: expected an array, got 'w'"),
        "init of nothing": (train(init=lambda key: None), ValueError, "^params: expected at least one param"),
        "evaluate": (train(evaluate=3), TypeError, "^evaluate: .*got 3"),
        "evaluate of three": (
            train(evaluate=lambda key, params, data: 0),
            TypeError,
            r"^evaluate: expected a function \(key, params, state, data\) .*got a function of \(key, par",
        ),
        "evaluation": (
            train(evaluate=lambda key, params, state, data: {"a": "b"}),
            TypeError,
            r"^evaluate\['a'\]: expected an array, got 'b'",
        ),
        "no absorb": (train(rule=WITH_AUX), TypeError, "^absorb: expected a function .*got None"),
        "absorb of one": (
            train(absorb=lambda params: params),
            TypeError,
            r"^absorb: expected a function \(params, aux\) -> params, got a function of \(params\)",
        ),
        "absorb without aux": (
            train(absorb=lambda params, aux: params),
            TypeError,
            "^absorb: expected None for a model without aux, got function",
        ),
        "absorb": (
            train(rule=WITH_AUX, absorb=lambda params, aux: None),
            ValueError,
            "^absorb: expected the structure of params",
        ),
        "absorb dtype": (
            train(rule=WITH_AUX, absorb=lambda params, aux: aux.astype(int)),
            TypeError,
            r"^absorb: expected float32 as in params, got int32\[3, 2\]",
        ),
        "key": (
            lambda: ll.make_train(BACKPROP, optax.sgd(0.1), init=lambda key: W, num_updates=1, batch_size=1)(
                0, SPLITS
            ),
            TypeError,
            "^key: expected one key.*got 0",
        ),
        "pair": (train((X, Y)), TypeError, r"^data: expected Splits, such as Splits\(train=.*got tuple"),
        "dataset": (train(DATA), TypeError, "^data: expected Splits.*got Dataset"),
        "pairs": (
            train(data.Splits((X, Y), None, None)),
            TypeError,
            r"^data.train: expected a Data.*got tup",
        ),
        "fewer y": (of_train(y=Y[:2]), ValueError, "^data.train: expected as many y as x, got 2 and 5"),
        "more y": (
            train(data.Splits(DATA, DATA, data.Dataset(X[:3], Y))),
            ValueError,
            "^data.test: expected as many y as x, got 5 and 3",
        ),
        "no data": (train(data.Splits(None, DATA, DATA)), ValueError, "^data.train: expected at .*got none"),
        "no examples": (of_train(X[:0], Y[:0]), ValueError, "^data.train: expected at least one .*got 0"),
        "text": (of_train("x"), TypeError, "^data.train.x: expected .*'x'"),
        "scalar": (
            train(data.Splits(DATA, data.Dataset(1.0, Y), None)),
            ValueError,
            "^data.validation.x: expected",
        ),
        "tokens": (
            of_train(y=np.full((5, 2), 2**40)),
            ValueError,
            f"^data.train.y: expected numbers that int32 can hold, got {2**40}",
        ),
        "masked": (
            of_train(np.ma.ones((5, 3))),
            TypeError,
            r"^data.train.x: expected an array of real numbers, got float64\[5, 3\]",
        ),
    }
)
def test_training(call, error, pattern):
    refuses(call, error, pattern)


def double(*args):
    return jax.tree.map(lambda leaf: 2 * leaf, args)


axes = r"^args: expected leading axes"


@parametrize_cases(
    {
        "function": (lambda: ll.ensemble(3), TypeError, "^function: expected a function .*got 3"),
        "axis 1": (
            lambda: ll.ensemble(double, in_axes=(1,)),
            ValueError,
            r"^in_axes: expected 0 or None.*\(1,\)",
        ),
        "no axis": (lambda: ll.ensemble(double, in_axes=(None,)), ValueError, "^in_axes: .*0 for one"),
        "too few": (
            lambda: ll.ensemble(double, in_axes=(0,))(X, X),
            ValueError,
            r"^in_axes: expected one entry for each of 2 arguments, got \(0,\)",
        ),
        "unequal": (
            lambda: ll.ensemble(double, in_axes=(0, 0))(jnp.ones(3), jnp.ones(4)),
            ValueError,
            axes + r" of one size, at least one, got \{'args\[0\]': 3, 'args\[1\]': 4\}",
        ),
        "unequal leaves": (
            lambda: ll.ensemble(double)({"a": jnp.ones(3), "b": jnp.ones(4)}),
            ValueError,
            axes,
        ),
        "no leaves": (lambda: ll.ensemble(double)({}), ValueError, axes),
        "other structure": (
            lambda: ll.ensemble(double, in_axes=({"a": 0},))({"b": jnp.ones(2)}),
            ValueError,
            "^in_axes: expected the structure of the arguments",
        ),
        "one axis of 1": (lambda: ll.ensemble(double, in_axes=1), ValueError, "^in_axes: expected 0 or None"),
        "progress": (lambda: ll.ensemble(double, progress=True), TypeError, "^progress: expected a function"),
        "scalar": (
            lambda: ll.ensemble(double)(jnp.ones(())),
            ValueError,
            "^args\\[0\\]: expected a leading axis of members, got a scalar",
        ),
        "no members": (
            lambda: ll.ensemble(double)(jnp.ones((0, 2))),
            ValueError,
            "^number of members: expected at least 1, got 0",
        ),
        "budget": (lambda: ll.ensemble(double, memory_budget=0), ValueError, "^memory_budget: "),
        "batch of none": (lambda: ll.ensemble(double, batch_size=0), ValueError, "^batch_size: "),
        "half a batch": (lambda: ll.ensemble(double, batch_size=0.5), TypeError, "^batch_size: "),
        "text": (
            lambda: ll.ensemble(double)("keys"),
            TypeError,
            r"^args\[0\]: expected an array, got 'keys'",
        ),
        "shapes": (
            lambda: ll.ensemble(double)(jax.ShapeDtypeStruct((2,), jnp.float32)),
            TypeError,
            r"^args\[0\]: expected an array, got ShapeDtypeStruct float32\[2\]",
        ),
        "returns text": (
            lambda: ll.ensemble(lambda key: "a")(jax.random.split(KEY, 2)),
            TypeError,
            "^function: expected an array, got 'a'",
        ),
    }
)
def test_ensembles(call, error, pattern):
    refuses(call, error, pattern)


# Metrics of rules; those of arrays are in `test_bad_input_metrics`.

STACKED = jnp.arange(12.0).reshape(4, 3)
MOMENTS = metrics.stacked_moments(STACKED, jnp.ones(3))
MODEL = ll.mlp((3, 4, 2))
PARAMS, RULE = MODEL.init(KEY), ll.backprop(MODEL, ll.squared_error)
number = "^number of gradients: expected at least 3, got 2"
no_reference = "^reference: expected the exact gradients, got None"


@parametrize_cases(
    {
        "snr": (lambda: metrics.snr(STACKED[:2]), ValueError, number),
        "bias": (lambda: metrics.bias_variance(STACKED[:2], jnp.ones(3)), ValueError, number),
        "streamed": (
            lambda: metrics.streamed_moments(lambda key: X, jax.random.split(KEY, 2)),
            ValueError,
            "^number of gradients: ",
        ),
        "unequal": (
            lambda: metrics.snr((STACKED, STACKED[:3])),
            ValueError,
            r"^gradients: expected leaves with one leading axis of T, got shapes \[\[4, 3\], \[3, 3\]\]",
        ),
        "scalar": (lambda: metrics.snr(jnp.ones(())), ValueError, "^gradients: expected leaves"),
        "nothing": (lambda: metrics.snr({}), ValueError, "^gradients: expected leaves"),
        "chunk": (
            lambda: metrics.streamed_moments(lambda g: g, STACKED, chunk_size=0),
            ValueError,
            "^chunk_size: ",
        ),
        "draws": (
            lambda: metrics.draw_moments(RULE, KEY, PARAMS, (), X, Y, PARAMS, 2),
            ValueError,
            "^num_samples: expected at least 3, got 2",
        ),
        "examples": (
            lambda: metrics.example_moments(MODEL, RULE, KEY, PARAMS, (), X[:2], Y[:2]),
            ValueError,
            "^number of examples in x: expected at least 3, got 2",
        ),
        "variant": (lambda: metrics.snr(STACKED, variant="other"), ValueError, "^variant: expected one of"),
        "epsilon": (lambda: metrics.snr(STACKED, epsilon=0.0), ValueError, "^epsilon: "),
        "no reference": (lambda: metrics.bias_variance(STACKED), ValueError, no_reference),
        "no reference in moments": (
            lambda: metrics.bias_variance(metrics.stacked_moments(STACKED)),
            ValueError,
            no_reference,
        ),
        "two references": (
            lambda: metrics.bias_variance(MOMENTS, jnp.ones(3)),
            ValueError,
            "^reference: expected None, as the moments hold one",
        ),
    }
)
def test_metrics(call, error, pattern):
    refuses(call, error, pattern)


@pytest.mark.parametrize(
    "function",
    [metrics.inner_product, metrics.cosine_similarity, metrics.angle_degrees, metrics.relative_norm],
)
@pytest.mark.parametrize("other", [{"w": jnp.ones(3)}, {"w": jnp.ones(1)}, {"v": jnp.ones(2)}, jnp.ones(2)])
def test_unlike_trees(function, other):
    refuses(lambda: function({"w": jnp.ones(2)}, other), ValueError, r"^a(\['w'\])?: expected .* b,? ?.*got")


@pytest.mark.parametrize("reference", [jnp.ones(1), jnp.ones(4), jnp.ones(()), {"w": jnp.ones(3)}])
def test_unlike_reference(reference):
    refuses(
        lambda: metrics.bias_variance(STACKED, reference), ValueError, "^reference: expected .*the gradients"
    )


# Data.


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_data_of_half_precision_are_labelled_in_float32(dtype):
    drawn = data.relu_net(KEY, 16, num_units=50, sizes=(4000, 0, 0), dtype=dtype).train
    w_key, v_key, _ = jax.random.split(KEY, 3)
    w, v = (
        jax.random.uniform(key, shape, dtype, -1, 1).astype(float)
        for key, shape in ((w_key, (16, 50)), (v_key, (50, 2)))
    )
    labels = jnp.argmax(jax.nn.relu(drawn.x.astype(float) @ w) @ v, axis=-1)
    assert np.mean(jnp.argmax(drawn.y, axis=-1) == labels) > 0.999
    problem = data.planted(70_000, 1, dtype=dtype)  # whose sum of squares is beyond float16
    x, y = problem.sample(KEY, problem.init(KEY), 4)
    np.testing.assert_allclose(jnp.linalg.norm(x.astype(float), axis=1), 1, rtol=0.01)
    assert jnp.any(y)


@parametrize_cases(
    {
        "huge": (
            lambda: data.half_space(KEY, 3, sizes=(10**12, 0, 0)),
            ValueError,
            "^sizes: expected arrays of at most",
        ),
        "huge x": (
            lambda: data.relu_net(KEY, 10**12, sizes=(1, 0, 0)),
            ValueError,
            "^num_features.*: expected arrays of at most",
        ),
        "huge y": (lambda: data.one_hot([0], 10**10), ValueError, "^num_classes: expected arrays of at most"),
        "huge teacher": (
            lambda: data.planted(10**12),
            ValueError,
            "^num_features, num_units: expected arrays of at most 2147483647 entries",
        ),
        "sizes": (lambda: data.half_space(KEY, sizes=30), TypeError, "^sizes: expected numbers of .*got 30"),
        "half_space key": (lambda: data.half_space(0), TypeError, "^key: expected one key.*got 0"),
        "relu_net dtype": (lambda: data.relu_net(KEY, dtype=int), TypeError, "^dtype: .*got int"),
        "planted dtype": (lambda: data.planted(dtype="int8"), TypeError, "^dtype: .*got 'int8'"),
        "teacher": (
            lambda: data.planted(3, 2).sample(KEY, data.planted(4, 2).init(KEY), 5),
            ValueError,
            r"^teacher\[0\]\['w'\]: expected shape \[3, 2\], got \[4, 2\]",
        ),
        "step": (
            lambda: (b := data.batches(4, 2)).next(b.init(KEY), 0.5),
            TypeError,
            "^step: expected an integer, got float32",
        ),
        "labels": (
            lambda: data.one_hot([0.5], 3),
            ValueError,
            "^labels: expected integers, got dtype float64",
        ),
        "traced labels": (
            lambda: jax.jit(lambda y: data.one_hot(y, 3))(jnp.arange(3)),
            TypeError,
            "^labels: expected integers outside of jit, got traced int32",
        ),
        "num_classes": (lambda: data.one_hot([0], 2.0), TypeError, "^num_classes: expected an int, got 2.0"),
        "path": (lambda: data.read_idx(3), TypeError, "^path: expected a path, got 3"),
    }
)
def test_data(call, error, pattern):
    refuses(call, error, pattern)


def test_an_idx_file_of_more_axes_than_numpy_has(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes([0, 0, 8, 100]) + bytes([0, 0, 0, 1]) * 100 + b"x")
    refuses(lambda: data.read_idx(path), ValueError, "expected axes that NumPy can hold, got 100")


def test_labels_in_a_list_are_converted():
    np.testing.assert_array_equal(data.one_hot([2, 0], 3), [[0, 0, 1], [1, 0, 0]])
