"""Bad input of training runs, ensembles, metrics and data."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lax_learning
from tests.refusal import refusals, refuses

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


test_training = refusals(
    values={
        "^num_updates: expected at least 1, got 0": train(num_updates=0),
        "^num_updates: expected at most": train(num_updates=2**31),
        "^batch_size: expected at least 1, got 0": train(batch_size=0),
        "^every: expected at least 1, got 0": train(every=0),
        r"^every: expected a divisor of num_updates \(6\), got 4": train(every=4),
        "^every: .*got 12": train(every=12),
        r"^batch_size: expected at most num_examples \(5\), got 6": train(batch_size=6),
        "^params: expected at least one param": train(init=lambda key: None),
        "^absorb: expected the structure of params": train(rule=WITH_AUX, absorb=lambda params, aux: None),
        "^data.train: expected as many y as x, got 2 and 5": of_train(y=Y[:2]),
        "^data.test: expected as many y as x, got 5 and 3": train(
            data.Splits(DATA, DATA, data.Dataset(X[:3], Y))
        ),
        "^data.train: expected at .*got none": train(data.Splits(None, DATA, DATA)),
        "^data.train: expected at least one .*got 0": of_train(X[:0], Y[:0]),
        "^data.validation.x: expected": train(data.Splits(DATA, data.Dataset(1.0, Y), None)),
        f"^data.train.y: expected numbers that int32 can hold, got {2**40}": of_train(
            y=np.full((5, 2), 2**40)
        ),
    },
    types={
        "^num_updates: expected an int": train(num_updates=1e3),
        "^optimizer: .*got 0.1": train(optimizer=0.1),
        "^rule: expected a Rule.*got": train(rule=jnp.sum),
        "^init: expected the model's function .*got float32": train(init=W),
        r"^init: expected the model's function key -> params, got a function of \(key, x\)": train(
            init=lambda key, x: W
        ),
        "^init: expected an array, got 'w'": train(init=lambda key: "w"),
        "^evaluate: .*got 3": train(evaluate=3),
        r"^evaluate: expected a function \(key, params, state, data\) .*got a function of \(key, par": train(
            evaluate=lambda key, params, data: 0
        ),
        r"^evaluate\['a'\]: expected an array, got 'b'": train(
            evaluate=lambda key, params, state, data: {"a": "b"}
        ),
        "^absorb: expected a function .*got None": train(rule=WITH_AUX),
        r"^absorb: expected a function \(params, aux\) -> params, got a function of \(params\)": train(
            absorb=lambda params: params
        ),
        "^absorb: expected None for a model without aux, got function": train(
            absorb=lambda params, aux: params
        ),
        r"^absorb: expected float32 as in params, got int32\[3, 2\]": train(
            rule=WITH_AUX, absorb=lambda params, aux: aux.astype(int)
        ),
        "^key: expected one key.*got 0": lambda: ll.make_train(
            BACKPROP, optax.sgd(0.1), init=lambda key: W, num_updates=1, batch_size=1
        )(0, SPLITS),
        r"^data: expected Splits, such as Splits\(train=.*got tuple": train((X, Y)),
        "^data: expected Splits.*got Dataset": train(DATA),
        r"^data.train: expected a Data.*got tup": train(data.Splits((X, Y), None, None)),
        "^data.train.x: expected .*'x'": of_train("x"),
        r"^data.train.x: expected an array of real numbers, got float64\[5, 3\]": of_train(
            np.ma.ones((5, 3))
        ),
    },
)


def double(*args):
    return jax.tree.map(lambda leaf: 2 * leaf, args)


axes = r"^args: expected leading axes"


test_ensembles = refusals(
    values={
        r"^in_axes: expected 0 or None.*\(1,\)": lambda: ll.ensemble(double, in_axes=(1,)),
        "^in_axes: .*0 for one": lambda: ll.ensemble(double, in_axes=(None,)),
        r"^in_axes: expected one entry for each of 2 arguments, got \(0,\)": lambda: ll.ensemble(
            double, in_axes=(0,)
        )(X, X),
        axes + r" of one size, at least one, got {'args\[0\]': 3, 'args\[1\]': 4}": lambda: ll.ensemble(
            double, in_axes=(0, 0)
        )(jnp.ones(3), jnp.ones(4)),
        axes: [
            lambda: ll.ensemble(double)({"a": jnp.ones(3), "b": jnp.ones(4)}),
            lambda: ll.ensemble(double)({}),
        ],
        "^in_axes: expected the structure of the arguments": lambda: ll.ensemble(double, in_axes=({"a": 0},))(
            {"b": jnp.ones(2)}
        ),
        "^in_axes: expected 0 or None.*got 1": lambda: ll.ensemble(double, in_axes=1),
        r"^args\[0\]: expected a leading axis of members, got a scalar": lambda: ll.ensemble(double)(
            jnp.ones(())
        ),
        "^number of members: expected at least 1, got 0": lambda: ll.ensemble(double)(jnp.ones((0, 2))),
        "^memory_budget: ": lambda: ll.ensemble(double, memory_budget=0),
        "^batch_size: ": lambda: ll.ensemble(double, batch_size=0),
    },
    types={
        "^function: expected a function .*got 3": lambda: ll.ensemble(3),
        "^progress: expected a function": lambda: ll.ensemble(double, progress=True),
        "^batch_size: ": lambda: ll.ensemble(double, batch_size=0.5),
        r"^args\[0\]: expected an array, got 'keys'": lambda: ll.ensemble(double)("keys"),
        r"^args\[0\]: expected an array, got ShapeDtypeStruct float32\[2\]": lambda: ll.ensemble(double)(
            jax.ShapeDtypeStruct((2,), jnp.float32)
        ),
        "^function: expected an array, got 'a'": lambda: ll.ensemble(lambda key: "a")(
            jax.random.split(KEY, 2)
        ),
    },
)


# Metrics of rules; those of arrays are in `test_bad_input_metrics`.

STACKED = jnp.arange(12.0).reshape(4, 3)
MOMENTS = metrics.stacked_moments(STACKED, jnp.ones(3))
MODEL = ll.mlp((3, 4, 2))
PARAMS, RULE = MODEL.init(KEY), ll.backprop(MODEL, ll.squared_error)
number = "^number of gradients: expected at least 3, got 2"
no_reference = "^reference: expected the exact gradients, got None"


test_metrics = refusals(
    values={
        number: [lambda: metrics.snr(STACKED[:2]), lambda: metrics.bias_variance(STACKED[:2], jnp.ones(3))],
        "^number of gradients: ": lambda: metrics.streamed_moments(lambda key: X, jax.random.split(KEY, 2)),
        r"^gradients: expected leaves with one leading axis of T, got .*\[\[4, 3\], \[3, 3\]\]": lambda: (
            metrics.snr((STACKED, STACKED[:3]))
        ),
        "^gradients: expected leaves": [lambda: metrics.snr(jnp.ones(())), lambda: metrics.snr({})],
        "^chunk_size: ": lambda: metrics.streamed_moments(lambda g: g, STACKED, chunk_size=0),
        "^num_samples: expected at least 3, got 2": lambda: metrics.draw_moments(
            RULE, KEY, PARAMS, (), X, Y, PARAMS, 2
        ),
        "^number of examples in x: expected at least 3, got 2": lambda: metrics.example_moments(
            MODEL, RULE, KEY, PARAMS, (), X[:2], Y[:2]
        ),
        "^variant: expected one of": lambda: metrics.snr(STACKED, variant="other"),
        "^epsilon: ": lambda: metrics.snr(STACKED, epsilon=0.0),
        no_reference: [
            lambda: metrics.bias_variance(STACKED),
            lambda: metrics.bias_variance(metrics.stacked_moments(STACKED)),
        ],
        "^reference: expected None, as the moments hold one": lambda: metrics.bias_variance(
            MOMENTS, jnp.ones(3)
        ),
    }
)


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


test_data = refusals(
    values={
        "^sizes: expected arrays of at most": lambda: data.half_space(KEY, 3, sizes=(10**12, 0, 0)),
        "^num_features.*: expected arrays of at most": lambda: data.relu_net(KEY, 10**12, sizes=(1, 0, 0)),
        "^num_classes: expected arrays of at most": lambda: data.one_hot([0], 10**10),
        "^num_features, num_units: expected arrays of at most 2147483647 entries": lambda: data.planted(
            10**12
        ),
        r"^teacher\[0\]\['w'\]: expected shape \[3, 2\], got \[4, 2\]": lambda: data.planted(3, 2).sample(
            KEY, data.planted(4, 2).init(KEY), 5
        ),
        "^labels: expected integers, got dtype float64": lambda: data.one_hot([0.5], 3),
    },
    types={
        "^sizes: expected numbers of .*got 30": lambda: data.half_space(KEY, sizes=30),
        "^key: expected one key.*got 0": lambda: data.half_space(0),
        "^dtype: .*got int": lambda: data.relu_net(KEY, dtype=int),
        "^dtype: .*got 'int8'": lambda: data.planted(dtype="int8"),
        "^step: expected an integer, got float32": lambda: (b := data.batches(4, 2)).next(b.init(KEY), 0.5),
        "^labels: expected integers outside of jit, got traced int32": lambda: jax.jit(
            lambda y: data.one_hot(y, 3)
        )(jnp.arange(3)),
        "^num_classes: expected an int, got 2.0": lambda: data.one_hot([0], 2.0),
        "^path: expected a path, got 3": lambda: data.read_idx(3),
    },
)


def test_an_idx_file_of_more_axes_than_numpy_has(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes([0, 0, 8, 100]) + bytes([0, 0, 0, 1]) * 100 + b"x")
    refuses(lambda: data.read_idx(path), ValueError, "expected axes that NumPy can hold, got 100")


def test_labels_in_a_list_are_converted():
    np.testing.assert_array_equal(data.one_hot([2, 0], 3), [[0, 0, 1], [1, 0, 0]])
