"""Checks that a sweep can run at all: every program that its space asks for is made first."""

from collections.abc import Mapping
from typing import Any

import jax

from experiments import memory
from experiments.settings import defaults_of
from experiments.sweep.config import Config
from experiments.sweep.space import Space
from experiments.sweeping import Sweepable


def check_space(config: Config, space: Space, sweepable: Sweepable) -> None:
    """Makes the programs of all choices and ends of ranges, and shapes of what the largest of them hold.

    Raises:
      ValueError: names the hyper-parameter that cannot run, as the space has it, or the largest that does not
        fit into memory.
    """
    largest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for static in space.corners(sweepable.static):
        try:
            _made(sweepable, static)
        except ValueError as error:
            if not memory.is_about_arrays(error):  # which are named by their size below
                raise
        texts = tuple(value for value in static.values() if isinstance(value, str))
        so_far = largest.setdefault(texts, static)
        largest[texts] = {n: v if isinstance(v, str) else max(v, so_far[n]) for n, v in static.items()}
    for static in largest.values():
        _check_fits(config, sweepable, static)


def _made(sweepable: Sweepable, static: Mapping[str, Any]) -> Any:
    try:
        return sweepable.make(static)
    except (ValueError, OSError, ImportError) as error:
        raise ValueError(f"--space: {in_space(str(error), sweepable)}") from None


def in_space(message: str, sweepable: Sweepable) -> str:
    """A message about an option or an argument, by the hyper-parameter of the space that it comes from."""
    name, colon, rest = message.partition(": ")
    name = name.removeprefix("--").replace("-", "_")
    known = {**dict.fromkeys(sweepable.static), **dict.fromkeys(sweepable.traced)}
    names = {**{name: name for name in known}, "source": "data", "rule_epochs": "epochs"}
    return f"{names[name]}: {rest}" if colon and names.get(name) in known else message


def sizes_of(config: Config, static: Mapping[str, Any]) -> dict[str, int]:
    """The numbers that decide how much memory a sweep takes."""
    numbers = {name: value for name, value in static.items() if not isinstance(value, str)}
    return {**numbers, "--seeds": config.seeds, "--batch": min(config.batch, config.trials)}


def _check_fits(config: Config, sweepable: Sweepable, static: Mapping[str, Any]) -> None:
    traced = dict.fromkeys(sweepable.traced, jax.ShapeDtypeStruct((), "float32"))
    options = defaults_of(Config)

    def needed(sizes: Mapping[str, int]) -> int:
        program = _made(sweepable, {**static, **{n: v for n, v in sizes.items() if n in static}})
        carry = jax.eval_shape(program.init, jax.random.key(0), traced, program.shared)
        return sizes["--seeds"] * sizes["--batch"] * memory.bytes_of(carry)

    memory.check_fits(
        needed,
        sizes_of(config, static),
        {**sweepable.defaults(), "--seeds": options["seeds"], "--batch": options["batch"]},
        lambda name: name if name.startswith("--") else f"--space: {name}",
    )
