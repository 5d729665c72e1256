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
MLP = ll.mlp((3, 4, 2))
PARAMS = MLP.init(KEY)
X: Any = jnp.ones((5, 3))
Y: Any = jnp.zeros((5, 2))
MODEL = ll.Model(lambda w, x: x @ w)

# Options, refused where a rule or an estimator is made.


def of_mlp(make: Any, **options: Any) -> Any:
    return partial(make, MLP, squared_error, **options)


wp_rule, node, forward = map(of_mlp, (ll.weight_perturbation, ll.node_perturbation, ll.forward_gradient))
signs, kp, sgd = of_mlp(ll.sign_symmetry), of_mlp(ll.kolen_pollack), optax.sgd(0.1)
wp_estimator = partial(estimators.weight_perturbation, jnp.sum)
forward_estimator = partial(estimators.forward_gradient, jnp.sum)
spsa_estimator = partial(estimators.spsa, jnp.sum, perturbation=lambda count: 0.1)
spsa_rule = of_mlp(ll.spsa, perturbation=lambda count: 0.1)
with_sigma = [wp_estimator, wp_rule, node]
sampled = [partial(make, sigma=0.1) for make in with_sigma]
sampled += [forward, forward_estimator, spsa_rule, spsa_estimator]
CHOICES = {
    "noise": [*sampled[:3], forward, forward_estimator], "difference": sampled[:2], "variant": [sampled[2]],
    "perturb": [forward], "magnitude": [signs],
}  # fmt: skip
backprop_estimator, model_of_dot = partial(estimators.backprop, jnp.sum), partial(ll.Model, jnp.dot)
FLAGS = {
    **{name: [sampled[2]] for name in ("antithetic", "layerwise", "share_noise")},
    "batch": [sampled[2], partial(forward, perturb="activities")],
    "has_aux": [sampled[0], forward_estimator, spsa_estimator, backprop_estimator, model_of_dot],
}
FEEDBACK = {
    "fa": of_mlp(ll.feedback_alignment), "dfa": of_mlp(ll.direct_feedback_alignment),
    "frsf": partial(signs, magnitude="fixed"), "kp": partial(kp, optimizer=sgd),
}  # fmt: skip


def each(makers: Any, name: str, *values: Any) -> Any:
    """Calls of every maker with each of these values."""
    return [partial(make, **{name: value}) for make in makers for value in values]


def gains(**options: Any) -> Any:
    return lambda: estimators.spall_gains(**{"a": 1.0, "c": 1.0, **options})


def drawn_feedback(value: Any) -> Any:
    made = [make(feedback_init=lambda key, like: value) for make in FEEDBACK.values()]
    return [partial(rule.init, KEY, PARAMS, X) for rule in made]


NO_SIGMAS = (0, -0.1, float("nan"), float("inf"), "0.1", None, True, 1j, W)
NO_INITS = (0.1, None, lambda key: W, lambda key, shape, dtype: W)
test_options_of_rules_and_estimators = refusals(
    values={
        "^sigma: expected a finite number > 0, got": each(with_sigma, "sigma", *NO_SIGMAS),
        "^num_samples: expected .*got": each(sampled, "num_samples", 0, -3),
        "^num_samples: expected arrays of at most": each(sampled, "num_samples", 10**400),
        **{
            f"^{name}: expected one of .*, got ('unknown'|None|3)": each(makers, name, "unknown", None, 3)
            for name, makers in CHOICES.items()
        },
        r"^feedback_init: expected shape \[4, 2\], got \[3\]": drawn_feedback(jnp.ones(3)),
        "^decay: .*>= 0, got -0.1": lambda: kp(optimizer=sgd, decay=-0.1),
        "^gain: .*> 0": each([signs], "gain", 0.0, -1),
        "^A: .*>= 0": gains(A=-1.0),
        "^a: expected a number that float32 can tell from 0, got 1e-50": gains(a=1e-50),
        "^count: expected the number of updates done, at least 0, got -1": lambda: gains()().perturbation(-1),
        "^share_noise: expected False with batch=True.*got True": each(
            [partial(node, sigma=0.1, batch=True)], "share_noise", True
        ),
    },
    types={
        "^num_samples: expected .*got": each(sampled, "num_samples", 2.0, True, "2", None),
        **{
            f"^{name}: expected True or False, got ": each(makers, name, "no", 1, W[0] > 0)
            for name, makers in FLAGS.items()
        },
        r"^feedback_init: expected a function \(key, like\) -> feedback, got ": each(
            FEEDBACK.values(), "feedback_init", *NO_INITS
        ),
        "^feedback_init: expected a floating-point array, got 'w'": drawn_feedback("w"),
        "^optimizer: expected an optimizer .*got 0.1": lambda: kp(optimizer=0.1),
        "^perturbation: expected a schedule, .*got 0.1": each(
            [partial(estimators.spsa, jnp.sum)], "perturbation", 0.1
        ),
    },
)


