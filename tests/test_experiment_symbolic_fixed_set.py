"""The study of a fixed set of curves: its data, critics and classifiers by hand, and what is told of it."""

import io
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tqdm import tqdm

from experiments.symbolic_discriminator import fixed_set
from experiments.symbolic_discriminator.config import Config
from experiments.symbolic_discriminator.fixed_set import (
    CLASSIFIERS,
    KINDS,
    STUDY,
    curves,
    curves_of,
    seeds_of,
)
from experiments.symbolic_discriminator.spaces import library, points
from lax_learning import symbolic
from tests.finished import row_of

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

CONFIG = Config(seed=3)
CRITICS = {name: training._replace(epochs={"sample": 4}) for name, training in fixed_set.CRITICS.items()}
PARTS = [f"fixed_set-{name}" for name in ("normal-bce_fresh", "normal-standard", "grid-wgan", "grid-bce")]


@pytest.fixture(scope="module")
def tiny():
    """Two seeds, few curves and epochs."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"NUM_SEEDS": 2, "CURVES": 20, "RUNS": 2, "CRITICS": CRITICS}.items():
            patch.setattr(fixed_set, name, value)
        yield


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """Parts with all classifiers."""
    folder, parts, made = tmp_path_factory.mktemp("parts"), STUDY.parts(CONFIG), {}
    critics = ("wgan", "bce", "bce_fresh", "standard")
    assert list(parts) == [f"fixed_set-{kind}-{name}" for kind in KINDS for name in critics]
    for name in PARTS:
        with tqdm(file=io.StringIO()) as progress:
            made[name] = parts[name].run(folder / name, progress)
        assert progress.n == parts[name].cost
    return made


def test_no_study_has_fewer_than_ten_seeds_and_500_curves_of_each_class():
    """Before other tests make it tiny."""
    assert seeds_of(Config(seeds=1)).shape == (10,)
    drawn = jax.eval_shape(partial(curves, fixed_set.CURVES), jax.random.key(0), jnp.zeros((100, 1)))
    assert drawn.real.shape == drawn.fake.shape == (500, 100)
    assert fixed_set.CRITICS["wgan"].epochs["seed"] * fixed_set.ITERATIONS == 5_000
    every = [number for of in fixed_set.CRITICS.values() for number in of.epochs.values()]
    assert not np.any(np.array(every) % fixed_set.RUNS)


def test_the_set_is_of_functions_and_of_untrained_networks_other_ones_for_every_seed(tiny):
    x, seed = points("grid", 100, CONFIG.seed), seeds_of(CONFIG)[1]
    seen, fresh = jax.tree.map(np.asarray, curves_of(CONFIG, "grid"))
    generator = symbolic.mlp_generator(1, 1, hidden=(32, 32))

    @jax.jit
    def by_hand(key):
        real_key, fake_key = jax.random.split(key)
        draws = symbolic.draw_functions(real_key, library("quadratic"), 20)
        n0, n1, n2 = draws.coefficients.normal.T[:, :, None]
        real = 0.05 * n0 * (x[:, 0] + 0.5 * n1) ** 2 + 0.15 * n2
        network = generator.init(jax.random.split(fake_key, 20)[7])
        return real, generator.apply(network, x)[:, 0]

    for key, of in zip(jax.random.split(jax.random.fold_in(seed, 0)), (seen, fresh), strict=True):
        real, fake = by_hand(key)
        np.testing.assert_allclose(of.real[1], real, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(of.fake[1, 7], fake, rtol=1e-4, atol=1e-6)
    for of in ("real", "fake"):
        drawn = np.concatenate([getattr(c, of).reshape(-1, 100) for c in (seen, fresh)])
        assert len(np.unique(drawn, axis=0)) == 2 * 2 * 20
    assert (seeds_of(CONFIG) != seeds_of(Config(seed=4))).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wgan", "bce"])
def test_critics_on_the_set_are_those_of_the_library(finished, name):
    """Of 20 steps of Adam on all curves; the second seed."""
    seen, fresh = jax.tree.map(lambda leaf: leaf[1], curves_of(CONFIG, "grid"))
    judge, adam = symbolic.critic(100, hidden=(64, 64)), optax.adam(1e-3)
    step = symbolic.critic_step(judge, adam, objective=name)
    train = symbolic.train_critic(step, lambda _: seen.real, lambda _: seen.fake, num_epochs=4, iterations=5)
    start = symbolic.init_critic(jax.random.fold_in(seeds_of(CONFIG)[1], 1), judge, adam)
    state, metrics = jax.jit(train)(jax.random.key(0), start)
    found = finished[f"fixed_set-grid-{name}"].isel(points=0, classifier=0, seed=1)
    on_seen, on_fresh = ([np.asarray(judge.apply(state.params, c)) for c in of] for of in (seen, fresh))
    real, fake = on_fresh
    pairs = (real[:, None] > fake) + 0.5 * (real[:, None] == fake)
    assert float(found.fresh_auc) == pytest.approx(pairs.mean(), abs=1e-6)
    for told, (real, fake) in ((found.seen_accuracy, on_seen), (found.fresh_accuracy, on_fresh)):
        assert float(told) == pytest.approx(np.mean([*(real > 0), *(fake <= 0)]))
    # The last call made the last 2 of 4 epochs; accuracy is that before each one's last step.
    assert float(found.training_accuracy) == pytest.approx(float(metrics.accuracy[2:, -1].mean()))


@pytest.mark.slow
def test_parts_merge_and_are_told_of(finished):
    results = STUDY.merge(CONFIG, list(finished.values()))
    assert dict(results.sizes) == {"points": 2, "classifier": 6, "seed": 2}
    assert list(results.classifier.values) == list(CLASSIFIERS) and list(results.points.values) == list(KINDS)
    for metric in ("fresh_accuracy", "fresh_auc", "seen_accuracy"):
        measured = results[metric].notnull().all("seed")
        last = [] if metric == "seen_accuracy" else ["bce_fresh"]
        assert set(results.classifier.values[measured.sel(points="grid")]) == {"wgan", "bce"}
        assert set(results.classifier.values[measured.sel(points="normal")]) == {"mlp", "knn", "tree", *last}
    assert (results.seen_accuracy.sel(classifier="tree", points="normal") == 1).all()

    rows = STUDY.rows(results)
    assert len(rows) == 2 * 4 + 3 + 3 * 3 + 10  # the last are the published ones
    published = {row["part"]: row["mean"] for row in rows if row["metric"] == "published_accuracy"}
    assert (
        published["fixed_set: grid, wgan critic"] == 0.707 and "fixed_set: grid, bce critic" not in published
    )
    row = row_of(rows, part="fixed_set: normal, kNN", metric="fresh_accuracy")
    expected = finished["fixed_set-normal-standard"].fresh_accuracy[0, 1].mean()
    assert row["n"] == 2 and row["mean"] == pytest.approx(float(expected))
    titles = [axes.get_title() for axes in STUDY.figures(results)["fixed_set"].axes]
    assert titles == [KINDS["normal"], KINDS["grid"]]
