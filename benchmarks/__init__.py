"""Speed and quality of the library, against the loops people run today."""

from experiments import end_at_interrupt

end_at_interrupt()
