"""Metrics and diagnostics against closed forms, brute force in NumPy, identities, and each other."""

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


def test_paths_are_grouped_by_their_first_parts():
    tree = {"w": 1.0}, {"w": 2.0, "b": [3.0]}
    for depth, expected in ((1, {"0": 1, "1": 5}), (2, {"0/w": 1, "1/b": 3, "1/w": 2})):
        assert metrics.by_path(lambda group: sum(group.values()), tree, depth=depth) == expected


def stacked(num_samples):
    return {"w": 0.5 + normal(40, num_samples, 3, 2), "b": normal(41, num_samples, 4)}


def rows(tree):
    """Stacked gradients as `[T, parameters]` in float64."""
    return np.concatenate([np.asarray(g, float).reshape(len(g), -1) for g in jax.tree.leaves(tree)], axis=1)


def fields_of(moments):
    """By property, its leaves."""
    names = "mean", "variance", "distances", "along_mean", "along_reference"
    return [jax.tree.leaves(getattr(moments, name)) for name in names]


def brute_moments(gradients, reference=None):
    """All properties of `Moments` by leaf, in float64."""

    def of_leaf(leaf, r):
        g, shape = np.asarray(leaf, float).reshape(len(leaf), -1), leaf.shape[1:]
        mean, d = g.mean(axis=0), g - g.mean(axis=0)
        variance = g.var(axis=0, ddof=1)
        return mean.reshape(shape), variance.reshape(shape), (d**2).sum(axis=1), d @ mean, d @ np.ravel(r)

    leaves = jax.tree.leaves(gradients)
    references = [0 * leaf[0] for leaf in leaves] if reference is None else jax.tree.leaves(reference)
    return [list(field) for field in zip(*map(of_leaf, leaves, references), strict=True)]


def jackknife(statistic, samples):
    """The standard error from literally leaving out each sample."""
    left_out = [statistic(np.delete(samples, t, axis=0)) for t in range(len(samples))]
    return math.sqrt((len(samples) - 1) * np.var(left_out))


def parts_of(g, reference: Any = 0):
    """Squared bias and variance."""
    noise = g.var(axis=0, ddof=1).sum()
    return ((g.mean(axis=0) - reference) ** 2).sum() - noise / len(g), noise


def ratio(g):
    """0 for gradients that never vary."""
    signal, noise = parts_of(g)
    return signal / noise if noise else 0.0


def test_moments_snr_and_bias_against_brute_force():
    gradients, r = stacked(12), {"w": np.full((3, 2), 0.3), "b": np.array([0.1, -0.2, 0.0, 0.4])}

    @jax.jit
    def measured(gradients):
        streamed = metrics.streamed_moments(
            lambda i: jax.tree.map(lambda leaf: leaf[i], gradients), jnp.arange(12), r, chunk_size=5
        )
        both = fields_of(streamed), fields_of(metrics.stacked_moments(gradients))
        return both, metrics.snr(gradients), metrics.bias_variance(gradients, r)

    both, snr, parts = measured(gradients)
    for found, given in zip(both, (r, None), strict=True):
        assert_near(found, brute_moments(gradients, given), rtol=1e-4, atol=1e-5)
    samples, reference = rows(gradients), flat(r)
    square = (reference**2).sum()
    mean, variance = samples.mean(axis=0), samples.var(axis=0, ddof=1)
    expected = (mean**2 - variance / 12) / variance
    np.testing.assert_allclose(flat(snr.entries), expected, rtol=1e-3, atol=1e-4)
    assert snr.num_dead == 0
    for (value, standard_error), statistic in (
        (snr.total, ratio),
        (parts.squared_bias, lambda g: parts_of(g, reference)[0]),
        (parts.variance, lambda g: parts_of(g)[1]),
        (parts.mean_squared_error, lambda g: ((g - reference) ** 2).sum(axis=1).mean()),
        (parts.relative_bias, lambda g: parts_of(g, reference)[0] / square),
        (parts.relative_variance, lambda g: parts_of(g)[1] / square),
    ):
        np.testing.assert_allclose(value, statistic(samples), rtol=1e-4)
        np.testing.assert_allclose(standard_error, jackknife(statistic, samples), rtol=1e-3)


