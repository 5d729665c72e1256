"""Refusals of bad input, as tests list them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

Call = Callable[[], Any]


def refuses(call: Call, error: type[Exception], pattern: str) -> None:
    with pytest.raises(error, match=pattern) as raised:
        call()
    assert "expected" in str(raised.value) and "got" in str(raised.value)


def each(function: Callable[..., Any], *values: Any, **options: Any) -> list[Call]:
    """Calls of a function with each of some values, or with each of the values of an option."""
    calls = [partial(function, value) for value in values]
    return calls + [partial(function, **{name: value}) for name, of in options.items() for value in of]


def refusals(
    *, values: dict[str, Call | list[Call]] | None = None, types: dict[str, Call | list[Call]] | None = None
) -> Any:
    """A test of each row `pattern of the message: call, or calls`, refused by a ValueError or a TypeError."""
    rows = [
        pytest.param(call, error, pattern, id=pattern[:40])
        for error, table in ((ValueError, values or {}), (TypeError, types or {}))
        for pattern, calls in table.items()
        for call in (calls if isinstance(calls, list) else [calls])
    ]

    @pytest.mark.usefixtures("as_a_user_sees_it")
    @pytest.mark.parametrize(("call", "error", "pattern"), rows)
    def test(call: Call, error: type[Exception], pattern: str) -> None:
        refuses(call, error, pattern)

    return test
