"""Networks that fit a target under the eye of a critic: the target, the critic's part, and what is told."""

from io import StringIO
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tqdm import tqdm

from experiments import harness
from experiments.symbolic_discriminator import regularised
from experiments.symbolic_discriminator.config import Config
from experiments.symbolic_discriminator.regularised import RUNS, STUDY
from lax_learning import symbolic
from tests.compare import assert_close

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

CONFIG = Config(points=12, epochs=300, seeds=2, updates=30)
COSTS = ("no_critic", "sigmoid")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two parts, merged, all read from files as the experiment does."""
    folder, parts = tmp_path_factory.mktemp("parts"), []

    def from_file(results):
        harness.write_dataset(folder / "results.nc", results)
        return harness.read_dataset(folder / "results.nc")

    for cost in COSTS:
        part = STUDY.parts(CONFIG)[f"regularised-{cost}"]
        with tqdm(file=StringIO()) as progress:
            parts.append(from_file(part.run(folder / cost, progress)))
        assert progress.n == part.cost
    return from_file(STUDY.merge(CONFIG, parts))


@pytest.fixture(scope="module")
def problem():
    return regularised.problem_of(CONFIG)


@pytest.mark.slow
def test_results_have_named_axes_and_the_published_target(results):
    assert list(results.run.values) == [name for cost in COSTS for name in RUNS[cost][1]]
    assert results.min_correlation.dims == ("run", "seed", "step")
    assert results.latents.dims == ("run", "seed", "latent", "point")
    assert results.updates[[0, 1, 2, 20]].values.tolist() == [0, 1, 3, 30]
    assert all(np.isfinite(variable).all() for variable in results.data_vars.values())
    # The same networks and critics: before learning all runs are alike, afterwards none and no seeds are.
    start, end = (results.fit_loss.isel(step=step) for step in (0, 20))
    assert (start == start.isel(run=0)).all() and len(np.unique(end)) == end.size and (end < start).all()
    x = np.linspace(-3, 2.5, 12)  # the grid is without its end
    np.testing.assert_allclose(results.x, x, rtol=1e-6)
    g = [-0.08 * (x + 0.165) ** 2 - 0.21, 0.0785 * (x - 0.63) ** 2 - 0.252, 0.0895 * (x + 0.21) ** 2 - 0.0375]
    np.testing.assert_allclose(results.components, g, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(results.target, g[0] * g[1] + np.sin(g[2]), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_measurements_and_verdicts_are_of_the_final_curves(results, problem):
    """The critic is the one of before learning; most critics take also real components for formulas."""
    critic = jax.tree.map(lambda leaf: leaf[0], regularised.starts(CONFIG).critic)
    for name in results.run.values:
        for seed in range(2):
            last = results.sel(run=name).isel(seed=seed, step=-1)
            likeness = abs(np.corrcoef(last.latents, results.components)[:3, 3:])  # [latent, component]
            np.testing.assert_allclose(last.min_correlation, likeness.max(axis=1).min(), rtol=1e-4)
            np.testing.assert_allclose(last.components_found, likeness.max(axis=0).min(), rtol=1e-4)
            np.testing.assert_allclose(
                last.fit_loss, np.mean((last.prediction - last.target) ** 2), rtol=1e-4
            )
        last = results.sel(run=name).isel(seed=0, step=-1)
        logits = problem.critic.apply(critic, last.latents.values)
        np.testing.assert_allclose(last.mean_logit, logits.mean(), rtol=1e-3, atol=1e-5)
        assert last.judged_real == pytest.approx(float((logits > 0).mean()))
    assert (results.critic_accuracy > 0.6).all() and results.components_judged_real.mean() > 0.6


def test_networks_have_keys_of_their_own(problem, monkeypatch):
    untrained = lambda key, state: (state, SimpleNamespace(accuracy=jnp.zeros(9)))  # noqa: E731
    monkeypatch.setattr(symbolic, "train_critic", lambda *_, **__: untrained)
    params = jax.tree.map(lambda leaf: leaf[0], regularised.starts.__wrapped__(CONFIG).params)
    *_, latents, head = jax.random.split(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 2), 0), 4)
    expected = {"latents": jax.jit(problem.latents.init)(latents), "head": jax.jit(problem.head.init)(head)}
    assert_close(params, expected, ulps=10)


def test_the_loss_is_the_fit_less_what_the_critic_takes_for_real(problem):
    """Three steps of Adam on it, two of them in the last of two steps of the run, the loss written out."""
    networks = {"latents": problem.latents, "head": problem.head, "critic": problem.critic}
    shapes = {name: jax.eval_shape(network.init, jax.random.key(0)) for name, network in networks.items()}
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.3 * random.normal(size=leaf.shape).astype("f"), shapes)
    critic, adam = params.pop("critic"), optax.chain(optax.add_decayed_weights(1e-7), optax.adam(1e-3))

    def loss(params):
        latents = problem.latents.apply(params["latents"], problem.x)
        error = problem.head.apply(params["head"], latents) - regularised.target(problem.x)
        real = jax.nn.sigmoid(problem.critic.apply(critic, latents.T))
        return jnp.mean(jnp.square(error)) - 2 * jnp.mean(real)

    def update(_, held):
        moves, state = adam.update(jax.grad(loss)(held[0]), held[1], held[0])
        return optax.apply_updates(held[0], moves), state

    @jax.jit
    def run(params):
        fit = regularised.fit(problem, "sigmoid", updates=3, num_steps=2)
        carry = fit.init(regularised.Start(critic, jnp.zeros(()), params), jnp.float32(2.0), ())
        carry = jax.lax.fori_loop(1, 3, lambda number, carry: fit.step(carry, number, ())[0], carry)
        return carry[2], jax.lax.fori_loop(0, 3, update, (params, adam.init(params)))[0]

    found, expected = run(params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)  # a step moves by 1e-3


@pytest.mark.slow
def test_correlations_are_numpys():
    rng = np.random.default_rng(0)
    latents, components = rng.normal(size=(30, 4)), rng.normal(size=(30, 3)) + 5
    latents[:, 3] = 7.1
    expected = abs(np.corrcoef(latents[:, :3].T, components.T)[:3, 3:]).max(axis=1)
    found = regularised.largest_correlations(jnp.asarray(latents), jnp.asarray(components))
    np.testing.assert_allclose(found, [*expected, 0], rtol=1e-4)
    assert np.isnan(regularised.largest_correlations(jnp.full((3, 1), jnp.nan), jnp.eye(3))).all()


def test_every_run_has_a_part():
    assert list(STUDY.parts(CONFIG)) == [f"regularised-{name}" for name in RUNS]
    assert len({name for _, runs in RUNS.values() for name in runs}) == 6
