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

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

import lax_learning as ll
from benchmarks import machine, pairs
from benchmarks.cases import Sizes, microlearning, peers
from benchmarks.pairs import seconds_per_call
from benchmarks.reference import jax_by_hand
from experiments import harness, reporting
from experiments.registry import rule_of
from experiments.settings import Count, Options, Positive
from lax_learning.noise import normal
from tests.zoo import ZOO, Case

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


SIZES = Sizes(batch_size=200, updates=20)
LEAST_S, LEAST_EXAMPLES, MOST_EXAMPLES = 2e-3, 32, 2**14
STEPS, COMPILE_GOAL_S = 1000, 10.0
BY_HAND_GOAL = 1.03
DRAW = "noise alone"

RULES = {
    name: rule_of(name, sigma=jax_by_hand.SIGMA)
    for name in (
        "backprop", "feedback_alignment", "direct_feedback_alignment", "node_perturbation",
        "node_perturbation_activity", "weight_perturbation",
    )
}  # fmt: skip


def recurrent(params: dict[str, Any], x: Any) -> Any:
    """A recurrent network with a readout at the last step."""

    def step(h: Any, x: Any) -> tuple[Any, None]:
        return jnp.tanh(x @ params["u"] + h @ params["v"] + params["b"]), None

    start = jnp.zeros((x.shape[0], params["v"].shape[0]))
    return jax.lax.scan(step, start, x.swapaxes(0, 1))[0] @ params["out"]


