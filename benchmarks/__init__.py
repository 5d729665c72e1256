"""How fast and how good the library is, against the loops people run today."""

from experiments import end_at_interrupt

end_at_interrupt()
