"""Sites: provenance, taps, the table, names, cuts, coupling, and what is refused."""

# pyright: reportArgumentType=false

import itertools
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from jax import lax

import lax_learning as ll
from lax_learning._sites import _coupling as couplings
from lax_learning._sites import _equations as equations
from lax_learning._sites._activities import mark_activities
from lax_learning._sites._program import Program
from tests import registry
from tests.compare import assert_mean, assert_near, assert_same, draws_of, normal, squares, update, updates
from tests.refusal import refusals, refuses
from tests.zoo import product

# Much is traced here: annotations are checked where the same functions meet their other oracles.
pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(0)
X, Y = normal(0, 6, 3), jnp.ones((6, 2))
W = {"a": normal(1, 3, 4), "b": normal(2, 4, 2)}


def two_layers(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


Model, backprop, feedback_alignment = ll.Model, ll.backprop, ll.feedback_alignment
MODEL = Model(two_layers)
NODE: Any = partial(ll.node_perturbation, sigma=0.1)
WEIGHT: Any = partial(ll.weight_perturbation, sigma=0.1)
exact_of = jax.jit(lambda p, x, y, apply=two_layers: jax.grad(lambda p: squares(apply(p, x), y).mean())(p),
                   static_argnames="apply")  # fmt: skip


# Taps: one at the end of every maximal sum.


def three_terms(p, x):
    """Across calls and changes of shape."""
    product = jax.jit(lambda w, x: (x @ w)[:, None, :].transpose(0, 2, 1)[:, :, 0])
    return jnp.tanh(product(p["u"], x) - jax.jit(lambda p, x: x**2 @ p["v"] + p["b"])(p, x))


def read_by_another(p, x):
    z = x @ p["u"] + x**2 @ p["v"]
    return jnp.tanh(z + p["b"]) * z


def test_terms_of_a_sum_share_a_tap_until_somebody_else_reads_it():
    params = {"u": jnp.ones((3, 4)), "v": jnp.ones((3, 4)), "b": jnp.ones(4)}
    for apply, sizes in ((three_terms, [3]), (read_by_another, [1, 2])):
        assert sorted(len(tap.sites) for tap in Program(Model(apply), params, X).plan.all_taps) == sizes


def test_inputs_of_products_contain_what_is_added_at_a_tap():
    model = Model(lambda p, x: (x @ p["a"]).reshape(6, 2, 2) @ p["b"])
    params, added = {"a": W["a"], "b": W["b"][:2]}, {"a": normal(5, 6, 2, 2), "b": jnp.zeros((6, 2, 2))}
    (found,) = ll.tapped(model).run(params, X, added).inputs["b"]
    np.testing.assert_allclose(found, np.reshape(X @ W["a"], (6, 2, 2)) + added["a"], rtol=1e-5, atol=1e-6)


def test_what_several_read_is_no_activity_and_a_state_that_is_read_a_step_later_is_next_to_the_output():
    def gated(p, x):
        z = x @ p["a"]
        return (jnp.tanh(z) * x[:, :1] + jax.nn.sigmoid(z) * x[:, 1:2]) @ p["b"]

    def delayed(p, x):
        return lax.scan(lambda h, t: (jnp.tanh(x @ p["a"] + t), h), jnp.zeros((6, 4)), jnp.arange(3.0))[1]

    for apply, params, is_last in ((gated, W, False), (delayed, {"a": W["a"]}, True)):
        plan = Program(Model(apply), params, X).plan
        activities, first = mark_activities(plan, 1), plan.all_taps[0].index
        assert (first in activities.of_taps, first in activities.last) == (is_last, is_last)


def test_layers_in_loops_checkpoints_and_conditions_get_the_credit_of_plain_ones():
    """The counter of a loop is a constant, and so a slice of the stack is a parameter: feedback applies."""

    def plain(p, x):
        return jnp.tanh(jnp.tanh(jnp.tanh(x @ p[0]) @ p[1]) @ p[2])

    def looped(p, x):
        return lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ p[i]), x)

    def backwards(p, x):
        """Through the carry, which is a parameter as long as no step changes it."""
        return lax.scan(lambda c, i: ((c[0], jnp.tanh(c[1] @ c[0][i])), None), (p, x), jnp.arange(2, -1, -1),
                        reverse=True, unroll=2)[0][1]  # fmt: skip

    def handed_on(p, x):
        """By weights that each step gets from the one before; the first gets a constant, and keeps x."""

        def step(carry, each):
            (w, x), (after, i) = carry, each
            return (after, jnp.where(i > 0, jnp.tanh(x @ w), x)), None

        w, x = lax.scan(step, (jnp.zeros((3, 3)), x), (p, jnp.arange(3)))[0]
        return jnp.tanh(x @ w)

    def let_go(p, x):
        """By a carry that is a parameter at first, and a constant from the first step on."""

        def step(carry, w):
            first, x = carry
            return (jnp.zeros((3, 3)), jnp.tanh(x @ (first + w))), None

        return lax.scan(step, (p[0], x), p.at[0].set(0.0))[0][1]

    def dressed(p, x):
        x = jax.checkpoint(lambda w, x: jnp.tanh(x @ w))(p[0], x)
        x = jax.checkpoint(lambda w, x: jnp.tanh(x @ w))(p[1], x)
        return jnp.tanh(lax.cond(x.sum() > 0, jnp.dot, lambda x, w: -x @ -w, x, p[2]))

    def of_the_user(p, x):
        return jnp.tanh(product(p[2], jnp.tanh(product(p[1], jnp.tanh(x @ p[0])))))

    stack, y = normal(3, 3, 3, 3), jnp.ones((6, 3))
    models = (plain, looped, backwards, handed_on, let_go, dressed, of_the_user)
    rules = [feedback_alignment(Model(f), squares) for f in models]
    found = [grads for _, _, grads, _ in updates(rules, KEY, stack, X, y)]
    for grads in found[1:]:
        assert_near(grads, found[0])
    assert not np.allclose(found[0][0], exact_of(stack, X, y, plain)[0], rtol=0.05)


