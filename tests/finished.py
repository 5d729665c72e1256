"""Finished runs: units, long names, figures that can be drawn again, params."""

from fnmatch import fnmatchcase
from pathlib import Path

from experiments import plot
from experiments.finished import SHARED_VARIABLES, read_run
from tests.command_line import call_main


def check_names(out: Path) -> None:
    """Every variable and axis has units and a long name that was written for it."""
    run = read_run(out)
    known = (*getattr(run.report, "VARIABLES"), *SHARED_VARIABLES)  # noqa: B009
    assert set(run.results.sizes) <= set(run.results.coords)
    for name, variable in run.results.variables.items():
        assert {"units", "long_name"} <= set(variable.attrs) and variable.attrs["long_name"], name
        assert any(fnmatchcase(str(name), pattern) for pattern in known), name


def check_redrawn(out: Path) -> None:
    """The figures come out of the results once more as they were."""
    before = {path: path.read_bytes() for path in out.glob("*.png")}
    for path in before:
        path.unlink()
    code, printed, errors = call_main(plot.main, out)
    assert code == 0 and set(printed.split()) == set(map(str, before)), errors
    assert {path: path.read_bytes() for path in out.glob("*.png")} == before
