"""Swaps the layers of an existing NNX model for layers that a rule has been given to."""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from flax import nnx

from lax_learning.flax.layers import Conv, Credited, LayerRule, Linear

Model = TypeVar("Model")
Path = tuple[Any, ...]

_KINDS: dict[type, type[Credited]] = {nnx.Linear: Linear, nnx.Conv: Conv}


def convert(
    model: Model, rule: LayerRule, where: str | Any | None = None, *, rngs: nnx.Rngs | None = None
) -> Model:
    """A copy of a model, with a rule given to its layers; its outputs are the same (but for `KCap`).

    Only `nnx.Linear` and `nnx.Conv` themselves can be swapped. Convert again to give another rule: feedback,
    taps, decorrelation and caps go together, of two feedback rules the last one holds.

    Args:
      model: an `nnx.Module`; it is left as it is.
      rule: what to give, for example `FeedbackAlignment()`.
      where: which layers: a pattern such as "encoder/*" for their paths, joined by "/", or an NNX filter,
        such as `nnx.Conv` or a function `(path, layer) -> bool`; None for all that can be swapped. A layer is
        a module with parameters of its own.
      rngs: where feedback weights are drawn from, the stream `feedback` or else the default.

    Returns:
      The copy.

    Raises:
      ValueError: if `where` matches no layer, or one that the rule cannot serve, or if `rngs` is missing.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lax_learning.flax import FeedbackAlignment
      >>> rngs = nnx.Rngs(0, feedback=1)
      >>> model = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), jax.nn.relu, nnx.Linear(4, 2, rngs=rngs))
      >>> aligned = convert(model, FeedbackAlignment(), where="layers/2", rngs=rngs)
      >>> bool((aligned(jnp.ones((5, 3))) == model(jnp.ones((5, 3)))).all())
      True
    """
    model = nnx.clone(model, graph=True)
    layers = {path: layer for path, layer in iter_modules(model) if _has_parameters(layer)}
    swapped: dict[Path, Credited] = {}
    for path in _chosen(layers, where):
        layer = _credited(layers[path])
        try:
            rule.give(layer, rngs)
        except ValueError as error:
            raise ValueError(f"{_name(path) or 'model'}: {error}") from error
        swapped[path] = layer
    return nnx.recursive_map(lambda path, node: swapped.get(path, node), model, graph=True)


def iter_modules(model: Any) -> list[tuple[Path, Any]]:
    """Paths and modules, a shared one once."""
    return list(nnx.iter_modules(model, graph=True))


def _has_parameters(module: Any) -> bool:
    return any(isinstance(value, nnx.Param) for value in vars(module).values())


def _chosen(layers: dict[Path, Any], where: Any) -> list[Path]:
    if where is None:
        chosen = [path for path, layer in layers.items() if _can_be_swapped(layer)]
    else:
        matches = _predicate(where)
        chosen = [path for path, layer in layers.items() if matches(path, layer)]
    there = ", ".join(f"{_name(path)!r} ({type(layer).__name__})" for path, layer in layers.items())
    if not chosen:
        raise ValueError(
            f"where: expected a match among the layers {there or '(none)'}, got none for {where!r}"
        )
    for path in chosen:
        if not _can_be_swapped(layers[path]):
            raise ValueError(
                f"where: expected layers of the kinds {[kind.__name__ for kind in _KINDS]} alone, got "
                f"{_name(path)!r} ({type(layers[path]).__name__}) for {where!r}, of the layers {there}"
            )
    return chosen


def _predicate(where: Any) -> Callable[[Path, Any], bool]:
    if isinstance(where, str):
        return lambda path, layer: fnmatchcase(_name(path), where)
    return nnx.filterlib.to_predicate(where)


def _can_be_swapped(layer: Any) -> bool:
    return type(layer) in _KINDS or isinstance(layer, Credited)


def _credited(layer: Any) -> Credited:
    """The layer under its new class, with the very same variables."""
    if isinstance(layer, Credited):
        return layer
    new = object.__new__(_KINDS[type(layer)])
    vars(new).update(vars(layer))
    return new


def _name(path: Path) -> str:
    return "/".join(map(str, path))