def test_table_names_every_parameter():
    table = ll.sites(MODEL, W, X)
    assert [(row.paths, row.operation, row.shape, row.units, row.passes_error) for row in table] == [
        (("a",), "dot_general", (3, 4), 4, False),
        (("b",), "dot_general", (4, 2), 2, True),
    ]
    assert all("test_sites.py" in row.source for row in table)
    dense = linen.Dense(2)  # in whose lines there is none of the user's
    of_dense = ll.sites(Model(dense.apply), jax.eval_shape(dense.init, KEY, X), X)
    assert all("linen/linear.py" in row.source for row in of_dense)
    lines = repr(table).splitlines()
    assert lines[0].split()[:3] == ["parameters", "operation", "shape"] and len(lines) == 3


def test_a_derivative_of_the_user_need_not_be_linear_in_the_error():
    @jax.custom_vjp
    def product(w, x):
        return x @ w

    product.defvjp(lambda w, x: (x @ w, (w, x)), lambda saved, d: (saved[1].T @ d + saved[0], d @ saved[0].T))
    w = W["a"][:, :2]
    found = update(ll.direct_feedback_alignment(Model(product), squares), KEY, w, X, Y)[2]
    np.testing.assert_allclose(found, X.T @ (2 * (X @ w - Y) / 6) + 6 * w, rtol=1e-4, atol=1e-5)


def test_a_call_is_looked_into_again_for_operands_of_another_kind():
    call, params = jax.jit(lambda a, b: a @ b), {"a": jnp.ones((1, 3)), "b": jnp.ones((3, 3))}
    table = ll.sites(Model(lambda p, x: call(p["a"], p["b"]) * call(x, p["b"])), params, X)
    assert [(row.paths, row.operation) for row in table] == [(("b",), "dot_general"), (("a", "b"), "mul")]


# Models: aux, frozen leaves, None leaves.