def test_dead_entries_are_left_out_and_counted():
    live = stacked(13)  # whose inverse is no power of two
    alone = np.array([[0.5], [-1.5], [0.5]])  # one gradient has all the noise

    @jax.jit
    def measured(dead):
        at_once = metrics.streamed_moments(lambda g: g, dead, chunk_size=13)
        return [metrics.snr(each) for each in ({"live": live, "dead": dead}, at_once, alone)]

    for constant in (0.0, 0.1, 1.7, -1e-3):
        together, nothing_but_dead, of_one = measured(np.full((13, 5), constant, np.float32))
        assert together.num_dead == nothing_but_dead.num_dead == 5
        assert not together.entries["dead"].any() and nothing_but_dead.total.value == 0
        for found, samples in ((together, rows(live)), (of_one, alone)):
            expected = ratio(samples), jackknife(ratio, samples)
            np.testing.assert_allclose(found.total, expected, rtol=1e-3)


def test_product_moments():
    rest = np.arange(12.0).reshape(3, 4)  # the same for all products
    measured = jax.jit(lambda *factors: fields_of(metrics.product_moments(*factors)))
    for spread, mean, of_all in ((1.0, 2, None), (1.0, 2, rest), (1e-3, 1, None), (1e-3, 1, rest)):
        # At 1e-3 the variance is lost in squares.
        x, d = 1 + spread * normal(0, 12, 3), mean + spread * normal(1, 12, 4)
        products = np.einsum("ti,tj->tij", np.asarray(x, float), np.asarray(d, float))
        expected = brute_moments(products + (0 if of_all is None else of_all))
        assert_near(measured(x, d, of_all), expected, rtol=2e-2, atol=1e-4)


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


def tied_embedding():
    case = ZOO["tied_embedding"]()
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
    "hard": (hard_model, ("kp of w", "np of w")),
    "hard, all rules": (hard_model, (*WITH_SIGNALS, *MASKED)),
    "half": (partial(on_mlp, jnp.bfloat16), WITH_SIGNALS),
    "tied": (tied_embedding, ("kolen_pollack", "direct_feedback_alignment")),
}
"""By the kind of model: it, its params and a batch; its rules."""


@pytest.mark.parametrize("kind", slow_but(["hard"], EXAMPLES))
def test_example_moments_are_those_of_gradients_of_single_examples(kind):
    make, names = EXAMPLES[kind]
    model, params, x = make()
    size = len(jax.tree.leaves(x)[0])
    output = jax.eval_shape(lambda params: model(params, x)[0], params)
    y = normal(2, *output.shape).astype(output.dtype)
    assert has_factors(model, params, x) is (kind != "tied")

    @jax.jit
    def measured(params):
        found = {}
        for name in names:
            rule = (RULES | MASKED)[name](model, squares)
            state = rule.init(KEY, params, x)

            def one(key, x, y, rule=rule, state=state):
                x, y = jax.tree.map(lambda leaf: leaf[None], (x, y))
                return rule.value_and_grad(key, params, state, x, y)[1]

            keys = jax.random.split(KEY, size)
            grads = jax.vmap(one)(keys, x, y)
            found[name] = grads, None, metrics.example_moments(model, rule, KEY, params, state, x, y)
            if name == "np of w":  # and over draws on the whole batch, with one of them as the reference
                grads = jax.vmap(lambda key: rule.value_and_grad(key, params, state, x, y)[1])(keys)  # noqa: B023
                reference = jax.tree.map(lambda leaf: leaf[0], grads)
                moments = metrics.draw_moments(rule, KEY, params, state, x, y, reference, size)
                found["draws of " + name] = grads, reference, moments
        return {name: (*given, fields_of(moments)) for name, (*given, moments) in found.items()}

    # Signals and gradients of a model in half precision are rounded apart, to 8 bits.
    rtol = 2.0**-5 if kind == "half" else 2e-4
    for name, (grads, reference, fields) in measured(params).items():
        samples = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(grads)]
        for i, (field, exact) in enumerate(zip(fields, brute_moments(samples, reference), strict=True)):
            for value, wanted, leaf in zip(field, exact, samples, strict=True):
                largest = max(np.abs(leaf).max(), 1e-6)
                atol = rtol * (largest if i == 0 else largest**2 * (leaf[0].size if i > 1 else 1))
                np.testing.assert_allclose(value, wanted, rtol=rtol, atol=atol, err_msg=name)


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


