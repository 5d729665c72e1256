"""NNX layers and converted models against the same network built by hand."""

import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import lax_learning.flax as lf
import numpy as np
import optax
import pytest
from flax import nnx

import lax_learning as ll
from tests.compare import assert_close, assert_same, differs

# Much is traced here: annotations are checked where the same functions run in their examples.
pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(0)
BATCH, OUTPUTS = 6, 3
ETA = 0.05
DYNAMICS = ll.decorrelation(ETA, kappa=0.3)


class Dense(nnx.Module):
    """5 - 7 - 6 - 3, with tanh."""

    def __init__(self, rngs: nnx.Rngs, activation: Any = jnp.tanh):
        self.first = nnx.Linear(5, 7, param_dtype=float, rngs=rngs)
        self.second = nnx.Linear(7, 6, param_dtype=float, rngs=rngs)
        self.third = nnx.Linear(6, OUTPUTS, use_bias=False, param_dtype=float, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Any) -> Any:
        return self.third(self.activation(self.second(self.activation(self.first(x)))))


class Images(nnx.Module):
    """Two convolutions on 5 x 5 images of 2 channels, and a dense layer."""

    def __init__(self, rngs: nnx.Rngs, activation: Any = jnp.tanh):
        self.first = nnx.Conv(2, 4, (3, 3), param_dtype=float, rngs=rngs)
        self.second = nnx.Conv(4, 3, (3, 2), 2, padding="VALID", use_bias=False, param_dtype=float, rngs=rngs)
        self.third = nnx.Linear(12, OUTPUTS, param_dtype=float, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Any) -> Any:
        a = self.activation(self.second(self.activation(self.first(x))))
        return self.third(a.reshape(a.shape[0], -1))


MODELS: dict[str, Any] = {"dense": Dense, "images": Images}
SHAPES = {"dense": (5,), "images": (5, 5, 2)}
both_kinds = pytest.mark.parametrize("kind", MODELS)


def by_hand(kind: str, activation: Any = jnp.tanh) -> ll.Network:
    if kind == "dense":
        layers = ll.dense(5, 7, activation), ll.dense(7, 6, activation), ll.dense(6, OUTPUTS, b_init=None)
    else:
        layers = (
            ll.convolution(2, 4, 3, activation),
            ll.convolution(4, 3, (3, 2), lambda z: ll.flatten(activation(z)), stride=2, padding="VALID"),
            ll.dense(12, OUTPUTS),
        )
    return ll.Network(layers, SHAPES[kind])


def make(kind: str, activation: Any = jnp.tanh) -> Any:
    """A model with biases that are not zero; do not change it."""
    return _made(kind, activation, jax.config.read("jax_enable_x64"))


@cache
def _made(kind: str, activation: Any, x64: bool) -> Any:
    model = MODELS[kind](nnx.Rngs(3), activation)
    for i, layer in enumerate((model.first, model.second, model.third)):
        if layer.bias is not None:
            layer.bias[...] = jax.random.normal(jax.random.key(i), layer.bias.shape, layer.bias.dtype)
    return model


def batch(kind: str) -> tuple[Any, Any]:
    x = jax.random.normal(jax.random.key(1), (BATCH, *SHAPES[kind]))
    return x, jax.random.normal(jax.random.key(2), (BATCH, OUTPUTS))


def params_of(tree: Any) -> Any:
    """The params of the network by hand, from a model or its gradients."""
    layers = []
    for name in ("first", "second", "third"):
        layer = nnx.state(tree)[name] if isinstance(tree, nnx.Module) else tree[name]
        names = {"kernel": "w", "bias": "b", "feedback": "feedback"}
        layers.append({names[k]: v[...] for k, v in layer.items() if k in names})
    return tuple(layers)


def losses_of(model: Any, x: Any, y: Any) -> Any:
    return ll.squared_error(model(x), y)


def mean_loss(model: Any, x: Any, y: Any) -> Any:
    return jnp.mean(losses_of(model, x, y))


nnx_gradient = nnx.jit(nnx.value_and_grad(mean_loss))
output = nnx.jit(lambda model, x: model(x))
update_decorrelation = nnx.jit(lf.update_decorrelation)


