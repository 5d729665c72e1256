"""Bad formulas, libraries and points: as in `test_bad_input`, the errors that a user sees; nothing is run."""

# pyright: reportArgumentType=false

import builtins
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lax_learning.symbolic._parser import Program, compile_formula
from lax_learning.symbolic.expressions import (
    Coefficients,
    Expression,
    ExpressionError,
    FunctionDraws,
    Library,
    draw_functions,
    function_gradients,
    function_values,
    load_library,
    parse_expression,
    parse_library,
)
from tests.refusal import parametrize_cases, refuses

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(0)
ONES = jnp.ones
LIBRARY = parse_library("N0*X[:,0]**2 + U1\nX[:,1]")
DRAWS = draw_functions(KEY, LIBRARY, 3)
QUADRATIC = "N0*0.05*(X10[:,0] + 0.5*N1)**2 + 0.15*N2"

# Formulas.

ANYTHING = "a number, N0, N1, .., U0, U1, .., a column as X[:,0], one of + - * / ** or one of the functions"
CHARACTERS = "letters, digits, spaces and _ . + - * / ( ) [ ] , :"
FUNCTION = "one of the functions sin cos tan exp log sqrt abs tanh"
COLUMN = "a column as X[:,0]"
INDEX = "an index of 0..999 without leading zeros"
DEEP = "at most 100 nested operations"

