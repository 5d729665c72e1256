"""Bad input to all of `symbolic`: as in `test_bad_input`, the errors that a user sees; no formula is run."""

# pyright: reportArgumentType=false

import builtins
import re
import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import lax_learning.symbolic as sy
from lax_learning.symbolic.formulas import Formula
from tests.refusal import each, refusals, refuses

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(0)
ONES = jnp.ones

# Formulas.

ANYTHING = "a number, N0, N1, .., U0, U1, .., a column as X[:,0], one of + - * / ** or one of the functions"
CHARACTERS = "letters, digits, spaces and _ . + - * / ( ) [ ] , :"
FUNCTION = "one of the functions sin cos tan exp log sqrt abs tanh"
COLUMN = "a column as X[:,0]"
INDEX = "an index of 0..999 without leading zeros"
DEEP = "at most 100 nested operations"

# The part of a formula that an error shows, in «»: what was expected there. Formulas are two spaces apart.
REFUSED = {
    ANYTHING: "«X»  1 + «y»  «sin»  «1j»  «True»  «...»  «1 // 2»  «N0 and U0»  «N0 if N1 else N2»  "
    "«lambda: 0»  2*«[N0 for N0 in X]»  «await X»  sin(«*X»)  «1, 2»  «N0.real»  «X.__class__»",
    "sin of one argument": "«sin(**X)»  «sin()»",
    "exp of one argument": "1+«exp(1, 2)»",
    FUNCTION: "«np.load»(X)  «X.sin»(1)  «np.sin.cos»(1)  «sin(1)»(2)  «__import__»(N0)  («lambda: 0»)()  "
    "sin(tan(«cot»(1)))",
    COLUMN: "«X[0]»  «X[0,:]»  «X[:,-1]»  «X[:,1.0]»  «X[1:,0]»  «X[:1,0]»  «X[::2,0]»  «X[:,0,0]»  "
    "«X[:,N0]»  «Y[:,0]»  «X_1[:,0]»  «().__class__.__bases__[0]»",
    "a column of 0..999": "«X[:,1000]»",
    INDEX: "«N1000»  2 + «U01»",
    "a number of at most 1e+38": "«1e999»  -«1e39»",
    CHARACTERS: "1 «%» 2  (N0 :«=» 1)  sin(x«=»1)  1 «#» one  1«\n»+ 1  1«\\»  «\x00»1  1 + «é»  "
    "«\uff2e»0  «\ud800»  «'»text'  __import__(«'»os')  N0 «@» N1  1 «<» 2  «~»1  2 «^» 3  «{»1: 2}  1«;»2",
    # Where Python's own parser gives up: it may say so at another place in another release.
    "a formula": "«»  1 +«»  1 «2»  sin«(X[:,0]»  «1if 1else 2»  «0777»  «import os»",
}
# The column of the error, what was expected, and how what came begins.
LONG = {
    "N" + "9" * 9000: (1, INDEX, "'N999999999"),
    "+".join(["1"] * 102): (1, DEEP, "more"),
    "sin(" * 100 + "1" + ")" * 100: (401, DEEP, "more"),
    "(" * 5_000: (201, "a formula", "'((((("),
    "1" * 10_001: (1, "at most 10000 characters", "10001"),
}


def test_formulas():
    cases = dict(LONG)
    for expected, sources in REFUSED.items():
        for source in sources.split("  "):
            before, got, _ = re.split("[«»]", source)
            cases[re.sub("[«»]", "", source)] = (len(before) + 1, expected, repr(got))
    for source, (column, expected, got) in cases.items():
        with pytest.raises(sy.ExpressionError) as raised:
            sy.parse_expression(source)
        error = raised.value
        assert str(error).startswith(f"<expression>:1:{column}: expected {expected}"), source[:40]
        assert f", got {got}" in str(error)
        assert (error.file, error.line, error.column) == ("<expression>", 1, column)
        assert isinstance(error, ValueError)


