"""A fixed set of 1,000 curves: the notebook's critic on it, under two objectives, and standard classifiers.

After steps 16.4 and 16.5 of the public notebooks of symrep, where a critic with the WGAN objective learns far
less of the set than classifiers of scikit-learn do, and one with cross-entropy makes up for it.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from tqdm import tqdm

import lax_learning as ll
from experiments.running import Run, run_members, side_by_side
from experiments.symbolic_discriminator.config import Config
from experiments.symbolic_discriminator.fixed_set_report import CLASSIFIERS, KINDS, figures, rows
from experiments.symbolic_discriminator.points import PointsName, library, points
from experiments.symbolic_discriminator.study import Part, Study, shares
from lax_learning import symbolic

NUM_SEEDS = 10
NUM_POINTS = 100
CURVES = 500  # of each class
LATENTS = 5  # of the networks of critics that see fresh curves
ITERATIONS = 5
RUNS = 10  # calls that train a critic in turn
METRICS = ("seen_accuracy", "fresh_accuracy", "fresh_auc", "training_accuracy")


class Training(NamedTuple):
    """Training of a critic: its objective, whether every epoch has fresh curves, and epochs by preset."""

    objective: str
    fresh: bool
    epochs: dict[str, int]


CRITICS = {
    "wgan": Training("wgan", False, {"sample": 100, "study": 1_000, "seed": 1_000}),
    "bce": Training("bce", False, {"sample": 100, "study": 1_000, "seed": 1_000}),
    "bce_fresh": Training("bce", True, {"sample": 1_000, "study": 10_000, "seed": 10_000}),
}
CRITIC, ADAM = symbolic.critic(NUM_POINTS), optax.adam(1e-3)


class Curves(NamedTuple):
    """Curves `[number, points]` of functions drawn from the library, and of untrained networks."""

    real: jax.Array
    fake: jax.Array


class Carry(NamedTuple):
    """State of a critic's training between two calls: its seed's key and curves, and the critic."""

    key: jax.Array
    seen: Curves
    fresh: Curves
    state: symbolic.CriticState


def seeds_of(config: Config) -> jax.Array:
    """A key for every seed, the same for all points and classifiers."""
    return jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 16), NUM_SEEDS)


def curves(number: int, key: jax.Array, x: jax.Array) -> Curves:
    """So many curves of functions, and of networks, each from a fresh one."""
    real_key, fake_key = jax.random.split(key)
    functions = library("quadratic")
    real = symbolic.function_values(functions, symbolic.draw_functions(real_key, functions, number), x)
    one = symbolic.curves_at(x, functions, symbolic.mlp_generator(x.shape[1], 1))
    return Curves(real, jax.vmap(one.fake)(jax.random.split(fake_key, number))[:, 0])


def curves_of(config: Config, kind: PointsName) -> tuple[Curves, Curves]:
    """The fixed set of every seed, and as many curves drawn anew; each `[seed, CURVES, points]`."""
    return ll.gather(_draw_for_seeds(CURVES)(seeds_of(config), points(kind, NUM_POINTS, config.seed)))


@cache
def _draw_for_seeds(number: int) -> Callable[..., tuple[Curves, Curves]]:
    """One program for all parts."""

    def both(key: jax.Array, x: jax.Array) -> tuple[Curves, Curves]:
        keys = jax.random.split(jax.random.fold_in(key, 0))
        drawn = jax.vmap(partial(curves, number), (0, None))(keys, x)
        return Curves(*(of[0] for of in drawn)), Curves(*(of[1] for of in drawn))

    return ll.ensemble(both, in_axes=(0, None), batch_size=side_by_side(on_cpu=2))


def start_of(key: jax.Array, seen: Curves, fresh: Curves, x: jax.Array) -> Carry:
    """A fresh critic."""
    return Carry(key, seen, fresh, symbolic.init_critic(jax.random.fold_in(key, 1), CRITIC, ADAM))


def train(
    training: Training, epochs: int, carry: Carry, number: jax.Array, x: jax.Array
) -> tuple[Carry, dict[str, jax.Array]]:
    """Some epochs, and the mean accuracy at the last iteration of each: what the notebook prints."""
    step = symbolic.critic_step(CRITIC, ADAM, objective=training.objective)  # type: ignore[arg-type]
    real, fake = ((lambda key, of=of: of) for of in carry.seen)
    if training.fresh:
        generator = symbolic.mlp_generator(x.shape[1], LATENTS)
        real, fake, *_ = symbolic.curves_at(x, library("quadratic"), generator)
    run = symbolic.train_critic(step, real, fake, num_epochs=epochs, iterations=ITERATIONS)
    state, metrics = run(jax.random.fold_in(carry.key, 2), carry.state, number * epochs)
    return carry._replace(state=state), {"training_accuracy": jnp.mean(metrics.accuracy[:, -1])}


def measure(training: Training, carry: Carry, number: jax.Array, x: jax.Array) -> dict[str, jax.Array]:
    """Scores of a critic on the fixed set, if it was trained on that, and on curves drawn anew."""
    seen, fresh = ([CRITIC.apply(carry.state.params, of) for of in drawn] for drawn in carry[1:3])
    found = {
        "fresh_accuracy": symbolic.critic_accuracy(*fresh),
        "fresh_auc": symbolic.area_under_curve(*fresh),
    }
    return found if training.fresh else {"seen_accuracy": symbolic.critic_accuracy(*seen), **found}


def run_critic(
    config: Config, kind: PointsName, name: str, cost: int, folder: Path, progress: tqdm
) -> xr.Dataset:
    """Trains a critic for every seed, side by side."""
    training = CRITICS[name]
    epochs = training.epochs[config.preset] // RUNS
    x, members = points(kind, NUM_POINTS, config.seed), (seeds_of(config), *curves_of(config, kind))
    run = Run(start_of, partial(train, training, epochs), RUNS, partial(measure, training))
    stage = run_members(run, members, x, folder, progress, shares(cost, RUNS), on_cpu=2)
    return _dataset(kind, [name], {metric: values[None, :, -1] for metric, values in stage.metrics.items()})


def run_standard(config: Config, kind: PointsName, cost: int, folder: Path, progress: tqdm) -> xr.Dataset:
    """Fits the classifiers of scikit-learn, as they come, to the set of every seed."""
    seen, fresh = (np.concatenate(of, axis=1) for of in curves_of(config, kind))
    found = []
    for seed, share in enumerate(shares(cost, NUM_SEEDS)):
        found.append(scores(seen[seed], fresh[seed], (config.seed * NUM_SEEDS + seed) % 2**32))
        progress.update(share)
    values = {metric: np.array([of[metric] for of in found], np.float32).T for metric in METRICS}
    return _dataset(kind, ("mlp", "knn", "tree"), values)


def scores(seen: np.ndarray, fresh: np.ndarray, random_state: int) -> dict[str, list[float]]:
    """Scores of the standard classifiers on curves that they were fitted to, and on others.

    Both are `[2 * CURVES, points]`, those of functions first; `random_state` is for classifiers that draw.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import roc_auc_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.tree import DecisionTreeClassifier
    from threadpoolctl import threadpool_limits

    labels = np.repeat([1, 0], CURVES)
    made: list[Any] = [MLPClassifier(random_state=random_state), KNeighborsClassifier()]
    made.append(DecisionTreeClassifier(random_state=random_state))
    # Threads wait for one another far longer than they compute. 200 epochs are the default.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = [classifier.fit(seen, labels) for classifier in made]
    return {
        "seen_accuracy": [of.score(seen, labels) for of in fitted],
        "fresh_accuracy": [of.score(fresh, labels) for of in fitted],
        "fresh_auc": [roc_auc_score(labels, of.predict_proba(fresh)[:, 1]) for of in fitted],
        "training_accuracy": [np.nan] * len(fitted),
    }


