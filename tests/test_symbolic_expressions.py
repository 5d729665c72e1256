"""Formulas and libraries of them against NumPy, derivatives by hand and distributions."""

import pickle
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning.symbolic as sy
from tests.compare import assert_close, assert_same, member
from tests.refusal import refuses

KEY = jax.random.key(0)
# With a coefficient and a column that nothing reads.
N, U = np.array([0.7, -1.3, 0.4, np.nan]), np.array([0.2, 0.9, 0.5, np.nan])
POINTS = np.array([[0.5, -0.3, np.nan], [1.5, 2.0, np.nan], [0.1, 0.7, np.nan], [2.5, -1.1, np.nan]])
A, B, _ = POINTS.T
array = partial(np.array, dtype=np.float32)

# The formula and its values. First, what occurs in published libraries.
CASES = {
    "N0*0.05*(X10[:,0] + 0.5*N1)**2 + 0.15*N2": 0.7 * 0.05 * (A - 0.65) ** 2 + 0.06,
    "0": 0 * A,
    "X00[:,1]**5": B * B * B * B * B,
    "X00[:,0] * X00[:,1]": A * B,
    "-6*U0*5*N0*np.sin(6*U0*X07[:,1])": -4.2 * np.sin(1.2 * B),
    "N*3.0*X09[:,1]*np.cos(2*U*0.5*X09[:,1])": 2.1 * B * np.cos(0.2 * B),
    # The other functions, and what binds more tightly.
    "tan(X[:,0])": np.sin(A) / np.cos(A),
    "log(X[:,0])*exp(X[:,1])": np.log(A) * np.exp(B),
    "jnp.sqrt(X[:,0])": np.sqrt(A),
    "np.abs(X[:,1])": np.abs(B),
    "tanh(X[:,0] - U2)": np.tanh(A - 0.5),
    "X[:,1]/X[:,0]/2": B / A / 2,
    "-X[:,0]**2": -(A * A),
    "(-X[:,0])**-2": 1 / (A * A),
    "2**3**2 - 1 - 2 + 0*X[:,0]": 509 + 0 * A,
    "2**X[:,1]": np.power(2, B),
    "X[:,0]**0.5*X[:,1]**1": np.sqrt(A) * B,
    "+ X[ : , 0 ] \t- - 1e-1*U1": A + 0.09,
    "8 - X[:,0]*2 - (1 - X[:,1])": 7 - 2 * A + B,
    "X[:,0]**100": np.power(A, 100),
}
TEXT = "\n".join(CASES)
SMALL = "N0*0.05*(X10[:,0] + 0.5*N1)**2 + 0.15*U2\nX[:,0]*X[:,1]*sin(N0)\n0.5\nX[:,1]**1.5/exp(3*U)"


def coefficients(dtype=jnp.float32) -> sy.Coefficients:
    return sy.Coefficients(jnp.asarray(N, dtype), jnp.asarray(U, dtype))


def values_and_gradients(library, draws, x):
    """Values `[number, points]` and derivatives `[number, points, columns]`, in forward mode."""
    values = partial(sy.function_values, library, draws)
    directions = [jnp.zeros_like(x).at[:, column].set(1) for column in range(x.shape[1])]
    return values(x), jnp.stack([jax.jvp(values, (x,), (d,))[1] for d in directions], axis=-1)


def draws_of_all(library, dtype=jnp.float32):
    size = len(library.expressions)
    numbers = (jnp.tile(values, (size, 1)) for values in coefficients(dtype))
    return sy.FunctionDraws(jnp.arange(size), sy.Coefficients(*numbers))


def test_all_of_them_in_one_program(x64):
    library, x = sy.parse_library(TEXT), jnp.asarray(POINTS)
    assert library.num_coefficients == 3 and library.num_columns == 2
    draws = draws_of_all(library, jnp.float64)
    values = jax.jit(partial(sy.function_values, library))(draws, x)
    expected = np.array(list(CASES.values()))
    np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-15)
    assert [expression.source for expression in library.expressions] == list(CASES)
    alone = library.expressions[0].evaluate(coefficients(jnp.float64), x)
    assert alone.dtype == jnp.float64
    np.testing.assert_allclose(alone, expected[0], rtol=1e-12)


