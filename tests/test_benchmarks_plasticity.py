"""The benchmark of k-cap networks: the loops in PyTorch do what the library does, sample by sample."""

import importlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll
from benchmarks.cases import Sizes
from benchmarks.cases import plasticity as cases
from benchmarks.floors import Floors
from benchmarks.timing import compare
from experiments.plasticity_transfer.models import double_softmax
from lax_learning import plasticity
from lax_learning.data._batches import batches

torch = pytest.importorskip("torch", reason="the reference loops need PyTorch")
loops = importlib.import_module("benchmarks.reference.plasticity")

# Wide enough that no two units have the same synapses from those that fire: PyTorch breaks ties as it likes.
SIZES = Sizes(width=41, samples=20, rule_batch_size=6, rule_batches=4)
CAP = cases.cap_of(SIZES)


@pytest.fixture(autouse=True)
def quick_caps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search within a cap in fewer and larger steps: the same result, compiled several times faster."""
    monkeypatch.setattr(importlib.import_module("lax_learning.plasticity._k_cap"), "_BITS_A_ROUND", 8)


def close(got: Any, expected: Any, atol: float) -> None:
    """Equal in float64 but for roundings, of which there must be room for more than none."""
    got, expected = (a.detach().numpy() if isinstance(a, torch.Tensor) else a for a in (got, expected))
    assert np.asarray(got).dtype == np.asarray(expected).dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@pytest.mark.usefixtures("x64")
def test_a_pass_agrees() -> None:
    """A weight is a sum of 20 changes of 0.01, and no cap is decided by less than its 1e-16."""
    network = cases.network_of(SIZES, cases.INPUTS, cases.LABELS, jnp.float64)
    state, tables = network.init(jax.random.key(1)), cases.learned_tables(jnp.float64)
    x, labels = cases.images(SIZES.samples)
    x = x.astype(np.float64)
    after, predictions = jax.jit(partial(cases.learn, SIZES))(jax.random.key(0), tables, state, x, labels)

    theirs, their_tables = cases.as_reference(state, tables, CAP)
    first = theirs.weights[0].clone()
    chosen = []
    for sample, label in zip(torch.from_numpy(x), torch.from_numpy(labels), strict=True):
        chosen.append(int(loops.forward(theirs, sample[None])[0].argmax()))
        loops.one_pass(theirs, their_tables, sample[None], label[None])
    assert len(set(chosen)) > 1
    np.testing.assert_array_equal(predictions, chosen)
    assert torch.equal(theirs.weights[0], first)
    for layer, *tensors in zip(after[1:], theirs.weights[1:], theirs.masks[1:], strict=True):
        w, mask = (each.numpy().T for each in tensors)
        close(layer["w"], w, 1e-14)
        assert np.unique(np.round(w[mask > 0], 9)).size > 10  # other synapses learned other things
        assert not w[mask == 0].any()
    probs = loops.forward(theirs, torch.from_numpy(x))[0]
    close(jax.nn.softmax(network.apply(after, x)), probs, 1e-12)  # of logits of size 20


def start() -> tuple[ll.data.Splits, plasticity.State, ll.TrainState]:
    """Points, a network and its meta-learning before the first batch, in float64."""
    data = cases.points(SIZES, jnp.float64)
    return data, *cases.start_of(SIZES, data, jax.random.key(1))


def as_torch(data: ll.data.Dataset, chosen: Any) -> tuple[Any, Any]:
    x, y = (np.asarray(a)[chosen] for a in data)
    return torch.tensor(x), torch.from_numpy(np.argmax(y, axis=-1))


@pytest.mark.usefixtures("x64")
def test_gradients_agree() -> None:
    """Of the loss of a pass over a batch, by tables away from their start and by the first layer."""
    data, state, train = start()
    params = train.params._replace(tables=cases.learned_tables(jnp.float64))
    network = cases.network_of(SIZES, cases.FEATURES, cases.SIDES, jnp.float64)
    rule = plasticity.meta_rule(network, state, loss=double_softmax)
    loss, grads, _ = jax.jit(rule.value_and_grad)(jax.random.key(0), params, (), *data.train)

    theirs, tables = cases.as_reference(state, params.tables, CAP, requires_grad=True)
    expected = loops.one_pass(theirs, tables, *as_torch(data.train, slice(None)))
    expected.backward()
    close(loss, expected, 1e-13)
    # Sums of some 1 000 terms of at most 1.
    close(grads.tables.hidden[0], tables.hidden.grad, 1e-12)
    close(grads.tables.output, tables.output.grad, 1e-12)
    close(grads.w, theirs.weights[0].grad.T, 1e-12)
    for gradient in jax.tree.leaves(grads):
        assert np.abs(gradient).max() > 1e-4


@pytest.mark.usefixtures("x64")
def test_meta_learning_agrees() -> None:
    """Batch after batch: Adam divides by no less than 1e-8, so that 1e-16 can become 1e-8 of its 0.01."""
    data, state, train = start()
    after, losses = jax.jit(partial(cases.meta_learn, SIZES))(jax.random.key(0), (state, train), data)

    schedule = batches(len(data.train.x), SIZES.rule_batch_size)
    theirs, tables = cases.as_reference(state, train.params.tables, CAP, requires_grad=True)
    adam = loops.optimizer(theirs, tables)
    order, expected = train.batches, []
    for step in range(SIZES.rule_batches):
        order, chosen = schedule.next(order, step)
        expected.append(loops.meta_update(theirs, tables, adam, *as_torch(data.train, chosen)))
    close(losses, expected, 1e-9)
    close(after.params.tables.hidden[0], tables.hidden, 1e-9)
    close(after.params.tables.output, tables.output, 1e-9)
    close(after.params.w, theirs.weights[0].T, 1e-9)
    assert not any(w.any() for w in theirs.weights[1:])  # every batch starts from 0
    assert np.abs(after.params.tables.output).min() > 1e-4  # 0 before


@pytest.mark.parametrize(
    ("case", "seeds", "pieces"),
    list(zip(cases.CASES, (1, 2), (SIZES.samples, SIZES.rule_batches), strict=True)),
    ids=["pass", "meta-learning"],
)
def test_cases_run(case: Any, seeds: int, pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.timing.SHORTEST", 0.0)
    ours = case.ours(SIZES, seeds)
    assert ours.pieces == pieces
    comparison = compare(ours, case.reference(SIZES), 1, Floors(1e9, 1e9, 1e9, 1e9))
    assert all(np.isfinite(value) and value > 0 for value in comparison)