# The formula, the column of the error, what was expected and, where it is short, what came.
REFUSED = {
    "": (1, "a formula", "''"),
    " \t": (3, "a formula", "''"),
    "X": (1, ANYTHING, "'X'"),
    "1 + y": (5, ANYTHING, "'y'"),
    "sin": (1, ANYTHING, "'sin'"),
    "np": (1, ANYTHING, "'np'"),
    "1j": (1, ANYTHING, "'1j'"),
    "True": (1, ANYTHING, "'True'"),
    "2*None": (3, ANYTHING, "'None'"),
    "...": (1, ANYTHING, "'...'"),
    "1, 2": (1, ANYTHING, "'1, 2'"),
    "[1]": (1, ANYTHING, "'[1]'"),
    "1 // 2": (1, ANYTHING, "'1 // 2'"),
    "N0 and U0": (1, ANYTHING, "'N0 and U0'"),
    "not N0": (1, ANYTHING, "'not N0'"),
    "N0 is N0": (1, ANYTHING, "'N0 is N0'"),
    "N0 if N1 else N2": (1, ANYTHING, "'N0 if N1 else N2'"),
    "np.pi": (1, ANYTHING, "'np.pi'"),
    "N0.real": (1, ANYTHING, "'N0.real'"),
    "X.__class__": (1, ANYTHING, "'X.__class__'"),
    "().__class__.__bases__[0]": (1, COLUMN, "'().__class__.__bases__[0]'"),
    "lambda: 0": (1, ANYTHING, "'lambda: 0'"),
    "2*[N0 for N0 in X]": (3, ANYTHING, "'[N0 for N0 in X]'"),
    "(yield)": (2, ANYTHING, "'yield'"),
    "await X": (1, ANYTHING, "'await X'"),
    "sin(*X)": (5, ANYTHING, "'*X'"),
    "sin(**X)": (1, "sin of one argument", "'sin(**X)'"),
    "sin(N0, **X)": (1, "sin of one argument", "'sin(N0, **X)'"),
    "sin()": (1, "sin of one argument", "'sin()'"),
    "1+exp(1, 2)": (3, "exp of one argument", "'exp(1, 2)'"),
    "np.load(X)": (1, FUNCTION, "'np.load'"),
    "numpy.sin(1)": (1, FUNCTION, "'numpy.sin'"),
    "os.system(1)": (1, FUNCTION, "'os.system'"),
    "jnp.np.sin(1)": (1, FUNCTION, "'jnp.np.sin'"),
    "X.sin(1)": (1, FUNCTION, "'X.sin'"),
    "np.sin.cos(1)": (1, FUNCTION, "'np.sin.cos'"),
    "sin(1)(2)": (1, FUNCTION, "'sin(1)'"),
    "N0(1)": (1, FUNCTION, "'N0'"),
    "__import__(N0)": (1, FUNCTION, "'__import__'"),
    "eval(N0)": (1, FUNCTION, "'eval'"),
    "(lambda: 0)()": (2, FUNCTION, "'lambda: 0'"),
    "sin(tan(cot(1)))": (9, FUNCTION, "'cot'"),
    "X[0]": (1, COLUMN, "'X[0]'"),
    "X[:]": (1, COLUMN, "'X[:]'"),
    "X[0,:]": (1, COLUMN, "'X[0,:]'"),
    "X[:,-1]": (1, COLUMN, "'X[:,-1]'"),
    "X[:,1.0]": (1, COLUMN, "'X[:,1.0]'"),
    "X[:,True]": (1, COLUMN, "'X[:,True]'"),
    "X[:,0:1]": (1, COLUMN, "'X[:,0:1]'"),
    "X[1:,0]": (1, COLUMN, "'X[1:,0]'"),
    "X[:1,0]": (1, COLUMN, "'X[:1,0]'"),
    "X[::2,0]": (1, COLUMN, "'X[::2,0]'"),
    "X[:,0,0]": (1, COLUMN, "'X[:,0,0]'"),
    "X[:,N0]": (1, COLUMN, "'X[:,N0]'"),
    "Y[:,0]": (1, COLUMN, "'Y[:,0]'"),
    "X_1[:,0]": (1, COLUMN, "'X_1[:,0]'"),
    "N0[:,0]": (1, COLUMN, "'N0[:,0]'"),
    "X[:,0][:,0]": (1, COLUMN, "'X[:,0][:,0]'"),
    "X[:,1000]": (1, "a column of 0..999", "'X[:,1000]'"),
    "N1000": (1, INDEX, "'N1000'"),
    "2 + U01": (5, INDEX, "'U01'"),
    "N" + "9" * 9000: (1, INDEX, "'N999999999"),
    "1e999": (1, "a number of at most 1e+38", "'1e999'"),
    "-1e39": (2, "a number of at most 1e+38", "'1e39'"),
    "1" + "0" * 400: (1, "a number of at most 1e+38", "'1000"),
    "0x" + "f" * 9000: (1, "a number of at most 1e+38", "'0xffff"),
    "9" * 5000: (5001, "a formula", "''"),
    # Where Python's own parser gives up: it may say so at another place in another release.
    "1 + ": (4, "a formula", "''"),
    "  1 2": (5, "a formula", "'2'"),
    "a b": (3, "a formula", "'b'"),
    "sin(X[:,0]": (4, "a formula", "'(X[:,0]'"),
    "1if 1else 2": (1, "a formula", "'1if 1else 2'"),
    "0777": (1, "a formula", "'0777'"),
    "import os": (1, "a formula", "'import os'"),
    "del X": (1, "a formula", "'del X'"),
    "1 % 2": (3, CHARACTERS, "'%'"),
    "N0 @ N1": (4, CHARACTERS, "'@'"),
    "1 < 2": (3, CHARACTERS, "'<'"),
    "~1": (1, CHARACTERS, "'~'"),
    "2 ^ 3": (3, CHARACTERS, "'^'"),
    "(N0 := 1)": (6, CHARACTERS, "'='"),
    "sin(x=1)": (6, CHARACTERS, "'='"),
    "{1: 2}": (1, CHARACTERS, "'{'"),
    "'text'": (1, CHARACTERS, '"\'"'),
    'f"{N0}"': (2, CHARACTERS, "'\"'"),
    "__import__('os')": (12, CHARACTERS, '"\'"'),
    "1 # one": (3, CHARACTERS, "'#'"),
    "1\n+ 1": (2, CHARACTERS, r"'\n'"),
    "1\\": (2, CHARACTERS, r"'\\'"),
    "1;2": (2, CHARACTERS, "';'"),
    "\x001": (1, CHARACTERS, r"'\x00'"),
    "1 + é": (5, CHARACTERS, "'é'"),
    "\uff2e0": (1, CHARACTERS, "'\uff2e'"),
    "X\u0661[:,0]": (2, CHARACTERS, "'\u0661'"),
    "\ud800": (1, CHARACTERS, r"'\ud800'"),
    "+".join(["1"] * 102): (1, DEEP, "more"),
    "-" * 100 + "1": (101, DEEP, "more"),
    "sin(" * 100 + "1" + ")" * 100: (401, DEEP, "more"),
    "-" * 9_999 + "1": (1, DEEP, "more"),
    "+".join(["1"] * 5_000): (1, DEEP, "more"),
    "1**" * 3_000 + "1": (1, DEEP, "more"),
    "(" * 5_000: (201, "a formula", "'((((("),
    "1" * 10_001: (1, "at most 10000 characters", "10001"),
}


