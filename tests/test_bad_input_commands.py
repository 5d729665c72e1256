"""Bad options, files and terminals of all commands: one line, exit code 2, and no folder is claimed."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest

from benchmarks import gradient_quality, throughput, tutorial
from benchmarks.cases import Sizes
from benchmarks.quality.settings import Setting
from experiments import harness, memory, reporting
from experiments.settings import Limits, as_option
from experiments.sweep.config import Config as SweepConfig
from tests.command_line import ROOT, call, call_main

EXPERIMENTS = (
    "birth_death",
    "decorrelation",
    "microlearning",
    "plasticity_transfer",
    "symbolic_discriminator",
)
SWEEP = ("--experiment", "birth_death", "--space", "space.toml")
COMMANDS = {
    **{name: (lambda *a, name=name: call(name, *a)) for name in EXPERIMENTS},
    "sweep": lambda *a: call("sweep", *SWEEP, *a),
    "throughput": lambda *a: call_main(throughput.main, *a),
    "tutorial": lambda *a: call_main(tutorial.main, *a),
    "gradient_quality": lambda *a: call_main(gradient_quality.main, *a),
}


def config_of(name) -> Any:
    if name in EXPERIMENTS:
        return __import__(f"experiments.{name}.config", fromlist=["Config"]).Config
    modules = {"throughput": throughput, "tutorial": tutorial, "gradient_quality": gradient_quality}
    return SweepConfig if name == "sweep" else modules[name].Config


def refused(name, out, *arguments):
    """The single line with which a command refuses its arguments."""
    code, _, errors = COMMANDS[name](*arguments, "--out", out)
    assert code == 2 and not out.exists(), errors
    assert "Traceback" not in errors
    lines = [line for line in errors.strip().splitlines() if not line.startswith(("warning", "left out"))]
    assert len(lines) == 1 and lines[0].startswith(f"{name}: "), errors
    return lines[0].removeprefix(f"{name}: ")


def numeric_options(config):
    """Options that are numbers, with their type and how many are given."""
    for field, hint in get_type_hints(config, include_extras=True).items():
        if field == "PREFIX":
            continue
        inner = [h for h in get_args(hint) if h is not type(None)] if get_args(hint) else []
        if get_origin(hint) is not Annotated and inner and get_origin(hint) is not tuple:
            hint = inner[0]
        times = 1
        if get_origin(hint) is tuple:
            times, hint = (1 if get_args(hint)[-1] is Ellipsis else 2), get_args(hint)[0]
        base = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if base in (int, float):
            yield config.option(field), base, times


NUMBERS = [
    (name, option, base, times)
    for name in COMMANDS
    for config in (config_of(name), *{"throughput": [Sizes], "gradient_quality": [Setting]}.get(name, []))
    for option, base, times in numeric_options(config)
    if option not in ("--processes", "--process")
]


def test_every_command_has_numbers():
    assert {name for name, *_ in NUMBERS} == set(COMMANDS) and len(NUMBERS) > 80
    assert {option for name, option, *_ in NUMBERS if name == "microlearning"} == {
        f"--{option}" for option in (
            "seeds", "seed", "epochs", "batch-size", "hidden", "learning-rate", "drops", "momentum",
            "weight-decay", "sigma", "num-samples", "test-images", "snr-images", "draws",
        )
    }  # fmt: skip


@pytest.mark.parametrize(("name", "option", "base", "times"), NUMBERS, ids=lambda v: str(v))
def test_numbers_out_of_range_are_refused(tmp_path, name, option, base, times):
    bad = ("inf", "nan", "-1", "1e39", "1e-50") if base is float else ("-1", str(2**31), str(10**30))
    for value in bad:
        message = refused(name, tmp_path / "out", option, *[value] * times)
        assert message.startswith(f"{option}: expected ") and message.endswith(f"got {base(value)}")


HUGE = {
    "microlearning": ("--hidden", "--seeds", "--epochs", "--num-samples", "--draws"),
    "birth_death": (
        "--units", "--seeds", "--records", "--mixture-units", "--features", "--test-points", "--batch-size",
    ),
    "decorrelation": ("--seeds",),
    "plasticity_transfer": ("--width", "--seeds", "--subseeds", "--features", "--rule-epochs"),
    "symbolic_discriminator": ("--points", "--seeds", "--configurations", "--epochs"),
    "throughput": ("--seeds", "--sizes.hidden", "--sizes.neurons", "--sizes.batch-size"),
    "tutorial": ("--seeds", "--hidden", "--epochs"),
    "gradient_quality": ("--seeds", "--setting.width", "--setting.depth", "--setting.batch-size"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "option"), [(n, o) for n, options in HUGE.items() for o in options])
def test_sizes_beyond_memory_are_refused(tmp_path, monkeypatch, name, option):
    monkeypatch.setattr(memory, "total_bytes", lambda: 20e9)
    message = refused(name, tmp_path / "out", option, "2000000000")
    assert message.startswith(f"{option}: expected a size that fits into 20 GB of memory, got 2000000000")


def test_defaults_fit_into_memory(monkeypatch, tmp_path):
    """Of a small machine: a run that fits is never refused."""
    monkeypatch.setattr(memory, "total_bytes", lambda: 4e9)
    monkeypatch.setattr(harness, "_claim", lambda config: (_ for _ in ()).throw(ValueError("--out: begun")))
    for name in EXPERIMENTS:
        assert "begun" in call(name, "--out", tmp_path)[2]


def test_the_size_that_needs_most_is_named(monkeypatch):
    monkeypatch.setattr(memory, "total_bytes", lambda: 1000)
    given, defaults = {"a": 100, "b": 20}, {"a": 2, "b": 3}
    with pytest.raises(ValueError, match=r"^--a: expected .* got 100 "):
        memory.check_fits(lambda of: of["a"] * of["b"], given, defaults, lambda name: f"--{name}")
    memory.check_fits(lambda of: 1000, given, defaults, str)


OTHERS = {
    "rate with matched": (
        "microlearning",
        "--learning-rate 0.1",
        "--learning-rate: expected none with --scale",
    ),
    "hidden": ("microlearning", "--hidden 5 0", "--hidden: expected at least 1, got 0"),
    "drops": ("microlearning", "--drops 3 3", "--drops: expected epochs in order, got 3 3"),
    "drops after the end": ("microlearning", "--drops 20", "--drops: expected epochs before the last, --ep"),
    "few widths": (
        "microlearning",
        "--network convolutional --hidden 5",
        "--hidden: expected at least 3 widths with --network convolutional, got 5",
    ),
    "rules twice": (
        "microlearning",
        "--rules backprop backprop",
        "--rules: expected at least one, and each at most once",
    ),
    "batch": ("microlearning", "--batch-size 5000", "--batch-size: expected at most 4000 images, got 5000"),
    "batch of decorrelation": ("decorrelation", "--batch-size 1001", "--batch-size: expected at most 1000"),
    "momentum": ("microlearning", "--momentum 1", "--momentum: expected a number in [0, 1), got 1.0"),
    "cap": ("plasticity_transfer", "--width 10", "--width: expected at least the cap of 50, got 10"),
    "points": (
        "plasticity_transfer",
        "--points 50 9",
        "--points: expected at least a batch of 100, got 50 9",
    ),
    "evaluations": ("plasticity_transfer", "--evaluations 41", "--evaluations: expected at most 40, got 41"),
    "probability": ("plasticity_transfer", "--edge-probability 1.5", "--edge-probability: expected a number"),
    "coordinator": (
        "birth_death",
        "--distributed --coordinator here:99999 --processes 2 --process 0",
        "--coordinator: expected HOST:PORT, got here:99999",
    ),
    "processes": (
        "birth_death",
        "--distributed --coordinator here:9 --processes 0 --process 0",
        "--processes: expected at least 1, got 0",
    ),
    "space": ("sweep", "", "--space: expected a TOML file, got space.toml (No such file"),
    "patience": ("sweep", "--patience 1e10", "--patience: expected a number in (0, 1e+09]"),
    "systems": ("throughput", "--systems", "--systems: expected some of"),
    "pooled": ("gradient_quality", "--pooled 3", "--pooled: expected a divisor of 28"),
    "tutorial's batch": (
        "tutorial",
        "--batch-size 4001",
        "--batch-size: expected at most 4000 images, got 40",
    ),
    **{
        f"data of {name}": (name, "--data nowhere", "--data: expected 'sample' (5,000 images")
        for name in ("microlearning", "decorrelation", "plasticity_transfer", "tutorial")
    },
    **{
        f"folder of {name}": (name, "--data /dev/null/x", "--data: expected 'sample' (5,000 images")
        for name in ("microlearning", "gradient_quality")
    },
}


@pytest.mark.parametrize(("name", "arguments", "message"), OTHERS.values(), ids=OTHERS.keys())
def test_other_options_are_refused(tmp_path, name, arguments, message):
    assert refused(name, tmp_path / "out", *arguments.split()).startswith(message)


@pytest.mark.parametrize("name", ["birth_death", "throughput", "tutorial", "gradient_quality"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, name):
    held = tmp_path / "file"
    held.touch()
    small = {"tutorial": ("--seeds", "1"), "throughput": ("--seeds", "1")}.get(name, ())
    for out in (held, held / "below", Path("/proc/no"), tmp_path / ("x" * 300)):
        code, _, errors = COMMANDS[name](*small, "--out", out)
        assert code == 2 and "--out: expected a folder" in errors and str(out) in errors, errors
        assert "Traceback" not in errors


@pytest.mark.parametrize("name", [*EXPERIMENTS, "sweep"])
def test_help_names_every_option_and_default(name):
    code, printed, _ = COMMANDS[name]("--help")
    assert code == 0
    for field in dataclasses.fields(config_of(name)):
        assert re.search(rf"--(\[?no-\]?)?{field.name.replace('_', '-')}\b", printed), field.name
        named = field.default if isinstance(field.default, tuple) else ()
        assert all(str(each) in printed for each in named)


def test_errors_of_the_library_name_the_option():
    config = config_of("microlearning")(out=Path("x"))
    named = as_option(config, ValueError("num_samples: expected at least 1, got 0"))
    assert named == "--num-samples: expected at least 1, got 0"
    assert (
        as_option(config, ValueError("source: expected a folder, got x"))
        == "--data: expected a folder, got x"
    )
    assert as_option(config, ValueError("x: expected y, got z")) == "x: expected y, got z"
    assert as_option(None, ValueError("sigma: expected y")) == "sigma: expected y"


def test_limits_are_those_of_int32_and_float32():
    for limits, value, message in (
        (Limits(), 2**31, "expected at most 2147483647, got 2147483648"),
        (Limits(3), 2, "expected at least 3, got 2"),
        (Limits(0, 5), 6, "expected at most 5, got 6"),
        (Limits(), float("nan"), "expected a finite number, got nan"),
        (Limits(0), -0.5, "expected a finite number >= 0, got -0.5"),
        (Limits(0, 1, open_at=(True, True)), 1.0, "expected a number in (0, 1), got 1.0"),
        (Limits(), 1e39, "expected a number that float32 can hold, got 1e+39"),
        (Limits(), -1e-39, "expected a number that float32 can hold, got -1e-39"),
    ):
        with pytest.raises(ValueError) as raised:
            limits.check("name", value)
        assert str(raised.value) == f"name: {message}"
    for value in (0, 2**31 - 1, 0.0, 3.4e38, 1.2e-38):
        Limits(0).check("name", value)


# What is not finite


def test_json_has_null_for_what_is_not_finite(tmp_path):
    content = {"a": [1.0, float("nan")], "b": {"c": (float("inf"), "text", None, 3, True)}}
    harness.write_json(tmp_path / "x.json", content)
    read = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert read == {"a": [1.0, None], "b": {"c": [None, "text", None, 3, True]}}


def test_cells_say_how_many_seeds_are_finite():
    nan = float("nan")
    (one, some, none) = reporting.summary_rows(
        "rule",
        {"all": np.array([1.0, 1.0]), "some": np.array([1.0, nan, 1.0]), "none": np.array([nan, np.inf])},
    )
    assert [row["n"] for row in (one, some, none)] == [2, 2, 0]
    assert [row["seeds"] for row in (one, some, none)] == [2, 3, 2]
    assert [reporting.cell(row) for row in (one, some, none)] == ["1 ± 0", "1 ± 0 (2/3)", "-"]


# Terminals, pipes and Ctrl-C, in processes of their own


def start(*command, stdout=subprocess.PIPE, **environment):
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", **environment},
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


PRINTS = """
from experiments import terminal

