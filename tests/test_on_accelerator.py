"""The script for an accelerator: it refuses a CPU, and a dry run does everything there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tutorial import COMPARED

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "on_accelerator.sh"


def on_accelerator(out: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    variables = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHON": sys.executable,
        "OUT": str(out),
        **environment,
    }
    return subprocess.run([SCRIPT], env=variables, capture_output=True, text=True)


def test_a_cpu_is_refused(tmp_path: Path) -> None:
    ended = on_accelerator(tmp_path, DRY_RUN="")
    assert ended.returncode == 1
    assert "expected an accelerator that JAX sees, got cpu" in ended.stderr


@pytest.mark.slow
def test_dry_run(tmp_path: Path) -> None:
    for module in ("flax", "equinox", "haiku"):
        pytest.importorskip(module)
    ended = on_accelerator(tmp_path, DRY_RUN="1")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for part in ("tutorial", "throughput", "zoo"):
        assert f"{part}: exit code 0" in ended.stdout
    tutorial = json.loads((tmp_path / "tutorial" / "tutorial.json").read_text())
    assert [row["rule"] for row in tutorial["rows"]] == list(COMPARED)
    table = json.loads((tmp_path / "throughput" / "throughput.json").read_text())
    assert all(row["ours_s"] > 0 for row in table["rows"]) and len(table["rows"]) >= 12
    assert "1 passed" in (tmp_path / "zoo.log").read_text()
