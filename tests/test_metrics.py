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


def test_cosine_angle_and_norm_of_known_angles():
    """And of a vector without direction, the last."""
    degrees = np.array([0, 30, 90, 180])
    cosines, sines = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))

    @jax.jit
    @jax.vmap
    def measured(w, b):
        a, b = {"w": 3.0, "b": [0.0]}, {"w": w, "b": [b]}
        both = metrics.relative_norm(a, b), metrics.relative_norm(b, a)
        return metrics.cosine_similarity(a, b), metrics.angle_degrees(a, b), *both

    cosine, angle, *norms = measured(np.append(0.5 * cosines, 0), np.append(0.5 * sines, 0))
    np.testing.assert_allclose(cosine, [*cosines, 0], atol=1e-6)
    # At 0 and 180 degrees a rounding of 6e-8 in the cosine is sqrt(2 x 6e-8) = 3.5e-4 radians.
    np.testing.assert_allclose(angle, [*degrees, 90], atol=0.05)
    np.testing.assert_allclose(norms, [[6] * 4 + [np.inf], [1 / 6] * 4 + [0]], rtol=1e-6)


def test_by_path_and_of_feedback():
    a = ({"w": np.array([1.0, 0.0])}, {"w": np.array([1.0, 1.0]), "b": [2.0]})
    b = ({"w": np.array([0.0, 1.0])}, {"w": np.array([2.0, 2.0]), "b": [-4.0]})

    @jax.jit
    def measured(a, b, feedback):
        inner = partial(metrics.by_path, metrics.inner_product)
        found = [inner(a, b), inner(a, b, depth=1), inner(a, b, depth=2), inner(a[0]["w"], a[0]["w"])]
        return found, metrics.weight_alignment(a, feedback)

    found, cosines = measured(a, b, ({"w": None}, {"w": -a[1]["w"], "b": [None]}))
    assert found[0] == {"0/w": 0, "1/b/0": -8, "1/w": 4}
    assert found[1:] == [{"0": 0, "1": -4}, {"0/w": 0, "1/b": -8, "1/w": 4}, {"": 1}]
    assert list(cosines) == ["1/w"] and cosines["1/w"] == pytest.approx(-1)


def stacked(num_samples):
    return {"w": 0.5 + normal(40, num_samples, 3, 2), "b": normal(41, num_samples, 4)}


REFERENCE = {"w": np.full((3, 2), 0.3), "b": np.array([0.1, -0.2, 0.0, 0.4])}


def rows(tree):
    """Stacked gradients as `[T, parameters]` in float64."""
    return np.concatenate([np.asarray(g, float).reshape(len(g), -1) for g in jax.tree.leaves(tree)], axis=1)


def fields_of(moments):
    return (moments.mean, moments.variance, moments.distances, moments.along_mean, moments.along_reference)


def brute_moments(gradients, reference=None):
    """All properties of `Moments`, leaf by leaf, in float64."""

    def of_leaf(leaf, r):
        g, shape = np.asarray(leaf, float).reshape(len(leaf), -1), leaf.shape[1:]
        mean, d = g.mean(axis=0), g - g.mean(axis=0)
        variance = g.var(axis=0, ddof=1)
        return mean.reshape(shape), variance.reshape(shape), (d**2).sum(axis=1), d @ mean, d @ np.ravel(r)

    if reference is None:
        reference = jax.tree.map(lambda leaf: np.zeros(leaf.shape[1:]), gradients)
    leaves = zip(*map(jax.tree.leaves, (gradients, reference)), strict=True)
    fields = zip(*(of_leaf(*pair) for pair in leaves), strict=True)
    return tuple(map(jax.tree.structure(gradients).unflatten, fields))


def jackknife(statistic, samples):
    """The standard error from literally leaving out each sample."""
    left_out = [statistic(np.delete(samples, t, axis=0)) for t in range(len(samples))]
    return math.sqrt((len(samples) - 1) * np.var(left_out))


def noise(g):
    return g.var(axis=0, ddof=1).sum()


def squared_bias(g, reference: Any = 0):
    return ((g.mean(axis=0) - reference) ** 2).sum() - noise(g) / len(g)


def ratio(g):
    """0 for gradients that never vary."""
    return squared_bias(g) / noise(g) if noise(g) else 0.0


