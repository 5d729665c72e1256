"""Quality of the gradients of all rules: `python -m benchmarks.gradient_quality`."""

import itertools
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
from tqdm import tqdm

from benchmarks import machine
from benchmarks.quality import figures, report
from benchmarks.quality.problems import pooled_images
from benchmarks.quality.rules import DENSE_ALONE, RULES
from benchmarks.quality.settings import SWEEPS, Setting
from benchmarks.quality.sweeps import Bench
from experiments import harness, memory
from experiments.registry import check_name
from experiments.settings import Count, Options, Seed, at_least, defaults_of

DEFAULT_RULES = (
    "backprop", "weight_perturbation", "forward_gradient", "node_perturbation", "node_perturbation_activity",
    "node_perturbation_tutorial", "forward_gradient_activities", "feedback_alignment",
    "direct_feedback_alignment", "sign_symmetry_unit", "kolen_pollack",
)  # fmt: skip


@dataclass(frozen=True)
class Config(Options):
    """Compare the gradients of all rules with backprop: cosine, SNR, bias, variance and cost.

    Varies one setting at a time, with the others at their defaults. Prints a table, and writes
    `gradient_quality.json`, a figure per sweep, bias against variance, and error against compute.
    """

    out: Path = Path("results/gradient_quality")
    """Folder for the JSON and the figures."""
    resume: bool = False
    """Resume the run in --out and keep its measurements."""
    rules: tuple[str, ...] = DEFAULT_RULES
    """Rules to measure: names in `experiments/registry.py`, or your own as MODULE:FUNCTION, where
    FUNCTION(model, loss) or FUNCTION(model, loss, sigma) returns the rule."""
    sweeps: tuple[str, ...] = ()
    """Settings to vary; default: all, or with --quick sigma, num_samples and updates."""
    seeds: Count = 8
    """Number of seeds, for weights, feedback weights, examples and noise."""
    seed: Seed = 0
    """Base PRNG seed."""
    draws: Annotated[int, at_least(3)] = 128
    """Number of gradients per seed from which moments are computed; at least 3."""
    examples: Annotated[int, at_least(3)] = 128
    """Number of examples per seed from which the SNR is computed; at least 3."""
    data: str = "sample"
    """Source of MNIST: "sample" (offline), or another source of `ll.data.mnist`."""
    pooled: int = 4
    """Size of the squares of pixels averaged into one; by default 28 x 28 pixels become 7 x 7."""
    quick: bool = False
    """Short form: 4 seeds, 16 draws, 32 examples, at most three values per sweep, and fewer sweeps."""
    setting: Setting = Setting()  # noqa: RUF009 (frozen)
    """Default values of the settings."""

    def check(self) -> None:
        self.expect("pooled", "a divisor of 28, at most 7", self.pooled in (1, 2, 4, 7))
        for rule in self.rules:
            check_name(self.option("rules"), rule, RULES.keys())
        self.expect("sweeps", f"some of {', '.join(SWEEPS)}", set(self.sweeps) <= set(SWEEPS))
        self.expect_distinct("rules")
        self.expect("sweeps", "each at most once", len(set(self.sweeps)) == len(self.sweeps))
        supported = self.setting.network == "dense" or not {*self.rules} & {*DENSE_ALONE}
        self.expect("rules", f"none that works only on dense networks: {', '.join(DENSE_ALONE)}", supported)

    def check_fits(self) -> None:
        """Raises ValueError unless the weights of all seeds and the batches of one seed fit into memory."""

        def needed(sizes: Mapping[str, int]) -> int:
            width, inputs = sizes["width"], (28 // self.pooled) ** 2
            weights = inputs * width + (sizes["depth"] - 1) * width**2
            seeds = min(sizes["seeds"], 4) if self.quick else sizes["seeds"]
            return 4 * (seeds * weights + sizes["batch_size"] * (inputs + width))

        given = {"seeds": self.seeds, **vars(self.setting)}
        defaults = {"seeds": defaults_of(self)["seeds"], **vars(Setting())}
        memory.check_fits(
            needed, given, defaults, lambda name: (self if name == "seeds" else self.setting).option(name)
        )

    def chosen(self) -> tuple[str, ...]:
        """Returns the names of the sweeps to run."""
        return self.sweeps or (("sigma", "num_samples", "updates") if self.quick else tuple(SWEEPS))

    def numbers(self) -> dict[str, int]:
        """Returns numbers of seeds, draws and examples."""
        most = {"seeds": 4, "draws": 16, "examples": 32}
        return {k: min(getattr(self, k), v) if self.quick else getattr(self, k) for k, v in most.items()}

    def deciding(self) -> dict[str, Any]:
        """Returns the options that determine the results, for JSON."""
        held = {name: value for name, value in vars(self).items() if name not in ("out", "resume")}
        return {**held, **self.numbers(), "setting": vars(self.setting)}


def run(config: Config) -> Mapping[str, figures.Rows]:
    """Measures all rules, prints the table, and writes JSON and figures; returns the rows of every sweep."""
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
    settings = sorted({config.setting, *itertools.chain.from_iterable(plans.values())}, key=str)
    with tqdm(total=len(config.rules) * (1 + len(settings)), unit="point", smoothing=0.05) as progress:

        def advance(rule: str) -> None:
            progress.set_description(rule, refresh=False)
            progress.update()

        flops = {}
        for rule in config.rules:
            flops[rule] = bench.flops(rule, config.setting)
            advance(rule)
        bench.measure_all(config.rules, settings, advance)
    default = bench.sweep("num_samples", config.rules, [config.setting])
    found = {name: bench.sweep(name, config.rules, plan) for name, plan in plans.items()}
    publish(config, default, found, flops)
    shutil.rmtree(kept)
    return found


def publish(
    config: Config, default: figures.Rows, sweeps: Mapping[str, figures.Rows], flops: dict[str, float]
) -> None:
    """Writes `gradient_quality.json` and the figures, and prints the table."""
    head = {"benchmark": "gradient_quality", **machine.head(), "config": config.deciding(), "flops": flops}
    unswept = [{**row, "sweep": "default", "value": None} for row in default]
    text = report.as_json(head, [*unswept, *itertools.chain.from_iterable(sweeps.values())])
    harness.write_whole(config.out / "gradient_quality.json", lambda path: path.write_text(text))
    numbers = config.numbers()
    note = f"mean and 95 % interval over {numbers['seeds']} seeds"
    of_sweep = partial(figures.sweep_figure, examples=numbers["examples"], note=note)
    drawn = {
        f"against_{name}": of_sweep(in_total(rows), "value", SWEEPS[name].label, SWEEPS[name].scale)
        for name, rows in sweeps.items()
    }
    drawn["by_layer"] = of_sweep(default, "layer", "layer", "names")
    drawn["bias_against_variance"] = figures.bias_against_variance(in_total(default), note)
    averages = in_total(sweeps.get("num_samples", default))
    drawn["error_against_compute"] = figures.error_against_compute(averages, flops, note)
    for name, figure in drawn.items():
        machine.save(figure, config.out / f"{name}.png")
    print(report.table(in_total(default), flops))
    print(f"\ngradient_quality.json and {len(drawn)} figures: {config.out}")


def in_total(rows: figures.Rows) -> figures.Rows:
    """Returns the rows about all layers together."""
    return [row for row in rows if row["layer"] == "total"]


main = partial(machine.command_line, "gradient_quality", Config, run)

if __name__ == "__main__":
    harness.use_all_cores(compile_quickly=True)
    sys.exit(main())