@pytest.mark.parametrize("name", FEEDBACK)
def test_feedback(name):
    rule = FEEDBACK[name]()
    state = rule.init(KEY, PARAMS, X)

    def run(state):
        return lambda: rule.value_and_grad(KEY, PARAMS, state, X, Y)

    for wrong in (None, (), {}, PARAMS):
        refuses(run(wrong), TypeError, "^state: expected the state of the rule's init.*got ")
    nothing = jax.tree.map(lambda leaf: None, PARAMS)
    other = jax.tree.map(lambda leaf: jnp.ones((7, *leaf.shape)), state.feedback)
    structure = "(the structure of params|a dict with the entries)"
    cases = [(other, r".*: expected shape .*got \[7,")]
    cases += [(wrong, f": expected {structure}") for wrong in (None, PARAMS[:1], "feedback")]
    if name != "dfa":
        cases.append((nothing, ": expected an array at '1/w', through which errors pass, got None"))
    for wrong, expected in cases:
        refuses(run(state._replace(feedback=wrong)), ValueError, "^state.feedback" + expected)


TINY = {jnp.float16: 1e-9, jnp.bfloat16: 1e-40}


def half(make: Any, sigma: Any, dtype: Any) -> Any:
    model = ll.mlp((3, 2), dtype=dtype)
    return make(model, squared_error, sigma=sigma).value_and_grad(KEY, model.init(KEY), (), X, Y)


