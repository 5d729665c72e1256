"""The benchmarks: work, time and their ratios, and what the commands write."""

import itertools
import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import cost_of_rules, equal_time, in_place, online, pairs, throughput
from benchmarks import language_model as of_characters
from benchmarks.cases import CASES, Sizes, microlearning
from benchmarks.characters import entropies, language_model
from benchmarks.floors import Floors, kernel_seconds
from benchmarks.timing import Comparison, Ours, compare
from benchmarks.tutorial import COMPARED
from benchmarks.work import Work, work_of
from tests.command_line import ROOT, call_main

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(0)
NOTHING = Ours(lambda key, m: 2 * m, np.zeros((), np.float32))
FLOORS = Floors(flops=2.0, bandwidth=3.0, normals=5.0, words=7.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("benchmarks.timing.SHORTEST", 0.0)
    monkeypatch.setattr("benchmarks.timing.TIMES", 1)
    monkeypatch.setattr(throughput, "measured_floors", lambda: FLOORS)


def test_work_counts_products_as_often_as_they_run(monkeypatch):
    """Unused ones never; those written twice or constant in a loop once, even where several loops need them;
    of branches the costliest. So do the seconds of kernels.
    """

    def program(key, a, b):
        def body(carry, x):
            inner = jax.lax.fori_loop(0, 4, lambda _, c: c @ x, carry)  # x changes with the outer loop alone
            held = jax.jit(jnp.matmul)(a, b)
            carry = jax.lax.cond(x[0, 0] > 0, lambda: inner @ held @ held, lambda: inner @ a)
            return carry + jax.lax.map(lambda y: y + x @ x, jnp.ones((7, 3, 3))).sum(0), carry @ a.T

        once, _ = jax.lax.scan(body, a, jnp.ones((5, 3, 3)))
        twice, _ = jax.lax.scan(body, b, jnp.ones((6, 3, 3)))
        written_twice = jnp.tanh(a @ b) @ b, jnp.tanh(a @ b) @ b, jnp.tanh(a @ b) @ a, 2 * (b @ a)
        drawn = jax.random.normal(key, (3, 3)) + jax.random.bits(jax.random.fold_in(key, 1), (3, 3)) % 2
        images, kernels = jnp.ones((1, 5, 2)), jnp.ones((3, 2, 4))  # from 2 to 4 channels, at 3 places
        order = ("NWC", "WIO", "NWC")
        maps = jax.lax.conv_general_dilated(images, kernels, (1,), "VALID", dimension_numbers=order)
        return once + twice + a @ b, written_twice, drawn, maps, b[:2].T @ b[:2]

    traced = jax.jit(program).trace(KEY, *jnp.ones((2, 3, 3)))
    # a @ b once, and 3 products of it and of b @ a; in each of 11 rounds c @ x four times, x @ x once and the
    # longer branch.
    square = 1 + 3 + 11 * (4 + 1 + 2)
    assert work_of(traced) == Work(2 * (square * 3**3 + 4 * 3 * 3 * 2 + 2 * 3**2), normals=9, words=9)
    monkeypatch.setattr("benchmarks.floors._seconds", lambda equation: equation.invars[0].aval.shape[0])
    seconds = kernel_seconds(traced, Floors(1.0, 1.0, normals=18.0, words=36.0))  # each draws at its own rate
    assert seconds == square * 3 + 1 + 3 + 9 / 18 + 9 / 36


def test_an_ensemble_does_the_work_of_all_its_seeds():
    seeds, floors = 3, Floors(flops=1.0, bandwidth=1e30, normals=1e30, words=1e30)
    a = jnp.ones((seeds, 4, 4))
    ours = Ours(lambda key, a, b: a @ b, a, (a[0],), seeds, pieces=5, on_cpu=1)
    found = compare(ours, lambda: None, 1, lambda: floors)
    assert found.floor_share * found.ours_s * 5 * seeds == pytest.approx(seeds * 2 * 4**3)
    assert found.peak_mb >= seeds * 64e-6
    assert found.seed_mb == pytest.approx((found.peak_mb + seeds * 64e-6) / seeds)


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_second_trace_is_an_error(seeds, monkeypatch):
    shape = () if seeds == 1 else (seeds,)
    keys = jax.random.split(KEY, shape), jax.random.split(KEY, (*shape, 2))  # of another shape
    monkeypatch.setattr("benchmarks.timing.cycle", lambda _: itertools.chain(keys, itertools.repeat(keys[1])))
    ours = Ours(lambda key, m: jax.random.key_data(key), jnp.zeros(shape), (), seeds)
    with pytest.raises(RuntimeError, match="expected 1 traces of the program, got 2"):
        compare(ours, lambda: None, 1, lambda: FLOORS)


def test_the_reference_gets_the_faster_number_of_threads(monkeypatch):
    given = SimpleNamespace(threads=None)
    limits = lambda threads: patch.object(given, "threads", threads)  # noqa: E731
    monkeypatch.setattr("benchmarks.timing.threadpool_limits", limits)
    monkeypatch.setattr("benchmarks.timing.os.cpu_count", lambda: 3)
    for fast in (1, 3):
        reference = lambda fast=fast: time.sleep(0.0 if given.threads == fast else 0.02)  # noqa: E731
        assert compare(NOTHING, reference, 1, lambda: FLOORS).reference_threads == fast


def test_what_is_doubtful_is_measured_again(monkeypatch):
    """In turn; what has a share above 1 or spreads is measured again, twice at most. Times are by pieces."""
    with pytest.raises(ValueError, match="repeats: expected at least 1, got 0"):
        compare(NOTHING, lambda: None, 0, lambda: FLOORS)
    seconds, turns = [], []

    def settled(function, calls):
        turns.append("call")
        return seconds.pop(0) if len(turns) % 3 == 1 else 1.0

    def floors():
        turns.append("floor")
        return Floors(flops=1e30, bandwidth=8 / 0.5, normals=1e30, words=1e30)  # 8 bytes in half a second

    timing = {"_settled": settled, "_calls": lambda _: 1, "TIMES": 3, "kernel_seconds": lambda *_: 0.5}
    for name, value in timing.items():
        monkeypatch.setattr(f"benchmarks.timing.{name}", value)
    for times, share, spread, taken in (
        ([1, 1, 1], 0.5, 0.0, 1),
        ([1, 1, 9, 1, 1, 1.1], 0.5, 0.09, 2),  # the first spreads
        ([0.25] * 9, 2.0, 0.0, 3),  # faster than possible, and so again
        ([1, 2, 9, 1, 2, 3, 1, 2, 8], 0.25, 4 / 3, 3),  # the least that was seen
    ):
        seconds[:], turns[:] = times, []
        found = compare(NOTHING._replace(pieces=2), NOTHING._replace(pieces=4), 3, floors)
        assert found.reference_s == 1 / 4 and found.ours_s == np.median(times[-3:]) / 2
        explained = ["floor"] * (share < 0.5)  # kernels are measured, with floors of their own
        assert turns == ["call", "call", "floor"] * 3 * taken + explained and not seconds
        assert found.kernels_share == (0.25 if explained else None)  # half a second of two
        assert found.floor_share == pytest.approx(share)
        assert found.spread == pytest.approx(spread, rel=0.02)
        assert found.is_doubtful == (share > 1 or spread > 0.2)
        told = throughput.table([throughput.Result(CASES[0], 1, found)])
        assert ("! |" in told) == found.is_doubtful


def test_ratio_of_pairs(monkeypatch):
    clock = [0.0]
    busy = [lambda seconds=seconds: clock.append(clock[-1] + seconds) for seconds in (0.04, 0.01)]
    monkeypatch.setattr(pairs.time, "perf_counter", lambda: clock[-1])
    found = pairs.compare(*busy, seconds=1.0)
    expected = 4, 4, 4, 0.04, 0.01
    np.testing.assert_allclose((found.ratio, *found.spread, found.ours_s, found.reference_s), expected)
    assert found.pairs == 20


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    """Measuring what is missing, and then what has a mark."""
    small = (
        "--systems microlearning --sizes.hidden 4 --sizes.batch-size 6 --sizes.examples 5 --sizes.updates 2"
    )

    def stops_after(number):
        measured = []

        def compared(*_):
            if len(measured) == number:
                raise KeyboardInterrupt
            measured.append("case")
            return Comparison(0.5, 2.0, 0.1, 1.0, 24.0, 4.0, len(measured), 0.05)

        return compared

    def run(comparing, *options):
        monkeypatch.setattr(throughput, "compare", comparing)
        code, out, err = call_main(throughput.main, *small.split(), "--out", tmp_path, *options)
        return code, out + err, json.loads(path.read_text())

    chosen = [CASES[0], *(case for case in microlearning.CASES if case.name.endswith(": backprop"))]
    missing = chosen[0]._replace(name="never", requires="no_such_package")
    monkeypatch.setattr(throughput, "CASES", [*chosen, missing])
    path, one = tmp_path / "throughput.json", ("--repeats", 1, "--seeds", 1)
    code, told, before = run(stops_after(2), *one)
    assert code == 130 and "--resume to continue" in told and len(before["rows"]) == 2
    code, told, written = run(stops_after(1), *one, "--resume")
    assert code == 0 and written["rows"][:2] == before["rows"], told
    assert [each["reference_threads"] for each in written["details"]] == [1, 2, 1]
    assert "left out: microlearning, never: it needs no_such_package" in told
    assert (tmp_path / "throughput.png").read_bytes()[:4] == b"\x89PNG"

    for each in written["details"][1:]:
        each["spread"] = 0.3  # which has a mark
    for rows in (written["rows"], written["details"]):
        rows.append({**rows[0], "case": "of an older version"})
    path.write_text(json.dumps(written))
    code, told, again = run(compare, *one, 2, "--resume")
    assert code == 0, told
    first, *others = again["rows"]
    assert first["ratio"] == 4  # that one is kept
    names = [(row["case"], row["seeds"]) for row in others]
    update, snr = (case.name for case in chosen[1:])
    assert names == [(CASES[0].name, 2), (update, 1), (update, 2), (snr, 1)]
    for row in others:
        assert row["ratio"] == row["reference_s"] / row["ours_s"] != 4  # measured now
        assert all(row[name] > 0 for name in ("ours_s", "ratio", "floor_share", "compile_s", "peak_mb"))
    code, told, _ = run(compare, "--repeats", "3", "--resume")
    assert code == 2 and "holds a run of another configuration (repeats: 1 before, 3 now)" in told


SMALL: dict[Any, tuple[str, int, str, str]] = {
    cost_of_rules: ("--models plain_mlp --scale 2 --seconds 0.001", 4, "compile_s", "goals missed"),
    equal_time: ("--hidden 4 --batch-size 8 --draws 16 --seeds 2 --repeats 1", 3, "seconds", "node_perturb"),
    in_place: ("--width 32 --layers 2 --examples 4 --repeats 1", 12, "temporaries / weights", "transformer"),
    online: ("--seeds 2 --units 3 --updates 2 --points 1 --tasks copy --rules rflo", 1, "rate", "| rflo |"),
    of_characters: ("--seeds 2 --points 1 --shorter 2000 --rules backprop", 1, "passes", "| backprop"),
}
"""By the benchmark: its options, the number of its rows, what is positive in each, and what is printed."""


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_small_benchmarks(name, tmp_path, monkeypatch):
    monkeypatch.setattr(equal_time, "RULES", ("node_perturbation",))
    monkeypatch.setattr(cost_of_rules, "RULES", {"backprop": cost_of_rules.RULES["backprop"]})
    monkeypatch.setattr(cost_of_rules, "SIZES", Sizes(hidden=4, batch_size=2, updates=2))
    monkeypatch.setattr(cost_of_rules, "STEPS", 2)
    options, count, positive, told = SMALL[name]

    def run(*more):
        code, printed, err = call_main(name.main, *options.split(), *more, "--out", tmp_path)
        assert code == 0 and told in printed, err
        (path,) = tmp_path.glob("*.json")
        content = json.loads(path.read_text())
        assert {"date", "machine", "versions"} <= set(content) and set(content["config"]) <= set(
            vars(name.Config())
        )
        assert str(content["config"].get("seeds", 2)) == "2"
        return content["rows"]

    rows = run()
    assert len(rows) == count and all(row[positive] > 0 for row in rows)
    assert name in (in_place, cost_of_rules) or next(tmp_path.glob("*.png")).stat().st_size > 1000
    if name is cost_of_rules:
        assert [row["part"] for row in rows] == ["network", "recurrent", "zoo", "zoo"]
        assert all(row["ratio"] > 0 for row in rows if row["part"] != "recurrent")
    if name is equal_time:  # averages of more draws point better
        assert np.mean(rows[-1]["cosines"]) > np.mean(rows[0]["cosines"])
    if name is online:
        (low, high), last = rows[0]["ci95"][-1], rows[0]["last"]
        assert low <= rows[0]["mean"][-1] <= high and rows[0]["mean"][-1] == pytest.approx(
            np.mean(last), abs=1e-3
        )
    if name is of_characters:  # backprop costs three passes, and is not run again for a second rule
        assert rows[0]["passes"] == 3 and np.shape(rows[0]["bits"]) == (2, 2)
        first, second = run("node perturbation", "--resume")
        assert first == rows[0] and second["rule"] == "node perturbation"


@pytest.mark.slow
def test_the_script_refuses_a_cpu_except_for_a_dry_run(tmp_path):
    def run(dry):
        own = {"JAX_PLATFORMS": "cpu", "PYTHON": sys.executable, "OUT": str(tmp_path), "DRY_RUN": dry}
        script = ROOT / "benchmarks" / "on_accelerator.sh"
        return subprocess.run([script], env={**os.environ, **own}, capture_output=True, text=True)

    refused, ended = run(""), run("1")
    assert refused.returncode == 1 and "expected an accelerator that JAX sees, got cpu" in refused.stderr
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert all(f"{part}: exit code 0" in ended.stdout for part in ("tutorial", "throughput", "zoo"))
    rows = json.loads((tmp_path / "tutorial" / "tutorial.json").read_text())["rows"]
    assert [row["rule"] for row in rows] == list(COMPARED)
    assert " passed" in (tmp_path / "zoo.log").read_text()


def test_entropies_of_pairs_that_are_certain_and_of_characters_that_are_not():
    """Three characters in turn: log2(3) bits each on its own, none behind another but for the added count."""
    in_turn = np.tile([0, 1, 2], 5000)
    single, pairs = entropies(in_turn, in_turn[:1000])
    assert single == pytest.approx(np.log2(3), abs=0.01) and 0 < pairs < 0.001


def test_the_language_model_sees_no_later_character():
    model = language_model()
    random, shapes = np.random.default_rng(0), jax.eval_shape(model.init, KEY)
    params = jax.tree.map(lambda leaf: 0.3 * random.normal(size=leaf.shape).astype("f"), shapes)
    x = np.stack([np.arange(8), [0, 1, 2, 3, 40, 5, 6, 7]])
    moved = np.abs(np.subtract(*jax.jit(model.apply)(params, x))).max(axis=1)
    assert (moved[:4] == 0).all() and (moved[4:] > 1e-3).all()