def _dataset(kind: str, classifiers: Sequence[str], metrics: dict[str, np.ndarray]) -> xr.Dataset:
    """Values `[classifier, seed]` with their names."""
    dims = ("points", "classifier", "seed")
    coords = {"points": [kind], "classifier": list(classifiers), "seed": range(NUM_SEEDS)}
    return xr.Dataset({name: (dims, values[None]) for name, values in metrics.items()}, coords)


def parts(config: Config) -> dict[str, Part]:
    """For each kind of points every critic, and the standard classifiers together."""
    made = {}
    for kind in KINDS:
        for name, training in CRITICS.items():
            cost = training.epochs[config.preset] * (2 if training.fresh else 20)
            made[f"fixed_set-{kind}-{name}"] = Part(partial(run_critic, config, kind, name, cost), cost)
        cost = 600 * NUM_SEEDS
        made[f"fixed_set-{kind}-standard"] = Part(partial(run_standard, config, kind, cost), cost)
    return made


def merge(config: Config, datasets: Sequence[xr.Dataset]) -> xr.Dataset:
    """All classifiers at all points, in the order of the figure."""
    merged = xr.merge(datasets, join="outer", compat="no_conflicts")
    return merged.sel(points=list(KINDS), classifier=list(CLASSIFIERS))


STUDY = Study(parts, merge, rows, figures)