SIGMAS = {
    "weights": lambda sigma, dtype: wp_estimator(sigma=sigma)(KEY, jnp.ones(2, dtype)),
    "rule": partial(half, ll.weight_perturbation),
    "nodes": partial(half, ll.node_perturbation),
    "spsa": lambda sigma, dtype: estimators.spsa(jnp.sum, perturbation=lambda count: sigma)(
        KEY, jnp.ones(2, dtype), count=0
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
    "mlp": lambda widths=(3, 4, 2), **options: ll.mlp(widths, **options),
    "convnet": lambda widths=(3, 2), **options: ll.convnet((4, 4, 1), (2,), widths, **options),
    "rnn": lambda widths=(3, 4, 2), **options: ll.rnn(widths, **options),
}
of_z = "expected a function of z, such as jax.nn.relu, got "
initialiser = r"expected an initialiser \(key, shape, dtype\) -> array.*, got "
sequence = "expected a sequence of ints, got "
OPTIONS: list[tuple[str, Any, type[Exception], str]] = [
    ("widths", 3, TypeError, sequence + "3"),
    ("widths", (), ValueError, "expected at least "),
    ("widths", (3, 0, 2), ValueError, "expected at least 1, got 0"),
    ("activation", "relu", TypeError, of_z + "'relu'"),
    ("output_activation", None, TypeError, of_z + "None"),
    ("w_init", 0.1, TypeError, initialiser + "0.1"),
    ("w_init", lambda key, shape: 0, TypeError, initialiser + r"a function of \(key, shape\)"),
    ("dtype", int, TypeError, "expected a floating-point dtype, got int"),
]
SHAPES = {"mlp": (3,), "convnet": (4, 4, 1), "rnn": (6, 3)}


@pytest.mark.parametrize("kind", NETWORKS)
def test_options_of_networks(kind):
    make = NETWORKS[kind]
    for name, value, error, pattern in OPTIONS:
        at = rf"^(channels, )?{name}(\[\d\])?: "
        refuses(lambda n=name, v=value: make(**{n: v}), error, at + pattern)
    for name, value, error, pattern in (
        ("w_init", "w", TypeError, "expected a floating-point array, got 'w'"),
        ("w_init", jnp.ones(9), ValueError, r"expected shape \[.*\], got \[9\]"),
    ):
        drawn = {name: lambda key, shape, dtype, value=value: value}
        refuses(lambda o=drawn: make(**o).init(KEY), error, f"^{name}: " + pattern)
    refuses(lambda: make().init(0), TypeError, "^key: expected one key.*got 0")


@pytest.mark.parametrize("kind", NETWORKS)
def test_what_a_network_gets(kind):
    model = NETWORKS[kind]()
    params = model.init(KEY)
    x: Any = jnp.ones((5, *SHAPES[kind]))
    names = r"batch, steps, 3" if kind == "rnn" else ", ".join(["batch", *map(str, SHAPES[kind])])

    def run(params=params, x=x):
        return lambda: model.apply(params, x)

    def with_first(**entries):
        return run(({**params[0], **entries}, *params[1:]))

    for wrong in (x[0], x[..., None], jnp.concatenate([x, x], -1)):
        refuses(run(x=wrong), ValueError, rf"^x: expected shape \[{names}\], got \[")
    refuses(run(x="x"), TypeError, "^x: expected an array of real numbers, got 'x'")
    for wrong, got in ((None, "None"), ("w", "'w'"), ({"0": 1}, "dict")):
        refuses(run(wrong), TypeError, f"^params: expected a sequence with the weights.*got {got}")
    refuses(run(params[:1]), ValueError, f"^params: expected {len(params)} layers, got 1")
    refuses(run((W, *params[1:])), ValueError, r"^params\[0\]: expected a dict .*got float32\[2\]")
    refuses(run(({"b": W}, *params[1:])), ValueError, r"^params\[0\]: expected .*'w', got \['b'\]")
    for name, leaf in params[0].items():
        at = rf"^params\[0\]\['{name}'\]: "
        for wrong in (jnp.ones((7, *leaf.shape)), leaf.ravel()[:1]):
            refuses(with_first(**{name: wrong}), ValueError, at + r"expected shape \[.*\], got \[")
        refuses(with_first(**{name: "w"}), TypeError, at + "expected .*got 'w'")
        refuses(with_first(**{name: leaf.astype(int)}), TypeError, at + "expected a floating.*got int32")


SIZES = ("kernel", "stride", "pool")
convnet: Any = NETWORKS["convnet"]


def of_shape(shape: Any, **options: Any) -> Any:
    return lambda: ll.convnet(shape, (2,), (2,), **options)


test_networks = refusals(
    values={
        "^widths: expected at least an input and an output": lambda: ll.mlp((3,)),
        "^activation: expected 2, one per.*got 1": lambda: ll.mlp((3, 4, 4, 2), activation=[jnp.tanh]),
        "^outputs: expected one of .*'all'": lambda: ll.rnn((3, 4, 2), outputs="all"),
        r"^input_shape: expected \(height, width, channels\), got \(4, 4\)": of_shape((4, 4)),
        "^padding: expected one of .*, got 'same'": of_shape((4, 4, 1), padding="same"),
        "^kernel, pool: expected an image with room for layer 0, .*got input_shape": of_shape(
            (2, 2, 1), kernel=5, padding="VALID"
        ),
        **{f"^{n}: expected one int, or 1, one per convol": each([convnet], n, (3, 3)) for n in SIZES},
    },
    types={
        r"^activation\[1\]: expected a function": lambda: ll.mlp((3, 4, 4, 2), activation=[jnp.tanh, 3]),
        **{
            rf"^{n}(\[0\])?: expected an int, got (True|2.0)": each([convnet], n, True, (2.0,)) for n in SIZES
        },
    },
)


def test_what_is_converted():
    lists = [{k: np.asarray(v).tolist() for k, v in layer.items()} for layer in PARAMS]
    np.testing.assert_array_equal(MLP.apply(lists, X.tolist()), MLP.apply(PARAMS, X))
    without = ({**PARAMS[0], "b": None}, PARAMS[1])
    np.testing.assert_array_equal(MLP.apply(without, X), MLP.apply(PARAMS, X))  # biases start as 0
    np.testing.assert_array_equal(MLP.apply(PARAMS, np.ones((5, 3), np.uint8)), MLP.apply(PARAMS, X))
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


@pytest.mark.parametrize("name", slow_but(TAKING[:4], TAKING))
def test_what_a_rule_gets(name):
    make = RULES[name]
    for wrong, got in (((3, 2), "tuple"), (None, "None"), (jnp.tanh, ".*")):
        call = lambda m=wrong: make(m, squared_error).init(KEY, PARAMS, X)  # noqa: E731
        refuses(call, TypeError, f"^model: expected a Model, .*got {got}")
    for wrong in ("squared_error", None, lambda output: output):
        call = lambda f=wrong: make(MLP, f).init(KEY, PARAMS, X)  # noqa: E731
        refuses(call, TypeError, "^loss: expected a function .*got ")
    rule = make(MLP, squared_error)
    state = rule.init(KEY, PARAMS, X)

    def run(key=KEY, params=PARAMS, x=X, y=Y):
        return lambda: rule.value_and_grad(key, params, state, x, y)

    def start(key=KEY, params=PARAMS, x=X):
        return lambda: rule.init(key, params, x)

    integers = jax.tree.map(lambda leaf: leaf.astype(int), PARAMS)
    for call in (run, start):
        for given, error, pattern in (
            ({"key": 0}, TypeError, r"^key: expected one key, such as jax.random.key\(0\), got 0"),
            ({"key": jax.random.split(KEY)}, ValueError, r"^key: expected one key.*got key<fry>\[2\]"),
            ({"params": None}, ValueError, "^params: expected at least one parameter, got an empty"),
            ({"params": integers}, TypeError, "^params: expected a floating-point .*'0/b', got int32"),
            ({"params": ({"w": "w"}, {})}, TypeError, r"^params\[0\]\['w'\]: expected an array, got 'w'"),
            ({"x": "x"}, TypeError, "^x: expected an array, got 'x'"),
            ({"x": jnp.ones((0, 3))}, ValueError, "^x: expected at least one example, got 0"),
            *(
                ({"x": wrong}, ValueError, "^x: expected arrays with one leading axis of examples, got")
                for wrong in (None, 1.0, {"a": X, "b": X[:2]})
            ),
        ):
            refuses(call(**given), error, pattern)
    refuses(run(params=PARAMS[:1]), ValueError, "^params: expected 2 layers, got 1")
    refuses(run(x=jnp.ones((5, 4))), ValueError, r"^x: expected shape \[batch, 3\], got \[\d, 4\]")
    refuses(run(y=Y[:4]), ValueError, r"^y: expected 5 examples as in x, got float32\[4, 2\]")
    refuses(run(y=Y + 1j), TypeError, "^y: expected an array of real numbers, got complex64")
    for wrong in ("y", {"a": Y}):
        refuses(run(y=wrong), TypeError, "^y: expected an array.*, got")
    if rule.signals is not None:
        of_many = lambda: rule.signals(KEY, PARAMS, state, X, Y)  # noqa: E731
        refuses(of_many, ValueError, "^x: expected a batch of one example, got 5")

    for loss, error, pattern in (
        (lambda o, y: jnp.mean(o - y), ValueError, r"one number per example, shape \[5\], got float32\[\]"),
        (optax.l2_loss, ValueError, r"one number per example, shape \[5\], got float32\[5, 2\]"),
        (lambda o, y: jnp.argmax(o, axis=-1), TypeError, "a floating.*int32"),
        (lambda o, y: (o, {}), TypeError, "a floating.*got tuple"),
    ):
        call = lambda f=loss: make(MLP, f).value_and_grad(KEY, PARAMS, state, X, Y)  # noqa: E731
        refuses(call, error, "^loss: expected " + pattern)


MISFIT = "^apply: expected params and x that fit the model, got "
decorrelated_product = RULES["decorrelated_feedback_alignment"](MODEL, squared_error)


test_models = refusals(
    values={
        "^x: expected arrays .*got none": lambda: ll.tapped(MODEL).shapes(W, None),
        MISFIT
        + r"params\['v'\] float32\[2\] and x float32\[1, 3\]: KeyError\('w'\) at .*test_bad_input": lambda: (
            ll.sites(ll.Model(lambda p, x: x @ p["w"]), {"v": W}, X)
        ),
        MISFIT + "(?!.*" + MISFIT[1:] + ")": lambda: decorrelated_product.value_and_grad(
            KEY, jnp.ones((4, 2)), decorrelated_product.init(KEY, jnp.ones((3, 2)), X), X, Y
        ),
        r"^trainable: expected to select a parameter out of .*got '2/\*', which selects none": lambda: (
            ll.sites(ll.Model(MLP.apply, trainable="2/*"), PARAMS, X)
        ),
    },
    types={
        "^model: expected a Model, .*got 3": lambda: ll.sites(3, W, X),
        "^apply: expected a function .*got 'apply'": lambda: ll.Model("apply"),
        "^init: expected a function .*got tuple": lambda: ll.Model(jnp.dot, init=PARAMS),
        "^init: expected a model with an initialiser.*got one": lambda: MODEL.init(KEY),
        r"^apply: expected a pair \(output, aux\) because of has_aux=True, got ": lambda: ll.sites(
            ll.Model(lambda w, x: x @ w, has_aux=True), X.T, X
        ),
    },
)


# Estimators.

ESTIMATORS = {
    "backprop": estimators.backprop,
    "weights": partial(estimators.weight_perturbation, sigma=0.1),
    "forward": estimators.forward_gradient,
    "spsa": lambda f, **options: partial(
        estimators.spsa(f, perturbation=lambda count: 0.1, **options), count=0
    ),
}


@pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)
def test_what_an_estimator_gets(make):
    def run(loss_fn, **options):
        return lambda: make(loss_fn, **options)(KEY, jnp.ones(3))

    expected = "^loss_fn: expected a scalar floating-point loss, or one loss per example, got "
    refuses(run(lambda w: jnp.sum(w > 0)), TypeError, expected + "int32")
    refuses(run(lambda w: (jnp.sum(w), w)), TypeError, expected + "tuple")
    refuses(run(lambda w: jnp.ones((3, 2))), TypeError, expected + r"float32\[3, 2\]")
    refuses(run(lambda w: w[:0]), ValueError, r"^loss_fn: expected the loss of at least one .*float32\[0\]")
    pair = r"^loss_fn: expected a pair \(loss, aux\) because of has_aux, got "
    refuses(run(jnp.sum, has_aux=True), TypeError, pair)
    refuses(lambda: make("sum"), TypeError, "^loss_fn: expected a function .*got 'sum'")

    for transform in (lambda f: f, jax.jit):
        pattern = r"^key: expected one key, .*got float32\[2\]"
        refuses(lambda t=transform: t(make(jnp.dot))(W, W), TypeError, pattern)
    refuses(lambda: make(jnp.sum)(jax.random.split(KEY), W), ValueError, r"^key: expected one key.*\[2\]")
    estimate = make(lambda p: jnp.sum(W))
    for params, at, got in (
        ({"w": W, "n": jnp.arange(2)}, r"\['n'\]", r"int32\[2\]"),
        (["weights"], r"\[0\]", "'weights'"),
        (W > 0, "", r"bool\[2\]"),
    ):
        pattern = f"^params{at}: expected a floating-point array, got {got}"
        refuses(lambda p=params: estimate(KEY, p), TypeError, pattern)


