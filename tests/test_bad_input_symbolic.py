"""Bad input to all of `symbolic`: as in `test_bad_input`, the errors that a user sees; no formula is run."""

# pyright: reportArgumentType=false

import builtins
import re
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lax_learning.symbolic import (
    Coefficients,
    CriticState,
    Expression,
    ExpressionError,
    Library,
    area_under_curve,
    critic,
    critic_accuracy,
    critic_cost,
    critic_loss,
    critic_step,
    curves_at,
    draw_functions,
    dsn_generator,
    function_values,
    gaussian_process_generator,
    gradient_penalty,
    init_critic,
    load_library,
    mlp_generator,
    parse_expression,
    parse_library,
    train_critic,
)
from lax_learning.symbolic.formulas import Formula
from tests.refusal import refuses

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
        parse_expression(source)
    error = raised.value
    assert str(error).startswith(f"<expression>:1:{column}: expected {expected}")
    assert f", got {got}" in str(error)
    assert (error.file, error.line, error.column) == ("<expression>", 1, column)
    assert isinstance(error, ValueError)


def test_many_attributes():
    # Python 3.13 parses what is too deep for 3.11 and 3.12.
    with pytest.raises(ExpressionError, match=rf"^<expression>:1:1: expected ({DEEP}|a number, )"):
        parse_expression("X" + ".a" * 4_900)


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
        return Formula(text, "<expression>", 1, 1).program()

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
    assert [type(result) for result in results] == [ExpressionError] * 6 + [tuple] * 3
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
        ("2*X[:,0];2.000003", "1:10", "expected the derivative by column 0, "),
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


# Everything else.

NOT_COUNTS = [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError), ("2", TypeError)]
NOT_WEIGHTS = [-0.1, float("nan"), float("inf"), "0.1", None, True, ONES(2)]
X = jnp.linspace(-1, 1, 5)[:, None]
PLAIN, WIDE = critic(4, hidden=(3,)), critic(4, hidden=(3,), channels=2, embedding=(3,))
PARAMS, CURVES, ADAM = PLAIN.init(KEY), ONES((2, 4)), optax.adam(0.1)
STEP, STATE = critic_step(PLAIN, ADAM), init_critic(KEY, PLAIN, ADAM)
GENERATOR = mlp_generator(1, 3, hidden=(4,))
MAKERS = {"mlp": mlp_generator, "dsn": dsn_generator, "gaussian process": gaussian_process_generator}


def curves(key):
    return CURVES


def trained(step=STEP, real=curves, fake=curves, **options):
    return train_critic(step, real, fake, **{"num_epochs": 1, "iterations": 1, **options})


COUNTS = {
    "number": lambda value: draw_functions(KEY, LIBRARY, value),
    "num_points": lambda value: critic(value),
    "channels": lambda value: critic(4, channels=value),
    "hidden[1]": lambda value: critic(4, hidden=(3, value)),
    "embedding[0]": lambda value: critic(4, embedding=(value,)),
    "iterations": lambda value: trained(iterations=value),
    "num_epochs": lambda value: trained(num_epochs=value),
    "num_features": lambda value: gaussian_process_generator(2, 3, num_features=value),
}


@pytest.mark.parametrize(("value", "error"), NOT_COUNTS)
def test_counts(value, error):
    for name, call in COUNTS.items():
        refuses(lambda call=call: call(value), error, f"^{re.escape(name)}: expected .*got")
    for make in MAKERS.values():
        refuses(lambda make=make: make(value, 3), error, "^num_inputs: expected .*got")
        refuses(lambda make=make: make(2, value), error, "^num_latents: expected .*got")


@pytest.mark.parametrize("value", NOT_WEIGHTS)
def test_numbers(value):
    at_least_0, positive = ": expected a finite number >= 0, got", ": expected a finite number > 0, got"
    refuses(lambda: critic_step(PLAIN, ADAM, penalty=value), ValueError, "^penalty" + at_least_0)
    refuses(lambda: dsn_generator(2, 3, prune=value), ValueError, "^prune" + at_least_0)
    for options in ({"length_scale": value}, {"scale": value}, {"scale": 0}):
        call = partial(gaussian_process_generator, 2, 3, **options)
        refuses(call, ValueError, f"^{next(iter(options))}" + positive)


