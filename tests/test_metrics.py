"""Metrics against closed forms, brute force in NumPy, and each other."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lax_learning as ll
from lax_learning import metrics
from lax_learning._sites._equations import all_equations
from lax_learning._sites._factors import has_factors
from tests.compare import assert_near, flat, normal, slow_but, squares
from tests.registry import RULES
from tests.zoo import ZOO

# Much is traced here: annotations are checked where the same functions meet their other oracles.
pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(40)


def rows(tree):
    """Stacked gradients as `[T, parameters]` in float64."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


assert_close = partial(assert_near, rtol=1e-4, atol=1e-5)


# Alignment.


def test_cosine_angle_and_norm_of_known_angles():
    a, zero = {"w": jnp.array([3.0, 0.0]), "b": [jnp.array(0.0)]}, {"w": jnp.zeros(2), "b": [jnp.array(0.0)]}
    for degrees in (0.0, 30.0, 90.0, 180.0):
        radians = math.radians(degrees)
        b = {"w": jnp.array([0.5 * math.cos(radians), 0.0]), "b": [jnp.array(0.5 * math.sin(radians))]}
        np.testing.assert_allclose(metrics.cosine_similarity(a, b), math.cos(radians), atol=1e-6)
        # At 0 and 180 degrees a rounding of 6e-8 in the cosine is sqrt(2 x 6e-8) = 3.5e-4 radians.
        np.testing.assert_allclose(metrics.angle_degrees(a, b), degrees, atol=0.05)
        np.testing.assert_allclose(metrics.relative_norm(a, b), 6.0, rtol=1e-6)
    assert metrics.cosine_similarity(a, zero) == metrics.relative_norm(zero, a) == 0.0
    assert metrics.inner_product({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, -5.0])}) == -7.0


def test_by_path():
    a = ({"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([1.0, 1.0]), "b": [jnp.array(2.0)]})
    b = ({"w": jnp.array([0.0, 1.0])}, {"w": jnp.array([2.0, 2.0]), "b": [jnp.array(-4.0)]})
    found = metrics.by_path(metrics.inner_product, a, b)
    assert found == {"0/w": 0, "1/b/0": -8, "1/w": 4}
    assert metrics.by_path(metrics.inner_product, a, b, depth=1) == {"0": 0, "1": -4}
    assert metrics.by_path(metrics.inner_product, a, b, depth=2) == {"0/w": 0, "1/b": -8, "1/w": 4}
    assert metrics.by_path(metrics.inner_product, a[0]["w"], a[0]["w"]) == {"": 1}


def test_weight_alignment():
    w, feedback = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[1.0, 1.0], [1.0, 1.0]])
    params = {"a": {"w": w}, "b": {"w": w, "b": w[0]}, "c": {"w": w}}
    found = metrics.weight_alignment(
        params, {"a": {"w": None}, "b": {"w": feedback, "b": None}, "c": {"w": -w}}
    )
    assert list(found) == ["b/w", "c/w"]
    np.testing.assert_allclose(list(found.values()), [1 / math.sqrt(2), -1.0], rtol=1e-6)


# Signal-to-noise ratio and bias against brute force.


def stacked(num_samples):
    return {"w": 0.5 + normal(40, num_samples, 3, 2), "b": normal(41, num_samples, 4)}


REFERENCE = {"w": jnp.full((3, 2), 0.3), "b": jnp.array([0.1, -0.2, 0.0, 0.4])}


def jackknife(statistic, samples):
    """The standard error from literally leaving out each sample."""
    left_out = np.array([statistic(np.delete(samples, t, axis=0)) for t in range(len(samples))])
    count = len(samples)
    return math.sqrt((count - 1) / count * np.sum((left_out - left_out.mean()) ** 2))


def debiased_snr(samples):
    noise = samples.var(axis=0, ddof=1).sum()
    return ((samples.mean(axis=0) ** 2).sum() - noise / len(samples)) / noise