def test_forward_mode_through_a_function_without_one():
    @jax.custom_vjp
    def function(w):
        return jnp.sum(w)

    function.defvjp(lambda w: (jnp.sum(w), None), lambda saved, d: (W * d,))
    for num_samples, transform in ((1, jax.jit), (2, lambda f: f)):
        estimate = transform(estimators.forward_gradient(function, num_samples=num_samples))
        pattern = "^loss_fn: expected functions with a forward-mode derivative.*got a custom_vjp"
        refuses(lambda e=estimate: e(KEY, W), TypeError, pattern)

    def own_error(w):
        if isinstance(w, Tracer):
            raise TypeError("something else")
        return jnp.sum(w)

    with pytest.raises(TypeError, match=r"^something else"):
        estimators.forward_gradient(own_error)(KEY, W)


@pytest.mark.parametrize("name", [TAKING[0], *TAKING[5:8]])
def test_noise_of_other_shapes(name):
    for noise in (lambda key, like: W, lambda key, like: jax.tree.map(lambda _: jnp.ones(1), like)):
        rule = RULES[name](MLP, squared_error, noise=noise)
        pattern = r"^noise: expected the structure|^noise.*: expected shape \[.*, got \[.*\]"
        with pytest.raises(ValueError, match=pattern):
            rule.value_and_grad(KEY, PARAMS, (), X, Y)


