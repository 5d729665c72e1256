"""Settings of measurements, and sweeps that vary one field of a setting."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from experiments.settings import Count, Options, Positive, at_least

NETWORKS = ("dense", "convolutional")


@dataclass(frozen=True)
class Setting(Options):
    """Settings of a measurement; a sweep varies one of them."""

    sigma: Positive = 1e-3
    """Standard deviation of the noise, in the units of the weights or of the pre-activations."""
    num_samples: Count = 1
    """Number of gradients that are averaged."""
    width: Count = 32
    """Units per hidden layer; convolutional layers have an eighth as many channels."""
    depth: Count = 1
    """Number of hidden layers."""
    batch_size: Count = 32
    """Examples per gradient."""
    updates: Annotated[int, at_least(0)] = 0
    """Backprop updates of the forward weights before measuring; feedback weights are not changed."""
    network: Literal["dense", "convolutional"] = "dense"
    """Dense layers, or 3 x 3 convolutions with a stride of 2 and a dense output."""

    PREFIX: ClassVar[str] = "setting."

    def check(self) -> None:
        self.expect("network", f"one of {NETWORKS}", self.network in NETWORKS)


class Sweep(NamedTuple):
    """Values of one field of the setting."""

    values: tuple[Any, ...]  # values of the field
    quick: tuple[Any, ...]  # fewer values, for `--quick`
    label: str  # axis label, with units
    scale: Literal["log", "symlog", "names"] = "log"  # axis scale: "log", "symlog" (with 0), or "names"

    def settings(self, name: str, default: Setting, *, quick: bool) -> tuple[Setting, ...]:
        """Returns the default setting with each value of the field `name`."""
        return tuple(replace(default, **{name: value}) for value in (self.quick if quick else self.values))


SWEEPS: dict[str, Sweep] = {
    "sigma": Sweep((1e-4, 1e-3, 1e-2, 1e-1, 1.0), (1e-3, 1e-2, 1e-1), "standard deviation of noise, sigma"),
    "num_samples": Sweep((1, 4, 16), (1, 4), "averaged gradients, K"),
    "width": Sweep((8, 32, 128), (8, 32), "units of the hidden layer, M"),
    "depth": Sweep((1, 2, 3), (1, 2), "number of hidden layers"),
    "batch_size": Sweep((8, 32, 128), (8, 32), "examples per gradient, B"),
    "updates": Sweep(
        (0, 10, 100, 1000),
        (0, 10, 100),
        "backprop updates before measuring; feedback weights are not trained",
        "symlog",
    ),
    "network": Sweep(NETWORKS, NETWORKS, "network", "names"),
}
"""Sweeps by the name of the field they vary."""
