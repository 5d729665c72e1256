"""Bad input to neuron birth-death: as in `test_bad_input`, the errors that a user sees."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lax_learning
from tests.refusal import each, refusals

# What a type checker would refuse is asked for here.
bd: Any = lax_learning.birth_death
planted: Any = lax_learning.data.planted

KEY = jax.random.key(0)
PARAMS: Any = {"w": np.ones((4, 3), np.float32), "b": np.ones(3, np.float32), "c": np.ones(4, np.float32)}
AXES: Any = {"w": 0, "b": None, "c": 0}
RATES, FOUR = np.ones(4, np.float32), np.arange(4)


def make(alpha: Any = 1.0, axes: Any = AXES, **options: Any) -> Any:
    options.setdefault("charges", lambda params: params["c"])
    return bd.dynamics(alpha, axes=axes, **options)


STATE = make().init(PARAMS)


def update(params: Any = PARAMS, gradients: Any = None, state: Any = STATE, **options: Any) -> Any:
    key, rates = options.pop("key", KEY), options.pop("rates", RATES)
    return lambda: make(**options).update(key, params, state, gradients, rates=rates)


def init(params: Any = PARAMS, **options: Any) -> Any:
    return lambda: make(**options).init(params)


def follow(state: Any = PARAMS, origin: Any = FOUR, axes: Any = AXES, **options: Any) -> Any:
    return lambda: bd.follow(state, origin, PARAMS, axes, **options)


def by(**gradients: Any) -> Any:
    return update(gradients={**PARAMS, **gradients}, rates=None)


def prior(**leaves: Any) -> Any:
    return update(scheme="prior", prior=lambda key, params: {**params, **leaves})


def by_axes(axes: Any) -> Any:
    return [init(axes=axes), update(axes=axes), follow(axes=axes)]


def picking(pick: Any) -> Any:
    return [update(charges=pick), update(charges=pick, gradients=PARAMS, rates=None)]


def of_dtype(name: str, dtype: Any) -> Any:
    params = {**PARAMS, name: PARAMS[name].astype(dtype)}
    return [init(params), update(params)]


ONE_SIZE = "^params: expected neuron axes of one size, got"
STRUCTURE = "^axes: expected the structure of params, .*, got"
PICKS = "^charges: expected a function that picks leaves of params with a neuron axis, .*got "
UNKNOWN = ("unknown", None, ["clone"])
OTHERS = ({"w": 0, "c": 0}, {**AXES, "d": 0}, (0, None, 0), None)

test_options_and_params = refusals(
    values={
        "^alpha: expected a finite number >= 0, got": each(make, -0.1, np.nan, np.inf, "1", None, True, FOUR),
        **{
            rf"^{name}: expected one of \[.*\], got": each(make, **{name: UNKNOWN})
            for name in ("scheme", "center", "probability", "charge", "slots")
        },
        r"^copies: expected one of \[.*\], got": [follow(copies="unknown"), follow(copies=None)],
        r"^params\['w'\]: expected a neuron axis 2, got shape \[4, 3\]": by_axes({**AXES, "w": 2}),
        r"^params\['c'\]: expected a neuron axis 0, got shape \[\]": init({**PARAMS, "c": np.float32(1)}),
        "^axes: expected a neuron axis for at least one.*got None": by_axes(dict.fromkeys(AXES)),
        ONE_SIZE + ".*'w'.*: 3": by_axes({**AXES, "w": 1}),
        STRUCTURE: [
            *(
                call
                for axes in ({"w": 0, "c": 0}, {**AXES, "d": 0}, (0, None, 0), None)
                for call in by_axes(axes)
            ),
            update({"w": PARAMS["w"], "c": RATES}),
        ],
        "^number of neurons: expected at least 1, got 0": init(
            {"w": np.ones((0, 3)), "b": RATES, "c": RATES[:0]}
        ),
        r"^axes\['d'\]: expected None, as params have no array there, got 0": init(
            {**PARAMS, "d": None}, axes={**AXES, "d": 0}
        ),
        PICKS + "one that returns": [*picking(lambda p: ()), *picking(lambda p: (p["c"], p["b"]))],
        PICKS + "one that computes with them": picking(lambda p: 2 * p["c"]),
        PICKS + r"one that raises KeyError\('out'\)": picking(lambda p: p["out"]),
    },
    types={
        r"^axes: expected an int or None for params\['w'\], got '0'": by_axes({**AXES, "w": "0"}),
        **{
            rf"^params\['{name}'\]: expected a floating-point array, got": of_dtype(name, dtype)
            for name, dtype in (("w", np.int32), ("b", bool))
        },
        PICKS + "None": lambda: make(charges=None),
    },
)

GRADIENTS = "^gradients: expected the structure of params, .*, got"
TEACHER = ({"w": jnp.ones((3, 2))}, {"w": jnp.ones((2, 1))})
COUNTS: dict[str, Any] = {
    "num_features": planted,
    "num_units": partial(planted, 3),
    "num_examples": partial(planted(3, 2).sample, KEY, TEACHER),
}

test_updates = refusals(
    values={
        "^gradients, rates: expected one of them, got none": update(rates=None),
        "^gradients, rates: .*, got both": update(gradients=PARAMS),
        r"^rates: expected shape \[4\], got \[3\]": update(rates=RATES[:3]),
        GRADIENTS: [update(gradients={"c": RATES}, rates=None), by(d=RATES), by(w=None)],
        r"^gradients\['c'\]: .* \[4\].*got \[4, 1\]": by(c=RATES[:, None]),
        r"^draws.kill: expected shape \[4\], got \[3\]": update(draws=lambda key, n: bd.draws(key, 3)),
        "^num_neurons: expected arrays of at most 2147483647": lambda: bd.draws(KEY, 10**12),
        "^prior: expected the structure of params": prior(d=RATES),
        r"^prior\['b'\]: .*shape \[3\].*got \[1\]": prior(b=RATES[:1]),
        r"^state.ancestor: expected shape \[4\], got \[3\]": update(
            state=STATE._replace(ancestor=jnp.arange(3))
        ),
        r"^origin: expected shape \[4\], got \[3\]": follow(origin=FOUR[:3]),
        r"^origin: expected neurons of 0 \.\. 3 or -1, got 4": follow(origin=[0, 1, 2, 4]),
        **{f"^{name}: expected at least 1, got 0": each(use, 0) for name, use in COUNTS.items()},
    },
    types={
        "^rates: expected a floating.*, got int32": update(rates=np.ones(4, int)),
        r"^draws: expected a function of \(key, n\) .*got <lambda>\(key\)": lambda: make(
            draws=lambda key: RATES
        ),
        "^key: expected one key, such as jax.random.key.*got 0": update(key=0),
        "^state: expected a State, from init, got None": update(state=None),
        "^optimizer_state: expected an array, got 'adam'": follow("adam"),
        **{f"^{name}: expected an int, got 2.0": each(use, 2.0) for name, use in COUNTS.items()},
    },
)
