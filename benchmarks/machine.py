"""Date, machine and versions, recorded with every result."""

import datetime
import os
import platform
from typing import Any, cast

import jax
import xarray as xr

from experiments import harness


def describe_machine() -> dict[str, Any]:
    """Returns system, processor, cores and devices of this machine."""
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind} ({jax.default_backend()})"
    system, processor = platform.platform(), platform.machine()
    return {"system": system, "processor": processor, "cores": os.cpu_count(), "device": device}


def now() -> str:
    """Returns date and time, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def head() -> dict[str, Any]:
    """Returns date, machine and versions, the first entries of a result file."""
    return {"date": now(), "machine": describe_machine(), "versions": harness.versions()}


def load() -> float | None:
    """Returns the load average of the last minute; None where the system does not report it."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def run_with_table(experiment: harness.Experiment, config: Any) -> xr.Dataset:
    """Runs an experiment, and writes table.md beside its results, headed by date, machine and versions."""
    results = cast(xr.Dataset, experiment.run(config))
    busy = load()
    machine = f"{platform.platform()}, {os.cpu_count()} cores"
    machine += "" if busy is None else f", load {busy:.1f} at the end"
    versions = ", ".join(f"{name} {version}" for name, version in harness.versions().items())
    table = experiment.report.table(experiment.report.rows(harness.in_float64(results)))
    text = f"{datetime.date.today()}; {machine}; {versions}\n\n{table}\n"
    harness.write_whole(config.out / "table.md", lambda path: path.write_text(text))
    return results
