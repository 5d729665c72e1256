"""Memory and time of in-place steps of weight perturbation on large models.

    python -m benchmarks.in_place

The models are an MLP and a transformer, each with ten layers and 42 million weights, with layers in a list or
stacked under a scan. Temporaries are the compiler's plan, in addition to parameters and data; the peak is the
largest increase of the process's memory during a step (Linux only). A step consists of two passes and three
draws of the noise, which are also timed separately, alternating with the step.
"""

import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

import lax_learning as ll
from benchmarks import machine
from benchmarks.pairs import seconds_per_call
from experiments import harness, reporting
from experiments.settings import Count, Options
from lax_learning.noise import normal, rademacher

NOISE: dict[str, dict[str, Any]] = {"rank 4": {"rank": 4}, "signs": {"noise": "rademacher"}, "normal": {}}
HEADS, RATE = 8, 1e-9


@dataclass(frozen=True)
class Config(Options):
    """Measure memory and time of in-place steps of weight perturbation."""

    width: Count = 2_048
    """Units per layer of the MLP; the layers of the transformer have as many weights."""
    layers: Count = 10
    """Number of layers of both models."""
    examples: tuple[Count, ...] = (32, 256)
    """Numbers of examples for the MLP; the transformer has two sequences of this length."""
    repeats: Count = 5
    """Number of timed steps; the median is reported."""
    out: Path = Path("results/in_place")
    """Folder for in_place.json; an existing file is replaced."""


def dense(h: Any, p: Any) -> Any:
    """Layer of the MLP."""
    return jnp.tanh(h @ p["w"] + p["b"])


def block(h: Any, p: Any) -> Any:
    """Layer of the transformer: attention and a perceptron, with normalised inputs."""
    batch, length, width = h.shape
    qkv = _normalised(h) @ p["qkv"]
    q, k, v = jnp.moveaxis(qkv.reshape(batch, length, 3, HEADS, width // HEADS), 2, 0)
    scores = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) * (width // HEADS) ** -0.5)
    h = h + jnp.einsum("bhts,bshd->bthd", scores, v).reshape(h.shape) @ p["out"]
    return h + jax.nn.gelu(_normalised(h) @ p["up"]) @ p["down"]


def _normalised(h: Any) -> Any:
    return h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + 1e-6)


def problem(name: str, stacked: bool, examples: int, config: Config) -> tuple[Callable[..., Any], Any, Any]:
    """Returns the loss `(params, x) -> [examples]` of a model, its params, and a batch."""
    n = config.width
    if name == "MLP":
        layer, shapes, of_batch = dense, {"w": (n, n), "b": (n,)}, (examples, n)
    else:
        d = max(round(n / 12**0.5) // HEADS, 1) * HEADS
        shapes = {"qkv": (d, 3 * d), "out": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}
        layer, of_batch = block, (2, examples, d)

    def weights(key: Any) -> dict[str, Any]:
        return {n: shape[0] ** -0.5 * jax.random.normal(key, shape) for n, shape in shapes.items()}

    def loss(params: Any, x: Any) -> Any:
        if stacked:
            x = jax.lax.scan(lambda h, p: (layer(h, p), None), x, params)[0]
        else:
            for p in params:
                x = layer(x, p)
        return jnp.mean(x**2, axis=range(1, x.ndim))

    params: Any = [weights(key) for key in jax.random.split(jax.random.key(1), config.layers)]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params) if stacked else params
    return loss, params, jax.random.normal(jax.random.key(0), of_batch)


def run(config: Config) -> list[dict[str, Any]]:
    """Measures all cases, prints the table, and writes in_place.json."""
    harness.make_folder(config.out)
    rows = []
    cases = itertools.product(config.examples, ("MLP", "transformer"), (False, True))
    for examples, name, stacked in tqdm(list(cases), unit="model"):
        loss, params, x = problem(name, stacked, examples, config)
        case = {"model": name, "layers": "stacked" if stacked else "list", "examples": examples}
        for noise in NOISE:
            row, params = _measured(loss, params, x, NOISE[noise], config.repeats)
            rows.append({**case, "noise": noise, **row})
    machine.write(config, "in_place", rows=rows)
    cells = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    print(reporting.table(rows[0], cells))
    return rows


def _peak(call: Callable[[], Any]) -> tuple[int | None, Any]:
    """Returns the largest increase of the process's memory during a call, in bytes, and the call's result."""

    def resident(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak, VmHWM
    except OSError:
        return None, call()
    before = resident("VmRSS")
    result = call()
    return resident("VmHWM") - before, result


def _measured(loss: Any, params: Any, x: Any, options: dict[str, Any], repeats: int) -> tuple[Any, Any]:
    """Returns a row, and the updated params: a step donates its arguments."""
    step = ll.estimators.in_place_step(loss, sigma=1e-3, **options)
    key = jax.random.key(2)
    began = time.perf_counter()
    compiled = step.lower(key, params, x, learning_rate=RATE).compile()  # pyright: ignore[reportFunctionMemberAccess]
    compile_s = time.perf_counter() - began
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(params)]
    draw = {"normal": normal, "rademacher": rademacher}[options.get("noise", "normal")]

    @jax.jit
    def passes(params: Any, x: Any) -> Any:
        return jax.lax.map(lambda by: loss(params, x + by), jnp.arange(2.0))

    @jax.jit
    def drawing(key: Any) -> Any:
        drawn = draw(key, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params))
        return jax.tree.map(jnp.sum, drawn)

    def one_step() -> Any:
        nonlocal params
        loss, params = step(key, params, x, learning_rate=RATE)
        return loss, params

    turns = []
    for _ in range(1 + repeats):  # the first calls compile
        peak, step_s = _peak(lambda: seconds_per_call(one_step))
        passes_s = seconds_per_call(partial(passes, params, x))
        drawing_s = 0.0 if "rank" in options else seconds_per_call(partial(drawing, key))
        turns.append((peak, step_s, passes_s, drawing_s))
    peaks, *seconds = zip(*turns[1:], strict=True)
    step_s, passes_s, drawing_s = map(median, seconds)
    row = {
        "temporaries / weights": temporaries / sum(sizes),
        "temporaries / largest leaf": temporaries / max(sizes),
        "peak / weights": None if None in peaks else max(peaks) / sum(sizes),
        "step (s)": step_s,
        "two passes (s)": passes_s,
        "one drawing (s)": drawing_s,
        "step / (passes + 3 drawings)": step_s / (passes_s + 3 * drawing_s),
        "compile (s)": compile_s,
    }
    return row, params


main = partial(machine.command_line, "in_place", Config, run, stopped=machine.NOT_RESUMED)

if __name__ == "__main__":
    sys.exit(main())
