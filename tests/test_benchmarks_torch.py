"""The reference loops that need PyTorch do what the library does, and their cases can be timed."""

import importlib
import importlib.util
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll
from benchmarks import throughput
from benchmarks.cases import CASES, Sizes, birth_death, decorrelation, peers, symbolic
from benchmarks.cases import plasticity as k_cap
from benchmarks.floors import Floors
from benchmarks.reference.jax_by_hand import feedback_alignment
from benchmarks.timing import compare
from lax_learning import plasticity
from lax_learning import symbolic as sy
from lax_learning.decorrelation import State
from tests.compare import slow_but

torch: Any = pytest.importorskip("torch", reason="these reference loops need PyTorch: make peers")
torch.set_num_threads(1)  # they wait for one another busily, which takes long beside other tests

from benchmarks.reference import birth_death as population  # noqa: E402
from benchmarks.reference import decorrelation as decorrelation_loop  # noqa: E402
from benchmarks.reference import plasticity as k_cap_loop  # noqa: E402
from benchmarks.reference import symbolic as critic_loop  # noqa: E402
from benchmarks.reference import torch_feedback  # noqa: E402

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

# Wide enough that no two units have the same synapses from those that fire: PyTorch breaks ties as it likes.
SIZES = Sizes(
    neurons=8, points=7, steps=3, updates=3, curve_points=6, epochs=2, width=41, samples=20,
    rule_batch_size=6, rule_batches=4,
)  # fmt: skip
FLOORS = Floors(flops=1e11, bandwidth=1e10, normals=1e8, words=1e8)
CASES_WITH_TORCH = [case for case in CASES if case.requires == "torch"]
KEY = jax.random.key(0)
SHAPES = (7, 5), (5, 3)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short measurements, and the search within a cap in fewer and larger steps: the same result."""
    for name, value in {"SHORTEST": 0.0, "EXPLAINED": 0.0, "PAUSE": 0.0, "TIMES": 1}.items():
        monkeypatch.setattr(f"benchmarks.timing.{name}", value)
    monkeypatch.setattr(importlib.import_module("lax_learning.plasticity._k_cap"), "_BITS_A_ROUND", 8)


@pytest.fixture
def float64(x64):
    """Runs the test in float64, PyTorch too."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def close(got: Any, expected: Any, atol: float = 1e-10) -> None:
    """Equal in float64, whose roundings are 1e-16, of sums of less than 100 terms of size 10.

    Adam divides by `|g| + 1e-8`: a rounding of a gradient near 0 is 1e8 as large, times a learning rate of at
    most 1e-3.
    """
    for found, wanted in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
        found, wanted = (a.detach() if isinstance(a, torch.Tensor) else a for a in (found, wanted))
        found, wanted = np.asarray(found), np.asarray(wanted)
        assert found.dtype == wanted.dtype == np.float64 and found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)


def as_torch(array: Any) -> Any:
    return torch.from_numpy(np.array(array))


def as_reference(params: Any) -> list[np.ndarray]:
    """Weights and biases, layer by layer, as PyTorch has them."""
    return [np.asarray(layer[name]).T for layer in params for name in "wb"]


def trained(module: Any) -> list[Any]:
    """Weights and biases of a network of the reference."""
    return [p for p in module.parameters() if p.requires_grad]


