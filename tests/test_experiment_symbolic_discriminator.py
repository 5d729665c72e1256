"""The symbolic discriminator: its studies, critics and readings."""

import re
from itertools import pairwise

import jax
import numpy as np
import pytest
import xarray as xr
from tqdm import tqdm

from experiments.running import group_by_shape
from experiments.symbolic_discriminator import activations, critics, reading, spaces
from experiments.symbolic_discriminator.config import Config
from experiments.symbolic_discriminator.report import STUDIES, figures, rows
from experiments.symbolic_discriminator.spaces import LIBRARIES, library, points
from lax_learning import symbolic

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")


def test_studies_are_the_notebooks():
    fields = ("layers", "width", "learning_rate", "penalty")
    assert [tuple(of[field] for field in fields) for of in spaces.depth(Config())] == [
        (2, 64, 1e-5, 1e-4),
        (4, 64, 1e-5, 1e-4),
        (8, 64, 1e-5, 1e-4),
        (8, 64, 1e-5, 1e-5),
        (8, 64, 1e-4, 1e-5),
        (8, 64, 1e-4, 1e-6),
        (8, 256, 1e-4, 1e-6),
        (16, 64, 1e-4, 1e-6),
    ]
    assert len(spaces.hyper_parameters(Config())) == 64
    drawn = spaces.hyper_parameters(Config(preset="seed", configurations=600))
    for field, values in spaces.SPACES["seed"].items():
        assert {c[field] for c in drawn} == set(values)
    first = spaces.accuracy(Config())[0]
    assert (first["layers"], first["width"], first["decay"], first["penalty"]) == (6, 128, 1e-4, 1e-5)
    every = [{**c, "extension": None} for c in spaces.extensions(Config(preset="study"))]
    number = spaces.EXTENSION_SPACES["study"][1]
    assert every == every[:number] * len(spaces.EXTENSIONS)


def test_libraries_contain_one_another():
    sizes = [len(library(name).expressions) for name in LIBRARIES]
    assert next(iter(LIBRARIES)) == "quadratic" and sizes[:-1] == sorted(set(sizes[:-1]))
    texts = [set(path.read_text().splitlines()) for path in LIBRARIES.values()]
    assert all(small < large for small, large in pairwise(texts[:-1]))


def test_points():
    np.testing.assert_allclose(points("grid", 6, 0)[:, 0], [-3, -2, -1, 0, 1, 2], atol=1e-6)
    drawn = np.asarray(points("normal", 4_000, 0))
    assert abs(drawn.mean()) < 5 / 4_000**0.5 and abs(drawn.var() - 1) < 5 * (2 / 4_000) ** 0.5
    assert (drawn != points("normal", 4_000, 1)).all()


@pytest.mark.slow
def test_a_training_is_that_of_the_library(tmp_path):
    """One configuration of a group, epoch by epoch."""
    config = Config(points=10, epochs=11, seeds=2)
    assert critics.schedule(11) == (1, 2)
    small = {**spaces.SMALL, "width": 8, "iterations": 2, "extension": "gradient_embedded"}
    configurations = [small, {**small, "learning_rate": 1e-2, "penalty": 0.1}]
    (group,) = group_by_shape(configurations, spaces.STATIC)
    found = critics.run_group(group, config, 2, tmp_path / "run", tqdm(disable=True))
    curves = critics.curves_of("quadratic", "gradient_embedded", 3, config)
    critic, adam = symbolic.critic(10, hidden=(8, 8), channels=2), critics.adam(1e-2, 1e-7)
    step = symbolic.critic_step(critic, adam, penalty=0.1)
    key = jax.random.split(jax.random.fold_in(jax.random.key(0), 5), 2)[0]
    init_key, train_key = jax.random.split(key)
    train = jax.jit(symbolic.train_critic(step, curves.real, curves.fake, num_epochs=20, iterations=2))
    state, metrics = train(train_key, symbolic.init_critic(init_key, critic, adam))
    one = found.isel(configuration=1, seed=0)
    np.testing.assert_allclose(one.accuracy, metrics.accuracy.mean(axis=1), rtol=1e-6)
    judged = critics.judged_curves("quadratic", "gradient_embedded", config)
    np.testing.assert_allclose(one.logits[1], critic.apply(state.params, judged[1]), atol=0.02)


