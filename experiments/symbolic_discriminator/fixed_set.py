"""Fixed set of 1,000 curves: the notebook's critic with two objectives, and standard classifiers.

Based on steps 16.4 and 16.5 of the public notebooks of symrep, in which a critic with the WGAN objective is
far less accurate than classifiers of scikit-learn, while one with cross-entropy is as good.
"""

import warnings
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

import lax_learning as ll
from experiments import harness, reporting
from experiments.running import Run, run_members, side_by_side
from experiments.symbolic_discriminator.config import Config
from experiments.symbolic_discriminator.spaces import PointsName, library, points
from experiments.symbolic_discriminator.study import Part, Rows, Study
from lax_learning import symbolic

NUM_SEEDS, NUM_POINTS, ITERATIONS = 10, 100, 5
CURVES = 500  # number of curves of each class
LATENTS = 5  # curves of each class per step, for critics trained on new curves
RUNS = 10  # number of steps into which the training of a critic is divided
KINDS: dict[PointsName, str]
KINDS = {"normal": "100 draws from N(0, 1)", "grid": "100 points of a grid over -3 to 3"}
CLASSIFIERS = {
    "wgan": "wgan critic", "bce": "bce critic", "bce_fresh": "bce critic, new curves",
    "mlp": "MLP", "knn": "kNN", "tree": "decision tree",
}  # fmt: skip
EPOCHS = {
    "wgan": {"sample": 100, "study": 1_000, "seed": 1_000},
    "bce": {"sample": 100, "study": 1_000, "seed": 1_000},
    "bce_fresh": {"sample": 1_000, "study": 10_000, "seed": 10_000},
}
"""Training epochs of every critic by preset; the last one has new curves in every epoch."""
# Mean and standard deviation, over 10 sets, of the accuracy on the set itself; for critics trained on new
# curves, the accuracy of one run before the last step of an epoch.
PUBLISHED: dict[PointsName, dict[str, tuple[float, float | None]]] = {
    "normal": {"wgan": (0.616, 0.054), "bce_fresh": (0.95, None), "mlp": (0.933, 0.008),
               "knn": (0.823, 0.006), "tree": (1.0, 0.0)},
    "grid": {"wgan": (0.707, 0.033), "bce_fresh": (0.98, None), "mlp": (0.960, 0.007),
             "knn": (0.865, 0.004), "tree": (1.0, 0.0)},
}  # fmt: skip
CRITIC, ADAM = symbolic.critic(NUM_POINTS), optax.adam(1e-3)


def seeds_of(config: Config) -> jax.Array:
    """Returns a key for every seed, the same for all points and classifiers."""
    return jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 16), NUM_SEEDS)


def curves(key: jax.Array, x: jax.Array) -> jax.Array:
    """Draws curves of functions and of untrained networks, `[class, CURVES, points]`."""
    real_key, fake_key = jax.random.split(key)
    functions = library("quadratic")
    real = symbolic.function_values(functions, symbolic.draw_functions(real_key, functions, CURVES), x)
    one = symbolic.curves_at(x, functions, symbolic.mlp_generator(x.shape[1], 1))
    return jnp.stack([real, jax.vmap(one.fake)(jax.random.split(fake_key, CURVES))[:, 0]])


@cache
def sets_of(config: Config, kind: PointsName) -> np.ndarray:
    """Draws the fixed set of every seed, and as many new curves, `[seed, 2, class, CURVES, points]`."""

    def both(key: jax.Array, x: jax.Array) -> jax.Array:
        return jax.vmap(curves, (0, None))(jax.random.split(jax.random.fold_in(key, 0)), x)

    draw = ll.ensemble(both, in_axes=(0, None), batch_size=side_by_side(on_cpu=2))
    return ll.gather(draw(seeds_of(config), points(kind, NUM_POINTS, config.seed)))