def test_as_much_as_is_allowed():
    for source in ("+".join(["1"] * 100), "-" * 99 + "1", " " * 20_000 + "1" * 9 + " " * 9):
        assert isinstance(sy.parse_expression(source), sy.Expression)
    # Python 3.13 parses what is too deep for 3.11 and 3.12.
    with pytest.raises(sy.ExpressionError, match=rf"^<expression>:1:1: expected ({DEEP}|a number, )"):
        sy.parse_expression("X" + ".a" * 4_900)


# Whatever the text is.

FUZZ = settings(deadline=None, derandomize=True, database=None, max_examples=100)
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
        except sy.ExpressionError as error:
            result = error
            lines = text.split("\n")
            assert 1 <= error.line <= len(lines) and 1 <= error.column <= len(text) + 1
            assert re.match(rf"<\w+>:{error.line}:{error.column}: expected .+, got ", str(error), re.DOTALL)
    assert not caught
    return result


@FUZZ
@given(st.text() | st.lists(st.sampled_from([*WORDS, "\n", ";"])).map("".join))
@example("1if 1else 2")
@example("0x1for X in N")
@example("1 is 1")
@example("1()")
@example("1[:,0]")
def test_any_text(text):
    assert isinstance(outcome(sy.parse_expression, text), sy.Expression | sy.ExpressionError)
    assert isinstance(outcome(sy.parse_library, text), sy.Library | sy.ExpressionError)


QUADRATIC = "N0*0.05*(X10[:,0] + 0.5*N1)**2 + 0.15*N2"
VALID = [QUADRATIC, "-6*U0*5*N0*np.sin(6*U0*X07[:,1])", "N*3.0*X09[:,1]*np.exp(2*U*0.5*X09[:,1])/abs(-2)"]


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
    assert [type(result) for result in results] == [sy.ExpressionError] * 6 + [tuple] * 3
    assert made and all(flags & 0x400 for _, flags in made)  # ast.PyCF_ONLY_AST
    assert not target.exists()


# Libraries.

WRONG = "expected the derivative by column 0, "


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        (" \n\t\r\n", "1:1", "expected a function, got none"),
        ("1\n\n N0 + N00", "3:7", f"expected {INDEX}, got 'N00'"),
        ("X[:,0]; 1 + one", "1:13", f"expected {ANYTHING}"),
        (";1", "1:1", "expected a formula, got ''"),
        ("X[:,0]*X[:,1];X[:,1]", "1:1", "expected 2 derivatives, one a column, got 1"),
        ("X[:,0]\nX[:,0]**2;X[:,0]", "2:11", WRONG),
        ("2*X[:,0];2.000003", "1:10", WRONG),
        ("1000*sin(U0*X[:,0]);1000*U0*cos(1.00001*U0*X[:,0])", "1:21", WRONG),
        ("exp(exp(X[:,0])) + X[:,0];exp(exp(X[:,0]) + X[:,0])", "1:27", WRONG),
        ("1e12 + X[:,0];2", "1:15", WRONG),  # blind beside the value
        ("abs(X[:,0] - 5);-1", "1:17", WRONG),  # right near 0 alone
        ("log(-1 - X[:,0]**2);2*X[:,0]/(1 + X[:,0]**2)", "1:21", WRONG + "got no point where"),
    ],
)
def test_libraries(text, place, problem):
    with pytest.raises(sy.ExpressionError) as raised:
        sy.parse_library(text)
    error = raised.value
    assert str(error).startswith(f"<library>:{place}: {problem}") and ", got " in str(error)
    assert place == f"{error.line}:{error.column}"


