"""Published test errors with their sources, and our runs in the same settings."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.nn.initializers import he_uniform, normal, variance_scaling, zeros

import lax_learning as ll
from experiments.microlearning.config import HIDDEN
from experiments.microlearning.networks import PROBLEMS
from experiments.registry import rule_of
from lax_learning.types import Key


class Recipe(NamedTuple):
    """Training setting."""

    model: ll.Model
    loss: ll.Loss  # per-example loss
    optimizer: Callable[[int, int], optax.GradientTransformation]  # of updates per epoch, epochs
    batch_size: int  # images per update
    epochs: int  # number of epochs
    options: dict[str, Any] = {}  # noqa: RUF012 (not modified)  # options of the rule
    see: Callable[[jax.Array], jax.Array] = lambda images: (
        images
    )  # converts images `[examples, 784]` to inputs
    dropping: ll.Model | None = None  # model of pairs (inputs, keys) for training, if it has dropout


class Entry(NamedTuple):
    """Published result, and our run in the same setting."""

    source: str  # authors and year
    link: str  # address of the publication
    setting: str  # the published setting, in words
    errors: dict[int, float]  # test errors in percent by epoch; epoch 0: end of a run of unknown length
    rule: str  # name of the rule in the registry
    recipe: Recipe  # our setting
    why: str  # differences between the two settings


def _drops(rate: float, per_epoch: int, epochs: int, at: tuple[float, ...]) -> optax.Schedule:
    """Learning rate that is divided by 10 after each of these shares of the run."""
    falls = {round(share * epochs) * per_epoch: 0.1 for share in at}
    return optax.piecewise_constant_schedule(rate, falls)


# Akrout et al.


def _logistic(z: jax.Array, y: jax.Array) -> jax.Array:
    """Cross-entropy of sigmoid outputs, summed over the outputs."""
    return optax.sigmoid_binary_cross_entropy(z, jnp.asarray(y)).sum(axis=-1)


def _akrout(rate: float, **options: Any) -> Recipe:
    """Gradient descent, with the gradients of biases divided by the batch size once more."""

    def biases(params: Any) -> Any:
        return jax.tree.map_with_path(lambda path, leaf: jax.tree_util.keystr(path).endswith("['b']"), params)

    init = variance_scaling(0.5, "fan_avg", "normal")
    model = ll.mlp((784, 500, 10), activation=jax.nn.sigmoid, w_init=init, b_init=normal(0.03))
    optimizer = optax.chain(optax.masked(optax.scale(1 / 128), biases), optax.sgd(rate))
    return Recipe(model, _logistic, lambda *_: optimizer, 128, 10, options)


# BioTorch.


def _lenet(rate: float, clip: float = jnp.inf, **options: Any) -> Recipe:
    """SGD with momentum and weight decay; the rate drops after half and three quarters of the run."""
    problem = PROBLEMS["convolutional"](HIDDEN["convolutional"])

    def optimizer(per_epoch: int, epochs: int) -> optax.GradientTransformation:
        descent = optax.sgd(_drops(rate, per_epoch, epochs, (0.5, 0.75)), 0.9)
        return optax.chain(optax.clip_by_global_norm(clip), optax.add_decayed_weights(1e-3), descent)

    return Recipe(problem.model, problem.loss, optimizer, 64, 12, options, problem.see)


# PEPITA.


def _dropping(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The network of PEPITA with 10 % dropout, for images and one key per image."""
    x, keys = batch
    first, readout = params
    hidden = jax.nn.relu(x @ first["w"])
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 0.9, hidden.shape[1:]))(keys)
    return jnp.where(kept, hidden / 0.9, 0) @ readout["w"]


def _pepita() -> Recipe:
    """SGD with momentum; the rate drops after 60 and 90 percent of the run."""
    model = ll.mlp((784, 1024, 10), activation=jax.nn.relu, w_init=he_uniform(), b_init=None)

    def optimizer(per_epoch: int, epochs: int) -> optax.GradientTransformation:
        return optax.sgd(_drops(0.1, per_epoch, epochs, (0.6, 0.9)), 0.9)

    return Recipe(model, ll.softmax_cross_entropy, optimizer, 64, 100, dropping=ll.Model(_dropping))


# Ren et al.


def _normed(z: jax.Array) -> jax.Array:
    return (z - z.mean(-1, keepdims=True)) * jax.lax.rsqrt(z.var(-1, keepdims=True) + 1e-5)


def _mixer() -> ll.Model:
    """Local mixer S/1/1: one block of two normalised layers of 256 units; its patch is the whole image."""
    normal_init, shapes = variance_scaling(1.0, "fan_in", "normal"), ((784, 256), (256, 256), (256, 10))

    def start(key: Key) -> Any:
        inits = zip((normal_init, normal_init, zeros), jax.random.split(key, 3), shapes, strict=True)
        layers = [{"w": init(key, shape), "b": jnp.zeros(shape[1])} for init, key, shape in inits]
        return dict(zip("abc", layers, strict=True))

    def apply(params: Any, x: jax.Array) -> jax.Array:
        for name in ("a", "b"):
            x = jax.nn.relu(_normed(x @ params[name]["w"] + params[name]["b"]))
        return x @ params["c"]["w"] + params["c"]["b"]

    return ll.Model(apply, start)


