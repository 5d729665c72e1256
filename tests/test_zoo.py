"""Rules on the zoo: losses are the model's own, identities with `jax.grad` hold, estimates are unbiased."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lax_learning._sites._program import Program
from lax_learning._sites._run import Hooks
from lax_learning._sites.rules.backprop import backprop
from lax_learning._sites.rules.direct_feedback_alignment import direct_feedback_alignment
from lax_learning._sites.rules.feedback_alignment import feedback_alignment
from lax_learning._sites.rules.node_perturbation import node_perturbation
from lax_learning._sites.rules.weight_perturbation import weight_perturbation
from lax_learning._sites.tapped import tapped
from lax_learning.models import Model
from tests.zoo import ZOO

pytest.importorskip("flax")
pytest.importorskip("equinox")
pytest.importorskip("haiku")

KEY = jax.random.key(1)
NUM_DRAWS = 1000
SIGMA = 1e-3


def squares(output: Any, y: Any) -> jax.Array:
    """Loss of each example."""
    return jnp.sum(jnp.square(output - y), axis=tuple(range(1, output.ndim)))


def everything(case: Any, y: Any) -> dict[str, Any]:
    """Gradients of all rules on one model, as one program."""
    model = Model(case.apply)
    opened = tapped(model)
    aligned, direct = feedback_alignment(model, squares), direct_feedback_alignment(model, squares)
    noisy = {
        "node": node_perturbation(model, squares, sigma=SIGMA, antithetic=True, noise="rademacher"),
        "weight": weight_perturbation(model, squares, sigma=SIGMA, difference="central", noise="rademacher"),
    }

    def run(params: Any, x: Any) -> dict[str, Any]:
        def loss_of(taps: Any) -> jax.Array:
            return squares(opened.run(params, x, taps).output, y).mean()

        zeros = {name: jnp.zeros(tap.shape, tap.dtype) for name, tap in opened.shapes(params, x).items()}
        state, direct_state = aligned.init(KEY, params, x), direct.init(KEY, params, x)
        loss, exact, _ = backprop(model, squares).value_and_grad(KEY, params, (), x, y)
        by_weights = aligned.value_and_grad(KEY, params, state._replace(feedback=params), x, y)
        by_feedback = aligned.value_and_grad(KEY, params, state, x, y)
        straight = direct.value_and_grad(KEY, params, direct_state, x, y)
        keys = jax.random.split(KEY, NUM_DRAWS)
        draws = {
            # A few at a time: XLA makes one product, and much slower, of many convolutions side by side.
            name: jax.lax.map(
                lambda key, rule=rule: rule.value_and_grad(key, params, (), x, y)[1], keys, batch_size=20
            )
            for name, rule in noisy.items()
        }
        return {
            "exact": exact,
            "losses": [loss, by_weights[0], by_feedback[0], straight[0]],
            "pulled back": opened.pull_back(params, x, jax.grad(loss_of)(zeros)),
            "by weights": by_weights[1],
            "by feedback": by_feedback[1],
            "direct": straight[1],
            **{
                name: (jax.tree.map(lambda g: g.mean(0), g), jax.tree.map(lambda g: g.std(0), g))
                for name, g in draws.items()
            },
        }

    return jax.jit(run)(case.params, case.x)


def as_float64(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
    )


def largest(tree: Any) -> float:
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def assert_equal_trees(found: Any, exact: Any, tolerance: float) -> None:
    """Every leaf agrees relative to the largest entry of all: a leaf may be zero but for rounding."""
    assert jax.tree.structure(found) == jax.tree.structure(exact)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * largest(exact))


@pytest.mark.parametrize("name", ZOO)
def test_rules_on_models_of_other_libraries(name, x64):
    case = ZOO[name]()
    case = case._replace(params=as_float64(case.params), x=as_float64(case.x))
    output = case.apply(case.params, case.x)
    program = Program(Model(case.apply), case.params, case.x)
    same, _, _ = program.run(program.split.parameters, case.x, Hooks())
    assert (same == output).all()  # the bits of the model itself, run eagerly

    y = jax.random.normal(KEY, output.shape)
    found = everything(case, y)
    # Flax's embedding keeps the float32 of its construction, and so all behind it.
    is_single = "f32[" in str(jax.make_jaxpr(case.apply)(case.params, case.x))
    tolerance = 1e-5 if is_single else 1e-10
    assert is_single == (name == "nnx_causal_decoder")
    for loss in found["losses"]:
        np.testing.assert_allclose(loss, squares(output, y).mean(), rtol=tolerance / 10)
    exact = found["exact"]
    assert_equal_trees(
        exact, jax.grad(lambda p: squares(case.apply(p, case.x), y).mean())(case.params), tolerance
    )
    assert_equal_trees(found["pulled back"], exact, tolerance)
    assert_equal_trees(found["by weights"], exact, tolerance)

    # A parameter that an error reaches through a product gets another signal by feedback, and a signal.
    below = {i for site in program.plan.all_sites if site.passes_error and site.products for i in site.leaves}
    read_out = max(site.index for site in program.plan.all_sites if site.products)
    after = {site for site in program.plan.all_sites if site.index >= read_out}
    sums = [set(tap.sites) for tap in program.plan.all_taps]
    last = {i for site in after.union(*(s for s in sums if s & after)) for i in site.leaves}
    assert below
    leaves = enumerate(
        zip(*map(jax.tree.leaves, (exact, found["by feedback"], found["direct"])), strict=True)
    )
    for i, (true, aligned, direct) in leaves:
        assert np.abs(direct).max() > 0, program.paths[i]
        differs = not np.allclose(true, aligned, rtol=1e-3, atol=1e-10 * largest(exact))
        tiny = np.abs(true).max() < tolerance * largest(exact)
        if i not in last and not tiny and name != "mixture_of_experts":
            assert differs, program.paths[i]

    # Every parameter that the loss depends on gets credit.
    for rule in ("by feedback", "direct", "node", "weight"):
        grads = found[rule][1] if rule in ("node", "weight") else found[rule]
        for path, g, true in zip(program.paths, *map(jax.tree.leaves, (grads, exact)), strict=True):
            assert np.any(g) or np.abs(true).max() < tolerance * largest(exact), (rule, path)

    for rule in ("node", "weight"):
        mean, deviation = found[rule]
        for path, m, s, g in zip(program.paths, *map(jax.tree.leaves, (mean, deviation, exact)), strict=True):
            # Central differences: the bias is of third order in sigma.
            slack = 5 * s / NUM_DRAWS**0.5 + 1e-4 * largest(exact)
            assert (np.abs(m - g) <= slack).all(), (rule, path)


@pytest.mark.parametrize("name", ["linen_attention_block", "linen_stacked_remat_blocks", "haiku_lstm"])
def test_pull_back_in_single_precision(name):
    case = ZOO[name]()
    model, y = Model(case.apply), jax.random.normal(KEY, case.apply(case.params, case.x).shape)
    opened = tapped(model)

    @jax.jit
    def run(params, x):
        zeros = {name: jnp.zeros(tap.shape, tap.dtype) for name, tap in opened.shapes(params, x).items()}
        deltas = jax.grad(lambda taps: squares(opened.run(params, x, taps).output, y).mean())(zeros)
        return opened.pull_back(params, x, deltas)

    exact = jax.jit(jax.grad(lambda p: squares(case.apply(p, case.x), y).mean()))(case.params)
    assert_equal_trees(run(case.params, case.x), exact, 1e-5)


@pytest.mark.usefixtures("as_a_user_sees_it")
@pytest.mark.parametrize("name", ZOO)
def test_every_rule_lowers_for_every_platform(name):
    case = ZOO[name]()
    model, y = Model(case.apply), jnp.zeros(jax.eval_shape(case.apply, case.params, case.x).shape)
    rules = [
        backprop(model, squares),
        feedback_alignment(model, squares),
        direct_feedback_alignment(model, squares),
        node_perturbation(model, squares, sigma=SIGMA),
        weight_perturbation(model, squares, sigma=SIGMA),
    ]

    def run(key_data, params, x):
        key = jax.random.wrap_key_data(key_data)
        x = jax.tree.map(
            lambda leaf, like: jax.random.wrap_key_data(leaf) if is_key(like) else leaf, x, case.x
        )
        return [rule.value_and_grad(key, params, rule.init(key, params, x), x, y)[:2] for rule in rules]

    def is_key(leaf):
        return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)

    x = jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, case.x)
    exported = jax.export.export(jax.jit(run), platforms=("cpu", "cuda", "tpu"))(
        jax.random.key_data(KEY), case.params, x
    )
    assert exported.platforms == ("cpu", "cuda", "tpu")