def test_metrics_of_epochs_are_over_all_steps_or_of_the_first(monkeypatch):
    config, random = Config(points=5, epochs=400), np.random.default_rng(0)
    made = symbolic.CriticMetrics(*random.random((5, 20, 3), np.float32))
    monkeypatch.setattr(symbolic, "train_critic", lambda *_, **__: lambda key, state, first: (state, made))
    run = critics.training({name: spaces.SMALL[name] for name in spaces.STATIC}, config)
    traced = dict.fromkeys(("learning_rate", "penalty", "decay"), np.float32(0.1))
    _, found = run.step((jax.random.key(0), traced, ()), 0, None)
    assert critics.schedule(400).epochs_a_bin == 2
    for name, values in {
        "accuracy": made.accuracy.mean(axis=1),
        "fresh_accuracy": made.accuracy[:, 0],
        "fresh_auc": made.auc[:, 0],
    }.items():
        np.testing.assert_allclose(found[name], values.reshape(10, 2).mean(axis=1), rtol=1e-6)


def test_judged_curves_are_of_formulas_and_of_networks():
    """Misfits are 0 for what they are misfits of."""
    x = np.linspace(-1, 2, 30)
    curves = np.stack([np.maximum(x, 0) - 3 * x + 1, x**2])
    lines, parabolas = ((np.minimum(x, 0), np.maximum(x, 0)), (x, x**2))
    assert np.array_equal(activations.misfit(x, curves, lines) < 1e-12, [True, False])
    assert np.array_equal(activations.misfit(x, curves, parabolas) < 1e-12, [False, True])
    config = Config(points=30)
    x = np.asarray(points("normal", 30, 0), float)[:, 0]
    formulas, networks = np.asarray(critics.judged_curves("quadratic", "none", config), float)
    assert activations.misfit(x, formulas, (x, x**2)).max() < 1e-4
    assert np.median(activations.misfit(x, networks, (x, x**2))) > 0.01
    embedded = critics.judged_curves("quadratic", "gradient_embedded", config)
    np.testing.assert_allclose(embedded[0, ..., 0], formulas, rtol=1e-6)


def test_merged_results_are_in_the_order_of_the_configurations():
    config = Config(configurations=12, points=5)
    study, configurations = STUDIES["hyper_parameters"], spaces.hyper_parameters(config)
    found = []
    for group in group_by_shape(configurations, spaces.STATIC):
        accuracy = (("configuration", "seed", "bin"), group.traced["learning_rate"][:, None, None])
        found.append(xr.Dataset({"accuracy": accuracy}, {"configuration": list(group.members)}))
    merged = study.merge(config, found)
    rates = [c["learning_rate"] for c in configurations]
    assert len(found) > 2 and len(set(rates)) > 2
    np.testing.assert_array_equal(merged.accuracy[:, 0, 0], rates)
    np.testing.assert_array_equal(merged.learning_rate, rates)
    assert merged.judged_curve.shape == (2, critics.JUDGED, 5) and merged.x.shape == (5,)


def test_schedule_has_at_least_the_epochs():
    for epochs in (10, 11, 199, 200, 201, 500, 3_000, 100_000):
        cut = critics.schedule(epochs)
        assert epochs <= cut.epochs < epochs + critics.BINS_A_STEP * cut.epochs_a_bin
        assert cut.steps * critics.BINS_A_STEP <= critics.MOST_BINS + critics.BINS_A_STEP