def rngs() -> nnx.Rngs:
    return nnx.Rngs(feedback=7)


# --- against the network by hand

HIDDEN = "[st]*"  # second and third: the first layer passes no error on
FEEDBACK: dict[str, Any] = {
    "fa": (lf.FeedbackAlignment(), ll.feedback_alignment),
    "usf": (lf.SignSymmetry(gain=0.3), partial(ll.sign_symmetry, gain=0.3)),
    "frsf": (lf.SignSymmetry("fixed", gain=2.0), partial(ll.sign_symmetry, magnitude="fixed", gain=2.0)),
    "kp": (lf.KolenPollack(decay=0.2), partial(ll.kolen_pollack, decay=0.2)),
}


@both_kinds
@pytest.mark.parametrize("name", FEEDBACK)
def test_feedback_rules(kind: str, name: str, x64: None) -> None:
    layer_rule, factory = FEEDBACK[name]
    model, (x, y) = make(kind), batch(kind)
    converted = lf.convert(model, layer_rule, HIDDEN, rngs=rngs())
    assert_same(output(converted, x), output(model, x))
    params = params_of(converted)
    assert ["feedback" in layer for layer in params] == [False, *[name != "usf"] * 2]
    loss, grads = nnx_gradient(converted, x, y)
    rule = factory(by_hand(kind), ll.squared_error)
    expected, by_rule = jax.jit(rule.value_and_grad)(KEY, params, x, y)
    # Feedback that does not learn has zeros there, and is in no gradient here.
    by_rule = by_rule if name == "kp" else ll.without_feedback(by_rule)
    assert_close((loss, params_of(grads)), (expected, by_rule), ulps=256)
    exact = nnx_gradient(model, x, y)[1]
    assert differs(params_of(grads)[0]["w"], params_of(exact)[0]["w"])


def test_redrawn_magnitudes_are_fixed_ones_drawn_at_every_call() -> None:
    model, (x, y) = make("dense"), batch("dense")
    fixed: Any = lf.convert(model, lf.SignSymmetry("fixed"), HIDDEN, rngs=rngs())
    redrawn: Any = lf.convert(model, lf.SignSymmetry("redrawn"), HIDDEN, rngs=nnx.Rngs(noise=5))
    assert redrawn.second.feedback is None and fixed.second.noise is None
    of_calls = []
    for count in range(2):
        for name in ("second", "third"):
            layer, key = getattr(fixed, name), getattr(redrawn, name).noise.key[...]
            drawn = jax.nn.initializers.lecun_normal()(jax.random.fold_in(key, count), layer.kernel.shape)
            layer.feedback[...] = drawn
        of_calls.append(nnx_gradient(redrawn, x, y))
        assert_close(of_calls[-1], nnx_gradient(fixed, x, y), ulps=64)
        assert int(redrawn.second.noise.count[...]) == count + 1
    assert differs(of_calls[0], of_calls[1])
    assert differs(redrawn.second.noise.key[...], redrawn.third.noise.key[...])


@both_kinds
@pytest.mark.parametrize("layer_rule", [lf.FeedbackAlignment(), lf.KolenPollack(decay=0.0)], ids=["fa", "kp"])
def test_feedback_equal_to_the_weights_is_backprop_to_the_last_bit(kind: str, layer_rule: Any) -> None:
    model, (x, y) = make(kind), batch(kind)
    converted = lf.convert(model, layer_rule, rngs=rngs())
    for layer in (converted.first, converted.second, converted.third):
        layer.feedback[...] = layer.kernel[...]
    loss, grads = nnx_gradient(converted, x, y)
    assert_same((loss, ll.without_feedback(params_of(grads))), _exact(model, x, y))


def _exact(model: Any, x: Any, y: Any) -> Any:
    loss, grads = nnx_gradient(model, x, y)
    return loss, params_of(grads)


