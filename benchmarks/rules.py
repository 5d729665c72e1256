"""Cost of the rules on models: against code by hand, against `jax.value_and_grad`, and to compile.

    python -m benchmarks.rules --quick

network: 784-500-10 with sigmoids, batch 200. An expert's functions for that network, in plain JAX, against
the rules of the library. Both are one program of 20 updates in a scan, as in training: what a call costs is
none of a rule's.

zoo: the models of `tests/zoo.py`, each rule against `jax.value_and_grad` of the mean loss of the same model,
one call each. As tests have them their layers are of 3 to 16 units, on which normal numbers cost more than
products: here all widths are `scale` times as large, and the batch is as large as makes `value_and_grad` take
2 ms, so that work outweighs what a call costs. Drawing a unit normal number for every pre-activation is
timed on its own.

recurrent: 1,000 steps, the time to trace and to compile.

All programs are compiled beforehand; ratios are medians over short measurements of both in turn, in one
process.
"""

import datetime
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

import lax_learning as ll
from benchmarks.pairs import Pairs, compare
from benchmarks.reference import jax_by_hand as by_hand
from experiments import harness, reporting
from experiments.registry import rule_of
from experiments.settings import Count, Options, Positive
from lax_learning.noise import normal
from tests.zoo import ZOO, Case

PARTS = ("network", "zoo", "recurrent")
SIGMA = by_hand.SIGMA
BATCH, UPDATES, LEARNING_RATE = 200, 20, 1e-3
LEAST_S, LEAST_EXAMPLES, MOST_EXAMPLES = 2e-3, 32, 2**14
STEPS, COMPILE_GOAL_S = 1000, 10.0
BY_HAND_GOAL = 1.03
DRAW = "noise alone"
QUICK_ZOO = ("plain_mlp", "linen_attention_block", "equinox_gru")

RULES = {
    name: rule_of(name, sigma=SIGMA)
    for name in (
        "backprop", "feedback_alignment", "direct_feedback_alignment", "node_perturbation",
        "node_perturbation_activity", "weight_perturbation",
    )
}  # fmt: skip


@dataclass(frozen=True)
class Config(Options):
    """Time the rules against code by hand and against jax.value_and_grad, and their compilation."""

    quick: bool = False
    """Under 90 seconds: three models of the zoo, and shorter measurements."""
    parts: tuple[str, ...] = PARTS
    """Some of: network zoo recurrent."""
    models: tuple[str, ...] = ()
    """Models of the zoo; by default all."""
    scale: Count = 64
    """Widths of the models are those of tests/zoo.py times this."""
    seconds: Positive = 0.4
    """Time that is spent on one ratio."""
    out: Path = Path("results/rules")
    """Folder for rules.json; an earlier one is replaced."""

    def check(self) -> None:
        self.expect_distinct("parts")
        self.expect("parts", f"some of {', '.join(PARTS)}", set(self.parts) <= set(PARTS))
        self.expect("models", "names of the zoo", set(self.models) <= set(ZOO))


# Programs.


def network(params: by_hand.Layers, x: Any) -> Any:
    """784-500-10, as a function that knows nothing of the library."""
    hidden = jax.nn.sigmoid(x @ params[0]["w"] + params[0]["b"])
    return jax.nn.sigmoid(hidden @ params[1]["w"] + params[1]["b"])


def network_params(key: Any, widths: tuple[int, ...] = (784, 500, 10)) -> by_hand.Layers:
    """Normal weights of variance 1 / in, biases of zero."""
    keys = jax.random.split(key, len(widths) - 1)
    sizes = zip(keys, widths[:-1], widths[1:], strict=True)
    return [{"w": jax.random.normal(k, (i, o)) * i**-0.5, "b": jnp.zeros(o)} for k, i, o in sizes]


