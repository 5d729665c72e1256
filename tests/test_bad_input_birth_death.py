"""Bad input to neuron birth-death: as in `test_bad_input`, the errors that a user sees."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll
from lax_learning.data import planted
from tests.refusal import parametrize_cases, refuses

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(0)
PARAMS: Any = {"w": np.ones((4, 3), np.float32), "b": np.ones(3, np.float32), "c": np.ones(4, np.float32)}
AXES: Any = {"w": 0, "b": None, "c": 0}
RATES = np.ones(4, np.float32)


def charges(params: Any) -> Any:
    return params["c"]


def make(alpha: Any = 1.0, axes: Any = AXES, **options: Any) -> ll.Dynamics:
    options.setdefault("charges", charges)
    return ll.birth_death.dynamics(alpha, axes=axes, **options)


STATE = make().init(PARAMS)
OTHER_STATE = STATE._replace(ancestor=jnp.arange(3))


def update(params: Any = PARAMS, gradients: Any = None, rates: Any = None, **options: Any):
    return lambda: make(**options).update(KEY, params, STATE, gradients, rates=rates)


# What the dynamics are made of.


@pytest.mark.parametrize(
    "alpha", [-1, -0.1, float("nan"), float("inf"), -float("inf"), "1", None, True, np.ones(2)], ids=str
)
def test_alpha(alpha):
    refuses(lambda: make(alpha), ValueError, "^alpha: expected a finite number >= 0, got")


@pytest.mark.parametrize("alpha", [0, 1, np.float32(0.5), jnp.array(2.0)], ids=str)
def test_alphas_that_are_fine(alpha):
    make(alpha)


@pytest.mark.parametrize("name", ["scheme", "center", "probability", "charge", "slots"])
@pytest.mark.parametrize("value", ["unknown", "", None, True, ["clone"]], ids=str)
def test_choices(name, value):
    pattern = rf"^{name}: expected one of \[.*\], got"
    refuses(lambda: make(**{name: value}), ValueError, pattern)


# What they are called with. The same holds for `init`, where there are only params.


@pytest.mark.parametrize("call", ["init", "update"])
@pytest.mark.parametrize(
    ("axes", "error", "pattern"),
    [
        ({**AXES, "w": 2}, ValueError, r"^params\['w'\]: expected a neuron axis 2, got shape \[4, 3\]"),
        ({**AXES, "w": -3}, ValueError, r"^params\['w'\]: expected a neuron axis -3, got shape \[4, 3\]"),
        ({**AXES, "c": 1}, ValueError, r"^params\['c'\]: expected a neuron axis 1, got shape \[4\]"),
        ({**AXES, "w": "0"}, TypeError, r"^axes: expected an int or None for params\['w'\], got '0'"),
        ({**AXES, "w": 0.0}, TypeError, r"^axes: expected an int or None for params\['w'\], got 0.0"),
        ({**AXES, "c": True}, TypeError, r"^axes: expected an int or None for params\['c'\], got True"),
        (dict.fromkeys(AXES), ValueError, "^axes: expected a neuron axis for at least one leaf, got None"),
        ({**AXES, "w": 1}, ValueError, r"^params: expected neuron axes of one size, got .*'w'.*: 3"),
        ({**AXES, "b": 0}, ValueError, r"^params: expected neuron axes of one size, got .*'b'.*: 3"),
        ({"w": 0, "c": 0}, ValueError, "^axes: expected the structure of params, .*, got"),
        ({**AXES, "d": 0}, ValueError, "^axes: expected the structure of params, .*, got"),
        ((0, None, 0), ValueError, "^axes: expected the structure of params, .*, got"),
        ({**AXES, "w": {"w": 0}}, ValueError, "^axes: expected the structure of params, .*, got"),
        (0, ValueError, "^axes: expected the structure of params, .*, got"),
        (None, ValueError, "^axes: expected the structure of params, .*, got"),
    ],
    ids=str,
)
def test_axes(call, axes, error, pattern):
    if call == "init":
        refuses(lambda: make(axes=axes).init(PARAMS), error, pattern)
    else:
        refuses(update(axes=axes, rates=RATES), error, pattern)


@pytest.mark.parametrize("call", ["init", "update"])
@pytest.mark.parametrize("name", PARAMS)
@pytest.mark.parametrize("dtype", [np.int32, bool])
def test_params(call, name, dtype):
    params = {**PARAMS, name: PARAMS[name].astype(dtype)}
    pattern = rf"^params\['{name}'\]: expected a floating-point array, got"
    if call == "init":
        refuses(lambda: make().init(params), TypeError, pattern)
    else:
        refuses(update(params, rates=RATES), TypeError, pattern)


@parametrize_cases(
    {
        "scalar": (
            lambda: make().init({**PARAMS, "c": np.float32(1)}),
            ValueError,
            r"^params\['c'\]: expected a neuron axis 0, got shape \[\]",
        ),
        "fewer charges": (
            lambda: make().init({**PARAMS, "c": np.ones(3, np.float32)}),
            ValueError,
            "^params: expected neuron axes of one size, got",
        ),
        "other params": (
            update({"w": PARAMS["w"], "c": PARAMS["c"]}, rates=RATES),
            ValueError,
            "^axes: expected the structure of params, .*, got",
        ),
        "other state": (
            lambda: make().update(KEY, PARAMS, OTHER_STATE, rates=RATES),
            ValueError,
            r"^state.ancestor: expected shape \[4\], got \[3\]",
        ),
    }
)
def test_populations(call, error, pattern):
    refuses(call, error, pattern)


@pytest.mark.parametrize("how", ["gradients", "rates"])
@pytest.mark.parametrize(
    "picked", [lambda p: (), lambda p: None, lambda p: p["b"], lambda p: (p["c"], p["b"]), lambda p: p]
)
def test_charges(how, picked):
    pattern = "^charges: expected a function that picks leaves of params with a neuron axis, .*got one that"
    given: Any = {"gradients": PARAMS} if how == "gradients" else {"rates": RATES}
    refuses(update(charges=picked, **given), ValueError, pattern)


@parametrize_cases(
    {
        "neither": (update(), ValueError, "^gradients, rates: expected one of them, got none"),
        "both": (update(gradients=PARAMS, rates=RATES), ValueError, "^gradients, rates: .*, got both"),
        "too few": (update(rates=RATES[:3]), ValueError, r"^rates: expected shape \[4\], got \[3\]"),
        "too many": (update(rates=np.ones(5)), ValueError, r"^rates: expected shape \[4\], got \[5\]"),
        "scalar": (update(rates=1.0), ValueError, r"^rates: expected shape \[4\], got \[\]"),
        "matrix": (update(rates=RATES[:, None]), ValueError, r"^rates: expected shape \[4\], got \[4, 1\]"),
        "integer": (update(rates=np.ones(4, int)), TypeError, "^rates: expected a floating.*, got int32"),
        "bool": (update(rates=np.ones(4, bool)), TypeError, "^rates: expected a floating.*, got bool"),
    }
)
def test_rates(call, error, pattern):
    refuses(call, error, pattern)


STRUCTURE = "^gradients: expected the structure of params, .*, got"


@pytest.mark.parametrize(
    ("gradients", "pattern"),
    [
        ({"c": PARAMS["c"]}, STRUCTURE),
        ({**PARAMS, "d": RATES}, STRUCTURE),
        ({**PARAMS, "w": None}, STRUCTURE),
        (tuple(PARAMS.values()), STRUCTURE),
        (PARAMS["c"], STRUCTURE),
        ({**PARAMS, "c": RATES[:, None]}, r"^gradients\['c'\]: expected shape \[4\], got \[4, 1\]"),
        ({**PARAMS, "c": np.ones(())}, r"^gradients\['c'\]: expected shape \[4\], got \[\]"),
        ({**PARAMS, "w": np.ones((3, 4))}, r"^gradients\['w'\]: expected shape \[4, 3\], got \[3, 4\]"),
    ],
    ids=["fewer", "more", "None", "tuple", "array", "column", "scalar", "turned"],
)
def test_gradients(gradients, pattern):
    refuses(update(gradients=gradients), ValueError, pattern)


# Moments.


@pytest.mark.parametrize("copies", ["unknown", "", "copy", None, True])
def test_copies(copies):
    refuses(
        lambda: ll.birth_death.follow(PARAMS, jnp.arange(4), PARAMS, AXES, copies=copies),
        ValueError,
        f"^copies: expected one of .*, got {copies!r}",
    )


@parametrize_cases(
    {
        "origin of another length": (
            lambda: ll.birth_death.follow(PARAMS, jnp.arange(3), PARAMS, AXES),
            ValueError,
            r"^origin: expected shape \[4\], got \[3\]",
        ),
        "axes of another structure": (
            lambda: ll.birth_death.follow(PARAMS, jnp.arange(4), PARAMS, {"w": 0}),
            ValueError,
            "^axes: expected the structure of params",
        ),
        "integer gradients": (
            update(gradients={**PARAMS, "w": np.ones((4, 3), np.int32)}),
            TypeError,
            r"^gradients\['w'\]: expected a floating-point array, got int32",
        ),
        "draws of another length": (
            update(rates=RATES, draws=lambda key, n: ll.birth_death.draws(key, 3)),
            ValueError,
            r"^draws.kill: expected shape \[4\], got \[3\]",
        ),
        "prior of another structure": (
            update(rates=RATES, scheme="prior", prior=lambda key, params: {"w": params["w"]}),
            ValueError,
            "^prior: expected the structure of params",
        ),
        "prior of another shape": (
            update(rates=RATES, scheme="prior", prior=lambda key, params: {**params, "b": jnp.ones(1)}),
            ValueError,
            r"^prior\['b'\]: expected shape \[3\], got \[1\]",
        ),
        "nobody": (
            lambda: make().init({"w": np.ones((0, 3)), "b": np.ones(3), "c": np.ones(0)}),
            ValueError,
            "^number of neurons: expected at least 1, got 0",
        ),
    }
)
def test_what_comes_with_a_population(call, error, pattern):
    refuses(call, error, pattern)


# The planted problem.


@pytest.mark.parametrize("name", ["num_features", "num_units", "num_examples"])
@pytest.mark.parametrize(
    ("count", "error", "pattern"),
    [
        (0, ValueError, "expected at least 1, got 0"),
        (-1, ValueError, "expected at least 1, got -1"),
        (2.0, TypeError, "expected an int, got 2.0"),
        ("3", TypeError, "expected an int, got '3'"),
        (None, TypeError, "expected an int, got None"),
        (True, TypeError, "expected an int, got True"),
    ],
)
def test_planted(name, count, error, pattern):
    if name == "num_examples":
        teacher = ({"w": jnp.ones((3, 2))}, {"w": jnp.ones((2, 1))})
        refuses(lambda: planted(3, 2).sample(KEY, teacher, count), error, f"^{name}: {pattern}")
    else:
        refuses(lambda: planted(**{name: count}), error, f"^{name}: {pattern}")


MANY = 10**12


@parametrize_cases(
    {
        "key": (
            lambda: make().update(0, PARAMS, STATE, rates=RATES),  # pyright: ignore
            TypeError,
            "^key: expected one key, such as jax.random.key.*got 0",
        ),
        "keys": (
            lambda: make().update(jax.random.split(KEY, 3), PARAMS, STATE, rates=RATES),
            ValueError,
            "^key: expected one key, .*got",
        ),
        "state": (
            lambda: make().update(KEY, PARAMS, None, rates=RATES),  # pyright: ignore
            TypeError,
            "^state: expected a BirthDeathState, from init, got None",
        ),
        "computed charges": (
            lambda: make(charges=lambda p: 2 * p["c"]).init(PARAMS),
            ValueError,
            "^charges: expected a function that picks leaves of params .*got one that computes with them",
        ),
        "charges": (
            lambda: make(charges=None),
            TypeError,
            "^charges: expected a function that picks leaves.*got None",
        ),
        "charges of nothing": (
            lambda: make(charges=lambda: 1),
            TypeError,
            r"^charges: expected a function that picks .*got <lambda>\(\)",
        ),
        "charges that are not there": (
            lambda: make(charges=lambda p: p["out"]).init(PARAMS),
            ValueError,
            r"^charges: expected a function that picks .*got one that raises KeyError\('out'\)",
        ),
        "arguments of draws": (
            lambda: make(draws=lambda key: RATES),
            TypeError,
            r"^draws: expected a function of \(key, n\) .*got <lambda>\(key\)",
        ),
        "arguments of prior": (
            lambda: make(scheme="prior", prior=lambda key: PARAMS),
            TypeError,
            r"^prior: expected a function of \(key, params\) .*got <lambda>\(key\)",
        ),
        "alpha that is a key": (lambda: make(KEY), ValueError, "^alpha: expected a finite number"),
        "state of an optimizer": (
            lambda: ll.birth_death.follow("adam", np.zeros(4, np.int32), PARAMS, AXES),  # pyright: ignore
            TypeError,
            "^optimizer_state: expected an array, got 'adam'",
        ),
        "draws": (
            update(rates=RATES, draws=lambda key, n: (RATES,) * 4),
            TypeError,
            "^draws: expected a function that returns Draws, got tuple",
        ),
        "huge population": (
            lambda: ll.birth_death.draws(KEY, MANY),
            ValueError,
            "^num_neurons: expected arrays of at most 2147483647 entries",
        ),
        "axis of None": (
            lambda: make(axes={**AXES, "d": 0}).init({**PARAMS, "d": None}),
            ValueError,
            r"^axes\['d'\]: expected None, as params have no array there, got 0",
        ),
        "float origin": (
            lambda: ll.birth_death.follow(PARAMS, np.zeros(4, np.float32), PARAMS, AXES),  # pyright: ignore
            TypeError,
            "^origin: expected integers, got float32",
        ),
        "origin out of range": (
            lambda: ll.birth_death.follow(PARAMS, [0, 1, 2, 4], PARAMS, AXES),  # pyright: ignore
            ValueError,
            r"^origin: expected neurons of 0 \.\. 3 or -1, got 4",
        ),
    }
)
def test_wrong_kinds(call, error, pattern):
    refuses(call, error, pattern)
