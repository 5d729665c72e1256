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

KEY, ONES = jax.random.key(0), jnp.ones
DYNAMICS = ll.decorrelation.dynamics(0.1)
STATE = DYNAMICS.init((3, 4))
INPUTS = (ONES((5, 3)), ONES((5, 4)))
SHARES = ["paper", "decorbp"]
VARIANTS = [*SHARES, "seed", "scaled"]


def loss(**options):
    return ll.decorrelation.loss(ONES((4, 3)), **options)


def dynamics(**options):
    return ll.decorrelation.dynamics(**{"eta": 0.1, **options})


both = pytest.mark.parametrize("make", [dynamics, loss])


# Options.


@both
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_number_of_a_variant(make, variant):
    is_share = variant in SHARES
    name, other = ("kappa", "variance") if is_share else ("variance", "kappa")
    expected = r"a number in 0\.\.1" if is_share else "a finite number > 0"
    for number in (-0.1, 1.1 if is_share else 0, float("nan"), float("inf"), "0.5", True):
        call = lambda n=number: make(variant=variant, **{name: n})  # noqa: E731
        refuses(call, ValueError, f"^{name}: expected {expected}, got")
    pattern = f"^{other}: expected none with variant '{variant}', got 0.5"
    refuses(lambda: make(variant=variant, **{other: 0.5}), ValueError, pattern)
    refuses(lambda: make(variant=variant, kappa=0.5, variance=0.5), ValueError, pattern)


@both
@pytest.mark.parametrize("variant", ["unknown", "", None, 3])
def test_variant(make, variant):
    refuses(lambda: make(variant=variant), ValueError, f"^variant: expected one of .*, got {variant!r}")


def test_numbers():
    for eta in (-0.1, -1, float("nan"), float("inf"), "0.1", None, True, ONES(2)):
        refuses(lambda n=eta: dynamics(eta=n), ValueError, "^eta: expected a finite number >= 0, got")
    for share in (0, 0.0, -0.5, 1.5, 2, float("nan"), float("inf"), "0.5", None):
        refuses(lambda n=share: dynamics(subsample=n), ValueError, "^subsample: expected a .*, got")
    for every in (0, -1, 2**31):
        refuses(lambda n=every: dynamics(every=n), ValueError, "^every: expected .*got")
    for every in (1.0, True, "2"):
        refuses(lambda n=every: dynamics(every=n), TypeError, "^every: expected an int, got")
    for name in ("lower", "bias"):
        for flag in ("no", 1, None):
            refuses(lambda o={name: flag}: dynamics(**o), TypeError, f"^{name}: expected True or False, got")


# An update.


def update(inputs: Any = INPUTS, state: Any = STATE, **options: Any) -> Any:
    return lambda: dynamics(**options).update(KEY, state, inputs)


@parametrize_cases(
    {
        "0": (lambda: DYNAMICS.init((3, 0)), ValueError, r"^sizes\[1\]: expected at least 1, got 0"),
        "float": (lambda: DYNAMICS.init((3.0,)), TypeError, r"^sizes\[0\]: expected an int, got 3.0"),
        "one size": (lambda: DYNAMICS.init(3), TypeError, "^sizes: expected one size a layer.*got 3"),
        "no sizes": (lambda: DYNAMICS.init(()), ValueError, "^sizes: expected at least one layer"),
        "huge": (lambda: DYNAMICS.init((10**6,)), ValueError, "^sizes: expected arrays of at most"),
        "features": (
            update((INPUTS[0], ONES((5, 3)))),
            ValueError,
            r"^inputs\[1\]: expected vectors of 4, got shape \[5, 3\]",
        ),
        "scalar": (
            update((ONES(()), INPUTS[1])),
            ValueError,
            r"^inputs\[0\]: expected vectors of 3, got shape \[\]",
        ),
        "none": (
            update((ONES((0, 3)), ONES((0, 4)))),
            ValueError,
            r"^inputs\[0\]: expected vectors of 3, got shape \[0, 3\]",
        ),
        "integers": (
            update((INPUTS[0], ONES((5, 4), int))),
            TypeError,
            r"^inputs\[1\]: expected a floating-point array, got int32",
        ),
        "complex": (update((ONES((5, 3), complex), INPUTS[1])), TypeError, r"^inputs\[0\]: .*got complex"),
        "one layer": (update(INPUTS[:1]), ValueError, "^inputs: expected 2 layers, got 1"),
        "one layer, now and then": (update(INPUTS[:1], every=2), ValueError, "^inputs: expected 2 layers"),
        "three layers": (update((*INPUTS, INPUTS[0])), ValueError, "^inputs: expected 2 layers, got 3"),
        "one array": (
            update(ONES((5, 3))),
            TypeError,
            "^inputs: expected a sequence with one array a layer, got float32",
        ),
        "state": (
            update(state=None),
            TypeError,
            "^state: expected a DecorrelationState, from init, got None",
        ),
        "a state without b": (
            update(bias=True),
            ValueError,
            r"^state.layers\[0\]: expected \['R', 'b'\] as init with bias=True makes them, got \['R'\]",
        ),
        "a state with b": (
            update(state=dynamics(bias=True).init((3, 4))),
            ValueError,
            r"^state.layers\[0\]: expected \['R'\] as init with bias=False makes them, got \['R', 'b'\]",
        ),
        "R": (
            lambda: ll.decorrelation.apply({"R": ONES(3)}, ONES((5, 3))),
            ValueError,
            r"^layer\['R'\]: expected shape \[size, size\], got \[3\]",
        ),
    }
)
def test_updates(call, error, pattern):
    refuses(call, error, pattern)


