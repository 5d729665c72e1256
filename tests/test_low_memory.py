"""Weight perturbation in little memory: noise of low rank, and steps in place."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll
from lax_learning import estimators
from lax_learning._sites._equations import all_equations
from lax_learning._sites._matrices import Matrix, direct_matrices
from lax_learning._sites._program import Program
from lax_learning.estimators._low_rank import like_of
from tests.compare import assert_mean, assert_near, draws_of, noise_by_shape, normal, squares, update
from tests.refusal import refusals
from tests.zoo import ZOO, as_float64

KEY = jax.random.key(7)
DRAWS, RANK, SIGMA = 3, 2, 0.1
SLOW = ("linen_separable_strided_convolution", "linen_stacked_remat_blocks", "equinox_gru")
SOME_OF_THE_ZOO = [pytest.param(name, marks=pytest.mark.slow) for name in SLOW]
any_estimate: Any = estimators.weight_perturbation
in_place: Any = estimators.in_place_step

# --- noise of low rank does what its factors multiplied out do


def multiplied_out(noise: Any, matrix: Matrix | None) -> jax.Array:
    """`a b^T / sqrt(rank)` of every draw."""
    if matrix is None:
        return noise
    stacked, rows, columns = matrix
    lead, inner = "stuv"[:stacked], "abcdefgh"[: len(rows) + len(columns)]
    a = jnp.squeeze(noise.a, [1 + stacked + axis for axis in columns[:-1]])
    of_a = [name if i in rows else "r" for i, name in enumerate(inner) if i in rows or i == columns[-1]]
    of_b = [inner[i] for i in columns]
    equation = f"k{lead}{''.join(of_a)},k{lead}{''.join(of_b)}r->k{lead}{inner}"
    return jnp.einsum(equation, a, noise.b, precision="highest") / RANK**0.5


@pytest.mark.parametrize("name", ["tied_embedding", *SOME_OF_THE_ZOO])
def test_losses_and_gradients_on_models_of_other_libraries(name: str, x64: None) -> None:
    case = ZOO[name]()
    params, x = as_float64((case.params, case.x))
    y = normal(1, *jax.eval_shape(case.apply, params, x).shape)
    rule = ll.weight_perturbation(
        ll.Model(case.apply), squares, sigma=SIGMA, num_samples=DRAWS, difference="central",
        noise=noise_by_shape, rank=RANK,
    )  # fmt: skip
    grads = update(rule, KEY, params, x, y)[2]

    matrices = direct_matrices(Program(ll.Model(case.apply), params, x))
    leaves, structure = jax.tree.flatten(params)
    noise = noise_by_shape(KEY, [like_of(w, matrices.get(i), DRAWS, RANK) for i, w in enumerate(leaves)])

    @jax.jit
    def expected() -> Any:
        def of_draw(full: list[Any]) -> Any:
            noise = lambda key, like: structure.unflatten(full)  # noqa: E731
            loss = lambda params: squares(case.apply(params, x), y)  # noqa: E731
            return any_estimate(loss, sigma=SIGMA, difference="central", noise=noise)(KEY, params)[1]

        full = [multiplied_out(n, matrices.get(i)) for i, n in enumerate(noise)]
        return jax.tree.map(lambda g: g.mean(axis=0), jax.lax.map(of_draw, full))

    exact = jax.tree.map(np.asarray, expected())
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(exact))
    assert_near(grads, exact, rtol=1e-9, atol=1e-9 * largest)


def test_which_parameters_have_low_rank() -> None:
    def apply(params: Any, x: Any) -> Any:
        x = x @ params["direct"] + params["bias"]
        x = x @ params["normalised"] / jnp.linalg.norm(params["normalised"])
        x = (x @ params["twice"]) @ params["twice"].T
        start = params["replaced"], x  # after the first step
        return jax.lax.scan(lambda c, _: ((params["by"], c[1] @ c[0]), None), start, length=2)[0][1]

    shapes: Any = {"direct": (3, 4), "bias": (4,), "normalised": (4, 5), "twice": (5, 6)}
    shapes |= {"replaced": (5, 5), "by": (5, 5)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    program = Program(ll.Model(apply), params, jnp.ones((2, 3)))
    assert {program.split.paths[i] for i in direct_matrices(program)} == {"direct"}


def test_variance_of_a_draw() -> None:
    """Of one example of a linear layer: `n m + 1 + 2 (n + m + 1) / r`, relative to the squared gradient."""
    n, m, ranks = 3, 2, (1, 4)
    x, v = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.5, 1.5])
    estimates = [any_estimate(lambda w, x: x @ w @ v, sigma=1.0, rank=rank) for rank in ranks]
    draws = draws_of(lambda key: [e(key, jnp.zeros((n, m)), x)[1] for e in estimates], KEY, 20_000)
    exact = np.outer(x, v)
    for rank, found in zip(ranks, draws, strict=True):
        assert_mean(found, exact)
        errors = np.sum(np.square(found - exact), axis=(1, 2)) / np.sum(np.square(exact))
        assert_mean(errors, np.float64(n * m + 1 + 2 * (n + m + 1) / rank))


def test_fitness_by_hand() -> None:
    """Losses 1, 4 and 2: their ranks 0, 1, 1/2 minus 1/2, and their distances from the mean."""
    s = np.array([1.0, 4.0, 2.0], np.float32)

    def estimate(loss: Any, fitness: str, s: Any = s, **options: Any) -> Any:
        noise = lambda key, like: [jnp.asarray(s[:, None])]  # noqa: E731
        options |= {"sigma": 1.0, "num_samples": 3, "rank": 1, "noise": noise, "fitness": fitness}
        return any_estimate(loss, **options)(KEY, jnp.zeros(1))[1][0]

    @jax.jit
    def found() -> Any:
        first, spoilt = (lambda w: w[0]), (lambda w: jnp.log(w[0] - 1.5))  # it diverged
        shaped = [estimate(loss, fitness) for fitness in ("ranked", "z-scored") for loss in (first, spoilt)]
        central = estimate(first, "ranked", difference="central")
        ties = estimate(first, "ranked", np.array([1.0, 1.0, 2.0], np.float32))
        return shaped, central, ties, estimate(lambda w: 0.0 * w[0], "ranked", difference="central")

    (ranked, no_rank, z_scored, no_score), central, ties, still = found()
    np.testing.assert_allclose(ranked, np.mean(np.array([-0.5, 0.5, 0.0]) * s), rtol=1e-6)
    np.testing.assert_allclose(z_scored, np.mean((s - 7 / 3) / np.std(s) * s), rtol=1e-6)
    assert np.isnan([no_rank, no_score]).all() and still == 0
    # losses 1, 4, 2, -1, -4, -2: ranks 3, 5, 4, 2, 0, 1 of 5; equal losses share the ranks 0 and 1 of 2
    np.testing.assert_allclose(central, (0.1 * 1 + 0.5 * 4 + 0.3 * 2) / 3, rtol=1e-5)
    np.testing.assert_allclose(ties, (-0.25 * 1 - 0.25 * 1 + 0.5 * 2) / 3, rtol=1e-6)


def test_nothing_as_large_as_the_weights_of_a_draw() -> None:
    """No value of the program has an axis of draws and the axes of the matrix."""
    n, m, draws = 30, 20, 32
    rule = ll.weight_perturbation(ll.Model(lambda w, x: x @ w), squares, sigma=0.1, num_samples=draws, rank=1)
    args = KEY, jnp.ones((n, m)), (), jnp.ones((4, n)), jnp.ones((4, m))
    inside = all_equations(jax.make_jaxpr(rule.value_and_grad)(*args).jaxpr)
    sizes = [getattr(out.aval, "size", 0) for equation in inside for out in equation.outvars]
    assert max(sizes) < draws * n * m / 4


# --- steps in place


@pytest.mark.parametrize("options", [{}, {"rank": 1}], ids=["listed", "stacked, of low rank"])
def test_passes_and_update_use_the_same_noise(options: dict[str, Any]) -> None:
    size, layers = 32, 2
    x, ws = normal(0, 4, size), jnp.zeros((layers, size, size))

    def loss(params: Any) -> jax.Array:
        """Linear in every parameter while the others are 0."""
        if not options:
            return sum(jnp.sum(x @ w) for w in params["ws"]) + jnp.sum(params["b"])
        return jax.lax.scan(lambda s, w: (s + jnp.sum(x @ w), None), jnp.sum(params["b"]), params["ws"])[0]

    params = {"ws": ws if options else list(ws), "b": jnp.zeros(size)}
    step = in_place(loss, sigma=0.5, **options)

    @jax.jit
    def moved(key: Any) -> Any:
        # With L = <G, w> the step is -<G, s> s, so its product with G is -<G, s>^2.
        after, gradient = step(key, params, learning_rate=1.0)[1], jax.grad(loss)(params)
        product = sum(jnp.vdot(g, m) for g, m in zip(*map(jax.tree.leaves, (gradient, after)), strict=True))
        noise = jax.tree.map(lambda m: m / jnp.sqrt(-product), after)
        return jnp.reshape(jnp.stack([*noise["ws"]]), (layers, -1)), after["b"]

    flat, of_bias = map(np.asarray, moved(KEY))
    if not options:
        # Squares of n normals have a mean of 1 with a standard error of sqrt(2 / n).
        assert abs(np.mean(flat**2) - 1) < 5 * (2 / flat.size) ** 0.5
        assert abs(np.mean(flat)) < 5 / flat.size**0.5
    # Layers have draws of their own: correlations of size^2 numbers are 0 with an error of 1 / size.
    correlation = np.corrcoef(flat) - np.eye(layers)
    assert np.abs(correlation).max() < 5 / size * (2 if options else 1)
    assert not np.allclose(of_bias, moved(jax.random.key(12))[1])


def test_several_draws_are_averaged() -> None:
    ones = np.ones((3, 4), np.float32)
    step = in_place(lambda w, x: jnp.sum((x @ w) ** 2), sigma=0.1, num_samples=8192)
    value, after = step(KEY, jnp.array(ones), jnp.eye(3), learning_rate=0.25)
    # The gradient is 2 w; relative variance of a draw n + 1 for n weights.
    error = 5 * 0.25 * 2 * (12 + 1) ** 0.5 / 8192**0.5
    np.testing.assert_allclose(after, ones - 0.25 * 2, atol=error)
    # The value is that at the noise: 12 + 12 sigma^2, with the standard deviation of the losses there.
    np.testing.assert_allclose(value, 12 * (1 + 0.1**2), atol=5 * 12 * 0.1 / 8192**0.5)


@pytest.mark.parametrize("options", [{"noise": "rademacher"}, {"rank": 2}], ids=["signs", "rank"])
def test_half_precision_keeps_the_signal(options: dict[str, Any]) -> None:
    # sigma is 1/80 of the spacing of bfloat16 around the weights, 2^-8 to 2^-7 at 1/2 to 1.
    w = np.random.default_rng(0).uniform(0.5, 0.99, (2, 16, 16)).astype(jnp.bfloat16)
    wide, x = w.astype(np.float32), np.asarray(normal(1, 4, 16)) / 16

    def loss(ws: Any) -> Any:
        return jnp.mean(jax.lax.scan(lambda h, w: (h @ w, None), x, ws)[0] ** 2, axis=1)

    step = in_place(loss, sigma=5e-5, **options)
    both = jax.jit(lambda *starts: [step(KEY, ws, learning_rate=0.01) for ws in starts])
    (value, half), (exact, full) = both(jnp.asarray(w), jnp.asarray(wide))
    np.testing.assert_allclose(value, exact, rtol=1e-6)
    assert half.dtype == jnp.bfloat16
    assert np.abs(full - wide).max() > 1e-3
    # One of the two numbers next to the exact one.
    np.testing.assert_array_less(np.abs(np.asarray(half, np.float32) - full), 2**-7)


def test_updates_below_the_spacing_are_made_in_the_mean() -> None:
    number, rate = 4096, 1e-4
    step = in_place(lambda w: jnp.sum(w), sigma=0.1, noise=lambda key, like: jnp.ones(like.shape))
    _, after = step(KEY, jnp.ones(number, jnp.bfloat16), learning_rate=rate / number)
    after = np.asarray(after, np.float32)
    # Bernoulli steps of 2^-8 below 1.
    np.testing.assert_allclose(1 - after.mean(), rate, atol=5 * (rate * 2**-8 / number) ** 0.5)
    assert set(np.unique(after)) == {1.0, 1 - 2**-8}


@pytest.mark.parametrize("listed", [True, False], ids=["list", "scan"])
def test_temporaries_do_not_grow_with_depth(listed: bool) -> None:
    size, layers = (128, 6) if listed else (256, 8)
    ws = np.zeros((layers, size, size), np.float32)

    def loss(ws: Any, x: Any) -> Any:
        if not listed:
            return jnp.mean(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0] ** 2)
        for w in ws:
            x = jnp.tanh(x @ w)
        return jnp.mean(x**2)

    def temporaries(**options: Any) -> float:
        args = KEY, list(ws) if listed else ws, np.ones((1, size), np.float32)
        step = in_place(loss, sigma=0.1, **options)
        memory = step.lower(*args, learning_rate=0.1).compile().memory_analysis()
        assert memory.alias_size_in_bytes >= ws.nbytes  # params are donated
        return memory.temp_size_in_bytes / ws.nbytes

    # Two matrices, the noise and its sum with the weights, and words or keys.
    assert temporaries(noise="rademacher" if listed else "normal") < 4 / layers
    if not listed:  # one product of low rank, of the size of a matrix, and the copy that it is added to
        assert temporaries(rank=2) < 2.5 / layers


# --- bad input


def stepped(loss_fn: Any = jnp.sum, learning_rate: Any = 0.1, **options: Any) -> Any:
    step = in_place(loss_fn, **{"sigma": 0.1, **options})
    return lambda: step(KEY, jnp.ones(2), learning_rate=learning_rate)


def estimated(loss_fn: Any = jnp.sum, params: Any = None, **options: Any) -> Any:
    return lambda: any_estimate(loss_fn, **{"sigma": 0.1, "rank": 1, **options})(KEY, params)


test_bad_input = refusals(
    values={
        "^fitness: expected 'loss' without a rank or with one draw": estimated(fitness="ranked"),
        "^fitness: expected": estimated(fitness="ranked", rank=None, num_samples=4),
        "^learning_rate: expected a real number": stepped(learning_rate=jnp.ones(2)),
    },
    types={
        r"params\['w'\]: expected float32 or wider with a rank": estimated(
            lambda p: jnp.sum(p["w"].astype(jnp.float32)), {"w": jnp.ones(2, jnp.bfloat16)}
        ),
        "^loss_fn: expected a loss in float32 or wider": stepped(lambda w: jnp.sum(w.astype(jnp.bfloat16))),
    },
)