def with_noise(drawn: Any, like: Any = W) -> Any:
    loss = lambda p: jnp.sum(jax.tree.leaves(p)[0])  # noqa: E731
    return lambda: estimators.weight_perturbation(loss, sigma=0.1, noise=lambda key, like: drawn)(KEY, like)


real = "expected an array of real numbers, got "
half_loss = r"^loss_fn: expected a loss in float32 or wider.*got "


test_noise_and_estimators = refusals(
    values={
        "^noise: expected the structure of the values": with_noise([W]),
        r"^noise\['b'\]: .*got \[3\]": with_noise({"a": W, "b": jnp.ones(3)}, {"a": W, "b": W}),
        r"^sigma: .*got float32\[2\]": lambda: jax.jit(lambda s: wp_estimator(sigma=s)(KEY, W))(W),
    },
    types={
        "^noise: " + real + r"bool\[2\]": with_noise(W > 0),
        r"^like\['a'\]: expected": lambda: normal(KEY, {"a": jnp.arange(3)}),
        half_loss + r"bfloat16\[\]": lambda: wp_estimator(sigma=0.1)(KEY, W.astype(jnp.bfloat16)),
        "^state: expected the state of the rule's init.*got tuple": lambda: spsa_rule().value_and_grad(
            KEY, PARAMS, (), X, Y
        ),
    },
)


