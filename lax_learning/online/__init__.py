"""Rules that learn while a sequence runs, on recurrent networks given as their step, one paper a file.

They are rules like any other, whose `value_and_grad` takes whole sequences; `rule.online` has their step.
"""

from lax_learning.online._eprop import eprop
from lax_learning.online._recurrent import Recurrent, leaky_rnn
from lax_learning.online._rflo import rflo
from lax_learning.online._rtrl import rtrl
from lax_learning.online._three_factor import three_factor
from lax_learning.types import Online

__all__ = ["Online", "Recurrent", "eprop", "leaky_rnn", "rflo", "rtrl", "three_factor"]
