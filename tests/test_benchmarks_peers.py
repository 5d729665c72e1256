"""Peers of the library do the same on the same draws: evosax and a layer in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import lax_learning as ll
from benchmarks.cases import CASES, Sizes, peers
from benchmarks.floors import Floors
from benchmarks.reference import jax_by_hand
from benchmarks.timing import compare
from tests.compare import normal, slow_but

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

SIZES = Sizes(hidden=5, batch_size=6, updates=2)
RATE, SIGMA = 0.1, 0.01


def problem() -> tuple[ll.Model, list[dict[str, jax.Array]], jax.Array, jax.Array]:
    """Sigmoid on both layers; weights, inputs and targets in float64."""
    model = ll.mlp((7, 5, 3), activation=jax.nn.sigmoid, output_activation=jax.nn.sigmoid)
    params = [{"w": normal(0, 7, 5), "b": normal(1, 5)}, {"w": normal(2, 5, 3), "b": normal(3, 3)}]
    x, y = normal(4, 6, 7), normal(5, 6, 3)
    params, x, y = jax.tree.map(lambda a: a.astype(jnp.float64), (params, x, y))
    return model, params, x, y


@pytest.mark.usefixtures("x64")
def test_by_hand_averages_its_draws() -> None:
    _, params, x, y = problem()
    rule, key, draws = jax_by_hand.weight_perturbation, jax.random.key(0), 3
    train = jax_by_hand.training(rule, jax.random.normal, draws, RATE)
    (after, _) = train(key[None], params, params, x, y)
    each = [rule(k, params, params, x, y, jax.random.normal)[1] for k in jax.random.split(key, draws)]
    expected = jax.tree.map(lambda w, *g: w - RATE * sum(g) / draws, params, *each)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), after, expected)


@pytest.mark.usefixtures("x64")
def test_a_generation_of_evosax_is_a_mirrored_step() -> None:
    """With its own normal numbers as noise of the library: losses near 3, to 1e-16, over sigma."""
    pytest.importorskip("evosax", reason="the peer is optional: make peers")
    from benchmarks.reference import open_es

    model, params, x, y = problem()
    population, key = 4, jax.random.key(1)

    def loss(params: list[dict[str, jax.Array]], x: jax.Array, y: jax.Array) -> jax.Array:
        return ll.squared_error(model.apply(params, x), y).mean()

    after = jax.jit(open_es.training(loss, params, population, SIGMA, RATE))(key[None], params, x, y)

    flat, unravel = ravel_pytree(params)
    draws = jax.random.normal(jax.random.split(key)[0], (population // 2, flat.size))

    def gradient(draw: jax.Array) -> list[dict[str, jax.Array]]:
        noise = {f"{i}/{name}": w for i, layer in enumerate(unravel(draw)) for name, w in layer.items()}
        rule = ll.weight_perturbation(
            model, ll.squared_error, sigma=SIGMA, difference="central", noise=lambda key, like: noise
        )
        return rule.value_and_grad(key, params, (), x, y)[1]

    expected = jax.tree.map(lambda w, *g: w - RATE * sum(g) / len(g), params, *map(gradient, draws))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10), after, expected)


@pytest.mark.usefixtures("x64")
def test_the_layer_in_pytorch_is_feedback_alignment() -> None:
    torch = pytest.importorskip("torch", reason="the peer is optional: make peers")
    from benchmarks.reference import torch_feedback

    model, params, x, y = problem()
    net = torch_feedback.network(7, 5, 3).double()
    feedback = normal(6, 5, 3).astype(jnp.float64)
    with torch.no_grad():
        for layer, ours in zip((net[0], net[2]), params, strict=True):
            layer.weight.copy_(torch.from_numpy(np.array(ours["w"].T)))
            layer.bias.copy_(torch.from_numpy(np.array(ours["b"])))
        net[2].feedback.copy_(torch.from_numpy(np.array(feedback.T)))
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    loss = torch_feedback.update(net, optimizer, *(torch.from_numpy(np.array(a)) for a in (x, y)))

    rule = ll.feedback_alignment(model, ll.squared_error)
    state = rule.init(jax.random.key(0), params, x)
    held = [{"w": None, "b": None}, {"w": feedback, "b": None}]
    expected, grads, _ = rule.value_and_grad(jax.random.key(0), params, state._replace(feedback=held), x, y)
    np.testing.assert_allclose(float(loss), expected, rtol=1e-12)
    for layer, ours, grad in zip((net[0], net[2]), params, grads, strict=True):
        np.testing.assert_allclose(
            layer.weight.detach().numpy().T, ours["w"] - RATE * grad["w"], rtol=0, atol=1e-12
        )
        np.testing.assert_allclose(
            layer.bias.detach().numpy(), ours["b"] - RATE * grad["b"], rtol=0, atol=1e-12
        )


@pytest.mark.parametrize(
    "case", slow_but([(peers.CASES[0],)], [(case,) for case in peers.CASES]), ids=lambda case: case.name
)
def test_cases_can_be_timed(case, monkeypatch) -> None:
    assert case in CASES
    if not case.can_run():
        pytest.skip(f"needs {case.requires}: make peers")
    monkeypatch.setattr("benchmarks.timing.SHORTEST", 0.0)
    monkeypatch.setattr("benchmarks.timing.PAUSE", 0.0)
    monkeypatch.setattr("benchmarks.timing.EXPLAINED", 0.0)
    monkeypatch.setattr("benchmarks.timing.TIMES", 1)
    found = compare(case.ours(SIZES, 1), case.reference(SIZES), 1, lambda: Floors(1e12, 1e12, 1e12, 1e12))
    assert all(np.isfinite(value) and value > 0 for value in (*found[:7], found.ratio))
