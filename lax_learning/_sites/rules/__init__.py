"""Rules on any model, one paper a file."""

from lax_learning._sites.rules._common import ModelRule

__all__ = ["ModelRule"]
