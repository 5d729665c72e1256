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
from tests.refusal import each, refusals

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(0)
ONES = jnp.ones

# Formulas.

ANYTHING = "a number, N0, N1, .., U0, U1, .., a column such as X[:,0], one of + - * / ** or one of the "
CHARACTERS = "letters, digits, spaces and _ . + - * / ( ) [ ] , :"
FUNCTION = "one of the functions sin cos tan exp log sqrt abs tanh"
COLUMN = "a column such as X[:,0]"
INDEX = "an index in 0..999 without leading zeros"
DEEP = "at most 100 nested operations"

# The part of a formula that an error shows, in «»: what was expected there. Formulas are two spaces apart.
REFUSED = {
    ANYTHING: "«X»  1 + «y»  «sin»  «1j»  «True»  «...»  «1 // 2»  «N0 and U0»  «N0 if N1 else N2»  "
    "«lambda: 0»  2*«[N0 for N0 in X]»  «await X»  sin(«*X»)  «1, 2»  «N0.real»  «X.__class__»",
    "sin with one argument": "«sin(1, **X)»  «sin()»",
    "exp with one argument": "1+«exp(1, 2)»",
    FUNCTION: "«np.load»(X)  «X.sin»(1)  «np.sin.cos»(1)  «sin(1)»(2)  «__import__»(N0)  («lambda: 0»)()  "
    "sin(tan(«cot»(1)))",
    COLUMN: "«X[0]»  «X[0,:]»  «X[:,-1]»  «X[:,1.0]»  «X[1:,0]»  «X[:1,0]»  «X[::2,0]»  «X[:,0,0]»  "
    "«X[:,N0]»  «Y[:,0]»  «X_1[:,0]»  «().__class__.__bases__[0]»",
    "a column in 0..999": "«X[:,1000]»",
    INDEX: "«N1000»  2 + «U01»",
    "a number of at most 1e+38": "«1e999»  -«1.1e38»",
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
        assert f", got {got}" in str(error) and isinstance(error, ValueError)
        assert (error.file, error.line, error.column) == ("<expression>", 1, column)
    # As much as is allowed.
    for source in ("+".join(["1"] * 100), "-" * 99 + "1", " " * 20_000 + "1" * 9 + " " * 9):
        assert isinstance(sy.parse_expression(source), sy.Expression)
    # Python 3.13 parses what is too deep for 3.11 and 3.12.
    with pytest.raises(sy.ExpressionError, match=rf"^<expression>:1:1: expected ({DEEP}|a number, )"):
        sy.parse_expression("X" + ".a" * 4_900)


# Whatever the text is.

WORDS = [
    *"019.ej_NUX()[]:,+-*/#'=@{} \t\n;\\\x00é",
    *["N0", "U1", "X10", "X[:,0]", "[:,1]", "**", "//", "np.", "jnp.", "sin", "cos(", "exp(", "abs"],
    *["lambda", "if", "else", "for", "in", "not", "and", "or", "is", "await", "None", "True", "__class__"],
]


@settings(deadline=None, derandomize=True, database=None, max_examples=25)
@given(st.text() | st.lists(st.sampled_from(WORDS)).map("".join))
@example("1if 1else 2")
@example("0x1for X in N")
@example("1 is 1")
@example("1()")
@example("1[:,0]")
def test_any_text(text):
    """Either a result or an error with a place inside the text, and no warning."""
    for parse, kind in ((sy.parse_expression, sy.Expression), (sy.parse_library, sy.Library)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                assert isinstance(parse(text), kind)
            except sy.ExpressionError as error:
                assert 1 <= error.line <= text.count("\n") + 1 and 1 <= error.column <= len(text) + 1
                place = rf"<\w+>:{error.line}:{error.column}: expected .+, got "
                assert re.match(place, str(error), re.DOTALL)


def test_nothing_is_run(monkeypatch):
    """Only syntax trees are made, also where the text would be valid Python."""
    compiled, flags = builtins.compile, []

    def only_trees(source, filename, mode, given=0, *args, **options):
        flags.append(given)
        return compiled(source, filename, mode, given, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "compile", only_trees)
        for name in ("eval", "exec", "open"):
            patched.setattr(builtins, name, lambda *of, **options: pytest.fail("something was run"))
        for attack in ("__import__('os').abort()", "open('a')", "np.sin.__globals__[N0] + exec(N0)"):
            with pytest.raises(sy.ExpressionError):
                sy.parse_expression(attack)
        sy.parse_expression("-6*U0*5*N0*np.sin(6*U0*X07[:,1])")
    assert flags and all(given & 0x400 for given in flags)  # ast.PyCF_ONLY_AST


# Libraries.

WRONG = "expected the derivative w.r.t. column 0, "
LIBRARIES = {
    " \n\t\r\n": ("1:1", "expected 1 to 10000 functions, got 0"),
    "1\n\n N0 + N00": ("3:7", f"expected {INDEX}, got 'N00'"),
    "X[:,0]; 1 + one": ("1:13", f"expected {ANYTHING}"),
    ";1": ("1:1", "expected a formula, got ''"),
    "X[:,0]*X[:,1];X[:,1]": ("1:1", "expected 2 derivatives, one per column, got 1"),
    "X[:,0]\nX[:,0]**2;-X[:,0]": ("2:11", WRONG + "10.956935 at [5.478467], got -5.4784675"),
    "2*X[:,0];2.000003": ("1:10", WRONG + "2 at [5.478467], got 2.000003"),
    "X[:,0]*X[:,1]; X[:,1]; X[:,1]": ("1:24", "expected the derivative w.r.t. column 1, "),
    "exp(exp(X[:,0])) + X[:,0];exp(exp(X[:,0]) + X[:,0])": ("1:27", WRONG),
    "1e12 + X[:,0];2": ("1:15", WRONG),  # blind beside the value
    "abs(X[:,0] - 5);-1": ("1:17", WRONG),  # right near 0 alone
    "log(-1 - X[:,0]**2);2*X[:,0]/(1 + X[:,0]**2)": ("1:21", WRONG + "got no point where"),
}


def test_libraries():
    for text, (place, problem) in LIBRARIES.items():
        with pytest.raises(sy.ExpressionError) as raised:
            sy.parse_library(text)
        error = raised.value
        assert str(error).startswith(f"<library>:{place}: {problem}") and ", got " in str(error)
        assert place == f"{error.line}:{error.column}"


# Arrays.

LIBRARY, ONE_COLUMN = sy.parse_library("N0*X[:,0]**2 + U1\nX[:,1]"), sy.parse_library("X[:,0]")
DRAWS = sy.FunctionDraws(np.array([0, 1, 0]), sy.Coefficients(ONES((3, 2)), ONES((3, 2))))
X = np.linspace(-1, 1, 5, dtype=np.float32)[:, None]
PLAIN, WIDE = (sy.critic(4, hidden=(3,), channels=channels, embedding=(3,)) for channels in (1, 2))
CURVES, ADAM = ONES((2, 4)), optax.adam(0.1)
MAKERS: Any = (sy.mlp_generator, sy.dsn_generator, sy.gaussian_process_generator)


def params_of(of: Any) -> Any:
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), jax.eval_shape(of.init, KEY))


