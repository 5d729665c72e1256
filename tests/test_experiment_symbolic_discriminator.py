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
from experiments.symbolic_discriminator.critic_studies import of_each
from experiments.symbolic_discriminator.report import STUDIES, figures, rows
from experiments.symbolic_discriminator.spaces import LIBRARIES, library, points
from lax_learning import symbolic

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")


def test_studies_are_the_notebooks():
    versions = spaces.depth(Config())
    assert [(v["layers"], v["width"]) for v in versions] == [
        *((2, 64), (4, 64), (8, 64), (8, 64), (8, 64), (8, 64), (8, 256), (16, 64))
    ]
    assert [v["learning_rate"] for v in versions] == [1e-5] * 4 + [1e-4] * 4
    assert [v["penalty"] for v in versions] == [1e-4] * 3 + [1e-5] * 2 + [1e-6] * 3
    assert len(spaces.hyper_parameters(Config())) == 64
    drawn = spaces.hyper_parameters(Config(preset="seed", configurations=600))
    for field, values in spaces.SPACES["seed"].items():
        assert {c[field] for c in drawn} == set(values)
    first = spaces.accuracy(Config())[0]
    assert (first["layers"], first["width"], first["decay"], first["penalty"]) == (6, 128, 1e-4, 1e-5)
    of_extension = spaces.extensions(Config(preset="study"))
    assert len(of_extension) == len(spaces.EXTENSIONS) * spaces.EXTENSION_SPACES["study"][1]
    assert [{**c, "extension": None} for c in of_extension[:12]] == [
        {**c, "extension": None} for c in of_extension[12:24]
    ]


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
    critic = symbolic.critic(10, hidden=(8, 8), channels=2)
    adam = critics.adam(1e-2, 1e-7)
    step = symbolic.critic_step(critic, adam, penalty=0.1)
    key = jax.random.split(jax.random.fold_in(jax.random.key(0), 5), 2)[0]
    init_key, train_key = jax.random.split(key)
    train = jax.jit(symbolic.train_critic(step, curves.real, curves.fake, num_epochs=20, iterations=2))
    state, metrics = train(train_key, symbolic.init_critic(init_key, critic, adam))
    one = found.isel(configuration=1, seed=0)
    np.testing.assert_allclose(one.accuracy, metrics.accuracy.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(one.fresh_auc, metrics.auc[:, 0], rtol=1e-6)
    np.testing.assert_allclose(one.fresh_accuracy, metrics.accuracy[:, 0], rtol=1e-6)
    assert (one.accuracy != one.fresh_accuracy).any()
    judged = critics.judged_curves("quadratic", "gradient_embedded", config)
    np.testing.assert_allclose(one.logits[1], critic.apply(state.params, judged[1]), atol=0.02)


def test_metrics_of_epochs_are_over_all_steps_or_of_the_first(monkeypatch):
    config, random = Config(points=5, epochs=400), np.random.default_rng(0)
    made = symbolic.CriticMetrics(*random.random((5, 20, 3), np.float32))
    monkeypatch.setattr(symbolic, "train_critic", lambda *_, **__: lambda key, state, first: (state, made))
    run = critics.training({name: spaces.SMALL[name] for name in spaces.STATIC}, config)
    traced = {"learning_rate": np.float32(0.1), "penalty": np.float32(0.1), "decay": np.float32(0.1)}
    _, found = run.step((jax.random.key(0), traced, ()), 0, None)
    assert critics.schedule(400).epochs_a_bin == 2
    by_hand = {
        "accuracy": made.accuracy.mean(axis=1),
        "fresh_accuracy": made.accuracy[:, 0],
        "fresh_auc": made.auc[:, 0],
    }
    for name, values in by_hand.items():
        np.testing.assert_allclose(found[name], values.reshape(10, 2).mean(axis=1), rtol=1e-6)


def test_judged_curves_are_of_formulas_and_of_networks():
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
        rates = group.traced["learning_rate"][:, None, None]
        accuracy = (("configuration", "seed", "bin"), rates)
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
    found = reading.smoothed(results)
    np.testing.assert_allclose(found[:4], [0, 0.5, 1, 1.5])
    np.testing.assert_allclose(found[3:], np.arange(3, 40) - 1.5)
    assert [reading.horizon(epochs) for epochs in (10, 500, 100_000)] == [1, 50, 500]


def test_configurations_and_their_groups():
    space = {"width": (2, 3), "rate": (0.1, 0.2, 0.3), "steps": (1, 2)}
    found = spaces.drawn(Config(), space, 3_000, 9)
    for name, values in space.items():
        counts, share = np.array([sum(c[name] == value for c in found) for value in values]), 1 / len(values)
        assert (abs(counts / 3_000 - share) < 5 * np.sqrt(share * (1 - share) / 3_000)).all()
    pairs = np.mean([c["width"] == 2 and c["steps"] == 1 for c in found])
    assert abs(pairs - 1 / 4) < 5 * np.sqrt(3 / 16 / 3_000)  # fields do not depend on each other
    groups = group_by_shape([{name: c[name] for name in space} for c in found[:40]], ["width", "steps"])
    assert sorted(i for group in groups for i in group.members) == list(range(40))
    assert len({tuple(group.static.values()) for group in groups}) == len(groups) == 4
    for group in groups:
        for i, rate in zip(group.members, group.traced["rate"], strict=True):
            assert {name: found[i][name] for name in space} == {**group.static, "rate": rate}
    of_types = group_by_shape([{"n": n, "a": 1.0} for n in (1, 1.0, True)], ["n"])
    assert [type(group.static["n"]) for group in of_types] == [int, float, bool]


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([0.5, 0.9, 0.9, 0.9], "quick, then constant"),
        ([0.5, 0.95, 0.9, 0.6], "quick, then dropping"),
        ([0.5, 0.6, 0.75, 0.95], "slow, still improving"),
        ([0.5, 0.55, 0.6, 0.5], "learns nothing"),
        ([0.5, np.nan, np.nan, np.nan], "learns nothing"),
    ],
)
def test_trends(ends, expected):
    curve = np.interp(np.linspace(0, 3, 40), [0, 0.5, 2, 3], ends)
    assert reading.trend(curve) == expected


