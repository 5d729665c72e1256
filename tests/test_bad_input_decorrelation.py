"""Bad input to decorrelation and convolutions: as in `test_bad_input`, the errors that a user sees."""

# pyright: reportArgumentType=false

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import lax_learning as ll
from tests.refusal import parametrize_cases, refuses

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(0)
NETWORK = ll.mlp((3, 4, 2))
DYNAMICS = ll.decorrelation(0.1)
PARAMS, STATE = NETWORK.init(KEY), DYNAMICS.init(NETWORK)
INPUTS = (jnp.ones((5, 3)), jnp.ones((5, 4)))
OTHER = DYNAMICS.init((3, 5))
IMAGES = jnp.ones((2, 4, 4, 1))
CONVOLUTIONAL = ll.Network((ll.convolution(1, 2, 3),), (4, 4, 1))
SILENT = ll.Network((ll.dense(3, 4), ll.dense(4, 2)._replace(reads=None)), (3,))

VARIANTS = ["paper", "decorbp", "seed", "scaled"]
SHARES = ["paper", "decorbp"]


def loss(**options):
    return ll.decorrelation_loss(jnp.ones((4, 3)), **options)


def dynamics(**options):
    return ll.decorrelation(**{"eta": 0.1, **options})


# Options.


@pytest.mark.parametrize("eta", [-0.1, -1, float("nan"), float("inf"), "0.1", None, True, jnp.ones(2)])
def test_eta(eta):
    refuses(lambda: dynamics(eta=eta), ValueError, "^eta: expected a finite number >= 0, got")


@pytest.mark.parametrize("make", [dynamics, loss])
@pytest.mark.parametrize("variant", SHARES)
@pytest.mark.parametrize("kappa", [-0.1, 1.1, 2, float("nan"), float("inf"), "0.5", True])
def test_kappa(make, variant, kappa):
    refuses(lambda: make(variant=variant, kappa=kappa), ValueError, "^kappa: expected a number in 0..1, got")


@pytest.mark.parametrize("make", [dynamics, loss])
@pytest.mark.parametrize("variant", ["seed", "scaled"])
@pytest.mark.parametrize("variance", [0, 0.0, -1.0, float("nan"), float("inf"), "1", True])
def test_variance(make, variant, variance):
    pattern = "^variance: expected a finite number > 0, got"
    refuses(lambda: make(variant=variant, variance=variance), ValueError, pattern)


@pytest.mark.parametrize("make", [dynamics, loss])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_number_of_another_variant(make, variant):
    name = "variance" if variant in SHARES else "kappa"
    pattern = f"^{name}: expected none with variant '{variant}', got 0.5"
    refuses(lambda: make(variant=variant, **{name: 0.5}), ValueError, pattern)
    refuses(lambda: make(variant=variant, kappa=0.5, variance=0.5), ValueError, pattern)


@pytest.mark.parametrize("make", [dynamics, loss])
@pytest.mark.parametrize("variant", ["unknown", "", None, 3])
def test_variant(make, variant):
    refuses(lambda: make(variant=variant), ValueError, f"^variant: expected one of .*, got {variant!r}")


@pytest.mark.parametrize("subsample", [0, 0.0, -0.5, 1.5, 2, float("nan"), float("inf"), "0.5", None])
def test_subsample(subsample):
    refuses(lambda: dynamics(subsample=subsample), ValueError, "^subsample: expected a .*, got")


@pytest.mark.parametrize(
    ("every", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (2**31, ValueError),
        (1.0, TypeError),
        (True, TypeError),
        ("2", TypeError),
    ],
)
def test_every(every, error):
    refuses(lambda: dynamics(every=every), error, "^every: expected .*got")


@parametrize_cases(
    {
        "0": (lambda: DYNAMICS.init((3, 0)), ValueError, r"^sizes\[1\]: expected at least 1, got 0"),
        "float": (lambda: DYNAMICS.init((3.0,)), TypeError, r"^sizes\[0\]: expected an int, got 3.0"),
        "silent": (
            lambda: DYNAMICS.init(SILENT),
            ValueError,
            r"^network.layers\[1\]: expected a layer that says what it reads, got None",
        ),
    }
)
def test_sizes(call, error, pattern):
    refuses(call, error, pattern)


# What goes through an update.


def update(inputs: Any = INPUTS, network: Any = NETWORK, state: Any = STATE):
    return lambda: DYNAMICS.update(KEY, state, inputs, network)


def patches(inputs: Any):
    return update((inputs,), CONVOLUTIONAL, DYNAMICS.init(CONVOLUTIONAL))


ONES = jnp.ones


