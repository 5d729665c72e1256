"""Models: any function of parameters and a batch."""

import fnmatch
import re
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr
from jaxtyping import Array, PyTree

from lax_learning._arrays import as_arrays
from lax_learning._checks import check_callable, check_flag, check_instance, describe
from lax_learning.types import Key, Params, Where


def _no_init(key: Key) -> Params:
    raise TypeError("init: expected a model with an initialiser, Model(apply, init), got one without")


@dataclass(frozen=True)
class Model:
    """A function of parameters and a batch, written with any JAX library.

    `output = apply(params, x)`

    Args:
      apply: `(params, x) -> output`. `params` is any pytree; `x` and `output` are any pytrees of arrays with
        a leading axis of examples. For example, `x` may be tokens and a mask, or images and dropout keys.
      init: `key -> params`, for example `lambda key: module.init(key, x)`; rules do not need it.
      has_aux: whether `apply` returns `(output, aux)`, as in `jax.value_and_grad`; aux may contain new
        running statistics.
      trainable: selection of the trained leaves of params: a glob on their paths, such as `params/*`, a
        function `path -> bool`, or None for all. Rules treat the others as constants with zero gradients.

    Example:
      >>> import lax_learning as ll
      >>> model = ll.Model(lambda params, x: jnp.tanh(x @ params["w"]))
      >>> model.apply({"w": jnp.ones((3, 2))}, jnp.ones((5, 3))).shape
      (5, 2)
    """

    apply: Callable[[Params, Any], Any]
    init: Callable[[Key], Params] = _no_init
    has_aux: bool = False
    trainable: Where = None

    def __post_init__(self) -> None:
        check_callable("apply", self.apply, "a function (params, x) -> output", num_arguments=2)
        check_callable("init", self.init, "a function key -> params", num_arguments=1)
        check_flag("has_aux", self.has_aux)
        check_where("trainable", self.trainable)

    def __call__(self, params: Params, x: Any) -> tuple[Any, Any]:
        """Returns `(output, aux)`; aux is None for a model without one."""
        try:
            result = self.apply(params, x)
        except jax.errors.JAXTypeError:  # already names the cause, such as `if` on a traced value
            raise
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            if _SAYS_WHAT_IS_WRONG.match(str(error)):
                raise
            raise _misfit(error, params, x) from error
        if not self.has_aux:
            return result, None
        if not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(
                f"apply: expected a pair (output, aux) because of has_aux=True, got {describe(result)}"
            )
        return result


_SAYS_WHAT_IS_WRONG = re.compile(r"\S+: expected .*, got ", re.DOTALL)


def _misfit(error: Exception, params: Params, x: Any) -> ValueError:
    """Returns an error for `apply` that lists its arguments and the line of the user's code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames[1:] if "/jax/" not in f.filename and "/site-packages/" not in f.filename]
    line = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""

    def listed(name: str, tree: Any) -> str:
        leaves = [f"{name}{keystr(path)} {describe(leaf)}" for path, leaf in jax.tree.leaves_with_path(tree)]
        return ", ".join(leaves[:20]) + f" and {len(leaves) - 20} more" * (len(leaves) > 20)

    got = f"{listed('params', params)} and {listed('x', x)}"
    return ValueError(f"apply: expected params and x that fit the model, got {got}: {error!r}{line}")


def check_model(model: Any) -> None:
    """Raises TypeError unless `model` is a `Model`."""
    check_instance("model", model, Model, "a Model, such as Model(lambda params, x: output)")


def check_where(name: str, where: Any) -> None:
    """Raises TypeError unless `where` is a selection by path."""
    if where is not None and not isinstance(where, str):
        expected = "a glob such as '*/kernel', a function of a path, or None"
        check_callable(name, where, expected, num_arguments=1)


def leaf_paths(tree: PyTree) -> list[str]:
    """Returns the paths of the leaves of a pytree, such as `params/Dense_0/kernel`."""
    return [keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)]


def selects(where: Where, path: str, name: str = "where") -> bool:
    """Returns whether `where` selects a path."""
    if where is None or isinstance(where, str):
        return where is None or fnmatch.fnmatchcase(path, where)
    selected = where(path)
    if not isinstance(selected, bool | np.bool_ | re.Match | None):
        expected = "a function path -> True or False"
        raise TypeError(f"{name}: expected {expected}, got {describe(selected)} for {path!r}")
    return bool(selected)


class Split:
    """Leaves of params, their paths, and whether each is trained."""

    def __init__(self, model: Model, params: Params) -> None:
        self.paths = leaf_paths(params)
        leaves, self.structure = jax.tree.flatten(as_arrays("params", params))
        self.leaves: list[Any] = leaves
        self.trained = [selects(model.trainable, path, "trainable") for path in self.paths]
        if not leaves:
            raise ValueError("params: expected at least one parameter, got an empty pytree")
        if not any(self.trained):
            raise ValueError(
                f"trainable: expected to select a parameter out of {self.paths}, got {model.trainable!r}, "
                "which selects none"
            )
        twice = [path for path, number in Counter(self.paths).items() if number > 1]
        if twice:
            raise ValueError(f"params: expected one leaf at each path, got several at {twice}")
        for path, leaf, trained in zip(self.paths, self.leaves, self.trained, strict=True):
            if trained and not jnp.issubdtype(leaf.dtype, jnp.floating):
                where = f" at {path!r}" if path else ""
                raise TypeError(
                    f"params: expected a floating-point parameter{where}, got {describe(leaf)}; use "
                    "Model(trainable=...) to exclude leaves that are not parameters"
                )

    @property
    def parameters(self) -> list[Array]:
        """The trained leaves."""
        return [leaf for leaf, trained in zip(self.leaves, self.trained, strict=True) if trained]

    @property
    def parameter_paths(self) -> list[str]:
        """Paths of the trained leaves."""
        return [path for path, trained in zip(self.paths, self.trained, strict=True) if trained]

    def merge(self, parameters: list[Any]) -> Params:
        """Returns params with new values of the trained leaves."""
        return self._filled(parameters, lambda leaf: leaf)

    def gradients(self, parameters: list[Any]) -> Params:
        """Returns gradients with the structure of params, zero for leaves that are not trained."""
        return self._filled(parameters, jnp.zeros_like)

    def _filled(self, parameters: list[Any], of_constant: Callable[[Any], Any]) -> Params:
        values, marked = iter(parameters), zip(self.leaves, self.trained, strict=True)
        return self.structure.unflatten([next(values) if own else of_constant(leaf) for leaf, own in marked])
