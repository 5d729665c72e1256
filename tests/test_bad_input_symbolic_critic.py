"""Bad input to the critic and its training: as in `test_bad_input`, the errors that a user sees."""

# pyright: reportArgumentType=false

import jax
import jax.numpy as jnp
import optax
import pytest

from lax_learning.symbolic.adam import adam_with_decay
from lax_learning.symbolic.critic import critic, embed, stack
from lax_learning.symbolic.critic_losses import (
    area_under_curve,
    critic_accuracy,
    critic_loss,
    gradient_penalty,
)
from lax_learning.symbolic.critic_training import (
    CriticState,
    critic_epoch,
    critic_step,
    init_critic,
    train_critic,
)
from lax_learning.symbolic.curves import curves_at
from lax_learning.symbolic.expressions import parse_library
from lax_learning.symbolic.generators import dsn_generator, latent_jacobian, mlp_generator
from tests.refusal import parametrize_cases, refuses

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(0)
ONES = jnp.ones
PLAIN, WIDE = critic(4, hidden=(3,)), critic(4, hidden=(3,), channels=2, embedding=(3,))
PARAMS = PLAIN.init(KEY)
CURVES = ONES((2, 4))
NOT_COUNTS = [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError), ("2", TypeError)]
NOT_WEIGHTS = [-0.1, -1, float("nan"), float("inf"), "0.1", None, True, ONES(2)]


@pytest.mark.parametrize("name", ["num_points", "channels"])
@pytest.mark.parametrize(("value", "error"), NOT_COUNTS)
def test_sizes(name, value, error):
    refuses(lambda: critic(**{"num_points": 4, name: value}), error, f"^{name}: expected .*got")


