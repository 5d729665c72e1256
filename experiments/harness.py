"""Experiments: parts that run one after another into a folder, and the command line around them.

Finished parts are written whole or not at all, unfinished ones are checkpointed, so that a run killed at any
moment can be resumed. Of many processes the first prints and writes; all of them checkpoint what they hold.
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
from experiments.finished import Report, Results, in_float64, publish, versions  # noqa: F401 (for other programs too)
from experiments.folders import (  # noqa: F401 (for other programs too)
    FolderError,
    claims,
    make_folder,
    open_folder,
    read_dataset,
    without_nan,
    write_dataset,
    write_json,
    write_whole,
)
from experiments.settings import Settings, as_option, defaults_of, parse
from experiments.xla import keep_compiled_programs, use_all_cores

EXIT_REFUSED, EXIT_INTERRUPTED, EXIT_PIPE_CLOSED = 2, 130, 141


class Held(NamedTuple):
    """The least that a run holds, as shapes.

    Fields:
      each: of every seed.
      once: beside the seeds.
      members: how many there are for each seed.
    """

    each: Any
    once: Any = ()
    members: int = 1


class Experiment(NamedTuple):
    """An experiment whose parts run one after another, each with all its seeds.

    Fields:
      name: of the package.
      config: class of its settings.
      report: its module of tables and figures.
      kind: what a part is, such as "rule"; parts lie in a folder of that name.
      unit: of the progress.
      parts: `config -> by how much each part moves the progress on`, by name.
      load: `config -> data` of all parts; it raises a ValueError for settings that do not fit them.
      held: `(config, data) -> Held`.
      run_part: `(name, config, data, folder for checkpoints, progress) -> results`.
      merge: `(config, results of all parts) -> results`.
      compile_quickly: as of `use_all_cores`.
    """

    name: str
    config: Callable[..., Any]
    report: Report
    kind: str
    unit: str
    parts: Callable[[Any], Mapping[str, int]]
    load: Callable[[Any], Any]
    held: Callable[[Any, Any], Held]
    run_part: Callable[[str, Any, Any, Path, tqdm], xr.Dataset]
    merge: Callable[[Any, list[xr.Dataset]], Results]
    compile_quickly: Callable[[Any], bool] = lambda config: False

    def run(self, config: Any) -> Results:
        """Runs all parts into `config.out` and returns their results."""
        use_all_cores(compile_quickly=self.compile_quickly(config))
        data = self.load(config)
        begin(config, lambda config: self.held(config, data))
        parts = self.parts(config)
        found = run_parts(
            config.out,
            self.kind,
            list(parts),
            lambda name, folder, progress: self.run_part(name, config, data, folder, progress),
            steps=list(parts.values()),
            unit=self.unit,
        )
        results = self.merge(config, found)
        publish(config.out, self.name, config.deciding(), results, self.report)
        return results

    def main(self) -> int:
        """The command line."""
        return command_line(self.name, self.config, self.run)


def joined(parts: list[xr.Dataset], axis: str, names: Sequence[str]) -> xr.Dataset:
    """Returns the results of all parts in one dataset, in the order of `names` along an axis."""
    return xr.merge(parts, join="outer", compat="no_conflicts").sel({axis: list(names)})


def begin(config: Settings, held: Callable[[Any], Held]) -> None:
    """Claims the folder of an experiment, for all processes.

    Args:
      config: of the experiment.
      held: `config -> what a run holds`.

    Raises:
      ValueError: as `open_folder` does, if there are fewer seeds than processes, or if the run does not fit
        into memory.
    """
    defaults = defaults_of(config)
    sizes = {
        name: value
        for name, value in vars(config).items()
        if name in defaults and _is_size(value) and value != defaults[name]
    }

    def needed(sizes: Mapping[str, Any]) -> int:
        of = replace(config, **sizes)
        found = held(of)
        members = of.deciding()["seeds"] * found.members
        return members * memory.bytes_of(found.each) + memory.bytes_of(found.once)

    memory.check_fits(needed, sizes or {"seeds": config.deciding()["seeds"]}, defaults, config.option)
    processes.decided(lambda: _claim(config))


def _is_size(value: Any) -> bool:
    return type(value) is int or (isinstance(value, tuple) and all(type(each) is int for each in value))


def _claim(config: Settings) -> None:
    deciding = config.deciding()
    if deciding["seeds"] < jax.process_count():
        raise ValueError(
            f"--seeds: expected at least one for each of {jax.process_count()} processes, "
            f"got {deciding['seeds']}"
        )
    open_folder(config.out, deciding, resume=config.resume)


def run_parts(
    out: Path,
    kind: str,
    names: Sequence[str],
    run_part: Callable[[str, Path, tqdm], xr.Dataset],
    *,
    steps: Sequence[int],
    unit: str,
) -> list[xr.Dataset]:
    """Runs the parts of an experiment one after another; those that are finished are read.

    Args:
      out: the experiment's folder, claimed by `open_folder`.
      kind: what a part is: "rule", "model".
      names: of the parts.
      run_part: `(name, folder for checkpoints, progress) -> results`.
      steps: by how much each part moves the progress on.
      unit: of these steps.
    """
    finished, unfinished = out / f"{kind}s", out / "checkpoints"
    paths = [finished / f"{folders.file_name(name)}.nc" for name in names]
    is_done = processes.decided(lambda: [path.exists() for path in paths])
    keep_compiled_programs(unfinished / "compiled")
    parts: list[xr.Dataset] = []
    with tqdm(total=sum(steps), unit=unit, smoothing=0.05, disable=not processes.is_first()) as progress:
        for name, path, cost, done in zip(names, paths, steps, is_done, strict=True):
            if done:
                progress.update(cost)
                parts.append(read_dataset(path))
                continue
            parts.append(run_part(name, unfinished / path.stem, progress))
            if processes.is_first():
                finished.mkdir(exist_ok=True)
                write_dataset(path, parts[-1])
                parts[-1] = read_dataset(path)
                shutil.rmtree(unfinished / path.stem, ignore_errors=True)
    return parts


def command_line(
    name: str,
    config: Callable[..., Any],
    run: Callable[[Any], object],
    *,
    package: str = "experiments",
    stopped: str = "the same command with --resume goes on",
) -> int:
    """Runs a program as its command line says; the exit code of the process.

    A mistake in the options, the files or the sizes that they name ends with one line and exit code 2, Ctrl-C
    with 130, and a closed pipe (`... | head -1`) silently with 141, as in other programs.
    """
    given = None
    with terminal.streams(), terminal.interruptible():
        try:
            given = parse(config, f"python -m {package}.{name}")
            if isinstance(given, Settings) and given.meeting is not None:
                processes.meet(name, given.meeting)
            with claims():
                run(given)
            _flush()
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
                raise  # of the program, and not of what it was given
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


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
