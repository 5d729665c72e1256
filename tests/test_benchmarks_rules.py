"""The benchmark of rules: code by hand does what the library does, and the command writes what it found."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll
from benchmarks import pairs, rules
from benchmarks.reference import rules as by_hand
from lax_learning.models import Model
from tests.command_line import call_main
from tests.compare import assert_close

pytest.importorskip("flax")
pytest.importorskip("equinox")
pytest.importorskip("haiku")


def noise_of(key: Any, shape: tuple[int, ...]) -> jax.Array:
    """Numbers that depend on the shape alone: both sides draw the same whatever their keys."""
    return jnp.asarray(np.random.default_rng(shape[-1]).normal(size=shape))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", by_hand.RULES)
def test_code_by_hand_agrees(name: str) -> None:
    widths, batch = (7, 5, 3), 6
    params, feedback = (
        jax.tree.map(lambda w: w.astype(jnp.float64), rules.network_params(jax.random.key(seed), widths))
        for seed in (0, 1)
    )
    x, y = noise_of(None, (batch, 7)), noise_of(None, (batch, 3))
    options = {}
    if "perturbation" in name:
        options["noise"] = lambda key, like: jax.tree.map(
            lambda leaf: noise_of(key, (batch, *leaf.shape[2:]) if leaf.ndim == 3 else leaf.shape), like
        )
    if "node" in name:  # the library's has an axis for the batch of one of every example
        draw = options["noise"]
        options["noise"] = lambda key, like: jax.tree.map(
            lambda n, leaf: n.reshape(leaf.shape), draw(key, like), like
        )
    rule = rules.RULES[name](Model(rules.network), ll.squared_error, **options)
    state = rule.init(jax.random.key(2), params, x)
    if name == "feedback_alignment":
        state = state._replace(feedback=[{"w": None, "b": None}, {"w": feedback[1]["w"], "b": None}])
    if name == "direct_feedback_alignment":
        state = state._replace(feedback={read: feedback[1]["w"] for read in state.feedback})
    loss, grads, _ = jax.jit(rule.value_and_grad)(jax.random.key(3), params, state, x, y)
    expected = jax.jit(by_hand.RULES[name], static_argnums=5)(
        jax.random.key(3), params, feedback, x, y, noise_of
    )
    # Sums of at most 35 terms, and of the perturbations a difference of losses over sigma^2.
    assert_close((loss, grads), expected, ulps=1e4)


def test_ratio_of_pairs() -> None:
    def busy(times: int) -> Any:
        return lambda: [sum(range(20_000)) for _ in range(times)]

    found = pairs.compare(busy(4), busy(1), seconds=0.2)
    assert found.spread[0] <= found.ratio <= found.spread[1] and found.pairs >= 7
    assert 3 < found.ratio < 5


def test_command_writes_what_it_measured(tmp_path, monkeypatch) -> None:
    for name in ("LEAST_S", "STEPS", "UPDATES", "BATCH"):
        monkeypatch.setattr(rules, name, {"LEAST_S": 0.0}.get(name, 2))
    monkeypatch.setattr(rules, "RULES", {n: rules.RULES[n] for n in ("backprop", "node_perturbation")})
    monkeypatch.setattr(rules, "network_params", lambda key: NETWORK_PARAMS(key, (784, 5, 10)))
    options = "--models", "plain_mlp", "--scale", 2, "--seconds", 0.001, "--out", tmp_path
    code, printed, _ = call_main(rules.main, *options)
    assert code == 0
    written = json.loads((tmp_path / "rules.json").read_text())
    assert {"date", "machine", "versions"} < written.keys()
    assert [row["part"] for row in written["rows"]] == ["network"] * 2 + ["recurrent"] * 2 + ["zoo"] * 3
    assert all(row["ratio"] > 0 for row in written["rows"] if row["part"] != "recurrent")
    assert [row["scale"] for row in written["rows"] if row["part"] == "zoo"] == [2] * 3
    assert "goals missed" in printed


def test_an_unknown_part_is_refused() -> None:
    code, _, err = call_main(rules.main, "--parts", "zoos")
    assert code == 2 and "--parts: expected some of network, zoo, recurrent" in err


NETWORK_PARAMS = rules.network_params