PERTURBING: dict[str, Any] = {
    "np": partial(ll.node_perturbation, sigma=0.1),
    "np-3": partial(ll.node_perturbation, sigma=0.1, num_samples=3, antithetic=True, noise="rademacher"),
    "np-activity": partial(ll.node_perturbation, sigma=0.1, variant="activity", layerwise=True),
    "fg": partial(ll.forward_gradient, perturb="activities"),
}


@pytest.mark.parametrize(("kind", "name"), [("dense", name) for name in PERTURBING] + [("images", "np")])
def test_perturbation(kind: str, name: str, x64: None) -> None:
    model, (x, y) = make(kind), batch(kind)
    converted = lf.convert(model, lf.Taps())
    assert_same(output(converted, x), output(model, x))
    estimate = nnx.jit(lf.value_and_grad(PERTURBING[name], losses_of))
    loss, grads = estimate(KEY, converted, x, y)
    rule = PERTURBING[name](by_hand(kind), ll.squared_error)
    expected = jax.jit(rule.value_and_grad)(KEY, params_of(model), x, y)
    # The difference of two losses is divided by sigma, and its rounding with it.
    assert_close((loss, params_of(grads)), expected, ulps=2560)


@both_kinds
def test_backprop_through_taps_is_the_gradient(kind: str, x64: None) -> None:
    model, (x, y) = make(kind), batch(kind)
    converted = lf.convert(model, lf.Taps())
    loss, grads = nnx.jit(lf.value_and_grad(ll.backprop, losses_of))(KEY, converted, x, y)
    assert_close((loss, params_of(grads)), _exact(model, x, y), ulps=256)


def test_taps_are_where_they_are_asked_for(x64: None) -> None:
    model, (x, y) = make("dense"), batch("dense")
    converted = lf.convert(
        lf.convert(model, lf.FeedbackAlignment(), "third", rngs=rngs()), lf.Taps(), "second"
    )
    _, grads = nnx.jit(lf.value_and_grad(ll.backprop, losses_of))(KEY, converted, x, y)
    zeros = jax.tree.map(jnp.zeros_like, grads)
    assert_same((grads["first"], grads["third"]), (zeros["first"], zeros["third"]))
    through = lf.convert(model, lf.FeedbackAlignment(), "third", rngs=rngs())
    assert_close(grads["second"], nnx_gradient(through, x, y)[1]["second"], ulps=256)


@both_kinds
@pytest.mark.parametrize("bias", [False, True])
def test_decorrelated_inputs_under_feedback_alignment(kind: str, bias: bool, x64: None) -> None:
    network, (x, y) = by_hand(kind), batch(kind)
    dynamics = ll.decorrelation(ETA, kappa=0.3, bias=bias)
    model = lf.convert(make(kind), lf.Decorrelation(dynamics))
    assert_close(output(model, x), output(make(kind), x), ulps=64)  # R starts as the identity
    model = lf.convert(model, lf.FeedbackAlignment(), HIDDEN, rngs=rngs())
    start = dynamics.init(network)
    drawn = jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(KEY, leaf.shape, leaf.dtype), start.layers
    )
    state = ll.DecorrelationState(drawn, start.step)
    for layer, of_layer in zip((model.first, model.second, model.third), drawn, strict=True):
        layer.decorrelation.set_value(ll.DecorrelationState((of_layer,), start.step))
    params = params_of(model)

    @nnx.jit
    def step(key: Any, model: Any) -> Any:
        loss, grads = nnx.value_and_grad(mean_loss)(model, x, y)
        return loss, grads, lf.update_decorrelation(key, model, x)

    rule = ll.decorrelated_rule(lambda n: ll.feedback_alignment(n, ll.squared_error), network, dynamics)
    expected, by_rule, after = jax.jit(rule.value_and_grad)(KEY, params, state, x, y)
    loss, grads, diagnostics = step(KEY, model)
    assert_close((loss, params_of(grads)), (expected, ll.without_feedback(by_rule)), ulps=1024)
    learned = [layer.decorrelation.get_value() for layer in (model.first, model.second, model.third)]
    assert_close(tuple(of_layer.layers[0] for of_layer in learned), after.layers, ulps=1024)
    assert [int(of_layer.step) for of_layer in learned] == [1, 1, 1]
    assert diagnostics.loss.shape == (3,) and bool((diagnostics.loss > 0).all())


