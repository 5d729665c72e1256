"""Bad input of rules, estimators, networks, training and data: arguments of the wrong kind."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lax_learning
from lax_learning.noise import normal
from tests.refusal import parametrize_cases, refuses

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

# What a type checker would refuse is asked for here.
ll: Any = lax_learning
data, estimators = ll.data, ll.estimators

KEY, W = jax.random.key(0), jnp.ones(2)
NETWORK = ll.mlp((3, 4, 2))
PARAMS = NETWORK.init(KEY)
X, Y = jnp.ones((5, 3)), jnp.zeros((5, 2))
DATA = data.Dataset(X, Y)


def value_and_grad(rule: Any, params: Any = PARAMS, x: Any = X, y: Any = Y, key: Any = KEY) -> Any:
    return lambda: rule.value_and_grad(key, params, x, y)


def train(splits: Any, rule: Any = None, optimizer: Any = None, **options: Any) -> Any:
    rule = ll.backprop(NETWORK, ll.squared_error) if rule is None else rule
    optimizer = optax.sgd(0.1) if optimizer is None else optimizer
    return lambda: ll.make_train(rule, optimizer, **{"num_updates": 1, "batch_size": 1, **options})(
        KEY, splits
    )


def wp(params: Any = W, key: Any = KEY, loss: Any = jnp.sum, **options: Any) -> Any:
    return lambda: estimators.weight_perturbation(loss, **{"sigma": 0.1, **options})(key, params)


def with_noise(drawn: Any, like: Any = W) -> Any:
    return wp(like, loss=lambda p: jnp.sum(jax.tree.leaves(p)[0]), noise=lambda key, like: drawn)


def reading(make: Any = ll.backprop, loss: Any = ll.squared_error, **options: Any) -> Any:
    return lambda: make(NETWORK, loss, **options).value_and_grad(KEY, PARAMS, X, Y)


BACKPROP = ll.backprop(NETWORK, ll.squared_error)
MODEL = ll.Model(lambda w, x: x @ w)
FLAGS = {
    "antithetic": lambda v: ll.node_perturbation(NETWORK, ll.squared_error, sigma=0.1, antithetic=v),
    "layerwise": lambda v: ll.node_perturbation(NETWORK, ll.squared_error, sigma=0.1, layerwise=v),
    "share_noise": lambda v: ll.node_perturbation(NETWORK, ll.squared_error, sigma=0.1, share_noise=v),
    "decay_bias": lambda v: ll.kolen_pollack(NETWORK, ll.squared_error, decay_bias=v),
    "learn": lambda v: ll.with_feedback(ll.dense_product, learn=v),
    "has_aux": lambda v: estimators.backprop(jnp.sum, has_aux=v),
    "has_aux ": lambda v: estimators.weight_perturbation(jnp.sum, sigma=0.1, has_aux=v),
    "has_aux  ": lambda v: estimators.forward_gradient(jnp.sum, has_aux=v),
    "has_aux   ": lambda v: estimators.spsa(jnp.sum, perturbation=lambda count: 0.1, has_aux=v),
}


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", ["no", 1, None, jnp.array(True)], ids=repr)
def test_flags(name, value):
    refuses(lambda: FLAGS[name](value), TypeError, f"^{name.strip()}: expected True or False, got ")


MAKERS = {
    "backprop": ll.backprop,
    "feedback_alignment": ll.feedback_alignment,
    "direct_feedback_alignment": ll.direct_feedback_alignment,
    "sign_symmetry": ll.sign_symmetry,
    "kolen_pollack": ll.kolen_pollack,
    "forward_gradient": ll.forward_gradient,
    "weight_perturbation": lambda n, f: ll.weight_perturbation(n, f, sigma=0.1),
    "node_perturbation": lambda n, f: ll.node_perturbation(n, f, sigma=0.1),
}


@pytest.mark.parametrize("name", ["backprop", "feedback_alignment", "direct_feedback_alignment"])
def test_arguments_of_a_rule_by_name(name):
    make = getattr(ll, name)
    for kind in ({"network": NETWORK}, {"model": MODEL}):
        assert type(make(**kind, loss=ll.squared_error)) is type(make(*kind.values(), ll.squared_error))
    refuses(lambda: make(loss=ll.squared_error), TypeError, "^network: expected a Network, .*got None")
    refuses(lambda: make(model=MODEL), TypeError, "^loss: expected a function .*got None")
    refuses(
        lambda: make(NETWORK, ll.squared_error, model=MODEL),
        TypeError,
        "^model: expected a Network or a Model, not both, got Model",
    )


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
        "updates": (train(DATA, num_updates=2**31), ValueError, "^num_updates: expected at most"),
        "init of two": (
            lambda: ll.make_train(
                ll.backprop(MODEL, ll.squared_error),
                optax.sgd(0.1),
                num_updates=1,
                batch_size=1,
                init=lambda key, x: W,
            ),
            TypeError,
            r"^init: expected the model's function key -> params, got a function of \(key, x\)",
        ),
        "absorb of one": (
            lambda: ll.make_train(
                ll.backprop(MODEL, ll.squared_error),
                optax.sgd(0.1),
                num_updates=1,
                batch_size=1,
                init=lambda key: W,
                absorb=lambda params: params,
            ),
            TypeError,
            r"^absorb: expected a function \(params, aux\) -> params, got a function of \(params\)",
        ),
        "tokens": (
            lambda: train(data.Splits(data.Dataset(X, np.full((5, 2), 2**40)), None, None))(),
            ValueError,
            f"^data.train.y: expected numbers that int32 can hold, got {2**40}",
        ),
        "masked": (
            lambda: train(data.Splits(data.Dataset(np.ma.ones((5, 3)), Y), None, None))(),
            TypeError,
            r"^data.train.x: expected an array of real numbers, got float64\[5, 3\]",
        ),
        "ensemble of text": (
            lambda: ll.ensemble(lambda key: 1.0)("keys"),
            TypeError,
            r"^args\[0\]: expected an array, got 'keys'",
        ),
        "ensemble of shapes": (
            lambda: ll.ensemble(lambda key: 1.0)(jax.ShapeDtypeStruct((2,), jnp.float32)),
            TypeError,
            r"^args\[0\]: expected an array, got ShapeDtypeStruct float32\[2\]",
        ),
        "ensemble that returns text": (
            lambda: ll.ensemble(lambda key: "a")(jax.random.split(KEY, 2)),
            TypeError,
            "^function: expected an array, got 'a'",
        ),
        "planted": (
            lambda: data.planted(10**12),
            ValueError,
            "^num_features, num_units: expected arrays of at most 2147483647 entries",
        ),
    }
)
def test_runs_ensembles_and_data(call, error, pattern):
    refuses(call, error, pattern)


CALLS_WITHOUT_KEY = {
    "backprop": lambda *args: estimators.backprop(jnp.dot)(*args),
    "weights": lambda *args: estimators.weight_perturbation(jnp.dot, sigma=0.1)(*args),
    "forward": lambda *args: estimators.forward_gradient(jnp.dot)(*args),
    "spsa": lambda *args: estimators.spsa(jnp.dot, perturbation=lambda count: 0.1)(*args, count=0),
}


@pytest.mark.parametrize("estimate", CALLS_WITHOUT_KEY.values(), ids=CALLS_WITHOUT_KEY)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_estimators_without_a_key(estimate, transform):
    refuses(lambda: transform(estimate)(W, W), TypeError, r"^key: expected one key, .*got float32\[2\]")


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_what_a_rule_is_made_of(make):
    refuses(lambda: make((3, 2), ll.squared_error), TypeError, r"^network: expected a Network, .*got tuple")
    refuses(
        lambda: make(NETWORK, "squared_error"), TypeError, "^loss: expected a function .*got 'squared_error'"
    )


def on_model(make: Any, state: Any = (), params: Any = W, x: Any = X) -> Any:
    return lambda: make(MODEL, ll.squared_error).value_and_grad(KEY, params, state, x, Y)


@parametrize_cases(
    {
        "sites": (lambda: ll.sites(NETWORK, W, X), TypeError, "^model: expected a Model, .*got Network"),
        "tapped": (lambda: ll.tapped(jnp.tanh), TypeError, "^model: expected a Model, .*got PjitFunction"),
        "text": (lambda: ll.sites(MODEL, W, "x"), TypeError, "^x: expected an array, got 'x'"),
        "no x": (lambda: ll.tapped(MODEL).shapes(W, None), ValueError, "^x: expected arrays .*got none"),
        "x of a rule": (on_model(ll.backprop, x="x"), TypeError, "^x: expected an array, got 'x'"),
        "params text": (
            lambda: ll.sites(MODEL, {"w": "a"}, X),
            TypeError,
            r"^params\['w'\]: expected an array, got 'a'",
        ),
        "params key": (
            on_model(ll.backprop, params=KEY),
            TypeError,
            r"^params: expected a floating-point parameter, got key<fry>\[\]",
        ),
        "key": (
            lambda: ll.backprop(MODEL, ll.squared_error).value_and_grad(0, W, (), X, Y),
            TypeError,
            "^key: expected one key, .*got 0",
        ),
        "no state": (
            on_model(ll.feedback_alignment, None),
            TypeError,
            "^state: expected the state of the rule's init.*got None",
        ),
        "no state ": (
            on_model(ll.direct_feedback_alignment, {}),
            TypeError,
            "^state: expected the state of the rule's init.*got dict",
        ),
        "loss": (lambda: ll.backprop(MODEL, 5), TypeError, "^loss: expected a function .*got 5"),
        "loss of one": (
            lambda: ll.backprop(MODEL, lambda output: output),
            TypeError,
            r"^loss: expected a function .*got a function of \(output\)",
        ),
        "apply of one": (
            lambda: ll.Model(lambda w: w),
            TypeError,
            r"^apply: expected a function .*got a function of \(w\)",
        ),
        "option": (
            lambda: ll.backprop(MODEL, ll.squared_error, scale="tutorial"),
            TypeError,
            "^scale: expected no such option for a Model, got 'tutorial'",
        ),
    }
)
def test_models(call, error, pattern):
    refuses(call, error, pattern)


TINY = {jnp.float16: 1e-9, jnp.float32: 1e-40, jnp.bfloat16: 1e-40}
SIGMAS = {
    "weights": lambda sigma, dtype: wp(jnp.ones(2, dtype), sigma=sigma)(),
    "central": lambda sigma, dtype: wp(jnp.ones(2, dtype), sigma=sigma, difference="central")(),
    "rule": lambda sigma, dtype: ll.weight_perturbation(
        ll.mlp((3, 2), dtype=dtype), ll.squared_error, sigma=sigma
    ).value_and_grad(KEY, ll.mlp((3, 2), dtype=dtype).init(KEY), X.astype(dtype), Y),
    "nodes": lambda sigma, dtype: ll.node_perturbation(
        ll.mlp((3, 2), dtype=dtype), ll.squared_error, sigma=sigma
    ).value_and_grad(KEY, ll.mlp((3, 2), dtype=dtype).init(KEY), X.astype(dtype), Y),
    "spsa": lambda sigma, dtype: estimators.spsa(jnp.sum, perturbation=lambda count: sigma)(
        KEY, jnp.ones(2, dtype), count=0
    ),
}


@pytest.mark.parametrize("name", SIGMAS)
@pytest.mark.parametrize("dtype", TINY)
def test_sigma_that_the_dtype_cannot_hold(name, dtype):
    called = r"perturbation\(count\)" if name == "spsa" else "sigma"
    dtype_name = jnp.dtype(dtype).name
    pattern = f"^{called}: expected a number that {dtype_name} can tell from 0, got {TINY[dtype]}".replace(
        "bfloat16", "(bfloat16|float32)"
    )
    refuses(lambda: SIGMAS[name](TINY[dtype], dtype), ValueError, pattern)
    pattern = f"^{called}: expected a number that (float32|{dtype_name}) can tell from infinity, got 1e"
    refuses(lambda: SIGMAS[name](1e39, dtype), ValueError, pattern)


@parametrize_cases(
    {
        "traced vector": (
            lambda: jax.jit(lambda s: wp(sigma=s)())(W),
            ValueError,
            r"^sigma: expected a real number, got float32\[2\]",
        ),
        "noise scalar": (with_noise(1.0), ValueError, r"^noise: expected shape \[2\], got \[\]"),
        "noise bool": (
            with_noise(W > 0),
            TypeError,
            r"^noise: expected an array of real numbers, got bool\[2\]",
        ),
        "noise complex": (
            with_noise(W + 1j),
            TypeError,
            "^noise: expected an array of real numbers, got complex",
        ),
        "noise text": (
            with_noise("signs"),
            TypeError,
            "^noise: expected an array of real numbers, got 'signs'",
        ),
        "noise structure": (
            with_noise([W]),
            ValueError,
            "^noise: expected the structure of what it is added to",
        ),
        "noise leaf": (
            with_noise({"a": W, "b": jnp.ones(3)}, {"a": W, "b": W}),
            ValueError,
            r"^noise\['b'\]: expected shape \[2\], got \[3\]",
        ),
        "normal of ints": (
            lambda: normal(KEY, {"a": jnp.arange(3)}),
            TypeError,
            r"^like\['a'\]: expected",
        ),
        "params int": (
            wp({"a": 1}),
            TypeError,
            r"^params\['a'\]: expected a floating-point array, got int32\[\]",
        ),
        "params complex": (wp({"a": 1j}), TypeError, r"^params\['a'\]: expected .*got complex64"),
        "params text": (wp(["weights"]), TypeError, r"^params\[0\]: expected .*got 'weights'"),
        "params function": (
            wp({"phi": jnp.tanh}),
            TypeError,
            r"^params\['phi'\]: expected .*got PjitFunction",
        ),
        "params bool": (wp(W > 0), TypeError, r"^params: expected a floating-point array, got bool\[2\]"),
        "loss_fn": (wp(loss="sum"), TypeError, "^loss_fn: expected a function .*got 'sum'"),
        "loss of nothing": (
            wp(loss=lambda w: w[:0]),
            ValueError,
            r"^loss_fn: expected the loss of at least one example, got float32\[0\]",
        ),
        "num_samples": (
            wp(num_samples=10**400),
            ValueError,
            "^num_samples: expected arrays of at most 2147483647 entries",
        ),
        "rate that is 0": (
            lambda: estimators.spall_gains(1e-50, 0.1),
            ValueError,
            "^a: expected a number that float32 can tell from 0, got 1e-50",
        ),
        "perturbation that is infinite": (
            lambda: estimators.spall_gains(0.1, 1e300),
            ValueError,
            "^c: expected a number that float32 can tell from infinity, got 1e[+]300",
        ),
        "loss of half precision": (
            wp(W.astype(jnp.bfloat16)),
            TypeError,
            r"^loss_fn: expected a loss in float32 or wider.*got bfloat16\[\]",
        ),
        "loss of half precision ": (
            lambda: estimators.spsa(jnp.sum, perturbation=lambda count: 0.1)(KEY, W.astype("half"), count=0),
            TypeError,
            r"^loss_fn: expected a loss in float32 or wider.*got float16\[\]",
        ),
        "loss matrix": (
            wp(loss=lambda w: jnp.ones((3, 2))),
            TypeError,
            r"^loss_fn: expected a scalar floating-point loss.*got float32\[3, 2\]",
        ),
        "loss list": (
            wp(loss=lambda w: [1.0]),
            TypeError,
            "^loss_fn: expected a scalar floating-point loss.*got list",
        ),
        "key": (
            wp(key="key"),
            TypeError,
            r"^key: expected one key, such as jax.random.key\(0\), got",
        ),
        "key int": (wp(key=0), TypeError, r"^key: expected one key.*got 0"),
        "keys": (wp(key=jax.random.split(KEY, 2)), ValueError, r"^key: expected one key.*got key<fry>\[2\]"),
        "perturbation": (
            lambda: estimators.spsa(jnp.sum, perturbation=0.1),
            TypeError,
            "^perturbation: expected a schedule, .*got 0.1",
        ),
        "count": (
            lambda: estimators.spsa(jnp.sum, perturbation=lambda count: 0.1)(KEY, W, count="3"),
            TypeError,
            "^count: expected .*got '3'",
        ),
    }
)
def test_estimators(call, error, pattern):
    refuses(call, error, pattern)


@parametrize_cases(
    {
        "mean": (
            reading(loss=lambda o, y: jnp.mean((o - y) ** 2)),
            ValueError,
            r"^loss: .*shape \[5\], got \[\]; leave out the mean",
        ),
        "elements": (
            reading(loss=optax.l2_loss),
            ValueError,
            r"^loss: .*got \[5, 2\]; sum or average over the axes",
        ),
        "pair": (
            reading(loss=lambda o, y: (o, {})),
            TypeError,
            "^loss: expected a floating-point array, got tuple",
        ),
        "x dict": (
            value_and_grad(BACKPROP, x={"a": X}),
            TypeError,
            "^x: expected an array of real numbers, got dict",
        ),
        "x text": (
            value_and_grad(BACKPROP, x="x"),
            TypeError,
            "^x: expected an array of real numbers, got 'x'",
        ),
        "x uint8": (value_and_grad(BACKPROP, x=np.ones((5, 3), "u1")), TypeError, r"^x: .*got uint8\[5, 3\]"),
        "y dict": (
            value_and_grad(BACKPROP, y={"a": Y}),
            TypeError,
            "^y: expected an array of real numbers, got dict",
        ),
        "params None": (value_and_grad(BACKPROP, None), TypeError, "^params: expected a sequence.*got None"),
        "params dict": (
            value_and_grad(BACKPROP, {"0": 1, "1": 2}),
            TypeError,
            "^params: expected a seq.*got dict",
        ),
        "layer": (
            value_and_grad(BACKPROP, (W, W)),
            ValueError,
            r"^params\[0\]: expected a dict .*got float32\[2\]",
        ),
        "w text": (
            value_and_grad(BACKPROP, ({"w": "w"}, PARAMS[1])),
            TypeError,
            r"^params\[0\]\['w'\]: expected .*got 'w'",
        ),
        "feedback None": (
            value_and_grad(
                ll.feedback_alignment(NETWORK, ll.squared_error), (PARAMS[0], {**PARAMS[1], "feedback": None})
            ),
            ValueError,
            r"^params\[1\]: expected the entry 'feedback', see init, got \['b', 'w'\]",
        ),
        "feedback_init": (
            reading(ll.direct_feedback_alignment, feedback_init=0.1),
            TypeError,
            "^feedback_init: expected an initialiser.*got 0.1",
        ),
        "deltas": (
            lambda: ll.pull_back(NETWORK, PARAMS, (X, jnp.ones((5, 4))), (Y,)),
            ValueError,
            "^deltas: expected 2 layers, got 1",
        ),
        "delta": (
            lambda: ll.pull_back(NETWORK, PARAMS, (X, jnp.ones((5, 4))), (Y, Y)),
            ValueError,
            r"^deltas\[0\]: expected shape \[5, 4\], got \[5, 2\]",
        ),
        "linear": (lambda: ll.with_feedback("dense"), TypeError, "^linear: expected a function.*got 'dense'"),
    }
)
def test_rules(call, error, pattern):
    refuses(call, error, pattern)


@parametrize_cases(
    {
        "widths": (lambda: ll.mlp(3), TypeError, "^widths: expected a sequence of ints, got 3"),
        "widths text": (lambda: ll.mlp("34"), TypeError, "^widths: expected a sequence of ints, got '34'"),
        "rnn widths": (lambda: ll.rnn(3, steps=2), TypeError, "^widths: expected a sequence of ints, got 3"),
        "activation": (
            lambda: ll.mlp((3, 4, 2), activation="relu"),
            TypeError,
            "^activation: expected a function of z, such as jax.nn.relu, got 'relu'",
        ),
        "activation None": (lambda: ll.mlp((3, 4, 2), activation=None), TypeError, "^activation: .*got None"),
        "activations": (
            lambda: ll.mlp((3, 4, 4, 2), activation=[jnp.tanh, 3]),
            TypeError,
            r"^activation\[1\]: expected a function.*got 3",
        ),
        "output": (
            lambda: ll.mlp((3, 2), output_activation="softmax"),
            TypeError,
            "^output_activation: .*'softmax'",
        ),
        "rnn output": (
            lambda: ll.rnn((3, 4, 2), steps=2, output_activation=None),
            TypeError,
            "^output_activation: .*got None",
        ),
        "w_init": (
            lambda: ll.dense(3, 2, w_init=0.1),
            TypeError,
            "^w_init: expected an initialiser.*got 0.1",
        ),
        "b_init": (
            lambda: ll.convolution(1, 2, 3, b_init=0),
            TypeError,
            "^b_init: expected an initialiser.*got 0",
        ),
        "recurrent_init": (
            lambda: ll.recurrent(3, 2, recurrent_init=None),
            TypeError,
            "^recurrent_init: .*got None",
        ),
        "dtype int": (
            lambda: ll.mlp((3, 2), dtype=int),
            TypeError,
            "^dtype: expected a floating-point dtype, got int",
        ),
        "dtype text": (lambda: ll.dense(3, 2, dtype="half-open"), TypeError, "^dtype: .*got 'half-open'"),
        "dtype None": (lambda: ll.recurrent(3, 2, dtype=None), TypeError, "^dtype: .*got None"),
        "padding": (lambda: ll.convolution(1, 2, "33"), TypeError, "^kernel: expected an int, got '3'"),
        "a layer": (
            lambda: ll.Network(ll.dense(3, 2), (3,)),
            TypeError,
            "^layers: expected a sequence of layers, .*got one Layer",
        ),
        "initialiser of two": (
            lambda: ll.mlp((3, 2), w_init=lambda key, shape: jnp.zeros(shape)),
            TypeError,
            r"^w_init: expected an initialiser .*got a function of \(key, shape\)",
        ),
        "initialiser of another shape": (
            lambda: ll.mlp((3, 2), w_init=lambda key, shape, dtype: jnp.zeros((2, 3))).init(KEY),
            ValueError,
            r"^w_init: expected shape \[3, 2\], got \[2, 3\]",
        ),
        "long sizes": (
            lambda: ll.dense(jnp.ones((9, 9)), 2),
            TypeError,
            r"^num_inputs: expected an int, got float32\[9, 9\]",
        ),
        "without_feedback": (
            lambda: ll.without_feedback(jnp.ones(2)),
            TypeError,
            r"^params\[0\]: expected a dict with the weights of a layer, got float32\[\]",
        ),
        "no layers": (
            lambda: ll.Network((), (3,)),
            TypeError,
            r"^layers: expected at least one layer.*got \[\]",
        ),
        "layers": (lambda: ll.Network((3,), (3,)), TypeError, "^layers: expected at least one layer"),
        "input_shape": (
            lambda: ll.Network(NETWORK.layers, 3),
            TypeError,
            "^input_shape: expected a seq.*got 3",
        ),
        "init": (lambda: NETWORK.init(0), TypeError, "^key: expected one key.*got 0"),
        "apply": (lambda: NETWORK.apply(None, X), TypeError, "^params: expected a sequence.*got None"),
        "batch": (
            lambda: ll.mlp((3, 4, 2), activation=lambda z: jnp.sum(z, axis=0)).apply(PARAMS, X),
            ValueError,
            r"^activation: expected one that keeps the batch, \[5, ...\], got \[4\]",
        ),
        "no array": (
            lambda: ll.mlp((3, 4, 2), activation=lambda z: None).apply(PARAMS, X),
            TypeError,
            "^activation: expected .*got None",
        ),
        "max_pool": (
            lambda: ll.max_pool(jnp.ones((4, 4, 1))),
            ValueError,
            r"^x: expected images .*got shape \[4, 4, 1\]",
        ),
        "widths in a set": (
            lambda: ll.mlp({3, 4}),
            TypeError,
            "^widths: expected a sequence of ints, got set",
        ),
        "w_init text": (
            lambda: ll.mlp((3, 2), w_init=lambda key, shape, dtype: "w").init(KEY),
            TypeError,
            "^w_init: expected a floating-point array, got 'w'",
        ),
        "b_init shape": (
            lambda: ll.convolution(1, 2, 3, b_init=lambda key, shape, dtype: jnp.ones(7)).init(KEY),
            ValueError,
            r"^b_init: expected shape \[2\], got \[7\]",
        ),
        "recurrent_init shape": (
            lambda: ll.recurrent(3, 4, recurrent_init=lambda key, shape, dtype: jnp.ones(2)).init(KEY),
            ValueError,
            r"^recurrent_init: expected shape \[4, 4\], got \[2\]",
        ),
        "feedback_init shape": (
            lambda: ll.direct_feedback_alignment(
                NETWORK, ll.squared_error, feedback_init=lambda key, shape, dtype: jnp.ones(3)
            ).init(KEY),
            ValueError,
            r"^feedback_init: expected shape \[4, 2\], got \[3\]",
        ),
        "flatten": (lambda: ll.flatten(1.0), ValueError, r"^x: expected shape \[batch, ...\], got \[\]"),
    }
)
def test_networks(call, error, pattern):
    refuses(call, error, pattern)


def test_an_error_in_a_network_says_in_which_layer():
    network = ll.Network((ll.dense(3, 4), ll.dense(5, 2)), (3,))
    with pytest.raises(ValueError, match=r"^w: expected shape \[4, outputs\], got \[5, 2\]") as caught:
        network.apply(network.init(KEY), X)
    assert caught.value.__notes__ == ["This happened in layers[1], which got inputs of shape [5, 4]."]


@parametrize_cases(
    {
        "pair": (
            train((X, Y)),
            TypeError,
            r"^data: expected Splits, such as Splits\(train=Dataset\(x, y\).*got tuple",
        ),
        "dataset": (train(DATA), TypeError, "^data: expected Splits.*got Dataset"),
        "pairs": (
            train(data.Splits((X, Y), None, None)),
            TypeError,
            r"^data.train: expected a Dataset.*got tuple",
        ),
        "fewer y": (
            train(data.Splits(data.Dataset(X, Y[:2]), DATA, DATA)),
            ValueError,
            "^data.train: expected as many y as x, got 2 and 5",
        ),
        "more y": (
            train(data.Splits(DATA, DATA, data.Dataset(X[:3], Y))),
            ValueError,
            "^data.test: expected as many y as x, got 5 and 3",
        ),
        "no data": (
            train(data.Splits(None, DATA, DATA)),
            ValueError,
            "^data.train: expected at least one.*got none",
        ),
        "text": (
            train(data.Splits(data.Dataset("x", Y), None, None)),
            TypeError,
            "^data.train.x: expected .*'x'",
        ),
        "scalar": (
            train(data.Splits(DATA, data.Dataset(1.0, Y), None)),
            ValueError,
            "^data.validation.x: expected",
        ),
        "evaluation": (
            train(data.Splits(DATA, None, None), evaluate=lambda key, params, data: {"a": "b"}),
            TypeError,
            r"^evaluate\['a'\]: expected an array, got 'b'",
        ),
        "absorb": (
            train(
                data.Splits(DATA, None, None),
                ll.backprop(ll.Model(lambda w, x: (x @ w, w), has_aux=True), ll.squared_error),
                init=lambda key: jnp.ones((3, 2)),
                absorb=lambda params, aux: None,
            ),
            ValueError,
            "^absorb: expected the structure of params",
        ),
        "absorb dtype": (
            train(
                data.Splits(DATA, None, None),
                ll.backprop(ll.Model(lambda w, x: (x @ w, w), has_aux=True), ll.squared_error),
                init=lambda key: jnp.ones((3, 2)),
                absorb=lambda params, aux: aux.astype(int),
            ),
            TypeError,
            r"^absorb: expected float32 as in params, got int32\[3, 2\]",
        ),
        "huge": (
            lambda: data.half_space(KEY, 3, sizes=(10**12, 0, 0)),
            ValueError,
            "^sizes: expected arrays of at most",
        ),
        "huge x": (
            lambda: data.relu_net(KEY, 10**12, sizes=(1, 0, 0)),
            ValueError,
            "^num_features: expected arrays of at most",
        ),
        "huge y": (
            lambda: data.one_hot([0], 10**10),
            ValueError,
            "^num_classes: expected arrays of at most",
        ),
        "negative count": (
            lambda: estimators.spall_gains(1.0, 1.0).perturbation(-1),
            ValueError,
            "^count: expected the number of updates done, at least 0, got -1",
        ),
        "not params": (
            lambda: ll.without_feedback((jnp.ones(3),)),
            TypeError,
            r"^params\[0\]: expected a dict with the weights of a layer, got float32\[3\]",
        ),
        "optimizer": (
            train(data.Splits(DATA, None, None), optimizer=0.1),
            TypeError,
            "^optimizer: .*got 0.1",
        ),
        "rule": (
            train(data.Splits(DATA, None, None), rule=jnp.sum),
            TypeError,
            "^rule: expected a Rule.*got",
        ),
        "evaluate of two": (
            train(data.Splits(DATA, None, None), evaluate=lambda params, data: 0),
            TypeError,
            r"^evaluate: expected a function .*got a function of \(params, data\)",
        ),
        "absorb without aux": (
            train(
                data.Splits(DATA, None, None),
                ll.backprop(MODEL, ll.squared_error),
                init=lambda key: jnp.ones((3, 2)),
                absorb=lambda params, aux: params,
            ),
            TypeError,
            "^absorb: expected None for a model without aux, got function",
        ),
        "ensemble": (lambda: ll.ensemble(3), TypeError, "^function: expected a function .*got 3"),
        "evaluate": (train(data.Splits(DATA, None, None), evaluate=3), TypeError, "^evaluate: .*got 3"),
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
def test_training_and_data(call, error, pattern):
    refuses(call, error, pattern)


def test_an_idx_file_of_more_axes_than_numpy_has(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes([0, 0, 8, 100]) + bytes([0, 0, 0, 1]) * 100 + b"x")
    refuses(lambda: data.read_idx(path), ValueError, "expected axes that NumPy can hold, got 100")


def test_what_is_converted():
    lists = [{k: np.asarray(v).tolist() for k, v in layer.items()} for layer in PARAMS]
    np.testing.assert_array_equal(NETWORK.apply(lists, X.tolist()), NETWORK.apply(PARAMS, X))
    without = ({**PARAMS[0], "b": None}, PARAMS[1])
    np.testing.assert_array_equal(NETWORK.apply(without, X), NETWORK.apply(PARAMS, X))  # biases start as 0
    np.testing.assert_array_equal(data.one_hot([2, 0], 3), [[0, 0, 1], [1, 0, 0]])
    assert ll.mlp(np.array([3, 2])).input_shape == (3,)
    assert wp(1.0, loss=lambda w: np.float64(2.0))()[0] == 2.0
