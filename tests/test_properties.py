"""Properties of metrics and losses: scales, NaN in NaN out, dtypes, ranges; and no key is consumed twice.

Keys of birth-death, decorrelation and a step of the critic are checked where their other properties are.
"""

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
    """Of a and b, or a common one; the ratio of two norms is right wherever it can be written."""

    @jax.jit
    def run(a, b, other):
        found = {
            "cosine": metrics.cosine_similarity(a, other),
            "angle": metrics.angle_degrees(a, other),
            "snr": metrics.snr(a),
            "snr of streamed": metrics.snr(streamed(a)),
            "bias": metrics.bias_variance(a, jax.tree.map(lambda leaf: leaf[0], b))[3:],
        }
        return found, metrics.relative_norm(a, other)

    with jax.enable_x64(dtype == "float64"):
        a, b = cast(A, dtype), cast(B, dtype)
        expected, ratio = run(a, b, b)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected)) and 1 < ratio < 4
        info = jnp.finfo(ratio.dtype)
        for one, other in itertools.product(scales(dtype), repeat=2):
            found, moved = run(cast(a, dtype, one), cast(b, dtype, one), cast(b, dtype, other))
            assert_same(found, expected)
            if info.minexp <= one - other <= info.maxexp - 2:
                assert moved == np.ldexp(ratio, one - other)
    if dtype == "float32":
        # Subnormal numbers: 2^-149 times integers, so that nothing is rounded on the way.
        a, b = jax.tree.map(lambda leaf: np.round(256 * leaf).astype(dtype), (A, B))
        small, found = run(*(cast(tree, dtype, -149) for tree in (a, b, b)))[0], run(a, b, b)[0]
        for name in ("cosine", "snr"):
            assert_same(small[name], found[name])
        # The norms themselves have no float32.
        largest = jax.tree.map(lambda leaf: np.full(leaf.shape, 3e38, dtype), A)
        assert run(largest, b, jax.tree.map(np.negative, largest))[1] == 1


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
    cosine, angle = metrics.cosine_similarity, metrics.angle_degrees

    @jax.jit
    def run(zero):
        spoilt = [pair for value in (jnp.nan, INF) for pair in ((zero, zero + value), (zero + value, zero))]
        slopes = [jax.grad(of, (0, 1))(zero, zero + 1) for of in (cosine, angle)]
        return [cosine(*pair) for pair in spoilt], (cosine(zero, zero), angle(zero, zero)), slopes

    spoilt, both, slopes = run(jnp.zeros(3))
    assert np.isnan(spoilt).all() and both == (0, 90) and not np.any(slopes)


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
    one_hot = np.eye(3, dtype=np.float32)
    for guesses, labels in np.random.default_rng(3).integers(0, 3, (20, 2, 8)):
        output, y = one_hot[guesses], one_hot[labels]
        right = guesses == labels
        balanced = np.mean([right[labels == c].mean() for c in set(labels)])
        expected = scores(output, y)
        np.testing.assert_allclose(expected, np.array([right.mean(), balanced]), rtol=1e-6)
        # Any numbers whose largest is the label's are labels, and steps count as examples do.
        for like in (5 * y - 2, y == 1, y.reshape(2, 4, 3)):
            assert scores(output.reshape(like.shape), like) == expected
    # Rows without a label or with several have no accuracy; infinite outputs have an order.
    output, y = one_hot[[0, 1] * 4].copy(), one_hot[[0, 1] * 4]
    for row in ([0, 0, 0], [0.5, 0.5, 0], [np.nan] * 3):
        assert np.isnan(scores(output, np.array([row, *y[1:]], np.float32))).all()
    output[:, 0] = [INF, -INF] * 4
    assert scores(output, y) == (1, 1) and scores(output, y[::-1]) == (0, 0)
    # not equal, as in float32
    assert scores(np.array([[7, 3], [2**24, 2**24 + 1]], np.int32), np.eye(2, dtype=np.float32)) == (1, 1)


# Losses in closed form, at the ends of their range.

LOGITS = np.array([[-INF, 0.0, 1.0], [2.0, -INF, -INF], [0.5, -1.0, 3.0]], np.float32)
LABELS = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.25, 0.75]], np.float32)


