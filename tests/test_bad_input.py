"""Bad input of models, rules and estimators: every message says what was expected of which argument.

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
from tests.refusal import refusals, refuses

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

# What a type checker would refuse is asked for here.
ll: Any = lax_learning
estimators, squared_error = ll.estimators, ll.squared_error

KEY: Any = jax.random.key(0)
W = jnp.ones(2)
MLP = ll.mlp((3, 4, 2))
PARAMS = MLP.init(KEY)
X: Any = jnp.ones((5, 3))
Y: Any = jnp.zeros((5, 2))
MODEL = ll.Model(lambda w, x: x @ w)
DTYPES = (jnp.float16, jnp.float32, jnp.bfloat16)

# Options, refused where a rule or an estimator is made.

wp_rule = partial(ll.weight_perturbation, MLP, squared_error)
node = partial(ll.node_perturbation, MLP, squared_error)
forward = partial(ll.forward_gradient, MLP, squared_error)
signs = partial(ll.sign_symmetry, MLP, squared_error)
kp = partial(ll.kolen_pollack, MLP, squared_error)
wp_estimator = partial(estimators.weight_perturbation, jnp.sum)
forward_estimator = partial(estimators.forward_gradient, jnp.sum)
spsa_estimator = partial(estimators.spsa, jnp.sum, perturbation=lambda count: 0.1)
spsa_rule = partial(ll.spsa, MLP, squared_error, perturbation=lambda count: 0.1)
sampled = [partial(make, sigma=0.1) for make in (wp_estimator, wp_rule, node)]
sampled += [forward, forward_estimator, spsa_rule, spsa_estimator]


@pytest.mark.parametrize("make", [wp_estimator, wp_rule, node])
def test_sigma(make):
    for sigma in (0, 0.0, -0.1, float("nan"), float("inf"), "0.1", None, True, 1j, jnp.array([0.1, 0.2])):
        refuses(lambda s=sigma: make(sigma=s), ValueError, "^sigma: expected a finite number > 0, got")
    for sigma in (1, 0.1, np.float32(0.1), jnp.bfloat16(0.1), jnp.array(0.1)):
        make(sigma=sigma)


@pytest.mark.parametrize("make", sampled)
def test_num_samples(make):
    bad = {0: ValueError, -3: ValueError, 2.0: TypeError, True: TypeError, "2": TypeError, None: TypeError}
    for number, error in bad.items():
        refuses(lambda n=number: make(num_samples=n), error, "^num_samples: expected .*got")
    refuses(lambda: make(num_samples=10**400), ValueError, "^num_samples: expected arrays of at most")


CHOICES = [
    *[(make, "noise") for make in (*sampled[:3], forward, forward_estimator)],
    *[(make, "difference") for make in sampled[:2]],
    (sampled[2], "variant"),
    (forward, "perturb"),
    (signs, "magnitude"),
]


@pytest.mark.parametrize(("make", "name"), CHOICES)
def test_choices(make, name):
    for value in ("unknown", "", None, 3, "tutorial"):
        refuses(lambda v=value: make(**{name: v}), ValueError, f"^{name}: expected one of .*, got {value!r}")


FLAGS = [
    *[(sampled[2], name) for name in ("antithetic", "layerwise", "share_noise", "batch")],
    (partial(forward, perturb="activities"), "batch"),
    *[(make, "has_aux") for make in (sampled[0], forward_estimator, spsa_estimator)],
    (partial(estimators.backprop, jnp.sum), "has_aux"),
    (partial(ll.Model, jnp.dot), "has_aux"),
]


@pytest.mark.parametrize(("make", "name"), FLAGS)
def test_flags(make, name):
    for value in ("no", 1, None, jnp.array(True)):
        refuses(lambda v=value: make(**{name: v}), TypeError, f"^{name}: expected True or False, got ")


FEEDBACK = {
    "fa": partial(ll.feedback_alignment, MLP, squared_error),
    "dfa": partial(ll.direct_feedback_alignment, MLP, squared_error),
    "frsf": partial(signs, magnitude="fixed"),
    "kp": partial(kp, optimizer=optax.sgd(0.1)),
}


@pytest.mark.parametrize("name", FEEDBACK)
def test_feedback_init(name):
    def drawn(value):
        return lambda: FEEDBACK[name](feedback_init=lambda key, like: value).init(KEY, PARAMS, X)

    pattern = r"^feedback_init: expected a function \(key, like\) -> feedback, got "
    for wrong in (0.1, None, lambda key: W, lambda key, shape, dtype: W):
        refuses(lambda f=wrong: FEEDBACK[name](feedback_init=f), TypeError, pattern)
    refuses(drawn("w"), TypeError, "^feedback_init: expected a floating-point array, got 'w'")
    refuses(drawn(jnp.ones(3)), ValueError, r"^feedback_init: expected shape \[4, 2\], got \[3\]")


@pytest.mark.parametrize("name", FEEDBACK)
def test_feedback(name):
    rule = FEEDBACK[name]()
    state = rule.init(KEY, PARAMS, X)

    def run(state):
        return lambda: rule.value_and_grad(KEY, PARAMS, state, X, Y)

    for wrong in (None, (), {}, PARAMS):
        refuses(run(wrong), TypeError, "^state: expected the state of the rule's init.*got ")
    other = jax.tree.map(lambda leaf: jnp.ones((7, *leaf.shape)), state.feedback)
    refuses(run(state._replace(feedback=other)), ValueError, r"^state.feedback.*: expected shape .*got \[7,")
    for wrong in (None, PARAMS[:1], (None, None), "feedback"):
        pattern = "^state.feedback: expected (the structure of params|a dict with the entries)"
        refuses(run(state._replace(feedback=wrong)), ValueError, pattern)
    if name != "dfa":
        nothing = jax.tree.map(lambda leaf: None, PARAMS)
        pattern = "^state.feedback: expected an array at '1/w', which an error passes, got None"
        refuses(run(state._replace(feedback=nothing)), ValueError, pattern)


test_numbers = refusals(
    values={
        "^decay: .*>= 0, got -0.1": lambda: kp(optimizer=optax.sgd(0.1), decay=-0.1),
        "^decay: .*nan": lambda: kp(optimizer=optax.sgd(0.1), decay=float("nan")),
        "^gain: .*> 0": lambda: signs(gain=0.0),
        "^gain: .*got -1": lambda: signs(gain=-1),
        "^a: ": lambda: estimators.spall_gains(a=0.0, c=1.0),
        "^c: ": lambda: estimators.spall_gains(a=1.0, c=-1.0),
        "^A: .*>= 0": lambda: estimators.spall_gains(a=1.0, c=1.0, A=-1.0),
        "^alpha: ": lambda: estimators.spall_gains(a=1.0, c=1.0, alpha=-1.0),
        "^gamma: ": lambda: estimators.spall_gains(a=1.0, c=1.0, gamma=-1.0),
        "^a: expected a number that float32 can tell from 0, got 1e-50": lambda: estimators.spall_gains(
            1e-50, 0.1
        ),
        "^c: expected a number that float32 can tell from infinity, got 1e[+]300": lambda: (
            estimators.spall_gains(0.1, 1e300)
        ),
        "^count: expected the number of updates done, at least 0, got -1": lambda: estimators.spall_gains(
            1.0, 1.0
        ).perturbation(-1),
        "^share_noise: expected False with batch=True.*got True": lambda: node(
            sigma=0.1, share_noise=True, batch=True
        ),
    },
    types={
        "^optimizer: expected an optimizer .*got 0.1": lambda: kp(optimizer=0.1),
        "^perturbation: expected a schedule, .*got 0.1": lambda: estimators.spsa(jnp.sum, perturbation=0.1),
    },
)


TINY = {jnp.float16: 1e-9, jnp.float32: 1e-40, jnp.bfloat16: 1e-40}


def half(make: Any, sigma: Any, dtype: Any) -> Any:
    model = ll.mlp((3, 2), dtype=dtype)
    return make(model, squared_error, sigma=sigma).value_and_grad(KEY, model.init(KEY), (), X, Y)


SIGMAS = {
    "weights": lambda sigma, dtype: wp_estimator(sigma=sigma)(KEY, jnp.ones(2, dtype)),
    "central": lambda sigma, dtype: wp_estimator(sigma=sigma, difference="central")(KEY, jnp.ones(2, dtype)),
    "rule": partial(half, ll.weight_perturbation),
    "nodes": partial(half, ll.node_perturbation),
    "spsa": lambda sigma, dtype: estimators.spsa(jnp.sum, perturbation=lambda count: sigma)(
        KEY, jnp.ones(2, dtype), count=0
    ),
}


@pytest.mark.parametrize("name", SIGMAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sigma_that_the_dtype_cannot_hold(name, dtype):
    called = r"perturbation\(count\)" if name == "spsa" else "sigma"
    dtype_name = jnp.dtype(dtype).name
    pattern = f"^{called}: expected a number that {dtype_name} can tell from 0, got {TINY[dtype]}".replace(
        "bfloat16", "(bfloat16|float32)"
    )
    refuses(lambda: SIGMAS[name](TINY[dtype], dtype), ValueError, pattern)
    pattern = f"^{called}: expected a number that (float32|{dtype_name}) can tell from infinity, got 1e"
    refuses(lambda: SIGMAS[name](1e39, dtype), ValueError, pattern)


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
    ("widths", "34", TypeError, sequence + "'34'"),
    ("widths", {3, 4}, TypeError, sequence + "set"),
    ("widths", (), ValueError, "expected at least "),
    ("widths", (3, 0, 2), ValueError, "expected at least 1, got 0"),
    ("widths", (3, 2.0, 2), TypeError, "expected an int, got 2.0"),
    ("activation", "relu", TypeError, of_z + "'relu'"),
    ("activation", None, TypeError, of_z + "None"),
    ("output_activation", "softmax", TypeError, of_z + "'softmax'"),
    ("output_activation", None, TypeError, of_z + "None"),
    ("w_init", 0.1, TypeError, initialiser + "0.1"),
    ("w_init", None, TypeError, initialiser + "None"),
    ("w_init", lambda key, shape: 0, TypeError, initialiser + r"a function of \(key, shape\)"),
    ("b_init", 0, TypeError, initialiser + "0"),
    ("dtype", int, TypeError, "expected a floating-point dtype, got int"),
    ("dtype", None, TypeError, "expected a floating-point dtype, got None"),
    ("dtype", "half-open", TypeError, "expected a floating-point dtype, got 'half-open'"),
]


@pytest.mark.parametrize("kind", NETWORKS)
def test_options_of_networks(kind):
    make = NETWORKS[kind]
    for name, value, error, pattern in OPTIONS:
        at = rf"^(channels, )?{name}(\[\d\])?: "
        refuses(lambda n=name, v=value: make(**{n: v}), error, at + pattern)
    for name, value, error, pattern in (
        ("w_init", "w", TypeError, "expected a floating-point array, got 'w'"),
        ("w_init", jnp.ones(9), ValueError, r"expected shape \[.*\], got \[9\]"),
        ("b_init", jnp.ones(9), ValueError, r"expected shape \[.*\], got \[9\]"),
    ):
        drawn = {name: lambda key, shape, dtype, value=value: value}
        refuses(lambda o=drawn: make(**o).init(KEY), error, f"^{name}: " + pattern)
    refuses(lambda: make().init(0), TypeError, "^key: expected one key.*got 0")


test_networks = refusals(
    values={
        "^widths: expected at least an input and an output": lambda: ll.mlp((3,)),
        "^activation: expected 2, one a hidden layer, got 1": lambda: ll.mlp(
            (3, 4, 4, 2), activation=[jnp.tanh]
        ),
        "^activation: expected 0,": lambda: ll.mlp((3, 2), activation=[jnp.tanh]),
        "^widths: expected at least an input, a recurrent": lambda: ll.rnn((3, 2)),
        "^outputs: expected one of .*'all'": lambda: ll.rnn((3, 4, 2), outputs="all"),
        r"^recurrent_init: expected shape \[4, 4\], got \[2\]": lambda: ll.rnn(
            (3, 4, 2), recurrent_init=lambda key, shape, dtype: jnp.ones(2)
        ).init(KEY),
        "^channels, widths: expected at": lambda: ll.convnet((4, 4, 1), (), (2,)),
        r"^input_shape: expected \(height, width, channels\), got \(4, 4\)": lambda: ll.convnet(
            (4, 4), (2,), (2,)
        ),
        "^padding: expected one of .*, got 'same'": lambda: ll.convnet((4, 4, 1), (2,), (2,), padding="same"),
        r"^kernel, pool: expected an image with room for layer 0, .*got input_shape \(2, 2, 1\)": lambda: (
            ll.convnet((2, 2, 1), (2,), (2,), kernel=5, padding="VALID")
        ),
    },
    types={
        r"^widths\[1\]: .*float32\[9, 9\]": lambda: ll.mlp((3, jnp.ones((9, 9)))),
        r"^activation\[1\]: expected a function.*got 3": lambda: ll.mlp(
            (3, 4, 4, 2), activation=[jnp.tanh, 3]
        ),
        "^recurrent_init: .*got None": lambda: ll.rnn((3, 4, 2), recurrent_init=None),
        "^channels: " + sequence + "2": lambda: ll.convnet((4, 4, 1), 2, (2,)),
    },
)


@pytest.mark.parametrize("name", ["kernel", "stride", "pool"])
def test_sizes_of_convolutions(name):
    for value, error, pattern in (
        (0, ValueError, "at least 1, got 0"),
        (-1, ValueError, "at least 1, got -1"),
        (True, TypeError, "an int, got True"),
        (2.0, TypeError, "an int, got 2.0"),
        (None, TypeError, "an int, got None"),
        ("3", TypeError, "a sequence of ints, got '3'"),
        ((), ValueError, "one int, or 1, one a convolution, got 0"),
        ((3, 3), ValueError, "one int, or 1, one a convolution, got 2"),
        ((2.0,), TypeError, "an int, got 2.0"),
    ):
        pattern = rf"^{name}(\[0\])?: expected {pattern}"
        refuses(lambda v=value: ll.convnet((4, 4, 1), (2,), (2,), **{name: v}), error, pattern)


SHAPES = {"mlp": (3,), "convnet": (4, 4, 1), "rnn": (6, 3)}


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
    number = len(params)
    refuses(run(params[:1]), ValueError, f"^params: expected {number} layers, got 1")
    refuses(run((W, *params[1:])), ValueError, r"^params\[0\]: expected a dict .*got float32\[2\]")
    refuses(run(({"b": W}, *params[1:])), ValueError, r"^params\[0\]: expected .*'w', got \['b'\]")
    for name, leaf in params[0].items():
        at = rf"^params\[0\]\['{name}'\]: "
        for wrong in (jnp.ones((7, *leaf.shape)), jnp.ones((1, leaf.size + 1)), leaf.ravel()[:1]):
            refuses(with_first(**{name: wrong}), ValueError, at + r"expected shape \[.*\], got \[")
        refuses(with_first(**{name: "w"}), TypeError, at + "expected .*got 'w'")
        refuses(with_first(**{name: leaf.astype(int)}), TypeError, at + "expected a floating.*got int32")


def test_what_is_converted():
    lists = [{k: np.asarray(v).tolist() for k, v in layer.items()} for layer in PARAMS]
    np.testing.assert_array_equal(MLP.apply(lists, X.tolist()), MLP.apply(PARAMS, X))
    without = ({**PARAMS[0], "b": None}, PARAMS[1])
    np.testing.assert_array_equal(MLP.apply(without, X), MLP.apply(PARAMS, X))  # biases start as 0
    np.testing.assert_array_equal(MLP.apply(PARAMS, np.ones((5, 3), np.uint8)), MLP.apply(PARAMS, X))
    assert ll.mlp(np.array([3, 2])).init(KEY)[0]["w"].shape == (3, 2)
    assert wp_estimator(sigma=0.1)(KEY, 1.0)[0] == 1.0


# What goes into a rule.

RULES: dict[str, Any] = {
    "backprop": lambda model, loss: ll.backprop(model, loss),
    "wp": partial(ll.weight_perturbation, sigma=0.1),
    "np": partial(ll.node_perturbation, sigma=0.1),
    "fg": ll.forward_gradient,
    "activities": partial(ll.forward_gradient, perturb="activities"),
    "spsa": partial(ll.spsa, perturbation=lambda count: 0.1),
    "fa": ll.feedback_alignment,
    "dfa": ll.direct_feedback_alignment,
    "usf": ll.sign_symmetry,
    "kp": partial(ll.kolen_pollack, optimizer=optax.sgd(0.1)),
    "decorrelated": lambda model, loss: ll.decorrelation.rule(
        lambda m: ll.backprop(m, loss), model, ll.decorrelation.dynamics(0.1)
    ),
}
all_rules = pytest.mark.parametrize("name", RULES)


@all_rules
def test_what_a_rule_is_made_of(name):
    for wrong, got in (((3, 2), "tuple"), (None, "None"), (jnp.tanh, ".*"), (PARAMS, "tuple")):
        call = lambda m=wrong: RULES[name](m, squared_error).init(KEY, PARAMS, X)  # noqa: E731
        refuses(call, TypeError, f"^model: expected a Model, .*got {got}")
    for wrong in ("squared_error", 5, None, lambda output: output):
        call = lambda f=wrong: RULES[name](MLP, f).init(KEY, PARAMS, X)  # noqa: E731
        refuses(call, TypeError, "^loss: expected a function .*got ")


@all_rules
def test_what_a_rule_gets(name):
    rule = RULES[name](MLP, squared_error)
    state = rule.init(KEY, PARAMS, X)

    def run(key=KEY, params=PARAMS, x=X, y=Y):
        return lambda: rule.value_and_grad(key, params, state, x, y)

    def start(key=KEY, params=PARAMS, x=X):
        return lambda: rule.init(key, params, x)

    for call in (run, start):
        refuses(call(key=0), TypeError, r"^key: expected one key, such as jax.random.key\(0\), got 0")
        refuses(call(key=jax.random.split(KEY)), ValueError, r"^key: expected one key.*got key<fry>\[2\]")
        for wrong in (None, jnp.zeros(2)):
            refuses(call(key=wrong), TypeError, "^key: expected one key")
        refuses(call(params=None), ValueError, "^params: expected at least one parameter, got an empty")
        integers = jax.tree.map(lambda leaf: leaf.astype(int), PARAMS)
        refuses(
            call(params=integers), TypeError, r"^params: expected a floating-point .*'0/b', got int32\[4\]"
        )
        refuses(call(params=({"w": "w"}, {})), TypeError, r"^params\[0\]\['w'\]: expected an array, got 'w'")
        refuses(call(x="x"), TypeError, "^x: expected an array, got 'x'")
        refuses(call(x=[[1.0], [2.0, 3.0]]), TypeError, "^x: expected an array, got list")
        refuses(call(x=jnp.ones((0, 3))), ValueError, "^x: expected at least one example, got 0")
        for wrong in (None, 1.0, {"a": X, "b": X[:2]}):
            refuses(call(x=wrong), ValueError, "^x: expected arrays with one leading axis of examples, got")
    refuses(run(params=PARAMS[:1]), ValueError, "^params: expected 2 layers, got 1")
    refuses(run(x=jnp.ones((5, 4))), ValueError, r"^x: expected shape \[batch, 3\], got \[\d, 4\]")
    for wrong, got in ((Y[:4], "4, 2"), (jnp.zeros(()), "")):
        refuses(run(y=wrong), ValueError, rf"^y: expected 5 examples as in x, got float32\[{got}\]")
    refuses(run(y=Y + 1j), TypeError, "^y: expected an array of real numbers, got complex64")
    for wrong in ("y", None, {"a": Y}):
        refuses(run(y=wrong), TypeError, "^y: expected an array.*, got")
    if rule.signals is not None:
        of_many = lambda: rule.signals(KEY, PARAMS, state, X, Y)  # noqa: E731
        refuses(of_many, ValueError, "^x: expected a batch of one example, got 5")


@all_rules
def test_loss_of_a_rule(name):
    def run(loss):
        rule = RULES[name](MLP, loss)
        return lambda: rule.value_and_grad(KEY, PARAMS, rule.init(KEY, PARAMS, X), X, Y)

    expected = r"^loss: expected one number an example, shape \[5\], got float32"
    refuses(run(lambda output, y: jnp.mean(jnp.square(output - y))), ValueError, expected + r"\[\]")
    refuses(run(optax.l2_loss), ValueError, expected + r"\[5, 2\]")
    refuses(
        run(lambda output, y: jnp.argmax(output, axis=-1)), TypeError, "^loss: expected a floating.*int32"
    )
    refuses(run(lambda o, y: (o, {})), TypeError, "^loss: expected a floating-point array, got tuple")


MISFIT = "^apply: expected params and x that fit the model, got "


test_models = refusals(
    values={
        "^x: expected arrays .*got none": lambda: ll.tapped(MODEL).shapes(W, None),
        MISFIT + r"params float32\[4, 2\] and x": lambda: ll.sites(MODEL, jnp.ones((4, 2)), X),
        MISFIT
        + r"params\['v'\] float32\[2\] and x float32\[1, 3\]: KeyError\('w'\) at .*test_bad_input": lambda: (
            ll.sites(ll.Model(lambda p, x: x @ p["w"]), {"v": W}, X)
        ),
        MISFIT + "(?!.*" + MISFIT[1:] + ")": lambda: ll.decorrelation.rule(
            lambda m: ll.backprop(m, squared_error), MODEL, ll.decorrelation.dynamics(0.1)
        ).value_and_grad(KEY, jnp.ones((4, 2)), DECORRELATED, X, Y),
        r"^trainable: expected to select a parameter out of .*got '2/\*', which selects none": lambda: (
            ll.sites(ll.Model(MLP.apply, trainable="2/*"), PARAMS, X)
        ),
        r"^where: expected to select a parameter out of .*got '2/\*', which selects none": lambda: node(
            sigma=0.1, where="2/*"
        ).value_and_grad(KEY, PARAMS, (), X, Y),
        r"^apply: expected an output with a leading axis of 5 examples as x, got float32\[2\]": lambda: (
            ll.backprop(ll.Model(lambda w, x: (x @ w).sum(0)), squared_error).value_and_grad(
                KEY, jnp.ones((3, 2)), (), X, Y
            )
        ),
    },
    types={
        "^model: expected a Model, .*got 3": lambda: ll.sites(3, W, X),
        "^model: expected a Model, .*got PjitFunction": lambda: ll.tapped(jnp.tanh),
        "^x: expected an array, got 'x'": lambda: ll.sites(MODEL, W, "x"),
        r"^params: expected a floating-point parameter, got key<fry>\[\]": lambda: ll.sites(MODEL, KEY, X),
        "^apply: expected a function .*got 'apply'": lambda: ll.Model("apply"),
        r"^apply: .*got a function of \(w\)": lambda: ll.Model(lambda w: w),
        "^init: expected a function .*got tuple": lambda: ll.Model(jnp.dot, init=PARAMS),
        "^init: expected a model with an initialiser.*got one": lambda: MODEL.init(KEY),
        "^trainable: expected a glob .*got 3": lambda: ll.Model(jnp.dot, trainable=3),
        r"^apply: expected a pair \(output, aux\) because of has_aux=True, got ": lambda: ll.sites(
            ll.Model(lambda w, x: x @ w, has_aux=True), X.T, X
        ),
    },
)


DECORRELATED = ll.decorrelation.rule(
    lambda m: ll.backprop(m, squared_error), MODEL, ll.decorrelation.dynamics(0.1)
).init(KEY, jnp.ones((3, 2)), X)


@pytest.mark.parametrize("function", [ll.squared_error, ll.softmax_cross_entropy, ll.accuracy])
@pytest.mark.parametrize("y", [jnp.zeros(5), jnp.zeros((5, 3)), jnp.zeros((1, 2)), jnp.zeros(5, jnp.int32)])
def test_losses_of_other_shapes(function, y):
    expected = r"one-hot labels of shape \[5, 2\]" if y.dtype == jnp.int32 else r"shape \[5, 2\]"
    got = str(list(y.shape)).replace("[", r"\[")
    refuses(lambda: function(jnp.ones((5, 2)), y), ValueError, f"^y: expected {expected} as output.*{got}")


# Estimators.

ESTIMATORS = {
    "backprop": estimators.backprop,
    "weights": partial(estimators.weight_perturbation, sigma=0.1),
    "forward": estimators.forward_gradient,
    "spsa": lambda f, **options: partial(
        estimators.spsa(f, perturbation=lambda count: 0.1, **options), count=0
    ),
}
all_estimators = pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)


@all_estimators
def test_loss_of_an_estimator(make):
    def run(loss_fn, **options):
        return lambda: make(loss_fn, **options)(KEY, jnp.ones(3))

    expected = "^loss_fn: expected a scalar floating-point loss, or one loss per example, got "
    refuses(run(lambda w: jnp.sum(w > 0)), TypeError, expected + "int32")
    refuses(run(lambda w: jnp.any(w > 0)), TypeError, expected + "bool")
    refuses(run(lambda w: (jnp.sum(w), w)), TypeError, expected + "tuple")
    refuses(run(lambda w: None), TypeError, expected + "None")
    refuses(run(lambda w: jnp.ones((3, 2))), TypeError, expected + r"float32\[3, 2\]")
    refuses(run(lambda w: w[:0]), ValueError, r"^loss_fn: expected the loss of at least one .*float32\[0\]")
    pair = r"^loss_fn: expected a pair \(loss, aux\) because of has_aux, got "
    refuses(run(jnp.sum, has_aux=True), TypeError, pair)
    refuses(run(lambda w: (jnp.sum(w), 1, 2), has_aux=True), TypeError, pair + "tuple")
    refuses(lambda: make("sum"), TypeError, "^loss_fn: expected a function .*got 'sum'")


@all_estimators
def test_key_and_params_of_an_estimator(make):
    for transform in (lambda f: f, jax.jit):
        pattern = r"^key: expected one key, .*got float32\[2\]"
        refuses(lambda t=transform: t(make(jnp.dot))(W, W), TypeError, pattern)
    refuses(lambda: make(jnp.sum)(jax.random.split(KEY), W), ValueError, r"^key: expected one key.*\[2\]")
    estimate = make(lambda p: jnp.sum(W))
    for params, at, got in (
        ({"w": W, "n": jnp.arange(2)}, r"\['n'\]", r"int32\[2\]"),
        ({"a": 1}, r"\['a'\]", r"int32\[\]"),
        ({"a": 1j}, r"\['a'\]", "complex64"),
        (["weights"], r"\[0\]", "'weights'"),
        ({"phi": jnp.tanh}, r"\['phi'\]", "PjitFunction"),
        (W > 0, "", r"bool\[2\]"),
    ):
        pattern = f"^params{at}: expected a floating-point array, got {got}"
        refuses(lambda p=params: estimate(KEY, p), TypeError, pattern)


def test_forward_mode_through_a_function_without_one():
    @jax.custom_vjp
    def function(w):
        return jnp.sum(w)

    function.defvjp(lambda w: (jnp.sum(w), None), lambda saved, d: (W * d,))
    for num_samples in (1, 2):
        for transform in (lambda f: f, jax.jit):
            estimate = transform(estimators.forward_gradient(function, num_samples=num_samples))
            pattern = "^loss_fn: forward gradients need forward-mode.*expected .*got"
            refuses(lambda e=estimate: e(KEY, W), TypeError, pattern)

    def own_error(w):
        if isinstance(w, Tracer):
            raise TypeError("something else")
        return jnp.sum(w)

    with pytest.raises(TypeError, match=r"^something else"):
        estimators.forward_gradient(own_error)(KEY, W)


@pytest.mark.parametrize("name", ["wp", "np", "fg", "activities"])
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
        r"^noise: expected shape \[2\], got \[\]": with_noise(1.0),
        "^noise: expected the structure of what it is added to": with_noise([W]),
        r"^noise\['b'\]: expected shape \[2\], got \[3\]": with_noise(
            {"a": W, "b": jnp.ones(3)}, {"a": W, "b": W}
        ),
        r"^sigma: expected a real number, got float32\[2\]": lambda: jax.jit(
            lambda s: wp_estimator(sigma=s)(KEY, W)
        )(W),
    },
    types={
        "^noise: " + real + r"bool\[2\]": with_noise(W > 0),
        "^noise: " + real + "complex": with_noise(W + 1j),
        "^noise: " + real + "'signs'": with_noise("signs"),
        r"^like\['a'\]: expected": lambda: normal(KEY, {"a": jnp.arange(3)}),
        half_loss + r"bfloat16\[\]": lambda: wp_estimator(sigma=0.1)(KEY, W.astype(jnp.bfloat16)),
        half_loss + r"float16\[\]": lambda: spsa_estimator()(KEY, W.astype("half"), count=0),
        "^count: expected .*got '3'": lambda: spsa_estimator()(KEY, W, count="3"),
        "^state: expected the state of the rule's init.*got tuple": lambda: spsa_rule().value_and_grad(
            KEY, PARAMS, (), X, Y
        ),
    },
)
