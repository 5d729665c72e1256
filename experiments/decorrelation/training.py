"""Training of one seed at one learning rate: start, updates and measurements."""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import lax_learning as ll
from experiments import running
from experiments.decorrelation.runs import Form, Numbers


class Carry(NamedTuple):
    """State of a run between two measurements; `rule_state` holds R, unless inputs are plain."""

    key: jax.Array
    numbers: Numbers
    images: jax.Array
    params: Any
    rule_state: Any
    optimizer_state: Any
    order: ll.data.BatchState


def widths(form: Form) -> list[int]:
    """Returns the number of outputs of every layer; the last layer may have more outputs than labels."""
    return [layer["w"].shape[-1] for layer in jax.eval_shape(form.network.init, jax.random.key(0))]


def targets(labels: jax.Array, outputs: int) -> jax.Array:
    """Pads one-hot labels to the number of outputs of the network."""
    return jnp.pad(labels, ((0, 0), (0, outputs - labels.shape[1])))


def accuracy(form: Form, carry: Carry, images: ll.data.Dataset) -> jax.Array:
    """Measures the accuracy of the network, with R unless inputs are plain."""
    plain, numbers = form.network, carry.numbers
    network = plain if form.dynamics is None else ll.decorrelation.wrap(plain, carry.rule_state.layers)
    output = network.apply(carry.params, numbers.inputs(jnp.asarray(images.x)))
    return ll.accuracy(output, targets(jnp.asarray(images.y), output.shape[1]))


def start_of(form: Form, num_images: int, batch_size: int, key: jax.Array, numbers: Numbers) -> Carry:
    """Returns the start of a run: initial weights and the images drawn for the seed."""
    draw_key, params_key, rule_key, order_key, run_key = jax.random.split(key, 5)
    drawn = jax.random.permutation(draw_key, num_images)[: form.images or num_images]
    params = form.network.init(params_key)
    state = form.rule(numbers).init(rule_key, params, jnp.zeros((1, 784)))
    order = ll.data.batches(drawn.shape[0], batch_size).init(order_key)
    return Carry(run_key, numbers, drawn, params, state, form.optimizer(numbers.rate).init(params), order)


def update(form: Form, batch_size: int, data: ll.data.Splits, carry: Carry, number: Any) -> tuple[Carry, Any]:
    """Makes one update and returns the losses before it; without R, decorrelation losses are NaN."""
    order, chosen = ll.data.batches(carry.images.shape[0], batch_size).next(carry.order, number)
    rows, outputs, numbers = carry.images[chosen], widths(form), carry.numbers
    x, y = numbers.inputs(data.train.x[rows]), targets(data.train.y[rows], outputs[-1])
    key = jax.random.fold_in(carry.key, number)
    loss, grads, state = form.rule(numbers).value_and_grad(key, carry.params, carry.rule_state, x, y)
    losses = jnp.full(len(outputs), jnp.nan)
    if form.dynamics is not None:
        losses = jnp.stack([state.losses[name] for name in sorted(state.losses)])  # 0/w, 1/w, ...
    updates, optimizer_state = form.optimizer(numbers.rate).update(grads, carry.optimizer_state, carry.params)
    params = optax.apply_updates(carry.params, updates)
    carry = carry._replace(params=params, rule_state=state, optimizer_state=optimizer_state, order=order)
    return carry, (loss, losses)


def measure(form: Form, carry: Carry, number: Any, data: ll.data.Splits) -> dict[str, jax.Array]:
    """Measures the test accuracy and the largest entry of R.

    Validation accuracy, which decides the learning rate, and the remaining correlations of the inputs of all
    layers are measured at the end only, and are NaN before.
    """
    x = carry.numbers.inputs(jnp.asarray(data.test.x))
    state = carry.rule_state
    if form.dynamics is None:  # R is the identity
        on_identity = form._replace(dynamics=lambda: ll.decorrelation.dynamics(0.0))
        state = on_identity.rule(carry.numbers).init(carry.key, carry.params, x)
    layers = {name: state.layers[name] for name in sorted(state.layers)}

    def at_the_end() -> tuple[jax.Array, jax.Array]:
        read = ll.decorrelation.inputs(form.network, carry.params, layers, x)
        white = [ll.decorrelation.apply(layer, read[name]) for name, layer in layers.items()]
        left = [ll.decorrelation.loss(z, kappa=0.0) for z in white]
        return jnp.stack(left), accuracy(form, carry, data.validation)

    def before() -> tuple[jax.Array, jax.Array]:
        return jnp.full(len(layers), jnp.nan), jnp.full((), jnp.nan)

    correlation, validation_accuracy = jax.lax.cond(number == form.steps + 1, at_the_end, before)
    return {
        "correlation": correlation,
        "validation_accuracy": validation_accuracy,
        "test_accuracy": accuracy(form, carry, data.test),
        "largest_r": jnp.stack([jnp.max(jnp.abs(layer.R)) for layer in layers.values()]).max(),
    }


@cache
def training(form: Form, num_images: int, batch_size: int) -> running.Run:
    """Training of one seed, with one run per form; the first step measures batches without learning."""

    def init(key: jax.Array, numbers: Numbers, data: ll.data.Splits) -> Carry:
        return start_of(form, num_images, batch_size, key, numbers)

    def step(carry: Carry, number: Any, data: ll.data.Splits) -> tuple[Carry, dict[str, jax.Array]]:
        def learn(carry: Carry, n: Any) -> tuple[Carry, Any]:
            after, losses = update(form, batch_size, data, carry, n)
            kept = jax.tree.map(lambda new, old: jnp.where(number > 0, new, old), after, carry)
            return kept._replace(order=after.order), losses

        numbers = number * form.updates + jnp.arange(form.updates)
        carry, (losses, of_layers) = jax.lax.scan(learn, carry, numbers)
        finite = jnp.all(jnp.isfinite(losses))
        # NaN at updates that do not change R, and after the loss has become NaN
        decorrelation_loss = jnp.where(finite, jnp.nanmean(of_layers, axis=0), jnp.nan)
        return carry, {"loss": jnp.mean(losses), "decorrelation_loss": decorrelation_loss}

    return running.Run(init, step, form.steps + 1, partial(measure, form))
