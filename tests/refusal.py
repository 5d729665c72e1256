"""How bad input is refused."""

import pytest


def parametrize_cases(cases):
    """Cases `name: (call, error, pattern)`."""
    return pytest.mark.parametrize(("call", "error", "pattern"), cases.values(), ids=cases.keys())


def refuses(call, error, pattern):
    with pytest.raises(error, match=pattern) as raised:
        call()
    assert "expected" in str(raised.value) and "got" in str(raised.value)
