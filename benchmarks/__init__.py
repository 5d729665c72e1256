"""Speed and gradient quality of the library, compared with commonly used code."""

from experiments import end_at_interrupt

end_at_interrupt()
