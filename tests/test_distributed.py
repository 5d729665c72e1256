"""Many devices and many processes: the same results, one voice, and runs that go on elsewhere."""

import re
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from subprocess import Popen
from typing import Any

import jax
import numpy as np
import pytest
import xarray as xr

from experiments import processes
from tests.command_line import EXPERIMENT, ended, start, started


def start_all(
    program: str, *arguments: str | Path, devices: int, environments: Sequence[dict[str, str]] = ({},)
) -> list[Popen[str]]:
    """Starts the same program in as many processes as environments, each with so many devices of the CPU.

    XLA cuts long sums by the number of threads: NPROC makes that the same for any number of devices.
    """
    common = {"JAX_NUM_CPU_DEVICES": str(devices), "NPROC": "8"}
    return [start(program, *arguments, **common, **environment) for environment in environments]


def run_all(*arguments: str | Path, **options: Any) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of every process, without what the transport between them says.

    Its threads may write into each other's lines, which leaves the count at the end of one on its own.
    """
    ends = [ended(process) for process in start_all(*map(str, arguments), **options)]
    return [(code, re.sub(r"(?m)^(\[Gloo\].*|\d*)\n", "", out), errors) for code, out, errors in ends]


def run_alone(*arguments: str | Path, devices: int) -> None:
    ((code, _, errors),) = run_all(*arguments, devices=devices)
    assert code == 0, errors


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
import numpy as np

jax.config.update("jax_cpu_collectives_implementation", "gloo")
if len(sys.argv) > 2:
    jax.distributed.initialize()

import lax_learning as ll
from tests.compare import assert_close, assert_same, member
from tests.test_contract import DATA, KEYS, PARAMS, SIZE, SPLIT, WHOLE, X, Y, make, roundings, trainer

train, data = trainer("node_perturbation"), ll.replicate(DATA)
devices = jax.devices()
assert len(devices) == 8 and len(jax.local_devices()) == 8 // jax.process_count()
assert len(jax.tree.leaves(data)[0].devices()) == 8


def arrays(tree):
    return [leaf for leaf in jax.tree.leaves(ll.gather(tree)) if isinstance(leaf, np.ndarray)]


found = {}
for number in (8, 5):
    run = ll.ensemble(train, batch_size=2)
    found[f"{number} members"] = arrays(run(KEYS[:number], data))
    if jax.process_count() == 1:
        for some in (1, 2, 4) if number == 8 else (1, 4):
            run = ll.ensemble(train, batch_size=2, devices=devices[:some])
            found[f"{number} members on {some}"] = arrays(run(KEYS[:number], DATA))

# Members that fill the devices stay there from call to call, and no program sends a message.
state = ll.ensemble(train.init, batch_size=2)(KEYS, data)
assert all(leaf.devices() == set(devices) for leaf in jax.tree.leaves(state))
advance = ll.ensemble(train.advance, in_axes=(0, None, None), batch_size=2)
program = advance.compile(state, 0, data).as_text()
assert not any(message in program for message in ("all-reduce", "all-gather", "all-to-all", "collective"))
for step in (0, 2):
    state, losses = advance(state, step, data)
    assert all(leaf.devices() == set(devices) for leaf in jax.tree.leaves((state, losses)))
found["in pieces"] = arrays((losses, state.params))

if jax.process_count() > 1:
    try:
        ll.ensemble(train, batch_size=2)(KEYS[:1], data)
    except ValueError as error:
        assert str(error) == "number of members: expected at least one for each of 2 processes, got 1", error
    else:
        raise AssertionError("one member on two processes")


def check_shards(name):
    "Two devices, each with half of the batch: gradients, of feedback too, are summed, as by `jax.grad`."
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices[:2])
    halves = [jax.tree.map(lambda leaf: leaf[i : i + SIZE // 2], (X, Y)) for i in (0, SIZE // 2)]
    rule = make(name)
    state = rule.init(KEYS[0], PARAMS, X)
    # The key of weight noise is the same everywhere, that of noise on units has the number of the device.
    on_units = name.startswith("node_perturbation")

    def grads_of(device, x, y):
        key = jax.random.fold_in(KEYS[1], device) if on_units else KEYS[1]
        _, grads, after = rule.value_and_grad(key, PARAMS, state, x, y)
        return grads, getattr(after, "feedback", ())

    @jax.jit
    def both():
        (first, one), (second, other) = (grads_of(i, *half) for i, half in enumerate(halves))
        grads, moved = jax.tree.map(lambda a, b: a + b, first, second), one
        if name in ("direct_kolen_pollack", "forward_direct_feedback"):  # moved by what comes from the data
            moved = jax.tree.map(lambda a, b, start: a + b - start, one, other, state.feedback)
        over_batch = jax.shard_map(
            lambda x, y: grads_of(jax.lax.axis_index("devices"), x, y),
            mesh=mesh, in_specs=(SPLIT, SPLIT), out_specs=WHOLE,
        )
        return over_batch(X, Y), (grads, moved)

    assert_close(*both(), ulps=4 * roundings(name))


if jax.process_count() == 1:
    # Which device a member is on leaves no trace, and uneven members are put together on one device.
    uneven = ll.ensemble(train, batch_size=2)(KEYS[:5][::-1], data)
    turned = jax.tree.leaves(member(uneven, slice(None, None, -1)))
    assert_same([leaf for leaf in turned if isinstance(leaf, np.ndarray)], found["5 members"])
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(uneven)} == {1}
    learned = "direct_kolen_pollack", "forward_direct_feedback", "weight_mirror"
    for kind in ("feedback_alignment", "node_perturbation_signs", *learned):
        check_shards(kind)
if jax.process_index() == 0:
    named = {f"{name}/{i}": leaf for name, leaves in found.items() for i, leaf in enumerate(leaves)}
    np.savez(sys.argv[1], **named)
"""