CHOICES = {
    "objective": lambda value: critic_loss(ONES(2), ONES(2), objective=value),
    "objective of a step": lambda value: critic_step(PLAIN, ADAM, objective=value),
    "cost": lambda value: critic_cost(ONES(2), cost=value),
    "method": lambda value: curves_at(X, LIBRARY, GENERATOR, method=value),
    "extensions[1]": lambda value: curves_at(X, LIBRARY, GENERATOR, extensions=("input", value)),
    "norm": lambda value: dsn_generator(2, 3, norm=value),
    "bias": lambda value: dsn_generator(2, 3, bias=value),
}


@pytest.mark.parametrize("value", ["BCE", "", None, 3, ONES(2)])
def test_choices(value):
    for name, call in CHOICES.items():
        pattern = f"^{re.escape(name.partition(' ')[0])}: expected one of .*got"
        refuses(lambda call=call: call(value), ValueError, pattern)


def applied(make, x):
    generator = make(2, 3)
    return generator.apply(jax.eval_shape(generator.init, KEY), x)


def latents(apply):
    return curves_at(X, LIBRARY_1, GENERATOR).latents(apply, {})


LIBRARY_1 = parse_library("X[:,0]")
POINTS = {
    "values": lambda x: function_values(LIBRARY, DRAWS, x),
    "values in a program": lambda x: jax.jit(lambda x: function_values(LIBRARY, DRAWS, x))(x),
    "one expression": lambda x: parse_expression("N1*X[:,1]").evaluate(Coefficients(ONES(2), ONES(2)), x),
    "curves": lambda x: curves_at(x, LIBRARY_1, GENERATOR),
    **{name: lambda x, make=make: applied(make, x) for name, make in MAKERS.items()},
}


@pytest.mark.parametrize("call", POINTS.values(), ids=POINTS)
def test_points(call):
    for shape in [(5,), (), (0, 2), (2, 5, 2), (5, 0)]:
        refuses(lambda shape=shape: call(ONES(shape)), ValueError, r"^x: expected .*, got .*\[")
    for dtype in (int, bool, complex):
        pattern = "^x: expected (a floating-point array|an array of real numbers), got "
        refuses(lambda dtype=dtype: call(ONES((5, 2), dtype)), TypeError, pattern)


BAD_CURVES = [
    (PLAIN, ONES((2, 5)), ValueError, r"expected shape \[number, 4\], got \[2, 5\]"),
    (PLAIN, ONES(4), ValueError, r"expected shape \[number, 4\], got \[4\]"),
    (PLAIN, ONES(()), ValueError, r"expected shape \[number, 4\], got \[\]"),
    (PLAIN, ONES((2, 4, 1)), ValueError, r"expected shape \[number, 4\], got \[2, 4, 1\]"),
    (PLAIN, ONES((0, 4)), ValueError, r"expected at least one curve, got shape \[0, 4\]"),
    (PLAIN, ONES((2, 4), int), TypeError, "expected a floating-point array, got int32"),
    (WIDE, ONES((2, 4, 3)), ValueError, r"expected shape \[number, 4, 2\], got \[2, 4, 3\]"),
    (WIDE, CURVES, ValueError, r"expected shape \[number, 4, 2\], got \[2, 4\]"),
]


@pytest.mark.parametrize(("judge", "wrong", "error", "pattern"), BAD_CURVES)
def test_curves(judge, wrong, error, pattern):
    params, good = judge.init(KEY), ONES((2, *judge.curve_shape))
    step, state = critic_step(judge, ADAM), init_critic(KEY, judge, ADAM)
    refuses(lambda: judge.apply(params, wrong), error, "^curves: " + pattern)
    for name, pair in (("real", (wrong, good)), ("fake", (good, wrong))):
        message = f"^{name}: " + pattern
        refuses(lambda pair=pair: step(KEY, state, *pair), error, message)
        refuses(lambda pair=pair: gradient_penalty(judge, params, ONES(2), *pair), error, message)