def training(name: str, epochs: int) -> Run:
    """Training and scores of a critic, with `epochs` epochs in each of `RUNS` steps."""
    objective, _, is_fresh = name.partition("_")

    def init(key: jax.Array, sets: jax.Array, x: jax.Array) -> Any:
        return key, sets, symbolic.init_critic(jax.random.fold_in(key, 1), CRITIC, ADAM)

    def step(carry: Any, number: jax.Array, x: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        """Trains, and returns the accuracy at the last iteration of epochs, as printed by the notebook."""
        key, sets, state = carry
        one = symbolic.critic_step(CRITIC, ADAM, objective=objective)  # type: ignore[arg-type]
        real, fake = ((lambda key, curves=curves: curves) for curves in sets[0])
        if is_fresh:
            generator = symbolic.mlp_generator(x.shape[1], LATENTS)
            real, fake, *_ = symbolic.curves_at(x, library("quadratic"), generator)
        train = symbolic.train_critic(one, real, fake, num_epochs=epochs, iterations=ITERATIONS)
        state, metrics = train(jax.random.fold_in(key, 2), state, number * epochs)
        return (key, sets, state), {"training_accuracy": jnp.mean(metrics.accuracy[:, -1])}

    def measure(carry: Any, number: jax.Array, x: jax.Array) -> dict[str, jax.Array]:
        """Scores on new curves and, if the critic was trained on the fixed set, on that set."""
        _, sets, state = carry
        seen, fresh = ([CRITIC.apply(state.params, of) for of in drawn] for drawn in sets)
        accuracy, auc = symbolic.critic_accuracy(*fresh), symbolic.area_under_curve(*fresh)
        found = {"fresh_accuracy": accuracy, "fresh_auc": auc}
        return found if is_fresh else {"seen_accuracy": symbolic.critic_accuracy(*seen), **found}

    return Run(init, step, RUNS, measure)


def run_critic(config: Config, kind: PointsName, name: str, folder: Path, progress: tqdm) -> xr.Dataset:
    """Trains a critic for every seed, in parallel."""
    run, x = training(name, EPOCHS[name][config.preset] // RUNS), points(kind, NUM_POINTS, config.seed)
    stage = run_members(run, (seeds_of(config), sets_of(config, kind)), x, folder, progress, on_cpu=2)
    return _dataset(kind, [name], {metric: values[None, :, -1] for metric, values in stage.metrics.items()})


def run_standard(config: Config, kind: PointsName, folder: Path, progress: tqdm) -> xr.Dataset:
    """Fits scikit-learn's classifiers, with their default settings, to the set of every seed."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import roc_auc_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.tree import DecisionTreeClassifier
    from threadpoolctl import threadpool_limits

    labels = np.repeat([1, 0], CURVES)
    found = np.zeros((3, 3, NUM_SEEDS), np.float32)  # by metric and classifier
    for seed, sets in enumerate(sets_of(config, kind)):
        seen, fresh = map(np.concatenate, sets)
        of_seed = {"random_state": (config.seed * NUM_SEEDS + seed) % 2**32}
        made = MLPClassifier(**of_seed), KNeighborsClassifier(), DecisionTreeClassifier(**of_seed)
        # Several threads are slower here. scikit-learn's default of 200 epochs ends before convergence.
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted: list[Any] = [classifier.fit(seen, labels) for classifier in made]
        for i, of in enumerate(fitted):
            auc = roc_auc_score(labels, of.predict_proba(fresh)[:, 1])
            found[:, i, seed] = of.score(seen, labels), of.score(fresh, labels), auc
        progress.update()
    names = ["seen_accuracy", "fresh_accuracy", "fresh_auc"]
    return _dataset(kind, ["mlp", "knn", "tree"], dict(zip(names, found, strict=True)))


def _dataset(kind: str, classifiers: list[str], metrics: dict[str, np.ndarray]) -> xr.Dataset:
    """Makes a dataset of metrics `[classifier, seed]`."""
    dims = ("points", "classifier", "seed")
    coords = {"points": [kind], "classifier": classifiers, "seed": range(NUM_SEEDS)}
    return xr.Dataset({name: (dims, values[None]) for name, values in metrics.items()}, coords)


def parts(config: Config) -> dict[str, Part]:
    """Returns a part for each critic and one for all standard classifiers, for each kind of points."""
    made = {}
    for kind in KINDS:
        for name in EPOCHS:
            made[f"fixed_set-{kind}-{name}"] = Part(partial(run_critic, config, kind, name), RUNS)
        made[f"fixed_set-{kind}-standard"] = Part(partial(run_standard, config, kind), NUM_SEEDS)
    return made


def merge(config: Config, found: Sequence[xr.Dataset]) -> xr.Dataset:
    """Merges all classifiers and kinds of points, in the order of the figure."""
    return harness.joined([*found], "classifier", [*CLASSIFIERS]).sel(points=[*KINDS])


def rows(results: xr.Dataset) -> Rows:
    """Summarises the measured accuracies and areas under the curve, and the published accuracies."""
    summary = []
    for kind in results.points.values:
        for name in results.classifier.values:
            one = results.sel(points=kind, classifier=name)
            metrics = {str(m): one[m].values for m in one if np.isfinite(one[m].values).any()}
            if name in PUBLISHED[kind]:
                metrics["published_accuracy"] = np.array(PUBLISHED[kind][name][0])
            summary += reporting.summary_rows(f"fixed_set: {kind}, {CLASSIFIERS[name]}", metrics, kind="part")
    return summary


def fixed_set(results: xr.Dataset) -> Figure:
    """Accuracy of every classifier on the curves it was trained on and on new curves."""
    figure, every = plt.subplots(1, len(KINDS), figsize=(15, 5.5), sharey=True)
    for axes, kind in zip(every, results.points.values, strict=True):
        _panel(axes, kind, results.sel(points=kind))
    every[0].set_ylabel("accuracy")
    reporting.legend_beside(figure, every[0])
    title = "Functions or untrained networks: classifiers trained on a fixed set of 1,000 curves"
    note = ", each with its own set; dots: single sets"
    return reporting.completed(figure, results, title, note, grid=())


def _panel(axes: Axes, kind: PointsName, one: xr.Dataset) -> None:
    names = one.classifier.values.tolist()
    # For critics trained on the fixed set, the accuracy in training adds nothing to that on the set.
    training = one.training_accuracy.where(one.classifier == "bce_fresh")
    shown = {
        "on the fixed set itself": one.seen_accuracy,
        "on the curves of an epoch, before its last step": training,
        "on new curves": one.fresh_accuracy,
    }
    for i, (label, values) in enumerate(shown.items()):
        x = np.arange(len(names)) + (0.15 if "new" in label else -0.15)
        reporting.bars(axes, x, values.values, color=f"C{i}", capsize=4, label=label)
        axes.plot(x[:, None] + 0.1, values.values, ".", color=f"C{i}", markersize=3, alpha=0.6)
    for name, (mean, deviation) in PUBLISHED[kind].items():
        label = "published, ± 1 sd over 10 sets" if name == "wgan" else None
        place = names.index(name) - 0.3
        axes.errorbar(place, mean, deviation, fmt="kx", capsize=2, elinewidth=0.8, label=label)
    axes.axhline(0.5, color="0.5", linestyle=":", linewidth=1, label="chance")
    axes.set_xticks(range(len(names)), [CLASSIFIERS[name].replace(", ", ",\n") for name in names])
    axes.set(title=KINDS[kind], xlabel="classifier", ylim=(0.45, 1.02))
    axes.grid(axis="y", alpha=0.3)


STUDY = Study(parts, merge, rows, [fixed_set])