# Training runs.

DATA = data.Dataset(X, Y)
SPLITS = data.Splits(DATA, DATA, DATA)
MATRIX = jnp.ones((3, 2))
WITH_AUX = ll.backprop(ll.Model(lambda w, x: (x @ w, w), has_aux=True), squared_error)


def train(splits: Any = SPLITS, rule: Any = None, key: Any = KEY, **options: Any) -> Any:
    rule = ll.backprop(MODEL, squared_error) if rule is None else rule
    options = {"optimizer": sgd, "num_updates": 6, "batch_size": 1, "init": lambda key: MATRIX, **options}
    return lambda: ll.make_train(rule, **options)(key, splits)


def of_train(x: Any = X, y: Any = Y) -> Any:
    return train(data.Splits(data.Dataset(x, y), None, None))


test_training = refusals(
    values={
        "^num_updates: expected at least 1, got 0": train(num_updates=0),
        r"^every: expected a divisor of num_updates \(6\), got 4": train(every=4),
        r"^batch_size: expected at most num_examples \(5\), got 6": train(batch_size=6),
        "^absorb: expected the structure of params": train(rule=WITH_AUX, absorb=lambda params, aux: None),
        "^data.train: expected as many y as x, got 2 and 5": of_train(y=Y[:2]),
        "^data.train: expected at .*got none": train(data.Splits(None, DATA, DATA)),
        f"^data.train.y: expected numbers that int32 can hold, got {2**40}": of_train(
            y=np.full((5, 2), 2**40)
        ),
    },
    types={
        "^num_updates: expected an int": train(num_updates=1e3),
        "^optimizer: .*got 0.1": train(optimizer=0.1),
        "^rule: expected a Rule.*got": train(rule=jnp.sum),
        "^init: expected the model's function .*got float32": train(init=W),
        r"^evaluate: expected a function \(key, params, state, data\) .*got a function of \(key, par": train(
            evaluate=lambda key, params, data: 0
        ),
        r"^evaluate\['a'\]: expected an array, got 'b'": train(
            evaluate=lambda key, params, state, data: {"a": "b"}
        ),
        "^absorb: expected a function .*got None": train(rule=WITH_AUX),
        "^absorb: expected None for a model.*got function": train(absorb=lambda params, aux: params),
        r"^absorb: expected float32 as in params, got int32\[3, 2\]": train(
            rule=WITH_AUX, absorb=lambda params, aux: aux.astype(int)
        ),
        "^key: expected one key.*got 0": train(key=0),
        r"^data: expected Splits, such as Splits\(train=.*got tuple": train((X, Y)),
        r"^data.train.x: expected an array of real.*got float64\[5, 3\]": of_train(np.ma.ones((5, 3))),
    },
)


