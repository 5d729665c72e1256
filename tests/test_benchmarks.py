"""The benchmarks: work, time and their ratios, and what the commands write."""

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import cost_of_rules, cost_parts, equal_time, in_place, online, pairs, throughput
from benchmarks import language_model as language_model_benchmark
from benchmarks.cases import CASES, Sizes, microlearning
from benchmarks.characters import entropies, language_model
from benchmarks.floors import Floors
from benchmarks.kernels import kernel_seconds
from benchmarks.throughput_report import Result, table
from benchmarks.timing import Comparison, Ours, compare
from benchmarks.work import Work, work_of
from tests.command_line import call_main

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

SIZES = Sizes(hidden=4, batch_size=6, updates=2, examples=5, neurons=8, points=7, steps=3)
KEY = jax.random.key(0)
FLOORS = Floors(flops=2.0, bandwidth=3.0, normals=5.0, words=7.0)
COLUMNS = ["system", "case", "seeds", "ours_s", "reference_s", "ratio", "floor_share", "compile_s", "peak_mb"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.timing.SHORTEST", 0.0)
    monkeypatch.setattr("benchmarks.timing.TIMES", 1)
    monkeypatch.setattr(throughput, "measured_floors", lambda: FLOORS)


# --- work and time


def test_work_counts_rounds_of_loops_and_not_what_is_unused() -> None:
    def program(key: jax.Array, a: jax.Array) -> jax.Array:
        def body(carry: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            return carry @ a, carry @ a @ a

        last, _ = jax.lax.scan(body, a, None, length=5)
        return last + jax.random.normal(key, (3, 3)) + jax.random.bits(jax.random.fold_in(key, 1), (3, 3)) % 2

    work = work_of(jax.jit(program).trace(jax.random.key(0), jnp.ones((3, 3))))
    assert work == Work(flops=5 * 2 * 3**3, normals=9, words=9)


def test_work_counts_once_what_is_written_twice() -> None:
    def program(a: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
        return jnp.tanh(a @ b) @ b, jnp.tanh(a @ b) @ b, jnp.tanh(a @ b) @ a, 2 * (b @ a)

    a = jnp.ones((3, 3))
    assert work_of(jax.jit(program).trace(a, a)) == Work(flops=4 * 2 * 3**3)


def test_work_counts_once_what_does_not_change_in_a_loop() -> None:
    """Also where several loops, and what is outside, need the same; of branches the costliest."""

    def program(a: jax.Array, b: jax.Array) -> jax.Array:
        def body(carry: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
            inner = jax.lax.fori_loop(0, 4, lambda _, c: c @ x, carry)  # x changes with the outer loop alone
            held = jax.jit(jnp.matmul)(a, b)
            carry = jax.lax.cond(x[0, 0] > 0, lambda: inner @ held @ held, lambda: inner @ a)
            return carry + jax.lax.map(lambda y: y + x @ x, jnp.ones((7, 3, 3))).sum(0), None

        once, _ = jax.lax.scan(body, a, jnp.ones((5, 3, 3)))
        twice, _ = jax.lax.scan(body, b, jnp.ones((6, 3, 3)))
        return once + twice + a @ b

    # a @ b once; in each of 11 rounds c @ x four times, x @ x once and the longer branch.
    assert work_of(jax.jit(program).trace(*jnp.ones((2, 3, 3)))) == Work(
        flops=(1 + 11 * (4 + 1 + 2)) * 2 * 3**3
    )


@pytest.mark.parametrize("seeds", [1, 3])
def test_an_ensemble_does_the_work_of_all_its_seeds(seeds: int) -> None:
    floors = Floors(flops=1.0, bandwidth=1e30, normals=1e30, words=1e30)
    a = jnp.ones((4, 4)) if seeds == 1 else jnp.ones((seeds, 4, 4))
    ours = Ours(lambda key, a, b: a @ b, a, (jnp.ones((4, 4)),), seeds, pieces=5, on_cpu=1)
    found = compare(ours, lambda: None, 1, lambda: floors)
    of_call = found.ours_s * 5 * seeds
    assert found.floor_share * of_call == pytest.approx(seeds * 2 * 4**3)
    assert found.peak_mb >= seeds * 64e-6
    assert found.seed_mb == pytest.approx((found.peak_mb + seeds * 64e-6) / seeds)


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_second_trace_is_an_error(seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    key = jax.random.key(0)
    first = key if seeds == 1 else jax.random.split(key, seeds)
    odd = jax.random.split(key, (seeds, 2))
    keys = itertools.chain([first], itertools.cycle([odd[0] if seeds == 1 else odd]))
    monkeypatch.setattr("benchmarks.timing.cycle", lambda _: keys)
    member = jnp.zeros(()) if seeds == 1 else jnp.zeros(seeds)
    with pytest.raises(RuntimeError, match="expected 1 traces of the program, got 2"):
        compare(
            Ours(lambda key, m: jax.random.key_data(key), member, (), seeds), lambda: None, 1, lambda: FLOORS
        )


def test_the_reference_gets_the_faster_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []

    @contextmanager
    def limits(threads: int) -> Iterator[None]:
        given.append(threads)
        yield
        given.pop()

    monkeypatch.setattr("benchmarks.timing.threadpool_limits", limits)
    monkeypatch.setattr("benchmarks.timing.os.cpu_count", lambda: 3)
    ours = Ours(lambda key, m: m, jnp.zeros(()))
    for fast in (1, 3):
        reference = lambda fast=fast: time.sleep(0.0 if given == [fast] else 0.02)  # noqa: E731
        assert compare(ours, reference, 1, lambda: FLOORS).reference_threads == fast


def test_a_program_as_reference_is_timed_by_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    def settled(function: Any, calls: int) -> float:
        function()
        return 1.0

    monkeypatch.setattr("benchmarks.timing._settled", settled)
    ours = Ours(lambda key, a: a @ a, jnp.ones((2, 2)), pieces=3)
    assert compare(ours, ours._replace(pieces=2), 2, lambda: FLOORS).ratio == pytest.approx(3 / 2)


def test_kernels_are_counted_by_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as often as it is run, and draws at the rate of many."""
    shapes: list[Any] = []

    def one_second(equation: Any) -> float:
        shapes.append(equation.outvars[0].aval.shape)
        return 1.0

    monkeypatch.setattr("benchmarks.kernels._seconds", one_second)

    def program(key: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        c, _ = jax.lax.scan(lambda c, _: (c @ a @ a, None), b, length=5)
        return (c.T @ c) @ jax.random.normal(key, (3, 3))

    traced = jax.jit(program).trace(KEY, jnp.ones((3, 3)), jnp.ones((2, 3)))
    assert kernel_seconds(traced, Floors(1.0, 1.0, normals=18.0, words=1.0)) == 5 * 2 + 2 + 9 / 18
    assert sorted(shapes) == [(2, 3), (3, 3), (3, 3)]


def test_what_is_doubtful_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """In turn; what has a share above 1 or spreads is measured again, twice at most."""
    seconds: list[float] = []
    turns: list[str] = []

    def settled(function: Any, calls: int) -> float:
        turns.append("call")
        return seconds.pop(0) if len(turns) % 3 == 1 else 1.0

    def floors() -> Floors:
        turns.append("floor")
        return Floors(flops=1e30, bandwidth=8 / 0.5, normals=1e30, words=1e30)  # 8 bytes in half a second

    monkeypatch.setattr("benchmarks.timing._settled", settled)
    monkeypatch.setattr("benchmarks.timing._calls", lambda function: 1)
    monkeypatch.setattr("benchmarks.timing.TIMES", 3)
    ours = Ours(lambda key, m: 2 * m, jnp.zeros(()))
    for times, share, spread, taken in (
        ([1, 1, 1], 0.5, 0.0, 1),
        ([1, 1, 9, 1, 1, 1.1], 0.5, 0.09, 2),  # the first spreads
        ([0.25] * 9, 2.0, 0.0, 3),  # faster than possible, and so again
        ([1, 2, 9, 1, 2, 3, 1, 2, 8], 0.25, 4 / 3, 3),  # the least that was seen
    ):
        seconds[:], turns[:] = times, []
        found = compare(ours, lambda: None, 3, floors)
        explained = ["floor"] * (share < 0.5)  # kernels are measured, with floors of their own
        assert turns == ["call", "call", "floor"] * 3 * taken + explained and not seconds
        assert found.floor_share == pytest.approx(share)
        assert found.spread == pytest.approx(spread, rel=0.02)
        assert found.is_doubtful == (share > 1 or spread > 0.2)
        marks = table([Result(CASES[0], 1, found)])
        assert ("! |" in marks) == found.is_doubtful


def test_ratio_of_pairs(monkeypatch) -> None:
    clock = [0.0]

    def busy(seconds: float) -> Any:
        return lambda: clock.append(clock[-1] + seconds)

    monkeypatch.setattr(pairs.time, "perf_counter", lambda: clock[-1])
    found = pairs.compare(busy(0.04), busy(0.01), seconds=1.0)
    np.testing.assert_allclose(
        (found.ratio, *found.spread, found.ours_s, found.reference_s), (4, 4, 4, 0.04, 0.01)
    )
    assert found.pairs == 20


def test_no_repeats_are_refused() -> None:
    with pytest.raises(ValueError, match="repeats: expected at least 1, got 0"):
        compare(Ours(lambda key, m: m, jnp.zeros(())), lambda: None, 0, lambda: FLOORS)


# --- the commands


def test_command_writes_rows_and_figure(tmp_path, monkeypatch) -> None:
    chosen = [case for case in microlearning.CASES if case.name in ("update: backprop", "SNR: backprop")]
    chosen.append(chosen[0]._replace(name="never", requires="no_such_package"))
    monkeypatch.setattr(throughput, "CASES", chosen)
    sizes = [f"--sizes.{name.replace('_', '-')}={value}" for name, value in SIZES.__dict__.items()]
    code, out, err = call_main(
        throughput.main, "--quick", "--repeats", "2", "--seeds", "1", "2", "--out", str(tmp_path), *sizes
    )
    assert code == 0, err
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "throughput.json", "throughput.png"}
    assert (tmp_path / "throughput.png").read_bytes()[:4] == b"\x89PNG"
    written = json.loads((tmp_path / "throughput.json").read_text())
    assert all(list(row) == COLUMNS for row in written["rows"])
    assert [(row["case"], row["seeds"]) for row in written["rows"]] == [
        ("update: backprop", 1), ("update: backprop", 2), ("SNR: backprop", 1),
    ]  # fmt: skip
    for row in written["rows"]:
        assert row["ratio"] == row["reference_s"] / row["ours_s"]
        assert all(row[name] > 0 for name in COLUMNS[3:])
    assert out.count("| microlearning: update: b") == 2 and "3/3" in err
    assert "left out: microlearning, never: it needs no_such_package" in err


def test_a_stopped_run_goes_on(tmp_path, monkeypatch) -> None:
    measured: list[str] = []

    def compared(ours: Ours, *_: Any) -> Comparison:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append("case")
        return Comparison(0.5, 2.0, 0.1, 1.0, 24.0, 4.0, len(measured), 0.1)

    monkeypatch.setattr(throughput, "compare", compared)
    monkeypatch.setattr(throughput, "CASES", CASES[:3])
    arguments = ("--seeds", "1", "--systems", "microlearning", "--out", tmp_path)
    code, _, err = call_main(throughput.main, *arguments)
    assert code == 130 and "--resume to continue" in err
    before = json.loads((tmp_path / "throughput.json").read_text())["rows"]
    assert len(before) == 2
    measured.clear()
    code, _, err = call_main(throughput.main, *arguments, "--resume")
    written = json.loads((tmp_path / "throughput.json").read_text())
    assert code == 0, err
    assert len(measured) == 1 and written["rows"][:2] == before
    assert [each["reference_threads"] for each in written["details"]] == [1, 2, 1]

    monkeypatch.setattr(throughput, "compare", lambda *_: Comparison(0.5, 1.0, 0.1, 1.0, 24.0, 4.0, 1, 0.05))
    written["details"][1]["spread"] = 0.3  # which has a mark
    (tmp_path / "throughput.json").write_text(json.dumps(written))
    code, _, err = call_main(throughput.main, *arguments, "--resume")
    again = json.loads((tmp_path / "throughput.json").read_text())
    assert code == 0 and [row["ratio"] for row in again["rows"]] == [4, 2, 4]  # that one alone

    code, _, err = call_main(throughput.main, *arguments, "--resume", "--repeats", "3")
    assert code == 2 and "holds a run of another configuration (repeats: 7 before, 3 now)" in err


@pytest.mark.slow
def test_costs_of_rules_are_written(tmp_path, monkeypatch) -> None:
    pytest.importorskip("flax")
    pytest.importorskip("equinox")
    pytest.importorskip("haiku")
    params = cost_parts.network_params
    for name in ("LEAST_S", "STEPS", "UPDATES", "BATCH"):
        monkeypatch.setattr(cost_parts, name, {"LEAST_S": 0.0}.get(name, 2))
    monkeypatch.setattr(cost_of_rules, "RULES", ("backprop",))
    monkeypatch.setattr(cost_parts, "RULES", {"backprop": cost_parts.RULES["backprop"]})
    monkeypatch.setattr(cost_parts, "network_params", lambda key: params(key, (784, 5, 10)))
    options = "--models", "plain_mlp", "--scale", 2, "--seconds", 0.001, "--out", tmp_path
    code, printed, _ = call_main(cost_of_rules.main, *options)
    assert code == 0
    written = json.loads((tmp_path / "cost_of_rules.json").read_text())
    assert {"date", "machine", "versions"} < written.keys()
    assert [row["part"] for row in written["rows"]] == ["network", "recurrent", "zoo", "zoo"]
    assert all(row["ratio"] > 0 for row in written["rows"] if row["part"] != "recurrent")
    assert [row["scale"] for row in written["rows"] if row["part"] == "zoo"] == [2] * 2
    assert "goals missed" in printed


@pytest.mark.slow
def test_cosine_at_equal_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Averages of more draws point better; every rule is timed at every count."""
    monkeypatch.setattr(equal_time, "RULES", ("node_perturbation",))
    small = ("--hidden", 4, "--batch-size", 8, "--draws", 16, "--seeds", 2, "--repeats", 1)
    code, out, _ = call_main(equal_time.main, *small, "--out", tmp_path)
    assert code == 0 and "node_perturbation" in out and (tmp_path / "equal_time.png").exists()
    rows = json.loads((tmp_path / "equal_time.json").read_text())["rows"]
    assert [row["draws"] for row in rows] == [1, 4, 16]
    assert np.mean(rows[-1]["cosines"]) > np.mean(rows[0]["cosines"])
    assert all(row["seconds"] > 0 for row in rows)


# --- learning curves online


@pytest.mark.slow
def test_online_writes_curves_of_all_seeds_and_a_figure(tmp_path: Path) -> None:
    options = ["--seeds", "2", "--units", "3", "--updates", "2", "--points", "1", "--tasks", "copy"]
    code, printed, _ = call_main(online.main, *options, "--rules", "rflo", "--out", tmp_path)
    assert code == 0 and "| rflo |" in printed
    (row,) = json.loads((tmp_path / "online.json").read_text())["rows"]
    assert (row["task"], row["rule"], row["chance"]) == ("copy", "rflo", 0.25)
    assert len(row["mean"]) == 2 and len(row["last"]) == 2 and all(0 <= value <= 1 for value in row["mean"])
    assert (tmp_path / "online.png").stat().st_size > 1000


@pytest.mark.slow
def test_steps_in_place_are_measured_on_every_model(tmp_path: Path) -> None:
    small = ("--width", 32, "--layers", 2, "--examples", 4, "--repeats", 1)
    code, printed, _ = call_main(in_place.main, *small, "--out", tmp_path)
    rows = json.loads((tmp_path / "in_place.json").read_text())["rows"]
    assert code == 0 and "transformer" in printed and len(rows) == 12
    assert all(row["temporaries / weights"] > 0 and row["step (s)"] > 0 for row in rows)


# --- a language model


def test_entropies_of_pairs_that_are_certain_and_of_characters_that_are_not() -> None:
    """Three characters in turn: log2(3) bits each on its own, none behind another but for the added count."""
    in_turn = np.tile([0, 1, 2], 5000)
    single, pairs = entropies(in_turn, in_turn[:1000])
    assert single == pytest.approx(np.log2(3), abs=0.01) and 0 < pairs < 0.001


def test_the_language_model_sees_no_later_character() -> None:
    """Logits depend on what was read, and on nothing behind it."""
    model = language_model()
    random, shapes = np.random.default_rng(0), jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: 0.3 * random.normal(size=leaf.shape).astype("f"), shapes)
    x = np.stack([np.arange(8), [0, 1, 2, 3, 40, 5, 6, 7]])
    moved = np.abs(np.subtract(*jax.jit(model.apply)(params, x))).max(axis=1)
    assert (moved[:4] == 0).all() and (moved[4:] > 1e-3).all()


@pytest.mark.slow
def test_language_model_goes_on_behind_rules_that_ended(tmp_path: Path) -> None:
    """Backprop costs three passes; a second rule is added, and the first is not run again."""
    options = ["--seeds", 2, "--points", 1, "--shorter", 2000, "--out", tmp_path]
    code, printed, _ = call_main(language_model_benchmark.main, *options, "--rules", "backprop")
    assert code == 0 and "| backprop |" in printed
    (first,) = json.loads((tmp_path / "language_model.json").read_text())["rows"]
    assert first["passes"] == 3 and np.shape(first["bits"]) == (2, 2)
    rules = ["--rules", "backprop", "node perturbation"]
    code, _, _ = call_main(language_model_benchmark.main, *options, *rules, "--resume")
    rows = json.loads((tmp_path / "language_model.json").read_text())["rows"]
    assert code == 0 and rows[0] == first and rows[1]["rule"] == "node perturbation"
    assert (tmp_path / "language_model.png").stat().st_size > 1000