@both_kinds
def test_node_perturbation_on_decorrelated_inputs(kind: str, x64: None) -> None:
    network, (x, y) = by_hand(kind), batch(kind)
    model = lf.convert(lf.convert(make(kind), lf.Taps()), lf.Decorrelation(DYNAMICS))
    update_decorrelation(KEY, model, x)
    layers = tuple(
        layer.decorrelation.get_value().layers[0] for layer in (model.first, model.second, model.third)
    )
    state = ll.DecorrelationState(layers, jnp.ones((), jnp.int32))
    rule = PERTURBING["np"](ll.decorrelated(network, state), ll.squared_error)
    expected = jax.jit(rule.value_and_grad)(KEY, params_of(model), x, y)
    loss, grads = nnx.jit(lf.value_and_grad(PERTURBING["np"], losses_of))(KEY, model, x, y)
    assert_close((loss, params_of(grads)), expected, ulps=5120)


@both_kinds
def test_k_cap(kind: str, x64: None) -> None:
    model, (x, y) = make(kind, jax.nn.relu), batch(kind)
    capped = lf.convert(model, lf.KCap(2), "[fs]*")
    network = by_hand(kind, lambda z: ll.plasticity.k_cap(jax.nn.relu(z), 2))
    rule = ll.backprop(network, ll.squared_error)
    expected = jax.jit(rule.value_and_grad)(KEY, params_of(model), x, y)
    loss, grads = nnx_gradient(capped, x, y)
    assert_close((loss, params_of(grads)), expected, ulps=256)
    assert int((output(capped.first, x) != 0).sum(axis=-1).max()) == 2
    assert differs(output(capped, x), output(model, x))
    as_activation = nnx.clone(model)
    as_activation.activation = lambda z: lf.KCap(2)(jax.nn.relu(z))
    assert_close(output(as_activation, x), output(capped, x), ulps=16)


# --- training

TRAINING: dict[str, Any] = {
    **{name: [rule] for name, (rule, _) in FEEDBACK.items()},
    "np": [lf.Taps()],
    "decorrelated": [lf.Decorrelation(DYNAMICS)],
    "k-cap": [lf.KCap(2)],
    "all": [lf.Decorrelation(DYNAMICS), lf.FeedbackAlignment(), lf.KCap(4)],
}


def convert_all(model: Any, name: str, streams: nnx.Rngs) -> Any:
    for rule in TRAINING[name]:
        model = lf.convert(model, rule, "[fs]*" if isinstance(rule, lf.KCap) else None, rngs=streams)
    return model


def make_step(name: str) -> Any:
    perturb = lf.value_and_grad(PERTURBING["np"], losses_of)

    def step(key: Any, model: Any, optimizer: Any, x: Any, y: Any) -> Any:
        if name == "np":
            loss, grads = perturb(key, model, x, y)
        else:
            loss, grads = nnx.value_and_grad(mean_loss)(model, x, y)
        if name in ("decorrelated", "all"):
            lf.update_decorrelation(key, model, x)
        optimizer.update(model, grads)
        return loss

    return step


@pytest.mark.parametrize(
    ("kind", "name"), [("dense", name) for name in TRAINING] + [("images", "kp"), ("images", "np")]
)
def test_training_lowers_the_loss_and_compiles_once(kind: str, name: str) -> None:
    model = convert_all(make(kind), name, rngs())
    optimizer = nnx.Optimizer(model, optax.sgd(0.01, momentum=0.9), wrt=nnx.Param)
    step, traces = make_step(name), []

    @nnx.jit
    def counted(*args: Any) -> Any:
        traces.append(name)
        return step(*args)

    losses = [counted(key, model, optimizer, *batch(kind)) for key in jax.random.split(KEY, 40)]
    assert len(traces) == 1, "a later call compiled again"
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


