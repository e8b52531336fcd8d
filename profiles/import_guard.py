"""Start-up guard: refuses to start where another folder shadows one of the project's packages.

The packages have generic names, and Python looks in the current folder first when a module is run with -m. Each
package's __init__ runs this file by its path, because a package that is shadowed cannot be imported.
"""

from __future__ import annotations

import importlib.util
import os

PACKAGES = ("profiles", "partitioner", "runtime", "tools")


def check_siblings(home: str) -> None:
    """Check that every package of the project would be imported from the folder ``home``, without importing any.

    Raises:
        ImportError: Another folder or file shadows a package; the message names it, and says what to do.
    """
    for name in PACKAGES:
        expected = os.path.join(home, name)
        found = _location(name)
        if found is None or os.path.realpath(found) != os.path.realpath(expected):
            raise ImportError(
                f"another {name!r} shadows diffusion-partitioner's: Python finds {found}, expected {expected}; "
                "start from another folder, use the installed commands or `python -P`, or rename the other one",
                name=name,
                path=found,
            )


def _location(name: str) -> str | None:
    """The folder of the package or the file of the module that ``import name`` would load; None if there is none."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # already imported by something that set no spec
        return None
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or ())
    return folders[0] if folders else spec.origin


check_siblings(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
