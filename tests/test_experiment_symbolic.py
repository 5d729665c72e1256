"""The symbolic discriminator: its studies, critics and readings by hand."""

import io
import re
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr
from tqdm import tqdm

from experiments.running import group_by_shape
from experiments.symbolic_discriminator import activations, critics, fixed_set, reading, regularised, spaces
from experiments.symbolic_discriminator.config import Config
from experiments.symbolic_discriminator.report import STUDIES, figures, rows
from experiments.symbolic_discriminator.spaces import LIBRARIES, library, points
from lax_learning import symbolic
from tests.command_line import row_of
from tests.compare import assert_near

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

DRAWN = Config(configurations=40, points=30)
FIT, SET = Config(points=12, epochs=300, seeds=2), Config(seed=3)


def test_studies_are_the_notebooks():
    of = spaces.CONFIGURATIONS
    for field, values in {
        "layers": [2, 4, 8, 8, 8, 8, 8, 16],
        "width": [64] * 6 + [256, 64],
        "learning_rate": [1e-5] * 4 + [1e-4] * 4,
        "penalty": [1e-4] * 3 + [1e-5] * 2 + [1e-6] * 3,
    }.items():
        assert [each[field] for each in of["depth"](Config())] == values
    drawn = of["hyper_parameters"](Config(preset="seed", configurations=600))
    for field, values in spaces.SPACES["seed"].items():
        assert {c[field] for c in drawn} == set(values)
    first = of["accuracy"](Config())[0]
    assert (first["layers"], first["width"], first["decay"], first["penalty"]) == (6, 128, 1e-4, 1e-5)
    every = [{**c, "extension": None} for c in of["extensions"](Config(preset="study"))]
    assert every == every[: spaces.EXTENSION_SPACES["study"][1]] * len(spaces.EXTENSIONS)


def test_libraries_contain_one_another_and_points_are_of_a_grid_or_normal():
    texts = [set(path.read_text().splitlines()) for path in LIBRARIES.values()]
    assert next(iter(LIBRARIES)) == "quadratic" and all(library(name).expressions for name in LIBRARIES)
    assert all(small < large for small, large in pairwise(texts[:-1]))
    np.testing.assert_allclose(points("grid", 6, 0)[:, 0], [-3, -2, -1, 0, 1, 2], atol=1e-6)
    drawn = np.asarray(points("normal", 4_000, 0))
    assert abs(drawn.mean()) < 5 / 4_000**0.5 and abs(drawn.var() - 1) < 5 * (2 / 4_000) ** 0.5
    assert (drawn != points("normal", 4_000, 1)).all()


@pytest.mark.slow
def test_a_training_is_that_of_the_library(tmp_path):
    """One configuration of a group, epoch by epoch."""
    config = Config(points=10, epochs=11, seeds=2)
    small = {**spaces.SMALL, "width": 8, "iterations": 2, "extension": "gradient_embedded"}
    configurations = [small, {**small, "learning_rate": 1e-2, "penalty": 0.1}]
    (group,) = group_by_shape(configurations, spaces.STATIC)
    found = critics.run_group(group, config, 2, tmp_path / "run", tqdm(disable=True))
    one = found.isel(configuration=1, seed=0)
    curves = critics.curves_of("quadratic", "gradient_embedded", 3, config)
    critic, adam = symbolic.critic(10, hidden=(8, 8), channels=2), critics.adam(1e-2, 1e-7)
    step = symbolic.critic_step(critic, adam, penalty=0.1)
    key = jax.random.split(jax.random.fold_in(jax.random.key(0), 5), 2)[0]
    init_key, train_key = jax.random.split(key)
    train = jax.jit(symbolic.train_critic(step, curves.real, curves.fake, num_epochs=20, iterations=2))
    state, metrics = train(train_key, symbolic.init_critic(init_key, critic, adam))
    np.testing.assert_allclose(one.accuracy, metrics.accuracy.mean(axis=1), rtol=1e-6)
    judged = critics.judged_curves("quadratic", "gradient_embedded", config)
    np.testing.assert_allclose(one.logits[1], critic.apply(state.params, judged[1]), atol=0.02)


