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


def small(patch):
    """Two seeds, few curves and epochs."""
    for name, value in {"NUM_SEEDS": 2, "CURVES": 20, "RUNS": 2, "CRITICS": CRITICS}.items():
        patch.setattr(fixed_set, name, value)


@pytest.fixture
def tiny(monkeypatch):
    small(monkeypatch)


PARTS = [f"fixed_set-{name}" for name in ("normal-bce_fresh", "normal-standard", "grid-wgan", "grid-bce")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Parts with all classifiers, and how far each moved the progress on."""
    folder = tmp_path_factory.mktemp("parts")
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        parts, made = STUDY.parts(CONFIG), {}
        assert list(parts) == [
            f"fixed_set-{kind}-{name}" for kind in KINDS for name in ("wgan", "bce", "bce_fresh", "standard")
        ]
        for name in PARTS:
            with tqdm(file=io.StringIO()) as progress:
                made[name] = parts[name].run(folder / name, progress), progress.n, parts[name].cost
    return made


def test_the_set_has_500_curves_of_each_class():
    drawn = jax.eval_shape(partial(curves, fixed_set.CURVES), jax.random.key(0), jnp.zeros((100, 1)))
    assert drawn.real.shape == drawn.fake.shape == (500, 100)


def test_the_set_is_of_functions_and_of_untrained_networks(tiny):
    x, seed = points("grid", 100, CONFIG.seed), seeds_of(CONFIG)[1]
    seen, fresh = curves_of(CONFIG, "grid")
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


def test_every_seed_has_its_own_curves(tiny):
    seen, fresh = jax.tree.map(np.asarray, curves_of(CONFIG, "grid"))
    again, _ = curves_of(CONFIG, "grid")
    np.testing.assert_array_equal(seen.real, again.real)
    np.testing.assert_array_equal(seen.fake, again.fake)
    other, _ = curves_of(Config(seed=4), "grid")
    for of in ("real", "fake"):
        drawn = np.concatenate([getattr(c, of).reshape(-1, 100) for c in (seen, fresh, other)])
        assert len(np.unique(drawn, axis=0)) == 3 * 2 * 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wgan", "bce"])
def test_critics_on_the_set_are_those_by_hand(tiny, finished, name):
    """Of 20 steps of Adam on all curves; the second seed."""
    result, *_ = finished[f"fixed_set-grid-{name}"]
    seen, fresh = jax.tree.map(lambda leaf: leaf[1], curves_of(CONFIG, "grid"))
    judge, optimizer = symbolic.critic(100, hidden=(64, 64)), optax.adam(1e-3)

    def loss(params):
        real, fake = (judge.apply(params, of) for of in seen)
        if name == "wgan":
            return jnp.mean(fake) - jnp.mean(real), (real, fake)
        return -jnp.mean(jnp.log(jax.nn.sigmoid(real))) - jnp.mean(jnp.log(jax.nn.sigmoid(-fake))), (
            real,
            fake,
        )

    def step(held, _):
        params, state = held
        grads, logits = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), logits

    start = judge.init(jax.random.fold_in(seeds_of(CONFIG)[1], 1))
    run = jax.jit(lambda start: jax.lax.scan(step, (start, optimizer.init(start)), None, length=20))
    (params, _), logits = run(start)
    found = result.isel(points=0, classifier=0, seed=1)

    def accuracy(real, fake):
        return np.mean(np.concatenate([np.asarray(real) > 0, np.asarray(fake) <= 0], axis=-1), axis=-1)

    assert float(found.seen_accuracy) == pytest.approx(accuracy(*(judge.apply(params, of) for of in seen)))
    real, fake = (np.asarray(judge.apply(params, of)) for of in fresh)
    assert float(found.fresh_accuracy) == pytest.approx(accuracy(real, fake))
    pairs = (real[:, None] > fake) + 0.5 * (real[:, None] == fake)
    assert float(found.fresh_auc) == pytest.approx(pairs.mean(), abs=1e-6)
    # The last call made the last 2 of 4 epochs; accuracy is that before each one's last step.
    assert float(found.training_accuracy) == pytest.approx(accuracy(*logits)[[14, 19]].mean())


@pytest.mark.slow
def test_parts_merge_and_are_told_of(finished):
    assert all(moved == cost for _, moved, cost in finished.values())
    results = STUDY.merge(CONFIG, [result for result, *_ in finished.values()])
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
    published = row_of(rows, part="fixed_set: grid, wgan critic", metric="published_accuracy")
    assert published["mean"] == 0.707 and not any(
        row["metric"] == "published_accuracy" for row in rows if row["part"].endswith(" bce critic")
    )
    row = row_of(rows, part="fixed_set: normal, kNN", metric="fresh_accuracy")
    assert row["n"] == 2 and row["mean"] == pytest.approx(
        float(finished["fixed_set-normal-standard"][0].fresh_accuracy[0, 1].mean())
    )

    left, right = STUDY.figures(results)["fixed_set"].axes
    assert left.get_title() == KINDS["normal"] and right.get_title() == KINDS["grid"]


def test_no_study_has_fewer_than_ten_seeds():
    assert seeds_of(Config(seeds=1)).shape == (10,)
    assert fixed_set.CRITICS["wgan"].epochs["seed"] * fixed_set.ITERATIONS == 5_000
    assert all(
        number % fixed_set.RUNS == 0 for of in fixed_set.CRITICS.values() for number in of.epochs.values()
    )