def test_frozen_and_missing_leaves_and_aux():
    def apply(p, x):
        hidden = jnp.tanh(p["a_first"] * x @ p["net"]["a"] + p["stats"]["mean"])
        return hidden @ p["net"]["b"], {"mean": hidden.mean(0), "count": p["stats"]["count"] + 1}

    params = {
        "net": {"a": W["a"], "b": W["b"], "bias": None},
        "a_first": jnp.ones(()),  # frozen, and before the others
        "stats": {"mean": jnp.ones(4), "count": jnp.zeros((), jnp.int32)},
    }
    model = Model(apply, has_aux=True, trainable="net/*")
    output, expected = apply(params, X)
    # One whose feedback learns, one of direct feedback, and one of noise on units.
    names = ("kolen_pollack", "direct_feedback_alignment", "node_perturbation")
    rules = [registry.RULES[name](model, squares) for name in names]
    for name, found in zip(names, updates(rules, KEY, params, X, Y), strict=True):
        _, (loss, aux), grads, _ = found
        np.testing.assert_allclose(loss, squares(output, Y).mean(), rtol=1e-5, err_msg=name)
        assert aux["count"] == 1
        np.testing.assert_allclose(aux["mean"], expected["mean"], rtol=1e-5)
        assert jax.tree.structure(grads) == jax.tree.structure(params) and grads["net"]["bias"] is None
        assert not np.any(grads["a_first"]) and not np.any(grads["stats"]["mean"]), name
        assert grads["stats"]["count"].dtype == jnp.int32
        assert np.any(grads["net"]["a"]) and np.any(grads["net"]["b"]), name


def test_frozen_parameters_are_not_perturbed():
    model = Model(lambda p, x: two_layers(p["frozen"], x) + 0 * p["learned"], trainable="learned")
    params = {"frozen": W, "learned": jnp.ones(2)}
    rules = [registry.RULES[name](model, squares) for name in ("weight_perturbation", "forward_gradient")]
    for _, _, grads, _ in updates(rules, KEY, params, X, Y):
        # A rounding error of the loss divided by sigma is 1e-5; had the others moved, it were of order one.
        assert np.abs(grads["learned"]).max() < 1e-3


# where=


def test_noise_has_the_shapes_of_what_is_selected_and_shared():
    """Shared noise is equal for all examples, also in pairs."""
    seen: Any = []

    def spy(key, like):
        seen.append(sorted((leaf.shape[0], leaf.shape[-1]) for leaf in jax.tree.leaves(like)))
        return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), like)

    shared: Any = {"share_noise": True}
    of = {"where": "b"}, shared, {**shared, "antithetic": True}
    rules = [NODE(MODEL, squares, noise=spy, **options) for options in of]
    found = updates(rules, KEY, W, X, Y)
    assert [shapes for shapes, _ in itertools.groupby(seen)] == [[(6, 2)], [(1, 2), (1, 4)]]
    for options, (_, _, grads, _) in zip(of, found, strict=True):
        assert np.any(grads["a"]) == ("where" not in options) and np.any(grads["b"])


def test_products_that_are_not_selected_pass_errors_through_their_weights():
    state, _, grads, _ = update(feedback_alignment(MODEL, squares, where="a"), KEY, W, X, Y)
    assert state.feedback == {"a": None, "b": None}
    assert_near(grads["a"], exact_of(W, X, Y)["a"])


# Coupled examples.


def normalised(p, x):
    z = x @ p["a"]
    return ((z - z.mean(0)) / (z.std(0) + 1e-3)) @ p["b"]


def test_batch_statistics_are_refused_or_credited_by_the_batch():
    model, exact = Model(normalised), exact_of(W, X, Y, normalised)
    for rule, state in ((backprop, {}), (feedback_alignment, {"feedback": W})):
        assert_near(update(rule(model, squares), KEY, W, X, Y, **state)[2], exact, rtol=1e-4, atol=1e-5)
    noisy = (
        ll.node_perturbation(model, squares, sigma=1e-2, antithetic=True, noise="rademacher", batch=True),
        ll.forward_gradient(model, squares, perturb="activities", batch=True),
    )
    draws = draws_of(lambda key: [made.value_and_grad(key, W, (), X, Y)[1] for made in noisy], KEY, 2000)
    for of_rule in draws:
        # The bias of a central difference is of second order in sigma: 1e-4 of the curvature's scale.
        assert_mean(of_rule, exact, atol=1e-2 * min(float(np.abs(leaf).max()) for leaf in exact.values()))


def test_batch_normalisation_before_units_that_may_be_silent_is_found():
    """With two examples, normalised to +1 and -1, or one draw of weights, some of these pass unseen."""

    def silent(p, x):
        z = x @ p["a"]
        return jax.nn.relu((z - z.mean(axis=0)) / jnp.sqrt(z.var(axis=0) + 1e-5)) @ p["b"]

    for inputs, units in ((4, 2), (7, 4), (6, 5)):
        params = {"a": jnp.ones((inputs, units)), "b": jnp.ones((units, 3))}
        assert couplings.coupling(Model(silent), params, jnp.ones((4, inputs))) == couplings.COUPLED
    # also if the model closes over traced values
    closed = jax.eval_shape(lambda shift: NODE(Model(lambda p, x: two_layers(p, x + shift)), squares)
                            .value_and_grad(KEY, W, (), X, Y)[0], 0.5)  # fmt: skip
    assert closed.shape == ()