@pytest.mark.parametrize("score", [critic_loss, critic_accuracy, area_under_curve])
@pytest.mark.parametrize(
    ("logits", "error", "pattern"),
    [
        (ONES(()), ValueError, r"expected shape \[number\] .*got \[\]"),
        (ONES((2, 1)), ValueError, r"expected shape \[number\] .*got \[2, 1\]"),
        (ONES(0), ValueError, r"expected .* at least one entry, got \[0\]"),
        (ONES(2, int), TypeError, "expected a floating-point array, got int32"),
    ],
)
def test_logits(score, logits, error, pattern):
    refuses(lambda: score(logits, ONES(2)), error, "^logits_real: " + pattern)
    refuses(lambda: score(ONES(2), logits), error, "^logits_fake: " + pattern)


def values(**changed):
    draws = DRAWS._replace(**changed)
    return lambda: function_values(LIBRARY, draws, ONES((5, 2)))


def coefficients(normal, uniform):
    return values(coefficients=Coefficients(normal, uniform))


def two_outputs(layers):
    return (*layers[:-1], {"w": ONES((3, 2)), "b": ONES(2)})


NONE = Coefficients(np.zeros(0, np.float32), np.zeros(0, np.float32))
FEW = r"^coefficients\."


CALLS = [
    (FEW + r"normal: .*>= 2\], got \[3, 1\]", coefficients(ONES((3, 1)), ONES((3, 2)))),
    (FEW + r"uniform: .*, got \[3, 0\]", coefficients(ONES((3, 2)), ONES((3, 0)))),
    (FEW + r"normal: .*, got \[2, 2\]", coefficients(ONES((2, 2)), ONES((3, 2)))),
    (FEW + "normal: expected a fl", coefficients(ONES((3, 2), int), ONES((3, 2)))),
    (
        FEW + r"normal: expected shape \[K >= 2\], got \[1\]",
        lambda: parse_expression("N1").evaluate(Coefficients(ONES(1), ONES(2)), X),
    ),
    ("^coefficients: expected Coefficients", lambda: parse_expression("1").evaluate(None, X)),
    ("^entries: expected .* 0..1, got 2", values(entries=jnp.array([0, 1, 2]))),
    ("^entries: expected .*, got -1", values(entries=jnp.array([0, -1, 1]))),
    ("^entries: expected integers, got float32", values(entries=ONES(3))),
    (r"^entries: expected shape \[number\], got", values(entries=jnp.array(0))),
    (r"^x: .*1e\+30", lambda: parse_expression("1e30").evaluate(NONE, ONES((2, 1), jnp.float16))),
    ("^number: expected arrays of at", lambda: draw_functions(KEY, LIBRARY, 10**12)),
    ("^dtype: expected a float", lambda: draw_functions(KEY, LIBRARY, 2, dtype=int)),
    ("^x: expected .* 2 columns, got", lambda: curves_at(X, LIBRARY, GENERATOR)),
    (
        "^extensions: expected each at most once",
        lambda: curves_at(X, LIBRARY_1, GENERATOR, extensions=("input", "input")),
    ),
    (r"^apply: .* \[5, latents\], .*\[5\]", lambda: latents(lambda p, x: x[:, 0])),
    (r"^apply\(params, x\): .*got None", lambda: latents(lambda p, x: None)),
    (r"^apply: .* of \(params, x\), got <lambda>", lambda: latents(lambda x: x)),
    ("^hidden: expected a sequence of wid", lambda: mlp_generator(2, 3, hidden=32)),
    ("^embedding: expected a sequence of wid", lambda: critic(4, embedding="64")),
    (r"^alpha: expected shape \[3, 2\], got \[2, 3\]", lambda: dsn_generator(2, 3, alpha=ONES((2, 3)))),
    (
        "^alpha: expected an array of real numbers, got complex",
        lambda: dsn_generator(2, 3, alpha=ONES((3, 2), complex)),
    ),
    (
        r"^params: expected a dict with the entries \['networks', 'alpha'\], got \['alpha'\]",
        lambda: dsn_generator(1, 1).apply({"alpha": ONES((1, 1))}, X),
    ),
    (
        r"^params\[1\]\['w'\]: expected shape \[3, 1\], got \[3, 2\]",
        lambda: dsn_generator(1, 1, hidden=(3,)).apply(
            {"networks": ({"w": ONES((1, 1, 3))}, {"w": ONES((1, 3, 2))}), "alpha": ONES((1, 1))}, X
        ),
    ),
    (
        r"^params\['a'\]: expected shape \[3, 2\], got \[3, 1\]",
        lambda: gaussian_process_generator(1, 2, num_features=3).apply(
            {"a": ONES((3, 1)), "w": ONES((1, 3)), "b": ONES(3)}, X
        ),
    ),
    (r"^dtype: expected a floating-point dtype, got float32\[3\]", lambda: critic(4, dtype=ONES(3))),
    (
        "^params: expected 2 layers, got 1",
        lambda: PLAIN.apply({**PARAMS, "critic": PARAMS["critic"][:1]}, CURVES),
    ),
    (
        r"^params\[1\]\['w'\]: expected shape \[3, 1\], got \[3, 2\]",
        lambda: PLAIN.apply({**PARAMS, "critic": two_outputs(PARAMS["critic"])}, CURVES),
    ),
    ("^params: .*got tuple", lambda: PLAIN.apply(PARAMS["critic"], CURVES)),
    ("^params: expected 2 layers, got 0", lambda: WIDE.apply(PARAMS, ONES((2, 4, 2)))),
    (
        r"^fake: expected shape \[2, 4\], got \[3, 4\]",
        lambda: gradient_penalty(PLAIN, PARAMS, ONES(2), CURVES, ONES((3, 4))),
    ),
    (
        r"^eps: expected shape \[2\], got \[2, 4\]",
        lambda: gradient_penalty(PLAIN, PARAMS, CURVES, CURVES, CURVES),
    ),
    (r"^logits: expected at least one, got shape", lambda: critic_cost(ONES(0))),
    ("^logits: expected a floating", lambda: critic_cost(ONES(2, int))),
    ("^optimizer: expected an optimizer of opt", lambda: critic_step(PLAIN, 0.1)),
    (
        r"^params\['critic'\]\[0\]\['b'\]: expected a floating-point array, got int32",
        lambda: STEP(KEY, CriticState(jax.tree.map(jnp.int32, PARAMS), None), CURVES, CURVES),
    ),
    (
        r"^state.optimizer_state: expected the structure of optimizer.init\(params\)",
        lambda: STEP(KEY, init_critic(KEY, PLAIN, optax.sgd(0.1)), CURVES, CURVES),
    ),
    (r"^real: expected .*got \[2, 5\]", lambda: trained(real=lambda key: ONES((2, 5)))(KEY, STATE)),
    (
        r"^fake: expected a function of a key that returns curves, got <lambda>\(\)",
        lambda: trained(fake=lambda: CURVES),
    ),
    (
        r"^step: expected a function that returns \(CriticState, CriticMetrics\), got None",
        lambda: trained(step=lambda *a: None)(KEY, STATE),
    ),
    ("^state: expected a CriticState, from init_critic, got 'state'", lambda: trained()(KEY, "state")),
    ("^key: expected one key, such as jax.random.key", lambda: trained()(0, STATE)),
    ("^first: expected at least 0, got -1", lambda: trained()(KEY, STATE, -1)),
    ("^first: expected one integer", lambda: trained()(KEY, STATE, 0.5)),
    ("^path: expected a path, got None", lambda: load_library(None)),
]


@pytest.mark.parametrize(("pattern", "call"), CALLS)
def test_bad_input(pattern, call):
    refuses(call, (TypeError, ValueError), pattern)


def test_what_is_converted():
    # An array of NumPy, in a precision that is switched off, and lists are no bad input.
    assert parse_expression("2*X[:,0]").evaluate(NONE, [[1.0], [2.0]]).tolist() == [2, 4]
    assert function_values(LIBRARY, DRAWS, np.ones((4, 2))).dtype == jnp.float32
