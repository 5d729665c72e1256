"""Properties of metrics and losses: scales, NaN in NaN out, dtypes, ranges; and no key is consumed twice."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.key_reuse._core import check_key_reuse

import lax_learning as ll
from lax_learning import metrics, plasticity, symbolic
from tests.compare import assert_same, slow_but
from tests.registry import RULES

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

DTYPES = ("float16", "bfloat16", "float32", "float64")
RNG = np.random.default_rng(17)
A = {"w": RNG.normal(size=(8, 3)) + 1, "b": RNG.normal(size=(8, 2))}
B = {"w": RNG.normal(size=(8, 3)), "b": RNG.normal(size=(8, 2))}
REFERENCE = {"w": np.full(3, 0.75), "b": np.array([0.5, -0.25])}
MODEL = ll.mlp((3, 2))
RULE = ll.backprop(MODEL, lambda output, y: jnp.sum(output * y, axis=-1))
KEY, INF = jax.random.key(3), np.inf


def streamed(a):
    return metrics.streamed_moments(lambda g: g, a, chunk_size=2)


def of_products(a):
    """The moments of a linear loss: the gradient of an example is `x y^T`."""
    x, y = a["w"], a["b"]
    params = MODEL.init(KEY)
    return metrics.example_moments(MODEL, RULE, KEY, params, (), x.astype(params[0]["w"].dtype), y)


def parts_of(a, b):
    del b
    found = metrics.bias_variance(a, jax.tree.map(lambda leaf: leaf[0], a))
    return found.relative_bias, found.relative_variance


OF_ANY_SCALE = {
    "cosine_similarity": metrics.cosine_similarity,
    "angle_degrees": metrics.angle_degrees,
    "by_path": lambda a, b: metrics.by_path(metrics.cosine_similarity, a, b),
}
OF_ONE_SCALE = {
    "relative_norm": metrics.relative_norm,
    "weight_alignment": metrics.weight_alignment,
    "snr": lambda a, b: metrics.snr(a),
    "snr of streamed": lambda a, b: metrics.snr(streamed(a)),
    "snr of parts": lambda a, b: [metrics.snr(each) for each in metrics.stacked_moments(a).parts().values()],
    "bias_variance": parts_of,
}
"""Metrics that do not depend on the scales of a and b, or on a common one."""


def cast(tree, dtype, exponent=0):
    """The numbers in `dtype`, times a power of two, which is exact: rounded first, made in NumPy."""
    return jax.tree.map(lambda leaf: np.ldexp(np.asarray(leaf, dtype), exponent).astype(dtype), tree)


def scales(dtype):
    """Ends and middle of the scales at which no entry of A and B becomes subnormal or infinite."""
    magnitudes = np.abs(np.concatenate([leaf.ravel() for leaf in (*A.values(), *B.values())]))
    assert magnitudes.min() > 2.0**-6 and magnitudes.max() < 2.0**3
    info = jnp.finfo(dtype)
    return int(info.minexp) + 6, 3, int(info.maxexp) - 4


@pytest.mark.parametrize("dtype", slow_but(["float32"], DTYPES))
def test_scale_does_not_change_a_bit(dtype):
    @jax.jit
    def run(a, b, other):
        return [of(a, other) for of in OF_ANY_SCALE.values()], [of(a, b) for of in OF_ONE_SCALE.values()]

    with jax.enable_x64(dtype == "float64"):
        a, b = cast(A, dtype), cast(B, dtype)
        expected = run(a, b, b)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
        for one, other in itertools.product(scales(dtype), repeat=2):
            assert_same(run(cast(a, dtype, one), cast(b, dtype, one), cast(b, dtype, other)), expected)
    if dtype == "float32":  # subnormal numbers: 2^-149 times integers, so that nothing is rounded on the way
        integers = jax.tree.map(lambda leaf: np.round(256 * leaf).astype(dtype), (A, B))
        function = jax.jit(lambda a, b: (metrics.cosine_similarity(a, b), metrics.snr(a)))
        assert_same(function(*(cast(tree, dtype, -149) for tree in integers)), function(*integers))


def test_relative_norm_is_right_wherever_it_can_be_written():
    function = jax.jit(metrics.relative_norm)
    expected = function(cast(A, np.float32), cast(B, np.float32))
    assert 1 < expected < 4
    for one, other in itertools.product(scales(np.float32), repeat=2):
        if -125 < one - other < 125:
            found = function(cast(A, np.float32, one), cast(B, np.float32, other))
            assert found == np.ldexp(expected, one - other)
    # The norms themselves have no float32.
    assert metrics.relative_norm(np.full(64, 3e38, np.float32), np.full(64, -3e38, np.float32)) == 1


def test_entries_are_dead_only_if_they_never_vary():
    # Layers of scales 1e50 apart, and one entry 1e-20 times as large as its neighbour.
    w = A["w"].astype(np.float32)
    a = {"small": np.float32(1e-30) * w, "large": w * np.array([1e20, 1, 0], np.float32)}

    @jax.jit
    def found(a, w):
        of_small = metrics.snr(metrics.stacked_moments(a).parts()["small"]).total.value
        return [metrics.snr(a), metrics.snr(streamed(a))], metrics.snr(w), of_small

    of_both, alone, of_small = found(a, w)
    for snr in of_both:
        assert snr.num_dead == 1
        np.testing.assert_allclose(snr.entries["small"], alone.entries, rtol=1e-5)
        np.testing.assert_allclose(snr.entries["large"][:2], alone.entries[:2], rtol=1e-5)
        np.testing.assert_allclose(snr.total.value, alone.entries[0], rtol=1e-5)
    np.testing.assert_allclose(of_small, alone.total.value, rtol=1e-5)


# NaN in, NaN out; types of results.

ONE_HOT = np.eye(3, dtype=np.float32)[[0, 0, 1, 2, 1, 0, 2, 2]]
WITH_NAN = {
    "inner_product": metrics.inner_product,
    "cosine_similarity": metrics.cosine_similarity,
    "angle_degrees": metrics.angle_degrees,
    "relative_norm": metrics.relative_norm,
    "by_path": lambda a, b: metrics.by_path(metrics.cosine_similarity, a, b)["w"],
    "weight_alignment": lambda a, b: metrics.weight_alignment(a, b)["w"],
    "snr": lambda a, b: metrics.snr(a).total,
    "snr of streamed": lambda a, b: metrics.snr(streamed(a)).total,
    "snr of products": lambda a, b: metrics.snr(of_products(a)).total,
    "snr of tutorial": lambda a, b: metrics.snr(a, variant="tutorial").total,
    "bias_variance": lambda a, b: metrics.bias_variance(a, REFERENCE),
    "squared_error": lambda a, b: ll.squared_error(a["w"], b["w"])[1],
    "softmax_cross_entropy": lambda a, b: ll.softmax_cross_entropy(a["w"], ONE_HOT)[1],
    "accuracy": lambda a, b: ll.accuracy(a["w"], ONE_HOT),
    "balanced_accuracy": lambda a, b: ll.balanced_accuracy(a["w"], ONE_HOT),
    "accuracy of labels": lambda a, b: ll.accuracy(ONE_HOT, a["w"]),
    "critic_cost": lambda a, b: symbolic.critic_cost(a["w"]),
}
WITHOUT_DIRECTION = ("cosine_similarity", "angle_degrees", "weight_alignment", "snr", "snr of products")


def test_nan_in_nan_out():
    run = jax.jit(lambda a, b: {name: function(a, b) for name, function in WITH_NAN.items()})
    a, b = cast(A, np.float32), cast(B, np.float32)
    clean = run(a, b)
    del clean["snr of tutorial"]  # its standard error is NaN by definition
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(clean))
    for row, value in ((1, np.nan), ((1, 1), np.nan), (1, np.inf)):
        spoilt = a["w"].copy()
        spoilt[row] = value
        for name, found in run({**a, "w": spoilt}, b).items():
            if value is np.nan or name in WITHOUT_DIRECTION:
                assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(found)), name


def test_what_has_no_direction():
    cosine = metrics.cosine_similarity

    @jax.jit
    def run(zero):
        spoilt = [zero + value for value in (jnp.nan, jnp.inf)]
        pairs = [(zero, each) for each in spoilt] + [(each, zero) for each in spoilt]
        both = cosine(zero, zero), metrics.angle_degrees(zero, zero)
        slopes = [jax.grad(of, (0, 1))(zero, zero + 1) for of in (cosine, metrics.angle_degrees)]
        return [cosine(*pair) for pair in pairs], both, slopes

    spoilt, both, slopes = run(jnp.zeros(3))
    assert np.isnan(spoilt).all() and both == (0, 90)
    assert not np.any(slopes)


@pytest.mark.parametrize("dtype", slow_but(["bfloat16"], DTYPES))
def test_results_are_in_float32_or_wider(dtype):
    for name, function in WITH_NAN.items():
        promotion = "standard" if name == "snr of products" else "strict"
        with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion(promotion):
            found = jax.eval_shape(function, *(cast(tree, dtype) for tree in (A, B)))
        # of the type of the outputs, and of the params
        if dtype != "float64" or name not in ("accuracy of labels", "snr of products"):
            expected = {np.dtype("float64" if dtype == "float64" else "float32")}
            assert {leaf.dtype for leaf in jax.tree.leaves(found)} == expected, name


# Ranges.


def test_cosines_and_angles_of_parallel_vectors_stay_in_range():
    rng = np.random.default_rng(1)
    values, factors = rng.uniform(-1, 1, (500, 3)).astype(np.float32), rng.uniform(-1, 1, (500, 1))
    factors = np.ldexp(factors, np.arange(-100, 100, 0.4)[:, None].astype(int)).astype(np.float32)
    both = jax.vmap(lambda a, b: (metrics.cosine_similarity(a, b), metrics.angle_degrees(a, b)))
    cosines, angles = jax.jit(both)(values, factors * values)
    assert (np.abs(cosines) <= 1).all() and (angles >= 0).all() and (angles <= 180).all()


def test_accuracies_against_counting():
    scores = jax.jit(lambda output, y: (ll.accuracy(output, y), ll.balanced_accuracy(output, y)))
    for guesses, labels in np.random.default_rng(3).integers(0, 3, (20, 2, 8)):
        output, y = np.eye(3, dtype=np.float32)[guesses], np.eye(3, dtype=np.float32)[labels]
        right = guesses == labels
        balanced = np.mean([right[labels == c].mean() for c in set(labels)])
        expected = scores(output, y)
        np.testing.assert_allclose(expected, (right.mean(), balanced), rtol=1e-6)
        # Any numbers whose largest is the label's are labels, and steps count as examples do.
        for like in (5 * y - 2, y.astype(int), y == 1, y.reshape(2, 4, 3)):
            assert scores(output.reshape(like.shape), like) == expected
    output = np.eye(3, dtype=np.float32)
    assert scores(output, output) == (1, 1)
    # Rows without a label or with several have no accuracy.
    for row in ([0, 0, 0], [0.5, 0.5, 0], [np.nan] * 3):
        assert np.isnan(scores(output, np.array([row, *output[1:]], np.float32))).all()
    output, y = np.array([[INF, 0], [-INF, 0]], np.float32), np.eye(2, dtype=np.float32)
    assert scores(output, y) == (1, 1) and scores(output, 1 - y) == (0, 0)
    # not equal, as in float32
    assert scores(np.array([[7, 3], [2**24, 2**24 + 1]], np.int32), y) == (1, 1)


# Losses in closed form, at the ends of their range.

LOGITS = np.array([[-INF, 0.0, 1.0], [2.0, -INF, -INF], [0.5, -1.0, 3.0]], np.float32)
LABELS = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.25, 0.75]], np.float32)


def test_cross_entropy_of_masked_classes_and_its_derivatives():
    # Two classes are left in the first row, one in the second.
    normaliser = math.log(math.exp(0.5) + math.exp(-1) + math.exp(3))
    expected = [math.log(1 + math.e), 0.0, normaliser - 0.25 * -1 - 0.75 * 3]
    np.testing.assert_allclose(ll.softmax_cross_entropy(LOGITS, LABELS), expected, rtol=1e-6)
    assert ll.softmax_cross_entropy(LOGITS[:1], LABELS[1:2]) == INF  # a label on a masked class

    total = lambda *args: jnp.sum(ll.softmax_cross_entropy(*args))  # noqa: E731
    of_logits, of_targets = jax.jit(jax.grad(total, (0, 1)))(LOGITS, LABELS)
    softmax = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(of_logits, softmax - LABELS, atol=1e-6)
    # Of the targets it is -log softmax, but of a masked class the constant 0.
    masked = softmax == 0
    np.testing.assert_allclose(of_targets, np.where(masked, 0, -np.log(softmax + masked)), atol=1e-6)
    # Losses are summed over steps.
    output, y = np.stack([LOGITS] * 2, axis=1), np.stack([LABELS, LABELS[::-1]], axis=1)
    for loss in (ll.softmax_cross_entropy, ll.squared_error):
        steps = loss(LOGITS[2:], LABELS[2:]), loss(LOGITS[2:], LABELS[:1])
        np.testing.assert_allclose(loss(output, y)[2], sum(steps), rtol=1e-6)
    # The difference of these logits has no float32; the probability of the second class is 0.
    logits = jnp.array([[3e38, -3e38]])
    assert ll.softmax_cross_entropy(logits, jnp.array([[1.0, 0.0]])) == 0
    assert jnp.isnan(ll.softmax_cross_entropy(jnp.full((1, 2), -INF), jnp.array([[1.0, 0.0]])))
    images = np.array([[200, 255]], np.uint8)  # integers that float32 holds
    assert ll.squared_error(images, images - 1) == 2
    with jax.enable_x64(True):  # targets in float64 keep their digits
        loss = ll.squared_error(np.zeros((1, 1), np.float32), np.full((1, 1), 1 + 1e-12))
        assert loss == (1 + 1e-12) ** 2 and loss.dtype == "float64"


# Keys.

OTHER, NORMAL, SGD = jax.random.key(0), jax.nn.initializers.normal(1.0), optax.sgd(0.1)
X, Y = RNG.normal(size=(4, 3)).astype(np.float32), RNG.normal(size=(4, 2)).astype(np.float32)
MLP = ll.mlp((3, 4, 4, 2), b_init=NORMAL)
K_CAP = {
    "k_cap_mlp": plasticity.k_cap_mlp((8, 6, 6, 6, 2), 3, edge_probability=0.5),
    "k_cap_recurrent": plasticity.k_cap_recurrent((8, 6, 2), 3, rounds=2, edge_probability=0.5),
}


def batches_of_two_epochs(key):
    schedule = ll.data.batches(4, 2)
    return jax.lax.scan(schedule.next, schedule.init(key), jnp.arange(4))


def train(key):
    rule = ll.node_perturbation(MLP, ll.squared_error, sigma=0.1, num_samples=2)
    rule = rule._replace(init=lambda key, params, x: (jax.random.normal(key), ())[1])
    run = ll.make_train(
        rule, SGD, init=MLP.init, num_updates=4, batch_size=2, every=2,
        evaluate=lambda key, params, state, data: jax.random.uniform(key),
    )  # fmt: skip
    return run(key, ll.data.Splits(*[ll.data.Dataset(X, Y)] * 3))


def init(name, key):
    return RULES[name](MLP, ll.squared_error).init(key, MLP.init(OTHER), X)


def update(name, key):
    rule, params = RULES[name](MLP, ll.squared_error), MLP.init(OTHER)
    return rule.value_and_grad(key, params, rule.init(KEY, params, X), X, Y)


def birth_death(key):
    model = ll.mlp((3, 4, 2), b_init=None)
    params = model.init(OTHER)
    dynamics = ll.birth_death.dynamics(0.5, axes=({"w": 1}, {"w": 0}), charges=lambda params: params[1])
    return dynamics.update(key, params, dynamics.init(params), params)


def critic_epoch(key):
    draw = lambda key: jax.random.normal(key, (4, 5))  # noqa: E731
    judge = symbolic.critic(5, hidden=(4,))
    step = symbolic.critic_step(judge, SGD, penalty=0.1)
    state = symbolic.init_critic(OTHER, judge, SGD)
    return symbolic.train_critic(step, draw, draw, num_epochs=2, iterations=2)(key, state)


def decorrelation(key):
    dynamics = ll.decorrelation.dynamics(0.1, subsample=0.5)
    return dynamics.update(key, dynamics.init(3), X)


def tables(network, key):
    return network.init_tables(key, shared=False, hidden_init=NORMAL, output_init=NORMAL)


DRAWS: dict[str, Callable[[Any], Any]] = {
    "mlp": MLP.init,
    "rnn": ll.rnn((3, 4, 4, 2), b_init=NORMAL).init,
    "convolution": ll.convnet((4, 4, 1), (2, 2), (2,), kernel=2, b_init=NORMAL).init,
    **{f"{of.__name__} of {name}": partial(of, name) for of in (init, update) for name in RULES},
    "half_space": lambda key: ll.data.half_space(key, 3, sizes=(4, 2, 2)),
    "relu_net": lambda key: ll.data.relu_net(key, 3, num_units=4, sizes=(4, 2, 2)),
    "planted": lambda key: ll.data.planted(3, 2).init(key),
    "planted sample": lambda key: (p := ll.data.planted(3, 2)).sample(key, p.init(KEY), 4),
    **{of.__name__: of for of in (batches_of_two_epochs, train, birth_death, critic_epoch, decorrelation)},
    **{name: network.init for name, network in K_CAP.items()},
    **{f"tables of {name}": partial(tables, network) for name, network in K_CAP.items()},
    "meta_init": lambda key: plasticity.meta_init(K_CAP["k_cap_mlp"], K_CAP["k_cap_mlp"].init(OTHER))(key),
    "critic": symbolic.critic(5, hidden=(4, 4), channels=2, embedding=(4,)).init,
    "mlp_generator": symbolic.mlp_generator(1, 5).init,
    "gaussian_process_generator": symbolic.gaussian_process_generator(1, 5, length_scale=0.3).init,
    "dsn_generator": symbolic.dsn_generator(2, 3, norm="softmax", bias=True).init,
    "draw_functions": lambda key: symbolic.draw_functions(
        key, symbolic.parse_library("5*N0*sin(3*U0*X[:,0])"), 4
    ),
}


@pytest.mark.parametrize("name", DRAWS)
def test_no_key_is_consumed_twice(name):
    """Of those that are split or drawn from, anywhere in the program that JAX traces."""
    check_key_reuse(DRAWS[name], KEY)
