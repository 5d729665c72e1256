"""Bad input of models, rules, estimators, training, ensembles and data: every message names the argument.

The checks of annotations that `conftest` adds are off here: these are the errors that a user sees.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.core import Tracer

import lax_learning
from lax_learning.noise import normal
from tests import registry
from tests.compare import slow_but
from tests.refusal import refusals, refuses

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

# What a type checker would refuse is asked for here.
ll: Any = lax_learning
data, estimators, squared_error = ll.data, ll.estimators, ll.squared_error

KEY: Any = jax.random.key(0)
W = jnp.ones(2)
MLP, MODEL, SGD = ll.mlp((3, 4, 2)), ll.Model(lambda w, x: x @ w), optax.sgd(0.1)
X: Any = jnp.ones((5, 3))
Y: Any = jnp.zeros((5, 2))


def params_of(model: Any) -> Any:
    """Params without drawing them."""
    like = jax.eval_shape(model.init, KEY)
    return jax.tree.map(
        lambda leaf: np.linspace(-1, 1, leaf.size, dtype=leaf.dtype).reshape(leaf.shape), like
    )


PARAMS = params_of(MLP)
FEEDBACK: dict[str, Any] = {
    "fa": ll.feedback_alignment,
    "dfa": ll.direct_feedback_alignment,
    "frsf": partial(ll.sign_symmetry, magnitude="fixed"),
    "kp": partial(ll.kolen_pollack, optimizer=SGD),
}


def drawn_feedback(value: Any) -> Any:
    made = [of(MLP, squared_error, feedback_init=lambda key, like: value) for of in FEEDBACK.values()]
    return [partial(rule.init, KEY, PARAMS, X) for rule in made]


gains, node = estimators.spall_gains, partial(ll.node_perturbation, MLP, squared_error)
wp_estimator = partial(estimators.weight_perturbation, jnp.sum)
test_options = refusals(
    values={
        "^num_samples: expected arrays of at most": lambda: wp_estimator(sigma=0.1, num_samples=10**400),
        "^share_noise: expected False with batch=True.*got True": lambda: node(
            sigma=0.1, batch=True, share_noise=True
        ),
        "^a: expected a number that float32 can tell from 0, got 1e-50": lambda: gains(a=1e-50, c=1.0),
        "^count: .*updates done, at least 0, got -1": lambda: gains(a=1.0, c=1.0).perturbation(-1),
        r"^feedback_init: expected shape \[4, 2\], got \[3\]": drawn_feedback(np.ones(3)),
    },
    types={"^feedback_init: expected a floating-point array, got 'w'": drawn_feedback("w")},
)


@pytest.mark.parametrize("name", FEEDBACK)
def test_feedback(name):
    rule = FEEDBACK[name](MLP, squared_error)
    state = rule.init(KEY, PARAMS, X)
    structure = ": expected (the structure of params|a dict with the entries)"
    other = jax.tree.map(lambda leaf: np.ones((7, *leaf.shape)), state.feedback)
    nothing = jax.tree.map(lambda leaf: None, PARAMS)
    cases = [(other, r".*: expected shape .*got \[7,"), (None, structure)]
    cases += [(PARAMS[:1], structure), ("feedback", structure)]
    if name != "dfa":
        cases.append((nothing, ": expected an array at '1/w', through which errors pass, got None"))
    for wrong, expected in cases:
        given = state._replace(feedback=wrong)
        call = partial(rule.value_and_grad, KEY, PARAMS, given, X, Y)
        refuses(call, ValueError, "^state.feedback" + expected)
    for wrong in (None, (), {}, PARAMS):
        call = partial(rule.value_and_grad, KEY, PARAMS, wrong, X, Y)
        refuses(call, TypeError, "^state: expected the state of the rule's init.*got ")


TINY = {jnp.float16: 1e-9, jnp.bfloat16: 1e-40}


def half(make: Any, sigma: Any, dtype: Any) -> Any:
    model = ll.mlp((3, 2), dtype=dtype)
    return make(model, squared_error, sigma=sigma).value_and_grad(KEY, params_of(model), (), X, Y)


SIGMAS = {
    "weights": lambda sigma, dtype: wp_estimator(sigma=sigma)(KEY, np.ones(2, dtype)),
    "rule": partial(half, ll.weight_perturbation),
    "nodes": partial(half, ll.node_perturbation),
    "spsa": lambda sigma, dtype: estimators.spsa(jnp.sum, perturbation=lambda count: sigma)(
        KEY, np.ones(2, dtype), count=0
    ),
}


@pytest.mark.parametrize(("name", "dtype"), [*((n, jnp.bfloat16) for n in SIGMAS), ("rule", jnp.float16)])
def test_sigma_that_the_dtype_cannot_hold(name, dtype):
    called = r"perturbation\(count\)" if name == "spsa" else "sigma"
    dtypes = {jnp.bfloat16: "(bfloat16|float32)"}.get(dtype, jnp.dtype(dtype).name)
    for sigma, limit in ((TINY[dtype], f"{dtypes} can tell from 0"), (1e39, f"(float32|{dtypes}) can tell")):
        pattern = f"^{called}: expected a number that {limit}"
        refuses(lambda s=sigma: SIGMAS[name](s, dtype), ValueError, pattern)


# Own networks.

NETWORKS = {
    "mlp": (partial(ll.mlp, (3, 4, 2)), (3,)),
    "convnet": (partial(ll.convnet, (4, 4, 1), (2,), (3, 2)), (4, 4, 1)),
    "rnn": (partial(ll.rnn, (3, 4, 2)), (6, 3)),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_what_a_network_gets(kind):
    make, shape = NETWORKS[kind]
    model, x = make(), np.ones((5, *shape))
    params = params_of(model)
    names = r"batch, steps, 3" if kind == "rnn" else ", ".join(["batch", *map(str, shape)])
    a_dict = r"^params\[0\]: expected a dict with the entry 'w', got "
    cases: list[tuple[Any, Any, Any, str]] = [
        (params, x[0], ValueError, rf"^x: expected shape \[{names}\], got \["),
        (params, x[..., None], ValueError, rf"^x: expected shape \[{names}\], got \["),
        (params, np.concatenate([x, x], -1), ValueError, rf"^x: expected shape \[{names}\], got \["),
        (params, "x", TypeError, "^x: expected an array of real numbers, got 'x'"),
        (None, x, TypeError, "^params: expected a sequence with the weights.*got None"),
        ("w", x, TypeError, "^params: expected a sequence with the weights.*got 'w'"),
        ({"0": 1}, x, TypeError, "^params: expected a sequence with the weights.*got dict"),
        (params[:1], x, ValueError, f"^params: expected {len(params)} layers, got 1"),
        ((W, *params[1:]), x, ValueError, a_dict + r"float32\[2\]"),
        (({"b": W}, *params[1:]), x, ValueError, a_dict + r"\['b'\]"),
    ]
    for name, leaf in params[0].items():
        for wrong, error, expected in (
            (np.ones((7, *leaf.shape)), ValueError, r"shape \[.*\], got \["),
            (leaf.ravel()[:1], ValueError, r"shape \[.*\], got \["),
            ("w", TypeError, ".*got 'w'"),
            (leaf.astype(int), TypeError, "a floating.*got int"),
        ):
            given = ({**params[0], name: wrong}, *params[1:])
            cases.append((given, x, error, rf"^params\[0\]\['{name}'\]: expected {expected}"))
    for given, inputs, error, pattern in cases:
        refuses(partial(model.apply, given, inputs), error, pattern)


def drawing(value: Any) -> Any:
    made = [make(w_init=lambda key, shape, dtype: value) for make, _ in NETWORKS.values()]
    return [partial(model.init, KEY) for model in made]


image = partial(ll.convnet, channels=(2,), widths=(2,))
test_networks = refusals(
    values={
        "^widths: expected at least an input and an output": lambda: ll.mlp((3,)),
        "^widths: expected at least an input, a recurrent and an output": lambda: ll.rnn((3, 2)),
        "^activation: expected 2, one per.*got 1": lambda: ll.mlp((3, 4, 4, 2), activation=[jnp.tanh]),
        r"^input_shape: expected \(height, width, channels\), got \(4, 4\)": lambda: image((4, 4)),
        "^padding: expected one of .*, got 'same'": lambda: image((4, 4, 1), padding="same"),
        "^kernel, pool: .*room for layer 0, .*got input_shape": lambda: image(
            (2, 2, 1), kernel=5, padding="VALID"
        ),
        r"^w_init: expected shape \[.*\], got \[9\]": drawing(np.ones(9)),
    },
    types={"^w_init: expected a floating-point array, got 'w'": drawing("w")},
)


def test_what_is_converted():
    output = MLP.apply(PARAMS, X)
    lists = [{k: v.tolist() for k, v in layer.items()} for layer in PARAMS]
    np.testing.assert_array_equal(MLP.apply(lists, X.tolist()), output)
    np.testing.assert_array_equal(MLP.apply(PARAMS, np.ones((5, 3), np.uint8)), output)
    no_bias = MLP.apply(({**PARAMS[0], "b": 0 * PARAMS[0]["b"]}, PARAMS[1]), X)
    np.testing.assert_array_equal(MLP.apply(({**PARAMS[0], "b": None}, PARAMS[1]), X), no_bias)
    assert jax.eval_shape(ll.mlp(np.array([3, 2])).init, KEY)[0]["w"].shape == (3, 2)
    assert wp_estimator(sigma=0.1)(KEY, 1.0)[0] == 1.0
    np.testing.assert_array_equal(data.one_hot([2, 0], 3), [[0, 0, 1], [1, 0, 0]])


# What goes into a rule.

RULES: dict[str, Any] = registry.RULES
TAKING = (
    "node_perturbation", "spsa", "direct_feedback_alignment", "decorrelated_feedback_alignment", "backprop",
    "weight_perturbation", "forward_gradient", "forward_gradient_activities", "feedback_alignment",
    "sign_symmetry_unit", "kolen_pollack",
)  # fmt: skip
INTEGERS = jax.tree.map(jnp.int32, PARAMS)


@pytest.mark.parametrize("name", slow_but(TAKING[:4], TAKING))
def test_what_a_rule_gets(name):
    rule = RULES[name](MLP, squared_error)
    state = rule.init(KEY, PARAMS, X)
    start, good = rule.init, {"key": KEY, "params": PARAMS, "x": X}

    def run(key, params, x, y=Y):
        return rule.value_and_grad(key, params, state, x, y)

    def one(key, params, x):
        return rule.signals(key, params, state, x, Y)

    a_batch = "arrays with one leading axis of examples, got"
    both = (
        ("key", 0, TypeError, r"one key, such as jax.random.key\(0\), got 0"),
        ("key", jax.random.split(KEY), ValueError, r"one key.*got key<fry>\[2\]"),
        ("params", None, ValueError, "at least one parameter, got an empty"),
        ("params", INTEGERS, TypeError, "a floating-point .*'0/b', got int32"),
        ("params", ({"w": "w"}, {}), TypeError, "an array, got 'w'"),
        ("x", "x", TypeError, "an array, got 'x'"),
        ("x", X[:0], ValueError, "at least one example, got 0"),
        *(("x", wrong, ValueError, a_batch) for wrong in (None, 1.0, {"a": X, "b": X[:2]})),
    )
    cases: Any = (
        *((of, *case) for of in (start, run) for case in both),
        (run, "params", PARAMS[:1], ValueError, "2 layers, got 1"),
        (run, "x", np.ones((5, 4)), ValueError, r"shape \[batch, 3\], got \[\d, 4\]"),
        (run, "y", Y[:4], ValueError, r"5 examples as in x, got float32\[4, 2\]"),
        (run, "y", Y + 1j, TypeError, "an array of real numbers, got complex64"),
        *((run, "y", wrong, TypeError, "an array.*, got") for wrong in ("y", {"a": Y})),
        *([(one, "x", X, ValueError, "a batch of one example, got 5")] if rule.signals else []),
    )
    for call, option, wrong, error, expected in cases:
        at = r"(\[0\]\['w'\])?" if option == "params" else ""
        refuses(partial(call, **{**good, option: wrong}), error, f"^{option}{at}: expected {expected}")

    per_example = r"one number per example, shape \[5\], got float32\["
    for loss, error, pattern in (
        (lambda o, y: jnp.mean(o - y), ValueError, per_example + r"\]"),
        (optax.l2_loss, ValueError, per_example + r"5, 2\]"),
        (lambda o, y: jnp.argmax(o, axis=-1), TypeError, "a floating.*int32"),
        (lambda o, y: (o, {}), TypeError, "a floating.*got tuple"),
    ):
        of_loss = RULES[name](MLP, loss)
        call = partial(of_loss.value_and_grad, KEY, PARAMS, state, X, Y)
        refuses(call, error, "^loss: expected " + pattern)


MISFIT = "^apply: expected params and x that fit the model, got "
decorrelated = RULES["decorrelated_feedback_alignment"](MODEL, squared_error)
at_w = ll.Model(lambda p, x: x @ p["w"])
test_models = refusals(
    values={
        "^x: expected arrays .*got none": lambda: ll.tapped(MODEL).shapes(W, None),
        MISFIT + r"params\['v'\] float32\[2\] and x float32\[1, 3\]: KeyError\('w'\) at .*test_bad_input": (
            lambda: ll.sites(at_w, {"v": W}, X)
        ),
        MISFIT + "(?!.*" + MISFIT[1:] + ")": lambda: decorrelated.value_and_grad(
            KEY, np.ones((4, 2)), decorrelated.init(KEY, np.ones((3, 2)), X), X, Y
        ),
        r"^trainable: expected to select a parameter out of .*got '2/\*', which selects none": (
            lambda: ll.sites(ll.Model(MLP.apply, trainable="2/*"), PARAMS, X)
        ),
    },
    types={
        "^init: expected a model with an initialiser.*got one": lambda: MODEL.init(KEY),
        r"^apply: expected a pair .*has_aux=True, got ": lambda: ll.sites(
            ll.Model(MODEL.apply, has_aux=True), X.T, X
        ),
    },
)


# Estimators.

ESTIMATORS = {
    "backprop": estimators.backprop,
    "weights": partial(estimators.weight_perturbation, sigma=0.1),
    "forward": estimators.forward_gradient,
    "spsa": lambda f, **options: partial(estimators.spsa(f, perturbation=lambda n: 0.1, **options), count=0),
}


@pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)
def test_what_an_estimator_gets(make):
    scalar = "a scalar floating-point loss, or one loss per example, got "
    for loss_fn, error, expected in (
        (lambda w: jnp.sum(w > 0), TypeError, scalar + "int32"),
        (lambda w: (jnp.sum(w), w), TypeError, scalar + "tuple"),
        (lambda w: jnp.ones((3, 2)), TypeError, scalar + r"float32\[3, 2\]"),
        (lambda w: w[:0], ValueError, r"the loss of at least one .*float32\[0\]"),
    ):
        refuses(partial(make(loss_fn), KEY, W), error, f"^loss_fn: expected {expected}")
    pair = r"^loss_fn: expected a pair \(loss, aux\) because of has_aux, got "
    refuses(partial(make(jnp.sum, has_aux=True), KEY, W), TypeError, pair)
    for key, error in ((W, TypeError), (jax.random.split(KEY), ValueError)):
        for estimate in (make(jnp.sum), jax.jit(make(jnp.sum))):
            refuses(
                partial(estimate, key, W), error, r"^key: expected one key, .*got (float32|key<fry>)\[2\]"
            )
    for params, at, got in (
        ({"w": W, "n": np.arange(2)}, r"\['n'\]", r"int32\[2\]"),
        (["weights"], r"\[0\]", "'weights'"),
        (W > 0, "", r"bool\[2\]"),
    ):
        pattern = f"^params{at}: expected a floating-point array, got {got}"
        refuses(partial(make(lambda p: jnp.sum(W)), KEY, params), TypeError, pattern)


def test_forward_mode_through_a_function_without_one():
    @jax.custom_vjp
    def function(w):
        return jnp.sum(w)

    function.defvjp(lambda w: (jnp.sum(w), None), lambda saved, d: (W * d,))
    for num_samples, transform in ((1, jax.jit), (2, lambda f: f)):
        estimate = transform(estimators.forward_gradient(function, num_samples=num_samples))
        pattern = "^loss_fn: expected functions with a forward-mode derivative.*got a custom_vjp"
        refuses(partial(estimate, KEY, W), TypeError, pattern)

    def own_error(w):
        if isinstance(w, Tracer):
            raise TypeError("something else")
        return jnp.sum(w)

    with pytest.raises(TypeError, match=r"^something else"):
        estimators.forward_gradient(own_error)(KEY, W)


def with_noise(drawn: Any, like: Any = W) -> Any:
    estimate = ESTIMATORS["weights"](lambda p: jnp.sum(jax.tree.leaves(p)[0]), noise=lambda key, like: drawn)
    return partial(estimate, KEY, like)


spsa = ll.spsa(MLP, squared_error, perturbation=lambda count: 0.1).value_and_grad
test_noise_and_estimators = refusals(
    values={
        "^noise: expected the structure of the values": with_noise([W]),
        r"^noise\['b'\]: .*got \[3\]": with_noise({"a": W, "b": np.ones(3)}, {"a": W, "b": W}),
        r"^sigma: .*got float32\[2\]": lambda: jax.jit(lambda s: wp_estimator(sigma=s)(KEY, W))(W),
    },
    types={
        r"^noise: expected an array of real numbers, got bool\[2\]": with_noise(W > 0),
        r"^like\['a'\]: expected": lambda: normal(KEY, {"a": np.arange(3)}),
        r"^loss_fn: .* float32 or wider.*got bfloat16": lambda: wp_estimator(sigma=0.1)(
            KEY, W.astype(jnp.bfloat16)
        ),
        "^state: expected the state of the rule's.*got tuple": partial(spsa, KEY, PARAMS, (), X, Y),
    },
)


# Training runs.

DATA = data.Dataset(X, Y)
MATRIX = np.ones((3, 2), np.float32)
BACKPROP = ll.backprop(MODEL, squared_error)
WITH_AUX = ll.backprop(ll.Model(lambda w, x: (x @ w, w), has_aux=True), squared_error)


def train(splits: Any = None, rule: Any = BACKPROP, **options: Any) -> Any:
    splits = data.Splits(DATA, DATA, DATA) if splits is None else splits
    options = {"optimizer": SGD, "num_updates": 6, "batch_size": 1, "init": lambda key: MATRIX, **options}
    return lambda: ll.make_train(rule, **options)(KEY, splits)


def absorbing(absorb: Any) -> Any:
    return train(rule=WITH_AUX, absorb=absorb)


def of_train(x: Any = X, y: Any = Y) -> Any:
    return train(data.Splits(data.Dataset(x, y), None, None))


test_training = refusals(
    values={
        r"^every: expected a divisor of num_updates \(6\), got 4": train(every=4),
        r"^batch_size: expected at most num_examples \(5\), got 6": train(batch_size=6),
        "^absorb: expected the structure of params": absorbing(lambda params, aux: None),
        "^data.train: expected as many y as x, got 2 and 5": of_train(y=Y[:2]),
        "^data.train: expected at .*got none": train(data.Splits(None, DATA, DATA)),
        f"^data.train.y: .* that int32 can hold, got {2**40}": of_train(y=np.full((5, 2), 2**40)),
    },
    types={
        r"^evaluate\['a'\]: expected an array, got 'b'": train(evaluate=lambda *of: {"a": "b"}),
        "^absorb: expected a function .*got None": absorbing(None),
        "^absorb: expected None for a model.*got function": train(absorb=lambda params, aux: params),
        r"^absorb: expected float32 as in params, got int32": absorbing(lambda p, aux: aux.astype(int)),
        "^key: expected one key.*got 0": lambda: ll.make_train(
            BACKPROP, SGD, init=lambda key: MATRIX, num_updates=6, batch_size=1
        )(0, data.Splits(DATA, DATA, DATA)),
        r"^data: expected Splits, such as Splits\(train=.*got tuple": train((X, Y)),
        r"^data.train.x: expected an array of real.*got float64\[5, 3\]": of_train(np.ma.ones((5, 3))),
    },
)


# Ensembles.


def members(*args: Any, **options: Any) -> Any:
    return partial(ll.ensemble(lambda *args: jax.tree.map(lambda leaf: 2 * leaf, args), **options), *args)


axes = r"^args: expected leading axes of one size, at least one, got "
test_ensembles = refusals(
    values={
        r"^in_axes: expected 0 or None.*\(1,\)": lambda: members(in_axes=(1,)),
        r"^in_axes: expected one entry for each of 2 arguments, got \(0,\)": members(X, X, in_axes=(0,)),
        axes + r"{'args\[0\]': 2, 'args\[1\]': 5}": members(W, X, in_axes=(0, 0)),
        axes: [members({"a": W, "b": X}), members({})],
        r"^args\[0\]: expected a leading axis of members, got a scalar": members(np.ones(())),
    },
    types={
        r"^args\[0\]: expected an array, got ShapeDtypeStruct float32": members(jax.eval_shape(lambda: W)),
        "^function: expected an.*got 'a'": lambda: ll.ensemble(lambda key: "a")(jax.random.split(KEY, 2)),
    },
)


# Data.


@pytest.mark.parametrize("dtype", slow_but([jnp.bfloat16], [jnp.float16, jnp.bfloat16]))
def test_data_of_half_precision_are_labelled_in_float32(dtype):
    drawn = data.relu_net(KEY, 16, num_units=50, sizes=(4000, 0, 0), dtype=dtype).train
    pairs = zip(jax.random.split(KEY, 3), ((16, 50), (50, 2)), strict=False)
    w, v = (jax.random.uniform(key, shape, dtype, -1, 1).astype(float) for key, shape in pairs)
    labels = jnp.argmax(jax.nn.relu(drawn.x.astype(float) @ w) @ v, axis=-1)
    assert np.mean(jnp.argmax(drawn.y, axis=-1) == labels) > 0.999
    problem = data.planted(70_000, 1, dtype=dtype)  # whose sum of squares is beyond float16
    x, y = problem.sample(KEY, problem.init(KEY), 4)
    np.testing.assert_allclose(jnp.linalg.norm(x.astype(float), axis=1), 1, rtol=0.01)
    assert jnp.any(y)


planted, batches = data.planted(3, 2), data.batches(4, 2)
test_data = refusals(
    values={
        "^sizes: expected arrays of at most": lambda: data.half_space(KEY, 3, sizes=(10**12, 0, 0)),
        "^num_classes: expected arrays of at most": lambda: data.one_hot([0], 10**10),
        r"^teacher\[0\]\['w'\]: expected shape \[3, 2\], got \[4, 2\]": partial(
            planted.sample, KEY, ({"w": np.ones((4, 2))}, {"w": np.ones((2, 1))}), 5
        ),
    },
    types={
        "^step: expected one integer, got 0.5": lambda: batches.next(batches.init(KEY), 0.5),
        "^labels: .* outside of jit, got traced float32": lambda: jax.eval_shape(
            lambda y: data.one_hot(y, 3), Y
        ),
    },
)


def test_an_idx_file_of_more_axes_than_numpy_has(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes([0, 0, 8, 100]) + bytes([0, 0, 0, 1]) * 100 + b"x")
    refuses(partial(data.read_idx, path), ValueError, "expected axes that NumPy can hold, got 100")