@parametrize_cases(
    {
        "features": (
            update((INPUTS[0], ONES((5, 3)))),
            ValueError,
            r"^inputs\[1\]: expected vectors of 4, got shape \[5, 3\]",
        ),
        "no axes": (
            update((ONES(3), INPUTS[1])),
            ValueError,
            r"^inputs\[0\]: expected vectors of 3, got shape \[3\]",
        ),
        "images": (
            update((ONES((5, 2, 3)), INPUTS[1])),
            ValueError,
            r"^inputs\[0\]: .*got shape \[5, 2, 3\]",
        ),
        "rows": (
            update((ONES((5, 4)), INPUTS[1]), None),
            ValueError,
            r"^inputs\[0\]: expected vectors of 3, got shape \[5, 4\]",
        ),
        "channels": (
            patches(ONES((2, 4, 4, 2))),
            ValueError,
            r"^inputs\[0\]: expected vectors of 9, got shape \[2, 4, 4, 2\]",
        ),
        "flat images": (
            patches(ONES((2, 16))),
            ValueError,
            r"^inputs\[0\]: expected vectors of 9, got shape \[2, 16\]",
        ),
        "scalar": (
            update((ONES(()), INPUTS[1]), None),
            ValueError,
            r"^inputs\[0\]: expected vectors of 3, got shape \[\]",
        ),
        "none": (
            update((ONES((0, 3)), ONES((0, 4)))),
            ValueError,
            r"^inputs\[0\]: expected vectors of 3, got shape \[0, 3\]",
        ),
        "no images": (patches(ONES((0, 4, 4, 1))), ValueError, r"^inputs\[0\]: .* of 9, got shape \[0, 4"),
        "integers": (
            update((INPUTS[0], ONES((5, 4), int))),
            TypeError,
            r"^inputs\[1\]: expected a floating-point array, got int32",
        ),
        "bools": (patches(IMAGES > 0), TypeError, r"^inputs\[0\]: expected a floating-point.*got bool"),
        "complex": (update((ONES((5, 3), complex), INPUTS[1])), TypeError, r"^inputs\[0\]: .*got complex"),
        "one layer": (update(INPUTS[:1]), ValueError, "^inputs: expected 2 layers, got 1"),
        "one layer without network": (update(INPUTS[:1], None), ValueError, "^inputs: .* 2 layers, got 1"),
        "three layers": (update((*INPUTS, INPUTS[0])), ValueError, "^inputs: expected 2 layers, got 3"),
        "silent": (update(network=SILENT), ValueError, r"^network.layers\[1\]: expected a layer that .*got"),
    }
)
def test_inputs(call, error, pattern):
    refuses(call, error, pattern)


@pytest.mark.parametrize("every", [1, 2])
def test_the_network_of_an_update(every):
    lazy = ll.decorrelation(0.1, every=every)
    pattern = "^inputs: expected 1 layers, got 2"
    refuses(lambda: lazy.update(KEY, lazy.init((3,)), INPUTS, NETWORK), ValueError, pattern)


@pytest.mark.parametrize("x", [ONES((5, 4)), ONES(()), ONES((3, 5)), ONES(2)])
def test_decorrelate(x):
    pattern = r"^x: expected shape \[\.\.\., 3\], got \["
    refuses(lambda: ll.decorrelate(STATE.layers[0], x), ValueError, pattern)


@pytest.mark.parametrize("z", [1.0, ONES(()), ONES(3)])
def test_decorrelation_loss(z):
    refuses(lambda: ll.decorrelation_loss(z), ValueError, r"^z: expected shape \[\.\.\., size\] .*, got \[")


# Networks.

SIZES = r"^state: expected R of sizes \[3, 4\], as the network reads, got \[3"


@pytest.mark.parametrize(
    "call",
    [
        lambda network, state: ll.decorrelated(network, state),
        lambda network, state: ll.fold(network, PARAMS, state),
    ],
    ids=["decorrelated", "fold"],
)
def test_state_of_another_network(call):
    refuses(lambda: call(NETWORK, OTHER), ValueError, SIZES)
    refuses(lambda: call(NETWORK, DYNAMICS.init((3,))), ValueError, SIZES)
    refuses(lambda: call(NETWORK, DYNAMICS.init((3, 4, 4))), ValueError, SIZES)
    refuses(lambda: call(SILENT, STATE), ValueError, r"^network.layers\[1\]: expected a layer that says")