def test_scales_of_rotations():
    """Times a gain, as a list and as a scan of layers, which gives one scale a layer, under a vmap."""
    gains, powers = np.array([[3.0], [0.5]]), np.arange(3)
    rotations = jnp.asarray(np.linalg.qr(normal(0, 3, 4, 4))[0])
    listed = ll.Model(lambda params, x: x @ params[0] @ params[1] @ params[2])
    stacked = ll.Model(lambda w, x: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0])
    x, y = 1e20 * normal(1, 6, 4), jnp.zeros((6, 4))  # whose squares are beyond float32

    def loss(output: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.sum(output, axis=1)  # the error is a vector of ones at the output

    @jax.jit
    @jax.vmap
    def found(gain: jax.Array) -> list[metrics.Scales]:
        models = (listed, list(gain * rotations)), (stacked, gain * rotations)
        return [metrics.depth_scales(m, ll.backprop(m, loss), KEY, w, (), x, y) for m, w in models]

    expected = np.sqrt(np.mean(np.square(x, dtype=float))) * gains ** (powers + 1), gains ** powers[::-1]
    for of_layers, of_scan, wanted in zip(*found(gains[:, 0]), expected, strict=True):
        np.testing.assert_allclose(np.stack(list(of_layers.values()), axis=1), wanted, rtol=1e-5)
        np.testing.assert_allclose(of_scan[""], wanted, rtol=1e-5)


def test_rounding_error_is_one_rounding(x64: None):
    """In float64 the gradient `p^3` of a float32 parameter moves by `3 eps |p|^3`, that of a count not."""
    p = normal(4, 50).astype(jnp.float32)

    def gradient(params: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return params["w"].astype(jnp.float64) ** 3, 1.0 * params["count"]

    given = {"w": p, "count": jnp.arange(3)}
    error, still = jax.jit(partial(metrics.rounding_error, gradient))(KEY, given)
    steps = np.asarray(error) / np.abs(np.asarray(p, np.float64)) ** 3 / float(jnp.finfo(jnp.float32).eps) / 3
    # The moved parameter is rounded once more: half of the spacing at most, which is up to eps |p|.
    assert np.all(np.abs(steps - 1) <= 0.51)
    assert not np.any(still)


def test_products_in_half_precision_round_as_it_does():
    """Parameters are float32; a move by one rounding of theirs would be lost in the cast."""
    x = normal(7, 20, 4).astype(jnp.bfloat16)

    def half(params: dict[str, jax.Array]) -> jax.Array:  # a shift of all units is taken out again
        h = x @ params["w"].astype(jnp.bfloat16) + params["shift"].astype(jnp.bfloat16)
        return jnp.sum(jnp.tanh(h - jnp.mean(h, axis=-1, keepdims=True)).astype(jnp.float32))

    @jax.jit
    def found(params: dict[str, jax.Array]) -> Any:
        grads, error = jax.grad(half)(params), metrics.rounding_error(jax.grad(half), KEY, params)
        cosines = metrics.by_path(metrics.resolved_cosine, grads, grads, error)
        return metrics.by_path(metrics.relative_norm, error, grads), cosines["shift"]

    with jax.debug_key_reuse(True):  # the signs of one parameter are not those of another
        shares, cosine = found({"w": normal(5, 4, 8), "shift": jnp.array(0.3)})
    # One rounding is 2^-7, and 4 terms are summed.
    assert 2**-10 < shares["w"] < 2**-3 and shares["shift"] > 0.5 and np.isnan(cosine)


def test_resolved_cosine_on_both_sides_of_the_limit():
    resolved, a, b = jax.jit(metrics.resolved_cosine), np.array([1.0, 1.0]), np.array([2.0, 0.0])
    found = [resolved(a, b, np.array([0, error])) for error in (0.99, 1.01, np.nan)]
    np.testing.assert_allclose([*found, resolved(b, 0 * b, 0 * b)], [0.5**0.5, *[np.nan] * 3], rtol=1e-6)


def test_pairwise_cosine_against_brute_force():
    scales = np.array([1, 1, 0, 1e-25, 1e25, 1])
    drawn = {"w": 0.4 + normal(12, 6, 3, 2), "b": normal(13, 6, 4)}
    gradients = {name: (scales * np.asarray(leaf).T).T.astype(np.float32) for name, leaf in drawn.items()}

    def mean_cosine(g):
        units = g / np.maximum(np.linalg.norm(g, axis=1, keepdims=True), 1e-300)
        return (units @ units.T)[~np.eye(len(g), dtype=bool)].mean()

    value, error = jax.jit(metrics.pairwise_cosine)(gradients)
    np.testing.assert_allclose(value, mean_cosine(rows(gradients)), rtol=1e-5)
    np.testing.assert_allclose(error, jackknife(mean_cosine, rows(gradients)), rtol=1e-4)


def test_train_only_gives_the_rest_zero_gradients():
    model = ll.mlp((3, 5, 2), activation=jnp.tanh)
    x, y, frozen = normal(15, 6, 3), normal(16, 6, 2), metrics.train_only(model, "1/*")
    fewer = metrics.train_only(frozen, lambda path: path.endswith("w"))  # what is frozen stays so

    @jax.jit
    def found(key: jax.Array) -> Any:
        params, rules = model.init(key), [ll.backprop(m, ll.squared_error) for m in (model, frozen, fewer)]
        rules.append(ll.direct_feedback_alignment(frozen, ll.squared_error))
        return [r.value_and_grad(key, params, r.init(key, params, x), x, y)[1] for r in rules]

    (_, exact), *of_frozen = found(KEY)
    of_weights = {**exact, "b": np.zeros(2, np.float32)}
    for (first, second), wanted in zip(of_frozen, (exact, of_weights, exact), strict=True):
        assert_near(second, wanted)
        assert not first["w"].any() and not first["b"].any()


def test_steps_to_the_first_crossing():
    steps = jax.jit(metrics.steps_to_decrease)
    losses, numbers = np.array([4.0, 5.0, 3.0, 3.5, 1.0]), np.arange(5.0)
    for given, at, decreases, expected in (
        (losses, numbers, [0.5, 1.0, 2.0, 3.0, 3.1], [1.75, 2, 3.6, 4, np.inf]),
        (losses, numbers**2, [0.5, 1.0, 2.0, 3.0, 3.1], [3.25, 4, 13.2, 16, np.inf]),
        (np.where(losses == 3.5, np.nan, losses), numbers, [1.0, 2.0, 9.0], [2, np.nan, np.nan]),
        (np.where(losses == 4, np.inf, losses), numbers, [0.5], [1]),
        (np.array([2.3, 2.2, 2.1, 2.0, 1.9]), numbers, [1e-8], [0]),  # lost in rounding
        (np.array([2.3, 2.3, 2.4, 2.4, 2.4]), numbers, [1e-8], [np.inf]),
    ):
        found = [steps(given, decrease, at) for decrease in decreases]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)
