"""Parts of the benchmark of the cost of rules: compiled programs, timed in pairs."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import lax_learning as ll
from benchmarks.pairs import Pairs, compare, seconds_per_call
from benchmarks.reference import jax_by_hand as by_hand
from experiments.registry import rule_of
from lax_learning.noise import normal
from tests.zoo import ZOO, Case

SIGMA = by_hand.SIGMA
BATCH, UPDATES, LEARNING_RATE = 200, 20, 1e-3
LEAST_S, LEAST_EXAMPLES, MOST_EXAMPLES = 2e-3, 32, 2**14
STEPS, COMPILE_GOAL_S = 1000, 10.0
BY_HAND_GOAL = 1.03
DRAW = "noise alone"

RULES = {
    name: rule_of(name, sigma=SIGMA)
    for name in (
        "backprop", "feedback_alignment", "direct_feedback_alignment", "node_perturbation",
        "node_perturbation_activity", "weight_perturbation",
    )
}  # fmt: skip


def network(params: by_hand.Layers, x: Any) -> Any:
    """784-500-10 in plain JAX."""
    hidden = jax.nn.sigmoid(x @ params[0]["w"] + params[0]["b"])
    return jax.nn.sigmoid(hidden @ params[1]["w"] + params[1]["b"])


def network_params(key: Any, widths: tuple[int, ...] = (784, 500, 10)) -> by_hand.Layers:
    """Draws normal weights with variance 1 / inputs; biases are zero."""
    keys = jax.random.split(key, len(widths) - 1)
    sizes = zip(keys, widths[:-1], widths[1:], strict=True)
    return [{"w": jax.random.normal(k, (i, o)) * i**-0.5, "b": jnp.zeros(o)} for k, i, o in sizes]


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
        self.trace_s = time.perf_counter() - began
        self.program = lowered.compile()
        self.compile_s = time.perf_counter() - began - self.trace_s
        self.args = args

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


def _row(part: str, model: str, rule: str, goal: float | None, ours: Compiled, **more: Any) -> dict[str, Any]:
    times = {"trace_s": ours.trace_s, "compile_s": ours.compile_s}
    return {"part": part, "model": model, "rule": rule, "goal": goal, **more, **times}


def _ratio(pairs: Pairs, pieces: int = 1) -> dict[str, Any]:
    found = pairs._asdict()
    return found | {name: found[name] / pieces for name in ("ours_s", "reference_s")}


def run_network(rule: str, seconds: float) -> dict[str, Any]:
    """Compares updates of a rule on 784-500-10 with code written by hand for that network."""
    key = jax.random.key(0)
    params, feedback = network_params(key), network_params(jax.random.key(1))
    x, y = jax.random.uniform(key, (BATCH, 784)), jax.nn.one_hot(jnp.arange(BATCH) % 10, 10)
    model_rule = RULES[rule](ll.Model(network), ll.squared_error)
    state = model_rule.init(key, params, x)
    keys = jax.random.split(key, UPDATES)

    def estimate(key: Any, params: Any, state: Any, x: Any, y: Any, draw: Any) -> Any:
        return model_rule.value_and_grad(key, params, state, x, y)[:2]

    first, second = (
        Compiled(by_hand.training(update, jax.random.normal, 1, LEARNING_RATE), keys, params, held, x, y)
        for update, held in ((estimate, state), (by_hand.RULES[rule], feedback))
    )
    pairs = compare(first, second, seconds=3 * seconds)
    more = {"examples": BATCH, **_ratio(pairs, UPDATES), "reference_compile_s": second.compile_s}
    return _row("network", "784-500-10", rule, BY_HAND_GOAL, first, **more)


def run_zoo(name: str, scale: int, seconds: float, advance: Callable[[str], None]) -> list[dict[str, Any]]:
    """Compares every rule on a model of the zoo, and drawing its noise alone, with `jax.value_and_grad`."""
    case = ZOO[name](scale)
    reference, x, y = exact(case)
    program = str(jax.make_jaxpr(case.apply)(case.params, case.x))
    has_loop = "scan[" in program or "while[" in program
    goals = {"feedback_alignment": 1.1, "node_perturbation": 2.5 if has_loop else 2.0}
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
    """Measures the seconds to trace and to compile a rule on a recurrent network with 1,000 steps."""
    sizes = {"u": (8, 32), "v": (32, 32), "out": (32, 4)}
    keys = map(jax.random.key, range(3))
    params = {name: 0.1 * jax.random.normal(next(keys), size) for name, size in sizes.items()}
    params["b"] = jnp.zeros(32)
    x, y = jax.random.normal(jax.random.key(3), (32, STEPS, 8)), jnp.zeros((32, 4))
    ours = rule_on(RULES[rule](ll.Model(recurrent), ll.squared_error), params, x, y)
    return _row("recurrent", f"{STEPS} steps", rule, COMPILE_GOAL_S, ours, examples=len(y))
