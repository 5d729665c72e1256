"""The k-cap on layers: of their units, the k with the largest values fire."""

from dataclasses import dataclass

from flax import nnx
from jaxtyping import Array

from lax_learning._checks import check_count
from lax_learning.flax.layers import Credited
from lax_learning.plasticity.k_cap import k_cap


@dataclass(frozen=True)
class KCap:
    """The k largest along the last axis fire, the others are 0: an activation, or given to layers.

    As `lax_learning.plasticity.k_cap`. On the pre-activations of a layer, with relu after it, it is the cap
    of the activities: `relu(cap(z)) = cap(relu(z))`.

    Fields:
      k: how many.

    Raises:
      TypeError, ValueError: if k is no positive int, or larger than the layer.

    Example:
      >>> import jax.numpy as jnp
      >>> KCap(2)(jnp.array([0.5, 2.0, 0.0, 1.0])).tolist()
      [0.0, 2.0, 0.0, 1.0]

    References:
      Papadimitriou et al., Brain computation by assemblies of neurons,
      https://doi.org/10.1073/pnas.2001893117, 2020.
    """

    k: int

    def __post_init__(self) -> None:
        check_count("k", self.k)

    def __call__(self, x: Array) -> Array:
        return k_cap(x, self.k)

    def give(self, layer: Credited, rngs: nnx.Rngs | None) -> None:
        if self.k > layer.kernel.shape[-1]:
            raise ValueError(
                f"k: expected at most {layer.kernel.shape[-1]}, the layer's outputs, got {self.k}"
            )
        layer.cap = self