@pytest.mark.parametrize("name", ["np", "all"])
def test_seeds_side_by_side_are_seeds_one_by_one(name: str) -> None:
    x, y = batch("dense")
    keys, step = jax.random.split(KEY, 3), make_step(name)

    def start(key: Any) -> Any:
        streams = nnx.Rngs(key, feedback=jax.random.fold_in(key, 1))
        model = convert_all(Dense(streams), name, streams)
        return model, nnx.Optimizer(model, optax.sgd(0.01, momentum=0.9), wrt=nnx.Param)

    def run(key: Any, model: Any, optimizer: Any) -> Any:
        return step(key, model, optimizer, x, y)

    model, optimizer = nnx.vmap(start)(keys)
    side_by_side = nnx.jit(nnx.vmap(run))
    losses = [side_by_side(keys, model, optimizer) for _ in range(2)][1]
    single = nnx.jit(run)
    for i, key in enumerate(keys):
        alone = start(key)
        (_, loss) = [single(key, *alone) for _ in range(2)]
        assert_close(losses[i], loss, ulps=640)
        member = jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], params_of(nnx.state(model, nnx.Param)))
        assert_close(member, params_of(nnx.state(alone[0], nnx.Param)), ulps=640)


def test_split_and_merge_in_pure_jax() -> None:
    model, (x, y) = lf.convert(make("dense"), lf.KolenPollack(), rngs=rngs()), batch("dense")
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params: Any) -> Any:
        return mean_loss(nnx.merge(graph, params, rest), x, y)

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    expected, of_nnx = nnx_gradient(model, x, y)
    assert_close((value, params_of(grads)), (expected, params_of(of_nnx)), ulps=64)


def test_optimisers_see_feedback_only_where_it_learns() -> None:
    x, y = batch("dense")
    shrink = optax.chain(ll.clip_by_forward_norm(1e-3), optax.add_decayed_weights(0.1), optax.sgd(0.1))
    fixed = lf.convert(make("dense"), lf.FeedbackAlignment(), rngs=rngs())
    before = fixed.second.feedback[...]
    update = nnx.jit(lambda model, optimizer, grads: optimizer.update(model, grads))
    update(fixed, nnx.Optimizer(fixed, shrink, wrt=nnx.Param), nnx_gradient(fixed, x, y)[1])
    assert_same(fixed.second.feedback[...], before)

    learned = lf.convert(make("dense"), lf.KolenPollack(decay=0.2), HIDDEN, rngs=rngs())
    apart = [learned.second.kernel[...] - learned.second.feedback[...]]
    optimizer = nnx.Optimizer(learned, optax.sgd(0.5), wrt=nnx.Param)
    update = nnx.jit(lambda model, optimizer, grads: optimizer.update(model, grads))
    for _ in range(2):
        update(learned, optimizer, nnx_gradient(learned, x, y)[1])
        apart.append(learned.second.kernel[...] - learned.second.feedback[...])
    assert_close(apart[2], (1 - 0.5 * 0.2) ** 2 * apart[0], ulps=64)
    mask = ll.forward_mask(nnx.as_pure(nnx.state(learned, nnx.Param)))
    assert [leaf for leaf in jax.tree.leaves(mask)].count(False) == 2


# --- layers


def test_drop_in_layers_have_the_weights_and_outputs_of_nnx() -> None:
    x, images = jnp.ones((2, 3, 5)), jax.random.normal(KEY, (2, 3, 6, 6, 4))
    options: dict[str, Any] = {"use_bias": False, "dtype": jnp.bfloat16}
    for rule in (lf.FeedbackAlignment(), lf.Taps()):
        for kwargs in ({}, options):
            ours = lf.Linear(5, 4, rules=[rule], rngs=nnx.Rngs(0, feedback=1), **kwargs)
            plain = nnx.Linear(5, 4, rngs=nnx.Rngs(0), **kwargs)
            assert_same(ours(x), plain(x))
            assert_same(nnx.state(ours, nnx.Param), nnx.state(plain, nnx.Param))
        convolutions: list[dict[str, Any]] = [
            {"padding": "CIRCULAR"},
            {"padding": ((1, 0), (2, 1)), "strides": (2, 1), "kernel_dilation": 2},
            {"feature_group_count": 2, "input_dilation": 2, "padding": 1},
        ]
        for kwargs in convolutions:
            ours = lf.Conv(4, 6, (3, 2), rules=[rule], rngs=nnx.Rngs(0, feedback=1), **kwargs)
            plain = nnx.Conv(4, 6, (3, 2), rngs=nnx.Rngs(0), **kwargs)
            assert_same(ours(images), plain(images))
    causal = lf.Conv(5, 4, 2, padding="CAUSAL", rules=[lf.KolenPollack()], rngs=nnx.Rngs(0))
    assert causal(x).shape == (2, 3, 4)


