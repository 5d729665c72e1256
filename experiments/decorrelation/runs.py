"""Runs of the decorrelation experiment, each with a static form and traced numbers."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import optax
from jax.nn.initializers import variance_scaling

import lax_learning as ll
from experiments.decorrelation import notebook
from experiments.decorrelation.config import Config, InputsName, NetworkName, RuleName
from experiments.registry import rule_of

RATES: dict[RuleName, tuple[float, ...]] = {
    "backprop": (0.01, 0.03, 0.1),
    "feedback_alignment": (0.003, 0.01, 0.03),
    "direct_feedback_alignment": (0.001, 0.003, 0.01, 0.03),
    "kolen_pollack": (0.01, 0.03, 0.1),
    "node_perturbation": (0.0001, 0.0003, 0.001, 0.003),
    "node_perturbation_activity": (0.0001, 0.0003, 0.001, 0.003),
    "weight_perturbation": (0.00001, 0.00003, 0.0001, 0.0003),
}
"""Learning rates of every rule; the best one is reported."""
SIGMAS = {"weight_perturbation": 0.001}  # standard deviation of the noise; 0.01 for other rules


def on_pixels(network: ll.Model) -> ll.Model:
    """Makes a convolutional network take images as rows of pixels."""
    return ll.Model(lambda params, x: network.apply(params, x.reshape(-1, 28, 28, 1)), network.init)


NETWORKS: dict[NetworkName, ll.Model] = {
    "dense": ll.mlp((784, 100, 10)),
    "convolutional": on_pixels(ll.convnet((28, 28, 1), (8, 16), (10,), kernel=(5, 3), stride=2)),
}


class Numbers(NamedTuple):
    """Traced numbers of a run, which do not change its program."""

    rate: Any  # learning rate
    of_dynamics: dict[str, Any]  # arguments of the dynamics of R, such as `eta`
    mean: Any  # subtracted from pixels in 0..1
    width: Any  # by which centred pixels are divided

    def inputs(self, pixels: jax.Array) -> jax.Array:
        """Standardises pixels."""
        return (pixels - self.mean) / self.width


class Form(NamedTuple):
    """Static settings of a run; runs of the same form share one program."""

    network: ll.Model  # plain network, which takes images as rows of 784 pixels
    rule_name: RuleName
    dynamics: Callable[..., ll.Dynamics] | None  # (**of_dynamics) -> dynamics of R; None for plain inputs
    optimizer: Callable[[Any], optax.GradientTransformation]  # learning rate -> optimizer
    images: int | None  # number of images drawn for each seed; None for all
    updates: int  # updates between two measurements
    steps: int  # number of measurements

    @property
    def widths(self) -> list[int]:
        """Number of outputs of every layer."""
        return [layer["w"].shape[-1] for layer in jax.eval_shape(self.network.init, jax.random.key(0))]

    def rule(self, numbers: Numbers) -> ll.Rule:
        """Returns the rule, on decorrelated inputs if there are dynamics."""
        optimizer, sigma = self.optimizer(numbers.rate), SIGMAS.get(self.rule_name, 0.01)
        factory = rule_of(self.rule_name, sigma=sigma, optimizer=optimizer)
        make = partial(factory, loss=ll.softmax_cross_entropy)
        if self.dynamics is None:
            return make(self.network)
        return ll.decorrelation.rule(make, self.network, self.dynamics(**numbers.of_dynamics))


class Run(NamedTuple):
    """A run over seeds and learning rates."""

    study: str
    form: Form
    numbers: tuple[Numbers, ...]  # one for each learning rate


CHOICE_RATES = (0.03, 0.1)
STANDARD = (0.1307, 0.3081)
PUBLISHED_SCALE = (0.5, 0.25)
MEASUREMENTS = 10
TORCH_INIT = variance_scaling(1 / 3, "fan_in", "uniform")  # within +-1 / sqrt(inputs)
TORCH_MLP = partial(ll.mlp, activation=jax.nn.leaky_relu, w_init=TORCH_INIT)
ONE_LAYER, TWO_LAYERS = TORCH_MLP((784, 100)), TORCH_MLP((784, 100, 10))
MOMENTUM = partial(optax.sgd, momentum=0.9)


def notebook_runs(config: Config) -> dict[str, Run]:
    """Returns the notebook's runs, with an epoch per step; a single layer has 100 outputs for 10 labels."""

    def run(network: ll.Model, rate: float, eta: float, epochs: int) -> Run:
        updates = 1_000 // config.batch_size
        form = Form(network, "backprop", notebook.dynamics, optax.adam, 1_000, updates, epochs)
        return Run("notebook", form, (Numbers(rate, {"eta": eta}, *PUBLISHED_SCALE),))

    return {
        "alone": run(ONE_LAYER, 0.0, 1e-5, 10),
        "one_layer": run(ONE_LAYER, 1e-4, 1e-5, 10),
        "two_layers": run(TWO_LAYERS, 1e-5, 1e-5, 20),
        "two_layers_fixed": run(TWO_LAYERS, 1e-5, 0.0, 20),
    }


LEARN = ll.decorrelation.dynamics
INPUTS: dict[InputsName, Callable[..., ll.Dynamics] | None]
INPUTS = {"plain": None, "decorrelated": LEARN, "every_8th": partial(LEARN, every=8)}


def compared(
    config: Config, study: str, network: NetworkName, rule: RuleName, dynamics: Any, rates: tuple[float, ...],
    kappa: float = 0.5, mean: float = STANDARD[0],
) -> Run:  # fmt: skip
    """Returns a run that differs from others of its study in the rule, its inputs, or the updates of R."""
    updates = -(-config.chosen.updates // MEASUREMENTS)
    form = Form(NETWORKS[network], rule, dynamics, MOMENTUM, None, updates, MEASUREMENTS)
    of_dynamics = {} if dynamics is None else {"eta": config.eta, "kappa": kappa}
    return Run(study, form, tuple(Numbers(rate, of_dynamics, mean, STANDARD[1]) for rate in rates))


def gain_runs(config: Config) -> dict[str, Run]:
    """Returns runs of every rule on every network, with plain and decorrelated inputs."""
    return {
        f"{network}-{rule}-{inputs}": compared(config, "gain", network, rule, INPUTS[inputs], RATES[rule])
        for network in config.networks
        for rule in config.chosen.rules
        for inputs in config.chosen.inputs
    }


def choice_runs(config: Config) -> dict[str, Run]:
    """Returns runs of backprop on decorrelated inputs, with variants of the update of R."""
    learned = partial(compared, config, "choices", "dense", "backprop", rates=CHOICE_RATES)
    return {
        "pure": learned(LEARN, kappa=0.0),
        "whitening": learned(LEARN),
        "lower_triangular": learned(partial(LEARN, lower=True)),
        "with_mean": learned(partial(LEARN, bias=True)),
        "every_4th_update": learned(partial(LEARN, every=4)),
        "every_16th_update": learned(partial(LEARN, every=16)),
        "quarter_of_examples": learned(partial(LEARN, subsample=1 / 4)),
        "sixteenth_of_examples": learned(partial(LEARN, subsample=1 / 16)),
        "dead_pixels": learned(LEARN, mean=0.0),
    }


STUDIES = {"notebook": notebook_runs, "gain": gain_runs, "choices": choice_runs}


def runs_of(config: Config) -> dict[str, Run]:
    """Returns all runs of the chosen studies, by name."""
    return {name: run for study in config.studies for name, run in STUDIES[study](config).items()}
