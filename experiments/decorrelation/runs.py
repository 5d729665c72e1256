"""The runs of the decorrelation experiment, each in one line: network, rule, decorrelation and steps."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.nn.initializers import Initializer, variance_scaling

import lax_learning as ll
from experiments.decorrelation.config import Config, InputsName, NetworkName, RuleName

MakeRule = Callable[[ll.Network], ll.Rule]

# torch's initial weights: uniform within +-1 / sqrt(inputs)
UNIFORM: Initializer = variance_scaling(1 / 3, "fan_in", "uniform")


class Compared(NamedTuple):
    """A rule, and the learning rates of which its best is reported."""

    make: MakeRule
    rates: tuple[float, ...]


LOSS = ll.softmax_cross_entropy
RULES: dict[RuleName, Compared] = {
    "backprop": Compared(lambda n: ll.backprop(n, LOSS), (0.01, 0.03, 0.1)),
    "feedback_alignment": Compared(lambda n: ll.feedback_alignment(n, LOSS), (0.003, 0.01, 0.03)),
    "direct_feedback_alignment": Compared(
        lambda n: ll.direct_feedback_alignment(n, LOSS), (0.001, 0.003, 0.01, 0.03)
    ),
    "kolen_pollack": Compared(lambda n: ll.kolen_pollack(n, LOSS), (0.01, 0.03, 0.1)),
    "node_perturbation": Compared(
        lambda n: ll.node_perturbation(n, LOSS, sigma=0.01), (0.0001, 0.0003, 0.001, 0.003)
    ),
    "activity_perturbation": Compared(
        lambda n: ll.node_perturbation(n, LOSS, sigma=0.01, variant="activity"),
        (0.0001, 0.0003, 0.001, 0.003),
    ),
    "weight_perturbation": Compared(
        lambda n: ll.weight_perturbation(n, LOSS, sigma=0.001), (0.00001, 0.00003, 0.0001, 0.0003)
    ),
}


def torch_mlp(widths: tuple[int, ...]) -> ll.Network:
    """Dense layers with leaky units and the published initial weights."""
    return ll.mlp(widths, activation=jax.nn.leaky_relu, w_init=UNIFORM)


def flat_relu(z: jax.Array) -> jax.Array:
    """Rectified and flattened."""
    return ll.flatten(jax.nn.relu(z))


NETWORKS: dict[NetworkName, ll.Network] = {
    "dense": ll.mlp((784, 100, 10)),
    "convolutional": ll.Network(
        (
            ll.convolution(1, 8, 5, jax.nn.relu, stride=2),
            ll.convolution(8, 16, 3, flat_relu, stride=2),
            ll.dense(7 * 7 * 16, 10),
        ),
        (28, 28, 1),
    ),
}


class Run(NamedTuple):
    """One run, over seeds and learning rates.

    Fields:
      study: what it belongs to.
      network: without decorrelation.
      make_rule: `network -> rule`.
      dynamics: of R; None for plain inputs.
      optimizer: `learning rate -> optimizer`.
      rates: learning rates.
      images: how many each seed draws; None for all.
      scale: `(mean, width)` by which pixels in 0..1 are made inputs.
      updates: between two measurements.
      steps: number of measurements.
    """

    study: str
    network: ll.Network
    make_rule: MakeRule
    dynamics: ll.Dynamics | None
    optimizer: Callable[[Any], optax.GradientTransformation]
    rates: tuple[float, ...]
    images: int | None
    scale: tuple[float, float]
    updates: int
    steps: int


CHOICE_RATES = (0.03, 0.1)
STANDARD = (0.1307, 0.3081)
PUBLISHED_SCALE = (0.5, 0.25)
MEASUREMENTS = 10


def notebook_runs(config: Config) -> dict[str, Run]:
    """The notebook's runs; an epoch is a step. Targets of the single layer are among its 100 outputs."""

    def run(network: ll.Network, rate: float, eta: float, epochs: int) -> Run:
        dynamics = ll.decorrelation(eta, variant="seed", variance=1.0)
        return Run(
            "notebook", network, RULES["backprop"].make, dynamics, optax.adam, (rate,), 1_000,
            PUBLISHED_SCALE, 1_000 // config.batch_size, epochs,
        )  # fmt: skip

    one, two = torch_mlp((784, 100)), torch_mlp((784, 100, 10))
    return {
        "alone": run(one, 0.0, 1e-5, 10),
        "one_layer": run(one, 1e-4, 1e-5, 10),
        "two_layers": run(two, 1e-5, 1e-5, 20),
        "two_layers_fixed": run(two, 1e-5, 0.0, 20),
    }


INPUTS: dict[InputsName, Callable[[float], ll.Dynamics | None]] = {
    "plain": lambda eta: None,
    "decorrelated": ll.decorrelation,
    "every_8th": partial(ll.decorrelation, every=8),
}


def gain_runs(config: Config) -> dict[str, Run]:
    """Every rule on every network, on plain and on decorrelated inputs."""
    return {
        f"{network}-{rule}-{inputs}": _compared(config, "gain", network, rule, INPUTS[inputs](config.eta))
        for network in config.networks
        for rule in config.compared_rules
        for inputs in config.compared_inputs
    }


def choice_runs(config: Config) -> dict[str, Run]:
    """Backprop on decorrelated inputs, one choice changed at a time."""
    learn = partial(ll.decorrelation, config.eta)
    choices = {
        "pure": (learn(kappa=0.0), STANDARD),
        "whitening": (learn(kappa=0.5), STANDARD),
        "lower_triangular": (learn(kappa=0.5, lower=True), STANDARD),
        "with_mean": (learn(kappa=0.5, bias=True), STANDARD),
        "every_4th_update": (learn(kappa=0.5, every=4), STANDARD),
        "every_16th_update": (learn(kappa=0.5, every=16), STANDARD),
        "quarter_of_examples": (learn(kappa=0.5, subsample=1 / 4), STANDARD),
        "sixteenth_of_examples": (learn(kappa=0.5, subsample=1 / 16), STANDARD),
        "dead_pixels": (learn(kappa=0.5), (0.0, 0.3081)),
    }
    return {
        name: _compared(config, "choices", "dense", "backprop", dynamics, scale)._replace(rates=CHOICE_RATES)
        for name, (dynamics, scale) in choices.items()
    }


def _compared(
    config: Config,
    study: str,
    network: NetworkName,
    rule: RuleName,
    dynamics: ll.Dynamics | None,
    scale: tuple[float, float] = STANDARD,
) -> Run:
    make, rates = RULES[rule]
    return Run(
        study, NETWORKS[network], make, dynamics, partial(optax.sgd, momentum=0.9), rates, None,
        scale, -(-config.num_updates // MEASUREMENTS), MEASUREMENTS,
    )  # fmt: skip


STUDIES: dict[str, Callable[[Config], dict[str, Run]]] = {
    "notebook": notebook_runs,
    "gain": gain_runs,
    "choices": choice_runs,
}


def runs_of(config: Config) -> dict[str, Run]:
    """All runs of the chosen studies, by name."""
    return {name: run for study in config.studies for name, run in STUDIES[study](config).items()}


def targets(labels: jax.Array, outputs: int) -> jax.Array:
    """One-hot labels with a column for every output of the network."""
    return jnp.pad(labels, ((0, 0), (0, outputs - labels.shape[1])))
