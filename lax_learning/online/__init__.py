"""Rules that learn online, step by step, on recurrent networks defined by their single step.

They are called like all other rules: `value_and_grad` takes whole sequences, `rule.online` single steps.
"""

from lax_learning.online._eprop import eprop
from lax_learning.online._recurrent import Recurrent, leaky_rnn
from lax_learning.online._rflo import rflo
from lax_learning.online._rtrl import rtrl
from lax_learning.online._three_factor import three_factor
from lax_learning.types import Online

__all__ = ["Online", "Recurrent", "eprop", "leaky_rnn", "rflo", "rtrl", "three_factor"]
