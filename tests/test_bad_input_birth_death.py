"""Bad input to neuron birth-death: as in `test_bad_input_options`, the errors that a user sees."""

from functools import partial
from typing import Any

import jax
import numpy as np

import lax_learning
from tests.refusal import refusals

# What a type checker would refuse is asked for here.
bd: Any = lax_learning.birth_death

KEY = jax.random.key(0)
PARAMS: Any = {"w": np.ones((4, 3), np.float32), "b": np.ones(3, np.float32), "c": np.ones(4, np.float32)}
AXES: Any = {"w": 0, "b": None, "c": 0}
RATES, FOUR = np.ones(4, np.float32), np.arange(4)
STATE = bd.State(FOUR, np.int32(0), np.int32(0))


def make(axes: Any = AXES, **options: Any) -> Any:
    return bd.dynamics(1.0, **{"axes": axes, "charges": lambda params: params["c"], **options})


def update(params: Any = PARAMS, gradients: Any = None, state: Any = STATE, **options: Any) -> Any:
    key, rates = options.pop("key", KEY), options.pop("rates", RATES)
    return partial(make(**options).update, key, params, state, gradients, rates=rates)


def init(params: Any = PARAMS, **options: Any) -> Any:
    return partial(make(**options).init, params)


def follow(state: Any = PARAMS, origin: Any = FOUR, axes: Any = AXES) -> Any:
    return partial(bd.follow, state, origin, PARAMS, axes)


def by(**gradients: Any) -> Any:
    return update(gradients={**PARAMS, **gradients}, rates=None)


def by_axes(*several: Any) -> Any:
    return [call for axes in several for call in (init(axes=axes), update(axes=axes), follow(axes=axes))]


def picking(*picks: Any) -> Any:
    by_gradients = {"gradients": PARAMS, "rates": None}
    return [call for pick in picks for call in (update(charges=pick), update(charges=pick, **by_gradients))]


STRUCTURE = "expected the structure of params"
PICKS = "^charges: expected a function that picks leaves of params with a neuron axis, .*got one that "
test_refused = refusals(
    values={
        r"^axes: params\['w'\]: expected at most 1, got 2": by_axes({**AXES, "w": 2}),
        r"^axes: params\['c'\]: expected at most -1, got 0": init({**PARAMS, "c": np.float32(1)}),
        "^axes: expected a neuron axis for at least one.*got None": by_axes(dict.fromkeys(AXES)),
        "^params: expected neuron axes of the same size, got.*'w'.*: 3": by_axes({**AXES, "w": 1}),
        f"^axes: {STRUCTURE}, .*, got": [
            *by_axes({"w": 0, "c": 0}, {**AXES, "d": 0}, (0, None, 0), None),
            update({"w": PARAMS["w"], "c": RATES}),
        ],
        "^number of neurons: expected at least 1, got 0": init({**PARAMS, "w": RATES[:0], "c": RATES[:0]}),
        PICKS + "returns": picking(lambda p: (), lambda p: (p["c"], p["b"])),
        PICKS + r"(raises KeyError\('out'|computes with)": picking(lambda p: p["out"], lambda p: 2 * p["c"]),
        "^gradients, rates: expected one of them, got none": update(rates=None),
        "^gradients, rates: .*, got both": update(gradients=PARAMS),
        r"^rates: expected shape \[4\], got \[3\]": update(rates=RATES[:3]),
        f"^gradients: {STRUCTURE}, .*, got": [by(d=RATES), by(w=None)],
        r"^gradients\['c'\]: .* \[4\].*got \[4, 1\]": by(c=RATES[:, None]),
        r"^draws.kill: expected shape \[4\], got \[3\]": update(draws=lambda key, n: bd.draws(key, 3)),
        "^num_neurons: expected arrays of at most 2147483647": partial(bd.draws, KEY, 10**12),
        r"^prior\['b'\]: .*shape \[3\].*got \[1\]": update(
            scheme="prior", prior=lambda key, params: {**params, "b": RATES[:1]}
        ),
        r"^state.ancestor: .* \[4\], got \[3\]": update(state=STATE._replace(ancestor=FOUR[:3])),
        r"^origin: expected shape \[4\], got \[3\]": follow(origin=FOUR[:3]),
        r"^origin: expected neurons in 0 \.\. 3 or -1, got 4": follow(origin=[0, 1, 2, 4]),
    },
    types={
        r"^axes: params\['w'\]: expected an int, got '0'": by_axes({**AXES, "w": "0"}),
        r"^params\['d'\]: .* array, got None": init({**PARAMS, "d": None}, axes={**AXES, "d": 0}),
        r"^params\['b'\]: expected a floating-point array, got": [
            call({**PARAMS, "b": np.ones(3, dtype)}) for call in (init, update) for dtype in (int, bool)
        ],
        r"^gradients\['c'\]: expected a floating-point array, got int": by(c=np.ones(4, int)),
        "^rates: expected a floating.*, got int32": update(rates=np.ones(4, int)),
        "^key: expected one key, such as jax.random.key.*got 0": update(key=0),
        "^state: expected a State, from init, got None": update(state=None),
        "^optimizer_state: expected an array, got 'adam'": follow("adam"),
    },
)
