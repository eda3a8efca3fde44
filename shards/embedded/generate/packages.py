"""Which optional packages a stage of the generator needs, and what to install when one is missing."""

from __future__ import annotations

from importlib.util import find_spec

from shards.errors import DataError

GPAW_HINT = (
    "pip install gpaw gpaw-data  (GPL, so matloom does not install them; building GPAW needs a C++ compiler, "
    "libxc and a BLAS: apt-get install g++ libxc-dev libopenblas-dev, then CC=g++ pip install gpaw gpaw-data)"
)
EXTRA_HINT = "pip install 'matloom[generate]'"


def require(*modules: str) -> None:
    """Refuse early, and with the command to run, when a package of this stage is not installed.

    Parameters
    ----------
    modules
        Import names, for example ``"chgnet"``.

    Raises
    ------
    DataError
        For the first module that cannot be found.
    """
    for module in modules:
        if find_spec(module) is None:
            raise DataError(
                f"this stage of the generator needs the package {module!r}, which is not installed",
                where="shards.embedded.generate",
                why="the generator is optional and its packages are not installed with matloom",
                do=GPAW_HINT if module.startswith("gpaw") else EXTRA_HINT,
            )
