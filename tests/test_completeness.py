"""Nothing is left out of the catalogue, and the suites over it can fail."""

from __future__ import annotations

import importlib
import pkgutil

import numpy as np
import pytest

import culux
from culux.autodiff.tracer import Operation
from tests import test_catalogue as suites
from tests.catalogue import FAMILIES, family
from tests.test_architecture import public_names

ENTRIES = suites.ENTRIES


def missing(public, names, found, without):
    """The public names that no entry proves; another name of a proved object is proved with it."""
    module = importlib.import_module(public)
    proved = {entry.name.removeprefix(f"{public}.") for entry in found if entry.name.startswith(f"{public}.")}
    objects = [getattr(module, name) for name in proved]
    return [
        name
        for name in names
        if name not in proved
        and name not in without
        and not (callable(getattr(module, name)) and any(getattr(module, name) is known for known in objects))
    ]


@pytest.mark.parametrize("public", FAMILIES)
def test_every_public_name_has_an_entry(public):
    module, catalogue = importlib.import_module(public), family(public)
    assert catalogue is not None, f"{FAMILIES[public]} is missing"
    names = public_names(public)
    assert len(names) > 3
    assert catalogue.CASES
    assert missing(public, names, catalogue.CASES, catalogue.WITHOUT_ENTRY) == []
    for name, reason in catalogue.WITHOUT_ENTRY.items():
        assert hasattr(module, name), f"{public}.{name} is excused from the catalogue and does not exist"
        assert reason


@pytest.mark.parametrize("case", ENTRIES, ids=str)
def test_the_name_of_an_entry_exists(case):
    public = next(public for public in FAMILIES if case.name.startswith(f"{public}."))
    assert hasattr(importlib.import_module(public), case.name.removeprefix(f"{public}."))


def test_a_missing_entry_is_seen():
    names = public_names("culux.numpy")
    kept = [entry for entry in ENTRIES if entry.name not in ("culux.numpy.sin", "culux.numpy.arccos")]
    without = family("culux.numpy").WITHOUT_ENTRY
    assert missing("culux.numpy", names, kept, without) == ["acos", "arccos", "sin"]
    assert "pi" in missing("culux.numpy", names, kept, {})


def operations():
    """Every primitive's operation that a module of culux holds, by its full name."""
    found = {}
    for module in pkgutil.walk_packages(culux.__path__, "culux."):
        if module.name.rpartition(".")[2] in ("__main__", "cupy_backend"):
            continue
        for value in vars(importlib.import_module(module.name)).values():
            operation = getattr(value, "operation", None)
            if isinstance(operation, Operation):
                found[f"{operation.portable.__module__}.{operation.name}"] = operation
    return found


# Primitives without a rule, which are differentiated through their portable form -> the reason.
THROUGH_THE_PORTABLE_FORM: dict[str, str] = {}


def without_rule():
    return [
        name for name, operation in operations().items()
        if operation.vjp_rule is None and name not in THROUGH_THE_PORTABLE_FORM
    ]  # fmt: skip


def test_every_primitive_has_a_rule():
    assert len(operations()) > 50
    assert without_rule() == []
    assert THROUGH_THE_PORTABLE_FORM.keys() <= operations().keys()


def test_a_missing_rule_is_seen(monkeypatch):
    monkeypatch.setattr(culux.numpy.sin.operation, "vjp_rule", None)
    assert without_rule() == ["culux.numpy.elementwise.sin"]
    case = next(case for case in suites.SMOOTH if case.name == "culux.numpy.sin")
    with pytest.raises(culux.errors.DifferentiationError, match="sin has no rule"):
        suites.test_gradient_against_finite_differences(case)


def test_a_wrong_rule_is_seen(monkeypatch):
    def wrong(needs, x):
        return (np.sin(x), lambda dy: (dy * np.cos(x) * 1.0001,))

    monkeypatch.setattr(culux.numpy.sin.operation, "vjp_rule", wrong)
    case = next(case for case in suites.SMOOTH if case.name == "culux.numpy.sin")
    with pytest.raises(AssertionError, match=r"argument 1\[\d, \d\]: expected .* by central differences, got"):
        suites.test_gradient_against_finite_differences(case)