def test_metrics_of_epochs_are_over_all_steps_or_of_the_first(monkeypatch):
    config, random = Config(points=5, epochs=400), np.random.default_rng(0)
    made = symbolic.CriticMetrics(*random.random((5, 20, 3), np.float32))
    monkeypatch.setattr(symbolic, "train_critic", lambda *_, **__: lambda key, state, first: (first, made))
    run = critics.training({name: spaces.SMALL[name] for name in spaces.STATIC}, config)
    traced = dict.fromkeys(("learning_rate", "penalty", "decay"), np.float32(0.1))
    (_, _, first), found = run.step((jax.random.key(0), traced, ()), 3, None)
    assert critics.schedule(400) == (2, 20) and first == 3 * 20
    of_epochs = made.accuracy.mean(axis=1), made.accuracy[:, 0], made.auc[:, 0]
    for name, values in zip(critics.METRICS, of_epochs, strict=True):
        np.testing.assert_allclose(found[name], values.reshape(10, 2).mean(axis=1), rtol=1e-6)


def test_judged_curves_are_of_formulas_and_of_networks():
    """Misfits are 0 for what they are misfits of."""
    x = np.linspace(-1, 2, 30)
    curves = np.stack([np.maximum(x, 0) - 3 * x + 1, x**2])
    lines, parabolas = ((np.minimum(x, 0), np.maximum(x, 0)), (x, x**2))
    assert np.array_equal(activations.misfit(x, curves, lines) < 1e-12, [True, False])
    assert np.array_equal(activations.misfit(x, curves, parabolas) < 1e-12, [False, True])
    alone = activations.misfit(x, curves[:1], parabolas)  # relative to the curve itself
    np.testing.assert_allclose(alone, activations.misfit(x, curves, parabolas)[:1])
    x = np.asarray(points("normal", 30, 0), float)[:, 0]
    formulas, networks = np.asarray(critics.judged_curves("quadratic", "none", DRAWN), float)
    assert activations.misfit(x, formulas, (x, x**2)).max() < 1e-4
    assert np.median(activations.misfit(x, networks, (x, x**2))) > 0.01
    embedded = critics.judged_curves("quadratic", "gradient_embedded", DRAWN)
    np.testing.assert_allclose(embedded[0, ..., 0], formulas, rtol=1e-6)


def test_schedule_has_at_least_the_epochs():
    for epochs in (10, 11, 199, 200, 201, 500, 3_000, 100_000):
        epochs_a_bin, steps = critics.schedule(epochs)
        assert epochs <= 10 * steps * epochs_a_bin < epochs + 10 * epochs_a_bin and steps <= 21


def test_smoothed_is_a_trailing_mean():
    epochs = ("bin", 5 * np.arange(1, 41))  # a horizon of 20 epochs: four bins
    results = xr.Dataset({"accuracy": ("bin", np.arange(40.0))}, {"epoch": epochs})
    np.testing.assert_allclose(reading.smoothed(results), [0, 0.5, 1, *(np.arange(3, 40) - 1.5)])
    assert [reading.horizon(number) for number in (10, 500, 100_000)] == [1, 50, 500]


def test_configurations_and_their_groups():
    space = {"width": (2, 3), "rate": (0.1, 0.2, 0.3), "steps": (1, 2)}
    found = spaces.drawn(Config(), space, 3_000, 9)
    # Fields do not depend on each other.
    pairs = [(1 / len(of), np.mean([c[name] == v for c in found])) for name, of in space.items() for v in of]
    pairs.append((1 / 4, np.mean([c["width"] == 2 and c["steps"] == 1 for c in found])))
    assert all(abs(mean - share) < 5 * np.sqrt(share * (1 - share) / 3_000) for share, mean in pairs)
    groups = group_by_shape([{name: c[name] for name in space} for c in found[:40]], ["width", "steps"])
    assert sorted(i for group in groups for i in group.members) == list(range(40))
    assert len({tuple(group.static.values()) for group in groups}) == len(groups) == 4
    for group in groups:
        for i, rate in zip(group.members, group.traced["rate"], strict=True):
            assert {name: found[i][name] for name in space} == {**group.static, "rate": rate}
    of_types = group_by_shape([{"n": n, "a": 1.0} for n in (1, 1.0, True)], ["n"])
    assert [type(group.static["n"]) for group in of_types] == [int, float, bool]


def test_trends():
    for expected, *curves in (
        ("quick, then constant", [0.5, 0.9, 0.9, 0.9], [0.5, 0.9, 0.9, 0.81]),
        ("quick, then dropping", [0.5, 0.95, 0.9, 0.6], [0.5, 0.9, 0.9, 0.79]),
        ("slow, still improving", [0.5, 0.6, 0.75, 0.95]),
        ("learns nothing", [0.5, 0.55, 0.6, 0.5], [0.5, np.nan, np.nan, np.nan]),
    ):
        for ends in curves:
            assert reading.trend(np.interp(np.linspace(0, 3, 40), [0, 0.5, 2, 3], ends)) == expected


