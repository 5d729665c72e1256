"""Many devices and many processes: the same results, one voice, and runs that go on elsewhere."""

import re
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from subprocess import Popen
from typing import Any
from unittest.mock import Mock

import jax
import numpy as np
import pytest
import xarray as xr

from experiments import harness, processes
from experiments.birth_death.config import Config
from tests.command_line import EXPERIMENT, call_main, ended, start, started


def start_all(
    program: str, *arguments: str | Path, devices: int, environments: Sequence[dict[str, str]] = ({},)
) -> list[Popen[str]]:
    """Starts the same program in as many processes as environments, each with so many devices of the CPU.

    XLA cuts long sums by the number of threads: NPROC makes that the same for any number of devices.
    """
    common = {"JAX_NUM_CPU_DEVICES": str(devices), "NPROC": "8"}
    return [start(program, *arguments, **common, **environment) for environment in environments]


def run_all(*arguments: str | Path, code: int = 0, **options: Any) -> list[tuple[str, str]]:
    """Output and errors of every process, without what the transport between them says.

    Its threads may write into each other's lines, which leaves the count at the end of one on its own.
    """
    ends = [ended(process) for process in start_all(*map(str, arguments), **options)]
    assert all(end[0] == code for end in ends), ends
    return [(re.sub(r"(?m)^(\[Gloo\].*|\d*)\n", "", out), errors) for _, out, errors in ends]