# A sum of up to 50 numbers of float32 rounds by 50 eps; node perturbation divides differences of losses
# by sigma = 0.1, which makes that 10 times as much; five updates add up.
ROUNDING = 50 * 10 * 5 * float(np.finfo(np.float32).eps)


agree = partial(np.testing.assert_allclose, rtol=ROUNDING, atol=ROUNDING)


@pytest.fixture(scope="module")
def of_one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Results of one process with 8 devices."""
    path = tmp_path_factory.mktemp("ensembles") / "alone.npz"
    run_alone(ENSEMBLES, path, devices=8)
    with np.load(path) as found:
        return dict(found)


def test_ensembles_agree_on_any_number_of_devices(of_one_process: dict[str, np.ndarray]) -> None:
    found, number = of_one_process, len([name for name in of_one_process if name.startswith("8 members/")])
    assert number > 3
    for i in range(number):
        whole = found[f"8 members/{i}"]
        for some in (1, 2, 4):
            agree(found[f"8 members on {some}/{i}"], whole)
        for name in ("5 members on 4", "5 members"):
            agree(found[f"{name}/{i}"], whole[:5])
        # The same devices: what runs beside changes no bit.
        np.testing.assert_array_equal(found[f"5 members on 1/{i}"], found[f"8 members on 1/{i}"][:5])


@pytest.mark.slow
def test_ensembles_agree_on_two_processes(of_one_process: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "two.npz"
    ends = run_all(ENSEMBLES, path, "many", devices=4, environments=jobs_of(2))
    assert [code for code, _, _ in ends] == [0, 0], ends
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


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one device."""
    out = tmp_path_factory.mktemp("alone") / "out"
    run_alone(PROGRAM, *LONG, "--out", out, devices=1)
    return out


