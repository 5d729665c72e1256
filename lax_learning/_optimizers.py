"""Optax optimisers that may use the loss."""

from typing import Any

import optax

from lax_learning._checks import describe


def with_loss_support(optimizer: Any) -> optax.GradientTransformationExtraArgs:
    """Returns the optimiser with an `update` that accepts the loss, and ignores it if it does not need it."""
    if not (callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))):
        raise TypeError(
            f"optimizer: expected an optimizer of optax, such as optax.sgd(0.1), got {describe(optimizer)}"
        )
    if hasattr(optimizer, "gradient_transformation"):  # optax.MultiSteps
        return optax.GradientTransformationExtraArgs(optimizer.init, optimizer.update)
    return optax.with_extra_args_support(optimizer)