def test_outputs_that_depend_on_the_place_or_the_number_of_examples_are_found():
    """Each example is run alone: it would get another mask, index or size than in its batch."""
    z = two_layers
    faulty = (
        lambda p, x: z(p, x) * jax.random.bernoulli(KEY, 0.5, (x.shape[0], 2)),
        lambda p, x: z(p, x) * jnp.arange(x.shape[0])[:, None],
        lambda p, x: z(p, x) / x.shape[0],
        lambda p, x: z(p, x) * (1 if x.shape[0] == 1 else 2),
    )
    sound = (
        lambda p, x: z(p, x)[jnp.arange(x.shape[0])] + jnp.zeros((x.shape[0], 2)),
        lambda p, x: jnp.sign(z(p, x.astype(jnp.bfloat16))),
    )
    assert [couplings.coupling(Model(apply), W, X) for apply in faulty] == [couplings.PLACED] * len(faulty)
    assert [couplings.coupling(Model(apply), W, X) for apply in sound] == [None] * len(sound)


def test_complex_pre_activations_get_no_noise():
    """They are refused if only they lead to the output; before a real tap, credit passes through them."""
    params, y = {"a": W["a"], "k": normal(7, 3)}, jnp.ones((6, 4))

    def filtered(k, x):
        return jnp.fft.irfft(jnp.fft.rfft(x) * jnp.fft.rfft(k), n=3)

    last = NODE(Model(lambda p, x: filtered(p["k"], x @ p["a"][:, :3])), squares)
    called = partial(jax.eval_shape, last.value_and_grad, KEY, params, (), X, X)
    refuses(called, TypeError, r"^apply: expected real pre-activations, .*, got complex ones at \['k'\]")
    first = Model(lambda p, x: filtered(p["k"], x) @ p["a"])
    jax.eval_shape(NODE(Model(lambda p, x: (first.apply(p, x), p["k"] + 1j), has_aux=True), squares)
                   .value_and_grad, KEY, params, (), X, y)  # fmt: skip
    noisy = NODE(first, squares, antithetic=True, num_samples=2000)
    found, exact = update(noisy, KEY, params, X, y)[2], exact_of(params, X, y, first.apply)
    assert ll.metrics.cosine_similarity(found["k"], exact["k"]) > 0.95


# Rules.


def test_direct_feedback_goes_position_by_position():
    """A vector gets the sum of the errors of all positions, and what is spread over them each its own."""
    y, places = jnp.zeros((6, 5, 2)), jnp.arange(1.0, 6.0)

    def spread(params, x):
        hidden = jnp.tanh(jnp.tanh(x @ params["a"]) @ params["c"])
        return (hidden[:, None, :] * places[:, None]) @ params["b"]

    params = W | {"c": normal(5, 4, 4)}
    state, _, grads, _ = update(ll.direct_feedback_alignment(Model(spread), squares), KEY, params, X, y)
    first, last = map(np.asarray, state.feedback.values())
    x, a, c, b = (np.asarray(leaf) for leaf in (X, params["a"], params["c"], params["b"]))
    one = np.tanh(x @ a)
    two = np.tanh(one @ c)
    error = 2 * np.einsum("bu,t,uo->bto", two, places, b) / 6
    of_a = error.sum(1) @ first.T * (1 - one**2)
    of_c = np.einsum("bto,t,uo->bu", error, places, last) * (1 - two**2)
    for found, expected in ((grads["a"], x.T @ of_a), (grads["c"], one.T @ of_c)):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_direct_feedback_has_one_matrix_a_stacked_layer_and_one_for_all_steps():
    def stacked(p, x):
        def step(carry, w):
            kept, h = carry
            return (kept, jnp.tanh(jnp.tanh(h @ w) @ kept)), None

        return lax.scan(step, (p["kept"], x), p["stack"])[0][1] @ p["out"]

    params = {"stack": jnp.ones((4, 3, 3)), "kept": jnp.ones((3, 3)), "out": jnp.ones((3, 2))}
    state = jax.eval_shape(ll.direct_feedback_alignment(Model(stacked), squares).init, KEY, params, X)
    # The first layer's data depend on no parameter, but are a carry like those of the others.
    assert sorted(feedback.shape for feedback in state.feedback.values()) == [(3, 2), (3, 2), (4, 3, 2)]


