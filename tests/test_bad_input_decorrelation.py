"""Bad input to decorrelation: as in `test_bad_input`, the errors that a user sees."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import lax_learning
from tests.refusal import parametrize_cases, refuses

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

# What a type checker would refuse is asked for here.
ll: Any = lax_learning
de: Any = lax_learning.decorrelation

KEY, ONES = jax.random.key(0), jnp.ones
DYNAMICS = de.dynamics(0.1)
NAN, INF = float("nan"), float("inf")


def dynamics(**options):
    return de.dynamics(**{"eta": 0.1, **options})


OPTIONS: dict[str, tuple[tuple[Any, ...], type[Exception], str]] = {
    "eta": ((-0.1, -1, NAN, INF, "0.1", None, True, ONES(2)), ValueError, "a finite number >= 0, got"),
    "kappa": ((-0.1, 1.1, NAN, INF, "0.5", True, None), ValueError, r"a number in 0\.\.1, got"),
    "variant": (("unknown", "seed", "", None, 3), ValueError, "one of .*, got"),
    "subsample": ((0, 0.0, -0.5, 1.5, 2, NAN, INF, "0.5", None), ValueError, "a .*, got"),
    "every": ((0, -1, 2**31), ValueError, "at .*got"),
    "lower": (("no", 1, None), TypeError, "True or False, got"),
    "bias": (("no", 1, None), TypeError, "True or False, got"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name):
    values, error, expected = OPTIONS[name]
    for value in values:
        refuses(lambda v=value: dynamics(**{name: v}), error, f"^{name}: expected {expected}")
        if name == "kappa":
            refuses(lambda v=value: de.loss(ONES((4, 3)), kappa=v), error, f"^{name}: expected {expected}")
    for value in (1.0, True, "2") if name == "every" else ():
        refuses(lambda v=value: dynamics(every=v), TypeError, "^every: expected an int, got")


X, Y, W = ONES((5, 3)), ONES((5, 2)), {"w": ONES((3, 2))}
STATE = DYNAMICS.init(3)


def update(x: Any = X, state: Any = STATE, **options: Any) -> Any:
    return lambda: dynamics(**options).update(KEY, state, x)


VECTORS = r"^x: expected shape \[\.\.\., 3\] with an entry, got \["
NO_R = r"^state\.R: expected shape \[size, size\], got "


@parametrize_cases(
    {
        "0": (lambda: DYNAMICS.init(0), ValueError, "^size: expected at least 1, got 0"),
        "float": (lambda: DYNAMICS.init(3.0), TypeError, "^size: expected an int, got 3.0"),
        "huge": (lambda: DYNAMICS.init(10**6), ValueError, "^size: expected arrays of at most"),
        "key": (lambda: DYNAMICS.update(0, STATE, X), TypeError, "^key: expected one key.*got 0"),
        "features": (update(ONES((5, 4))), ValueError, VECTORS),
        "features, now and then": (update(ONES((5, 4)), every=2), ValueError, VECTORS),
        "scalar": (update(ONES(())), ValueError, VECTORS),
        "none": (update(ONES((0, 3))), ValueError, VECTORS),
        "integers": (update(ONES((5, 3), int)), TypeError, "^x: expected a floating.*got int32"),
        "complex": (update(ONES((5, 3), complex)), TypeError, "^x: .*got complex"),
        "state": (update(state=None), TypeError, "^state: expected a State, from init, got None"),
        "R": (update(state=de.State(ONES(3))), ValueError, NO_R + r"\[3\]"),
        "a state without b": (update(bias=True), ValueError, "^state.b: expected .*bias=True.*got none"),
        "a state with b": (
            update(state=dynamics(bias=True).init(3)), ValueError, "^state.b: .*bias=False.*got float32",
        ),
        "step": (update(state=STATE._replace(step=0.5)), TypeError, "^state.step: expected one integer"),
        "apply to R": (lambda: de.apply(de.State(ONES(3)), X), ValueError, NO_R + r"\[3\]"),
        "apply without R": (lambda: de.apply(jnp.eye(3), X), ValueError, NO_R + r"float32\[3, 3\]"),
        "apply integers": (
            lambda: de.apply(de.State(jnp.eye(3, dtype=int)), X), TypeError, "^state.R: .*got int",
        ),
        "apply b": (
            lambda: de.apply(de.State(jnp.eye(3), ONES(2)), X), ValueError, r"^state.b: .*\[3\], got",
        ),
    }
)  # fmt: skip
def test_updates(call, error, pattern):
    refuses(call, error, pattern)


def test_vectors_of_other_sizes():
    for x in (ONES((5, 4)), ONES(()), ONES((3, 5)), ONES(2)):
        refuses(lambda x=x: de.apply(STATE, x), ValueError, VECTORS)
    for z in (1.0, ONES(()), ONES(3), ONES((0, 3))):
        refuses(lambda z=z: de.loss(z), ValueError, r"^z: expected shape \[\.\.\., size\] .*got")


# Models.

MODEL = ll.Model(lambda p, x: x @ p["w"])
LAYERS = {"w": de.State(jnp.eye(3))}


def rule_of(model: Any = MODEL, make_rule: Any = None, of: Any = DYNAMICS, **options: Any) -> Any:
    make_rule = make_rule or (lambda model: ll.backprop(model, ll.squared_error))
    return de.rule(make_rule, model, of, **options)


def value_and_grad(layers: Any) -> Any:
    state = rule_of().init(KEY, W, X)._replace(layers=layers)
    return rule_of().value_and_grad(KEY, W, state, X, Y)


USES: dict[str, Any] = {
    "wrap": lambda layers: de.wrap(MODEL, layers).apply(W, X),
    "fold": lambda layers: de.fold(MODEL, W, layers, X),
    "inputs": lambda layers: de.inputs(MODEL, W, layers, X),
    "rule": value_and_grad,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_layers_of_another_model(use):
    for layers in ({"v": LAYERS["w"]}, {}, None, (LAYERS["w"],), {**LAYERS, "v": LAYERS["w"]}):
        pattern = r"^state\.layers: expected the entries \['w'\], see init, got "
        refuses(lambda layers=layers: use(layers), ValueError, pattern)
    for layer in (de.State(jnp.eye(2)), de.State(ONES(3)), {}, None, jnp.eye(3)):
        pattern = r"^state\.layers\['w'\]\.R: expected shape \[3, 3\], got "
        refuses(lambda layer=layer: use({"w": layer}), ValueError, pattern)


def tied(params, x):
    return jnp.tanh(x @ params["w"]) @ params["w"].T


def init_of(model: Any, params: Any = W, x: Any = X) -> Any:
    return lambda: rule_of(model).init(KEY, params, x)


EYE = {"w": jnp.eye(3)}
HUGE = {"w": jax.ShapeDtypeStruct((10**6, 1), jnp.float32)}, jax.ShapeDtypeStruct((1, 10**6), jnp.float32)
A_MODEL = "^model: expected a Model, .*got 3"
AS_THEY_ARE = r"^params: expected parameters that one product reads as they are, got 'w'"
A_PRODUCT = "^where: expected to select a product"


@parametrize_cases(
    {
        "model": (lambda: rule_of(3), TypeError, A_MODEL),
        "model to wrap": (lambda: de.wrap(3, LAYERS), TypeError, A_MODEL),
        "model of fold": (lambda: de.fold(3, W, LAYERS, X), TypeError, A_MODEL),
        "rule": (lambda: rule_of(make_rule=3), TypeError, "^make_rule: expected a function .*got 3"),
        "rule of two": (
            lambda: rule_of(make_rule=lambda model, loss: None), TypeError,
            "^make_rule: expected a function from a model to a rule, got",
        ),
        "no rule": (
            lambda: rule_of(make_rule=lambda model: 3).init(KEY, W, X), TypeError,
            "^make_rule: expected a function from a model to a rule on it, got 3",
        ),
        "dynamics": (lambda: rule_of(of=0.1), TypeError, "^dynamics: expected Dynamics, .*got 0.1"),
        "where": (lambda: rule_of(where=3), TypeError, "^where: expected a glob .*got 3"),
        "where nothing is": (
            lambda: rule_of(where="v").init(KEY, W, X), ValueError,
            A_PRODUCT + r" .*got 'v', which selects none of \['w'\]",
        ),
        "a sum is no product": (
            init_of(ll.Model(lambda p, x: x + p["w"]), {"w": ONES(3)}), ValueError, A_PRODUCT
        ),
        "integers": (
            init_of(MODEL, W, X.astype(int)), ValueError,
            "^x: expected floating-point numbers, which R can multiply, got others at 'w'",
        ),
        "state": (
            lambda: rule_of().value_and_grad(KEY, W, (), X, Y), TypeError,
            "^state: expected the state of the rule's init.*got tuple",
        ),
        "key": (lambda: rule_of().init(0, W, X), TypeError, "^key: expected one key.*got 0"),
        "huge": (init_of(MODEL, *HUGE), ValueError, "^where: 'w': expected arrays of at most"),
        "a weight that is read twice": (
            lambda: de.fold(ll.Model(tied), EYE, init_of(ll.Model(tied), EYE)().layers, X),
            ValueError, AS_THEY_ARE,
        ),
        "a weight that is scaled": (
            lambda: de.fold(ll.Model(lambda p, x: x @ (2 * p["w"])), W, LAYERS, X), ValueError, AS_THEY_ARE
        ),
        "a mean that is removed": (
            lambda: de.fold(MODEL, W, {"w": de.State(jnp.eye(3), ONES(3))}, X), ValueError,
            r"^layers\['w'\]: expected no mean to remove",
        ),
    }
)  # fmt: skip
def test_models(call, error, pattern):
    refuses(call, error, pattern)