def load(module: Any, params: Any) -> None:
    """Puts the library's parameters into a network of the reference."""
    for theirs, ours in zip(trained(module), as_reference(params), strict=True):
        theirs.data.copy_(as_torch(ours))


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_decorrelated_updates_agree():
    widths, rng = (12, 7, 5), np.random.default_rng(0)
    init, update = decorrelation.learner(widths)
    carry = jax.tree.map(
        lambda leaf: leaf.astype(float) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, init(KEY)
    )
    # R as after many updates; input 3 is always 0.
    alone = np.eye(widths[0])[3]
    mixed = [np.eye(size) + 0.3 * rng.standard_normal((size, size)) for size in widths[:-1]]
    mixed[0][3] = alone
    layers = {f"{i}/w": State(jnp.asarray(r)) for i, r in enumerate(mixed)}
    carry = carry._replace(state=carry.state._replace(layers=layers))
    theirs = decorrelation_loop.Learner(widths, decorrelation.LEARNING_RATE, decorrelation.ETA)
    load(theirs.network, carry.params)
    for layer, r in zip(theirs.layers, mixed, strict=True):
        layer.R.copy_(as_torch(r))

    update = jax.jit(update)
    for _ in range(3):
        x = 2 * rng.standard_normal((9, widths[0])) * (1 - alone)
        labels = rng.integers(widths[-1], size=9)
        carry, (loss, losses) = update(KEY, carry, x, np.eye(widths[-1])[labels])
        their_loss, of_layers = theirs.update(as_torch(x), as_torch(labels))
        close(loss, their_loss)
        np.testing.assert_allclose([*losses.values()], of_layers, rtol=2**-24)  # held in float32
    close(as_reference(carry.params), trained(theirs.network))
    close([layer.R for layer in carry.state.layers.values()], [layer.R for layer in theirs.layers])
    moved = [np.abs(layer.R.numpy() - r) for layer, r in zip(theirs.layers, mixed, strict=True)]
    assert all(each.max() > 1e-6 for each in moved) and moved[0][3].max() == 0


@pytest.mark.usefixtures("x64")
def test_a_layer_in_pytorch_is_feedback_alignment():
    """As in the code by hand, which does what the library does."""
    rng, rate = np.random.default_rng(0), 0.1
    params, feedback = (
        [{"w": rng.normal(size=(i, o)), "b": rng.normal(size=o)} for i, o in SHAPES] for _ in "12"
    )
    x, y = rng.normal(size=(6, 7)), rng.normal(size=(6, 3))
    net = torch_feedback.network(7, 5, 3).double()
    load(net, params)
    net[2].feedback.copy_(as_torch(feedback[1]["w"].T))
    loss = torch_feedback.update(net, torch.optim.SGD(net.parameters(), lr=rate), as_torch(x), as_torch(y))
    expected, grads = jax.jit(partial(feedback_alignment, None, draw=None))(params, feedback, x, y)
    close(loss, expected)
    close(trained(net), as_reference(jax.tree.map(lambda w, g: w - rate * np.asarray(g), params, grads)))


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_steps_of_a_critic_agree(monkeypatch):
    monkeypatch.setattr(symbolic, "DECAY", 0.1)  # so large that it shows
    rate, penalty, points = 1e-3, 0.5, 6
    judge, rng = sy.critic(points, hidden=(7, 6), dtype=jnp.float64), np.random.default_rng(0)
    # Weights so large that logits have both signs.
    start = jax.jit(partial(symbolic.init, judge))(jax.random.key(5)).state
    start = state = start._replace(params=jax.tree.map(lambda w: 3 * np.asarray(w), start.params))
    critic = critic_loop.perceptron((points, 7, 6, 1))
    load(critic, start.params["critic"])
    optimizer = critic_loop.adam(critic, rate, symbolic.DECAY)
    step = jax.jit(sy.critic_step(judge, symbolic.adam(jnp.asarray(rate)), objective="wgan", penalty=penalty))
    accuracies = set()
    for key in jax.random.split(KEY, 4):
        real, fake = rng.standard_normal((2, 5, points))
        state, metrics = step(key, state, real, fake)
        eps = as_torch(jax.random.uniform(key, (5,)))[:, None]
        found = critic_loop.step(critic, optimizer, as_torch(real), as_torch(fake), eps, penalty)
        close([getattr(metrics, name) for name in found._fields], list(found))
        accuracies.add(found.accuracy)
    before, now = (as_reference(each.params["critic"]) for each in (start, state))
    close(now, trained(critic))
    assert all(np.abs(a - b).max() > rate for a, b in zip(before, now, strict=True)) and len(accuracies) > 1


