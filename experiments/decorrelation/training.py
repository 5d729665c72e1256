"""Training of one seed at one learning rate: start, updates and measurements."""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import lax_learning as ll
from experiments import running
from experiments.decorrelation.runs import Form, Numbers


class Carry(NamedTuple):
    """State of a run between two measurements."""

    numbers: Numbers
    images: jax.Array  # indices of the training images of the seed
    train: ll.TrainState  # its rule state holds R, unless inputs are plain


def targets(labels: jax.Array, outputs: int) -> jax.Array:
    """Pads one-hot labels to the outputs of the network, which may be more."""
    return jnp.pad(labels, ((0, 0), (0, outputs - labels.shape[1])))


def accuracy(form: Form, carry: Carry, images: ll.data.Dataset) -> jax.Array:
    """Measures the accuracy of the network, with R unless inputs are plain."""
    network = form.rule(carry.numbers).model_at(form.network, carry.train.rule_state)
    output = network.apply(carry.train.params, carry.numbers.inputs(jnp.asarray(images.x)))
    return ll.accuracy(output, targets(jnp.asarray(images.y), output.shape[1]))


def start_of(form: Form, num_images: int, batch_size: int, key: jax.Array, numbers: Numbers) -> Carry:
    """Returns the start of a run: initial weights and the images drawn for the seed."""
    draw_key, params_key, rule_key, order_key, run_key = jax.random.split(key, 5)
    drawn = jax.random.permutation(draw_key, num_images)[: form.images or num_images]
    params = form.network.init(params_key)
    state = form.rule(numbers).init(rule_key, params, jnp.zeros((1, 784)))
    order = ll.data.batches(drawn.shape[0], batch_size).init(order_key)
    start = form.optimizer(numbers.rate).init(params), order, run_key, run_key
    return Carry(numbers, drawn, ll.TrainState(params, state, *start))


def train_of(
    form: Form, batch_size: int, carry: Carry, data: ll.data.Splits
) -> tuple[ll.Train, ll.data.Splits]:
    """Returns the training on indices, so that images are standardised batch by batch, and its data."""
    numbers, rule = carry.numbers, form.rule(carry.numbers)

    def value_and_grad(key: jax.Array, params: Any, state: Any, rows: jax.Array, _: Any) -> Any:
        x, y = numbers.inputs(data.train.x[rows]), targets(data.train.y[rows], form.widths[-1])
        return rule.value_and_grad(key, params, state, x, y)

    train = ll.make_train(
        rule._replace(value_and_grad=value_and_grad), form.optimizer(numbers.rate), init=form.network.init,
        num_updates=form.updates * form.steps, batch_size=batch_size, every=form.updates,
    )  # fmt: skip
    return train, ll.data.Splits(*[ll.data.Dataset(carry.images, carry.images)] * 3)


def measure(form: Form, carry: Carry, number: Any, data: ll.data.Splits) -> dict[str, jax.Array]:
    """Measures the test accuracy and the largest entry of R.

    Validation accuracy, which decides the learning rate, and the remaining correlations of the inputs of all
    layers are measured at the end only, and are NaN before.
    """
    x, params, state = (
        carry.numbers.inputs(jnp.asarray(data.test.x)),
        carry.train.params,
        carry.train.rule_state,
    )
    if form.dynamics is None:  # R is the identity
        on_identity = form._replace(dynamics=lambda: ll.decorrelation.dynamics(0.0))
        state = on_identity.rule(carry.numbers).init(carry.train.update_key, params, x)
    layers = dict(sorted(state.layers.items()))

    def at_the_end() -> tuple[jax.Array, jax.Array]:
        read = ll.decorrelation.inputs(form.network, params, layers, x)
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

    def step(carry: Carry, number: Any, data: ll.data.Splits) -> tuple[Carry, dict[str, jax.Array]]:
        train, rows = train_of(form, batch_size, carry, data)

        def learn(state: ll.TrainState, n: Any) -> tuple[ll.TrainState, Any]:
            after, loss = train.update(rows, state, n)
            of_layers = jnp.full(len(form.widths), jnp.nan)
            if form.dynamics is not None:
                of_layers = jnp.stack([loss for _, loss in sorted(after.rule_state.losses.items())])
            kept = jax.tree.map(lambda new, old: jnp.where(number > 0, new, old), after, state)
            return kept._replace(batches=after.batches), (loss, of_layers)

        numbers = number * form.updates + jnp.arange(form.updates)
        state, (losses, of_layers) = jax.lax.scan(learn, carry.train, numbers)
        # NaN at updates that do not change R, and after the loss has become NaN
        mean = jnp.where(jnp.all(jnp.isfinite(losses)), jnp.nanmean(of_layers, axis=0), jnp.nan)
        return carry._replace(train=state), {"loss": jnp.mean(losses), "decorrelation_loss": mean}

    def init(key: jax.Array, numbers: Numbers, data: ll.data.Splits) -> Carry:
        return start_of(form, num_images, batch_size, key, numbers)

    return running.Run(init, step, form.steps + 1, partial(measure, form))