def training(value_and_grad: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[[Any, Any], Any]:
    """Updates in a scan: `(keys, params) -> (params, losses)` of `(key, params) -> (loss, grads)`."""

    def train(keys: Any, params: Any) -> tuple[Any, Any]:
        def update(params: Any, key: Any) -> tuple[Any, Any]:
            loss, grads = value_and_grad(key, params)
            return jax.tree.map(lambda w, g: w - LEARNING_RATE * g, params, grads), loss

        return jax.lax.scan(update, params, keys)

    return train


def recurrent(params: dict[str, Any], x: Any) -> Any:
    """A row of 1,000 steps, read at the end."""

    def step(h: Any, x: Any) -> tuple[Any, None]:
        return jnp.tanh(x @ params["u"] + h @ params["v"] + params["b"]), None

    start = jnp.zeros((x.shape[0], params["v"].shape[0]))
    return jax.lax.scan(step, start, x.swapaxes(0, 1))[0] @ params["out"]


class Compiled:
    """A compiled program and the seconds that it took to trace and to compile."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        began = time.perf_counter()
        lowered = jax.jit(function).lower(*args)
        self.trace_s = time.perf_counter() - began
        self.program = lowered.compile()
        self.compile_s = time.perf_counter() - began - self.trace_s
        self.args = args

    def __call__(self) -> Any:
        return self.program(*self.args)


def rule_on(rule: ll.Rule, params: Any, x: Any, y: Any) -> Compiled:
    """One call of a rule, `(loss, grads)`."""
    key = jax.random.key(0)
    state = jax.jit(rule.init)(key, params, x)
    return Compiled(
        lambda key, params, state, x, y: rule.value_and_grad(key, params, state, x, y)[:2],
        key, params, state, x, y,
    )  # fmt: skip


def tiled(tree: Any, size: int) -> Any:
    """Examples over and over, `size` of them."""
    return jax.tree.map(lambda leaf: jnp.concatenate([leaf] * -(-size // len(leaf)))[:size], tree)


def exact(case: Case) -> tuple[Compiled, Any, Any]:
    """`jax.value_and_grad` on a batch that keeps it busy for `LEAST_S`, with the batch and its targets."""

    def mean_loss(params: Any, x: Any, y: Any) -> Any:
        return jnp.mean(ll.squared_error(case.apply(params, x), y))

    size = LEAST_EXAMPLES
    while True:
        x = tiled(case.x, size)
        output = jax.eval_shape(case.apply, case.params, x)
        y = jax.random.normal(jax.random.key(1), output.shape)
        program = Compiled(jax.value_and_grad(mean_loss), case.params, x, y)
        jax.block_until_ready(program())
        times = []
        for _ in range(5):
            began = time.perf_counter()
            jax.block_until_ready(program())
            times.append(time.perf_counter() - began)
        if min(times) >= LEAST_S or size >= MOST_EXAMPLES:
            return program, x, y
        size = min(MOST_EXAMPLES, size * 2 ** max(1, round(math.log2(LEAST_S / min(times)))))


def has_scan(case: Case) -> bool:
    """Returns whether a model holds a loop."""
    text = str(jax.make_jaxpr(case.apply)(case.params, case.x))
    return "scan[" in text or "while[" in text


# Parts: each yields rows as it goes.


def _row(part: str, model: str, rule: str, goal: float | None, ours: Compiled, **more: Any) -> dict[str, Any]:
    times = {"trace_s": ours.trace_s, "compile_s": ours.compile_s}
    return {"part": part, "model": model, "rule": rule, "goal": goal, **more, **times}


def _ratio(pairs: Pairs, pieces: int = 1) -> dict[str, Any]:
    found = pairs._asdict()
    return found | {name: found[name] / pieces for name in ("ours_s", "reference_s")}


def run_network(rule: str, seconds: float) -> dict[str, Any]:
    """A rule on 784-500-10 against what an expert writes."""
    key = jax.random.key(0)
    params, feedback = network_params(key), network_params(jax.random.key(1))
    x, y = jax.random.uniform(key, (BATCH, 784)), jax.nn.one_hot(jnp.arange(BATCH) % 10, 10)
    model_rule = RULES[rule](ll.Model(network), ll.squared_error)
    state = model_rule.init(key, params, x)
    keys = jax.random.split(key, UPDATES)

    def ours(keys: Any, params: Any, state: Any, x: Any, y: Any) -> Any:
        return training(lambda key, params: model_rule.value_and_grad(key, params, state, x, y)[:2])(
            keys, params
        )

    def reference(keys: Any, params: Any, feedback: Any, x: Any, y: Any) -> Any:
        update = by_hand.RULES[rule]
        return training(lambda key, params: update(key, params, feedback, x, y, jax.random.normal))(
            keys, params
        )

    first, second = (
        Compiled(ours, keys, params, state, x, y),
        Compiled(reference, keys, params, feedback, x, y),
    )
    pairs = compare(first, second, seconds=3 * seconds)
    more = {"examples": BATCH, **_ratio(pairs, UPDATES), "reference_compile_s": second.compile_s}
    return _row("network", "784-500-10", rule, BY_HAND_GOAL, first, **more)


def run_zoo(name: str, scale: int, seconds: float, advance: Callable[[str], None]) -> list[dict[str, Any]]:
    """Every rule on a model of the zoo, and normal numbers alone, against `jax.value_and_grad`."""
    case = ZOO[name](scale)
    reference, x, y = exact(case)
    goals = {"feedback_alignment": 1.1, "node_perturbation": 2.5 if has_scan(case) else 2.0}
    model = ll.Model(case.apply)
    units = ll.tapped(model).shapes(case.params, x)

    def compiled(rule: str) -> Compiled:
        if rule == DRAW:
            return Compiled(lambda key: normal(key, units), jax.random.key(0))
        return rule_on(RULES[rule](model, ll.squared_error), case.params, x, y)

    rows = []
    for rule in (*(rule for rule in RULES if "activity" not in rule), DRAW):
        advance(rule)
        ours = compiled(rule)
        ratio = _ratio(compare(ours, reference, seconds=seconds))
        more = {"scale": scale, "examples": len(y), **ratio, "reference_compile_s": reference.compile_s}
        rows.append(_row("zoo", name, rule, goals.get(rule), ours, **more))
    return rows


def run_recurrent(rule: str) -> dict[str, Any]:
    """Seconds to trace and compile a rule on a network of 1,000 steps."""
    names, sizes = ("u", "v", "out"), ((8, 32), (32, 32), (32, 4))
    params = {
        n: 0.1 * jax.random.normal(jax.random.key(i), s)
        for i, (n, s) in enumerate(zip(names, sizes, strict=True))
    }
    params["b"] = jnp.zeros(32)
    x, y = jax.random.normal(jax.random.key(3), (32, STEPS, 8)), jnp.zeros((32, 4))
    ours = rule_on(RULES[rule](ll.Model(recurrent), ll.squared_error), params, x, y)
    return _row("recurrent", f"{STEPS} steps", rule, COMPILE_GOAL_S, ours, examples=len(y))


def is_met(row: dict[str, Any]) -> bool | None:
    """Returns whether a row meets its goal; None without one."""
    if row["goal"] is None:
        return None
    return row.get("ratio", row["trace_s"] + row["compile_s"]) <= row["goal"]


def table(rows: list[dict[str, Any]]) -> str:
    """All rows."""
    header = ("part", "model", "scale", "rule", "examples", "ours (ms)", "reference (ms)", "ratio", "goal",
              "met", "trace (s)", "compile (s)")  # fmt: skip
    cells = []
    for row in rows:
        timed = (
            (f"{1e3 * row['ours_s']:.3g}", f"{1e3 * row['reference_s']:.3g}", f"{row['ratio']:.2f}")
            if "ratio" in row
            else ("", "", "")
        )
        goal = "" if row["goal"] is None else f"{row['goal']:g}" + " s" * ("ratio" not in row)
        met = {None: "", True: "yes", False: "no"}[is_met(row)]
        cells.append((row["part"], row["model"], str(row.get("scale", "")), row["rule"], str(row["examples"]),
                      *timed, goal, met, f"{row['trace_s']:.2f}", f"{row['compile_s']:.1f}"))  # fmt: skip
    return reporting.table(header, cells)


def run(config: Config) -> list[dict[str, Any]]:
    """Runs the benchmark, prints its table and writes rules.json."""
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
            write(config, rows)
    print(table(rows))
    goals = [row for row in rows if row["goal"] is not None]
    missed = [row for row in goals if not is_met(row)]
    print(f"\n{len(missed)} of {len(goals)} goals missed; rules.json: {config.out}")
    return rows


def write(config: Config, rows: list[dict[str, Any]]) -> None:
    """All that is measured so far."""
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind} ({jax.default_backend()})"
    content = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count(),
                    "device": device, "load": os.getloadavg()[0]},
        "versions": harness.versions(),
        "seconds": config.seconds,
        "rows": rows,
    }  # fmt: skip
    harness.write_json(config.out / "rules.json", content)


def main() -> int:
    """The command line; the exit code of the process."""
    return harness.command_line("rules", Config, run, package="benchmarks")


if __name__ == "__main__":
    sys.exit(main())
