"""Quality of the gradients of all rules: `python -m benchmarks.gradient_quality`."""

import io
import shutil
import sys
from functools import partial
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from benchmarks import machine
from benchmarks.quality import figures, report
from benchmarks.quality.config import Config
from benchmarks.quality.problems import pooled_images
from benchmarks.quality.settings import SWEEPS, Setting
from benchmarks.quality.sweeps import Bench
from experiments import harness

BASELINE = "num_samples"
"""Axis of the dataset of the default setting, along which it has a single value."""


def run(config: Config) -> dict[str, xr.Dataset]:
    """Measures all rules, prints the table, and writes JSON and figures; returns a dataset per sweep."""
    config.check_fits()
    data_key, _ = jax.random.split(jax.random.key(config.seed))
    images, labels = pooled_images(data_key, config.data, config.pooled)
    deciding = {**config.deciding(), "versions": harness.versions()}
    harness.open_folder(config.out, deciding, resume=config.resume)
    kept = config.out / "checkpoints"
    kept.mkdir(exist_ok=True)
    bench = Bench(images, labels, **config.numbers(), seed=config.seed, folder=kept)
    plans = {
        name: SWEEPS[name].settings(name, config.setting, quick=config.quick) for name in config.chosen()
    }
    settings = {config.setting, *(setting for plan in plans.values() for setting in plan)}
    with tqdm(total=len(config.rules) * (1 + len(settings)), unit="point", smoothing=0.05) as progress:

        def advance(rule: str, _: Setting) -> None:
            progress.set_description(rule, refresh=False)
            progress.update()

        flops = {}
        for rule in config.rules:
            flops[rule] = bench.flops(rule, config.setting)
            advance(rule, config.setting)
        bench.measure_all(config.rules, sorted(settings, key=str), advance)
    baseline = bench.sweep(BASELINE, config.rules, [config.setting])
    found = {name: bench.sweep(name, config.rules, plan) for name, plan in plans.items()}
    publish(config, baseline, found, flops)
    shutil.rmtree(kept)
    return found


def publish(
    config: Config, baseline: xr.Dataset, sweeps: dict[str, xr.Dataset], flops: dict[str, float]
) -> None:
    """Writes `gradient_quality.json` and the figures, and prints the table."""
    head = {"benchmark": "gradient_quality", **machine.head(), "config": config.deciding(), "flops": flops}
    default = [{**row, "sweep": "default", "value": None} for row in report.rows(baseline)]
    text = report.as_json(head, default + [row for sweep in sweeps.values() for row in report.rows(sweep)])
    harness.write_whole(config.out / "gradient_quality.json", lambda path: path.write_text(text))
    drawn = {f"against_{name}": figures.sweep_figure(sweep) for name, sweep in sweeps.items()}
    drawn["by_layer"] = figures.sweep_figure(baseline, "layer")
    drawn["bias_against_variance"] = figures.bias_against_variance(baseline)
    drawn["error_against_compute"] = figures.error_against_compute(sweeps.get(BASELINE, baseline), flops)
    for name, figure in drawn.items():
        _save(config.out / f"{name}.png", figure)
    print(report.table(baseline, flops))
    print(f"\ngradient_quality.json and {len(drawn)} figures: {config.out}")


def _save(path: Path, figure: Figure) -> None:
    """Writes a PNG with 256 colours, a third of the usual size."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    plt.close(figure)
    picture = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    harness.write_whole(path, partial(picture.save, format="png", optimize=True))


main = partial(harness.command_line, "gradient_quality", Config, run, package="benchmarks")

if __name__ == "__main__":
    harness.use_all_cores(compile_quickly=True)
    sys.exit(main())