def test_moments_snr_and_bias_against_brute_force():
    gradients, reference = stacked(12), flat(REFERENCE)

    @jax.jit
    def measured(gradients):
        streamed = metrics.streamed_moments(
            lambda i: jax.tree.map(lambda leaf: leaf[i], gradients), jnp.arange(12), REFERENCE, chunk_size=5
        )
        both = fields_of(streamed), fields_of(metrics.stacked_moments(gradients))
        return both, metrics.snr(gradients), metrics.bias_variance(gradients, REFERENCE)

    both, snr, parts = measured(gradients)
    for found, given in zip(both, (REFERENCE, None), strict=True):
        assert_near(found, brute_moments(gradients, given), rtol=1e-4, atol=1e-5)
    samples, square = rows(gradients), (reference**2).sum()
    mean, variance = samples.mean(axis=0), samples.var(axis=0, ddof=1)
    expected = (mean**2 - variance / 12) / variance
    np.testing.assert_allclose(flat(snr.entries), expected, rtol=1e-3, atol=1e-4)
    assert snr.num_dead == 0
    of_reference = partial(squared_bias, reference=reference)
    for (value, standard_error), statistic in (
        (snr.total, ratio),
        (parts.squared_bias, of_reference),
        (parts.variance, noise),
        (parts.mean_squared_error, lambda g: ((g - reference) ** 2).sum(axis=1).mean()),
        (parts.relative_bias, lambda g: of_reference(g) / square),
        (parts.relative_variance, lambda g: noise(g) / square),
    ):
        np.testing.assert_allclose(value, statistic(samples), rtol=1e-4)
        np.testing.assert_allclose(standard_error, jackknife(statistic, samples), rtol=1e-3)


def test_dead_entries_are_left_out_and_counted():
    live = stacked(13)  # whose inverse is no power of two
    measured = jax.jit(lambda dead: (metrics.snr({"live": live, "dead": dead}), metrics.snr(dead)))
    for constant in (0.0, 0.1, 1.7, -1e-3):
        together, nothing_but_dead = measured(np.full((13, 5), constant, np.float32))
        assert together.num_dead == nothing_but_dead.num_dead == 5
        assert not together.entries["dead"].any() and nothing_but_dead.total.value == 0
        expected = ratio(rows(live)), jackknife(ratio, rows(live))
        np.testing.assert_allclose(together.total, expected, rtol=1e-3)
    alone = np.array([[0.5], [-1.5], [0.5]])  # one gradient has all the noise
    expected = ratio(alone), jackknife(ratio, alone)
    np.testing.assert_allclose(jax.jit(metrics.snr)(alone).total, expected, rtol=1e-3)


@pytest.mark.parametrize("spread", [1.0, 1e-3])  # at 1e-3 the variance is lost in squares
def test_product_moments(spread):
    x, d = 1 + spread * normal(0, 12, 3), (2 if spread == 1 else 1) + spread * normal(1, 12, 4)
    for rest in (None, np.arange(12.0).reshape(3, 4)):  # the same for all products
        wide = [np.asarray(each, float) for each in (x, d)]
        expected = brute_moments(np.einsum("ti,tj->tij", *wide) + (0 if rest is None else rest))
        found = jax.jit(metrics.product_moments)(x, d, rest)
        assert_near(fields_of(found), expected, rtol=2e-2, atol=1e-4)


def hard_model():
    """All that is no outer product, yet small: shared, tied, in a scan, a kernel; and leaves not trained."""

    def apply(p, x):
        h = jnp.tanh((x @ p["w"] + p["b"]) * p["scale"]) @ p["frozen"]
        g = jnp.tanh(jnp.tanh(h.reshape(-1, 3, 2) @ p["twice"]) @ p["twice"]).swapaxes(0, 1)
        c, _ = jax.lax.scan(lambda c, v: (jnp.tanh(c @ p["u"] + v), None), jnp.zeros_like(g[0]), g)
        t = jnp.tanh(jnp.tanh(c @ p["tied"]) @ p["tied"].T)
        maps, order = h.reshape(-1, 6, 1), ("NWC", "WIO", "NWC")
        k = jax.lax.conv_general_dilated(maps, p["kernel"], (1,), "SAME", dimension_numbers=order)
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
    shapes = jax.eval_shape(model.init, KEY)
    params = jax.tree.map(lambda leaf: 0.5 * normal(leaf.size, *leaf.shape).astype(dtype), shapes)
    return model, params, normal(9, 14, 5).astype(dtype)


def of_zoo(name):
    case = ZOO[name]()
    return ll.Model(case.apply), case.params, case.x


