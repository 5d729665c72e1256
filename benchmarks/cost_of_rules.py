"""Cost of rules, relative to hand-written code and to `jax.value_and_grad`, and their compile time.

    python -m benchmarks.cost_of_rules --quick

- network: rules on 784-500-10 with sigmoids and batches of 200, compared with plain JAX functions written by
  hand for that network. Each program is 20 updates in a scan, as in training, so that call overhead is
  negligible.
- zoo: rules on the models of `tests/zoo.py`, compared with `jax.value_and_grad` of the mean loss, one call
  each. Widths are `scale` times those of the tests (3 to 16 units, where drawing noise costs more than the
  products), and batches so large that `value_and_grad` takes 2 ms. Drawing one normal number per
  pre-activation is timed separately.
- recurrent: time to trace and to compile rules on a network with 1,000 steps.

Ratios are medians over short, alternating measurements of compiled programs in one process.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import machine
from benchmarks.cost_parts import RULES, run_network, run_recurrent, run_zoo
from experiments import harness, reporting
from experiments.settings import Count, Options, Positive
from tests.zoo import ZOO

PARTS = ("network", "zoo", "recurrent")
QUICK_ZOO = ("plain_mlp", "linen_attention_block", "equinox_gru")


@dataclass(frozen=True)
class Config(Options):
    """Time rules, including compilation, against hand-written code and jax.value_and_grad."""

    quick: bool = False
    """Run three models of the zoo with shorter measurements, in less than 90 seconds."""
    parts: tuple[str, ...] = PARTS
    """Parts to run: network, zoo, recurrent."""
    models: tuple[str, ...] = ()
    """Models of the zoo; default: all."""
    scale: Count = 64
    """Factor for the widths of the models in tests/zoo.py."""
    seconds: Positive = 0.4
    """Time spent on measuring one ratio, in seconds."""
    out: Path = Path("results/cost_of_rules")
    """Folder for cost_of_rules.json; an existing file is replaced."""

    def check(self) -> None:
        self.expect_distinct("parts")
        self.expect("parts", f"some of {', '.join(PARTS)}", set(self.parts) <= set(PARTS))
        self.expect("models", "names of the zoo", set(self.models) <= set(ZOO))


def is_met(row: dict[str, Any]) -> bool | None:
    """Returns whether a row meets its goal; None without one."""
    if row["goal"] is None:
        return None
    return row.get("ratio", row["trace_s"] + row["compile_s"]) <= row["goal"]


def table(rows: list[dict[str, Any]]) -> str:
    """Formats all rows as a table in Markdown."""
    header = ("part", "model", "scale", "rule", "examples", "ours (ms)", "reference (ms)", "ratio", "goal",
              "met", "trace (s)", "compile (s)")  # fmt: skip
    cells = []
    for row in rows:
        timed = ["", "", ""]
        if "ratio" in row:
            timed = [f"{1e3 * row['ours_s']:.3g}", f"{1e3 * row['reference_s']:.3g}", f"{row['ratio']:.2f}"]
        goal = "" if row["goal"] is None else f"{row['goal']:g}" + " s" * ("ratio" not in row)
        met = {None: "", True: "yes", False: "no"}[is_met(row)]
        cells.append((row["part"], row["model"], str(row.get("scale", "")), row["rule"], str(row["examples"]),
                      *timed, goal, met, f"{row['trace_s']:.2f}", f"{row['compile_s']:.1f}"))  # fmt: skip
    return reporting.table(header, cells)


def run(config: Config) -> list[dict[str, Any]]:
    """Runs the benchmark, prints its table and writes cost_of_rules.json."""
    harness.make_folder(config.out)
    seconds = config.seconds * (0.5 if config.quick else 1)
    models = config.models or (QUICK_ZOO if config.quick else tuple(ZOO))
    work: list[tuple[str, str]] = [("network", rule) for rule in RULES if "network" in config.parts]
    work += [("recurrent", rule) for rule in RULES if "recurrent" in config.parts]
    work += [("zoo", name) for name in models if "zoo" in config.parts]
    rows: list[dict[str, Any]] = []
    with tqdm(work, unit="part") as progress:
        for part, name in progress:
            progress.set_description(f"{part}: {name}")
            if part == "network":
                rows.append(run_network(name, seconds))
            elif part == "recurrent":
                rows.append(run_recurrent(name))
            else:
                rows += run_zoo(name, config.scale, seconds, progress.set_postfix_str)
            content = {**machine.head(), "load": machine.load(), "seconds": config.seconds, "rows": rows}
            harness.write_json(config.out / "cost_of_rules.json", content)
    print(table(rows))
    goals = [row for row in rows if row["goal"] is not None]
    missed = [row for row in goals if not is_met(row)]
    print(f"\n{len(missed)} of {len(goals)} goals missed; cost_of_rules.json: {config.out}")
    return rows


main = partial(harness.command_line, "cost_of_rules", Config, run, package="benchmarks")

if __name__ == "__main__":
    sys.exit(main())
