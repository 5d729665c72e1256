"""Bilinear operations as products of vectors with matrices, for any order of their axes."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lax_learning._sites import _equations as equations

Bilinear = Callable[[Any, Any], Any]
"""`(w, x) -> z`."""


class Layout(NamedTuple):
    """A matrix product or a convolution as `vectors(x) @ matrix(w)`, up to the order of its entries.

    Fields:
      size: length of a vector.
      groups: shape of independent products: `(groups,)` for a grouped convolution, the batch axes for a
        matrix product; often `()`.
      window: parameters that determine the patches of a convolution; None for a product.
      axes: axes of x that form a vector of a product; `()` for a convolution.
      rows, columns: axes of w that are summed over, and the others.
      place: first axis of the result that belongs to the columns.
      vectors: `x -> [*groups, vectors, size]`; patches of a convolution are (channel, row, column).
      matrix: `w -> [*groups, size, outputs]`.
      unmatrix: the inverse of `matrix`.
      transformed: `(op, w, x, R, b) -> op(w, R v + b)` with the vectors v of x; b may be None.
      alone: `(w, x) -> op(w, x)`, computed without axes of length 1 of x, such as that of a single example;
        None for a convolution.
    """

    size: int
    groups: tuple[int, ...]
    window: Any
    axes: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    place: int
    vectors: Callable[[Array], Array]
    matrix: Callable[[Array], Array]
    unmatrix: Callable[[Array], Array]
    transformed: Callable[[Bilinear, Array, Array, Array, Array | None], Array]
    alone: Bilinear | None = None


def layout_of(equation: Any, w_position: int) -> Layout | None:
    """Returns the layout of a bilinear equation with parameters as one operand, or None if it has none."""
    w, x = (equation.invars[i].aval.shape for i in (w_position, 1 - w_position))
    if equation.primitive.name == "dot_general":
        return _of_product(equation, w_position, w, x)
    if w_position == 1 and equation.params["batch_group_count"] == 1:
        return _of_convolution(equation.params, w)
    return None


def _of_product(equation: Any, w_position: int, w_shape: tuple[int, ...], x_shape: tuple[int, ...]) -> Layout:
    contracting, batch = (tuple(map(tuple, pair)) for pair in equation.params["dimension_numbers"])
    rows, w_batch = contracting[w_position], batch[w_position]
    axes, x_batch = contracting[1 - w_position], batch[1 - w_position]
    groups = tuple(x_shape[axis] for axis in x_batch)
    size = math.prod(x_shape[axis] for axis in axes)
    columns = tuple(axis for axis in range(len(w_shape)) if axis not in rows + w_batch)
    kept = tuple(axis for axis in range(len(x_shape)) if axis not in axes + x_batch)
    w_order, x_order = (*w_batch, *rows, *columns), (*x_batch, *kept, *axes)

    def vectors(x: Array) -> Array:
        return jnp.transpose(x, x_order).reshape(*groups, -1, size)

    is_placed = equation.params.get("out_sharding") is not None  # names the axes of the result
    ones = [axis for axis in kept if x_shape[axis] == 1 and not is_placed]

    def renumbered(pair: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        of_x = tuple(axis - sum(one < axis for one in ones) for axis in pair[1 - w_position])
        return (pair[0], of_x) if w_position == 0 else (of_x, pair[1])

    numbers = {"dimension_numbers": (renumbered(contracting), renumbered(batch))}
    small = equations.operation(
        equation.replace(params=equation.params | numbers), (w_position,), single=True
    )

    def alone(w: Array, x: Array) -> Array:
        return small(w, jnp.squeeze(x, ones)).reshape(equation.outvars[0].aval.shape)

    def transformed(op: Bilinear, w: Array, x: Array, r: Array, b: Array | None) -> Array:
        z = vectors(x) @ jnp.swapaxes(r, -1, -2)
        return op(w, _restored(z if b is None else z + b[..., None, :], x_order, x_shape))

    def matrix(w: Array) -> Array:
        return jnp.transpose(w, w_order).reshape(*groups, size, -1)

    def unmatrix(matrix: Array) -> Array:
        return _restored(matrix, w_order, w_shape)

    place = len(groups) + (0 if w_position == 0 else len(kept))
    functions = vectors, matrix, unmatrix, transformed, alone
    return Layout(size, groups, None, axes, rows, columns, place, *functions)


def _of_convolution(params: dict[str, Any], w_shape: tuple[int, ...]) -> Layout:
    numbers, count = params["dimension_numbers"], params["feature_group_count"]
    out, channels, *spatial = numbers.rhs_spec
    w_order = (channels, *spatial, out)
    window = {name: params[name] for name in ("window_strides", "padding", "lhs_dilation", "rhs_dilation")}
    window["filter_shape"] = tuple(w_shape[axis] for axis in spatial)
    size = w_shape[channels] * math.prod(window["filter_shape"])
    groups = (count,) if count > 1 else ()

    def vectors(x: Array) -> Array:
        patches = jax.lax.conv_general_dilated_patches(x, **window, dimension_numbers=numbers)
        rows = jnp.moveaxis(patches, numbers.out_spec[1], -1).reshape(-1, *groups, size)
        return jnp.moveaxis(rows, 0, -2)

    def matrix(w: Array) -> Array:
        return jnp.moveaxis(jnp.transpose(w, w_order).reshape(size, *groups, -1), 0, -2)

    def unmatrix(matrix: Array) -> Array:
        return _restored(jnp.moveaxis(matrix, -2, 0), w_order, w_shape)

    def transformed(op: Bilinear, w: Array, x: Array, r: Array, b: Array | None) -> Array:
        rows = matrix(w)
        z = op(unmatrix(jnp.swapaxes(r, -1, -2) @ rows), x)
        if b is None:
            return z
        shift = (b[..., None, :] @ rows).reshape(-1)
        return z + jnp.expand_dims(shift, [axis for axis in range(z.ndim) if axis != numbers.out_spec[1]])

    axes, patches = (w_order[:-1], w_order[-1:]), tuple(sorted(window.items()))
    functions = vectors, matrix, unmatrix, transformed
    return Layout(size, groups, patches, (), *axes, numbers.out_spec[1], *functions)


def _restored(value: Array, order: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """Undoes `transpose(value, order)` followed by a reshape."""
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return jnp.transpose(value.reshape([shape[axis] for axis in order]), inverse)