class Compiled:
    """A compiled program with its arguments, and the seconds to trace and to compile it."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        began = time.perf_counter()
        lowered = jax.jit(function).lower(*args)
        traced = time.perf_counter()
        self.program, self.args = lowered.compile(), args
        self.times = {"trace_s": traced - began, "compile_s": time.perf_counter() - traced}

    def __call__(self) -> Any:
        return self.program(*self.args)


def rule_on(rule: ll.Rule, params: Any, x: Any, y: Any) -> Compiled:
    """Compiles one call of a rule, with the results `(loss, grads)`."""
    key = jax.random.key(0)
    state = jax.jit(rule.init)(key, params, x)
    return Compiled(lambda *args: rule.value_and_grad(*args)[:2], key, params, state, x, y)


def exact(case: Case) -> tuple[Compiled, Any, Any]:
    """Compiles `jax.value_and_grad` for a batch so large that a call takes `LEAST_S`; also returns the batch.

    Repeats the examples of the case.
    """

    def mean_loss(params: Any, x: Any, y: Any) -> Any:
        return jnp.mean(ll.squared_error(case.apply(params, x), y))

    size = LEAST_EXAMPLES
    while True:
        x = jax.tree.map(lambda leaf: jnp.resize(leaf, (size, *leaf.shape[1:])), case.x)  # noqa: B023
        output = jax.eval_shape(case.apply, case.params, x)
        y = jax.random.normal(jax.random.key(1), output.shape)
        program = Compiled(jax.value_and_grad(mean_loss), case.params, x, y)
        jax.block_until_ready(program())
        seconds = min(seconds_per_call(program) for _ in range(5))
        if seconds >= LEAST_S or size >= MOST_EXAMPLES:
            return program, x, y
        size = min(MOST_EXAMPLES, size * 2 ** max(1, round(math.log2(LEAST_S / seconds))))


def timed(ours: Compiled, reference: Compiled, seconds: float, pieces: int = 1) -> dict[str, Any]:
    """Returns the times of two programs per piece of work, and their ratio."""
    found = pairs.compare(ours, reference, seconds=seconds)._asdict()
    found |= {name: found[name] / pieces for name in ("ours_s", "reference_s")}
    return {**found, "reference_compile_s": reference.times["compile_s"], **ours.times}


def run_network(rule: str, seconds: float) -> dict[str, Any]:
    """Compares updates of a rule on 784-500-10 with code written by hand for that network."""
    ours, reference = (
        Compiled(program.one, jax.random.key(0), program.member, *program.shared)
        for program in (
            microlearning.training(lambda model: RULES[rule](model, ll.squared_error), SIZES, 1),
            peers.by_hand(rule, jax.random.normal, 1, SIZES),
        )
    )
    row = {"part": "network", "model": "784-500-10", "rule": rule, "goal": BY_HAND_GOAL}
    return {**row, "examples": SIZES.batch_size, **timed(ours, reference, 3 * seconds, SIZES.updates)}


def run_zoo(name: str, scale: int, seconds: float) -> list[dict[str, Any]]:
    """Compares every rule on a model of the zoo, and drawing its noise alone, with `jax.value_and_grad`."""
    case = ZOO[name](scale)
    reference, x, y = exact(case)
    program = str(jax.make_jaxpr(case.apply)(case.params, case.x))
    has_loop = "scan[" in program or "while[" in program
    goals = {"feedback_alignment": 1.1, "node_perturbation": 2.5 if has_loop else 2.0}
    model = ll.Model(case.apply)
    units = ll.tapped(model).shapes(case.params, x)
    rows = []
    for rule in (*(rule for rule in RULES if "activity" not in rule), DRAW):
        if rule == DRAW:
            ours = Compiled(lambda key: normal(key, units), jax.random.key(0))
        else:
            ours = rule_on(RULES[rule](model, ll.squared_error), case.params, x, y)
        row = {"part": "zoo", "model": name, "scale": scale, "rule": rule, "goal": goals.get(rule)}
        rows.append({**row, "examples": len(y), **timed(ours, reference, seconds)})
    return rows


def run_recurrent(rule: str) -> dict[str, Any]:
    """Measures the seconds to trace and to compile a rule on a recurrent network with 1,000 steps."""
    sizes = {"u": (8, 32), "v": (32, 32), "out": (32, 4)}
    keys = map(jax.random.key, range(3))
    params = {name: 0.1 * jax.random.normal(next(keys), size) for name, size in sizes.items()}
    params["b"] = jnp.zeros(32)
    x, y = jax.random.normal(jax.random.key(3), (32, STEPS, 8)), jnp.zeros((32, 4))
    ours = rule_on(RULES[rule](ll.Model(recurrent), ll.squared_error), params, x, y)
    row = {"part": "recurrent", "model": f"{STEPS} steps", "rule": rule, "goal": COMPILE_GOAL_S}
    return {**row, "examples": len(y), **ours.times}


def is_met(row: dict[str, Any]) -> bool:
    """Returns whether a row meets its goal, a ratio or seconds to compile, or has none."""
    return row["goal"] is None or row.get("ratio", row["trace_s"] + row["compile_s"]) <= row["goal"]


def table(rows: list[dict[str, Any]]) -> str:
    """Formats all rows as a table in Markdown."""
    header = ("part", "model", "scale", "rule", "examples", "ours (ms)", "reference (ms)", "ratio", "goal",
              "met", "trace (s)", "compile (s)")  # fmt: skip
    cells = []
    for row in rows:
        ratio, goal = ["", "", ""], ["", ""]
        if "ratio" in row:
            ratio = [f"{1e3 * row['ours_s']:.3g}", f"{1e3 * row['reference_s']:.3g}", f"{row['ratio']:.2f}"]
        if row["goal"] is not None:
            goal = [f"{row['goal']:g}" + " s" * ("ratio" not in row), "yes" if is_met(row) else "no"]
        cells.append((row["part"], row["model"], str(row.get("scale", "")), row["rule"], str(row["examples"]),
                      *ratio, *goal, f"{row['trace_s']:.2f}", f"{row['compile_s']:.1f}"))  # fmt: skip
    return reporting.table(header, cells)


def run(config: Config) -> list[dict[str, Any]]:
    """Runs the benchmark, prints its table and writes cost_of_rules.json."""
    harness.make_folder(config.out)
    seconds = config.seconds * (0.5 if config.quick else 1)
    models = config.models or (QUICK_ZOO if config.quick else tuple(ZOO))
    work = {"network": tuple(RULES), "recurrent": tuple(RULES), "zoo": models}
    rows: list[dict[str, Any]] = []
    with tqdm([(part, name) for part in work if part in config.parts for name in work[part]]) as progress:
        for part, name in progress:
            progress.set_description(f"{part}: {name}")
            if part == "network":
                rows.append(run_network(name, seconds))
            elif part == "recurrent":
                rows.append(run_recurrent(name))
            else:
                rows += run_zoo(name, config.scale, seconds)
            machine.write(config, "cost_of_rules", load=machine.load(), rows=rows)
    print(table(rows))
    goals = [row for row in rows if row["goal"] is not None]
    missed = [row for row in goals if not is_met(row)]
    print(f"\n{len(missed)} of {len(goals)} goals missed; cost_of_rules.json: {config.out}")
    return rows


main = partial(machine.command_line, "cost_of_rules", Config, run)

if __name__ == "__main__":
    sys.exit(main())
