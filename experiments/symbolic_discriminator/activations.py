"""Steps 15.1 and 15.2: curves of untrained networks and of a library of functions."""

from collections.abc import Sequence

import jax
import numpy as np
import xarray as xr
from jax import Array
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from tqdm import tqdm

from experiments.reporting import footnote, summary_rows
from experiments.symbolic_discriminator.config import Config
from experiments.symbolic_discriminator.spaces import library, points
from experiments.symbolic_discriminator.study import Part, Rows, Study
from lax_learning import symbolic

CURVES, SHOWN = 200, 10
TITLES = {
    "dsn": "untrained DSN, no biases",
    "mlp": "untrained MLP",
    "gaussian_process": "Gaussian process",
    "library": "library of quadratic functions",
}


def run(config: Config, progress: tqdm) -> xr.Dataset:
    """Draws curves of every source at the same points, `[source, curve, point]`."""
    x, functions = points("normal", config.chosen.points, config.seed), library("quadratic")
    generators = {
        "dsn": symbolic.dsn_generator(1, 1),
        "mlp": symbolic.mlp_generator(1, 1),
        "gaussian_process": symbolic.gaussian_process_generator(1, 1, scale=0.3),
    }

    @jax.jit
    def draw(keys: Array) -> dict[str, Array]:
        draws = symbolic.draw_functions(keys[0], functions, CURVES)
        of_library = symbolic.function_values(functions, draws, x)
        drawn = {n: jax.vmap(lambda k, g=g: g.apply(g.init(k), x)[:, 0])(keys) for n, g in generators.items()}
        return {**drawn, "library": of_library}

    curves = draw(jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 6), CURVES))
    progress.update()
    value = np.stack([curves[name] for name in TITLES])
    variables = {"value": (("source", "curve", "point"), value), "x": ("point", np.asarray(x)[:, 0])}
    return xr.Dataset(variables, {"source": list(TITLES)})


def misfit(x: np.ndarray, curves: np.ndarray, columns: Sequence[np.ndarray]) -> np.ndarray:
    """Fits curves `[curve, point]` linearly by columns; returns residual over total standard deviation."""
    design = np.stack([np.ones_like(x), *columns], axis=1)
    left = curves.T - design @ np.linalg.lstsq(design, curves.T, rcond=None)[0]
    return left.std(axis=0) / curves.std(axis=1)


def rows(results: xr.Dataset) -> Rows:
    """Summarises the spread of curves, and their misfit to two lines that meet at 0 and to parabolas."""
    x, found = results.x.values, []
    for source in results.source.values:
        curves = results.value.sel(source=source).values
        metrics = {
            "standard_deviation": curves.std(axis=1),
            "not_two_lines_through_0": misfit(x, curves, (np.minimum(x, 0), np.maximum(x, 0))),
            "not_a_parabola": misfit(x, curves, (x, x**2)),
        }
        found += summary_rows(f"activations: {source}", metrics, kind="part")
    return found


def activations(results: xr.Dataset) -> Figure:
    """Ten curves of every source."""
    figure, grid = plt.subplots(2, 2, figsize=(10, 7), sharex=True)
    figure.suptitle("Curves of untrained networks, and functions to tell them from")
    for number, (axes, source) in enumerate(zip(grid.flat, results.source.values, strict=True)):
        axes.plot(results.x.values, results.value.sel(source=source).values[:SHOWN].T, ".", markersize=3)
        axes.set(title=TITLES[str(source)], xlabel="x" if number > 1 else "")
        axes.set(ylabel="" if number % 2 else "value")
    footnote(figure, f"{SHOWN} draws each, {results.sizes['point']} points")
    return figure


def parts(config: Config) -> dict[str, Part]:
    """Returns the only part."""
    return {"activations": Part(lambda folder, progress: run(config, progress), 1)}


STUDY = Study(parts, lambda config, found: found[0], rows, [activations])