def test_rule():
    def make_rule(network):
        return ll.backprop(network, ll.squared_error)

    pattern = r"^network.layers\[1\]: expected a layer that says what it reads, got None"
    refuses(lambda: ll.decorrelated_rule(make_rule, SILENT, DYNAMICS), ValueError, pattern)
    rule, y = ll.decorrelated_rule(make_rule, NETWORK, DYNAMICS), ONES((5, 2))
    refuses(lambda: rule.value_and_grad(KEY, PARAMS, OTHER, INPUTS[0], y), ValueError, SIZES)
    refuses(lambda: rule.plain(PARAMS, OTHER), ValueError, SIZES)
    refuses(
        lambda: rule.value_and_grad(KEY, PARAMS, STATE, INPUTS[1], y),
        ValueError,
        r"^x: expected shape \[batch, 3\], got \[5, 4\]",
    )
    refuses(
        lambda: rule.value_and_grad(KEY, PARAMS[:1], STATE, INPUTS[0], y),
        ValueError,
        "^params: expected 2 layers, got 1",
    )
    data = ll.data.Splits(*[ll.data.Dataset(INPUTS[0], y)] * 3)
    train = ll.make_train(rule, optax.sgd(0.1), num_updates=2, batch_size=6)
    refuses(lambda: train(KEY, data), ValueError, "^batch_size: expected .*got")


# Convolutions.


def convolution(**options):
    return lambda: ll.convolution(**{"num_inputs": 1, "num_outputs": 2, "kernel": 3, **options})


@pytest.mark.parametrize("name", ["num_inputs", "num_outputs"])
@pytest.mark.parametrize(
    ("value", "error"),
    [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError), ((1, 2), TypeError)],
)
def test_channels(name, value, error):
    refuses(convolution(**{name: value}), error, f"^{name}: expected .*got")


@pytest.mark.parametrize("name", ["kernel", "stride", "dilation"])
@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        (0, ValueError, "at least 1, got 0"),
        (-1, ValueError, "at least 1, got -1"),
        ((3, 0), ValueError, "at least 1, got 0"),
        ((2.0, 3), TypeError, "an int, got 2.0"),
        (True, TypeError, "an int, got True"),
        ((), ValueError, r"one int or two, got \(\)"),
        ((3,), ValueError, r"one int or two, got \(3,\)"),
        ((3, 3, 3), ValueError, r"one int or two, got \(3, 3, 3\)"),
        ("3", ValueError, "one int or two, got '3'"),
        (2.0, TypeError, "an int, got 2.0"),
        (None, TypeError, "an int, got None"),
    ],
)
def test_pairs(name, value, error, expected):
    refuses(convolution(**{name: value}), error, f"^{name}: expected {expected}")


@pytest.mark.parametrize(
    ("padding", "error", "expected"),
    [
        (-1, ValueError, "at least 0, got -1"),
        ((0, -1), ValueError, "at least 0, got -1"),
        ("FULL", ValueError, "one of .*, got 'FULL'"),
        ("same", ValueError, "one of .*, got 'same'"),
        ((1, 1.0), TypeError, "an int, got 1.0"),
        (((1, 1), (1, 1)), TypeError, r"an int, got \(1, 1\)"),
        ((1, 1, 1), ValueError, r"one int or two, got \(1, 1, 1\)"),
        (1.5, TypeError, "an int, got 1.5"),
        (None, TypeError, "an int, got None"),
    ],
)
def test_padding(padding, error, expected):
    refuses(convolution(padding=padding), error, f"^padding: expected {expected}")


WRONG = [(3, 3, 2, 2), (3, 3, 1, 3), (1, 9, 1, 2), (9, 2)]


@pytest.mark.parametrize("shape", WRONG)
def test_weights_of_a_convolution(shape):
    params = ({"w": ONES(shape)},)
    pattern = r"^w: expected shape \[3, 3, 1, 2\], got \["
    refuses(lambda: CONVOLUTIONAL.apply(params, IMAGES), ValueError, pattern)


@pytest.mark.parametrize("x", [ONES((2, 4, 4, 2)), ONES((2, 4, 4)), ONES((2, 16)), ONES((4, 4, 1))])
def test_images(x):
    params = CONVOLUTIONAL.init(KEY)
    pattern = r"^x: expected shape \[batch, 4, 4, 1\], got \["
    refuses(lambda: CONVOLUTIONAL.apply(params, x), ValueError, pattern)
    on_decorrelated = ll.decorrelated(CONVOLUTIONAL, DYNAMICS.init(CONVOLUTIONAL))
    refuses(lambda: on_decorrelated.apply(params, x), ValueError, pattern)


