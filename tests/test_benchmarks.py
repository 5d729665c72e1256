"""The benchmarks: reference loops do what the library does, and the command writes what it measured."""

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll
from benchmarks import throughput
from benchmarks.cases import CASES, SYSTEMS, Sizes, microlearning
from benchmarks.floors import Floors
from benchmarks.reference import microlearning as loops
from benchmarks.throughput_report import Result
from benchmarks.timing import Comparison, Ours, compare
from benchmarks.work import Work, work_of
from tests.command_line import call_main

SIZES = Sizes(hidden=4, batch_size=6, updates=2, examples=5, neurons=8, points=7, steps=3)
FLOORS = Floors(flops=2.0, bandwidth=3.0, normals=5.0, words=7.0)
COLUMNS = ["system", "case", "seeds", "ours_s", "reference_s", "ratio", "floor_share", "compile_s", "peak_mb"]


def close(got: Any, expected: Any) -> None:
    """Equal in float64, whose roundings are 1e-16: sums have at most 785 terms of size 10, over sigma^2."""
    assert np.asarray(got).dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)


# --- the tutorial's loops


def library(name: str, noise: Any = "normal") -> tuple[ll.Rule, Any, microlearning.Weights]:
    """A rule of a small network, its moments over examples, and its weights in float64."""
    model, compared = microlearning.network_of(SIZES), microlearning.RULES[name]
    rule = compared.make(model, noise)
    weights = jax.tree.map(lambda w: w.astype(jnp.float64), microlearning.weights_of(model, rule, 1))
    return rule, compared.moments(model, rule, noise), weights


def in_float64(count: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = microlearning.examples(count)
    return x.astype(np.float64), y.astype(np.float64)


def as_library(name: str, noise: loops.Noise) -> Any:
    """The reference's noise, of standard deviation sigma, as unit noise of the library."""
    hidden, output = (each / microlearning.SIGMA for each in noise)
    if name.startswith("weight"):
        both = {f"{i}/w": n[:, :-1].T for i, n in enumerate((hidden, output))}
        return {**both, "0/b": hidden[:, -1], "1/b": output[:, -1]}
    return jnp.asarray(hidden.T), jnp.asarray(output.T)


def drawn(name: str, weights: loops.Weights, batch_size: int, seed: int = 0) -> loops.Noise:
    """The reference's noise of a batch; signs where the library draws signs."""
    rule = microlearning.RULES[name]
    noise = loops.RULES[rule.reference].draw(
        np.random.default_rng(seed), weights, batch_size, microlearning.SIGMA
    )
    if rule.noise == "rademacher":
        return np.sign(noise[0]) * microlearning.SIGMA, np.sign(noise[1]) * microlearning.SIGMA
    return noise


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", microlearning.RULES)
def test_updates_agree(name: str) -> None:
    x, y = in_float64(SIZES.batch_size)
    weights = microlearning.as_reference(library(name)[2])
    noise = drawn(name, weights, len(x))
    rule, _, ours = library(name, lambda key, like: as_library(name, noise))
    after, loss = jax.jit(partial(microlearning.update, rule))(jax.random.key(0), ours, x, y)

    close(loss, np.mean(loops.losses(loops.forward(weights, x.T)[1], y.T)))
    change = loops.RULES[microlearning.RULES[name].reference].update(
        weights, x.T, y.T, noise, microlearning.SIGMA
    )
    before = weights.hidden.copy()
    loops.add(weights, change, microlearning.LEARNING_RATE)
    for got, expected in zip(microlearning.as_reference(after), weights, strict=True):
        close(got, expected)
    assert np.abs(weights.hidden - before).max() > 1e-7  # it does something, visibly


def whole_of(each: list[loops.Noise]) -> loops.Noise:
    """The noise of batches of one as that of one batch."""
    hidden, output = (np.concatenate(column, axis=1) for column in zip(*each, strict=True))
    return hidden, output


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", microlearning.RULES)
def test_snr_agrees(name: str) -> None:
    x, y = in_float64(SIZES.examples)
    weights = microlearning.as_reference(library(name)[2])
    each = [drawn(name, weights, 1, seed) for seed in range(len(x))]
    keys = jax.random.key_data(jax.random.split(jax.random.key(3), len(x)))

    def noise(key: jax.Array, like: Any) -> Any:
        if name.startswith("node"):  # all examples at once: the library draws for a batch
            return as_library(name, whole_of(each))
        # one example after another, each by a key of its own
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(as_library(name, n) for n in each))
        mine = jnp.argmax(jnp.all(keys == jax.random.key_data(key), axis=-1))
        return jax.tree.map(lambda leaves: leaves[mine], stacked)

    _, moments, ours = library(name, noise)
    got = jax.jit(partial(microlearning.snr, moments))(jax.random.key(3), ours, x, y)
    theirs = loops.RULES[microlearning.RULES[name].reference]
    close(got, loops.snr(theirs, weights, x.T, y.T, each.__getitem__, microlearning.SIGMA))