with terminal.streams():
    print("mean \\xb1 half, \\u03c3\\xb2, \\u011d \\udcff" * 10_000)
"""
COMMAND = """
import sys
from dataclasses import dataclass
from experiments import harness
from experiments.settings import Options

@dataclass(frozen=True)
class Config(Options):
    number: int = 1

def run(config):
    print("many lines" * 100_000)

sys.exit(harness.command_line("test", Config, run))
"""


def test_a_terminal_without_utf_8_gets_letters_spelled():
    process = start("-c", PRINTS, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and errors == b"", errors
    assert out.startswith(b"mean +- half, sigma^2, ? ?mean")


def test_a_closed_pipe_ends_silently():
    with start("-c", COMMAND) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(60) == 141 and errors == b""


def test_no_standard_output_at_all():
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" >&- 2>&-', sys.executable, PRINTS], cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == 0


@pytest.mark.parametrize("seconds", [0.3, 1.0])
def test_ctrl_c_while_modules_load_is_one_line(tmp_path, seconds):
    process = start("-m", "experiments.birth_death", "--out", tmp_path / "out")
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    text = errors.decode()
    assert process.returncode == 130 and "interrupted; " in text and "Traceback" not in text, text


def test_ctrl_c_in_a_run_is_one_line():
    def run(config):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    code, _, errors = call_main(lambda: harness.command_line("sweep", SweepConfig, run), *SWEEP)
    assert code == 130 and errors == "\nsweep: interrupted; the same command with --resume goes on\n"


def test_memory_that_runs_out_is_one_line():
    def run(config):
        raise MemoryError("Unable to allocate 7 TiB")

    code, _, errors = call_main(lambda: harness.command_line("sweep", SweepConfig, run), *SWEEP)
    assert (
        code == 2 and errors == "sweep: expected sizes that fit into memory, got Unable to allocate 7 TiB\n"
    )


def test_faults_of_the_program_are_shown():
    def run(config):
        raise TypeError("unhashable")

    with pytest.raises(TypeError, match="unhashable"):
        call_main(lambda: harness.command_line("sweep", SweepConfig, run), *SWEEP)
