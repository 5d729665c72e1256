"""The birth-death loop of the benchmarks, in eager PyTorch, does what the library does."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll
from benchmarks.cases import Sizes, birth_death
from benchmarks.timing import compare

torch: Any = pytest.importorskip("torch", reason="its reference loop needs PyTorch: make torch")
from benchmarks.reference import birth_death as population  # noqa: E402

SIZES = Sizes(neurons=8, points=7, steps=3)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("scale", [3.0, 100.0], ids=["rare", "often"])
def test_steps_agree(scale: float) -> None:
    """In float64, whose roundings are 1e-16, over 6 steps of sums of at most 8 x 7 terms below 100."""
    rng = np.random.default_rng(4)
    w, c = rng.standard_normal((SIZES.neurons, SIZES.neurons)), rng.standard_normal((1, SIZES.neurons))
    params = {"w": jnp.asarray(w.T)}, {"w": jnp.asarray(c.T)}
    student = population.Student(torch.tensor(w), torch.tensor(c))
    optimizer = torch.optim.SGD(student.parameters(), lr=birth_death.LEARNING_RATE)
    network = birth_death.student_of(SIZES.neurons)
    carry = params, birth_death.dynamics_of().init(params)

    def step(carry: birth_death.Carry, x: Any, y: Any, draws: ll.birth_death.Draws) -> birth_death.Carry:
        dynamics = birth_death.dynamics_of(lambda key, n: draws)
        return birth_death.step(dynamics, network, jax.random.key(0), carry, x, y)

    step, events = jax.jit(step), np.zeros(2, int)
    for _ in range(6):
        x = np.asarray(population.draw_inputs(SIZES.points, SIZES.neurons), np.float64)
        y = 5 * rng.standard_normal((SIZES.points, 1))
        draws = rng.random((4, SIZES.neurons)) / [[scale], [1], [scale], [1]]
        theirs = population.Draws(*torch.tensor(draws))
        examples = torch.tensor(x), torch.tensor(y)
        events += population.step(student, optimizer, *examples, theirs, birth_death.ALPHA)
        carry = step(carry, x, y, ll.birth_death.Draws(*map(jnp.asarray, draws)))
        assert carry[0][0]["w"].dtype == jnp.float64
        for got, expected in zip(birth_death.as_reference(carry[0]), (student.w, student.c), strict=True):
            np.testing.assert_allclose(got, expected.detach().numpy(), rtol=0, atol=1e-10)
    assert carry[1].num_killed == events[0] > 0
    # The reference counts clones that were asked for, the library those that found a slot.
    assert 0 < carry[1].num_cloned <= events[1]


def test_nobody_survives_nobody_dies() -> None:
    w = torch.arange(6.0).reshape(3, 2)
    student = population.Student(w.clone(), torch.ones(1, 3))
    always = population.Draws(*torch.zeros(4, 3))
    assert population.resample(student, torch.ones(3), always, 1.0) == (0, 0)
    assert population.resample(student, -torch.ones(3), always, 1.0) == (0, 3)  # and no slot is free
    assert torch.equal(student.w, w)


def test_inputs_are_on_the_unit_sphere() -> None:
    x = population.draw_inputs(50, 7)
    torch.testing.assert_close(torch.sum(x**2, dim=1), torch.ones(50))
    assert len(torch.unique(x)) == 50 * 7


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_case_runs(seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.timing.SHORTEST", 0.0)
    (case,) = birth_death.CASES
    found = compare(case.ours(SIZES, seeds), case.reference(SIZES), 1)
    assert found.ratio == found.reference_s / found.ours_s and min(found) > 0