@pytest.mark.parametrize("source", REFUSED, ids=[repr(source)[:40] for source in REFUSED])
def test_formulas(source):
    column, expected, got = REFUSED[source]
    with pytest.raises(ExpressionError) as raised:
        parse_expression(source, file="a.lib", line=7, column=11)
    error = raised.value
    assert str(error).startswith(f"a.lib:7:{error.column}: expected {expected}")
    assert f", got {got}" in str(error)
    assert (error.file, error.line, error.column) == ("a.lib", 7, column + 10)
    assert isinstance(error, ValueError)


def test_many_attributes():
    # Python 3.13 parses what is too deep for 3.11 and 3.12.
    with pytest.raises(ExpressionError, match=rf"^a\.lib:7:11: expected ({DEEP}|a number, )"):
        parse_expression("X" + ".a" * 4_900, file="a.lib", line=7, column=11)


@pytest.mark.parametrize("source", [None, 1, b"N0", ["N0"]])
def test_no_text(source):
    refuses(lambda: parse_expression(source), TypeError, "^source: expected a string, got ")
    refuses(lambda: parse_library(source), TypeError, "^text: expected a string, got ")


@pytest.mark.parametrize("source", ["+".join(["1"] * 100), "-" * 99 + "1", " " * 20_000 + "1" * 9 + " " * 9])
def test_as_much_as_is_allowed(source):
    assert isinstance(parse_expression(source), Expression)


# Whatever the text is.

FUZZ = settings(deadline=None, derandomize=True, database=None, max_examples=200)
WORDS = [
    *"019.ej_NUX()[]:,+-*/#'=@{} \t\n;\\\x00é",
    *["N0", "U1", "X10", "X[:,0]", "[:,1]", "**", "//", "np.", "jnp.", "sin", "cos(", "exp(", "abs"],
    *["lambda", "if", "else", "for", "in", "not", "and", "or", "is", "await", "None", "True", "__class__"],
]