def test_values_of_a_wrong_derivative():
    pattern = r"^<library>:1:11: expected the derivative by column 0, (\S+) at \[(\S+)\], got (\S+)$"
    with pytest.raises(sy.ExpressionError, match=pattern) as raised:
        sy.parse_library("X[:,0]**2;-X[:,0]")
    match = re.match(pattern, str(raised.value))
    assert match is not None
    exact, x, written = map(float, match.groups())
    np.testing.assert_allclose([exact, written], [2 * x, -x], rtol=1e-4)


def test_files(tmp_path):
    path = tmp_path / "functions.lib"
    path.write_bytes(b"X[:,0]\n\xff\xfe")
    refuses(lambda: sy.load_library(path), ValueError, f"^{path}: expected UTF-8 text, got ")
    path.write_bytes(b"")
    refuses(lambda: sy.load_library(path), sy.ExpressionError, f"^{path}:1:1: expected a function, got none")
    with pytest.raises(FileNotFoundError):
        sy.load_library(tmp_path / "none.lib")


# Numbers and choices.

LIBRARY, ONE_COLUMN = sy.parse_library("N0*X[:,0]**2 + U1\nX[:,1]"), sy.parse_library("X[:,0]")
DRAWS = sy.draw_functions(KEY, LIBRARY, 3)
X = jnp.linspace(-1, 1, 5)[:, None]
PLAIN, WIDE = sy.critic(4, hidden=(3,)), sy.critic(4, hidden=(3,), channels=2, embedding=(3,))
PARAMS, CURVES, ADAM = PLAIN.init(KEY), ONES((2, 4)), optax.adam(0.1)
STEP, STATE = sy.critic_step(PLAIN, ADAM), sy.init_critic(KEY, PLAIN, ADAM)
GENERATOR = sy.mlp_generator(1, 3, hidden=(4,))
MAKERS: Any = (sy.mlp_generator, sy.dsn_generator, sy.gaussian_process_generator)


def curves(key):
    return CURVES


def trained(step=STEP, real=curves, fake=curves, **options):
    return sy.train_critic(step, real, fake, **{"num_epochs": 1, "iterations": 1, **options})


def at_x(**options):
    return sy.curves_at(X, ONE_COLUMN, GENERATOR, **options)


COUNTS = {
    "num_points": [sy.critic],
    "channels": [lambda value: sy.critic(4, channels=value)],
    "hidden[1]": [lambda value: sy.critic(4, hidden=(3, value))],
    "iterations": [lambda value: trained(iterations=value)],
    "num_epochs": [lambda value: trained(num_epochs=value)],
    "num_latents": [partial(make, 2) for make in MAKERS],
}
WEIGHTS = {
    "penalty: expected a finite number >=": [lambda value: sy.critic_step(PLAIN, ADAM, penalty=value)],
    "prune: expected a finite number >=": [lambda value: sy.dsn_generator(2, 3, prune=value)],
    "scale: expected a finite number >": [lambda value: sy.gaussian_process_generator(2, 3, scale=value)],
    "length_scale: expected a finite number >": [
        lambda value: sy.gaussian_process_generator(2, 3, length_scale=value)
    ],
}
CHOICES = {
    "objective": [
        lambda value: sy.critic_loss(ONES(2), ONES(2), objective=value),
        lambda value: sy.critic_step(PLAIN, ADAM, objective=value),
    ],
    "cost": [lambda value: sy.critic_cost(ONES(2), cost=value)],
    "extensions[1]": [lambda value: at_x(extensions=("input", value))],
    "norm": [lambda value: sy.dsn_generator(2, 3, norm=value)],
}


def bound(table, pattern, *values):
    """Rows of all uses in a table, with each of the values."""
    return {
        f"^{re.escape(name)}{pattern}": [call for use in uses for call in each(use, *values)]
        for name, uses in table.items()
    }


test_numbers_and_choices = refusals(
    values={
        **bound(COUNTS, ": expected .*got [0-]", 0, -1),
        **bound(WEIGHTS, " 0, got", -0.1, np.nan, np.inf, "0.1", None, True, ONES(2)),
        **bound(CHOICES, ": expected one of .*got", "BCE", None, 3, ONES(2)),
    },
    types=bound(COUNTS, ": expected .*got", 2.0, True, "2"),
)