@pytest.mark.slow
def test_killed_processes_go_on_with_other_devices_and_the_first_tells(alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    checkpoints, options = out / "checkpoints" / "planted-gd", (*LONG, "--distributed", "--out", out)
    processes = start_all(PROGRAM, *options, devices=1, environments=jobs_of(2))
    with started(checkpoints, *processes):
        assert min(int(p.name) for p in checkpoints.iterdir() if p.name.isdigit()) < 50
    assert not (out / "results.nc").exists()
    first, second = run_all(PROGRAM, *options, "--resume", devices=2, environments=jobs_of(2))
    assert (first[0], second[0]) == (0, 0), (first, second)
    assert "planted teacher: GD" in first[1] and "20000/20000" in first[2]
    assert second[1] == "" and "20000/20000" not in second[2]
    with xr.open_dataset(out / "results.nc") as a, xr.open_dataset(alone / "results.nc") as b:
        # to rounding, by thousands of updates
        xr.testing.assert_allclose(a, b, rtol=100 * ROUNDING, atol=100 * ROUNDING)
    assert {p.name for p in alone.iterdir()} <= {p.name for p in out.iterdir()}


def test_all_processes_do_what_the_first_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them, one after the other in this one."""
    sent: list[np.ndarray] = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    def both(decide: Callable[[], Any]) -> list[Any]:
        def first(value: np.ndarray) -> np.ndarray:
            sent.append(np.asarray(value))
            return value

        def second(value: np.ndarray) -> np.ndarray:
            assert np.shape(value) == sent[0].shape
            return sent.pop(0)

        found = []
        for index, broadcast in enumerate((first, second)):
            monkeypatch.setattr(jax, "process_index", lambda index=index: index)
            monkeypatch.setattr(processes, "broadcast_one_to_all", broadcast)
            assert processes.is_first() == (index == 0)
            try:
                found.append(processes.decided(decide if index == 0 else pytest.fail))
            except ValueError as error:
                found.append(error)
        return found

    def refuse() -> None:
        raise ValueError("--out: expected another, got one that is rather long")

    assert both(lambda: {"a": [1, None]}) == [{"a": [1, None]}] * 2 and not sent
    told, elsewhere = both(refuse)
    assert type(told) is ValueError and type(elsewhere) is processes.ElsewhereError
    assert str(told) == str(elsewhere)


# --- how processes meet

MEETING = """
import sys
import jax
from experiments import processes
processes.SECONDS_TO_MEET = int(sys.argv[1])
coordinator, number, process = sys.argv[2:] or (None,) * 3
processes.meet("test", processes.Meeting(coordinator, *(n and int(n) for n in (number, process))))
print(processes.decided(lambda: [jax.process_index(), jax.process_count()]), processes.is_first())
"""


@pytest.mark.parametrize("process", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_processes_that_do_not_meet(process: int) -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        taken.close()
        began = time.monotonic()
        ((code, _, errors),) = run_all(MEETING, "3", where, "2", str(process), devices=1)
    assert code == 2 and time.monotonic() - began < 60
    assert f"test: --coordinator: expected 2 processes to connect to {where} within 3 s, got no" in errors


BEGINNING = """
import sys
from experiments import harness
from experiments.birth_death.config import Config
begin = lambda config: harness.begin(config, lambda config: harness.Held(each=()))
sys.exit(harness.command_line("test", Config, begin))
"""


@pytest.mark.slow
def test_first_refuses_for_both(alone: Path, tmp_path: Path) -> None:
    of_seeds = "--seeds: expected at least one for each of 2 processes, got 1"
    in_use: Any = (*LONG, "--out", alone)
    for told, arguments in (
        (of_seeds, ("--seeds", "1", "--out", tmp_path / "out")), ("holds a run already", in_use)
    ):  # fmt: skip
        ends = run_all(BEGINNING, *arguments, "--distributed", devices=1, environments=jobs_of(2))
        assert [code for code, _, _ in ends] == [2, 2]
        assert told in ends[0][2] and told not in ends[1][2]
    assert not (tmp_path / "out").exists()
