"""Bad input to decorrelation: as in `test_bad_input`, the errors that a user sees."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import lax_learning
from tests.refusal import each, refusals

# What a type checker would refuse is asked for here.
ll: Any = lax_learning
de: Any = lax_learning.decorrelation

KEY, ONES = jax.random.key(0), jnp.ones
DYNAMICS = de.dynamics(0.1)
NAN = float("nan")


dynamics = partial(de.dynamics, 0.1)

test_options = refusals(
    values={
        "^eta: expected a finite number >= 0, got": each(de.dynamics, -0.1, NAN, "0.1", None, True, ONES(2)),
        r"^kappa: expected a number in 0\.\.1, got": [
            *each(dynamics, kappa=(-0.1, 1.1, NAN, "0.5", True, None)),
            lambda: de.loss(ONES((4, 3)), kappa=1.1),
        ],
        "^variant: expected one of .*, got": each(dynamics, variant=("unknown", None, 3)),
        "^subsample: expected a .*, got": each(dynamics, subsample=(0, 1.5, NAN, "0.5", None)),
        "^every: expected at .*got": each(dynamics, every=(0, -1, 2**31)),
    },
    types={
        "^lower: expected True or False, got": each(dynamics, lower=("no", 1, None)),
        "^bias: expected True or False, got": each(dynamics, bias=("no", 1, None)),
        "^every: expected an int, got": each(dynamics, every=(1.0, True, "2")),
    },
)

X, Y, W = ONES((5, 3)), ONES((5, 2)), {"w": ONES((3, 2))}
STATE = DYNAMICS.init(3)


def update(x: Any = X, state: Any = STATE, **options: Any) -> Any:
    return lambda: de.dynamics(0.1, **options).update(KEY, state, x)


test_updates = refusals(
    values={
        "^size: expected at least 1, got 0": lambda: DYNAMICS.init(0),
        r"^x: expected shape \[\.\.\., 3\] with an entry, got \[": [
            update(ONES((5, 4))),
            update(ONES((5, 4)), every=2),
            update(ONES((0, 3))),
            *each(partial(de.apply, STATE), ONES((5, 4)), ONES(())),
        ],
        r"^z: expected shape \[\.\.\., size\] .*got": each(de.loss, 1.0, ONES(3), ONES((0, 3))),
        r"^state\.R: expected shape \[size, size\], got \[3\]": [
            update(state=de.State(ONES(3))),
            lambda: de.apply(de.State(ONES(3)), X),
        ],
        "^state.b: expected .*bias=True.*got none": update(bias=True),
        r"^state.b: .*\[3\], got": lambda: de.apply(de.State(jnp.eye(3), ONES(2)), X),
    },
    types={
        "^key: expected one key.*got 0": lambda: DYNAMICS.update(0, STATE, X),
        "^x: expected a floating.*got int32": update(ONES((5, 3), int)),
        "^state: expected a State, from init, got None": update(state=None),
        "^state.step: expected one integer": update(state=STATE._replace(step=0.5)),
    },
)

MODEL = ll.Model(lambda p, x: x @ p["w"])
LAYERS = {"w": de.State(jnp.eye(3))}


def rule_of(model: Any = MODEL, make_rule: Any = None, of: Any = DYNAMICS, **options: Any) -> Any:
    make_rule = make_rule or (lambda model: ll.backprop(model, ll.squared_error))
    return de.rule(make_rule, model, of, **options)


def value_and_grad(layers: Any) -> Any:
    state = rule_of().init(KEY, W, X)._replace(layers=layers)
    return rule_of().value_and_grad(KEY, W, state, X, Y)


def users_of(layers: Any) -> Any:
    """All that takes layers."""
    return [
        lambda: de.wrap(MODEL, layers).apply(W, X),
        lambda: de.fold(MODEL, W, layers, X),
        lambda: de.inputs(MODEL, W, layers, X),
        lambda: value_and_grad(layers),
    ]


def tied(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params["w"]) @ params["w"].T


def init_of(model: Any, params: Any = W, x: Any = X) -> Any:
    return lambda: rule_of(model).init(KEY, params, x)


EYE = {"w": jnp.eye(3)}
A_PRODUCT = "^where: expected to select a product"

test_models = refusals(
    values={
        r"^state\.layers: expected the entries \['w'\], see init, got ": [
            call for layers in ({"v": LAYERS["w"]}, None, (LAYERS["w"],)) for call in users_of(layers)
        ],
        r"^state\.layers\['w'\]\.R: expected shape \[3, 3\], got ": [
            call for layer in (de.State(jnp.eye(2)), None, jnp.eye(3)) for call in users_of({"w": layer})
        ],
        A_PRODUCT + r" .*got 'v', which selects none of \['w'\]": lambda: rule_of(where="v").init(KEY, W, X),
        "^x: expected floating-point numbers, which R can multiply, got others at 'w'": init_of(
            MODEL, W, X.astype(int)
        ),
        r"^params: expected parameters that one product reads as they are, got 'w'": [
            lambda: de.fold(ll.Model(tied), EYE, init_of(ll.Model(tied), EYE)().layers, X),
            lambda: de.fold(ll.Model(lambda p, x: x @ (2 * p["w"])), W, LAYERS, X),
        ],
        r"^layers\['w'\]: expected no mean to remove": lambda: de.fold(
            MODEL, W, {"w": de.State(jnp.eye(3), ONES(3))}, X
        ),
    },
    types={
        "^model: expected a Model, .*got 3": [
            lambda: rule_of(3),
            lambda: de.wrap(3, LAYERS),
            lambda: de.fold(3, W, LAYERS, X),
        ],
        "^make_rule: expected a function from a model to a rule, got": lambda: rule_of(
            make_rule=lambda model, loss: None
        ),
        "^make_rule: expected a function from a model to a rule on it, got 3": lambda: rule_of(
            make_rule=lambda model: 3
        ).init(KEY, W, X),
        "^dynamics: expected Dynamics, .*got 0.1": lambda: rule_of(of=0.1),
        "^state: expected the state of the rule's init.*got tuple": lambda: rule_of().value_and_grad(
            KEY, W, (), X, Y
        ),
    },
)