@pytest.mark.parametrize("name", ["hidden", "embedding"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("value", "error"), NOT_COUNTS)
def test_widths(name, channels, value, error):
    options = {"channels": channels, name: (3, value)}
    refuses(lambda: critic(4, **options), error, rf"^{name}\[1\]: expected .*got")


@pytest.mark.parametrize("name", ["hidden", "embedding"])
@pytest.mark.parametrize("value", [64, None, "64", 2.0])
def test_widths_that_are_no_sequence(name, value):
    refuses(lambda: critic(4, **{name: value}), TypeError, f"^{name}: expected a sequence of widths, got")


BAD_CURVES = {
    "points": (PLAIN, ONES((2, 5)), ValueError, r"expected shape \[number, 4\], got \[2, 5\]"),
    "one curve": (PLAIN, ONES(4), ValueError, r"expected shape \[number, 4\], got \[4\]"),
    "scalar": (PLAIN, ONES(()), ValueError, r"expected shape \[number, 4\], got \[\]"),
    "channel": (PLAIN, ONES((2, 4, 1)), ValueError, r"expected shape \[number, 4\], got \[2, 4, 1\]"),
    "none": (PLAIN, ONES((0, 4)), ValueError, r"expected at least one curve, got shape \[0, 4\]"),
    "integers": (PLAIN, ONES((2, 4), int), TypeError, "expected a floating-point array, got int32"),
    "channels": (WIDE, ONES((2, 4, 3)), ValueError, r"expected shape \[number, 4, 2\], got \[2, 4, 3\]"),
    "no channels": (WIDE, CURVES, ValueError, r"expected shape \[number, 4, 2\], got \[2, 4\]"),
    "other points": (WIDE, ONES((2, 8, 1)), ValueError, r"expected shape \[number, 4, 2\], got \[2, 8, 1\]"),
}


@pytest.mark.parametrize(("judge", "curves", "error", "pattern"), BAD_CURVES.values(), ids=BAD_CURVES.keys())
def test_curves(judge, curves, error, pattern):
    params, good = judge.init(KEY), ONES((2, *judge.curve_shape))
    optimizer = adam_with_decay(0.1)
    step, state = critic_step(judge, optimizer), init_critic(KEY, judge, optimizer)
    refuses(lambda: judge.apply(params, curves), error, "^curves: " + pattern)
    for name, pair in (("real", (curves, good)), ("fake", (good, curves))):
        message = f"^{name}: " + pattern
        refuses(lambda pair=pair: step(KEY, state, *pair), error, message)
        refuses(lambda pair=pair: gradient_penalty(judge, params, ONES(2), *pair), error, message)


@parametrize_cases(
    {
        "numbers": (
            lambda: gradient_penalty(PLAIN, PARAMS, ONES(2), CURVES, ONES((3, 4))),
            ValueError,
            r"^fake: expected shape \[2, 4\], got \[3, 4\]",
        ),
        "one eps": (
            lambda: gradient_penalty(PLAIN, PARAMS, 0.5, CURVES, CURVES),
            ValueError,
            r"^eps: expected shape \[2\], got \[\]",
        ),
        "eps of points": (
            lambda: gradient_penalty(PLAIN, PARAMS, CURVES, CURVES, CURVES),
            ValueError,
            r"^eps: expected shape \[2\], got \[2, 4\]",
        ),
        "draws": (
            lambda: critic_step(
                PLAIN, adam_with_decay(0.1), penalty=0.1, draws=lambda key, number: ONES((number, 1))
            )(KEY, init_critic(KEY, PLAIN, adam_with_decay(0.1)), CURVES, CURVES),
            ValueError,
            r"^eps: expected shape \[2\], got \[2, 1\]",
        ),
        "layers": (
            lambda: PLAIN.apply({**PARAMS, "critic": PARAMS["critic"][:1]}, CURVES),
            ValueError,
            "^params: expected 2 layers, got 1",
        ),
        "entries": (
            lambda: PLAIN.apply({"critic": PARAMS["critic"]}, CURVES),
            ValueError,
            r"^params: expected the entries 'critic' and 'embedding', got \['critic'\]",
        ),
        "tuple": (lambda: PLAIN.apply(PARAMS["critic"], CURVES), ValueError, "^params: .*got tuple"),
        "no embedding": (
            lambda: WIDE.apply(PARAMS, ONES((2, 4, 2))),
            ValueError,
            "^params: expected 2 layers, got 0",
        ),
    }
)
def test_penalty_and_params(call, error, pattern):
    refuses(call, error, pattern)


@pytest.mark.parametrize("extend", [stack, embed])
@pytest.mark.parametrize(
    ("curves", "extensions", "error", "pattern"),
    [
        (ONES(4), (), ValueError, r"^curves: expected shape \[number, points\], got \[4\]"),
        (ONES((2, 4, 1)), (), ValueError, r"^curves: expected shape .*got \[2, 4, 1\]"),
        (ONES((0, 4)), (), ValueError, "^curves: expected at least one curve, got"),
        (ONES((2, 4), int), (), TypeError, "^curves: expected a floating-point array, got int32"),
        (
            CURVES,
            (ONES((4, 1)), ONES((5, 1))),
            ValueError,
            r"^extensions\[1\]: expected shape \[4, columns\] or \[2, 4, columns\], got \[5, 1\]",
        ),
        (CURVES, (ONES(4),), ValueError, r"^extensions\[0\]: expected shape .*got \[4\]"),
        (CURVES, (CURVES,), ValueError, r"^extensions\[0\]: expected shape .*got \[2, 4\]"),
        (CURVES, (ONES((3, 4, 1)),), ValueError, r"^extensions\[0\]: expected shape .*got \[3, 4, 1\]"),
        (CURVES, (ONES((2, 4, 1, 1)),), ValueError, r"^extensions\[0\]: expected .*got \[2, 4, 1, 1\]"),
        (CURVES, (ONES((4, 1), int),), TypeError, r"^extensions\[0\]: expected a floating.*got int32"),
    ],
)
def test_extensions(extend, curves, extensions, error, pattern):
    refuses(lambda: extend(curves, *extensions), error, pattern)


@pytest.mark.parametrize("score", [critic_loss, critic_accuracy, area_under_curve])
@pytest.mark.parametrize(
    ("logits", "error", "pattern"),
    [
        (ONES(()), ValueError, r"expected shape \[number\] .*got \[\]"),
        (ONES((2, 1)), ValueError, r"expected shape \[number\] .*got \[2, 1\]"),
        (ONES(0), ValueError, r"expected .* at least one entry, got \[0\]"),
        (ONES(2, int), TypeError, "expected a floating-point array, got int32"),
    ],
)
def test_logits(score, logits, error, pattern):
    refuses(lambda: score(logits, ONES(2)), error, "^logits_real: " + pattern)
    refuses(lambda: score(ONES(2), logits), error, "^logits_fake: " + pattern)


@pytest.mark.parametrize("objective", ["BCE", "", "hinge", None, 3])
def test_objective(objective):
    pattern = f"^objective: expected one of .*bce.*wgan.*, got {objective!r}"
    refuses(lambda: critic_loss(ONES(2), ONES(2), objective=objective), ValueError, pattern)
    refuses(lambda: critic_step(PLAIN, adam_with_decay(0.1), objective=objective), ValueError, pattern)


@pytest.mark.parametrize("value", NOT_WEIGHTS)
def test_weights(value):
    def pattern(name):
        return f"^{name}: expected a finite number >= 0, got"

    refuses(lambda: adam_with_decay(value), ValueError, pattern("learning_rate"))
    refuses(lambda: adam_with_decay(0.1, value), ValueError, pattern("decay"))
    refuses(lambda: critic_step(PLAIN, adam_with_decay(0.1), penalty=value), ValueError, pattern("penalty"))


@pytest.mark.parametrize("name", ["b1", "b2"])
@pytest.mark.parametrize("value", [-0.1, 1, 1.0, 1.5, float("nan"), "0.9", None])
def test_moments(name, value):
    refuses(lambda: adam_with_decay(0.1, **{name: value}), ValueError, f"^{name}: expected a number .*got")


@pytest.mark.parametrize(("value", "error"), NOT_COUNTS)
def test_counts(value, error):
    step = critic_step(PLAIN, adam_with_decay(0.1))
    epoch = critic_epoch(lambda key: CURVES, lambda key: CURVES, step, 1)
    refuses(
        lambda: critic_epoch(lambda key: CURVES, lambda key: CURVES, step, value),
        error,
        "^iterations: expected .*got",
    )
    refuses(lambda: train_critic(epoch, value), error, "^num_epochs: expected .*got")


def test_curves_of_an_epoch():
    optimizer = adam_with_decay(0.1)
    step, state = critic_step(PLAIN, optimizer), init_critic(KEY, PLAIN, optimizer)
    for resample in (False, True):
        epoch = critic_epoch(lambda key: CURVES, lambda key: ONES((2, 5)), step, 1, resample=resample)
        refuses(lambda epoch=epoch: epoch(KEY, state), ValueError, r"^real: expected .*got \[2, 5\]")


ADAM = adam_with_decay(0.1)
STATE = init_critic(KEY, PLAIN, ADAM)
STEP = critic_step(PLAIN, ADAM)


def two_outputs(layers):
    return (*layers[:-1], {"w": ONES((3, 2)), "b": ONES(2)})


def curves(key):
    return CURVES


@parametrize_cases(
    {
        "outputs": (
            lambda: PLAIN.apply({**PARAMS, "critic": two_outputs(PARAMS["critic"])}, CURVES),
            ValueError,
            r"^params\[1\]\['w'\]: expected shape \[3, 1\], got \[3, 2\]",
        ),
        "integer weights": (
            lambda: STEP(KEY, CriticState(jax.tree.map(jnp.int32, PARAMS), None), CURVES, CURVES),
            TypeError,
            r"^params\['critic'\]\[0\]\['b'\]: expected a floating-point array, got int32",
        ),
        "state of another optimizer": (
            lambda: STEP(KEY, init_critic(KEY, PLAIN, optax.sgd(0.1)), CURVES, CURVES),
            ValueError,
            r"^state.optimizer_state: expected the structure of optimizer.init\(params\)",
        ),
        "draws": (
            lambda: critic_step(PLAIN, ADAM, penalty=0.1, draws=lambda key: ONES(2)),
            TypeError,
            r"^draws: expected a function of \(key, number\), got <lambda>\(key\)",
        ),
        "generate": (
            lambda: critic_epoch(lambda: CURVES, curves, STEP, 1),
            TypeError,
            r"^generate: expected a function of a key that returns curves, got <lambda>\(\)",
        ),
        "step": (
            lambda: critic_epoch(curves, curves, lambda *a: None, 1)(KEY, STATE),
            TypeError,
            r"^step: expected a function that returns \(CriticState, CriticMetrics\), got None",
        ),
        "state of an epoch": (
            lambda: critic_epoch(curves, curves, STEP, 1)(KEY, "state"),
            TypeError,
            "^state: expected a CriticState, from init_critic, got 'state'",
        ),
        "epoch": (
            lambda: train_critic(lambda key, state: state, 1)(KEY, STATE),
            TypeError,
            r"^epoch: expected a function that returns \(CriticState, CriticMetrics\), got CriticState",
        ),
        "first": (
            lambda: train_critic(critic_epoch(curves, curves, STEP, 1), 1)(KEY, STATE, -1),
            ValueError,
            "^first: expected at least 0, got -1",
        ),
        "updates": (
            lambda: ADAM.update({"w": ONES(4)}, ADAM.init({"w": ONES(3)}), {"w": ONES(3)}),
            ValueError,
            r"^updates\['w'\]: expected shape \[3\] as in params, got \[4\]",
        ),
        "moments": (
            lambda: ADAM.update({"w": ONES(3)}, ADAM.init({"w": ONES(4)}), {"w": ONES(3)}),
            ValueError,
            r"^state\[1\].mu\['w'\]: expected shape \[3\] as in params, got \[4\]",
        ),
        "state of adam": (
            lambda: ADAM.update({"w": ONES(3)}, (), {"w": ONES(3)}),
            TypeError,
            r"^state: expected what init\(params\) returns, got None",
        ),
        "rate that is a key": (lambda: adam_with_decay(KEY), ValueError, "^learning_rate: expected a finite"),
        "dtype that is an array": (
            lambda: critic(4, dtype=ONES(3)),
            TypeError,
            r"^dtype: expected a floating-point dtype, got float32\[3\]",
        ),
        "outputs of a generator": (
            lambda: dsn_generator(1, 1, hidden=(3,)).apply(
                {"networks": ({"w": ONES((1, 1, 3))}, {"w": ONES((1, 3, 2))}), "alpha": ONES((1, 1))},
                ONES((2, 1)),
            ),
            ValueError,
            r"^params\[1\]\['w'\]: expected shape \[3, 1\], got \[3, 2\]",
        ),
        "arguments of apply": (
            lambda: latent_jacobian(lambda x: x, {}, ONES((2, 1))),
            TypeError,
            r"^apply: expected a function of \(params, x\), got <lambda>\(x\)",
        ),
        "latents": (
            lambda: latent_jacobian(lambda p, x: None, {}, ONES((2, 1))),
            TypeError,
            r"^apply\(params, x\): expected a floating-point array, got None",
        ),
        "latents of curves": (
            lambda: curves_at(ONES((5, 1)), parse_library("X[:,0]"), mlp_generator(1, 1)).latents(
                lambda p, x: x[:, 0], {}
            ),
            ValueError,
            r"^apply: expected latents \[5, latents\], got shape \[5\]",
        ),
    }
)
def test_functions_states_and_outputs(call, error, pattern):
    refuses(call, error, pattern)
