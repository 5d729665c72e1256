"""Properties that all metrics and losses share: scale invariance, NaN in NaN out, dtypes, ranges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lax_learning as ll
from lax_learning import metrics
from lax_learning.symbolic import critic_cost
from tests.compare import slow_but

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

FEW = settings(max_examples=12, deadline=None, derandomize=True)
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


# What does not depend on a common scale of a and b. The first does not depend on either scale.
FREE_OF_SCALE = {
    "cosine_similarity": metrics.cosine_similarity,
    "angle_degrees": metrics.angle_degrees,
    "relative_norm": metrics.relative_norm,
    "by_path": lambda a, b: metrics.by_path(metrics.cosine_similarity, a, b),
    "weight_alignment": metrics.weight_alignment,
    "snr": lambda a, b: metrics.snr(a),
    "snr of streamed": lambda a, b: metrics.snr(streamed(a)),
    "snr of parts": lambda a, b: [metrics.snr(each) for each in metrics.stacked_moments(a).parts().values()],
    "bias_variance": parts_of,
}


def cast(tree, dtype, exponent=0):
    """The numbers in `dtype`, times a power of two, which is exact: rounded first, made in NumPy."""
    return jax.tree.map(lambda leaf: np.ldexp(np.asarray(leaf, dtype), exponent).astype(dtype), tree)


def exponents(dtype):
    """Scales at which no entry of A and B becomes subnormal or infinite: these lie in 2^-6..2^2."""
    info = jnp.finfo(dtype)
    return st.integers(int(info.minexp) + 6, int(info.maxexp) - 4)


def entries_in_range():
    magnitudes = np.abs(np.concatenate([leaf.ravel() for leaf in (*A.values(), *B.values())]))
    return magnitudes.min() > 2.0**-6 and magnitudes.max() < 2.0**3


@pytest.mark.parametrize("dtype", slow_but([jnp.float32], DTYPES.values()), ids=DTYPES.keys())
@pytest.mark.parametrize("name", FREE_OF_SCALE)
def test_scale_does_not_change_a_bit(name, dtype):
    assert entries_in_range()
    with jax.enable_x64(dtype == jnp.float64):
        function = jax.jit(FREE_OF_SCALE[name])
        expected = jax.tree.map(np.asarray, function(cast(A, dtype), cast(B, dtype)))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))

        @FEW
        @given(exponents(dtype))
        def check(exponent):
            found = function(cast(A, dtype, exponent), cast(B, dtype, exponent))
            jax.tree.map(np.testing.assert_array_equal, found, expected)

        check()


@pytest.mark.parametrize("name", ["cosine_similarity", "angle_degrees", "by_path"])
def test_scales_of_both_do_not_matter_either(name):
    function = jax.jit(FREE_OF_SCALE[name])
    expected = jax.tree.map(np.asarray, function(cast(A, np.float32), cast(B, np.float32)))

    @FEW
    @given(exponents(jnp.float32), exponents(jnp.float32))
    def check(one, other):
        found = function(cast(A, np.float32, one), cast(B, np.float32, other))
        jax.tree.map(np.testing.assert_array_equal, found, expected)

    check()


def test_relative_norm_is_right_wherever_it_can_be_written():
    function = jax.jit(metrics.relative_norm)
    expected = function(cast(A, np.float32), cast(B, np.float32))
    assert 1 < expected < 4

    @FEW
    @given(exponents(jnp.float32), exponents(jnp.float32))
    def check(one, other):
        found = function(cast(A, np.float32, one), cast(B, np.float32, other))
        if -125 < one - other < 125:
            assert found == np.ldexp(expected, one - other)

    check()
    # The norms themselves have no float32.
    assert function(np.full(64, 3e38, np.float32), np.full(64, -3e38, np.float32)) == 1


@pytest.mark.parametrize("name", ["cosine_similarity", "snr"])
def test_numbers_below_the_smallest_normal_one(name):
    # 2^-149 times integers, so that nothing is rounded on the way.
    integers = jax.tree.map(lambda leaf: np.round(256 * leaf).astype(np.float32), (A, B))
    small = jax.tree.map(lambda leaf: np.ldexp(leaf, -149), integers)
    function = jax.jit(FREE_OF_SCALE[name])
    jax.tree.map(np.testing.assert_array_equal, function(*small), function(*integers))


def test_entries_are_dead_only_if_they_never_vary():
    # Layers of scales 1e50 apart, and one entry 1e-20 times as large as its neighbour.
    a = {
        "small": np.float32(1e-30) * A["w"].astype(np.float32),
        "large": A["w"].astype(np.float32) * np.array([1e20, 1, 0], np.float32),
    }
    snr = jax.jit(metrics.snr)
    alone = snr(A["w"].astype(np.float32))
    for found in (snr(a), jax.jit(lambda a: metrics.snr(streamed(a)))(a)):
        assert found.num_dead == 1
        np.testing.assert_allclose(found.entries["small"], alone.entries, rtol=1e-5)
        np.testing.assert_allclose(found.entries["large"][:2], alone.entries[:2], rtol=1e-5)
        np.testing.assert_allclose(found.total.value, alone.entries[0], rtol=1e-5)
    total = jax.jit(lambda a: metrics.snr(metrics.stacked_moments(a).parts()["small"]).total)(a)
    np.testing.assert_allclose(total.value, alone.total.value, rtol=1e-5)


def test_snr_of_products_at_scales_of_both_factors():
    measured = jax.jit(lambda a: metrics.snr(of_products(a)))
    factors = cast(A, np.float32)
    expected = measured(factors)
    for of_inputs, of_signals in [(0, -100), (0, 60), (-90, 0), (60, 0), (-60, -60), (60, -120), (-110, 60)]:
        scaled = {"w": np.ldexp(factors["w"], of_inputs), "b": np.ldexp(factors["b"], of_signals)}
        found = measured(scaled)
        jax.tree.map(np.testing.assert_array_equal, found.entries, expected.entries)
        assert found.num_dead == 0
        if of_inputs == 0:  # The gradient of the bias knows no inputs: the total is of another vector.
            jax.tree.map(np.testing.assert_array_equal, found.total, expected.total)
    outer = {"b": factors["b"], "w": factors["w"][:, :, None] * factors["b"][:, None]}
    np.testing.assert_allclose(expected.total.value, metrics.snr(outer).total.value, rtol=1e-4)


def test_moments_are_in_the_units_of_the_gradient():
    of_stacked = jax.jit(metrics.stacked_moments)
    for exponent in (-50, 0, 50):
        a = cast(A, np.float32, exponent)
        moments = of_stacked(a, jax.tree.map(lambda leaf: leaf[0], a))
        for name, leaf in a.items():
            wide = leaf.astype(np.float64)
            mean, d = wide.mean(axis=0), wide - wide.mean(axis=0)
            for found, expected in (
                (moments.mean, mean),
                (moments.variance, wide.var(axis=0, ddof=1)),
                (moments.distances, (d**2).sum(axis=1)),
                (moments.along_mean, d @ mean),
                (moments.along_reference, d @ wide[0]),
            ):
                atol = 1e-6 * np.abs(expected).max()
                np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=atol)
    held = jax.tree.map(np.asarray, moments)  # as a user keeps them
    jax.tree.map(np.testing.assert_allclose, held.variance, moments.variance)
    several = jax.jit(jax.vmap(metrics.stacked_moments))(jnp.stack([a["w"], 2 * a["w"]]))
    np.testing.assert_allclose(
        several.variance, [moments.variance["w"], 4 * moments.variance["w"]], rtol=1e-5
    )


# NaN in, NaN out.


def spoiled(tree, value):
    """One entry replaced, of the second row."""
    return {**tree, "w": np.concatenate([tree["w"][:1], np.full_like(tree["w"][1:2], value), tree["w"][2:]])}


def outputs(a):
    return a["w"]


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
    "squared_error": lambda a, b: ll.squared_error(outputs(a), b["w"])[1],
    "softmax_cross_entropy": lambda a, b: ll.softmax_cross_entropy(outputs(a), ONE_HOT)[1],
    "accuracy": lambda a, b: ll.accuracy(outputs(a), ONE_HOT),
    "balanced_accuracy": lambda a, b: ll.balanced_accuracy(outputs(a), ONE_HOT),
    "accuracy of labels": lambda a, b: ll.accuracy(ONE_HOT, a["w"]),
    "critic_cost": lambda a, b: critic_cost(a["w"]),
}


@pytest.mark.parametrize("name", WITH_NAN)
def test_nan_in_nan_out(name):
    function = jax.jit(WITH_NAN[name])
    a, b = cast(A, np.float32), cast(B, np.float32)
    finite = jax.tree.leaves(function(a, b))
    if name != "snr of tutorial":  # Its standard error is NaN by definition.
        assert all(np.isfinite(leaf).all() for leaf in finite)
    for leaf in jax.tree.leaves(function(spoiled(a, np.nan), b)):
        assert np.isnan(leaf).all()
    half = a["w"].copy()
    half[1, 1] = np.nan
    for leaf in jax.tree.leaves(function({**a, "w": half}, b)):
        assert np.isnan(leaf).all()


@pytest.mark.parametrize(
    "name",
    [
        "cosine_similarity",
        "angle_degrees",
        "weight_alignment",
        "snr",
        "snr of products",
    ],
)
def test_infinity_has_no_direction(name):
    for leaf in jax.tree.leaves(
        jax.jit(WITH_NAN[name])(spoiled(cast(A, np.float32), np.inf), cast(B, np.float32))
    ):
        assert np.isnan(leaf).all()


def test_zero_beside_what_is_not_finite():
    zero = jnp.zeros(3)
    for value in (jnp.nan, jnp.inf):
        assert jnp.isnan(metrics.cosine_similarity(zero, zero + value))
        assert jnp.isnan(metrics.cosine_similarity(zero + value, zero))
    assert metrics.cosine_similarity(zero, zero) == 0 and metrics.angle_degrees(zero, zero) == 90


def test_entries_beside_one_that_is_nan_keep_their_ratio():
    a = cast(A, np.float32)["w"]
    half = a.copy()
    half[1, 1] = np.nan
    found, expected = metrics.snr(half).entries, metrics.snr(a).entries
    np.testing.assert_array_equal(found, [expected[0], np.nan, expected[2]])


# Types of results.


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
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


ALIGNED = jax.jit(lambda a, b: (metrics.cosine_similarity(a, b), metrics.angle_degrees(a, b)))
SCORES = jax.jit(lambda output, y: (ll.accuracy(output, y), ll.balanced_accuracy(output, y)))


@FEW
@given(st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3), st.floats(2.0**-100, 2.0**100, width=32))
def test_cosines_and_angles_of_parallel_vectors_stay_in_range(values, scale):
    a = np.asarray(values, np.float32)
    b = a * np.float32(scale)
    for sign in (1, -1):
        cosine, angle = ALIGNED(a, sign * b)
        assert -1 <= cosine <= 1 and 0 <= angle <= 180


@FEW
@given(
    st.lists(st.integers(0, 2), min_size=8, max_size=8), st.lists(st.integers(0, 2), min_size=8, max_size=8)
)
def test_accuracies_against_counting(guesses, labels):
    output, y = np.eye(3, dtype=np.float32)[guesses], np.eye(3, dtype=np.float32)[labels]
    right = np.equal(guesses, labels)
    balanced = np.mean([right[np.equal(labels, c)].mean() for c in set(labels)])
    expected = SCORES(output, y)
    np.testing.assert_allclose(expected, (right.mean(), balanced), rtol=1e-6)
    # Any numbers whose largest is the label's are labels, and steps count as examples do.
    for like in (5 * y - 2, y.astype(int), y == 1, y.reshape(2, 4, 3)):
        assert SCORES(output.reshape(like.shape), like) == expected


def test_what_has_no_direction_has_no_slope():
    def slopes(metric, a):
        return jax.grad(metric, argnums=(0, 1))(a, jnp.ones(2))

    zero = jnp.zeros(2)
    for metric in (metrics.cosine_similarity, metrics.angle_degrees):
        assert not np.any(slopes(metric, zero))