# Ensembles.


def members(*args: Any, **options: Any) -> Any:
    return lambda: ll.ensemble(lambda *args: jax.tree.map(lambda leaf: 2 * leaf, args), **options)(*args)


axes = r"^args: expected leading axes"


test_ensembles = refusals(
    values={
        r"^in_axes: expected 0 or None.*\(1,\)": members(in_axes=(1,)),
        r"^in_axes: expected one entry for each of 2 arguments, got \(0,\)": members(X, X, in_axes=(0,)),
        axes + r" of one size, at least one, got {'args\[0\]': 2, 'args\[1\]': 5}": members(
            W, X, in_axes=(0, 0)
        ),
        axes: [members({"a": W, "b": X}), members({})],
        r"^args\[0\]: expected a leading axis of members, got a scalar": members(jnp.ones(())),
        "^memory_budget: ": members(memory_budget=0),
    },
    types={
        "^function: expected a function .*got 3": lambda: ll.ensemble(3),
        "^progress: expected a function": members(progress=True),
        "^batch_size: ": members(batch_size=0.5),
        r"^args\[0\]: expected an array, got ShapeDtypeStruct float32\[2\]": members(
            jax.ShapeDtypeStruct((2,), jnp.float32)
        ),
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


test_data = refusals(
    values={
        "^sizes: expected arrays of at most": lambda: data.half_space(KEY, 3, sizes=(10**12, 0, 0)),
        "^num_classes: expected arrays of at most": lambda: data.one_hot([0], 10**10),
        r"^teacher\[0\]\['w'\]: expected shape \[3, 2\], got \[4, 2\]": lambda: data.planted(3, 2).sample(
            KEY, ({"w": jnp.ones((4, 2))}, {"w": jnp.ones((2, 1))}), 5
        ),
    },
    types={
        "^sizes: expected numbers of .*got 30": lambda: data.half_space(KEY, sizes=30),
        "^dtype: .*got int": lambda: data.relu_net(KEY, dtype=int),
        "^step: expected one integer, got 0.5": lambda: (b := data.batches(4, 2)).next(b.init(KEY), 0.5),
        "^labels: expected integers outside of jit, got traced int32": lambda: jax.jit(
            lambda y: data.one_hot(y, 3)
        )(jnp.arange(3)),
        "^path: expected a path, got 3": lambda: data.read_idx(3),
    },
)


def test_an_idx_file_of_more_axes_than_numpy_has(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes([0, 0, 8, 100]) + bytes([0, 0, 0, 1]) * 100 + b"x")
    refuses(lambda: data.read_idx(path), ValueError, "expected axes that NumPy can hold, got 100")