def test_share_of_variance():
    random, levels = np.random.default_rng(1), np.repeat([1, 2, 3, 4], 250)
    noise, share = random.normal(size=1_000), reading.share_of_variance
    # Means 0, 1, 2, 3 have a variance of 5/4, noise has 1; the estimate's own error is about 0.02.
    assert share(levels + noise, levels) == pytest.approx(5 / 9, abs=0.1)
    by_chance = [share(random.normal(size=40), levels[::25]) for _ in range(400)]
    assert abs(np.mean(by_chance)) < 5 * np.std(by_chance) / 20
    assert share(levels.astype(float), levels) == pytest.approx(1)
    assert np.isnan([share(noise, np.ones(1_000)), share(np.ones(1_000), levels)]).all()
    shares = reading.resampled_shares(levels + noise, levels, times=50)
    assert 0 < shares.std() < 0.1 and abs(shares.mean() - 5 / 9) < 0.1


@pytest.fixture(scope="module")
def invented():
    """Results as the studies merge them, without a run; the learning rate decides."""
    found, random, axes = {}, np.random.default_rng(0), ("configuration", "seed", "bin")
    for study in ("libraries", "hyper_parameters", "depth", "extensions"):
        parts, seeds = [], 1 if study == "hyper_parameters" else 2
        for group in group_by_shape(spaces.CONFIGURATIONS[study](DRAWN), spaces.STATIC):
            rates, number = group.traced["learning_rate"][:, None], len(group.members)
            level = np.clip(0.75 + 0.1 * np.log10(rates) / 3 + random.normal(0, 0.01, (number, seeds)), 0, 1)
            curves = 0.5 + (level[..., None] - 0.4) * np.linspace(0, 1, 50)
            logits = random.normal(size=(number, seeds, 2, critics.JUDGED))
            variables = {
                **dict.fromkeys(critics.METRICS, (axes, curves)),
                "logits": (("configuration", "seed", "kind", "curve"), logits),
                "seconds": ("configuration", np.ones(number)),
            }
            coordinates = {"configuration": list(group.members), "epoch": ("bin", 10 * np.arange(1, 51))}
            parts.append(xr.Dataset(variables, coordinates))
        found[study] = STUDIES[study].merge(DRAWN, parts)
    return xr.DataTree.from_dict(found)


def test_what_decides_is_found_and_rows_are_of_the_final_epochs(invented):
    """Though parts are merged in another order than that of the configurations."""
    found = {(row["part"], row["metric"]): row["mean"] for row in rows(invented)}
    deciding = {metric: mean for (part, metric), mean in found.items() if part == "deciding: bce"}
    assert set(deciding) == {"latents", "iterations", "penalty", "layers", "learning_rate"}
    assert deciding.pop("learning_rate") > 0.9 > 0.4 > max(deciding.values())
    last = invented["extensions"].fresh_accuracy[0, :, -5:].mean("bin")
    of_none = [found["extensions: bce: none", metric] for metric in ("fresh_accuracy", "best")]
    assert of_none == pytest.approx([float(last.mean()), float(last.max())])


def test_figures_of_every_study(invented):
    drawn = figures(invented)
    expected = {"libraries", "trends", "deciding", "configurations", "depth", "extensions", "predictions"}
    assert set(drawn) == expected
    for name, figure in drawn.items():
        assert figure.get_suptitle(), name
        assert all(axes.get_xlabel() or axes.get_title() for axes in figure.axes if axes.lines), name
    followed = reading.trends(invented["hyper_parameters"].to_dataset())
    for axes, trend in zip(drawn["trends"].axes, reading.TRENDS, strict=True):
        shown = re.findall(r"(\d+) (?:bce|wgan)", axes.get_title())
        assert trend in axes.get_title() and sum(map(int, shown)) == followed.count(trend)
    # Nothing to compare.
    one = invented["hyper_parameters"].to_dataset().isel(configuration=[0])
    assert all(draw(one) for draw in STUDIES["hyper_parameters"].figures)


def test_every_network_has_its_own_key(monkeypatch):
    of_key = jax.random.key_data

    def train(key, state):
        return SimpleNamespace(params=[of_key(key), state]), SimpleNamespace(accuracy=jnp.zeros(9))

    network = SimpleNamespace(init=of_key)
    problem = regularised.problem_of(FIT)._replace(latents=network, head=network)  # type: ignore[arg-type]
    monkeypatch.setattr(regularised, "problem_of", lambda config: problem)
    monkeypatch.setattr(symbolic, "init_critic", lambda key, *_: of_key(key))
    monkeypatch.setattr(symbolic, "train_critic", lambda *_, **__: train)
    start = regularised.starts.__wrapped__(FIT)
    keys = np.concatenate([*start.critic, *start.params.values()])
    assert len(np.unique(keys, axis=0)) == len(keys) == 4 * 2  # purposes, seeds