# --- work and time


def test_work_counts_rounds_of_loops_and_not_what_is_unused() -> None:
    def program(key: jax.Array, a: jax.Array) -> jax.Array:
        def body(carry: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            return carry @ a, carry @ a @ a

        last, _ = jax.lax.scan(body, a, None, length=5)
        return last + jax.random.normal(key, (3, 3)) + jax.random.bits(key, (3, 3)) % 2

    work = work_of(jax.jit(program).trace(jax.random.key(0), jnp.ones((3, 3))))
    assert work == Work(flops=5 * 2 * 3**3, normals=9, words=9)


def test_work_counts_once_what_is_written_twice() -> None:
    def program(a: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
        return jnp.tanh(a @ b) @ b, jnp.tanh(a @ b) @ b, jnp.tanh(a @ b) @ a, 2 * (b @ a)

    a = jnp.ones((3, 3))
    assert work_of(jax.jit(program).trace(a, a)) == Work(flops=4 * 2 * 3**3)


def test_work_of_a_case_is_that_of_its_products() -> None:
    def flops(case: Any) -> float:
        ours = case.ours(SIZES, 1)
        return work_of(jax.jit(ours.one).trace(jax.random.key(0), ours.member, *ours.shared)).flops

    update, step = CASES[0], next(case for case in CASES if case.system == "birth_death")
    inputs, hidden, outputs = microlearning.INPUTS, SIZES.hidden, microlearning.OUTPUTS
    of_pass = 2 * SIZES.batch_size * (inputs * hidden + hidden * outputs)
    assert flops(update) == SIZES.updates * 2 * of_pass  # as they are, and perturbed
    assert flops(step) % SIZES.steps == 0
    assert [case.ours(SIZES, 2).pieces for case in (update, step)] == [SIZES.updates, SIZES.steps]


@pytest.mark.parametrize("seeds", [1, 3])
def test_an_ensemble_does_the_work_of_all_its_seeds(seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.timing.SHORTEST", 0.0)
    floors = Floors(flops=1.0, bandwidth=1e30, normals=1e30, words=1e30)
    a = jnp.ones((4, 4)) if seeds == 1 else jnp.ones((seeds, 4, 4))
    ours = Ours(lambda key, a, b: a @ b, a, (jnp.ones((4, 4)),), seeds, pieces=5, on_cpu=1)
    found = compare(ours, lambda: None, 1, floors)
    of_call = found.ours_s * 5 * seeds
    assert found.floor_share * of_call == pytest.approx(seeds * 2 * 4**3)
    assert found.peak_mb >= seeds * 64e-6
    assert found.seed_mb == pytest.approx((found.peak_mb + seeds * 64e-6) / seeds)


def test_the_floor_is_the_tightest_bound() -> None:
    assert FLOORS.seconds(Work(flops=40), 30) == 20
    assert FLOORS.seconds(Work(flops=4), 30) == 10
    assert FLOORS.seconds(Work(normals=10, words=14), 3) == 4


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_second_trace_is_an_error(seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    key = jax.random.key(0)
    first = key if seeds == 1 else jax.random.split(key, seeds)
    odd = jax.random.split(key, (seeds, 2))
    keys = itertools.chain([first], itertools.cycle([odd[0] if seeds == 1 else odd]))
    monkeypatch.setattr("benchmarks.timing.cycle", lambda _: keys)
    monkeypatch.setattr("benchmarks.timing.SHORTEST", 0.0)
    member = jnp.zeros(()) if seeds == 1 else jnp.zeros(seeds)
    with pytest.raises(RuntimeError, match="expected 1 traces of the program, got 2"):
        compare(Ours(lambda key, m: jax.random.key_data(key), member, (), seeds), lambda: None, 1, FLOORS)


def test_ratio_is_that_of_the_times() -> None:
    comparison = Comparison(0.5, 2.0, 0.1, 1.0, 1.0, 1.0, 1)
    assert comparison.ratio == 4.0


def test_the_reference_gets_the_faster_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []

    @contextmanager
    def limits(threads: int) -> Iterator[None]:
        given.append(threads)
        yield
        given.pop()

    monkeypatch.setattr("benchmarks.timing.threadpool_limits", limits)
    monkeypatch.setattr("benchmarks.timing.os.cpu_count", lambda: 3)
    monkeypatch.setattr("benchmarks.timing.SHORTEST", 0.0)
    ours = Ours(lambda key, m: m, jnp.zeros(()))
    for fast in (1, 3):
        reference = lambda fast=fast: time.sleep(0.0 if given == [fast] else 0.02)  # noqa: E731
        assert compare(ours, reference, 1, FLOORS).reference_threads == fast


def test_seeds_that_fit_are_memory_over_what_a_seed_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.throughput_report.memory_mb", lambda: 1000.0)
    result = Result(CASES[0], 8, Comparison(0.5, 2.0, 0.1, 1.0, 24.0, 4.0, 2))
    assert result.details() == {
        "system": "microlearning", "case": CASES[0].name, "seeds": 8, "goal": CASES[0].ensemble_goal,
        "seeds_that_fit": 250, "seed_mb": 4.0, "reference_threads": 2,
    }  # fmt: skip


# --- the command


def test_command_writes_rows_and_figure(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(throughput, "measured_floors", lambda: FLOORS)
    monkeypatch.setattr("benchmarks.timing.SHORTEST", 0.0)
    chosen = [
        case for case in CASES if case.name in ("update: backprop", "SNR: backprop", "update: Kolen-Pollack")
    ]
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
    assert list(written) == [
        "date", "machine", "versions", "sizes", "repeats", "floors", "load", "rows", "details",
    ]  # fmt: skip
    assert all(list(row) == COLUMNS for row in written["rows"])
    assert [(row["case"], row["seeds"]) for row in written["rows"]] == [
        ("update: backprop", 1), ("update: backprop", 2), ("update: Kolen-Pollack", 1),
        ("update: Kolen-Pollack", 2), ("SNR: backprop", 1),
    ]  # fmt: skip
    for row in written["rows"]:
        assert row["ratio"] == row["reference_s"] / row["ours_s"]
        assert all(row[name] > 0 for name in COLUMNS[3:])
    assert "device: 1 x cpu" in out and out.count("| microlearning: update: K") == 2 and "5/5" in err
    assert "left out: microlearning, never: it needs no_such_package" in err


def test_a_stopped_run_goes_on(tmp_path, monkeypatch) -> None:
    measured: list[str] = []

    def compared(ours: Ours, *_: Any) -> Comparison:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append("case")
        return Comparison(0.5, 2.0, 0.1, 1.0, 24.0, 4.0, len(measured))

    monkeypatch.setattr(throughput, "measured_floors", lambda: FLOORS)
    monkeypatch.setattr(throughput, "compare", compared)
    monkeypatch.setattr(throughput, "CASES", CASES[:3])
    arguments = ("--seeds", "1", "--systems", "microlearning", "--out", tmp_path)
    code, _, err = call_main(throughput.main, *arguments)
    assert code == 130 and "--resume goes on" in err
    before = json.loads((tmp_path / "throughput.json").read_text())["rows"]
    assert len(before) == 2
    measured.clear()
    code, _, err = call_main(throughput.main, *arguments, "--resume")
    written = json.loads((tmp_path / "throughput.json").read_text())
    assert code == 0, err
    assert len(measured) == 1 and written["rows"][:2] == before
    assert [each["reference_threads"] for each in written["details"]] == [1, 2, 1]

    # A run that goes on with a case before those that are finished loses none of them when it is stopped.
    written["rows"], written["details"] = written["rows"][1:], written["details"][1:]
    (tmp_path / "throughput.json").write_text(json.dumps(written))
    measured[:] = ["case"] * 2
    assert call_main(throughput.main, *arguments, "--resume")[0] == 130
    assert json.loads((tmp_path / "throughput.json").read_text())["rows"] == written["rows"]
    measured.clear()
    assert call_main(throughput.main, *arguments, "--resume")[0] == 0
    again = json.loads((tmp_path / "throughput.json").read_text())["rows"]
    assert [row["case"] for row in again] == [case.name for case in CASES[:3]]

    code, _, err = call_main(throughput.main, *arguments, "--resume", "--repeats", "3")
    assert code == 2 and "holds a run of another configuration (repeats: 7 there, 3 here)" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--systems", "birth"), f"--systems: expected some of {', '.join(SYSTEMS)}, got 'birth'"),
        (("--repeats", "0"), "--repeats: expected at least 1, got 0"),
        (("--seeds", "1", "0"), "--seeds: expected at least 1, got 0"),
        (("--sizes.examples", "2"), "--sizes.examples: expected at least 3, got 2"),
    ],
    ids=["systems", "repeats", "seeds", "examples"],
)
def test_bad_input_is_refused_by_name(tmp_path, arguments, message) -> None:
    code, _, err = call_main(throughput.main, *arguments, "--out", str(tmp_path / "never"))
    assert code == 2 and message in err and "Traceback" not in err
    assert not (tmp_path / "never").exists()


def test_no_repeats_are_refused() -> None:
    with pytest.raises(ValueError, match="repeats: expected at least 1, got 0"):
        compare(Ours(lambda key, m: m, jnp.zeros(())), lambda: None, 0, FLOORS)
