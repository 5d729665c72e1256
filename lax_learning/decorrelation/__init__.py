"""Decorrelation: a matrix R before the weights makes their inputs uncorrelated, under any rule."""

from lax_learning.decorrelation._fold import fold
from lax_learning.decorrelation._loss import loss
from lax_learning.decorrelation._models import inputs, wrap
from lax_learning.decorrelation._rule import RuleState, rule
from lax_learning.decorrelation._transform import Diagnostics, State, apply, dynamics

__all__ = ["Diagnostics", "RuleState", "State", "apply", "dynamics", "fold", "inputs", "loss", "rule", "wrap"]