def test_a_mask_holds_for_the_feedback_too() -> None:
    x = jax.random.normal(KEY, (2, 4, 4, 2))
    mask = (jax.random.uniform(KEY, (3, 3, 2, 2)) > 0.5).astype(float)
    plain = nnx.Conv(2, 2, (3, 3), mask=mask, rngs=nnx.Rngs(0))
    aligned: Any = lf.convert(plain, lf.FeedbackAlignment(), rngs=rngs())
    aligned.feedback[...] = plain.kernel[...]

    def by_input(layer: Any) -> Any:
        return jax.grad(lambda x: jnp.sum(layer(x) ** 2))(x)

    assert_same(by_input(aligned), by_input(plain))


def test_decorrelation_of_a_convolution_that_wraps_around(x64: None) -> None:
    images = jax.random.normal(KEY, (3, 4, 4, 2))
    around: Any = lf.Conv(
        2,
        3,
        (3, 3),
        padding="CIRCULAR",
        rules=[lf.Decorrelation(DYNAMICS)],
        param_dtype=float,
        rngs=nnx.Rngs(0),
    )
    valid: Any = lf.Conv(
        2, 3, (3, 3), padding="VALID", rules=[lf.Decorrelation(DYNAMICS)], param_dtype=float, rngs=nnx.Rngs(0)
    )
    wrapped = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
    assert_same(update_decorrelation(KEY, around, images), update_decorrelation(KEY, valid, wrapped))
    assert_same(around.decorrelation.get_value(), valid.decorrelation.get_value())
    assert_close(output(around, images), output(valid, wrapped), ulps=16)
    assert differs(around.decorrelation.get_value().layers[0]["R"], jnp.eye(18))