@pytest.mark.parametrize("shape", WRONG)
def test_weights_of_a_decorrelated_convolution(shape):
    state, params = DYNAMICS.init(CONVOLUTIONAL), ({"w": ONES(shape)},)
    pattern = r"^w: expected shape \[3, 3, 1, 2\], got \["
    refuses(lambda: ll.decorrelated(CONVOLUTIONAL, state).apply(params, IMAGES), ValueError, pattern)
    refuses(lambda: ll.fold(CONVOLUTIONAL, params, state), ValueError, pattern)


@pytest.mark.parametrize(
    ("params", "pattern"),
    [
        (PARAMS[:1], "^params: expected 2 layers, got 1"),
        (({}, PARAMS[1]), r"^params\[0\]: expected a dict with the entry 'w', got"),
        (({"w": ONES((5, 4))}, PARAMS[1]), r"^w: expected shape \[3, outputs\], got \[5, 4\]"),
    ],
)
def test_params_of_fold(params, pattern):
    refuses(lambda: ll.fold(NETWORK, params, STATE), ValueError, pattern)


def test_a_kernel_larger_than_the_image():
    # The numbers of places down and across are both negative: their product is not.
    network = ll.Network((ll.convolution(1, 2, 5, padding="VALID"),), (2, 2, 1))
    state, images = DYNAMICS.init(network), ONES((1, 2, 2, 1))
    pattern = r"^inputs\[0\]: expected vectors of 25, got shape \[1, 2, 2, 1\]"
    refuses(update((images,), network, state), ValueError, pattern)
    pattern = r"^x: expected images .* a kernel of \[5, 5\] after padding, got shape \[1, 2, 2, 1\]"
    refuses(lambda: network.apply(network.init(KEY), images), ValueError, pattern)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("network", [NETWORK, None])
def test_a_state_of_the_other_kind(bias, network):
    with_bias, without = (ll.decorrelation(0.1, bias=b) for b in (bias, not bias))
    pattern = rf"^state.layers\[0\]: expected \[.*\] as init with bias={bias} makes them, got \['R'"
    refuses(lambda: with_bias.update(KEY, without.init(NETWORK), INPUTS, network), ValueError, pattern)


def test_noise_on_pooled_activities():
    def pooled(z):
        return ll.flatten(ll.max_pool(z))

    network = ll.Network((ll.convolution(1, 2, 3, pooled), ll.dense(8, 2)), (4, 4, 1))
    rule = ll.node_perturbation(network, ll.squared_error, sigma=0.1, variant="tutorial")
    pattern = (
        r"^network.layers\[0\].activation: expected one that keeps the shape \[2, 4, 4, 2\].*got \[2, 8\]"
    )
    refuses(lambda: rule.value_and_grad(KEY, rule.init(KEY), IMAGES, ONES((2, 2))), ValueError, pattern)


STATE_OF_3 = ll.decorrelation(0.1).init((3,))


@parametrize_cases(
    {
        "lower": (lambda: ll.decorrelation(0.1, lower="no"), TypeError, "^lower: expected True or False"),
        "bias": (lambda: ll.decorrelation(0.1, bias=1), TypeError, "^bias: expected True or False, got 1"),
        "one size": (
            lambda: ll.decorrelation(0.1).init(3),
            TypeError,
            "^sizes: expected one size a layer.*got 3",
        ),
        "no sizes": (
            lambda: ll.decorrelation(0.1).init(()),
            ValueError,
            "^sizes: expected at least one layer",
        ),
        "huge": (
            lambda: ll.decorrelation(0.1).init((10**6,)),
            ValueError,
            "^sizes: expected arrays of at most",
        ),
        "one array": (
            lambda: ll.decorrelation(0.1).update(jax.random.key(0), STATE_OF_3, jnp.ones((5, 3))),
            TypeError,
            "^inputs: expected a sequence with one array a layer, got float32",
        ),
        "state": (
            lambda: ll.decorrelation(0.1).update(jax.random.key(0), None, (jnp.ones((5, 3)),)),
            TypeError,
            "^state: expected a DecorrelationState, from init, got None",
        ),
        "R": (
            lambda: ll.decorrelate({"R": jnp.ones(3)}, jnp.ones((5, 3))),
            ValueError,
            r"^layer\['R'\]: expected shape \[size, size\], got \[3\]",
        ),
        "rule": (
            lambda: ll.decorrelated_rule(lambda network: None, ll.mlp((3, 2)), ll.decorrelation(0.1)).init(
                jax.random.key(0)
            ),
            TypeError,
            "^make_rule: expected a function from a network to a Rule, got None",
        ),
    }
)
def test_wrong_kinds(call, error, pattern):
    refuses(call, error, pattern)