MASKED = {
    "dfa of w": partial(ll.direct_feedback_alignment, where="w"),
    "np of w": partial(ll.node_perturbation, sigma=0.1, where="w"),
    "activities of w": partial(ll.forward_gradient, perturb="activities", where="w"),
    "kp of w": partial(ll.kolen_pollack, optimizer=optax.sgd(0.1), where="[tw]*"),
}
WITH_SIGNALS = (
    "backprop", "feedback_alignment", "direct_feedback_alignment", "node_perturbation", "sign_symmetry_unit",
    "kolen_pollack",
)  # fmt: skip
EXAMPLES = {
    "mlp": (on_mlp, RULES),
    "hard": (hard_model, ("kp of w",)),
    "hard, all rules": (hard_model, (*WITH_SIGNALS, *MASKED)),
    "half": (partial(on_mlp, jnp.bfloat16), WITH_SIGNALS),
    "strided": (
        partial(of_zoo, "linen_separable_strided_convolution"),
        ("backprop", "direct_feedback_alignment", "node_perturbation"),
    ),
    "tied embedding": (partial(of_zoo, "tied_embedding"), ("kolen_pollack", "direct_feedback_alignment")),
}
"""By the kind of model: it, its params and a batch; its rules."""


@pytest.mark.parametrize("kind", slow_but(["hard"], EXAMPLES))
def test_example_moments_are_those_of_gradients_of_single_examples(kind):
    make, names = EXAMPLES[kind]
    model, params, x = make()
    size = len(jax.tree.leaves(x)[0])
    output = jax.eval_shape(lambda params: model(params, x)[0], params)
    y = normal(2, *output.shape).astype(output.dtype)
    assert has_factors(model, params, x) is (kind != "tied embedding")

    @jax.jit
    def measured(params):
        found = {}
        for name in names:
            rule = (RULES | MASKED)[name](model, squares)
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
        assert moments.num_samples == size
        parts = moments.parts().items()
        for (path, part), samples in zip(parts, jax.tree.leaves(grads), strict=True):
            samples = np.asarray(samples, np.float64)
            largest = max(np.abs(samples).max(), 1e-6)
            for i, (field, exact) in enumerate(zip(fields_of(part), brute_moments(samples), strict=True)):
                (value,) = jax.tree.leaves(field)
                atol = rtol * (largest if i == 0 else largest**2 * (samples[0].size if i > 1 else 1))
                np.testing.assert_allclose(value, exact, rtol=rtol, atol=atol, err_msg=f"{name}, {path}")


def test_signals_of_ones_own_are_checked():
    model, params, x = on_mlp()
    first = {"0/w": np.ones((1, 4))}
    for deltas, pattern in (
        (first, r": expected a dict with the entries \['0/w', '1/w'\]"),
        ({**first, "1/w": np.ones((1, 4))}, r"\['1/w'\]: expected shape \[1, 3\], got"),
    ):
        own = ll.backprop(model, squares)._replace(signals=lambda *_, deltas=deltas: ll.Signals(deltas))
        with pytest.raises(ValueError, match="^signals.deltas" + pattern):
            metrics.example_moments(model, own, KEY, params, (), x, x[:, :3])


DRAWS = [("node_perturbation", on_mlp), ("feedback_alignment", hard_model)]


@pytest.mark.parametrize(("name", "on"), slow_but(DRAWS[:1], DRAWS))
def test_draw_moments_are_those_of_stacked_draws(name, on):
    model, params, x = on()
    rule, y = RULES[name](model, squares), x[:, :3]

    @jax.jit
    def measured(params):
        state, keys = rule.init(KEY, params, x), jax.random.split(KEY, 14)
        exact = ll.backprop(model, squares).value_and_grad(KEY, params, (), x, y)[1]
        moments = metrics.draw_moments(rule, KEY, params, state, x, y, exact, 14)
        parts = moments, *moments.parts(depth=1).values()
        errors = [metrics.bias_variance(part).mean_squared_error.value for part in parts]
        draws = jax.vmap(lambda key: rule.value_and_grad(key, params, state, x, y)[1])(keys)
        return fields_of(moments), errors, draws, exact

    fields, (total, *parts), draws, exact = measured(params)
    assert_near(fields, brute_moments(draws, exact), rtol=1e-3, atol=1e-3)
    expected = ((rows(draws) - flat(exact)) ** 2).sum(axis=1).mean()
    np.testing.assert_allclose([total, np.sum(parts)], expected, rtol=1e-3)


def test_example_moments_hold_no_gradients_of_all_examples():
    network = ll.mlp((100, 50, 10), activation=jnp.tanh)
    rule = RULES["node_perturbation"](network, ll.squared_error)

    def statistics(params, x, y):
        moments = metrics.example_moments(network, rule, KEY, params, (), x, y)
        return metrics.snr(moments).total, moments.variance

    params = jax.eval_shape(network.init, KEY)
    program = jax.make_jaxpr(statistics)(params, jnp.zeros((512, 100)), jnp.zeros((512, 10)))
    largest = max(out.aval.size for equation in all_equations(program.jaxpr) for out in equation.outvars)
    assert largest <= max(512 * 100, 8 * 100 * 50)  # the batch, or one chunk of the largest weight
