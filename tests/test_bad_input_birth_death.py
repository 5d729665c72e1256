"""Bad input to neuron birth-death: as in `test_bad_input`, the errors that a user sees."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning
from tests.refusal import parametrize_cases, refuses

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

# What a type checker would refuse is asked for here.
bd: Any = lax_learning.birth_death
planted: Any = lax_learning.data.planted

KEY = jax.random.key(0)
PARAMS: Any = {"w": np.ones((4, 3), np.float32), "b": np.ones(3, np.float32), "c": np.ones(4, np.float32)}
AXES: Any = {"w": 0, "b": None, "c": 0}
RATES, FOUR = np.ones(4, np.float32), np.arange(4)
NAN, INF = float("nan"), float("inf")


def make(alpha: Any = 1.0, axes: Any = AXES, **options: Any) -> Any:
    options.setdefault("charges", lambda params: params["c"])
    return bd.dynamics(alpha, axes=axes, **options)


STATE = make().init(PARAMS)


def update(
    params: Any = PARAMS, gradients: Any = None,
    state: Any = STATE, key: Any = KEY, rates: Any = RATES, **of: Any
):  # fmt: skip
    return lambda: make(**of).update(key, params, state, gradients, rates=rates)


def init(params: Any = PARAMS, **options: Any):
    return lambda: make(**options).init(params)


def follow(state: Any = PARAMS, origin: Any = FOUR, axes: Any = AXES, **options: Any):
    return lambda: bd.follow(state, origin, PARAMS, axes, **options)


def by(**gradients: Any):
    return update(gradients={**PARAMS, **gradients}, rates=None)


def test_options():
    for alpha in (-1, -0.1, NAN, INF, -INF, "1", None, True, np.ones(2), KEY):
        refuses(lambda a=alpha: make(a), ValueError, "^alpha: expected a finite number >= 0, got")
    for alpha in (0, 1, np.float32(0.5), jnp.array(2.0)):
        make(alpha)
    for value in ("unknown", "", None, True, ["clone"]):
        for name in ("scheme", "center", "probability", "charge", "slots"):
            refuses(
                lambda n=name, v=value: make(**{n: v}), ValueError, rf"^{name}: expected one of \[.*\], got"
            )
        refuses(follow(copies=value), ValueError, r"^copies: expected one of \[.*\], got")


ONE_SIZE = "^params: expected neuron axes of one size, got"
STRUCTURE = "^axes: expected the structure of params, .*, got"
AXIS_OF: dict[str, tuple[Any, type[Exception], str]] = {
    "2": ({**AXES, "w": 2}, ValueError, r"^params\['w'\]: expected a neuron axis 2, got shape \[4, 3\]"),
    "-3": ({**AXES, "w": -3}, ValueError, r"^params\['w'\]: expected a neuron axis -3, got shape \[4, 3\]"),
    "1 of c": ({**AXES, "c": 1}, ValueError, r"^params\['c'\]: expected a neuron axis 1, got shape \[4\]"),
    "text": ({**AXES, "w": "0"}, TypeError, r"^axes: expected an int or None for params\['w'\], got '0'"),
    "float": ({**AXES, "w": 0.0}, TypeError, r"^axes: expected an int or None for params\['w'\], got 0.0"),
    "flag": ({**AXES, "c": True}, TypeError, r"^axes: expected an int or None for params\['c'\], got True"),
    "all None": (dict.fromkeys(AXES), ValueError, "^axes: expected a neuron axis for at least one.*got None"),
    "other size": ({**AXES, "w": 1}, ValueError, ONE_SIZE + ".*'w'.*: 3"),
    "b": ({**AXES, "b": 0}, ValueError, ONE_SIZE + ".*'b'.*: 3"),
    "fewer": ({"w": 0, "c": 0}, ValueError, STRUCTURE),
    "more": ({**AXES, "d": 0}, ValueError, STRUCTURE),
    "tuple": ((0, None, 0), ValueError, STRUCTURE),
    "nested": ({**AXES, "w": {"w": 0}}, ValueError, STRUCTURE),
    "number": (0, ValueError, STRUCTURE),
    "None": (None, ValueError, STRUCTURE),
}


@pytest.mark.parametrize("name", AXIS_OF)
def test_axes(name):
    axes, error, pattern = AXIS_OF[name]
    for call in (init(axes=axes), update(axes=axes), follow(axes=axes)):
        refuses(call, error, pattern)


@pytest.mark.parametrize("name", PARAMS)
@pytest.mark.parametrize("dtype", [np.int32, bool])
def test_params(name, dtype):
    params = {**PARAMS, name: PARAMS[name].astype(dtype)}
    for call in (init(params), update(params)):
        refuses(call, TypeError, rf"^params\['{name}'\]: expected a floating-point array, got")


PICKS = "^charges: expected a function that picks leaves of params with a neuron axis, .*got "


@pytest.mark.parametrize(
    "picked", [lambda p: (), lambda p: None, lambda p: p["b"], lambda p: (p["c"], p["b"]), lambda p: p]
)
def test_charges(picked):
    for call in (update(charges=picked), update(charges=picked, gradients=PARAMS, rates=None)):
        refuses(call, ValueError, PICKS + "one that")


GRADIENTS = "^gradients: expected the structure of params, .*, got"


def prior(**leaves: Any):
    return update(scheme="prior", prior=lambda key, params: {**params, **leaves})


@parametrize_cases(
    {
        "scalar": (
            init({**PARAMS, "c": np.float32(1)}), ValueError,
            r"^params\['c'\]: expected a neuron axis 0, got shape \[\]",
        ),
        "fewer charges": (init({**PARAMS, "c": RATES[:3]}), ValueError, ONE_SIZE),
        "nobody": (
            init({"w": np.ones((0, 3)), "b": RATES, "c": RATES[:0]}), ValueError,
            "^number of neurons: expected at least 1, got 0",
        ),
        "other params": (update({"w": PARAMS["w"], "c": RATES}), ValueError, STRUCTURE),
        "axis of None": (
            init({**PARAMS, "d": None}, axes={**AXES, "d": 0}), ValueError,
            r"^axes\['d'\]: expected None, as params have no array there, got 0",
        ),
        "computed charges": (
            init(charges=lambda p: 2 * p["c"]), ValueError, PICKS + "one that computes with them"
        ),
        "charges": (lambda: make(charges=None), TypeError, PICKS + "None"),
        "charges of nothing": (lambda: make(charges=lambda: 1), TypeError, PICKS + r"<lambda>\(\)"),
        "charges that are not there": (
            init(charges=lambda p: p["out"]), ValueError, PICKS + r"one that raises KeyError\('out'\)"
        ),
        "neither": (update(rates=None), ValueError, "^gradients, rates: expected one of them, got none"),
        "both": (update(gradients=PARAMS), ValueError, "^gradients, rates: .*, got both"),
        "too few": (update(rates=RATES[:3]), ValueError, r"^rates: expected shape \[4\], got \[3\]"),
        "too many": (update(rates=np.ones(5)), ValueError, r"^rates: expected shape \[4\], got \[5\]"),
        "scalar rates": (update(rates=1.0), ValueError, r"^rates: expected shape \[4\], got \[\]"),
        "matrix": (update(rates=RATES[:, None]), ValueError, r"^rates: expected shape \[4\], got \[4, 1\]"),
        "integer": (update(rates=np.ones(4, int)), TypeError, "^rates: expected a floating.*, got int32"),
        "bool": (update(rates=np.ones(4, bool)), TypeError, "^rates: expected a floating.*, got bool"),
        "fewer gradients": (update(gradients={"c": RATES}, rates=None), ValueError, GRADIENTS),
        "more gradients": (by(d=RATES), ValueError, GRADIENTS),
        "None of gradients": (by(w=None), ValueError, GRADIENTS),
        "tuple of gradients": (update(gradients=(*PARAMS.values(),), rates=None), ValueError, GRADIENTS),
        "array of gradients": (update(gradients=RATES, rates=None), ValueError, GRADIENTS),
        "column": (by(c=RATES[:, None]), ValueError, r"^gradients\['c'\]: .* \[4\].*got \[4, 1\]"),
        "scalar gradient": (by(c=np.ones(())), ValueError, r"^gradients\['c'\]: .* \[4\].*got \[\]"),
        "turned": (by(w=np.ones((3, 4))), ValueError, r"^gradients\['w'\]: .* \[4, 3\].*got \[3, 4\]"),
        "integer gradients": (
            by(w=np.ones((4, 3), np.int32)), TypeError, r"^gradients\['w'\]: expected a floating.*got int32"
        ),
        "draws of another length": (
            update(draws=lambda key, n: bd.draws(key, 3)), ValueError,
            r"^draws.kill: expected shape \[4\], got \[3\]",
        ),
        "draws": (
            update(draws=lambda key, n: (RATES,) * 4), TypeError,
            "^draws: expected a function that returns Draws, got tuple",
        ),
        "arguments of draws": (
            lambda: make(draws=lambda key: RATES), TypeError,
            r"^draws: expected a function of \(key, n\) .*got <lambda>\(key\)",
        ),
        "huge population": (
            lambda: bd.draws(KEY, 10**12), ValueError, "^num_neurons: expected arrays of at most 2147483647"
        ),
        "structure of a prior": (prior(d=RATES), ValueError, "^prior: expected the structure of params"),
        "shape of a prior": (prior(b=RATES[:1]), ValueError, r"^prior\['b'\]: .*shape \[3\].*got \[1\]"),
        "arguments of prior": (
            lambda: make(scheme="prior", prior=lambda key: PARAMS), TypeError,
            r"^prior: expected a function of \(key, params\) .*got <lambda>\(key\)",
        ),
        "key": (update(key=0), TypeError, "^key: expected one key, such as jax.random.key.*got 0"),
        "keys": (update(key=jax.random.split(KEY, 3)), ValueError, "^key: expected one key, .*got"),
        "state": (update(state=None), TypeError, "^state: expected a State, from init, got None"),
        "other state": (
            update(state=STATE._replace(ancestor=jnp.arange(3))), ValueError,
            r"^state.ancestor: expected shape \[4\], got \[3\]",
        ),
        "origin of another length": (
            follow(origin=FOUR[:3]), ValueError, r"^origin: expected shape \[4\], got \[3\]"
        ),
        "float origin": (follow(origin=RATES), TypeError, "^origin: expected integers, got float32"),
        "origin out of range": (
            follow(origin=[0, 1, 2, 4]), ValueError, r"^origin: expected neurons of 0 \.\. 3 or -1, got 4"
        ),
        "state of an optimizer": (
            follow("adam"), TypeError, "^optimizer_state: expected an array, got 'adam'"
        ),
    }
)  # fmt: skip
def test_calls(call, error, pattern):
    refuses(call, error, pattern)


def test_planted():
    teacher = ({"w": jnp.ones((3, 2))}, {"w": jnp.ones((2, 1))})
    uses = {
        "num_features": lambda n: planted(num_features=n),
        "num_units": lambda n: planted(num_units=n),
        "num_examples": lambda n: planted(3, 2).sample(KEY, teacher, n),
    }
    for name, use in uses.items():
        for count in (0, -1):
            refuses(lambda c=count, u=use: u(c), ValueError, f"^{name}: expected at least 1, got {count}")
        for count in (2.0, "3", None, True):
            refuses(lambda c=count, u=use: u(c), TypeError, f"^{name}: expected an int, got {count!r}")