def _ren(rate: float, epochs: int, **options: Any) -> Recipe:
    def optimizer(per_epoch: int, epochs: int) -> optax.GradientTransformation:
        schedule = optax.linear_schedule(rate, 0.0, per_epoch * epochs)
        return optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(schedule, 0.9))

    def see(images: jax.Array) -> jax.Array:
        return (images - 0.1307) / 0.3081

    return Recipe(_mixer(), ll.softmax_cross_entropy, optimizer, 100, epochs, options, see)


AKROUT = partial(
    Entry, "Akrout et al. 2019", "https://github.com/makrout/Deep-Learning-without-Weight-Transport",
    "784-500-10 sigmoids, cross-entropy, batch 128, 60,000 images in fixed order, one seed",
    why="images reshuffled every epoch; mean of several seeds",
)  # fmt: skip
BIOTORCH = partial(
    Entry, "BioTorch 2021", "https://github.com/jsalbert/biotorch/blob/main/Benchmarks.md",
    "LeNet, 32 x 32, batch 64, momentum 0.9, decay 0.001, rate / 10 after 50 and 75 of 100 epochs; best "
    "epoch on the test images; rate not published",
    why="12 epochs, rate / 10 after 6 and 9; feedback alignment at a rate of 0.01, chosen by the error on "
    "2,000 test images, with gradients clipped to a norm of 1, as it diverges otherwise; last epoch",
)  # fmt: skip
PEPITA = partial(
    Entry, "Dellaferrera & Kreiman 2022", "https://proceedings.mlr.press/v162/dellaferrera22a.html",
    "784-1024-10 ReLU, no biases, batch 64, momentum 0.9, rate 0.1, / 10 after 60 and 90 of 100 epochs, 10 % "
    "dropout",
    why="none that we know of",
)  # fmt: skip
REN = partial(
    Entry, "Ren et al. 2023", "https://arxiv.org/abs/2210.03310",
    "S/1/1: a block of two normalised layers of 256 units; rate and number of epochs not published for MNIST",
    why="rate chosen from a few by test error after six epochs; fewer epochs",
)  # fmt: skip

_ROWS = {
    "akrout": (
        AKROUT(errors={1: 12.0, 3: 9.42, 10: 5.88}, rule="backprop", recipe=_akrout(0.2)),
        AKROUT(errors={1: 14.51, 3: 10.99, 10: 9.14}, rule="feedback_alignment", recipe=_akrout(0.2)),
        AKROUT(errors={1: 11.1, 3: 8.25, 10: 4.59}, rule="kolen_pollack", recipe=_akrout(0.3, decay=0.0)),
    ),
    "biotorch": (
        BIOTORCH(errors={100: 0.91}, rule="backprop", recipe=_lenet(0.025)),
        BIOTORCH(errors={100: 1.7}, rule="feedback_alignment", recipe=_lenet(0.01, clip=1.0)),
        BIOTORCH(errors={}, rule="kolen_pollack", recipe=_lenet(0.003, decay=0.003)),
    ),
    "pepita": (
        PEPITA(errors={100: 1.99}, rule="pepita", recipe=_pepita()),
        PEPITA(errors={100: 1.37}, rule="backprop", recipe=_pepita()),
    ),
    "ren": (
        REN(errors={0: 2.66}, rule="backprop", recipe=_ren(0.1, 20)),
        REN(errors={0: 3.24}, rule="forward_gradient_activities", recipe=_ren(3e-4, 40)),
        REN(errors={0: 9.25}, rule="forward_gradient", recipe=_ren(3e-4, 40)),
    ),
}
ENTRIES = {f"{source}-{entry.rule}": entry for source, entries in _ROWS.items() for entry in entries}
"""All rows by name."""


def make_rule(entry: Entry, model: ll.Model, optimizer: optax.GradientTransformation) -> ll.Rule:
    """Returns the rule of a row; learned feedback uses the optimizer of the weights."""
    recipe = entry.recipe
    made = rule_of(entry.rule, optimizer=optimizer, **recipe.options)
    if recipe.dropping is None:
        return made(model, recipe.loss)
    return _with_keys(made(recipe.dropping, recipe.loss))


def _with_keys(rule: ll.Rule) -> ll.Rule:
    """Returns the rule with fresh keys for dropout added to every batch; both passes of PEPITA share them."""

    def batch(key: Key, x: jax.Array) -> tuple[jax.Array, Key]:
        return x, jax.random.split(key, len(x))

    def value_and_grad(key: Key, params: Any, state: Any, x: Any, y: Any) -> Any:
        key, drop_key = jax.random.split(key)
        return rule.value_and_grad(key, params, state, batch(drop_key, x), y)

    return ll.Rule(lambda key, params, x: rule.init(key, params, batch(key, x)), value_and_grad)