def test_vectors_of_other_sizes():
    for x in (ONES((5, 4)), ONES(()), ONES((3, 5)), ONES(2)):
        pattern = r"^x: expected shape \[\.\.\., 3\], got \["
        refuses(lambda x=x: ll.decorrelation.apply(STATE.layers[0], x), ValueError, pattern)
    for z in (1.0, ONES(()), ONES(3)):
        refuses(
            lambda z=z: ll.decorrelation.loss(z), ValueError, r"^z: expected shape \[\.\.\., size\] .*got"
        )


# Models.

X, Y, W = ONES((5, 3)), ONES((5, 2)), {"w": ONES((3, 2))}
MODEL = ll.Model(lambda p, x: x @ p["w"])
LAYERS = {"w": {"R": jnp.eye(3)}}


def rule_of(model: Any = MODEL, make_rule: Any = None, of: Any = DYNAMICS, **options: Any) -> Any:
    make_rule = make_rule or (lambda model: ll.backprop(model, ll.squared_error))
    return ll.decorrelation.rule(make_rule, model, of, **options)


def value_and_grad(state: Any, params: Any = W, x: Any = X) -> Any:
    return lambda: rule_of().value_and_grad(KEY, params, state, x, Y)


def with_layers(layers: Any) -> Any:
    return rule_of().init(KEY, W, X)._replace(layers=layers)


USES: dict[str, Any] = {
    "decorrelated": lambda layers: ll.decorrelation.wrap(MODEL, layers).apply(W, X),
    "fold": lambda layers: ll.decorrelation.fold(MODEL, W, layers, X),
    "decorrelation_inputs": lambda layers: ll.decorrelation.inputs(MODEL, W, layers, X),
    "rule": lambda layers: rule_of().value_and_grad(KEY, W, with_layers(layers), X, Y),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_layers_of_another_model(use):
    for layers in ({"v": LAYERS["w"]}, {}, None, (LAYERS["w"],), {**LAYERS, "v": LAYERS["w"]}):
        pattern = r"^state\.layers: expected the entries \['w'\], see init, got "
        refuses(lambda layers=layers: use(layers), ValueError, pattern)
    for layer in ({"R": jnp.eye(2)}, {"R": ONES(3)}, {}, None, jnp.eye(3)):
        pattern = r"^state\.layers\['w'\]\['R'\]: expected shape \[3, 3\], got "
        refuses(lambda layer=layer: use({"w": layer}), ValueError, pattern)


def tied(params, x):
    return jnp.tanh(x @ params["w"]) @ params["w"].T


read_as_they_are = r"^params: expected parameters that one product reads as they are, got 'w'"


@parametrize_cases(
    {
        "model": (lambda: rule_of(3), TypeError, "^model: expected a Model, .*got 3"),
        "model of fold": (
            lambda: ll.decorrelation.fold(3, W, LAYERS, X),
            TypeError,
            "^model: expected a Model, .*got 3",
        ),
        "rule": (lambda: rule_of(make_rule=3), TypeError, "^make_rule: expected a function .*got 3"),
        "rule of two": (
            lambda: rule_of(make_rule=lambda model, loss: None),
            TypeError,
            "^make_rule: expected a function from a model to a rule, got",
        ),
        "no rule": (
            lambda: rule_of(make_rule=lambda model: 3).init(KEY, W, X),
            TypeError,
            "^make_rule: expected a function from a model to a rule on it, got 3",
        ),
        "dynamics": (lambda: rule_of(of=0.1), TypeError, "^dynamics: expected Dynamics, .*got 0.1"),
        "where": (lambda: rule_of(where=3), TypeError, "^where: expected a glob .*got 3"),
        "where nothing is": (
            lambda: rule_of(where="v").init(KEY, W, X),
            ValueError,
            r"^where: expected to select a product .*got 'v', which selects none of \['w'\]",
        ),
        "a sum is no product": (
            lambda: rule_of(ll.Model(lambda p, x: x + p["w"])).init(KEY, {"w": ONES(3)}, X),
            ValueError,
            r"^where: expected to select a product",
        ),
        "integers": (
            lambda: rule_of().init(KEY, W, X.astype(int)),
            ValueError,
            "^x: expected floating-point numbers, which R can multiply, got others at 'w'",
        ),
        "state": (value_and_grad(()), TypeError, "^state: expected the state of the rule's init.*got tuple"),
        "key": (lambda: rule_of().init(0, W, X), TypeError, "^key: expected one key.*got 0"),
        "huge": (
            lambda: rule_of().init(
                KEY,
                {"w": jax.ShapeDtypeStruct((10**6, 1), jnp.float32)},
                jax.ShapeDtypeStruct((1, 10**6), jnp.float32),
            ),
            ValueError,
            "^where: 'w': expected arrays of at most",
        ),
        "a weight that is read twice": (
            lambda: ll.decorrelation.fold(
                ll.Model(tied),
                {"w": jnp.eye(3)},
                rule_of(ll.Model(tied)).init(KEY, {"w": jnp.eye(3)}, X).layers,
                X,
            ),
            ValueError,
            read_as_they_are,
        ),
        "a weight that is scaled": (
            lambda: ll.decorrelation.fold(ll.Model(lambda p, x: x @ (2 * p["w"])), W, LAYERS, X),
            ValueError,
            read_as_they_are,
        ),
        "a mean that is removed": (
            lambda: ll.decorrelation.fold(MODEL, W, {"w": {"R": jnp.eye(3), "b": ONES(3)}}, X),
            ValueError,
            r"^layers\['w'\]: expected no mean to remove",
        ),
    }
)
def test_models(call, error, pattern):
    refuses(call, error, pattern)
