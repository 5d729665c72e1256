"""Decorrelation: a learned matrix R decorrelates the inputs of every layer, under any rule."""

from lax_learning.decorrelation._models import fold, inputs, wrap
from lax_learning.decorrelation._rule import RuleState, rule
from lax_learning.decorrelation._transform import Diagnostics, State, apply, dynamics, loss

__all__ = ["Diagnostics", "RuleState", "State", "apply", "dynamics", "fold", "inputs", "loss", "rule", "wrap"]