def test_the_loss_is_the_fit_less_what_the_critic_takes_for_real():
    """Three updates by Adam in three steps of the run, whose first only measures, all written out."""
    problem = regularised.problem_of(FIT)
    networks = {"latents": problem.latents, "head": problem.head, "critic": problem.critic}
    shapes = {name: jax.eval_shape(network.init, jax.random.key(0)) for name, network in networks.items()}
    random, x = np.random.default_rng(0), np.linspace(-3, 2.5, 12)  # the grid is without its end
    g = [-0.08 * (x + 0.165) ** 2 - 0.21, 0.0785 * (x - 0.63) ** 2 - 0.252, 0.0895 * (x + 0.21) ** 2 - 0.0375]
    target = g[0] * g[1] + np.sin(g[2])
    params = jax.tree.map(lambda leaf: 0.3 * random.normal(size=leaf.shape).astype("f"), shapes)
    critic, adam = params.pop("critic"), optax.chain(optax.add_decayed_weights(1e-7), optax.adam(1e-3))

    def judged(params):
        latents = problem.latents.apply(params["latents"], problem.x)
        error = problem.head.apply(params["head"], latents)[:, 0] - target
        return jnp.mean(jnp.square(error)), problem.critic.apply(critic, latents.T), latents

    def loss(params):
        error, logits, _ = judged(params)
        return error - 2 * jnp.mean(jax.nn.sigmoid(logits))

    def update(_, held):
        moves, state = adam.update(jax.grad(loss)(held[0]), held[1], held[0])
        return optax.apply_updates(held[0], moves), state

    @jax.jit
    def run(params):
        fit = regularised.fit(problem, "sigmoid", updates=3, num_steps=2)
        carry = fit.init(regularised.Start(critic, jnp.zeros(()), params), jnp.float32(2.0), ())
        carry = jax.lax.fori_loop(0, 3, lambda number, carry: fit.step(carry, number, ())[0], carry)
        expected = jax.lax.fori_loop(0, 3, update, (params, adam.init(params)))[0]
        return carry[2], expected, fit.step(carry, 0, ())[1], judged(carry[2])

    found, expected, told, (error, logits, latents) = run(params)
    assert_near(found, expected, atol=1e-5)  # a step moves by 1e-3
    likeness = abs(np.corrcoef(latents.T, g)[:3, 3:])  # [latent, component]
    assert_near(
        [told[name] for name in regularised.report.METRICS],
        [error, logits.mean(), (logits > 0).mean(), likeness.max(axis=1).min(), likeness.max(axis=0).min()],
        rtol=1e-4,
    )


def test_correlations_of_constants_are_0_and_of_nan_nan():
    a, largest = np.random.default_rng(0).normal(size=(30, 2)), jax.jit(regularised.largest_correlations)
    a[:, 1] = 7.1
    np.testing.assert_allclose(largest(a, 5 - 2 * a[:, :1]), [1, 0], rtol=1e-4)
    assert np.isnan(largest(np.full_like(a, np.nan), a[:, :1])).all()


@pytest.fixture
def tiny(monkeypatch):
    """Two seeds, few curves and epochs."""
    few = {name: {"sample": 4} for name in fixed_set.EPOCHS}
    for name, value in {"NUM_SEEDS": 2, "CURVES": 20, "RUNS": 2, "EPOCHS": few}.items():
        monkeypatch.setattr(fixed_set, name, value)
    fixed_set.sets_of.cache_clear()


def test_fixed_sets_are_of_the_published_sizes():
    assert fixed_set.seeds_of(Config(seeds=1)).shape == (10,)
    drawn = jax.eval_shape(fixed_set.curves, jax.random.key(0), jnp.zeros((100, 1)))
    assert drawn.shape == (2, 500, 100)
    epochs = np.array([[*of.values()] for of in fixed_set.EPOCHS.values()])
    assert epochs[0, -1] * fixed_set.ITERATIONS == 5_000 and not np.any(epochs % fixed_set.RUNS)