@pytest.mark.parametrize("num_samples", [3, 13])
def test_snr_and_bias_and_variance_against_brute_force(num_samples):
    gradients = stacked(num_samples)
    samples, reference = rows(gradients), flat(REFERENCE)

    @jax.jit
    def measured(gradients):
        return metrics.snr(gradients), metrics.bias_variance(gradients, REFERENCE)

    snr, parts = measured(gradients)
    mean, variance = samples.mean(axis=0), samples.var(axis=0, ddof=1)
    expected = (mean**2 - variance / num_samples) / variance
    np.testing.assert_allclose(flat(snr.entries), expected, rtol=1e-3, atol=1e-4)
    assert snr.num_dead == 0

    def noise(g):
        return g.var(axis=0, ddof=1).sum()

    def squared_bias(g):
        return ((g.mean(axis=0) - reference) ** 2).sum() - noise(g) / len(g)

    square = (reference**2).sum()
    for name, (value, standard_error), statistic in (
        ("snr", snr.total, debiased_snr),
        ("squared_bias", parts.squared_bias, squared_bias),
        ("variance", parts.variance, noise),
        ("mean_squared_error", parts.mean_squared_error, lambda g: ((g - reference) ** 2).sum(axis=1).mean()),
        ("relative_bias", parts.relative_bias, lambda g: squared_bias(g) / square),
        ("relative_variance", parts.relative_variance, lambda g: noise(g) / square),
    ):
        np.testing.assert_allclose(value, statistic(samples), rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(standard_error, jackknife(statistic, samples), rtol=1e-3, err_msg=name)


def test_dead_entries_are_left_out_and_counted():
    num_samples = 13  # whose inverse is no power of two

    @jax.jit
    def measured(live, dead):
        return metrics.snr(live), metrics.snr({"live": live, "dead": dead}), metrics.snr(dead)

    for constant in (0.0, 0.1, 1.7, -1e-3):
        dead = np.full((num_samples, 5), constant, np.float32)
        alone, together, nothing_but_dead = measured(stacked(num_samples), dead)
        assert together.num_dead == 5
        assert (flat(together.entries["dead"]) == 0).all()
        assert_close(together.total, alone.total)
        assert nothing_but_dead.total.value == 0 and nothing_but_dead.num_dead == 5


def test_standard_error_of_noise_that_one_gradient_holds_alone():
    """Without that gradient the ratio is 0: that of gradients that never vary."""
    samples = np.array([[0.5], [-1.5], [0.5]], np.float32)

    def ratio(kept):
        trace = kept.var(axis=0, ddof=1).sum()
        return (np.sum(kept.mean(axis=0) ** 2) - trace / len(kept)) / trace if trace else 0

    expected = jackknife(ratio, samples.astype(float))
    np.testing.assert_allclose(metrics.snr(samples).total.standard_error, expected, rtol=1e-3)


# Moments.


def fields_of(moments):
    return (moments.mean, moments.variance, moments.distances, moments.along_mean, moments.along_reference)


def brute_moments(gradients, reference=None):
    """All properties of `Moments`, leaf by leaf, in float64."""

    def of_leaf(leaf, r):
        g = np.asarray(leaf, np.float64)
        g = g.reshape(len(g), -1)
        mean, d = g.mean(axis=0), g - g.mean(axis=0)
        shape = leaf.shape[1:]
        variance = (d**2).sum(axis=0) / (len(g) - 1)
        return mean.reshape(shape), variance.reshape(shape), (d**2).sum(axis=1), d @ mean, d @ r

    leaves, structure = jax.tree.flatten(gradients)
    references = [np.zeros(leaf[0].size) for leaf in leaves]
    if reference is not None:
        references = [np.asarray(r, np.float64).ravel() for r in jax.tree.leaves(reference)]
    fields = zip(*(of_leaf(*pair) for pair in zip(leaves, references, strict=True)), strict=True)
    return tuple(structure.unflatten(field) for field in fields)


@pytest.mark.parametrize(("num_samples", "chunk_size", "reference"), [(12, 5, REFERENCE), (13, 8, None)])
def test_streamed_moments_against_brute_force(num_samples, chunk_size, reference):
    gradients = stacked(num_samples)

    @jax.jit
    def both(gradients):
        streamed = metrics.streamed_moments(
            lambda i: jax.tree.map(lambda leaf: leaf[i], gradients),
            jnp.arange(num_samples),
            reference,
            chunk_size=chunk_size,
        )
        return streamed, metrics.stacked_moments(gradients, reference)

    moments, at_once = both(gradients)
    assert moments.num_samples == num_samples
    assert_close(fields_of(moments), brute_moments(gradients, reference))
    assert_close(fields_of(at_once), fields_of(moments))


# Moments of rules.


def hard_model():
    """All that is no outer product, yet small: shared, tied, in a scan, a kernel; and leaves not trained."""

    def apply(p, x):
        h = jnp.tanh((x @ p["w"] + p["b"]) * p["scale"]) @ p["frozen"]
        g = jnp.tanh(jnp.tanh(h.reshape(-1, 3, 2) @ p["twice"]) @ p["twice"]).swapaxes(0, 1)
        c, _ = jax.lax.scan(lambda c, v: (jnp.tanh(c @ p["u"] + v), None), jnp.zeros_like(g[0]), g)
        t = jnp.tanh(jnp.tanh(c @ p["tied"]) @ p["tied"].T)
        maps = h.reshape(-1, 6, 1)
        k = jax.lax.conv_general_dilated(
            maps, p["kernel"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )
        return (h * t.sum(-1, keepdims=True) + jnp.tanh(k).sum(-1)) @ p["out"], {"count": p["count"] + 1}

    shapes = {
        "w": (5, 6), "b": (6,), "scale": (6,), "frozen": (6, 6), "twice": (2, 2), "u": (2, 2), "tied": (2, 2),
        "kernel": (2, 1, 2), "out": (6, 3),
    }  # fmt: skip
    params: Any = {name: 0.5 * normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    params["count"] = jnp.array(3)
    model = ll.Model(apply, has_aux=True, trainable=lambda path: path not in ("frozen", "count"))
    return model, params, normal(9, 7, 5)


def on_mlp(dtype=jnp.float32):
    model = ll.mlp((5, 4, 3), activation=jnp.tanh, dtype=dtype)
    return model, model.init(KEY), normal(9, 14, 5).astype(dtype)


def of_zoo(name):
    def make():
        case = ZOO[name]()
        return ll.Model(case.apply), case.params, case.x

    return make


MASKED = {
    "dfa of w": lambda model, loss: ll.direct_feedback_alignment(model, loss, where="w"),
    "np of w": lambda model, loss: ll.node_perturbation(model, loss, sigma=0.1, where="w"),
    "activities of w": lambda model, loss: ll.forward_gradient(model, loss, perturb="activities", where="w"),
    "kp of w": lambda model, loss: ll.kolen_pollack(model, loss, optimizer=optax.sgd(0.1), where="[tw]*"),
}
WITH_SIGNALS = [
    "backprop",
    "feedback_alignment",
    "direct_feedback_alignment",
    "node_perturbation",
    "sign_symmetry_unit",
    "kolen_pollack",
]
EXAMPLES = {
    "mlp": (on_mlp, ["node_perturbation_3"]),
    "mlp, all rules": (on_mlp, list(RULES)),
    "hard": (hard_model, ["kp of w"]),
    "hard, all rules": (hard_model, WITH_SIGNALS + list(MASKED)),
    "half": (partial(on_mlp, jnp.bfloat16), WITH_SIGNALS),
    "strided": (
        of_zoo("linen_separable_strided_convolution"),
        ["backprop", "direct_feedback_alignment", "node_perturbation"],
    ),
    "tied embedding": (of_zoo("tied_embedding"), ["kolen_pollack", "direct_feedback_alignment"]),
}
"""By the kind of model: it, its params and a batch; its rules."""


@pytest.mark.parametrize("kind", slow_but(["hard"], EXAMPLES))
def test_example_moments_are_those_of_gradients_of_single_examples(kind):
    make, names = EXAMPLES[kind]
    model, params, x = make()
    size = len(jax.tree.leaves(x)[0])
    output = jax.eval_shape(lambda params: model(params, x)[0], params)
    y = normal(2, *output.shape).astype(output.dtype)
    rules = {name: (RULES | MASKED)[name](model, squares) for name in names}
    assert has_factors(model, params, x) is (kind != "tied embedding")

    @jax.jit
    def measured(params):
        found = {}
        for name, rule in rules.items():
            state = rule.init(KEY, params, x)

            def one(key, x, y, rule=rule, state=state):
                x, y = jax.tree.map(lambda leaf: leaf[None], (x, y))
                return rule.value_and_grad(key, params, state, x, y)[1]

            grads = jax.vmap(one)(jax.random.split(KEY, size), x, y)
            found[name] = grads, metrics.example_moments(model, rule, KEY, params, state, x, y)
        return found

    # Signals and gradients of a model in half precision are rounded apart, to 8 bits.
    rtol = 2.0**-5 if kind == "half" else 2e-4
    for name, (grads, moments) in measured(params).items():
        parts = moments.parts()
        assert moments.num_samples == size
        for path, (_, samples) in zip(parts, jax.tree.leaves_with_path(grads), strict=True):
            largest = max(np.abs(np.asarray(samples, np.float64)).max(), 1e-6)
            expected = brute_moments(np.asarray(samples, np.float64))
            for i, (field, exact) in enumerate(zip(fields_of(parts[path]), expected, strict=True)):
                (value,) = jax.tree.leaves(field)
                scale = largest if i == 0 else largest**2 * (samples[0].size if i > 1 else 1)
                np.testing.assert_allclose(
                    value, exact, rtol=rtol, atol=rtol * scale, err_msg=f"{name}, {path}"
                )


def test_signals_of_ones_own_are_checked():
    model, params, x = on_mlp()
    rule = ll.backprop(model, squares)
    first = {"0/w": jnp.ones((1, 4))}
    for deltas, pattern in (
        (first, r": expected a dict with the entries \['0/w', '1/w'\]"),
        ({**first, "1/w": jnp.ones((1, 4))}, r"\['1/w'\]: expected shape \[1, 3\], got"),
    ):
        own = rule._replace(signals=lambda *_, deltas=deltas: ll.Signals(deltas))
        with pytest.raises(ValueError, match="^signals.deltas" + pattern):
            metrics.example_moments(model, own, KEY, params, (), x, x[:, :3])


@pytest.mark.parametrize(
    ("name", "on"),
    slow_but(
        [("node_perturbation", on_mlp)], [("node_perturbation", on_mlp), ("feedback_alignment", hard_model)]
    ),
)
def test_draw_moments_are_those_of_stacked_draws(name, on):
    model, params, x = on()
    y = x[:, :3]
    rule = RULES[name](model, squares)

    @jax.jit
    def measured(params):
        state, keys = rule.init(KEY, params, x), jax.random.split(KEY, 14)
        exact = ll.backprop(model, squares).value_and_grad(KEY, params, (), x, y)[1]
        moments = metrics.draw_moments(rule, KEY, params, state, x, y, exact, 14)
        errors = [
            metrics.bias_variance(part).mean_squared_error.value
            for part in (moments, *moments.parts(depth=1).values())
        ]
        draws = jax.vmap(lambda key: rule.value_and_grad(key, params, state, x, y)[1])(keys)
        return moments, errors, draws, exact

    moments, (total, *parts), draws, exact = measured(params)
    assert_close(fields_of(moments), brute_moments(draws, exact), rtol=1e-3, atol=1e-3)
    expected = ((rows(draws) - flat(exact)) ** 2).sum(axis=1).mean()
    np.testing.assert_allclose([total, np.sum(parts)], expected, rtol=1e-3)


def test_product_moments():
    """Of outer products, with a part that is the same for all, and where the variance is lost in squares."""
    x, d = normal(0, 12, 3), 2 + normal(1, 12, 4)
    rest = jnp.arange(12.0).reshape(3, 4)
    for spread in (1.0, 1e-3):
        near = 1 + spread * x
        for added in (None, rest):
            given = near, d if spread == 1 else 1 + spread * d
            found = jax.jit(metrics.product_moments)(*given, added)
            wide = (np.asarray(each, np.float64) for each in given)
            gradients = np.einsum("ti,tj->tij", *wide) + (0 if added is None else np.asarray(added))
            assert_close(fields_of(found), brute_moments(gradients), rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("name", ["node_perturbation", "backprop"])
def test_example_moments_hold_no_gradients_of_all_examples(name):
    network = ll.mlp((100, 50, 10), activation=jnp.tanh)
    rule, params = RULES[name](network, ll.squared_error), network.init(KEY)

    def statistics(x, y):
        moments = metrics.example_moments(network, rule, KEY, params, (), x, y)
        return metrics.snr(moments).total, moments.variance

    program = jax.make_jaxpr(statistics)(jnp.zeros((512, 100)), jnp.zeros((512, 10)))
    largest = max(out.aval.size for equation in all_equations(program.jaxpr) for out in equation.outvars)
    assert largest <= max(512 * 100, 8 * 100 * 50)  # the batch, or one chunk of the largest weight