def test_smoothed_is_a_trailing_mean():
    epochs = ("bin", 5 * np.arange(1, 41))  # a horizon of 20 epochs: four bins
    results = xr.Dataset({"accuracy": ("bin", np.arange(40.0))}, {"epoch": epochs})
    np.testing.assert_allclose(reading.smoothed(results), [0, 0.5, 1, *(np.arange(3, 40) - 1.5)])
    assert [reading.horizon(epochs) for epochs in (10, 500, 100_000)] == [1, 50, 500]


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
        ("quick, then constant", [0.5, 0.9, 0.9, 0.9]),
        ("quick, then dropping", [0.5, 0.95, 0.9, 0.6]),
        ("slow, still improving", [0.5, 0.6, 0.75, 0.95]),
        ("learns nothing", [0.5, 0.55, 0.6, 0.5], [0.5, np.nan, np.nan, np.nan]),
    ):
        for ends in curves:
            assert reading.trend(np.interp(np.linspace(0, 3, 40), [0, 0.5, 2, 3], ends)) == expected


def test_share_of_variance():
    random, levels = np.random.default_rng(1), np.repeat([1, 2, 3, 4], 250)
    noise = random.normal(size=1_000)
    # Means 0, 1, 2, 3 have a variance of 5/4, noise has 1; the estimate's own error is about 0.02.
    assert reading.share_of_variance(levels + noise, levels) == pytest.approx(5 / 9, abs=0.1)
    by_chance = [reading.share_of_variance(random.normal(size=40), levels[::25]) for _ in range(400)]
    assert abs(np.mean(by_chance)) < 5 * np.std(by_chance) / 20
    assert reading.share_of_variance(levels.astype(float), levels) == pytest.approx(1)
    assert np.isnan(reading.share_of_variance(noise, np.ones(1_000)))
    assert np.isnan(reading.share_of_variance(np.ones(1_000), levels))
    shares = reading.resampled_shares(levels + noise, levels, times=50)
    assert 0 < shares.std() < 0.1 and abs(shares.mean() - 5 / 9) < 0.1


@pytest.fixture(scope="module")
def invented():
    """Results as the studies have them, without a run; the learning rate decides."""
    found = {}
    for study in ("libraries", "hyper_parameters", "depth", "extensions"):
        configurations = getattr(spaces, study)(Config(configurations=40))
        number, seeds = len(configurations), 1 if study == "hyper_parameters" else 2
        random, axes = np.random.default_rng(0), ("configuration", "seed", "bin")
        rates = np.array([[c["learning_rate"]] for c in configurations])
        level = np.clip(0.75 + 0.1 * np.log10(rates) / 3 + random.normal(0, 0.01, (number, seeds)), 0, 1)
        curves = 0.5 + (level[..., None] - 0.4) * np.linspace(0, 1, 50)
        logits = random.normal(size=(number, seeds, 2, critics.JUDGED))
        fields = {f: ("configuration", [c[f] for c in configurations]) for f in configurations[0]}
        found[study] = xr.Dataset(
            {
                **dict.fromkeys(critics.METRICS, (axes, curves)),
                "logits": (("configuration", "seed", "kind", "curve"), logits),
                "seconds": ("configuration", np.ones(number)),
                "judged_curve": (("kind", "curve", "point"), random.normal(size=(2, critics.JUDGED, 5))),
                "x": ("point", np.arange(5.0)),
            },
            {"epoch": ("bin", 10 * np.arange(1, 51)), **fields},
        )
    return xr.DataTree.from_dict(found)


def test_what_decides_is_found_and_rows_are_of_the_final_epochs(invented):
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
    titles = [axes.get_title() for axes in drawn["trends"].axes]
    followed = reading.trends(invented["hyper_parameters"].to_dataset())
    for number, (title, trend) in enumerate(zip(titles, reading.TRENDS, strict=True), 1):
        assert title.startswith(f"{number}. {trend} (")
        shown = re.findall(r"(\d+) (?:bce|wgan)", title)
        assert len(shown) == 2 and sum(map(int, shown)) == followed.count(trend)
    shown, logits = drawn["predictions"].axes[0].get_title(), invented["extensions"].logits.values
    assert any(f"of {(of[0, 0] > 0).sum()} (of 64" in shown for of in logits[:5])
