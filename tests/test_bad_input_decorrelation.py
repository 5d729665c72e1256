"""Bad input to decorrelation: as in `test_bad_input_options`, the errors that a user sees."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lax_learning
from tests.refusal import each, refusals

# What a type checker would refuse is asked for here.
ll: Any = lax_learning
de: Any = lax_learning.decorrelation

KEY, ONES, EYE = jax.random.key(0), np.ones, np.eye(3)
X, Y, W = ONES((5, 3)), ONES((5, 2)), {"w": ONES((3, 2))}
DYNAMICS = de.dynamics(0.1)
STATE = DYNAMICS.init(3)


def update(x: Any = X, state: Any = STATE, **options: Any) -> Any:
    return partial(de.dynamics(0.1, **options).update, KEY, state, x)


MODEL = ll.Model(lambda p, x: x @ p["w"])
LAYERS = {"w": de.State(EYE)}
CHANGED = (
    lambda p, x: x @ (2 * p["w"]),
    lambda p, x: x @ p["w"][:, :1],
    lambda p, x: x @ p["w"] * p["w"][0],
)
# Of one entry, some numbers that are tried are positive.
ABS, ONE = ll.Model(lambda p, x: x @ jnp.abs(p["w"])), ONES((1, 1))
TIED = ll.Model(lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T)


def rule_of(model: Any = MODEL, make_rule: Any = None, **options: Any) -> Any:
    make_rule = make_rule or partial(ll.backprop, loss=ll.squared_error)
    return de.rule(make_rule, model, DYNAMICS, **options)


RULE = rule_of()


def users_of(*several: Any) -> Any:
    """All that takes layers."""
    return [
        call
        for layers in several
        for call in (
            lambda layers=layers: de.wrap(MODEL, layers).apply(W, X),
            partial(de.fold, MODEL, W, layers, X),
            partial(de.inputs, MODEL, W, layers, X),
            partial(RULE.value_and_grad, KEY, W, de.RuleState(layers, {}, ()), X, Y),
        )
    ]


test_refused = refusals(
    values={
        r"^x: expected non-empty shape \[\.\.\., 3\], got \[": [
            *(update(ONES((5, 4))), update(ONES((5, 4)), every=2), update(ONES((0, 3)))),
            *each(partial(de.apply, STATE), ONES((5, 4)), ONES(())),
        ],
        r"^z: expected shape \[\.\.\., size\] .*got": each(de.loss, 1.0, ONES(3), ONES((0, 3))),
        r"^state\.R: expected shape \[size, size\], got \[3\]": partial(de.apply, de.State(ONES(3)), X),
        "^state.b: expected .*bias=True.*got none": update(bias=True),
        r"^state.b: .*\[3\], got": partial(de.apply, de.State(EYE, ONES(2)), X),
        r"^state\.layers: expected the entries .*, got ": users_of({"v": LAYERS["w"]}, None, (LAYERS["w"],)),
        r"\['w'\]\.R: expected shape \[3, 3\], got ": users_of({"w": de.State(np.eye(2))}),
        r"^where: .* a product .*got 'v', which selects none": partial(rule_of(where="v").init, KEY, W, X),
        "^x: expected floating-point .*got another dtype at 'w'": partial(RULE.init, KEY, W, X.astype(int)),
        r"^params: expected parameters that a single product uses directly, got 'w'": [
            lambda: de.fold(TIED, {"w": EYE}, rule_of(TIED).init(KEY, {"w": EYE}, X).layers, X),
            *(partial(de.fold, ll.Model(apply), W, LAYERS, X) for apply in CHANGED),
            *(lambda n=n: de.fold(ABS, {"w": ONE}, {"w": de.State(ONE)}, ONES((n, 1))) for n in (1, 2, 3, 4)),
        ],
        r"^layers\['w'\]: expected no bias b": partial(de.fold, MODEL, W, {"w": de.State(EYE, ONES(3))}, X),
    },
    types={
        r"\['w'\]\.R: expected a floating-point array, got None": users_of({"w": None}, {"w": EYE}),
        "^key: expected one key.*got 0": partial(DYNAMICS.update, 0, STATE, X),
        "^x: expected a floating.*got int32": update(ONES((5, 3), int)),
        "^state: expected a State, from init, got None": update(state=None),
        "^state.step: expected one integer": update(state=STATE._replace(step=0.5)),
        "^make_rule: .* to a rule on it, got '": partial(rule_of(make_rule=str).init, KEY, W, X),
        "^state: expected the state of the rule.*got tuple": partial(RULE.value_and_grad, KEY, W, (), X, Y),
    },
)