PARAMS = params_of(PLAIN)
STEP, STATE = sy.critic_step(PLAIN, ADAM), sy.CriticState(PARAMS, None)
evaluate, values_at = sy.parse_expression("N1*X[:,1]").evaluate, partial(sy.function_values, LIBRARY, DRAWS)
TWO_SETS = [partial(STEP, KEY, STATE), partial(sy.gradient_penalty, PLAIN, PARAMS, ONES(2))]
SCORES = (sy.critic_loss, sy.critic_accuracy, sy.area_under_curve)
TAKING = {
    "x": [
        *(values_at, jax.jit(values_at), partial(evaluate, sy.Coefficients(ONES(2), ONES(2)))),
        lambda x: sy.curves_at(x, ONE_COLUMN, sy.mlp_generator(1, 3, hidden=(4,))),
        *(partial(made.apply, params_of(made)) for made in (make(2, 3) for make in MAKERS)),
    ],
    "curves": [partial(PLAIN.apply, PARAMS)],
    "real": [lambda wrong, call=call: call(wrong, CURVES) for call in TWO_SETS],
    "fake": [partial(call, CURVES) for call in TWO_SETS],
    "logits_real": [lambda wrong, score=score: score(wrong, ONES(2)) for score in SCORES],
    "logits_fake": [partial(score, ONES(2)) for score in SCORES],
}


def rows(names: str, expected: str, *values: Any) -> dict[str, Any]:
    return {
        f"^{name}: expected {expected}, got": [call for use in TAKING[name] for call in each(use, *values)]
        for name in names.split()
    }


curves, logits = "curves real fake", "logits_real logits_fake"
at_x, A = partial(sy.curves_at, X), sy.mlp_generator(1, 3)
gaussian, dsn = sy.gaussian_process_generator(1, 2, num_features=3), partial(sy.dsn_generator, 2, 3)


