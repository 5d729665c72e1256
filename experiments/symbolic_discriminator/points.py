"""The points at which all curves of a run are sampled, and the libraries of formulas."""

from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lax_learning import symbolic

PointsName = Literal["normal", "grid"]


def points(kind: PointsName, number: int, seed: int) -> Float[Array, "points 1"]:
    """Draws from N(0, 1), the same for a seed, or a grid over -3 to 3 without its end."""
    if kind == "grid":
        return jnp.linspace(-3, 3, number, endpoint=False)[:, None]
    return jax.random.normal(jax.random.fold_in(jax.random.key(seed), 1), (number, 1))


LIBRARIES = {
    path.stem.split("_", 1)[1]: path for path in sorted((Path(__file__).parent / "libraries").glob("*.lib"))
}


def library(name: str) -> symbolic.Library:
    """A library that stands in the folder `libraries`; the files are in the order of their size."""
    return symbolic.load_library(LIBRARIES[name])
