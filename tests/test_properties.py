"""Properties that metrics and losses share: scales, NaN in NaN out, dtypes, ranges; losses in closed form."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll
from lax_learning import metrics
from lax_learning.symbolic import critic_cost
from tests.compare import assert_same, slow_but

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

DTYPES = {"float16": jnp.float16, "bfloat16": jnp.bfloat16, "float32": jnp.float32, "float64": jnp.float64}
RNG = np.random.default_rng(17)
A = {"w": RNG.normal(size=(8, 3)) + 1, "b": RNG.normal(size=(8, 2))}
B = {"w": RNG.normal(size=(8, 3)), "b": RNG.normal(size=(8, 2))}
REFERENCE = {"w": np.full(3, 0.75), "b": np.array([0.5, -0.25])}
MODEL = ll.mlp((3, 2))
RULE = ll.backprop(MODEL, lambda output, y: jnp.sum(output * y, axis=-1))
KEY = jax.random.key(3)


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


# What does not depend on a scale of a and b, or on a common one.
FREE_OF_BOTH = {
    "cosine_similarity": metrics.cosine_similarity,
    "angle_degrees": metrics.angle_degrees,
    "by_path": lambda a, b: metrics.by_path(metrics.cosine_similarity, a, b),
}
FREE_OF_SCALE = FREE_OF_BOTH | {
    "relative_norm": metrics.relative_norm,
    "weight_alignment": metrics.weight_alignment,
    "snr": lambda a, b: metrics.snr(a),
    "snr of streamed": lambda a, b: metrics.snr(streamed(a)),
    "snr of parts": lambda a, b: [metrics.snr(each) for each in metrics.stacked_moments(a).parts().values()],
    "bias_variance": parts_of,
}


def cast(tree, dtype, exponent=0):
    """The numbers in `dtype`, times a power of two, which is exact: rounded first, made in NumPy."""
    return jax.tree.map(lambda leaf: np.ldexp(np.asarray(leaf, dtype), exponent).astype(dtype), tree)


def scales(dtype):
    """Ends and middle of the scales at which no entry of A and B becomes subnormal or infinite."""
    magnitudes = np.abs(np.concatenate([leaf.ravel() for leaf in (*A.values(), *B.values())]))
    assert magnitudes.min() > 2.0**-6 and magnitudes.max() < 2.0**3
    info = jnp.finfo(dtype)
    return int(info.minexp) + 6, 3, int(info.maxexp) - 4


@pytest.mark.parametrize("dtype", slow_but([jnp.float32], DTYPES.values()), ids=DTYPES.keys())
@pytest.mark.parametrize("name", FREE_OF_SCALE)
def test_scale_does_not_change_a_bit(name, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        function = jax.jit(FREE_OF_SCALE[name])
        expected = function(cast(A, dtype), cast(B, dtype))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
        for one, other in itertools.product(scales(dtype), repeat=2):
            other = other if name in FREE_OF_BOTH else one
            assert_same(function(cast(A, dtype, one), cast(B, dtype, other)), expected)


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


@pytest.mark.parametrize("name", ["cosine_similarity", "snr"])
def test_numbers_below_the_smallest_normal_one(name):
    # 2^-149 times integers, so that nothing is rounded on the way.
    integers = jax.tree.map(lambda leaf: np.round(256 * leaf).astype(np.float32), (A, B))
    function = jax.jit(FREE_OF_SCALE[name])
    assert_same(function(*jax.tree.map(lambda leaf: np.ldexp(leaf, -149), integers)), function(*integers))


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
    "critic_cost": lambda a, b: critic_cost(a["w"]),
}
WITHOUT_DIRECTION = ("cosine_similarity", "angle_degrees", "weight_alignment", "snr", "snr of products")


@pytest.mark.parametrize("name", WITH_NAN)
def test_nan_in_nan_out(name):
    function = jax.jit(WITH_NAN[name])
    a, b = cast(A, np.float32), cast(B, np.float32)
    if name != "snr of tutorial":  # Its standard error is NaN by definition.
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(function(a, b)))
    for row, value in ((1, np.nan), ((1, 1), np.nan), (1, np.inf)):
        if value is np.nan or name in WITHOUT_DIRECTION:
            spoilt = a["w"].copy()
            spoilt[row] = value
            assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(function({**a, "w": spoilt}, b)))


def test_what_has_no_direction():
    @jax.jit
    def run(zero):
        spoilt = [zero + value for value in (jnp.nan, jnp.inf)]
        pairs = [(zero, each) for each in spoilt] + [(each, zero) for each in spoilt]
        both = metrics.cosine_similarity(zero, zero), metrics.angle_degrees(zero, zero)
        slopes = [
            jax.grad(metric, argnums=(0, 1))(zero, zero + 1)
            for metric in (metrics.cosine_similarity, metrics.angle_degrees)
        ]
        return [metrics.cosine_similarity(*pair) for pair in pairs], both, slopes

    spoilt, both, slopes = run(jnp.zeros(3))
    assert np.isnan(spoilt).all() and both == (0, 90)
    assert not np.any(slopes)


@pytest.mark.parametrize("dtype", slow_but([jnp.bfloat16], DTYPES.values()), ids=DTYPES.keys())
@pytest.mark.parametrize("name", WITH_NAN)
def test_results_are_in_float32_or_wider(name, dtype):
    promotion = "standard" if name == "snr of products" else "strict"
    with jax.enable_x64(dtype == jnp.float64), jax.numpy_dtype_promotion(promotion):
        found = jax.eval_shape(WITH_NAN[name], *(cast(tree, dtype) for tree in (A, B)))
    expected = {np.dtype(np.float64 if dtype == jnp.float64 else np.float32)}
    if dtype == jnp.float64 and name in ("accuracy of labels", "snr of products"):
        return  # of the type of the outputs, and of the params
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == expected


# Ranges.


def test_cosines_and_angles_of_parallel_vectors_stay_in_range():
    values = np.random.default_rng(1).uniform(-1, 1, (500, 3)).astype(np.float32)
    factors = np.ldexp(
        np.random.default_rng(2).uniform(-1, 1, (500, 1)), np.arange(-100, 100, 0.4)[:, None].astype(int)
    )
    both = jax.vmap(lambda a, b: (metrics.cosine_similarity(a, b), metrics.angle_degrees(a, b)))
    cosines, angles = jax.jit(both)(values, (factors * values).astype(np.float32))
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


# Losses in closed form, at the ends of their range.

INF = np.inf
LOGITS = np.array([[-INF, 0.0, 1.0], [2.0, -INF, -INF], [0.5, -1.0, 3.0]], np.float32)
LABELS = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.25, 0.75]], np.float32)


def test_cross_entropy_of_masked_classes_and_its_derivatives():
    # Two classes are left in the first row, one in the second.
    normaliser = math.log(math.exp(0.5) + math.exp(-1) + math.exp(3))
    expected = [math.log(1 + math.e), 0.0, normaliser - 0.25 * -1 - 0.75 * 3]
    np.testing.assert_allclose(ll.softmax_cross_entropy(LOGITS, LABELS), expected, rtol=1e-6)
    assert ll.softmax_cross_entropy(LOGITS[:1], LABELS[1:2]) == INF  # a label on a masked class

    def loss(logits, y):
        return jnp.sum(ll.softmax_cross_entropy(logits, y))

    of_logits, of_targets = jax.jit(jax.grad(loss, (0, 1)))(LOGITS, LABELS)
    softmax = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(of_logits, softmax - LABELS, atol=1e-6)
    # Of the targets it is -log softmax, but of a masked class the constant 0.
    masked = softmax == 0
    np.testing.assert_allclose(of_targets, np.where(masked, 0, -np.log(softmax + masked)), atol=1e-6)


def test_losses_sum_over_steps():
    output, y = jnp.stack([LOGITS] * 2, axis=1), jnp.stack([LABELS, LABELS[::-1]], axis=1)
    for loss in (ll.softmax_cross_entropy, ll.squared_error):
        steps = loss(LOGITS[2:], LABELS[2:]), loss(LOGITS[2:], LABELS[:1])
        np.testing.assert_allclose(loss(output, y)[2], sum(steps), rtol=1e-6)


def test_losses_of_numbers_far_apart():
    # The difference of these logits has no float32; the probability of the second class is 0.
    logits = jnp.array([[3e38, -3e38]])
    assert ll.softmax_cross_entropy(logits, jnp.array([[1.0, 0.0]])) == 0
    assert jnp.isnan(ll.softmax_cross_entropy(jnp.full((1, 2), -INF), jnp.array([[1.0, 0.0]])))
    images = np.array([[200, 255]], np.uint8)  # integers that float32 holds
    assert ll.squared_error(images, images - 1) == 2
    with jax.enable_x64(True):  # targets in float64 keep their digits
        loss = ll.squared_error(np.zeros((1, 1), np.float32), np.full((1, 1), 1 + 1e-12))
        assert loss == (1 + 1e-12) ** 2 and loss.dtype == jnp.float64


@pytest.mark.parametrize("score", [ll.accuracy, ll.balanced_accuracy])
def test_scores_at_the_ends_of_their_range(score):
    score, output = jax.jit(score), jnp.eye(3)
    assert score(output, output) == 1
    # Rows without a label or with several have no accuracy.
    for row in (jnp.zeros(3), jnp.array([0.5, 0.5, 0.0]), jnp.full(3, jnp.nan)):
        assert jnp.isnan(score(output, output.at[0].set(row)))
    output = jnp.array([[INF, 0.0], [-INF, 0.0]])
    assert score(output, jnp.eye(2)) == 1
    assert score(output, 1 - jnp.eye(2)) == 0
    assert score(jnp.array([[7, 3], [2**24, 2**24 + 1]]), jnp.eye(2)) == 1  # not equal, as in float32