@pytest.mark.usefixtures("x64")
def test_steps_of_birth_and_death_agree():
    """In float64, whose roundings are 1e-16, over 6 steps of sums of at most 8 x 7 terms below 100."""
    rng, neurons = np.random.default_rng(4), SIZES.neurons
    w, c = rng.standard_normal((neurons, neurons)), rng.standard_normal((1, neurons))
    params = {"w": jnp.asarray(w.T)}, {"w": jnp.asarray(c.T)}
    student = population.Student(torch.tensor(w), torch.tensor(c))
    optimizer = torch.optim.SGD(student.parameters(), lr=birth_death.LEARNING_RATE)
    network, carry = birth_death.student_of(neurons), (params, birth_death.dynamics_of().init(params))

    @jax.jit
    def step(carry: Any, x: Any, y: Any, draws: Any) -> Any:
        dynamics = birth_death.dynamics_of(lambda key, n: ll.birth_death.Draws(*draws))
        return birth_death.step(dynamics, network, KEY, carry, x, y)

    events = np.zeros(2, int)
    for _ in range(6):
        x = np.asarray(population.draw_inputs(SIZES.points, neurons), np.float64)
        y = 5 * rng.standard_normal((SIZES.points, 1))
        draws = rng.random((4, neurons)) / [[100], [1], [100], [1]]
        theirs, examples = population.Draws(*torch.tensor(draws)), (torch.tensor(x), torch.tensor(y))
        events += population.step(student, optimizer, *examples, theirs, birth_death.ALPHA)
        carry = step(carry, x, y, draws)
        close(list(birth_death.as_reference(carry[0])), [student.w, student.c])
    assert carry[1].num_killed == events[0] > 0
    # The reference counts clones that were asked for, the library those that found a slot.
    assert 0 < carry[1].num_cloned <= events[1]


@pytest.mark.usefixtures("x64")
def test_a_pass_of_a_k_cap_network_agrees():
    """A weight is a sum of 20 changes of 0.01, and no cap is decided by less than its 1e-16."""
    network = k_cap.network_of(SIZES, k_cap.INPUTS, k_cap.LABELS, jnp.float64)
    state, tables = jax.jit(network.init)(jax.random.key(1)), k_cap.learned_tables(jnp.float64)
    x, labels = k_cap.images(SIZES.samples)
    x = x.astype(np.float64)
    after, predictions, _ = jax.jit(partial(plasticity.plastic_pass, network))(tables, state, x, labels)
    theirs, their_tables = k_cap.as_reference(state, tables, k_cap.cap_of(SIZES))
    first, chosen = theirs.weights[0].clone(), []
    for sample, label in zip(torch.from_numpy(x), torch.from_numpy(labels), strict=True):
        chosen.append(int(k_cap_loop.forward(theirs, sample[None])[0].argmax()))
        k_cap_loop.one_pass(theirs, their_tables, sample[None], label[None])
    assert len(set(chosen)) > 1 and torch.equal(theirs.weights[0], first)
    np.testing.assert_array_equal(predictions, chosen)
    for layer, *tensors in zip(after[1:], theirs.weights[1:], theirs.masks[1:], strict=True):
        w, mask = (each.numpy().T for each in tensors)
        close(layer["w"], w, 1e-14)
        assert np.unique(np.round(w[mask > 0], 9)).size > 10  # other synapses learned other things
        assert not w[mask == 0].any()
    probs = k_cap_loop.forward(theirs, torch.from_numpy(x))[0]
    close(jax.jit(lambda *args: jax.nn.softmax(network.apply(*args)))(after, x), probs, 1e-12)  # logits of 20


TIMED = slow_but([(birth_death.CASES[0],)], [(case,) for case in (*CASES_WITH_TORCH, *peers.CASES)])


@pytest.mark.parametrize("case", TIMED, ids=lambda case: case.name)
def test_cases_can_be_timed(case):
    if not case.can_run():
        pytest.skip(f"needs {case.requires}: make peers")
    comparison = compare(case.ours(SIZES, 1), case.reference(SIZES), 1, lambda: FLOORS)
    assert all(np.isfinite(value) and value > 0 for value in (*comparison[:7], comparison.ratio))


def test_cases_without_torch_are_imported_and_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not any(case.can_run() for case in CASES_WITH_TORCH)
    config = throughput.Config(systems=("birth_death", "symbolic"), out=tmp_path / "never", sizes=SIZES)
    with pytest.raises(ValueError, match=r"--systems: expected one that can run here, .* torch"):
        throughput.run(config)
    assert not (tmp_path / "never").exists()

    for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    again = importlib.import_module("benchmarks.cases")
    assert [case.name for case in again.CASES] == [case.name for case in CASES]
