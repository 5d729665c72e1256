"""Rules on the zoo: losses are the model's own, identities with `jax.grad` hold, estimates are unbiased."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxpr_as_fun

import lax_learning as ll
from lax_learning import estimators
from lax_learning._sites._matrices import direct_matrices
from lax_learning._sites._program import Program
from lax_learning._sites._run import Hooks
from lax_learning.models import Model
from tests.compare import assert_mean, assert_near, noise_by_shape, normal, slow_but, squares
from tests.registry import RULES
from tests.zoo import ZOO, as_float64

# Much is traced here: annotations are checked where the same functions meet their other oracles.
pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(1)
SIGMA = 1e-3
# Strides and groups; loops, checkpoints and derivatives of the user's meet feedback also among the sites.
FAST = "linen_separable_strided_convolution"
LEARNED = ("weight_mirror", "direct_kolen_pollack", "forward_direct_feedback")


def everything(case: Any, y: Any, noisy: list[ll.Rule]) -> dict[str, Any]:
    """Gradients of all rules on one model, as one program."""
    model = Model(case.apply)
    opened = ll.tapped(model)
    rules = {
        "backprop": ll.backprop(model, squares),
        "feedback": ll.feedback_alignment(model, squares),
        "direct": ll.direct_feedback_alignment(model, squares),
        "signs": ll.sign_symmetry(model, squares, magnitude="fixed"),
        "pairs": ll.kolen_pollack(model, squares, optimizer=optax.sgd(0.1), decay=0.0),
        **{name: RULES[name](model, squares) for name in LEARNED},
    }

    def run(params: Any, x: Any) -> dict[str, Any]:
        def loss_of(taps: Any) -> jax.Array:
            return squares(opened.run(params, x, taps).output, y).mean()

        def by_weights(name: str) -> Any:
            """With the weights as feedback, wherever there is any."""
            feedback, is_none = states[name].feedback, lambda leaf: leaf is None
            fed = jax.tree.map(lambda b, w: w if b is not None else b, feedback, params, is_leaf=is_none)
            return rules[name].value_and_grad(KEY, params, states[name]._replace(feedback=fed), x, y)[1]

        zeros = {name: jnp.zeros(tap.shape, tap.dtype) for name, tap in opened.shapes(params, x).items()}
        states = {name: rule.init(KEY, params, x) for name, rule in rules.items()}
        calls = {name: rule.value_and_grad(KEY, params, states[name], x, y) for name, rule in rules.items()}

        def draw(key: Any) -> Any:
            return [rule.value_and_grad(key, params, (), x, y)[1] for rule in noisy]

        return {
            "losses": [loss for loss, _, _ in calls.values()],
            "grads": {name: grads for name, (_, grads, _) in calls.items()},
            "exact": jax.grad(lambda p: squares(case.apply(p, x), y).mean())(params),
            "by weights": [by_weights(name) for name in ("feedback", "signs", "pairs")],
            "pulled back": opened.pull_back(params, x, jax.grad(loss_of)(zeros)),
            "feedback": [(states[name].feedback, calls[name][2].feedback) for name in ("pairs", *LEARNED)],
            # A few at a time: XLA makes one product, and much slower, of many convolutions side by side.
            "draws": jax.lax.map(draw, jax.random.split(KEY, 1000), batch_size=20),
        }

    return jax.jit(run)(case.params, case.x)


@pytest.mark.parametrize("name", slow_but([FAST], ZOO))
def test_rules_on_models_of_other_libraries(name, x64):
    case = ZOO[name]()
    case = case._replace(params=as_float64(case.params), x=as_float64(case.x))
    model = Model(case.apply)
    program = Program(model, case.params, case.x)
    same, _, _ = program.run(program.split.parameters, case.x, Hooks())
    # The bits of the model, traced and run eagerly; JAX rounds some functions in another way untraced.
    traced = jax.make_jaxpr(case.apply)(case.params, case.x)
    (output,) = jaxpr_as_fun(traced)(*jax.tree.leaves((case.params, case.x)))
    assert (same == output).all()
    table, paths = str(ll.sites(model, case.params, case.x)), program.split.parameter_paths
    assert all(path in table for path in paths)

    y = normal(1, *output.shape).astype(output.dtype)
    # Flax's embedding keeps the float32 of its construction, and so all behind it.
    is_single = "f32[" in str(traced)
    assert is_single == (name == "nnx_causal_decoder")
    # In forms whose bias is of third order in sigma, or none.
    noisy = [ll.node_perturbation(model, squares, sigma=SIGMA, antithetic=True, noise="rademacher")]
    if name != "custom_vjp_around_parameters":  # which has no forward mode
        noisy.append(ll.forward_gradient(model, squares, perturb="activities", noise="rademacher"))
    found = everything(case, y, noisy)
    exact, grads = found["exact"], found["grads"]
    # Relative to the largest entry of all: a leaf may be zero but for rounding.
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(exact))
    tolerance = 1e-5 if is_single else 1e-10
    near: Any = {"rtol": tolerance, "atol": tolerance * scale}
    for loss in found["losses"]:
        np.testing.assert_allclose(loss, squares(output, y).mean(), rtol=tolerance)
    for same in (grads["backprop"], found["pulled back"], *found["by weights"]):
        assert_near(same, exact, **near)
    # A mirror sends errors as feedback alignment does; all learned feedback moves, and stays finite.
    assert_near(grads["weight_mirror"], grads["feedback"], **near)
    for before, after in (map(jax.tree.leaves, pair) for pair in found["feedback"]):
        assert all(np.isfinite(b).all() and (a != b).any() for a, b in zip(before, after, strict=True))

    # A parameter that an error reaches through a product gets another signal by feedback, and a signal.
    sites = program.plan.all_sites
    assert any(site.passes_error and site.products for site in sites)
    read_out = max(site.index for site in sites if site.products)
    behind = {site for site in sites if site.index >= read_out}
    last = behind.union(*(s for tap in program.plan.all_taps if (s := set(tap.sites)) & behind))
    read_outs = {i for site in last for i in site.leaves}
    others = {i for site in set(sites) - last for i in site.leaves}
    found_by = (jax.tree.leaves(grads[rule]) for rule in ("backprop", "feedback", "signs", "direct"))
    for i, (true, aligned, signed, direct) in enumerate(zip(*found_by, strict=True)):
        close = [np.allclose(true, g, rtol=1e-3, atol=tolerance * scale) for g in (aligned, signed)]
        tiny = np.abs(true).max() < tolerance * scale
        if i not in read_outs and not tiny and name != "mixture_of_experts":
            assert not any(close), paths[i]
        if i not in others:  # direct feedback is exact at the read-out, whose error passes through no product
            np.testing.assert_allclose(direct, true, **near, err_msg=paths[i])

    # Every parameter that the loss depends on gets credit.
    for rule, of_rule in grads.items():
        for path, g, true in zip(paths, jax.tree.leaves(of_rule), jax.tree.leaves(exact), strict=True):
            assert np.isfinite(g).all(), (rule, path)
            used = np.abs(true).max() >= tolerance * scale
            assert np.any(g) or not used or rule == "forward_direct_feedback", (rule, path)
    for draws in found["draws"]:  # of losses that round, divided by sigma
        assert_mean(draws, exact, atol=1e-4 * scale)


# What other fast tests run, or has nothing that another model has not.
RUN_ELSEWHERE = {
    FAST, "plain_mlp", "equinox_gru", "equinox_mlp", "layers_by_counter", "tied_embedding",
    "nnx_layer_used_twice", "jitted_checkpointed_conditional", "linen_residual_convolution",
    "custom_vjp_around_parameters",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(ZOO) - RUN_ELSEWHERE))
def test_every_model_is_taken(name):
    """With noise on its units and feedback through its products, traced alone: the others run them."""
    case = ZOO[name]()
    y = jnp.zeros(jax.eval_shape(case.apply, case.params, case.x).shape)
    for make in (partial(ll.node_perturbation, sigma=SIGMA), ll.feedback_alignment):
        rule = make(Model(case.apply), squares)
        state = jax.eval_shape(rule.init, KEY, case.params, case.x)
        _, grads, _ = jax.eval_shape(rule.value_and_grad, KEY, case.params, state, case.x, y)
        assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, case.params)


# What draws noise, moves feedback, or solves; the others make programs of the same operations.
LOWERED = (
    "weight_mirror", "node_perturbation_signs", "weight_perturbation_low_rank",
    "guided_by_feedback_alignment", "decorrelated_feedback_alignment",
)  # fmt: skip


@pytest.mark.parametrize("names", [LOWERED, pytest.param(tuple(RULES), marks=pytest.mark.slow)], ids=len)
def test_every_rule_lowers_for_every_platform(names):
    case, platforms = ZOO["jitted_checkpointed_conditional"](), ("cpu", "cuda", "tpu")
    model, y = Model(case.apply), jnp.zeros(jax.eval_shape(case.apply, case.params, case.x).shape)
    rules = [RULES[rule](model, squares) for rule in names]

    def run(params):
        states = [rule.init(KEY, params, case.x) for rule in rules]
        pairs = zip(rules, states, strict=True)
        return [rule.value_and_grad(KEY, params, state, case.x, y)[:2] for rule, state in pairs]

    assert jax.export.export(jax.jit(run), platforms=platforms)(case.params).platforms == platforms


@pytest.mark.parametrize("name", slow_but(["linen_stacked_remat_blocks"], ZOO))
def test_a_step_in_place_is_one_of_sgd_on_the_estimate(name, x64):
    case = ZOO[name]()
    y = normal(1, *jax.eval_shape(case.apply, case.params, case.x).shape)

    def loss(params: Any) -> Any:
        return jnp.mean(jnp.square(case.apply(params, case.x) - y))

    matrices = direct_matrices(Program(Model(case.apply), case.params, case.x))
    leaves, structure = jax.tree.flatten(case.params)

    def whole(key: Any, like: Any) -> Any:
        """The noise of every leaf: stacked matrices of one shape have the same."""
        first = [w[(0,) * matrices[i].stacked] if i in matrices else w for i, w in enumerate(leaves)]
        noise = noise_by_shape(key, first)
        return structure.unflatten(map(jnp.broadcast_to, noise, map(jnp.shape, leaves)))

    rate, decay = 0.3, 0.2
    estimate = estimators.weight_perturbation(loss, sigma=0.1, difference="central", noise=whole)
    grads = jax.jit(estimate)(KEY, case.params)[1]
    step: Any = estimators.in_place_step(loss, sigma=0.1, noise=noise_by_shape, weight_decay=decay)
    _, after = step(KEY, jax.tree.map(jnp.array, case.params), learning_rate=rate)
    # Products of float32 in the model, or of float64, whose differences are divided by 0.2.
    tolerance = 1e-4 if any(leaf.dtype == jnp.float32 for leaf in leaves) else 1e-10
    for w, g, found in zip(leaves, jax.tree.leaves(grads), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(found, (1 - rate * decay) * w - rate * g, rtol=tolerance, atol=tolerance)
