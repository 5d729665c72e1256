"""Report on networks regularised by a critic: rows of the summary, and figures."""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments import reporting
from experiments.symbolic_discriminator.study import Rows

METRICS = ("fit_loss", "mean_logit", "judged_real", "min_correlation", "components_found")
NO_CRITIC = "no critic"


def with_log(results: xr.Dataset) -> xr.Dataset:
    """Adds `log10_fit_loss`, finite even at 0: a single diverging seed dominates the mean of `fit_loss`."""
    floor = np.finfo(np.float32).tiny
    return results.assign(log10_fit_loss=np.log10(results.fit_loss.clip(min=floor)))


def rows(results: xr.Dataset) -> Rows:
    """Summarises final values of every run, differences to the run without a critic, and the critics."""
    last, summary = with_log(results).isel(step=-1), []
    for name in results.run.values.tolist():
        one = last.sel(run=name)
        metrics = {metric: one[metric].values for metric in (*METRICS, "log10_fit_loss")}
        if NO_CRITIC in results.run and name != NO_CRITIC:
            for metric in ("min_correlation", "components_found", "log10_fit_loss"):
                with np.errstate(invalid="ignore"):  # NaN if both fits diverged
                    metrics[f"{metric}_gain"] = metrics[metric] - last[metric].sel(run=NO_CRITIC).values
        summary += reporting.summary_rows(f"regularised: {name}", metrics, kind="part")
    of_critics = {metric: results[metric].values for metric in ("critic_accuracy", "components_judged_real")}
    return summary + reporting.summary_rows("regularised: critics", of_critics, kind="part")


def regularised_latents(results: xr.Dataset) -> Figure:
    """Final latents of every run for the first seed, each mapped to its most correlated component."""
    names = results.run.values.tolist()
    columns = -(-len(names) // 2)
    size = (4.4 * columns, 8)
    figure, every = plt.subplots(2, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    x, true = results.x.values, results.components.values
    for name, axes in zip(names, every.flat, strict=False):
        one = results.sel(run=name).isel(seed=0)
        for i, component in enumerate(true):
            axes.plot(x, component, color=f"C{i}", linewidth=5, alpha=0.3, label=f"component {i}")
        for i, latent in enumerate(one.latents.values):
            mapped, component, likeness = _mapped(latent, true)
            style = {"color": f"C{component}", "linestyle": ("-", "--", ":")[i % 3]}
            axes.plot(x, mapped, **style, label=f"latent {i}, |r| = {likeness:.3f}")
        axes.set(title=f"{name}: fit loss {float(one.fit_loss[-1]):.1e}", xlabel="x")
        axes.legend(frameon=False, fontsize="x-small", ncols=2)
        axes.grid(alpha=0.3)
    for axes in every[:, 0]:
        axes.set_ylabel("value")
    for axes in every.flat[len(names) :]:
        axes.axis("off")
    figure.suptitle("Latents, scaled and shifted to fit their most correlated components")
    reporting.footnote(figure, "first seed")
    return figure


def _mapped(latent: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, int, float]:
    """Fits a latent to its most correlated component; returns the fit, the component and |correlation|."""
    if not np.isfinite(latent).all():
        return np.full_like(latent, np.nan), 0, float("nan")
    if np.ptp(latent) == 0:
        return np.full_like(latent, true[0].mean()), 0, 0.0
    likeness = np.abs(np.corrcoef(latent, true)[0, 1:])
    best = int(np.argmax(likeness))
    return np.polyval(np.polyfit(latent, true[best], 1), latent), best, float(likeness[best])


def regularised_progress(results: xr.Dataset) -> Figure:
    """Squared error, share of latents judged real, and correlations with components, against updates."""
    figure, every = plt.subplots(2, 2, figsize=(14, 9))
    shown = {
        "log10_fit_loss": ("Fit", "log10 of the mean squared error"),
        "judged_real": ("Latents that the critic judges to be formulas", "share of latents"),
        "min_correlation": ("Is every latent like a component?", "minimum over latents of the best |r|"),
        "components_found": ("Is every component like a latent?", "minimum over components of the best |r|"),
    }
    results = with_log(results)
    for axes, (metric, (title, label)) in zip(every.flat, shown.items(), strict=True):
        for name in results.run.values.tolist():
            of_seeds = results[metric].sel(run=name).values
            reporting.band(axes, results.updates.values, of_seeds, label=name)
        axes.set(title=title, xlabel="updates", ylabel=label)
        if metric != "log10_fit_loss":
            axes.set_ylim(top=1.02)
    every[0, 1].set_ylim(bottom=-0.02)
    reporting.legend_beside(figure, every[0, 0])
    title = "A network that fits a target, with latents judged by a critic"
    return reporting.completed(figure, results, title)
