"""Noise of low rank does what its factors multiplied out do, on any model, in the memory of the factors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll
from lax_learning import estimators
from lax_learning._sites import _equations as equations
from lax_learning._sites._matrices import Matrix, direct_matrices
from lax_learning._sites._program import Program
from lax_learning.estimators._low_rank import Factors
from tests.compare import assert_mean, draws_of, noise_by_shape, normal, slow_but, squares, update
from tests.refusal import refusals
from tests.zoo import ZOO, as_float64

KEY = jax.random.key(7)
DRAWS, RANK, SIGMA = 3, 2, 0.1
FAST = ("tied_embedding",)


def likes_of(leaf: jax.Array, matrix: Matrix | None) -> Any:
    """Shapes of the noise on a leaf."""
    if matrix is None:
        return jax.ShapeDtypeStruct((DRAWS, *leaf.shape), leaf.dtype)
    stacked, rows, columns = matrix
    inner = leaf.shape[stacked:]
    a = [RANK if i == columns[-1] else inner[i] if i in rows else 1 for i in range(len(inner))]
    b = [*(inner[i] for i in columns), RANK]
    return Factors(*(jax.ShapeDtypeStruct((DRAWS, *leaf.shape[:stacked], *of), leaf.dtype) for of in (a, b)))


def multiplied_out(noise: Any, matrix: Matrix | None) -> jax.Array:
    """`a b^T / sqrt(rank)` of every draw."""
    if matrix is None:
        return noise
    stacked, rows, columns = matrix
    lead, inner = "stuv"[:stacked], "abcdefgh"[: len(rows) + len(columns)]
    a = jnp.squeeze(noise.a, [1 + stacked + axis for axis in columns[:-1]])
    of_a = "".join(
        "r" if i == columns[-1] else name for i, name in enumerate(inner) if i in rows or i == columns[-1]
    )
    of_b = "".join(inner[i] for i in columns)
    product = jnp.einsum(f"k{lead}{of_a},k{lead}{of_b}r->k{lead}{inner}", a, noise.b, precision="highest")
    return product / RANK**0.5


@pytest.mark.parametrize("name", slow_but(FAST, ZOO))
def test_losses_and_gradients_on_models_of_other_libraries(name: str, x64: None) -> None:
    case = ZOO[name]()
    params, x = case.params, case.x
    if name != "nnx_transformed":  # its cell starts in float32
        params, x = as_float64((params, x))
    is_single = "f32[" in str(jax.make_jaxpr(case.apply)(params, x))
    y = normal(1, *jax.eval_shape(case.apply, params, x).shape)
    rule = ll.weight_perturbation(
        ll.Model(case.apply), squares, sigma=SIGMA, num_samples=DRAWS, difference="central",
        noise=noise_by_shape, rank=RANK,
    )  # fmt: skip
    grads = update(rule, KEY, params, x, y)[2]

    matrices = direct_matrices(Program(ll.Model(case.apply), params, x))
    leaves, structure = jax.tree.flatten(params)
    noise = noise_by_shape(KEY, [likes_of(leaf, matrices.get(i)) for i, leaf in enumerate(leaves)])
    full = [multiplied_out(n, matrices.get(i)) for i, n in enumerate(noise)]

    @jax.jit
    def expected(full: list[Any]) -> Any:
        def credited(moves: list[Any]) -> Any:
            plus, minus = (
                squares(
                    case.apply(
                        structure.unflatten([w + s * m for w, m in zip(leaves, moves, strict=True)]), x
                    ),
                    y,
                )
                for s in (SIGMA, -SIGMA)
            )
            return [jnp.mean(plus - minus) / (2 * SIGMA) * m for m in moves]

        return structure.unflatten([g.mean(axis=0) for g in jax.lax.map(credited, full)])

    tolerance = 1e-3 if is_single else 1e-9
    exact = expected(full)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(exact))
    for found, leaf in zip(jax.tree.leaves(grads), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(found, leaf, rtol=tolerance, atol=tolerance * largest)


def test_which_parameters_have_low_rank() -> None:
    def apply(params: Any, x: Any) -> Any:
        x = x @ params["direct"] + params["bias"]
        x = x @ params["normalised"] / jnp.linalg.norm(params["normalised"])
        return (x @ params["twice"]) @ params["twice"].T

    shapes = {"direct": (3, 4), "bias": (4,), "normalised": (4, 5), "twice": (5, 6)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    program = Program(ll.Model(apply), params, jnp.ones((2, 3)))
    found = {program.split.paths[i] for i in direct_matrices(program)}
    assert found == {"direct"}


def test_variance_of_a_draw() -> None:
    """Of one example of a linear layer: `n m + 1 + 2 (n + m + 1) / r`, relative to the squared gradient."""
    n, m, draws = 3, 2, 20_000
    x, v = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.5, 1.5])
    exact = np.outer(x, v)
    for rank in (1, 4):
        estimate = estimators.weight_perturbation(lambda w, x: x @ w @ v, sigma=1.0, rank=rank)
        found = np.asarray(draws_of(lambda key, e=estimate: e(key, jnp.zeros((n, m)), x)[1], KEY, draws))
        assert_mean(found, exact)
        errors = np.sum(np.square(found - exact), axis=(1, 2)) / np.sum(np.square(exact))
        assert_mean(errors, np.float64(n * m + 1 + 2 * (n + m + 1) / rank))


def test_fitness_by_hand() -> None:
    """Losses 1, 4 and 2: their ranks 0, 1, 1/2 minus 1/2, and their distances from the mean."""
    s = np.array([[1.0], [4.0], [2.0]], np.float32)

    def estimate(loss: Any, **options: Any) -> Any:
        options = {"sigma": 1.0, "num_samples": 3, "noise": lambda key, like: [jnp.asarray(s)], **options}
        return estimators.weight_perturbation(loss, rank=1, **options)(KEY, jnp.zeros(1))[1]

    for fitness, shaped in {
        "ranked": np.array([-0.5, 0.5, 0.0]),
        "z-scored": (s[:, 0] - 7 / 3) / np.std(s),
    }.items():
        found = estimate(lambda w: w[0], fitness=fitness)
        np.testing.assert_allclose(found[0], np.mean(shaped * s[:, 0]), rtol=1e-6)
        assert jnp.isnan(estimate(lambda w: jnp.log(w[0] - 1.5), fitness=fitness)).all()  # it diverged
    central = estimate(lambda w: w[0], fitness="ranked", difference="central")
    # losses 1, 4, 2, -1, -4, -2: ranks 3, 5, 4, 2, 0, 1 of 5
    np.testing.assert_allclose(central[0], (0.1 * 1 + 0.5 * 4 + 0.3 * 2) / 3, rtol=1e-5)
    ties = estimate(lambda w: 0.0 * w[0], fitness="ranked", difference="central")
    np.testing.assert_array_equal(ties, np.zeros(1))


def test_nothing_as_large_as_the_weights_of_a_draw() -> None:
    """No value of the program has an axis of draws and the axes of the matrix."""
    n, m, draws = 30, 20, 32
    rule = ll.weight_perturbation(ll.Model(lambda w, x: x @ w), squares, sigma=0.1, num_samples=draws, rank=1)
    x, y = jnp.ones((4, n)), jnp.ones((4, m))
    program = jax.make_jaxpr(rule.value_and_grad)(KEY, jnp.ones((n, m)), (), x, y).jaxpr
    sizes = [
        var.aval.size
        for e in equations.all_equations(program)
        for var in e.outvars
        if hasattr(var.aval, "size")
    ]
    assert max(sizes) < draws * n * m / 4


def estimate_with(**options: Any) -> Any:
    return estimators.weight_perturbation(jnp.sum, **{"sigma": 0.1, "rank": 1, **options})


test_bad_input = refusals(
    values={
        "rank: expected at least 1, got 0": lambda: estimate_with(rank=0),
        "fitness: expected": [
            lambda: estimate_with(fitness="best"),
            lambda: estimate_with(fitness="ranked"),
            lambda: estimate_with(fitness="ranked", rank=None, num_samples=4),
        ],
    },
    types={
        r"params\['w'\]: expected float32 or wider with a rank": lambda: estimators.weight_perturbation(
            lambda p: jnp.sum(p["w"].astype(jnp.float32)), sigma=0.1, rank=1
        )(KEY, {"w": jnp.ones(2, jnp.bfloat16)}),
    },
)