def values(**changed: Any) -> Any:
    return partial(sy.function_values, LIBRARY, DRAWS._replace(**changed), ONES((5, 2)))


def latents(apply: Any) -> Any:
    return partial(at_x(ONE_COLUMN, A).latents, apply, {})


def trained(step: Any = STEP, real: Any = lambda key: CURVES) -> Any:
    return sy.train_critic(step, real, lambda key: CURVES, num_epochs=1, iterations=1)


test_arrays = refusals(
    values={
        **rows("x", ".*", *map(ONES, [(5,), (), (0, 2), (2, 5, 2), (5, 0)])),
        **rows(curves, r"shape \[number > 0, 4\]", *map(ONES, [(2, 5), (4,), (), (2, 4, 1), (0, 4)])),
        r"^curves: expected shape \[number > 0, 4, 2\], got \[2, 4\]": partial(WIDE.apply, PARAMS, CURVES),
        **rows(logits, r"shape \[number > 0\]", *map(ONES, [(), (2, 1), (0,)])),
        r"^fake: expected shape \[2, 4\], got \[3, 4\]": partial(TAKING["fake"][1], ONES((3, 4))),
        "^x: expected a dtype that holds the number 100000, got float16": partial(
            sy.parse_expression("1e5").evaluate, sy.Coefficients(ONES(0), ONES(0)), ONES((1, 1), "float16")
        ),
        r"^coefficients.normal: .* 2\], got": values(coefficients=sy.Coefficients(*[ONES((3, 1))] * 2)),
        "^entries: expected .* 0..1, got 2": values(entries=np.array([0, 1, 2])),
        r"^entries: expected shape \[number\], got": values(entries=np.array(0)),
        "^number: expected arrays of at": partial(sy.draw_functions, KEY, LIBRARY, 10**12),
        "^widths of the layers: expected arrays of at": partial(sy.mlp_generator, 1, 10**12),
        "^x: expected .* at least 2 columns, got": partial(at_x, LIBRARY, A),
        "^x: expected .* exactly 2 columns, got": [partial(use, ONES((5, 3))) for use in TAKING["x"][4:]],
        "^extensions: expected each at most": partial(at_x, ONE_COLUMN, A, extensions=("input", "input")),
        r"^apply: .* \[5, latents\], .*\[5\]": latents(lambda p, x: x[:, 0]),
        r"^alpha: expected shape \[3, 2\], got \[2, 3\]": partial(dsn, alpha=ONES((2, 3))),
        r"^params: .*the entries \['networks', 'alpha'\], got": partial(sy.dsn_generator(1, 1).apply, {}, X),
        r"^params\['a'\]: expected shape \[3, 2\], got \[3, 1\]": partial(
            gaussian.apply, {"a": ONES((3, 1)), "w": ONES((1, 3)), "b": ONES(3)}, X
        ),
        "^params: expected 2 layers, got 0": partial(PLAIN.apply, {**PARAMS, "critic": ()}, CURVES),
        "^state.optimizer_state: expected the structure of": partial(STEP, KEY, STATE, CURVES, CURVES),
        r"^real: expected .*got \[2, 5\]": partial(trained(real=lambda key: ONES((2, 5))), KEY, STATE),
        "^first: expected at least 0, got -1": partial(trained(), KEY, STATE, -1),
    },
    types={
        **rows("x", "(a float.*|.* real numbers)", *(ONES((5, 2), dtype) for dtype in (int, bool, complex))),
        **rows(curves, "a floating-point array", ONES((2, 4), int)),
        **rows(logits, "a floating-point array", ONES(2, int)),
        "^coefficients: expected Coefficients": partial(evaluate, None, ONES((5, 2))),
        "^entries: expected integers, got float32": values(entries=ONES(3)),
        r"^apply\(params, x\): .*got None": latents(lambda p, x: None),
        "^alpha: expected an array of real numbers, got complex": partial(dsn, alpha=ONES((3, 2), complex)),
        r"^params\['critic'\]\[0\]\['b'\]: expected a float.*got int": partial(
            STEP, KEY, sy.CriticState(jax.tree.map(np.int32, PARAMS), None), CURVES, CURVES
        ),
        "^step: expected a function that returns .*got None": partial(
            trained(step=lambda *a: None), KEY, STATE
        ),
        "^state: expected a CriticState, from init_critic, got 'state'": partial(trained(), KEY, "state"),
    },
)
