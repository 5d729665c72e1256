"""Bad input: every message names the argument, what was expected and what came.

The checks of annotations that `conftest` adds are off here: these are the errors that a user sees.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.core import Tracer

import lax_learning as ll
from lax_learning import estimators, metrics
from tests.refusal import parametrize_cases, refuses

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(0)
NETWORK = ll.mlp((3, 4, 2))
X, Y = jnp.ones((5, 3)), jnp.zeros((5, 2))
DATA = ll.data.Splits(*[ll.data.Dataset(X, Y)] * 3)
SPLIT = {"num_updates": 6, "batch_size": 5}


# Options, refused where a rule or an estimator is made.


def wp(**options):
    return estimators.weight_perturbation(jnp.sum, **{"sigma": 0.1, **options})


def wp_rule(**options):
    return ll.weight_perturbation(NETWORK, ll.squared_error, **{"sigma": 0.1, **options})


def node(**options):
    return ll.node_perturbation(NETWORK, ll.squared_error, **{"sigma": 0.1, **options})


def forward(**options):
    return ll.forward_gradient(NETWORK, ll.squared_error, **options)


def forward_estimator(**options):
    return estimators.forward_gradient(jnp.sum, **options)


def spsa(**options):
    return estimators.spsa(jnp.sum, perturbation=lambda count: 0.1, **options)(KEY, X, count=0)


BAD_SIGMAS = [0, 0.0, -0.1, float("nan"), float("inf"), "0.1", None, True, 1j, jnp.array([0.1, 0.2])]


@pytest.mark.parametrize("make", [wp, wp_rule, node])
@pytest.mark.parametrize("sigma", BAD_SIGMAS, ids=repr)
def test_sigma(make, sigma):
    refuses(lambda: make(sigma=sigma), ValueError, "^sigma: expected a finite number > 0, got")


@pytest.mark.parametrize("make", [wp, wp_rule, node])
@pytest.mark.parametrize("sigma", [1, 0.1, np.float32(0.1), jnp.bfloat16(0.1), jnp.array(0.1)], ids=repr)
def test_good_sigma(make, sigma):
    make(sigma=sigma)


@pytest.mark.parametrize("make", [wp, wp_rule, node, forward, forward_estimator, spsa])
@pytest.mark.parametrize(
    ("num_samples", "error"),
    [
        (0, ValueError),
        (-3, ValueError),
        (2.0, TypeError),
        (True, TypeError),
        ("2", TypeError),
        (None, TypeError),
    ],
    ids=repr,
)
def test_num_samples(make, num_samples, error):
    refuses(lambda: make(num_samples=num_samples), error, "^num_samples: expected .*got")


def loss_pair(make):
    return lambda **options: make(NETWORK, ll.squared_error, **options)


SCALED = [
    ll.backprop,
    ll.feedback_alignment,
    ll.direct_feedback_alignment,
    ll.sign_symmetry,
    ll.kolen_pollack,
]
CHOICES = [
    *[(make, "noise") for make in (wp, wp_rule, node, forward, forward_estimator)],
    *[(make, "difference") for make in (wp, wp_rule)],
    (node, "variant"),
    (forward, "perturb"),
    (loss_pair(ll.sign_symmetry), "magnitude"),
    *[(loss_pair(make), "scale") for make in SCALED],
]


@pytest.mark.parametrize(("make", "name"), CHOICES)
@pytest.mark.parametrize("value", ["unknown", "", None, 3])
def test_choices(make, name, value):
    refuses(lambda: make(**{name: value}), ValueError, f"^{name}: expected one of .*, got {value!r}")


@pytest.mark.parametrize("option", [{"num_samples": 2}, {"antithetic": True}, {"layerwise": True}], ids=str)
def test_tutorial_node_perturbation_is_not_averaged(option):
    refuses(lambda: node(variant="tutorial", **option), ValueError, "^variant: 'tutorial'.*expected.*got")


@parametrize_cases(
    {
        "decay": (
            lambda: ll.kolen_pollack(NETWORK, ll.squared_error, decay=-0.1),
            ValueError,
            "^decay: .*>= 0",
        ),
        "decay nan": (
            lambda: ll.kolen_pollack(NETWORK, ll.squared_error, decay=float("nan")),
            ValueError,
            "^decay: .*got nan",
        ),
        "gain 0": (lambda: ll.sign_symmetry(NETWORK, ll.squared_error, gain=0.0), ValueError, "^gain: .*> 0"),
        "gain": (lambda: ll.sign_symmetry(NETWORK, ll.squared_error, gain=-1), ValueError, "^gain: .*got -1"),
        "max_norm": (lambda: ll.clip_by_forward_norm(0.0), ValueError, "^max_norm: "),
        "a": (lambda: estimators.spall_gains(a=0.0, c=1.0), ValueError, "^a: "),
        "c": (lambda: estimators.spall_gains(a=1.0, c=-1.0), ValueError, "^c: "),
        "A": (lambda: estimators.spall_gains(a=1.0, c=1.0, A=-1.0), ValueError, "^A: .*>= 0"),
        "alpha": (lambda: estimators.spall_gains(a=1.0, c=1.0, alpha=-1.0), ValueError, "^alpha: "),
        "gamma": (lambda: estimators.spall_gains(a=1.0, c=1.0, gamma=-1.0), ValueError, "^gamma: "),
    }
)
def test_numbers(call, error, pattern):
    refuses(call, error, pattern)


# Networks.

BAD_WIDTHS: Any = (3, 2.0)


@parametrize_cases(
    {
        "one width": (
            lambda: ll.mlp((3,)),
            ValueError,
            r"^widths: expected at least an input and an output.*got \(3,\)",
        ),
        "no width": (lambda: ll.mlp(()), ValueError, "^widths: "),
        "zero": (lambda: ll.mlp((3, 0, 2)), ValueError, r"^widths\[1\]: expected at least 1, got 0"),
        "float": (lambda: ll.mlp(BAD_WIDTHS), TypeError, r"^widths\[1\]: expected an int, got 2.0"),
        "too few": (
            lambda: ll.mlp((3, 4, 4, 2), activation=[jnp.tanh]),
            ValueError,
            "^activation: expected 2, one a hidden layer, got 1",
        ),
        "too many": (
            lambda: ll.mlp((3, 2), activation=[jnp.tanh]),
            ValueError,
            "^activation: expected 0, one a hidden layer, got 1",
        ),
        "inputs": (lambda: ll.dense(0, 2), ValueError, "^num_inputs: "),
        "outputs": (lambda: ll.dense(2, -1), ValueError, "^num_outputs: "),
        "taps": (
            lambda: NETWORK.forward(NETWORK.init(KEY), X, [jnp.zeros((5, 4))]),
            ValueError,
            "^taps: expected 2 layers, got 1",
        ),
    }
)
def test_networks(call, error, pattern):
    refuses(call, error, pattern)


# What goes into a rule.

RULES = {
    "backprop": ll.backprop(NETWORK, ll.squared_error),
    "weight_perturbation": wp_rule(),
    "node_perturbation": node(),
    "node_perturbation_tutorial": node(variant="tutorial"),
    "forward_gradient": forward(),
    "forward_gradient_activities": forward(perturb="activities"),
    "feedback_alignment": ll.feedback_alignment(NETWORK, ll.squared_error),
    "direct_feedback_alignment": ll.direct_feedback_alignment(NETWORK, ll.squared_error),
    "sign_symmetry": ll.sign_symmetry(NETWORK, ll.squared_error),
    "kolen_pollack": ll.kolen_pollack(NETWORK, ll.squared_error),
}
all_rules = pytest.mark.parametrize("name", RULES)


@all_rules
@pytest.mark.parametrize(
    ("x", "error", "pattern"),
    [
        (jnp.ones((5, 4)), ValueError, r"^x: expected shape \[batch, 3\], got \[5, 4\]"),
        (jnp.ones(3), ValueError, r"^x: expected shape \[batch, 3\], got \[3\]"),
        (jnp.ones((5, 3, 1)), ValueError, r"^x: expected shape \[batch, 3\], got \[5, 3, 1\]"),
        (jnp.ones((0, 3)), ValueError, r"^x: expected at least one example, got shape \[0, 3\]"),
        (jnp.ones((5, 3), jnp.int32), TypeError, "^x: expected a floating-point array, got int32"),
        (jnp.ones((5, 3), jnp.uint8), TypeError, "^x: expected a floating-point array, got uint8"),
    ],
)
def test_x(name, x, error, pattern):
    rule = RULES[name]
    y = jnp.zeros((len(x), 2))
    refuses(lambda: rule.value_and_grad(KEY, rule.init(KEY), x, y), error, pattern)


@all_rules
@pytest.mark.parametrize(
    ("y", "error", "pattern"),
    [
        (jnp.zeros((4, 2)), ValueError, r"^y: expected 5 examples as in x, got shape \[4, 2\]"),
        (jnp.zeros(()), ValueError, r"^y: expected 5 examples as in x, got shape \[\]"),
        (jnp.zeros((5, 2), jnp.complex64), TypeError, "^y: expected an array of real numbers, got complex64"),
    ],
)
def test_y(name, y, error, pattern):
    rule = RULES[name]
    refuses(lambda: rule.value_and_grad(KEY, rule.init(KEY), X, y), error, pattern)
    signals = rule.signals
    if signals is not None:
        refuses(lambda: signals(KEY, rule.init(KEY), X, y), error, pattern)


@all_rules
def test_params(name):
    rule = RULES[name]
    params = rule.init(KEY)

    def run(params):
        return lambda: rule.value_and_grad(KEY, params, X, Y)

    def with_first(**entries):
        return ({**params[0], **entries}, *params[1:])

    refuses(run(params[:1]), ValueError, "^params: expected 2 layers, got 1")
    refuses(
        run(with_first(w=jnp.ones((7, 4)))), ValueError, r"^w: expected shape \[3, outputs\], got \[7, 4\]"
    )
    refuses(run(with_first(w=jnp.ones(3))), ValueError, r"^w: expected shape \[3, outputs\], got \[3\]")
    refuses(run(with_first(b=jnp.ones(3))), ValueError, r"^b: expected a shape that fits \[4\], got \[3\]")
    refuses(run(with_first(w=jnp.ones((3, 4), jnp.int32))), TypeError, "^params.*expected a floating.*int32")
    refuses(run(({"b": params[0]["b"]}, *params[1:])), ValueError, r"^params\[0\]: expected .*'w', got \['b'")


@pytest.mark.parametrize("name", ["feedback_alignment", "direct_feedback_alignment", "kolen_pollack"])
def test_feedback(name):
    rule = RULES[name]
    plain = NETWORK.init(KEY)
    refuses(
        lambda: rule.value_and_grad(KEY, plain, X, Y),
        ValueError,
        r"^params\[\d\]: expected the entry 'feedback', see init, got \['b', 'w'\]",
    )
    wrong = tuple(
        {**layer, "feedback": jnp.ones((3, 3))} if "feedback" in made else layer
        for layer, made in zip(plain, rule.init(KEY), strict=True)
    )
    refuses(
        lambda: rule.value_and_grad(KEY, wrong, X, Y),
        ValueError,
        r"^feedback: expected the shape \(4, 2\).*, got \(3, 3\)",
    )


@pytest.mark.parametrize("scaled", [0, 1, 2])
def test_feedback_op_of_other_shape(scaled):
    product = ll.with_feedback(ll.dense_product)
    shapes = [(3,), (2, 3), (3, 4)]
    refuses(
        lambda: product(jnp.ones((3, 2)), jnp.ones(shapes[scaled]), X),
        ValueError,
        r"^feedback: expected the shape \(3, 2\) of w, got",
    )


# Losses.

MAKERS = {
    "backprop": lambda loss: ll.backprop(NETWORK, loss),
    "weight_perturbation": lambda loss: ll.weight_perturbation(NETWORK, loss, sigma=0.1),
    "node_perturbation": lambda loss: ll.node_perturbation(NETWORK, loss, sigma=0.1),
    "forward_gradient": lambda loss: ll.forward_gradient(NETWORK, loss),
    "activities": lambda loss: ll.forward_gradient(NETWORK, loss, perturb="activities"),
    "direct_feedback_alignment": lambda loss: ll.direct_feedback_alignment(NETWORK, loss),
    "feedback_alignment": lambda loss: ll.feedback_alignment(NETWORK, loss),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_loss_of_a_rule(make):
    def run(loss):
        rule = make(loss)
        return lambda: rule.value_and_grad(KEY, rule.init(KEY), X, Y)

    expected = r"^loss: expected one number an example, shape \[5\], got "
    refuses(run(lambda output, y: jnp.mean(jnp.square(output - y))), ValueError, expected + r"\[\]")
    refuses(run(lambda output, y: jnp.square(output - y)), ValueError, expected + r"\[5, 2\]")
    refuses(
        run(lambda output, y: jnp.argmax(output, axis=-1)), TypeError, "^loss: expected a floating.*int32"
    )


@pytest.mark.parametrize("function", [ll.squared_error, ll.softmax_cross_entropy, ll.accuracy])
@pytest.mark.parametrize("y", [jnp.zeros(5), jnp.zeros((5, 3)), jnp.zeros((1, 2)), jnp.zeros(5, jnp.int32)])
def test_losses_of_other_shapes(function, y):
    expected = r"one-hot labels of shape \[5, 2\]" if y.dtype == jnp.int32 else r"shape \[5, 2\]"
    got = str(list(y.shape)).replace("[", r"\[")
    refuses(lambda: function(jnp.ones((5, 2)), y), ValueError, f"^y: expected {expected} as output.*{got}")


# Estimators.

ESTIMATORS = {
    "backprop": estimators.backprop,
    "weight_perturbation": lambda f, **o: estimators.weight_perturbation(f, sigma=0.1, **o),
    "forward_gradient": estimators.forward_gradient,
}


@pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS.keys())
def test_loss_of_an_estimator(make):
    w = jnp.ones(3)

    def run(loss_fn, **options):
        return lambda: make(loss_fn, **options)(KEY, w)

    expected = "^loss_fn: expected a scalar floating-point loss, or one loss per example, got "
    refuses(run(lambda w: jnp.sum(w > 0)), TypeError, expected + "int32")
    refuses(run(lambda w: jnp.any(w > 0)), TypeError, expected + "bool")
    refuses(run(lambda w: (jnp.sum(w), w)), TypeError, expected + "tuple")
    refuses(run(lambda w: None), TypeError, expected + "None")
    pair = r"^loss_fn: expected a pair \(loss, aux\) because of has_aux, got "
    refuses(run(jnp.sum, has_aux=True), TypeError, pair)
    refuses(run(lambda w: (jnp.sum(w), 1, 2), has_aux=True), TypeError, pair + "tuple")


@pytest.mark.parametrize("make", [wp, forward_estimator])
def test_params_of_an_estimator(make):
    params = {"w": jnp.ones(3), "n": jnp.ones(2, jnp.int32)}
    loss_fn_estimate = make()
    refuses(
        lambda: loss_fn_estimate(KEY, params["n"].astype(jnp.int32)),
        TypeError,
        "expected a floating",
    )
    for noise in ("normal", "rademacher"):
        estimate = estimators.weight_perturbation(lambda p: jnp.sum(p["w"]), sigma=0.1, noise=noise)
        refuses(
            lambda e=estimate: e(KEY, params), TypeError, r"^params\['n'\]: expected a floating-point.*int32"
        )


@pytest.mark.parametrize("num_samples", [1, 2])
def test_forward_mode_cannot_pass_feedback(num_samples):
    product = ll.with_feedback(ll.dense_product)
    estimate = estimators.forward_gradient(
        lambda w: jnp.sum(product(w, jnp.ones((3, 2)), X)), num_samples=num_samples
    )
    w, pattern = jnp.ones((3, 2)), "^loss_fn: forward gradients need forward-mode.*expected the plain op"
    refuses(lambda: estimate(KEY, w), TypeError, pattern)
    refuses(lambda: jax.jit(estimate)(KEY, w), TypeError, pattern)


def test_forward_mode_passes_beside_feedback():
    product = ll.with_feedback(ll.dense_product)

    def loss_fn(w):
        return jnp.sum(w * product(jnp.ones((3, 2)), jnp.ones((3, 2)), X)[0, 0])

    assert jnp.isfinite(jax.jit(estimators.forward_gradient(loss_fn))(KEY, jnp.ones(3))[1]).all()


def test_other_errors_of_forward_mode_are_left_alone():
    def loss_fn(w):
        if isinstance(w, Tracer):
            raise TypeError("something else")
        return jnp.sum(w)

    with pytest.raises(TypeError, match=r"^something else"):
        estimators.forward_gradient(loss_fn)(KEY, jnp.ones(3))


# Training and ensembles.


def train(**options):
    return ll.make_train(RULES["backprop"], optax.sgd(0.1), **{**SPLIT, **options})


@parametrize_cases(
    {
        "num_updates": (lambda: train(num_updates=0), ValueError, "^num_updates: expected at least 1, got 0"),
        "num_updates float": (lambda: train(num_updates=1e3), TypeError, "^num_updates: expected an int"),
        "batch_size": (lambda: train(batch_size=0), ValueError, "^batch_size: expected at least 1, got 0"),
        "every 0": (lambda: train(every=0), ValueError, "^every: expected at least 1, got 0"),
        "every": (
            lambda: train(every=4),
            ValueError,
            r"^every: expected a divisor of num_updates \(6\), got 4",
        ),
        "every long": (lambda: train(every=12), ValueError, "^every: .*got 12"),
        "large batch": (
            lambda: train(batch_size=6)(KEY, DATA),
            ValueError,
            r"^batch_size: expected at most num_examples \(5\), got 6",
        ),
        "no data": (
            lambda: train()(KEY, ll.data.Splits(*[ll.data.Dataset(X[:0], Y[:0])] * 3)),
            ValueError,
            "^data.train: expected at least one example, got 0",
        ),
    }
)
def test_training(call, error, pattern):
    refuses(call, error, pattern)


def double(*args):
    return jax.tree.map(lambda leaf: 2 * leaf, args)


@parametrize_cases(
    {
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
            r"^arguments: expected leading axes of one size, got \[3, 4\]",
        ),
        "unequal leaves": (
            lambda: ll.ensemble(double)({"a": jnp.ones(3), "b": jnp.ones(4)}),
            ValueError,
            "^arguments: expected leading axes",
        ),
        "scalar": (
            lambda: ll.ensemble(double)(jnp.ones(())),
            ValueError,
            "^argument 0: expected a leading axis of members, got a scalar",
        ),
        "no members": (
            lambda: ll.ensemble(double)(jnp.ones((0, 2))),
            ValueError,
            "^number of members: expected at least 1, got 0",
        ),
        "no leaves": (lambda: ll.ensemble(double)({}), ValueError, "^arguments: expected leading axes"),
        "budget": (lambda: ll.ensemble(double, memory_budget=0), ValueError, "^memory_budget: "),
        "batch of none": (lambda: ll.ensemble(double, batch_size=0), ValueError, "^batch_size: "),
        "half a batch": (lambda: ll.ensemble(double, batch_size=cast(Any, 0.5)), TypeError, "^batch_size: "),
    }
)
def test_ensembles(call, error, pattern):
    refuses(call, error, pattern)


# Metrics.

STACKED = jnp.arange(12.0).reshape(4, 3)
MOMENTS = metrics.stacked_moments(STACKED, jnp.ones(3))


@parametrize_cases(
    {
        "snr": (
            lambda: metrics.snr(STACKED[:2]),
            ValueError,
            "^number of gradients: expected at least 3, got 2",
        ),
        "bias": (
            lambda: metrics.bias_variance(STACKED[:2], jnp.ones(3)),
            ValueError,
            "^number of gradients: expected at least 3, got 2",
        ),
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
            lambda: metrics.draw_moments(
                RULES["backprop"], KEY, NETWORK.init(KEY), X, Y, NETWORK.init(KEY), 2
            ),
            ValueError,
            "^num_samples: expected at least 3, got 2",
        ),
        "examples": (
            lambda: metrics.example_moments(NETWORK, RULES["backprop"], KEY, NETWORK.init(KEY), X[:2], Y[:2]),
            ValueError,
            "^number of examples in x: expected at least 3, got 2",
        ),
        "variant": (lambda: metrics.snr(STACKED, variant="other"), ValueError, "^variant: expected one of"),
        "epsilon": (lambda: metrics.snr(STACKED, epsilon=0.0), ValueError, "^epsilon: "),
        "no reference": (
            lambda: metrics.bias_variance(STACKED),
            ValueError,
            "^reference: expected the exact gradients, got None",
        ),
        "no reference in moments": (
            lambda: metrics.bias_variance(metrics.stacked_moments(STACKED)),
            ValueError,
            "^reference: expected the exact gradients, got None",
        ),
        "two references": (
            lambda: metrics.bias_variance(MOMENTS, jnp.ones(3)),
            ValueError,
            "^reference: expected None, as the moments hold one",
        ),
        "no feedback": (
            lambda: metrics.weight_alignment(NETWORK.init(KEY)),
            ValueError,
            "^params: expected at least one layer with an entry 'feedback', got none",
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


def test_feedback_of_another_shape_has_no_alignment():
    refuses(
        lambda: metrics.weight_alignment(({"w": jnp.ones((3, 2)), "feedback": jnp.ones((2, 3))},)),
        ValueError,
        r"^params\[0\]\['feedback'\]: expected shape \[3, 2\] as in params\[0\]\['w'\], got \[2, 3\]",
    )


@pytest.mark.parametrize("make", [wp_rule, node, forward, lambda **o: forward(perturb="activities", **o)])
def test_noise_of_other_shapes(make):
    for noise in (
        lambda key, like: jnp.ones(()),
        lambda key, like: jax.tree.map(lambda _: jnp.ones(1), like),
    ):
        rule = make(noise=noise)
        pattern = r"^noise: expected the structure|^noise.*: expected shape \[.*, got \[.*\]"
        with pytest.raises(ValueError, match=pattern):
            rule.value_and_grad(KEY, rule.init(KEY), X, Y)