def test_integer_powers_at_zero_and_below():
    def derivatives(power, z):
        def value(z):
            return sy.parse_expression(f"X[:,0]**{power}").evaluate(coefficients(), z[None, None])[0]

        return value(z), jax.grad(value)(z), jax.grad(jax.grad(value))(z)

    powers, z = (-1, 0, 1, 2), np.array([-2.0, 0.0], np.float32)
    found = jax.jit(jax.vmap(lambda z: [derivatives(power, z) for power in powers]))(z)
    of_zero = {0: (1, 0, 0), 1: (0, 1, 0), 2: (0, 0, 2)}
    of_minus_two = {-1: (-1 / 2, -1 / 4, -1 / 4), 0: (1, 0, 0), 1: (-2, 1, 0), 2: (4, -4, 2)}
    for power, (at_minus_two, at_zero) in zip(powers, np.moveaxis(found, 2, 1), strict=True):
        np.testing.assert_array_equal(at_minus_two, of_minus_two[power])
        np.testing.assert_array_equal(at_zero, of_zero.get(power, at_zero))


def test_what_it_reads():
    reads = {"1": (0, 0), "N": (1, 0), "N0 + U12*X3[:,4]": (13, 5), "N999 * X[:,999]": (1000, 1000)}
    for source, expected in reads.items():
        expression = sy.parse_expression(source)
        assert (expression.num_coefficients, expression.num_columns) == expected
    library = sy.parse_library("X[:,0];1 + 0*N4*X[:,2]")  # also what only a derivative names
    assert (library.num_coefficients, library.num_columns) == (5, 3)
    before = time.perf_counter()
    expression = sy.parse_expression("9**9**9**9 + 0x10**1_000")
    assert time.perf_counter() - before < 1, "numbers are computed while reading"
    assert expression.evaluate(coefficients(), jnp.ones((2, 1))).tolist() == [np.inf, np.inf]


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_the_dtype_is_that_of_x(dtype, x64):
    library = sy.parse_library(SMALL)
    x = jnp.asarray(POINTS, dtype)
    for own in ("float32", "float64"):
        shapes = jax.eval_shape(partial(values_and_gradients, library), draws_of_all(library, own), x)
        assert all(leaf.dtype == x.dtype for leaf in shapes)
    evaluate = sy.parse_expression("2.0**X[:,0] * 1.5 + N0").evaluate
    assert jax.eval_shape(evaluate, coefficients(), x).dtype == dtype


TRICKY = "\n".join(["log(X[:,0])", "X[:,0]**2", "sqrt(X[:,0])*N0", "1/(X[:,0] - X[:,0])", "U0*X[:,1]**3"])


def test_the_entries_that_were_not_drawn_leave_no_trace():
    """Nor through the derivatives that a caller takes in reverse mode, of values or of slopes."""
    library, x = sy.parse_library(TRICKY), jnp.array([[-1.0, 2], [0, 0]])
    numbers = sy.Coefficients(jnp.full((3, 1), 0.5), jnp.full((3, 1), 0.25))

    @jax.jit
    def run(entries):
        def sums(draws, x, i):
            return jnp.sum(values_and_gradients(library, draws, x)[i])

        draws = sy.FunctionDraws(entries, numbers)
        of = [jax.grad(partial(sums, i=i), (0, 1), allow_int=True)(draws, x) for i in (0, 1)]
        return values_and_gradients(library, draws, x), of

    squares, cubes = array([1, 0]), array([2, 0])
    d_squares, d_cubes = array([[-2, 0], [0, 0]]), array([[0, 3], [0, 0]])
    (values, slopes), (total, of_slopes) = run(jnp.array([1, 4, 1]))
    gradients = np.stack([d_squares, d_cubes, d_squares])
    assert_same((values, slopes), (np.stack([squares, cubes, squares]), gradients))
    assert_same((total[1], of_slopes[1]), (gradients.sum(axis=0), array([[4, 3], [4, 0]])))
    uniform = total[0].coefficients.uniform, of_slopes[0].coefficients.uniform
    assert_same(uniform, (array([[0], [8], [0]]), array([[0], [12], [0]])))
    assert not np.any(total[0].coefficients.normal)
    # Those that were drawn do.
    (values, slopes), _ = run(jnp.array([0, 2, 2]))
    assert np.isnan(values[0, 0]) and np.isnan(slopes[1, 0, 0]) and np.isinf(slopes[0, 1, 0])


