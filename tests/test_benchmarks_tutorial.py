"""The tutorial's comparison for many seeds: what the command writes, and that it trains as anyone would."""

import json
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import lax_learning as ll
from benchmarks import tutorial
from benchmarks.cases import Sizes
from benchmarks.cases.microlearning import LEARNING_RATE, RULES, Weights, network_of, snr
from benchmarks.tutorial import Config, comparison
from tests.command_line import call_main

SMALL = ("--seeds", "2", "--epochs", "2", "--hidden", "4", "--batch-size", "2000", "--examples", "5")


def test_command_times_every_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tutorial, "COMPARED", ("backprop", "weight perturbation"))
    code, out, err = call_main(tutorial.main, *SMALL, "--out", tmp_path)
    assert code == 0, err
    written = json.loads((tmp_path / "tutorial.json").read_text())
    assert [row["rule"] for row in written["rows"]] == ["backprop", "weight perturbation"]
    assert written["updates"] == 4 and written["config"]["seeds"] == 2
    backprop, weight = written["rows"]
    assert backprop["cosine"] == pytest.approx(1, abs=1e-5) and abs(weight["cosine"]) < 0.5
    for row in written["rows"]:
        assert 0 <= row["accuracy"] <= 1 and row["snr"] > 0 and row["run_s"] > 0 and row["compile_s"] > 0
    assert written["run_s"] == backprop["run_s"] + weight["run_s"]
    assert "2 seeds in" in out


def test_it_trains_as_updates_by_hand_do() -> None:
    """Six updates of backprop, in two epochs, in the tutorial's units, on the same batches."""
    x = np.random.default_rng(0).random((6, 784), np.float32)
    y = np.eye(10, dtype=np.float32)[np.arange(6)]
    data = ll.data.Splits(*[ll.data.Dataset(x, y)] * 3)
    config = Config(seeds=1, epochs=2, hidden=4, batch_size=2)
    key = jax.random.key(5)
    found = jax.jit(comparison("backprop", config, 6))(key, data)

    model, compared = network_of(Sizes(hidden=4)), RULES["backprop"]
    rule = compared.make(model, "normal")
    train = ll.make_train(rule, optax.sgd(LEARNING_RATE), init=model.init, num_updates=6, batch_size=2)
    state = jax.jit(train)(jax.random.split(key)[0], data).state
    accuracy = ll.accuracy(model.apply(state.params, x), y)
    assert found["accuracy"].shape == (3,) and found["accuracy"][-1] == accuracy
    train_key, snr_key = jax.random.split(key)
    weights = Weights(train.init(train_key, data).params, ())
    expected = snr(compared.moments(model, rule, "normal"), snr_key, weights, x, y)
    np.testing.assert_allclose(found["snr"], expected, rtol=1e-4)  # sums of 6 in float32


def test_a_row_has_means_over_seeds_at_the_end() -> None:
    of_seeds = jax.numpy.array([[0.0, 0.25, 0.5], [0.0, 0.5, 1.0]])
    found = {"accuracy": of_seeds, "cosine": of_seeds / 2, "snr": of_seeds[:, 1]}
    assert tutorial._row("mine", 3.0, 4.0, found) == {
        "rule": "mine", "compile_s": 3.0, "run_s": 4.0, "accuracy": 0.75, "cosine": 0.375, "snr": 0.375,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seeds", "0"), "--seeds: expected at least 1, got 0"),
        (("--batch-size", "5000"), "--batch-size: expected at most 4000 images, got 5000"),
        (("--examples", "2"), "--examples: expected at least 3, got 2"),
        (("--data", "/no/such/folder"), "/no/such/folder"),
    ],
    ids=["seeds", "batch-size", "examples", "data"],
)
def test_bad_input_is_refused_by_name(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = call_main(tutorial.main, *arguments, "--out", tmp_path / "never")
    assert code == 2 and message in err and "Traceback" not in err
    assert not (tmp_path / "never").exists()