def jobs_of(processes: int) -> list[dict[str, str]]:
    """The environments that SLURM gives to the processes of a job on this machine."""
    with socket.socket() as found:  # a port that JAX derives from the number of the job
        while True:
            job = int(np.random.default_rng().integers(2**12))
            try:
                found.bind(("127.0.0.1", 65535 - 2**12 + 1 + job))
                break
            except OSError:
                continue
    common = {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(processes)}
    return [{**common, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(processes)]


# --- the library

ENSEMBLES = """
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

jax.config.update("jax_cpu_collectives_implementation", "gloo")
if len(sys.argv) > 2:
    jax.distributed.initialize()

import lax_learning as ll
from tests.compare import assert_close, assert_same, member, normal

keys, model = jax.random.split(jax.random.key(0), 8), ll.mlp((3, 4, 2), activation=jnp.tanh)
x, y = normal(1, 12, 3), normal(2, 12, 2)
train = ll.make_train(
    ll.backprop(model, ll.squared_error), optax.sgd(0.02, momentum=0.9), init=model.init, num_updates=4,
    batch_size=4, every=2,
)
alone = ll.data.Splits(ll.data.Dataset(x, y), None, None)
data, devices, processes = ll.replicate(alone), jax.devices(), jax.process_count()
assert len(devices) == 8 and len(jax.local_devices()) == 8 // processes
assert len(jax.tree.leaves(data)[0].devices()) == 8


def arrays(tree):
    return [leaf for leaf in jax.tree.leaves(ll.gather(tree)) if isinstance(leaf, np.ndarray)]


def advance_on(some):
    return ll.ensemble(train.advance, in_axes=(0, None, None), batch_size=2, devices=devices[:some])


begin, advance, found = ll.ensemble(train.init, batch_size=2), advance_on(8), {}
starts = {number: begin(keys[:number], data) for number in (8, 5)}
for number, start in starts.items():
    found[f"{number} members"] = arrays(advance(start, 0, data))

# Members that fill the devices stay there from call to call, and no program sends a message.
step, (state, _) = ll.replicate(2), advance(starts[8], 0, data)
with jax.transfer_guard_device_to_device("disallow_explicit"):
    state, losses = advance(state, step, data)
assert all(leaf.devices() == set(devices) for leaf in jax.tree.leaves((state, losses)))
found["in pieces"] = arrays((losses, state.params))
program = advance.compile(state, 0, data).as_text()
assert not any(message in program for message in ("all-reduce", "all-gather", "all-to-all", "collective"))

if processes > 1:
    with pytest.raises(ValueError, match="^number of members: .* one for each of 2 processes, got 1"):
        begin(keys[:1], data)


def on_shards(rule, draws_on_units, learns_from_data):
    "Gradients, of feedback too, from two devices with half of the batch each; and what they should be."
    params = model.init(keys[0])
    state = rule.init(keys[0], params, x)

    def grads_of(device, x, y):
        # Noise on units has the number of its device in its key; noise on weights is the same everywhere.
        key = jax.random.fold_in(keys[1], device) if draws_on_units else keys[1]
        _, grads, after = rule.value_and_grad(key, params, state, x, y)
        return grads, getattr(after, "feedback", ())

    (first, moved), (second, other) = grads_of(0, x[:6], y[:6]), grads_of(1, x[6:], y[6:])
    if learns_from_data:
        moved = jax.tree.map(lambda a, b, start: a + b - start, moved, other, state.feedback)
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices[:2])
    over_batch = jax.shard_map(
        lambda x, y: grads_of(jax.lax.axis_index("devices"), x, y),
        mesh=mesh, in_specs=jax.P("devices"), out_specs=jax.P(),
    )
    return over_batch(x, y), (jax.tree.map(jnp.add, first, second), moved)


if processes == 1:
    for number, some in (8, 1), (5, 1), (5, 4):
        found[f"{number} members on {some}"] = arrays(advance_on(some)(starts[number], 0, alone))
    # Which device a member is on leaves no trace, and uneven members are put together on one device.
    uneven = advance(begin(keys[:5][::-1], data), 0, data)
    turned = jax.tree.leaves(member(uneven, slice(None, None, -1)))
    assert_same([leaf for leaf in turned if isinstance(leaf, np.ndarray)], found["5 members"])
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(uneven)} == {1}
    with jax.set_mesh(jax.make_mesh((8,), ("data",))):  # an ensemble's mesh is its own
        again = begin(keys[:5], data)
    assert_same(arrays(again), arrays(starts[5]))
    of, sgd = (model, ll.squared_error), optax.sgd(0.1)
    # Sums of a dozen terms in another order; differences of losses are divided by sigma.
    for rule, *kind, ulps in (
        (ll.node_perturbation(*of, sigma=0.1, antithetic=True, noise="rademacher"), True, False, 2560),
        (ll.direct_kolen_pollack(*of, optimizer=sgd), False, True, 256),
        (ll.weight_mirror(*of, optimizer=sgd), False, False, 256),
    ):
        assert_close(*jax.jit(lambda: on_shards(rule, *kind))(), ulps=ulps)
if jax.process_index() == 0:
    named = {f"{name}/{i}": leaf for name, leaves in found.items() for i, leaf in enumerate(leaves)}
    np.savez(sys.argv[1], **named)
"""
SHARDED_BATCHES = """
import jax, jax.numpy as jnp, numpy as np, optax, lax_learning as ll
from experiments.registry import RULES, rule_of

keys, model = jax.random.split(jax.random.key(0), 4), ll.mlp((6, 8, 5, 3))
params = model.init(keys[0])
batch = jax.random.normal(keys[1], (16, 6)), jax.nn.one_hot(jnp.arange(16) % 3, 3)


def gradients(name):
    rule = rule_of(name, sigma=0.25, optimizer=optax.sgd(0.1), decay=0.1)(model, ll.softmax_cross_entropy)
    return jax.jit(
        lambda keys, params, *batch: rule.value_and_grad(
            keys[2], params, rule.init(keys[3], params, batch[0]), *batch
        )
    )


alone = {name: gradients(name)(keys, params, *batch) for name in RULES}
for kind in jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    everywhere, spread = (jax.NamedSharding(mesh, spec) for spec in (jax.P(), jax.P("data")))
    with jax.set_mesh(mesh):
        given = *jax.device_put((keys, params), everywhere), *jax.device_put(batch, spread)
        for name in RULES:
            found = jax.tree.leaves(gradients(name)(*given))
            for a, b in zip(jax.tree.leaves(alone[name]), found, strict=True):
                # Losses of 16 examples round by 16 eps; differences of them are divided by sigma.
                atol = 1e-4 * max(np.abs(a).max(), 1)
                np.testing.assert_allclose(b, a, rtol=1e-4, atol=atol, err_msg=f"{name} {kind}")
"""


@pytest.mark.slow
def test_a_batch_spread_over_devices_gets_the_gradients_of_one() -> None:
    run_all(SHARDED_BATCHES, devices=4)


# A sum of up to 50 numbers of float32 rounds by 50 eps; four updates add up.
ROUNDING = 50 * 4 * float(np.finfo(np.float32).eps)
agree = partial(np.testing.assert_allclose, rtol=ROUNDING, atol=ROUNDING)


@pytest.fixture(scope="module")
def of_one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Results of one process with 8 devices."""
    path = tmp_path_factory.mktemp("ensembles") / "alone.npz"
    run_all(ENSEMBLES, path, devices=8)
    with np.load(path) as found:
        return dict(found)


def test_ensembles_agree_on_any_number_of_devices(of_one_process: dict[str, np.ndarray]) -> None:
    found, number = of_one_process, len([name for name in of_one_process if name.startswith("8 members/")])
    assert number > 3
    for i in range(number):
        whole, alone = found[f"8 members/{i}"], found[f"8 members on 1/{i}"]
        agree(alone, whole)
        for name in ("5 members on 4", "5 members"):
            agree(found[f"{name}/{i}"], whole[:5])
        # The same devices: what runs beside changes no bit.
        np.testing.assert_array_equal(found[f"5 members on 1/{i}"], alone[:5])


@pytest.mark.slow
def test_ensembles_agree_on_two_processes(of_one_process: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "two.npz"
    run_all(ENSEMBLES, path, "many", devices=4, environments=jobs_of(2))
    with np.load(path) as found:
        assert len(found.files) > 6
        for name in found.files:
            agree(found[name], of_one_process[name], err_msg=name)


# --- experiments

PROGRAM = EXPERIMENT.format(name="birth_death")
LONG = [
    *("--problems", "planted", "--schemes", "gd", "--seeds", "5", "--records", "5", "--units", "6"),
    *("--teacher-units", "2", "--features", "4", "--batch-size", "10", "--test-points", "50"),
    *("--steps", "20000"),
]


@pytest.mark.slow
def test_killed_processes_go_on_with_other_devices_and_the_first_tells(tmp_path: Path) -> None:
    alone, out = tmp_path / "alone", tmp_path / "out"
    run_all(PROGRAM, *LONG, "--out", alone, devices=1)
    checkpoints, options = out / "checkpoints" / "planted-gd", (*LONG, "--distributed", "--out", out)
    processes = start_all(PROGRAM, *options, devices=1, environments=jobs_of(2))
    with started(checkpoints, *processes):
        assert min(int(p.name) for p in checkpoints.iterdir() if p.name.isdigit()) < 50
    assert not (out / "results.nc").exists()
    first, second = run_all(PROGRAM, *options, "--resume", devices=2, environments=jobs_of(2))
    assert "planted teacher: GD" in first[0] and "20000/20000" in first[1]
    assert second[0] == "" and "20000/20000" not in second[1]
    with xr.open_dataset(out / "results.nc") as a, xr.open_dataset(alone / "results.nc") as b:
        # to rounding, by thousands of updates
        xr.testing.assert_allclose(a, b, rtol=1000 * ROUNDING, atol=1000 * ROUNDING)
    assert {p.name for p in alone.iterdir()} <= {p.name for p in out.iterdir()}


def test_all_processes_do_what_the_first_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two of them, one after the other in this one."""
    sent: list[np.ndarray] = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    def first(value: np.ndarray) -> np.ndarray:
        sent.append(np.asarray(value))
        return value

    def second(value: np.ndarray) -> np.ndarray:
        assert np.shape(value) == sent[0].shape
        return sent.pop(0)

    def both(run: Callable[[int], Any]) -> list[Any]:
        found = []
        for index, broadcast in enumerate((first, second)):
            monkeypatch.setattr(jax, "process_index", lambda index=index: index)
            monkeypatch.setattr(processes, "broadcast_one_to_all", broadcast)
            assert processes.is_first() == (index == 0)
            found.append(run(index))
        return found

    def decided(decide: Callable[[], Any], index: int) -> Any:
        return processes.decided(pytest.fail if index else decide)

    def error_of(error: Exception, index: int) -> Exception:
        with pytest.raises((ValueError, OSError)) as raised:
            decided(Mock(side_effect=error), index)
        return raised.value

    assert both(partial(decided, lambda: {"a": [1, None]})) == [{"a": [1, None]}] * 2 and not sent
    for error in (ValueError("--out: expected another, got one that is rather long"), OSError("disk full")):
        told, elsewhere = both(partial(error_of, error))
        assert told is error and type(elsewhere) is processes.ElsewhereError and str(told) == str(elsewhere)

    begin, out = partial(harness.begin, held=lambda config: harness.Held(each=())), tmp_path / "out"
    command = partial(harness.command_line, "test", Config, begin)
    told, elsewhere = both(lambda _: call_main(command, "--seeds", "1", "--out", out))
    assert told[0] == 2 and "--seeds: expected at least one for each of 2 processes, got 1" in told[2]
    assert elsewhere == (2, "", "") and not out.exists()


# --- how processes meet

MEETING = """
import sys
from experiments import processes
processes.SECONDS_TO_MEET = 3
processes.meet("test", processes.Meeting(sys.argv[1], 2, int(sys.argv[2])))
"""


@pytest.mark.parametrize("process", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_processes_that_do_not_meet(process: int) -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{taken.getsockname()[1]}"
    began = time.monotonic()
    ((_, errors),) = run_all(MEETING, where, str(process), code=2, devices=1)
    assert time.monotonic() - began < 60
    assert f"test: --coordinator: expected 2 processes to connect to {where} within 3 s, got no" in errors
