"""Experiments: parts that run one after another and are saved in a folder, and a command line.

Finished parts are written atomically and unfinished ones are checkpointed, so that a run killed at any moment
can be resumed. With several processes, the first one prints and writes; all of them write checkpoints.
"""

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import xarray as xr
from tqdm import tqdm

from experiments import folders, memory, processes, terminal
from experiments.finished import Report, Results, in_float64, publish, versions  # noqa: F401 (re-exported)
from experiments.folders import make_folder, open_folder, read_dataset, write_json, write_whole  # noqa: F401
from experiments.settings import Settings, as_option, defaults_of, parse
from experiments.xla import keep_compiled_programs, use_all_cores

EXIT_REFUSED, EXIT_INTERRUPTED, EXIT_PIPE_CLOSED = 2, 130, 141


class Held(NamedTuple):
    """Lower bound on the memory of a run, as shapes of arrays."""

    each: Any  # arrays of each member
    once: Any = ()  # arrays that exist once
    members: int = 1  # ensemble members per seed


class Experiment(NamedTuple):
    """An experiment whose parts run one after another, each for all seeds."""

    name: str  # name of the package
    config: Callable[..., Any]  # class of the settings
    report: Report  # module for tables and figures
    kind: str  # kind of its parts, such as "rule"; finished parts are saved in the folder "rules"
    unit: str  # unit of the progress bar
    parts: Callable[[Any], Mapping[str, int]]  # config -> costs of all parts, in units of the progress bar
    held: Callable[[Any, Any], Held]  # (config, data) -> lower bound on the memory
    run_part: Callable[[str, Any, Any, Path, tqdm], xr.Dataset]  # name, config, data, checkpoints, progress
    merge: Callable[[Any, list[xr.Dataset]], Results]  # (config, results of all parts) -> results
    # config -> data shared by all parts; raises ValueError if the settings do not fit the data
    load: Callable[[Any], Any] = lambda config: None
    compile_quickly: Callable[[Any], bool] = lambda config: False  # see `use_all_cores`
    shared: bool = False  # whether several processes may work on one run, such as workers of a sweep

    def run(self, config: Any) -> Results:
        """Runs all unfinished parts, reads the finished ones, and writes and returns the results."""
        use_all_cores(compile_quickly=self.compile_quickly(config))
        data = self.load(config)
        begin(config, lambda config: self.held(config, data), self.shared)
        unfinished, found = config.out / "checkpoints", []
        keep_compiled_programs(unfinished / "compiled")
        costs = self.parts(config)
        options = {"unit": self.unit, "smoothing": 0.05, "disable": not processes.is_first()}
        with tqdm(total=sum(costs.values()), **options) as progress:
            for name, cost in costs.items():
                path = config.out / f"{self.kind}s" / f"{folders.file_name(name)}.nc"
                if processes.decided(path.exists):
                    progress.update(cost)
                    found.append(read_dataset(path))
                    continue
                found.append(self.run_part(name, config, data, unfinished / path.stem, progress))
                if processes.is_first():
                    with folders.written(config.out):
                        path.parent.mkdir(exist_ok=True)
                        folders.write_dataset(path, found[-1])
                    found[-1] = read_dataset(path)
                    shutil.rmtree(unfinished / path.stem, ignore_errors=True)
        results = self.merge(config, found)
        with folders.written(config.out):
            publish(config.out, self.name, config.deciding(), results, self.report)
        return results

    def main(self) -> int:
        """Runs the command line and returns its exit code."""
        return command_line(self.name, self.config, self.run)


def joined(parts: list[xr.Dataset], axis: str, names: Sequence[str]) -> xr.Dataset:
    """Merges the results of all parts into one dataset, in the order of `names` along an axis."""
    return xr.merge(parts, join="outer", compat="no_conflicts").sel({axis: list(names)})


def begin(config: Any, held: Callable[[Any], Held], shared: bool = False) -> None:
    """Claims the folder of an experiment, for all processes; raises ValueError if it needs too much memory.

    `held` and `shared` are those of the `Experiment`.
    """
    defaults = defaults_of(config)
    changed = {name: value for name, value in vars(config).items() if value != defaults.get(name, value)}
    entries = {name: v if isinstance(v, tuple) else (v,) for name, v in changed.items()}
    sizes = {name: changed[name] for name, of in entries.items() if all(type(each) is int for each in of)}

    def needed(sizes: Mapping[str, Any]) -> int:
        of = replace(config, **sizes)
        found = held(of)
        members = of.deciding()["seeds"] * found.members
        return members * memory.bytes_of(found.each) + memory.bytes_of(found.once)

    memory.check_fits(needed, sizes or {"seeds": config.deciding()["seeds"]}, defaults, config.option)
    processes.decided(lambda: _claim(config, shared))


def _claim(config: Any, shared: bool) -> None:
    deciding, least = config.deciding(), jax.process_count()
    if deciding["seeds"] < least:
        expected = f"at least one for each of {least} processes"
        raise ValueError(f"--seeds: expected {expected}, got {deciding['seeds']}")
    open_folder(config.out, deciding, resume=config.resume, shared=shared)


def command_line(
    name: str,
    config: Callable[..., Any],
    run: Callable[[Any], object],
    *,
    package: str = "experiments",
    stopped: str = "run the same command with --resume to continue",
) -> int:
    """Parses the command line, runs the program, and returns the exit code of the process.

    Invalid options, unusable files and sizes that do not fit into memory print one line and exit with 2.
    Ctrl-C exits with 130, and a closed pipe (`... | head -1`) exits silently with 141, as usual.
    """
    given = None
    with terminal.streams(), terminal.interruptible():
        try:
            given = parse(config, f"python -m {package}.{name}")
            if isinstance(given, Settings) and given.meeting is not None:
                processes.meet(name, given.meeting)
            with folders.claims():
                run(given)
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            return 0
        except processes.ElsewhereError:
            return EXIT_REFUSED
        except BrokenPipeError:
            return EXIT_PIPE_CLOSED
        except KeyboardInterrupt:
            return _refuse("\n" + name, f"interrupted; {stopped}", EXIT_INTERRUPTED)
        except (ValueError, TypeError, OSError, ImportError) as error:
            message = as_option(given, error)
            if isinstance(error, TypeError) and message == str(error):
                raise  # an error in the program, not in its input
            return _refuse(name, message, EXIT_REFUSED)
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not memory.out_of_memory(error):
                raise
            reason = str(error).splitlines()[0] if str(error) else "MemoryError"
            return _refuse(name, f"expected sizes that fit into memory, got {reason}", EXIT_REFUSED)


def _refuse(name: str, message: str, code: int) -> int:
    with suppress(OSError):
        print(f"{name}: {message}", file=sys.stderr, flush=True)
    return code
