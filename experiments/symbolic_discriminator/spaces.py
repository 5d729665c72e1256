"""Points, libraries and configurations for the studies of critics, and their search spaces."""

import operator
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.symbolic_discriminator.config import Config
from lax_learning import symbolic

Configuration = dict[str, Any]
Space = dict[str, Sequence[Any]]
PointsName = Literal["normal", "grid"]
_FILES = sorted((Path(__file__).parent / "libraries").glob("*.lib"))
LIBRARIES = {path.stem.split("_", 1)[1]: path for path in _FILES}

# Static fields, which the program depends on; learning rate, penalty and decay are traced.
STATIC = ("objective", "library", "extension", "latents", "layers", "width", "iterations")

# Input of a critic in addition to the values of a curve, and how it is presented.
EXTENSIONS: dict[str, tuple[Any, Any]] = {
    "none": ((), "stack"),
    "input_stacked": (("input",), "stack"),
    "input_embedded": (("input",), "embed"),
    "gradient_stacked": (("gradient",), "stack"),
    "gradient_embedded": (("gradient",), "embed"),
}

SMALL: Configuration = {
    "objective": "bce", "library": "quadratic", "extension": "none", "latents": 3, "layers": 2, "width": 64,
    "iterations": 5, "learning_rate": 1e-3, "penalty": 1e-5, "decay": 1e-7,
}  # fmt: skip

RATES = {
    "objective": ("wgan", "bce"),
    "learning_rate": (1e-5, 1e-4, 1e-3, 1e-2),
    "penalty": (0.0, 1e-6, 1e-5, 1e-4, 1e-3),
}
SPACES: dict[str, Space] = {
    "sample": {**RATES, "latents": (1, 5), "layers": (2, 4), "iterations": (1, 5)},
    "study": {**RATES, "latents": (1, 3, 10), "layers": (2, 4, 8), "iterations": (1, 3, 10)},
    "seed": {
        **RATES, "latents": (1, 3, 5, 10), "layers": (2, 4, 6, 8), "width": (64, 128, 256, 512),
        "iterations": (1, 3, 5, 10),
    },
}  # fmt: skip
NARROW = {**RATES, "learning_rate": (1e-5, 1e-4, 1e-3), "penalty": (1e-6, 1e-5, 1e-4)}
# Search spaces to compare extensions with, and numbers of configurations; {} is the critic `SMALL` itself.
EXTENSION_SPACES: dict[str, tuple[Space, int]] = {
    "sample": ({}, 1),
    "study": (NARROW, 12),
    "seed": ({
        **NARROW, "latents": (1, 3, 5), "layers": (2, 4, 8, 16), "width": (64, 128, 256, 512),
        "iterations": (1, 3, 5),
    }, 128),
}  # fmt: skip


def points(kind: PointsName, number: int, seed: int) -> Float[Array, "points 1"]:
    """Draws points from N(0, 1), the same for a given seed, or makes a grid over [-3, 3)."""
    if kind == "grid":
        return jnp.linspace(-3, 3, number, endpoint=False)[:, None]
    return jax.random.normal(jax.random.fold_in(jax.random.key(seed), 1), (number, 1))


def library(name: str) -> symbolic.Library:
    """Loads a library from the folder `libraries`."""
    return symbolic.load_library(LIBRARIES[name])


def name_of(static: Configuration) -> str:
    """Returns a name for a static shape."""
    form = "{objective}-{library}-{extension}-{layers}x{width}-{latents}_latents-{iterations}_iterations"
    return form.format_map(static)


def drawn(config: Config, space: Space, number: int, stream: int) -> list[Configuration]:
    """Draws configurations with replacement, each field independently and uniformly from its values."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), stream), max(1, len(space)))
    places = {
        name: np.asarray(jax.random.randint(key, (number,), 0, len(values)))
        for key, (name, values) in zip(keys, space.items(), strict=False)
    }
    return [{**SMALL, **{name: space[name][of[i]] for name, of in places.items()}} for i in range(number)]


def depth(config: Config) -> list[Configuration]:
    """The notebook's v0 to v7, each with a change to the previous one."""
    first = {"objective": "wgan", "learning_rate": 1e-5, "penalty": 1e-4}
    changes = (
        first, {"layers": 4}, {"layers": 8}, {"penalty": 1e-5}, {"learning_rate": 1e-4}, {"penalty": 1e-6},
        {"width": 256}, {"layers": 16, "width": 64},
    )  # fmt: skip
    return list(accumulate(changes, operator.or_, initial=SMALL))[1:]


def extensions(config: Config) -> list[Configuration]:
    """The same critics, one or several random ones, with every extension."""
    chosen = drawn(config, *EXTENSION_SPACES[config.preset], 3)
    return [{**configuration, "extension": name} for name in EXTENSIONS for configuration in chosen]


# The notebook's first critic has the objective "wgan"; "bce" was published later.
FIRST = {**SMALL, "latents": 5, "layers": 6, "width": 128, "learning_rate": 1e-4, "decay": 1e-4}
CONFIGURATIONS: dict[str, Callable[[Config], list[Configuration]]] = {
    "accuracy": lambda config: [{**FIRST, "objective": objective} for objective in ("wgan", "bce")],
    "libraries": lambda config: [{**SMALL, "library": name, "latents": 5} for name in LIBRARIES],
    "hyper_parameters": lambda config: drawn(config, SPACES[config.preset], config.chosen.configurations, 2),
    "depth": depth,
    "extensions": extensions,
}