def test_the_set_is_of_functions_and_of_untrained_networks_other_ones_for_every_seed(tiny):
    x, seed = points("grid", 100, SET.seed), fixed_set.seeds_of(SET)[1]
    generator = symbolic.mlp_generator(1, 1, hidden=(32, 32))

    @jax.jit
    @jax.vmap
    def by_hand(key):
        real_key, fake_key = jax.random.split(key)
        draws = symbolic.draw_functions(real_key, library("quadratic"), 20)
        n0, n1, n2 = draws.coefficients.normal.T[:, :, None]
        network = generator.init(jax.random.split(fake_key, 20)[7])
        real = 0.05 * n0 * (x[:, 0] + 0.5 * n1) ** 2 + 0.15 * n2
        return real, generator.apply(network, x)[:, 0]

    sets = fixed_set.sets_of(SET, "grid")
    real, fake = by_hand(jax.random.split(jax.random.fold_in(seed, 0)))  # of the set and of new curves
    np.testing.assert_allclose(sets[1, :, 0], real, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(sets[1, :, 1, 7], fake, rtol=1e-4, atol=1e-6)
    drawn = np.reshape(sets, (-1, 100))  # two sets of two classes for two seeds
    assert len(np.unique(drawn, axis=0)) == len(drawn) == 2 * 2 * 2 * 20
    assert (fixed_set.seeds_of(SET) != fixed_set.seeds_of(Config(seed=4))).all()


def test_a_critic_and_its_training_have_keys_that_drew_no_curves(monkeypatch):
    metrics = SimpleNamespace(accuracy=np.ones((2, 2)))
    monkeypatch.setattr(symbolic, "init_critic", lambda key, *_: [key])
    train = lambda *_, **__: lambda key, keys, first: ([key, *keys], metrics)  # noqa: E731
    monkeypatch.setattr(symbolic, "train_critic", train)
    run, key = fixed_set.training("bce", 1), jax.random.key(0)
    (*_, keys), _ = run.step(run.init(key, np.zeros((2, 2)), ()), 0, ())
    of_all = [jax.random.key_data(each) for each in (*keys, jax.random.fold_in(key, 0))]
    assert len(np.unique(of_all, axis=0)) == 3


@pytest.mark.slow
def test_parts_are_of_the_library_and_merge_and_are_told_of(tiny, tmp_path):
    parts, found = fixed_set.STUDY.parts(SET), {}
    every = ("wgan", "bce", "bce_fresh", "standard")
    assert list(parts) == [f"fixed_set-{kind}-{name}" for kind in fixed_set.KINDS for name in every]
    for name in ("normal-bce_fresh", "normal-standard", "grid-wgan", "grid-bce"):
        with tqdm(file=io.StringIO()) as progress:
            found[name] = parts[f"fixed_set-{name}"].run(tmp_path / name, progress)
        assert progress.n == parts[f"fixed_set-{name}"].steps == 2

    # Twenty steps of Adam on all curves; the second seed.
    seen, fresh = fixed_set.sets_of(SET, "grid")[1]
    judge, adam = symbolic.critic(100, hidden=(64, 64)), optax.adam(1e-3)
    start = symbolic.init_critic(jax.random.fold_in(fixed_set.seeds_of(SET)[1], 1), judge, adam)
    step, draw = symbolic.critic_step(judge, adam, objective="wgan"), lambda key, of: of
    real, fake = (partial(draw, of=of) for of in seen)
    train = jax.jit(symbolic.train_critic(step, real, fake, num_epochs=4, iterations=5))
    state, metrics = train(jax.random.key(0), start)
    told = found["grid-wgan"].isel(points=0, classifier=0, seed=1)
    real, fake = (np.asarray(judge.apply(state.params, of)) for of in fresh)
    pairs = (real[:, None] > fake) + 0.5 * (real[:, None] == fake)
    assert float(told.fresh_auc) == pytest.approx(pairs.mean(), abs=1e-6)
    assert float(told.fresh_accuracy) == pytest.approx(np.mean([*(real > 0), *(fake <= 0)]))
    # The last call made the last 2 of 4 epochs; accuracy is that before each one's last step.
    assert float(told.training_accuracy) == pytest.approx(float(metrics.accuracy[2:, -1].mean()))

    results = fixed_set.STUDY.merge(SET, list(found.values()))
    assert dict(results.sizes) == {"points": 2, "classifier": 6, "seed": 2}
    assert (results.seen_accuracy.sel(classifier="tree", points="normal") == 1).all()
    rows = fixed_set.STUDY.rows(results)
    assert len(rows) == 2 * 4 + 3 + 3 * 3 + 10  # the last are the published ones
    assert row_of(rows, part="fixed_set: grid, wgan critic", metric="published_accuracy")["mean"] == 0.707
    row = row_of(rows, part="fixed_set: normal, kNN", metric="fresh_accuracy")
    expected = found["normal-standard"].fresh_accuracy[0, 1].mean()
    assert row["n"] == 2 and row["mean"] == pytest.approx(float(expected))
    titles = [axes.get_title() for axes in fixed_set.fixed_set(results).axes]
    assert titles == [*fixed_set.KINDS.values()]
