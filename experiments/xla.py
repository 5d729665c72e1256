"""Flags of XLA, for the versions of jaxlib that know them.

XLA ends the process at a flag that it does not know, without a traceback, and flags come and go with jaxlib.
"""

import os
import re
import subprocess
import sys
from importlib.metadata import version

_PARSE_FLAGS = "from jaxlib import xla_client; xla_client.CompileOptions()"


def add_flags(*flags: str) -> None:
    """Adds those flags to XLA_FLAGS that this jaxlib knows; a second process tries them, in 0.15 s.

    To be called before JAX first runs. Flags of the environment come last and win. A path in XLA_FLAGS, to a
    file of flags, stays as it is.

    Args:
      *flags: such as `--xla_backend_optimization_level=1`.

    Raises:
      SystemExit: if this jaxlib does not know a flag of the environment.
    """
    given = os.environ.get("XLA_FLAGS", "").split()
    new = [flag for flag in flags if flag not in given]
    if not new or (given and not given[0].startswith("-")):
        return
    tried = subprocess.run(
        [sys.executable, "-c", _PARSE_FLAGS],
        env={**os.environ, "XLA_FLAGS": " ".join([*new, *given])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    named = re.search(r"Unknown flags? in XLA_FLAGS: (.*)", tried.stderr)
    unknown = named[1].split() if named else new if tried.returncode else []
    if wrong := [flag for flag in given if flag in unknown]:
        sys.exit(f"XLA_FLAGS: expected flags that jaxlib {version('jaxlib')} knows, got {' '.join(wrong)}")
    known = [flag for flag in new if flag not in unknown]
    if known:
        os.environ["XLA_FLAGS"] = " ".join([*known, *given])