def test_share_of_variance():
    random = np.random.default_rng(1)
    levels = np.repeat([1, 2, 3, 4], 250)
    noise = random.normal(size=1_000)
    # Means 0, 1, 2, 3 have a variance of 5/4, noise has 1; the estimate's own error is about 0.02.
    assert reading.share_of_variance(levels + noise, levels) == pytest.approx(5 / 9, abs=0.1)
    by_chance = [
        reading.share_of_variance(random.normal(size=40), np.repeat([1, 2, 3, 4], 10)) for _ in range(400)
    ]
    assert abs(np.mean(by_chance)) < 5 * np.std(by_chance) / 20
    assert reading.share_of_variance(levels.astype(float), levels) == pytest.approx(1)
    assert np.isnan(reading.share_of_variance(noise, np.ones(1_000)))
    assert np.isnan(reading.share_of_variance(np.ones(1_000), levels))
    shares = reading.resampled_shares(levels + noise, levels, times=50)
    assert 0 < shares.std() < 0.1 and abs(shares.mean() - 5 / 9) < 0.1


def test_misfit_is_0_for_what_it_is_a_misfit_of():
    x = np.linspace(-1, 2, 30)
    curves = np.stack([np.maximum(x, 0) - 3 * x + 1, x**2])
    lines = activations.misfit(x, curves, (np.minimum(x, 0), np.maximum(x, 0)))
    parabolas = activations.misfit(x, curves, (x, x**2))
    assert lines[0] < 1e-12 < 0.01 < lines[1] and parabolas[1] < 1e-12 < 0.01 < parabolas[0]


@pytest.fixture(scope="module")
def invented():
    """Results as the studies have them, without a run."""
    config = Config(configurations=40)
    found = {}
    for study in ("libraries", "hyper_parameters", "depth", "extensions"):
        configurations = getattr(spaces, study)(config)
        number, seeds = len(configurations), 1 if study == "hyper_parameters" else 2
        random = np.random.default_rng(0)
        rates = np.array([[c["learning_rate"]] for c in configurations])
        level = np.clip(0.75 + 0.1 * np.log10(rates) / 3 + random.normal(0, 0.01, (number, seeds)), 0, 1)
        curves = 0.5 + (level[..., None] - 0.4) * np.linspace(0, 1, 50)
        metrics = dict.fromkeys(("accuracy", "fresh_accuracy", "fresh_auc"), curves)
        variables = {name: (("configuration", "seed", "bin"), values) for name, values in metrics.items()}
        logits = random.normal(size=(number, seeds, 2, critics.JUDGED))
        found[study] = xr.Dataset(
            {
                **variables,
                "logits": (("configuration", "seed", "kind", "curve"), logits),
                "seconds": ("configuration", np.ones(number)),
                "judged_curve": (("kind", "curve", "point"), random.normal(size=(2, critics.JUDGED, 5))),
                "x": ("point", np.arange(5.0)),
            },
            {
                "epoch": ("bin", 10 * np.arange(1, 51)),
                **{f: ("configuration", [c[f] for c in configurations]) for f in configurations[0]},
            },
        )
    return xr.DataTree.from_dict(found)


def test_what_decides_is_found(invented):
    deciding = {row["metric"]: row["mean"] for row in rows(invented) if row["part"] == "deciding: bce"}
    assert set(deciding) == {"latents", "iterations", "penalty", "layers", "learning_rate"}
    assert deciding["learning_rate"] > 0.9 > 0.4 > max(v for k, v in deciding.items() if k != "learning_rate")


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
    shown = drawn["predictions"].axes
    logits = invented["extensions"].to_dataset().logits
    assert any(f"of {int((logits[c, 0, 0] > 0).sum())} (of 64" in shown[0].get_title() for c in range(5))


def test_rows_are_of_the_final_epochs(invented):
    results = invented["extensions"].to_dataset()
    found = {(row["part"], row["metric"]): row["mean"] for row in of_each(results, "extensions", "extension")}
    expected = float(results.fresh_accuracy[0, :, -5:].mean())
    assert found["extensions: none", "fresh_accuracy"] == pytest.approx(expected)
    assert found["extensions: none", "best"] == pytest.approx(
        float(results.fresh_accuracy[0, :, -5:].mean("bin").max())
    )