class Shared(nnx.Module):
    """A layer that is called twice and hangs at two places, a dropout, and an average of activities."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(5, 5, param_dtype=float, rngs=rngs)
        self.again = self.first
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, param_dtype=float, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(5, OUTPUTS, param_dtype=float, rngs=rngs)])

    def __call__(self, x: Any) -> Any:
        return self.blocks[0](self.dropout(jnp.tanh(self.again(self.norm(self.first(x))))))


def test_layers_that_share_a_kernel(x64: None) -> None:
    x, y = batch("dense")
    plain: Any = nnx.List([nnx.Linear(5, 5, param_dtype=float, rngs=nnx.Rngs(i)) for i in range(2)])
    plain[1].kernel = plain[0].kernel
    tied = lf.convert(plain, lf.Taps())
    assert tied[1].kernel is tied[0].kernel

    def losses(model: Any, x: Any, y: Any) -> Any:
        return ll.squared_error(model[1](jnp.tanh(model[0](x)))[:, :OUTPUTS], y)

    expected = nnx.jit(nnx.value_and_grad(lambda *args: losses(*args).mean()))(plain, x, y)
    assert_close(nnx.jit(lf.value_and_grad(ll.backprop, losses))(KEY, tied, x, y), expected, ulps=512)


def test_shared_layers_dropout_and_batch_statistics() -> None:
    x, y = batch("dense")
    model: Any = lf.convert(Shared(nnx.Rngs(0)), lf.Taps())
    plain: Any = Shared(nnx.Rngs(0))
    assert model.first is model.again and isinstance(model.first, lf.Linear)
    expected, exact = nnx_gradient(plain, x, y)
    loss, grads = nnx.jit(lf.value_and_grad(ll.backprop, losses_of))(KEY, model, x, y)
    assert_close(loss, expected, ulps=64)
    (shared,) = {"first", "again"} & set(exact)
    for name in (shared, "blocks"):
        assert_close(grads[name], exact[name], ulps=512)
    assert not any(bool(leaf.any()) for leaf in jax.tree.leaves(grads["norm"]))
    # The state went on as in one pass, and goes on.
    assert_close(nnx.state(model, nnx.BatchStat), nnx.state(plain, nnx.BatchStat), ulps=64)
    assert int(model.dropout.rngs.count[...]) == int(plain.dropout.rngs.count[...])
    assert differs(output(model, x), output(model, x))
    # Decorrelation joins the inputs of both calls, and leaves all else in the model alone.
    (path,) = {"first", "again"} & set(nnx.state(model))
    model, seen = lf.convert(model, lf.Decorrelation(DYNAMICS), path), []
    assert model.first is model.again

    def noted(key: Any, state: Any, inputs: Any, network: Any) -> Any:
        seen.append(inputs[0].shape)
        return DYNAMICS.update(key, state, inputs, network)

    model.first.dynamics = DYNAMICS._replace(update=noted)
    before: Any = nnx.state(nnx.clone(model))
    assert nnx.jit(lf.update_decorrelation)(KEY, model, x).loss.shape == (1,)
    assert seen == [(2 * BATCH, 5)]
    start = before[path]["decorrelation"].get_value()
    assert differs(model.first.decorrelation.get_value(), start)
    model.first.decorrelation.set_value(start)
    assert_same(nnx.state(model), before)


# --- conversion


def test_the_model_stays_as_it_is_and_paths_choose() -> None:
    model = Images(nnx.Rngs(0))
    before = jax.tree.map(jnp.copy, nnx.state(model))
    chosen = {
        "second": "second",
        "*": "first second third",
        "[!f]*": "second third",
    }
    filters = {
        "first second": nnx.Conv,
        "third": nnx.PathContains("third"),
        "first": lambda path, layer: path == ("first",),
    }
    cases = [(where, names) for where, names in chosen.items()] + [(w, names) for names, w in filters.items()]
    where: Any
    for where, names in [*cases, (None, "first second third")]:
        converted = lf.convert(model, lf.FeedbackAlignment(), where, rngs=rngs())
        got = [
            name
            for name in ("first", "second", "third")
            if isinstance(getattr(converted, name), (lf.Linear, lf.Conv))
        ]
        assert got == names.split()
        converted.first.kernel[...] += 1
    assert_same(nnx.state(model), before)
    assert type(model.first) is nnx.Conv


def test_of_two_feedback_rules_the_last_one_holds() -> None:
    model: Any = lf.convert(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), lf.KolenPollack(), rngs=rngs())
    model = lf.convert(model, lf.SignSymmetry())
    assert model.feedback is None and sorted(nnx.state(model, nnx.Param)) == ["bias", "kernel"]
    model = lf.convert(model, lf.FeedbackAlignment(), rngs=rngs())
    assert type(model.feedback) is lf.Feedback
    fresh: Any = lf.convert(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), lf.FeedbackAlignment(), rngs=rngs())
    assert_same(model.feedback[...], fresh.feedback[...])


# --- bad input


class Mixed(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(4, 5, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(5, 3, rngs=rngs), nnx.LayerNorm(3, rngs=rngs)])
        self.grouped = nnx.Conv(2, 2, (3, 3), feature_group_count=2, rngs=rngs)
        self.line = nnx.Conv(2, 2, 3, rngs=rngs)
        self.up = nnx.ConvTranspose(2, 2, (3, 3), rngs=rngs)


def test_bad_conversions_are_refused() -> None:
    model, aligned = Mixed(nnx.Rngs(0)), lf.FeedbackAlignment()
    there = r"'blocks/0' \(Linear\).*'embed' \(Embed\).*got none for 'encoder/\*'"
    with pytest.raises(ValueError, match=rf"where: expected a match among the layers .*{there}"):
        lf.convert(model, aligned, "encoder/*", rngs=rngs())
    with pytest.raises(ValueError, match="where: expected a match"):
        lf.convert(model, aligned, nnx.Einsum, rngs=rngs())
    with pytest.raises(
        ValueError, match=r"where: expected a match among the layers 'layers/1' \(.*got none for None"
    ):
        lf.convert(nnx.Sequential(nnx.Dropout(0.5), nnx.LayerNorm(2, rngs=nnx.Rngs(0))), lf.Taps())
    for where, kind in (("embed", "Embed"), ("*", "LayerNorm"), ("up", "ConvTranspose")):
        with pytest.raises(ValueError, match=rf"kinds \['Linear', 'Conv'\] alone, got .*\({kind}\) for '"):
            lf.convert(model, aligned, where, rngs=rngs())
    for where, message in (("grouped", "got 2 axes, 2 groups"), ("line", "got 1 axes")):
        with pytest.raises(ValueError, match=rf"^{where}: decorrelation: expected a convolution.*{message}"):
            lf.convert(model, lf.Decorrelation(DYNAMICS), where)
    with pytest.raises(ValueError, match=r"^blocks/0: k: expected at most 3, the layer's outputs, got 4"):
        lf.convert(model, lf.KCap(4), "blocks/0")
    with pytest.raises(ValueError, match=r"^blocks/0: rngs: expected nnx.Rngs to draw .* got None"):
        lf.convert(model, aligned, "blocks/0")


def test_bad_rules_and_models_without_what_is_asked_are_refused() -> None:
    with pytest.raises(ValueError, match="decay: expected a finite number >= 0, got -1"):
        lf.KolenPollack(decay=-1.0)
    with pytest.raises(ValueError, match="magnitude: expected one of"):
        lf.SignSymmetry("random")
    with pytest.raises(ValueError, match="gain: expected a finite number > 0, got 0"):
        lf.SignSymmetry(gain=0.0)
    with pytest.raises(ValueError, match="k: expected at least 1, got 0"):
        lf.KCap(0)
    x, y = batch("dense")
    plain = make("dense")
    with pytest.raises(ValueError, match=r"model: expected layers with decorrelation.*got none"):
        lf.update_decorrelation(KEY, plain, x)
    perturb = partial(lf.value_and_grad, PERTURBING["np"])
    with pytest.raises(ValueError, match=r"model: expected layers with a tap.*got none"):
        perturb(losses_of)(KEY, plain, x, y)
    tapped = lf.convert(plain, lf.Taps())
    with pytest.raises(ValueError, match=r"loss_fn: expected one loss an example, \[batch\], got shape \[\]"):
        perturb(mean_loss)(KEY, tapped, x, y)
    with pytest.raises(TypeError, match="loss_fn: expected a floating-point array, got int32"):
        perturb(lambda model, x, y: jnp.argmax(model(x), axis=1))(KEY, tapped, x, y)
    with pytest.raises(ValueError, match=r"model: expected pre-activations \[3, ...\], got shape \[6, 7\]"):
        perturb(lambda model, x, y: losses_of(model, x, y)[:3])(KEY, tapped, x, y)
    needy = {
        "tutorial": partial(ll.node_perturbation, sigma=0.1, variant="tutorial"),
        "dfa": ll.direct_feedback_alignment,
    }
    for name, factory in needy.items():
        with pytest.raises(ValueError, match=r"make_rule: expected a rule that needs taps alone|params\["):
            lf.value_and_grad(factory, losses_of)(KEY, tapped, x, y)
        assert name in needy
    forward = lf.value_and_grad(PERTURBING["fg"], losses_of)
    with pytest.raises(TypeError, match="forward-mode differentiation, which cannot pass"):
        forward(KEY, lf.convert(tapped, lf.FeedbackAlignment(), rngs=rngs()), x, y)


WITHOUT_FLAX = """
import sys
sys.modules["flax"] = None
import lax_learning as ll
assert not hasattr(ll, "flax") and not any(name.startswith("flax.") for name in sys.modules)
try:
    import lax_learning.flax
except ImportError as error:
    print(error)
"""


def test_the_library_needs_no_flax_and_its_part_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FLAX],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith("lax_learning.flax: expected flax >= 0.12.8, got none; pip install")
