"""The points at which all curves of a run are sampled, and the libraries of formulas."""

from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lax_learning import symbolic

PointsName = Literal["normal", "grid"]
LIBRARIES = {
    path.stem.split("_", 1)[1]: path for path in sorted((Path(__file__).parent / "libraries").glob("*.lib"))
}


def points(kind: PointsName, number: int, seed: int) -> Float[Array, "points 1"]:
    """Draws points from N(0, 1), the same for a seed, or makes a grid over -3 to 3 without its end."""
    if kind == "grid":
        return jnp.linspace(-3, 3, number, endpoint=False)[:, None]
    return jax.random.normal(jax.random.fold_in(jax.random.key(seed), 1), (number, 1))


def library(name: str) -> symbolic.Library:
    """Loads a library from the folder `libraries`, whose files are in the order of their size."""
    return symbolic.load_library(LIBRARIES[name])
