"""Decorrelation: a matrix R before the weights makes their inputs uncorrelated, under any rule."""

from lax_learning.decorrelation._models import fold, inputs, wrap
from lax_learning.decorrelation._rule import RuleState, rule
from lax_learning.decorrelation._transform import Diagnostics, State, apply, dynamics, loss

__all__ = ["Diagnostics", "RuleState", "State", "apply", "dynamics", "fold", "inputs", "loss", "rule", "wrap"]
