"""How fast and how good the library is, against the loops people run today."""