def test_every_draw_is_the_expression_with_its_own_coefficients():
    library, x = sy.parse_library("N0*X[:,0] + U1\nX[:,1]*U0 + N1\nX[:,0]"), jnp.asarray(POINTS, jnp.float32)

    def run(key):
        draws = sy.draw_functions(key, library, 12)
        return draws, sy.function_values(library, draws, x)

    found = jax.jit(jax.vmap(run))(jax.random.split(KEY, 2))
    for i in (0, 1):
        (entries, (n, u)), values = member(found, i)
        every = n[:, :1] * x[:, 0] + u[:, 1:], x[:, 1] * u[:, :1] + n[:, 1:], np.tile(x[:, 0], (12, 1))
        assert_close(values, np.stack(every)[entries, np.arange(12)], ulps=4)
        assert set(entries.tolist()) == {0, 1, 2}


def test_distributions():
    library, number = sy.parse_library("N0 + U1\nX[:,0]\nN0\n1"), 20_000
    draws = jax.jit(lambda key: sy.draw_functions(key, library, number))(KEY)
    normal, uniform = (np.asarray(numbers, float) for numbers in draws.coefficients)
    assert normal.shape == uniform.shape == (number, 2) and draws.entries.dtype == jnp.int32
    assert uniform.min() >= 0 and uniform.max() < 1
    each = np.asarray(draws.entries)[:, None] == np.arange(4)
    # Moments, each within five standard errors; then that no two of the five numbers go together.
    for samples, mean, variance in (
        (normal, 0, 1), (normal**2, 1, 2), (normal**4, 3, 96), (uniform, 1 / 2, 1 / 12),
        (uniform**2, 1 / 3, 4 / 45), (each, 1 / 4, 3 / 16),
    ):  # fmt: skip
        assert np.abs(samples.mean(axis=0) - mean).max() < 5 * np.sqrt(variance / number)
    everything = np.concatenate([normal, uniform, np.asarray(draws.entries)[:, None]], axis=1)
    assert np.abs(np.corrcoef(everything.T) - np.eye(5)).max() < 5 / np.sqrt(number)
    half = jax.eval_shape(lambda key: sy.draw_functions(key, library, 2, dtype=jnp.bfloat16), KEY)
    assert {leaf.dtype for leaf in half.coefficients} == {jnp.dtype(jnp.bfloat16)}


def test_lines_and_derivatives():
    library = sy.parse_library("\n N0*X[:,0]**2 ; 2*N0*X[:,0]\r\n\t\r\n3*U2\n\nX[:,1]*X[:,0]")
    sources = [expression.source for expression in library.expressions]
    assert sources == [" N0*X[:,0]**2 ", "3*U2", "X[:,1]*X[:,0]"]
    assert library.derivatives[0] is not None and library.derivatives[1:] == (None, None)
    (slope,) = library.derivatives[0]
    found = slope.evaluate(coefficients(), jnp.asarray(POINTS, jnp.float32))
    np.testing.assert_allclose(found, 1.4 * A, rtol=1e-6)
    assert slope.source == " 2*N0*X[:,0]"


RIGHT = [
    "1e9*(sin(X[:,0])**2 + cos(X[:,0])**2);0",  # what rounding leaves is no error
    # overflows at some points, and is not finite at half of them
    "exp(exp(X[:,0])) + log(X[:,0]); exp(exp(X[:,0]) + X[:,0]) + 1/X[:,0]",
    "2*X[:,0]; 2.000001",  # within 1e-6 of its size
]


def test_derivatives_that_are_right():
    """Also where they are checked inside of a program."""

    @jax.jit
    def run(x):
        library = sy.parse_library("\n".join(RIGHT))
        assert all(library.derivatives)
        return library.expressions[2].evaluate(sy.Coefficients(*[jnp.ones(0)] * 2), x)

    assert_same(run(array([[3.0]])), array([6.0]))


def test_files(tmp_path):
    path = tmp_path / "functions.lib"
    for start in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(start + b"X[:,0]\r\nN0\n")
        for of in (path, str(path)):
            assert [expression.source for expression in sy.load_library(of).expressions] == ["X[:,0]", "N0"]
    for text, problem in (
        (b"\xff\xfe", " expected UTF-8 text, got "),
        (b"", "1:1: expected 1 to 10000 functions, got 0"),
    ):
        path.write_bytes(text)
        refuses(lambda: sy.load_library(path), ValueError, f"^{path}:{problem}")
    path.write_bytes(b"X[:,0]\nN0 + nothing\n")
    with pytest.raises(sy.ExpressionError, match=rf"^{path}:2:6: expected a number, ") as raised:
        sy.load_library(path)
    error = raised.value
    assert (error.file, error.line, error.column) == (str(path), 2, 6)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    with pytest.raises(FileNotFoundError):
        sy.load_library(tmp_path / "none.lib")