def outcome(parse, text):
    """Either a result or the error with a place inside the text; no warning either way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = parse(text)
        except ExpressionError as error:
            result = error
            lines = text.split("\n")
            assert 1 <= error.line <= len(lines) and 1 <= error.column <= len(text) + 1
            assert re.match(rf"<\w+>:{error.line}:{error.column}: expected .+, got ", str(error), re.DOTALL)
    assert not caught
    return result


@FUZZ
@given(st.text() | st.lists(st.sampled_from(WORDS)).map("".join))
@example("1if 1else 2")
@example("0x1for X in N")
@example("1 is 1")
@example("1()")
@example("1[:,0]")
def test_any_text(text):
    assert isinstance(outcome(parse_expression, text), Expression | ExpressionError)


@settings(FUZZ, max_examples=100)
@given(st.text() | st.lists(st.sampled_from([*WORDS, "\n", "\n", ";"])).map("".join))
def test_any_library(text):
    assert isinstance(outcome(parse_library, text), Library | ExpressionError)


MUTATIONS = st.tuples(st.integers(0, 60), st.integers(0, 3), st.sampled_from(["", *WORDS]))
VALID = [QUADRATIC, "-6*U0*5*N0*np.sin(6*U0*X07[:,1])", "N*3.0*X09[:,1]*np.exp(2*U*0.5*X09[:,1])/abs(-2)"]


@FUZZ
@given(st.sampled_from(VALID), st.lists(MUTATIONS, min_size=1, max_size=3))
def test_mutations(source, mutations):
    for start, length, text in mutations:
        source = source[:start] + text + source[start + length :]
    assert isinstance(outcome(parse_expression, source), Expression | ExpressionError)


@pytest.mark.parametrize("source", VALID)
@pytest.mark.parametrize(
    "mark", ["__import__(np)", "X.__class__", "[X for X in X]", "(lambda: X)()", "np.a.b"]
)
def test_nothing_hides_in_a_formula(source, mark):
    for place in re.finditer(r"\b(N\d?|U\d?|X\d+\[:,\d\])(?=\W|$)", source):
        text = source[: place.start()] + mark + source[place.end() :]
        assert isinstance(outcome(parse_expression, text), ExpressionError)


def test_nothing_is_run(monkeypatch, tmp_path):
    """Only syntax trees are made, also where the text would be valid Python."""

    def read(text):
        return compile_formula(text, "<expression>", 1, 1)

    target = tmp_path / "made"
    attacks = [
        f"__import__('os').system('touch {target}')",
        f"open({str(target)!r}, 'w')",
        f"np.zeros(1).tofile({str(target)!r})",
        "(lambda: [c for c in ().__class__.__base__.__subclasses__()])()",
        "np.sin.__globals__[N0]",
        "exec(N0) + eval(N0)",
    ]
    plain, made = builtins.compile, []

    def only_trees(source, filename, mode, flags=0, *args, **options):
        made.append((mode, flags))
        return plain(source, filename, mode, flags, *args, **options)

    def never(*args, **options):
        raise AssertionError("something was run")

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "compile", only_trees)
        for name in ("eval", "exec", "open"):
            patched.setattr(builtins, name, never)
        results = [outcome(read, text) for text in [*attacks, *VALID]]
    assert [type(result) for result in results] == [ExpressionError] * 6 + [Program] * 3
    assert made and all(flags & 0x400 for _, flags in made)  # ast.PyCF_ONLY_AST
    assert not target.exists()


# Libraries.


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("", "1:1", "expected a function, got none"),
        (" \n\t\r\n", "1:1", "expected a function, got none"),
        ("1\n\n N0 + N00", "3:7", f"expected {INDEX}, got 'N00'"),
        ("X[:,0]; 1 + one", "1:13", f"expected {ANYTHING}"),
        ("X[:,0];", "1:8", "expected a formula, got ''"),
        ("X[:,0];;1", "1:8", "expected a formula, got ''"),
        (";1", "1:1", "expected a formula, got ''"),
        ("1\rN0", "1:2", "expected letters, digits"),
        ("X[:,0]*X[:,1];X[:,1]", "1:1", "expected 2 derivatives, one a column, got 1"),
        ("X[:,2];0;0", "1:1", "expected 3 derivatives, one a column, got 2"),
        ("X[:,0]\nX[:,0]**2;X[:,0]", "2:11", "expected the derivative by column 0, "),
        ("X[:,0]*X[:,1]; X[:,1];\t-X[:,0]", "1:24", "expected the derivative by column 1, "),
        ("X[:,0]*X[:,1]; X[:,0]; X[:,1]", "1:16", "expected the derivative by column 0, "),
        ("X[:,0];1;1e-9", "1:10", "expected the derivative by column 1, "),
        (
            "1000*sin(U0*X[:,0]);1000*U0*cos(1.00001*U0*X[:,0])",
            "1:21",
            "expected the derivative by column 0, ",
        ),
        (QUADRATIC + ";2*N0*0.05*(X10[:,0] + 0.5*N2)", "1:42", "expected the derivative by column 0, "),
        (
            "exp(exp(X[:,0])) + X[:,0];exp(exp(X[:,0]) + X[:,0])",
            "1:27",
            "expected the derivative by column 0, ",
        ),
        ("X[:,0];log(-1 - X[:,0]**2)", "1:8", "expected the derivative by column 0, got no point where"),
        (
            "log(-1 - X[:,0]**2);2*X[:,0]/(1 + X[:,0]**2)",
            "1:21",
            "expected the derivative by column 0, got no point",
        ),
    ],
)
def test_libraries(text, place, problem):
    with pytest.raises(ExpressionError) as raised:
        parse_library(text)
    error = raised.value
    assert str(error).startswith(f"<library>:{place}: {problem}") and ", got " in str(error)
    assert place == f"{error.line}:{error.column}"


def test_values_of_a_wrong_derivative():
    pattern = r"^<library>:1:11: expected the derivative by column 0, (\S+) at \[(\S+)\], got (\S+)$"
    with pytest.raises(ExpressionError, match=pattern) as raised:
        parse_library("X[:,0]**2;-X[:,0]")
    match = re.match(pattern, str(raised.value))
    assert match is not None
    exact, x, written = map(float, match.groups())
    np.testing.assert_allclose([exact, written], [2 * x, -x], rtol=1e-4)


def test_files(tmp_path):
    path = tmp_path / "functions.lib"
    path.write_bytes(b"X[:,0]\n\xff\xfe")
    refuses(lambda: load_library(path), ValueError, f"^{path}: expected UTF-8 text, got ")
    path.write_bytes(b"")
    refuses(lambda: load_library(path), ExpressionError, f"^{path}:1:1: expected a function, got none")
    with pytest.raises(FileNotFoundError):
        load_library(tmp_path / "none.lib")


# Numbers and points.


@pytest.mark.parametrize(
    ("number", "error"),
    [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError), ("2", TypeError)],
)
def test_number(number, error):
    refuses(lambda: draw_functions(KEY, LIBRARY, number), error, "^number: expected .*got")


CALLS = {
    "values": lambda x, draws=DRAWS: function_values(LIBRARY, draws, x),
    "gradients": lambda x, draws=DRAWS: function_gradients(LIBRARY, draws, x),
}
SHAPE = r"^x: expected shape \[points, columns\] of at least 1 point and {} columns, got \["


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_points(call):
    for shape in [(5, 1), (5,), (), (0, 2), (2, 5, 2), (5, 0)]:
        refuses(lambda shape=shape: call(ONES(shape)), ValueError, SHAPE.format(2))
        refuses(lambda shape=shape: jax.jit(call)(ONES(shape)), ValueError, SHAPE.format(2))
    for dtype in (int, bool, complex):
        pattern = "^x: expected (a floating-point array|an array of real numbers), got "
        refuses(lambda dtype=dtype: call(ONES((5, 2), dtype)), TypeError, pattern)


def with_coefficients(normal, uniform):
    draws = DRAWS._replace(coefficients=Coefficients(normal, uniform))
    return lambda: [call(ONES((5, 2)), draws) for call in CALLS.values()]


@parametrize_cases(
    {
        "too few": (
            with_coefficients(ONES((3, 1)), ONES((3, 2))),
            ValueError,
            r"normal: .*>= 2\], got \[3, 1\]",
        ),
        "uniform": (with_coefficients(ONES((3, 2)), ONES((3, 0))), ValueError, r"uniform: .*, got \[3, 0\]"),
        "draws": (with_coefficients(ONES((2, 2)), ONES((3, 2))), ValueError, r"normal: .*, got \[2, 2\]"),
        "one": (with_coefficients(ONES(2), ONES(2)), ValueError, r"normal: .*\[3, K >= 2\], got \[2\]"),
        "integers": (
            with_coefficients(ONES((3, 2), int), ONES((3, 2))),
            TypeError,
            "normal: expected a float",
        ),
    }
)
def test_coefficients(call, error, pattern):
    refuses(call, error, "^coefficients." + pattern)


def test_entries():
    def call(entries):
        return lambda: function_values(LIBRARY, DRAWS._replace(entries=entries), ONES((5, 2)))

    refuses(call(jnp.array([0, 1, 2])), ValueError, "^entries: expected indices of 0..1, got 2")
    refuses(call(jnp.array([0, -1, 1])), ValueError, "^entries: expected indices of 0..1, got -1")
    refuses(call(ONES(3)), TypeError, "^entries: expected integers, got float32")
    refuses(call(jnp.array(0)), ValueError, r"^entries: expected shape \[number\], got \[\]")


def test_one_expression():
    expression = parse_expression("N1*X[:,2]")
    enough = Coefficients(ONES(2), ONES(2))
    refuses(lambda: expression.evaluate(enough, ONES((4, 2))), ValueError, SHAPE.format(3))
    refuses(lambda: expression.evaluate(enough, ONES((4, 3), int)), TypeError, "^x: expected a floating")
    for wrong in (ONES(1), ONES((2, 2)), ONES(())):
        few = Coefficients(wrong, ONES(2))
        pattern = r"^coefficients.normal: expected shape \[K >= 2\], got \["
        refuses(lambda few=few: expression.evaluate(few, ONES((4, 3))), ValueError, pattern)
    # An array of NumPy, in a precision that is switched off, is no bad input.
    assert expression.evaluate(enough, np.ones((4, 3))).dtype == jnp.float32  # pyright: ignore
    values = function_values(LIBRARY, FunctionDraws(*DRAWS), np.ones((4, 2)))  # pyright: ignore
    assert values.dtype == jnp.float32


def test_lists_are_points():
    expression = parse_expression("2*X[:,0]")
    none = Coefficients(np.zeros(0, np.float32), np.zeros(0, np.float32))  # pyright: ignore
    assert expression.evaluate(none, [[1.0], [2.0]]).tolist() == [2, 4]  # pyright: ignore
    refuses(lambda: expression.evaluate(None, [[1.0]]), TypeError, "^coefficients: expected Coefficients")
    refuses(
        lambda: parse_expression("1e30").evaluate(none, ONES((2, 1), jnp.float16)),
        ValueError,
        "^x: .*1e\\+30",
    )
    refuses(lambda: draw_functions(KEY, LIBRARY, 10**12), ValueError, "^number: expected arrays of at most")
    refuses(
        lambda: draw_functions(KEY, LIBRARY, 2, dtype=int), TypeError, "^dtype: expected a floating-point"
    )
    refuses(lambda: load_library(None), TypeError, "^path: expected a path, got None")
