"""Every public operation, layer, loss, rule and initialiser with its inputs and what it must equal.

`tests/test_catalogue.py` loops over it; `tests.catalogue.case` says how an entry is written.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

# The module of entries of each public module of culux.
FAMILIES = {
    "culux.numpy": "tests.catalogue.ops",
    "culux.nn": "tests.catalogue.nn",
    "culux.layers": "tests.catalogue.layers",
    "culux.losses": "tests.catalogue.losses",
    "culux.optim": "tests.catalogue.optim",
    "culux.init": "tests.catalogue.init",
}


def family(public: str) -> ModuleType | None:
    """The module of entries for a public module; None where there is none yet (a test fails then)."""
    name = FAMILIES[public]
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def entries() -> list[Any]:
    """The entries of all families."""
    return [entry for public in FAMILIES if (module := family(public)) for entry in module.CASES]
