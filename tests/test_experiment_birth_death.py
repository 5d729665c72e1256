"""Birth and death: its keys, its problems by hand, and the statistics of its report."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll
from experiments.birth_death.__main__ import measured_at, run_of
from experiments.birth_death.config import Config
from experiments.birth_death.problems import MEANS, PROBLEMS, SCHEMES, VARIANCES, WEIGHTS, mixture_energy
from experiments.birth_death.report import STYLES, TITLES, median_interval, slopes, times_to


def test_all_schemes_and_problems_are_the_default_and_have_a_label():
    assert Config().schemes == tuple(SCHEMES) == tuple(STYLES)
    assert Config().problems == tuple(PROBLEMS) == tuple(TITLES)


def test_every_purpose_has_a_key_and_gradient_descent_no_events(monkeypatch):
    seen, rates, params, split = [], [], {"w": np.zeros(3)}, jax.random.split

    def noted(result=None):
        return lambda key, *_: seen.append(key) or result

    def dynamics(alpha, **_):
        rates.append(alpha)
        return SimpleNamespace(update=lambda key, *state: (state[:2], seen.append(key)))

    monkeypatch.setattr(ll.birth_death, "dynamics", dynamics)
    monkeypatch.setattr(jax.random, "split", lambda key: seen.append(key) or split(key))
    measures = {"loss": noted(), "places": lambda _: None, "targets": lambda _: None}
    problem = PROBLEMS["planted"](Config())._replace(gradients=noted(params), **measures)
    run = run_of(problem, SCHEMES["gd"], Config(), np.array([0, 2]))
    population = ll.birth_death.State(jnp.arange(3), jnp.int32(0), jnp.int32(0))
    with jax.disable_jit():
        carry, _ = run.step((jax.random.key(0), (), params, population), 0, ())
        run.measure(carry, 1, ())
    assert len({jax.random.key_data(key).tobytes() for key in seen}) == len(seen) == 7
    assert rates == [0, 0]


def test_energy_of_the_mixture_is_half_the_squared_distance():
    rng = np.random.default_rng(0)
    c, y = rng.normal(size=20).astype("f4"), rng.uniform(-2, 2, 20).astype("f4")
    x = np.linspace(-12, 12, 4001)

    def density(difference, variance):
        return np.exp(-(difference**2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)

    target = density(x[:, None] - MEANS, VARIANCES) @ (WEIGHTS / 3)
    found = density(x[:, None] - y, 0.5) @ c / 20
    expected = 0.5 * np.sum((target - found) ** 2) * (x[1] - x[0])
    assert float(jax.jit(mixture_energy)(c, y)) == pytest.approx(expected, rel=1e-5)


def test_measurements_are_log_spaced_and_never_far_apart():
    times = measured_at(100_000, 60)
    assert times[0] == 1 and times[-1] == 100_000 and np.diff(times).max() <= 2_000
    assert (times <= 1_000).sum() > 25
    assert measured_at(10, 3).tolist() == list(range(1, 11))  # none twice, none before the first


def test_statistics_of_the_report():
    steps = np.array([0, 1, 2, 10, 20, 40, 100])
    losses = np.maximum(steps, 1.0) ** np.array([[-1.5], [-0.5]])
    losses[:, 2] = 7.0  # before the last decade
    np.testing.assert_allclose(slopes(steps, losses), [-1.5, -0.5], rtol=1e-12)
    np.testing.assert_array_equal(times_to(steps, losses, losses[0, 3]), [10, np.inf])
    assert median_interval(np.array([5.0, 1, 3, np.inf, 2, 4, 6, 8, 7, 9, np.inf])) == (6, 2, np.inf)
    assert median_interval(np.array([np.inf, 2.0]))[0] == 2  # the lower of two