def test_sigma_has_no_scale_of_its_own():
    @jax.jit
    def grads_of(sigma):
        model = Model(lambda w, x: x @ w)
        of = partial(ll.node_perturbation, model, lambda o, y: (o * y).sum(1), sigma=sigma)
        rules = [of(variant=variant) for variant in ("unbiased", "activity")]
        return [rule.value_and_grad(KEY, jnp.zeros((3, 2)), (), X, Y)[1] for rule in rules]

    for exponent in (-70, 60):
        assert_same(grads_of(2.0**exponent), grads_of(1.0))


# Names.


def layers_of(model, params, x):
    rule = ll.decorrelation.rule(lambda m: backprop(m, squares), model, ll.decorrelation.dynamics(0.1))
    return jax.eval_shape(rule.init, KEY, params, x).layers


def test_a_weight_used_twice_under_any_name():
    for name in ("w#2", "w*"):
        model = Model(lambda p, x, name=name: jnp.tanh(jnp.tanh(x @ p[name]) @ p[name]) @ p["w"])
        params, x, y = {name: normal(3, 2, 2), "w": normal(4, 2, 2)}, normal(1, 6, 2), normal(2, 6, 2)
        assert len(ll.tapped(model).shapes(params, x)) == len(layers_of(model, params, x)) == 3
    moments = partial(ll.metrics.example_moments, model, backprop(model, squares), KEY)
    found = jax.jit(lambda params: moments(params, (), x, y).mean)(params)
    assert_near(found, exact_of(params, x, y, model.apply))


def test_products_over_other_axes_of_a_value_have_a_matrix_each():
    def mixer(p, x):
        mixed = jnp.einsum("bij,jk->bik", x, p["a"]) + jnp.einsum("bij,ik->bkj", x, p["b"])
        return mixed.reshape(len(x), -1)

    params = {"a": normal(3, 4, 4), "b": normal(4, 4, 4)}
    assert list(layers_of(Model(mixer), params, normal(1, 6, 4, 4))) == ["a", "b"]


def test_signals_of_backprop_pass_what_feedback_cannot():
    def apply(p, x):
        return lax.cond(x.sum() > 0, lambda x: two_layers(p, x), lambda x: x @ p["a"][:, :2], x)

    model = Model(apply)
    signals: Any = backprop(model, squares).signals

    @jax.jit
    def run(params):
        deltas = signals(KEY, params, (), X[:1], Y[:1]).deltas
        return ll.tapped(model).pull_back(params, X[:1], deltas)

    assert_near(run(W), exact_of(W, X[:1], Y[:1], apply))


# Refused.


scan_options = partial(equations.options, names=equations.SCAN_OPTIONS)
remat_options = partial(equations.options, names=equations.REMAT_OPTIONS)
LAYOUTS = (
    (equations.body, "jit", {"program": None}, "jaxpr"),
    (lambda equation: equations.split_scan(equation, []), "scan", {"num_constants": 0}, "num_carry"),
    (scan_options, "scan", {"length": 3, "backwards": False}, "reverse"),
    (remat_options, "remat2", {"prevent_cse": True, "keep": None}, "policy"),
)


def test_an_equation_laid_out_in_another_way_is_refused_by_the_version_of_jax():
    for read, name, params, missing in LAYOUTS:
        with pytest.raises(equations.UnknownLayoutError, match=missing) as raised:
            read(SimpleNamespace(primitive=SimpleNamespace(name=name), params=params))
        message = str(raised.value)
        assert message.startswith(f"apply: expected the equation {name!r} with")
        assert f"got parameters {sorted(params)}" in message and f"JAX {jax.__version__}" in message


def test_an_x_without_an_axis_of_examples_is_named():
    with pytest.raises(ValueError, match=r"^apply: expected params and x that fit") as raised:
        ll.sites(Model(lambda w, x: x @ w), jnp.ones((3, 2)), jnp.ones(3))
    assert "x: the first axis is that of examples; here, each example has shape []" in raised.value.__notes__


def refused(apply=two_layers, rule=feedback_alignment, params=W, y=Y, **options):
    def call():
        made = rule(Model(apply), squares, **options)
        return made.value_and_grad(KEY, params, made.init(KEY, params, X), X, y)

    return call