# Arrays.


def on_points(x):
    """All that takes points."""

    def applied(make):
        generator = make(2, 3)
        return generator.apply(jax.eval_shape(generator.init, KEY), x)

    return [
        lambda: sy.function_values(LIBRARY, DRAWS, x),
        lambda: jax.jit(lambda x: sy.function_values(LIBRARY, DRAWS, x))(x),
        lambda: sy.parse_expression("N1*X[:,1]").evaluate(sy.Coefficients(ONES(2), ONES(2)), x),
        lambda: sy.curves_at(x, ONE_COLUMN, GENERATOR),
        *(lambda make=make: applied(make) for make in MAKERS),
    ]


def on_curves(wrong, judge=PLAIN):
    """All that takes curves, by the name under which it takes them."""
    params, good = judge.init(KEY), ONES((2, *judge.curve_shape))
    state = sy.init_critic(KEY, judge, ADAM)
    rows = {"curves": [lambda: judge.apply(params, wrong)]}
    for name, pair in {"real": (wrong, good), "fake": (good, wrong)}.items():
        rows[name] = [
            lambda pair=pair: sy.critic_step(judge, ADAM)(KEY, state, *pair),
            lambda pair=pair: sy.gradient_penalty(judge, params, ONES(2), *pair),
        ]
    return rows


def on_logits(wrong):
    scores = (sy.critic_loss, sy.critic_accuracy, sy.area_under_curve)
    return {
        "logits_real": [partial(score, wrong, ONES(2)) for score in scores],
        "logits_fake": [partial(score, ONES(2), wrong) for score in scores],
    }


def named(pattern, *tables):
    """Rows of calls by name, with the name in front of a pattern."""
    return {
        f"^{name}: expected {pattern}": [call for table in tables for call in table[name]]
        for name in tables[0]
    }


test_arrays = refusals(
    values={
        r"^x: expected .*, got .*\[": [
            call for shape in [(5,), (), (0, 2), (2, 5, 2), (5, 0)] for call in on_points(ONES(shape))
        ],
        **named(r"shape \[number, 4\], got \[", *(on_curves(ONES(s)) for s in [(2, 5), (4,), (), (2, 4, 1)])),
        **named(
            r"shape \[number, 4, 2\], got \[2, 4", on_curves(ONES((2, 4, 3)), WIDE), on_curves(CURVES, WIDE)
        ),
        **named(r"at least one curve, got shape \[0, 4\]", on_curves(ONES((0, 4)))),
        **named(
            r"shape \[number\] .* at least one entry, got \[",
            *(on_logits(ONES(shape)) for shape in [(), (2, 1), (0,)]),
        ),
        r"^fake: expected shape \[2, 4\], got \[3, 4\]": lambda: sy.gradient_penalty(
            PLAIN, PARAMS, ONES(2), CURVES, ONES((3, 4))
        ),
    },
    types={
        "^x: expected (a floating-point array|an array of real numbers), got ": [
            call for dtype in (int, bool, complex) for call in on_points(ONES((5, 2), dtype))
        ],
        **named("a floating-point array, got int32", on_curves(ONES((2, 4), int))),
        **named("a floating-point array, got int32", on_logits(ONES(2, int))),
    },
)

# Everything else.

NONE = sy.Coefficients(np.zeros(0, np.float32), np.zeros(0, np.float32))
FEW = r"^coefficients\."


def values(**changed):
    return lambda: sy.function_values(LIBRARY, DRAWS._replace(**changed), ONES((5, 2)))


def coefficients(normal, uniform):
    return values(coefficients=sy.Coefficients(normal, uniform))


def latents(apply):
    return lambda: at_x().latents(apply, {})