def test_losses_and_their_derivatives_in_closed_form():
    output, y = np.stack([LOGITS] * 2, axis=1), np.stack([LABELS, LABELS[::-1]], axis=1)
    edges = np.array([[3e38, -3e38], [-INF, -INF]], np.float32)  # their difference has no float32; no class
    images = np.array([[200, 255]], np.uint8)  # integers that float32 holds

    @jax.jit
    def run(logits, labels):
        entropy, turned = ll.softmax_cross_entropy, labels[::-1]
        slopes = jax.grad(lambda *pair: entropy(*pair).sum(), (0, 1))(logits, labels)
        steps = [
            (loss(output, y)[2], loss(logits, labels)[2] + loss(logits, turned)[2])
            for loss in (entropy, ll.squared_error)
        ]
        others = entropy(logits[:1], labels[1:2]), entropy(edges, np.eye(2, dtype=np.float32)[[0, 0]])
        return entropy(logits, labels), slopes, steps, others, ll.squared_error(images, images - 1)

    values, (of_logits, of_targets), steps, (masked, ends), of_images = run(LOGITS, LABELS)
    # Two classes are left in the first row, one in the second.
    normaliser = math.log(math.exp(0.5) + math.exp(-1) + math.exp(3))
    expected = [math.log(1 + math.e), 0.0, normaliser - 0.25 * -1 - 0.75 * 3]
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    softmax = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(of_logits, softmax - LABELS, atol=1e-6)
    # Of the targets it is -log softmax, but of a masked class the constant 0; its label has an infinite loss.
    off = softmax == 0
    np.testing.assert_allclose(of_targets, np.where(off, 0, -np.log(softmax + off)), atol=1e-6)
    assert masked == INF and ends[0] == 0 and np.isnan(ends[1]) and of_images == 2
    for pair in steps:  # losses are summed over steps
        np.testing.assert_allclose(*pair, rtol=1e-6)
    with jax.enable_x64(True):  # targets in float64 keep their digits
        loss = ll.squared_error(np.zeros((1, 1), np.float32), np.full((1, 1), 1 + 1e-12))
        assert loss == (1 + 1e-12) ** 2 and loss.dtype == "float64"


# Keys.

OTHER, NORMAL, SGD = jax.random.key(0), jax.nn.initializers.normal(1.0), optax.sgd(0.1)
X, Y = RNG.normal(size=(4, 3)).astype(np.float32), RNG.normal(size=(4, 2)).astype(np.float32)
MLP = ll.mlp((3, 4, 4, 2), b_init=NORMAL)
K_CAP_MLP = plasticity.k_cap_mlp((8, 6, 6, 6, 2), 3, edge_probability=0.5)


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


def of_rule(name, key):
    """The initial state and an update from it."""
    rule, params, (first, second) = RULES[name](MLP, ll.squared_error), MLP.init(OTHER), jax.random.split(key)
    return rule.value_and_grad(second, params, rule.init(first, params, X), X, Y)


def critic_epoch(key):
    draw = lambda key: jax.random.normal(key, (4, 5))  # noqa: E731
    judge = symbolic.critic(5, hidden=(4,))
    step = symbolic.critic_step(judge, SGD, penalty=0.1)
    state = symbolic.init_critic(OTHER, judge, SGD)
    return symbolic.train_critic(step, draw, draw, num_epochs=2, iterations=2)(key, state)


def planted(key):
    problem, (first, second) = ll.data.planted(3, 2), jax.random.split(key)
    return problem.sample(second, problem.init(first), 4)


def k_cap(network, key):
    first, second = jax.random.split(key)
    options = {"shared": False, "hidden_init": NORMAL, "output_init": NORMAL}
    return network.init(first), network.init_tables(second, **options)


DRAWS: dict[str, Callable[[Any], Any]] = {
    "mlp": MLP.init,
    "rnn": ll.rnn((3, 4, 4, 2), b_init=NORMAL).init,
    "convolution": ll.convnet((4, 4, 1), (2, 2), (2,), kernel=2, b_init=NORMAL).init,
    **{name: partial(of_rule, name) for name in RULES},
    "half_space": lambda key: ll.data.half_space(key, 3, sizes=(4, 2, 2)),
    "relu_net": lambda key: ll.data.relu_net(key, 3, num_units=4, sizes=(4, 2, 2)),
    **{of.__name__: of for of in (batches_of_two_epochs, train, critic_epoch, planted)},
    "k_cap_mlp": partial(k_cap, K_CAP_MLP),
    "k_cap_recurrent": partial(
        k_cap, plasticity.k_cap_recurrent((8, 6, 2), 3, rounds=2, edge_probability=0.5)
    ),
    "meta_init": lambda key: plasticity.meta_init(K_CAP_MLP, K_CAP_MLP.init(OTHER))(key),
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