def over_devices(p, x):
    z = x @ p["a"]
    return (z - lax.pmean(z.mean(0), "devices")) @ p["b"]


def on_devices():
    mesh = jax.sharding.AbstractMesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    specs, rule = (jax.P(), jax.P("devices"), jax.P("devices")), NODE(Model(over_devices), squares)
    mapped = partial(jax.shard_map, mesh=mesh, in_specs=specs, out_specs=jax.P())
    return jax.eval_shape(mapped(lambda p, x, y: rule.value_and_grad(KEY, p, (), x, y)[1]), W, X, Y)


def looping(p, x):
    return lax.while_loop(lambda x: x.sum() < 1e3, lambda x: x @ p["w"] + 1.0, x)


def branching(p, x):
    hidden = jnp.tanh(x * p["g"])
    return lax.cond(x.sum() > 0, lambda x: (x @ p["a"]) @ p["b"], lambda x: x @ p["a"] @ p["b"], hidden)


def in_bfloat16(p, x):
    return x.astype("bfloat16") @ p["a"].astype("bfloat16")


def run_with(a):
    return lambda: ll.tapped(MODEL).run(W, X, {"a": a, "b": jnp.ones((6, 2))})


def folded(function):
    model, layers = Model(lambda p, x: x @ function(p["w"])), {"w": ll.decorrelation.State(jnp.eye(4))}
    return lambda: ll.decorrelation.fold(model, {"w": normal(3, 4, 4)}, layers, normal(1, 6, 4))


direct, activities = ll.direct_feedback_alignment, partial(ll.forward_gradient, perturb="activities")
GAINED, ONE_OF_TWO = {**W, "g": jnp.ones(3)}, {"a": W["a"][:, :2], "g": jnp.ones(2)}
A_PATH, COUPLED = "expected a function path -> True or False, got ", "^apply: expected a model in which .*"
test_bad_input = refusals(
    values={
        "^apply: expected no parameter inside a while loop.*'w'.*test_sites.py": refused(
            looping, params={"w": jnp.eye(3)}, y=X
        ),
        "^apply: expected at most one product.*a, b.*test_sites.py": [
            refused(branching, rule, GAINED) for rule in (feedback_alignment, direct)
        ],
        COUPLED + "pass batch=True": [on_devices, refused(normalised, NODE), refused(normalised, activities)],
        COUPLED + "use feedback_alignment, backprop or .* or running": refused(normalised, direct),
        "^params: expected parameters that a single product": list(map(folded, (jnp.abs, jnp.sort))),
        "^apply: expected an output with a leading axis": [
            refused(lambda p, x: two_layers(p, x).sum(0)), refused(lambda p, x: two_layers(p, x)[0, 0], NODE)
        ],
        "^where: expected all or none of the parameters a, g of the site 'dot_general', got 'a'": refused(
            lambda p, x: x @ (p["a"] * p["g"]), NODE, ONE_OF_TWO, where="a"
        ),
        r"^taps\['a'\]: expected shape \[6, 4\], got float32\[7, 6, 4\]": run_with(jnp.ones((7, 6, 4))),
        "^deltas: expected a dict with": lambda: ll.tapped(MODEL).pull_back(W, X, {"a": X}),
    },
    types={
        "^params: expected a floating-point parameter at 'a', got complex64": refused(
            params={**W, "a": W["a"] + 0j}
        ),
        "^apply: expected an array, got 'tanh'": refused(lambda p, x: "tanh"),
        "^apply: expected pre-act.* in float32 or wider.*got bfloat16 at a": refused(in_bfloat16, NODE),
        "^apply: expected products and an output in float32.*got bfloat16": refused(in_bfloat16, WEIGHT),
        r"^taps\['a'\]: expected an array of real numbers, got complex64": run_with(jnp.ones((6, 4)) + 1j),
        rf"^where: {A_PATH}bool\[2\] for 'a'": refused(rule=NODE, where=lambda path: jnp.ones(2, bool)),
        f"^trainable: {A_PATH}0 for 'a'": lambda: ll.sites(
            Model(two_layers, trainable=lambda path: path.find("a")), W, X
        ),
        r"^where: expected a glob .*, a function of a path, or None, got a .* \(path, leaf\)": refused(
            where=lambda path, leaf: True
        ),
    },
)  # fmt: skip
