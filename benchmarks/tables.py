"""Tables of benchmarks as files: date, machine, load and versions above them."""

import datetime
import os
import platform
from pathlib import Path

from experiments import harness


def write_table(out: Path, text: str) -> None:
    """Writes table.md into a folder; the load is that of the moment, at the end of the benchmark."""
    load = f"load {os.getloadavg()[0]:.1f}"
    machine = f"{platform.platform()}, {os.cpu_count()} cores, {load} at the end"
    versions = ", ".join(f"{name} {version}" for name, version in harness.versions().items())
    head = f"{datetime.date.today()}; {machine}; {versions}"
    harness.write_whole(out / "table.md", lambda path: path.write_text(f"{head}\n\n{text}\n"))