def of_critic(params, judge=PLAIN):
    return lambda: judge.apply(params, ONES((2, *judge.curve_shape)))


test_values_and_params = refusals(
    values={
        FEW + r"normal: .*>= 2\], got \[3, 1\]": coefficients(ONES((3, 1)), ONES((3, 2))),
        "^entries: expected .* 0..1, got 2": values(entries=jnp.array([0, 1, 2])),
        r"^entries: expected shape \[number\], got": values(entries=jnp.array(0)),
        "^number: expected arrays of at": lambda: sy.draw_functions(KEY, LIBRARY, 10**12),
        "^x: expected .* 2 columns, got": lambda: sy.curves_at(X, LIBRARY, GENERATOR),
        "^extensions: expected each at most once": lambda: at_x(extensions=("input", "input")),
        r"^apply: .* \[5, latents\], .*\[5\]": latents(lambda p, x: x[:, 0]),
        r"^alpha: expected shape \[3, 2\], got \[2, 3\]": lambda: sy.dsn_generator(2, 3, alpha=ONES((2, 3))),
        r"^params: expected a dict with the entries \['networks', 'alpha'\], got \['alpha'\]": (
            lambda: sy.dsn_generator(1, 1).apply({"alpha": ONES((1, 1))}, X)
        ),
        r"^params\['a'\]: expected shape \[3, 2\], got \[3, 1\]": (
            lambda: sy.gaussian_process_generator(1, 2, num_features=3).apply(
                {"a": ONES((3, 1)), "w": ONES((1, 3)), "b": ONES(3)}, X
            )
        ),
        "^params: expected 2 layers, got 1": of_critic({**PARAMS, "critic": PARAMS["critic"][:1]}),
        r"^state.optimizer_state: expected the structure of optimizer.init\(params\)": lambda: STEP(
            KEY, sy.init_critic(KEY, PLAIN, optax.sgd(0.1)), CURVES, CURVES
        ),
        r"^real: expected .*got \[2, 5\]": lambda: trained(real=lambda key: ONES((2, 5)))(KEY, STATE),
        "^first: expected at least 0, got -1": lambda: trained()(KEY, STATE, -1),
    },
    types={
        "^coefficients: expected Coefficients": lambda: sy.parse_expression("1").evaluate(None, X),
        "^entries: expected integers, got float32": values(entries=ONES(3)),
        "^dtype: expected a float": lambda: sy.draw_functions(KEY, LIBRARY, 2, dtype=int),
        r"^apply\(params, x\): .*got None": latents(lambda p, x: None),
        "^hidden: expected a sequence of wid": lambda: sy.mlp_generator(2, 3, hidden=32),
        "^alpha: expected an array of real numbers, got complex": lambda: sy.dsn_generator(
            2, 3, alpha=ONES((3, 2), complex)
        ),
        "^optimizer: expected an optimizer of opt": lambda: sy.critic_step(PLAIN, 0.1),
        r"^params\['critic'\]\[0\]\['b'\]: expected a floating-point array, got int32": lambda: STEP(
            KEY, sy.CriticState(jax.tree.map(jnp.int32, PARAMS), None), CURVES, CURVES
        ),
        r"^fake: expected a function of a key that returns curves, got <lambda>\(\)": lambda: trained(
            fake=lambda: CURVES
        ),
        r"^step: expected a function that returns \(CriticState, CriticMetrics\), got None": lambda: trained(
            step=lambda *a: None
        )(KEY, STATE),
        "^state: expected a CriticState, from init_critic, got 'state'": lambda: trained()(KEY, "state"),
    },
)


def test_what_is_converted():
    # An array of NumPy, in a precision that is switched off, and lists are no bad input.
    assert sy.parse_expression("2*X[:,0]").evaluate(NONE, [[1.0], [2.0]]).tolist() == [2, 4]
    assert sy.function_values(LIBRARY, DRAWS, np.ones((4, 2))).dtype == jnp.float32
