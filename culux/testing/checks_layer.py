"""`check_layer`: everything that culux promises of a layer, asked of one of your own."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from culux import tree
from culux.autodiff import value_and_gradient
from culux.backends import get_backend, installed, is_array, is_float_array
from culux.core import Layer, output_shape, setup, test_mode, train_mode
from culux.core.convert import convert, converted
from culux.devices import Device, get_device, gpu_device, to_numpy
from culux.errors import LayerError, describe
from culux.testing.compare import TOLERANCE, checked_dtypes, is_float, mismatches
from culux.testing.derivatives import directional, scalar, slope_problems
from culux.testing.devices import diff_devices
from culux.testing.leaks import holders, watched_traces
from culux.testing.report import CheckReport, Checks, LeftOut
from culux.tree import Tree

__all__ = ["check_layer"]

NO_FLOATS = "neither x nor ps holds floats"


def check_layer(
    layer: Layer,
    x: Any,
    *,
    rng: np.random.Generator | int = 0,
    reference: Callable[..., Any] | None = None,
    gradients: bool = True,
    second_order: bool = True,
    dtypes: Sequence[str] = ("float16", "float32", "float64"),
    tolerance: float = 1.0,
    devices: Sequence[Device] | None = None,
) -> CheckReport:
    """Check that a layer keeps the contract of layers, in train and in test mode.

    That is: `setup` gives the same for the same seed; the layer hashes, compares, copies and pickles; a call changes
    none of its arguments, gives the same again, and a state of the same structure and dtypes; the same under a
    gradient, from which nothing traced is kept; `output_shape` is that of y; floats keep their dtype; gradients of
    first and second order with respect to x and ps are those of central differences in float64; devices agree.

    Args:
        layer: the layer.
        x: its input in both modes: an array, or a tuple of arrays; a few rows, away from kinks such as that of a relu.
        rng: what `setup` gets.
        reference: ``reference(x, ps, st) -> y``, the same in plain NumPy and float64, for the `st` of both modes.
        gradients: whether gradients are compared with central differences; not where y jumps or has kinks everywhere.
        second_order: whether gradients of gradients are.
        dtypes: the float dtypes that the layer takes and keeps.
        tolerance: a factor on all tolerances but those of `diff_devices`.
        devices: the devices to compare with the CPU; every GPU that is there if None.

    Returns:
        What was checked and what was left out, with the reason.

    Raises:
        CheckError: where a check fails (an AssertionError); it lists every one: expected, actual, the path of the leaf
            and the index of its worst element, and what to do.
        LayerError: for a `layer` that is none.
        DTypeError: for `dtypes` that are no floats, or none.
    """
    if not isinstance(layer, Layer):
        raise LayerError(f"expected a layer, got {describe(layer)}; check_layer(Dense(3, 4), x)")
    wanted, x = checked_dtypes(dtypes), to_numpy(x)
    checks = Checks(f"check_layer({layer!r})")
    _check_value(checks, layer)
    ps, states = _check_setup(checks, layer, rng, wanted)
    for mode, st in _modes(states):
        case = _Case(checks, layer, x, ps, st, mode, wanted, tolerance)
        _check_mode(case, reference, gradients, second_order, _gpus() if devices is None else devices)
    return checks.report()


@dataclass(frozen=True)
class _Case:
    """A layer, its arguments, and what is asked of it."""

    checks: Checks
    layer: Layer
    x: Any
    ps: Tree
    st: Tree
    mode: str
    dtypes: Sequence[np.dtype[Any]]
    tolerance: float

    def named(self, check: str) -> str:
        return f"{check} in {self.mode}" if self.mode else check

    @property
    def dtype(self) -> np.dtype[Any]:
        """What is computed in where one dtype is enough: float32, unless the layer does not take it."""
        return np.dtype("float32") if np.dtype("float32") in self.dtypes else self.dtypes[-1]

    def given(self, dtype: np.dtype[Any]) -> Tree:
        """New copies of x, ps and st, by these names, with floats in a dtype."""
        copied: Tree = tree.map(lambda leaf: _copied(convert(leaf, dtype)), Tree(x=self.x, ps=self.ps, st=self.st))
        return copied

    def called(self, given: Tree) -> tuple[Any, Tree]:
        """``(y, st)`` of a call."""
        return self.layer(given.x, given.ps, given.st)

    def differentiated(self, given: Tree) -> tuple[tuple[Any, Tree], Tree]:
        """``(y, st)`` of a call under a gradient, and the gradient, a Tree of x and ps."""

        def objective(wanted: Tree) -> tuple[Any, Any]:
            result = self.called(wanted | {"st": given.st})
            return scalar(lambda: result[0])(), result

        (_, result), found = value_and_gradient(objective, Tree(x=given.x, ps=given.ps), has_aux=True)
        return result, found

    def function(self) -> tuple[Callable[..., Any], list[str], list[np.ndarray]]:
        """The function from the float arrays of x and ps in float64 to y, their paths, and their values.

        Parameters are spread around their initial values, so that zeros and ones prove something.
        """
        rng = np.random.default_rng(0)
        wide = self.given(np.dtype("float64"))
        given = Tree(x=wide.x, ps=tree.map(lambda leaf: _spread(leaf, rng), wide.ps))
        entries, structure = tree.leaves_with_path(given), tree.structure(given)
        positions = [i for i, (_, leaf) in enumerate(entries) if is_float_array(leaf)]

        def call(*values: Any) -> Any:
            leaves = [leaf for _, leaf in entries]
            for i, value in zip(positions, values, strict=True):
                leaves[i] = value
            full = tree.unflatten(structure, map(_copied, leaves))
            return self.called(full | {"st": tree.map(_copied, wide.st)})[0]

        return call, [entries[i][0] for i in positions], [entries[i][1] for i in positions]

    def holds_floats(self) -> bool:
        """Whether there is anything to differentiate."""
        return any(is_float_array(leaf) for leaf in tree.leaves((self.x, self.ps)))


def _copied(leaf: Any) -> Any:
    return leaf.copy() if type(leaf) is np.ndarray else leaf


def _spread(leaf: Any, rng: np.random.Generator) -> Any:
    return leaf + (0.1 * rng.standard_normal(leaf.shape)).astype(leaf.dtype) if is_float_array(leaf) else leaf


def _modes(st: Tree) -> Iterator[tuple[str, Tree]]:
    """The states of each mode by its name; one without a name where no state depends on it."""
    if any(path.rpartition(".")[2] == "training" for path, _ in tree.leaves_with_path(st)):
        yield "train mode", train_mode(st)
        yield "test mode", test_mode(st)
    else:
        yield "", st


def _check_mode(
    case: _Case, reference: Callable[..., Any] | None, gradients: bool, second_order: bool, devices: Sequence[Device]
) -> None:
    _check_call(case)
    _check_trace(case)
    _check_dtypes(case)
    _check_reference(case, reference)
    _check_gradients(case, gradients, second_order)
    _check_devices(case, devices)


def _check_value(checks: Checks, layer: Layer) -> None:
    hint = "a layer compares, hashes and copies by its fields: keep values in them, not objects that change"
    copies = {"copy.copy": copy.copy, "copy.deepcopy": copy.deepcopy}
    with checks("is a value", hint) as wrong:
        for name, copier in copies.items():
            _compare_layers(layer, copier(layer), name, wrong)
    with checks("pickles", "give __init__ what it needs, or define __getstate__ and __setstate__") as wrong:
        try:
            data = pickle.dumps(layer)
        except (pickle.PicklingError, AttributeError) as error:  # a lambda, or a class made in a function
            raise LeftOut(f"{error}; only functions and classes of a module pickle") from error
        _compare_layers(layer, pickle.loads(data), "pickle", wrong)


def _compare_layers(layer: Layer, other: Any, how: str, wrong: Callable[[str], None]) -> None:
    if other != layer or layer != other:
        wrong(f"expected the layer of {how} to equal the first, got {other!r} != {layer!r}")
    elif hash(other) != hash(layer):
        wrong(f"expected the layer of {how} to have the same hash, got {hash(other)} and {hash(layer)}")
    elif repr(other) != repr(layer):
        wrong(f"expected the layer of {how} to have the repr {layer!r}, got {other!r}")


def _check_setup(checks: Checks, layer: Layer, rng: Any, dtypes: Sequence[np.dtype[Any]]) -> tuple[Tree, Tree]:
    made: tuple[Tree, Tree] = Tree(), Tree()
    hint = "draw all random numbers from the rng that initial_parameters and initial_states get"
    with checks("setup", hint) as wrong:
        made = setup(copy.deepcopy(rng), layer)
        again = setup(copy.deepcopy(rng), layer)
        if tree.structure(again) != tree.structure(made):
            wrong("expected the same entries for the same seed, got others the second time")
        else:
            for path, was, now in _pairs(Tree(ps=made[0], st=made[1]), Tree(ps=again[0], st=again[1])):
                if not _identical(was, now):
                    wrong(f"{path}: expected the same numbers for the same seed, got others")
    checks.stop_if_failed("setup")
    hint = "float32 is what others expect: np.zeros(n, np.float32); setup(rng, layer, dtype=...) makes others of it"
    with checks("dtype of setup", hint) as wrong:
        if np.dtype("float32") not in dtypes:
            raise LeftOut("float32 is not among dtypes")
        for path, leaf in tree.leaves_with_path(Tree(ps=made[0], st=made[1])):
            if is_float_array(leaf) and leaf.dtype != np.float32:
                wrong(f"{path}: expected float32, got {leaf.dtype}")
    return made


def _pairs(one: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    """The leaves of two trees of one structure, with their paths."""
    for (path, a), b in zip(tree.leaves_with_path(one), tree.leaves(other), strict=True):
        yield path, a, b


def _identical(a: Any, b: Any) -> bool:
    if not is_array(a) or not is_array(b):
        return type(a) is type(b) and bool(a == b)
    return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())


def _check_call(case: _Case) -> None:
    checks = case.checks
    given, before = case.given(case.dtype), case.given(case.dtype)
    hint = "a layer returns (y, st), with st as it came or st.replace(name=value): the same entries and dtypes"
    result: tuple[Any, Any] = (None, None)
    with checks(case.named("call"), hint) as wrong:
        result = case.called(given)
        for line in _state_problems(before.st, result[1]):
            wrong(line)
    checks.stop_if_failed(case.named("call"))
    hint = "a layer is pure: compute new arrays, x = x + 1 in place of x += 1, and keep what changes in st"
    with checks(case.named("arguments"), hint) as wrong:
        for path, was, now in _pairs(before, given):
            if not _identical(was, now):
                wrong(f"{path}: expected the layer to leave its arguments alone, got a write to {_changed(was, now)}")
    hint = "a layer is pure: random numbers come from st (culux.random), what it counts is in st, nothing in globals"
    with checks(case.named("same again"), hint) as wrong:
        again = case.called(before)
        for line in mismatches(Tree(y=again[0], st=again[1]), Tree(y=result[0], st=result[1]), 0):
            wrong(f"{line} (the second call against the first)")
    _check_output_shape(case, result[0])


def _changed(was: Any, now: Any) -> str:
    differ = np.argwhere(np.asarray(was != now)).tolist() if is_array(was) else []
    return f"{len(differ)} elements, the first at {differ[0]}" if differ else describe(now)


def _state_problems(st: Tree, new: Any) -> list[str]:
    if tree.structure(new) != tree.structure(st):
        paths, found = (", ".join(path for path, _ in tree.leaves_with_path(value)) for value in (st, new))
        return [f"st: expected the same entries in the same containers, {paths or 'none'}, got {found or 'none'}"]
    problems = []
    for path, was, now in _pairs(st, new):
        kind, dtype = type(was), getattr(was, "dtype", None)
        if type(now) is not kind or getattr(now, "dtype", None) != dtype:
            expected = kind.__name__ if dtype is None else dtype
            problems.append(f"st.{path}: expected {expected} as it came, got {describe(now)}")
    return problems


def _check_output_shape(case: _Case, y: Any) -> None:
    hint = "return the shape of y for the shape of x, batch axis included"
    with case.checks(case.named("output_shape"), hint) as wrong:
        shapes = tree.map(np.shape, case.x)
        try:
            said = output_shape(case.layer, shapes)
        except LayerError as error:
            raise LeftOut(str(error)) from error
        found = tree.map(np.shape, y)
        if said != found:
            wrong(f"expected {found}, the shape of y for x of {shapes}, got {said}")


def _check_trace(case: _Case) -> None:
    hint = (
        "compute with culux.numpy or operators, not with arrays taken out of the trace; keep what must be kept in st, "
        "which comes back plain"
    )
    with case.checks(case.named("under a gradient"), hint) as wrong:
        if not case.holds_floats():
            raise LeftOut(NO_FLOATS)
        widest = case.dtypes[-1]
        y, st = case.called(case.given(widest))
        with watched_traces() as opened:
            (traced_y, traced_st), _ = case.differentiated(case.given(widest))
        expected, found = Tree(y=y, st=st), Tree(y=traced_y, st=traced_st)
        for line in mismatches(found, expected, case.tolerance * TOLERANCE[widest.name]):
            wrong(f"{line} (traced against plain)")
        for line in holders(opened):
            wrong(f"expected nothing traced to outlive the gradient, {line}")


def _check_dtypes(case: _Case) -> None:
    hint = "Python floats take the dtype of what they meet; make arrays with dtype=x.dtype"
    with case.checks(case.named("dtypes"), hint) as wrong:
        if not case.holds_floats():
            raise LeftOut(NO_FLOATS)
        for dtype in case.dtypes:
            (y, st), found = case.differentiated(case.given(dtype))
            for path, leaf in tree.leaves_with_path(Tree(y=y, st=st, gradient=found)):
                if is_float(leaf) and leaf.dtype != dtype:
                    wrong(f"{path}: expected {dtype} for x and ps of {dtype}, got {leaf.dtype}")


def _check_reference(case: _Case, reference: Callable[..., Any] | None) -> None:
    if reference is None:
        return
    with case.checks(case.named("reference"), "see which of the two computes what the layer should") as wrong:
        for dtype in case.dtypes:
            y, _ = case.called(case.given(dtype))
            wide = converted(case.given(dtype), np.dtype("float64"))
            expected = reference(wide.x, wide.ps, wide.st)
            for line in mismatches(Tree(y=y), Tree(y=expected), case.tolerance * TOLERANCE[dtype.name]):
                wrong(f"{line} (in {dtype})")


def _check_gradients(case: _Case, gradients: bool, second_order: bool) -> None:
    first, second = case.named("gradient"), case.named("second order")
    call, names, values = case.function()
    reason = "gradients=False" if not gradients else "" if values else NO_FLOATS
    if np.dtype("float64") not in case.dtypes:
        reason = "float64, in which central differences are taken, is not among dtypes"
    if reason:
        case.checks.leave_out(first, reason)
        case.checks.leave_out(second, reason)
        return
    hint = (
        "see the rule, or what takes no part in the trace (culux.stop_gradient); at a kink move x away from it, and "
        "where y jumps pass gradients=False"
    )
    with case.checks(first, hint) as wrong:
        for line in slope_problems(scalar(call), values, case.tolerance, names, quick=True):
            wrong(line)
    if not second_order:
        case.checks.leave_out(second, "second_order=False")
        return
    hint = "a rule computes with operators and culux operations; pass second_order=False where no second one is needed"
    with case.checks(second, hint) as wrong:
        for line in slope_problems(directional(scalar(call)), values, 10 * case.tolerance, names, quick=True):
            wrong(line)


def _gpus() -> list[Device]:
    usable = installed().get("cupy") == ""
    return [gpu_device(i) for i in range(get_backend("cupy").device_count())] if usable else []


def _check_devices(case: _Case, devices: Sequence[Device]) -> None:
    if not devices:
        case.checks.leave_out(case.named("other devices"), "there is no GPU")
    hint = "make arrays where x is: with culux.numpy, or in the namespace culux.array_namespace(x)"
    for device in devices:
        with case.checks(case.named(f"on {device.name}"), hint) as wrong:
            y, _ = case.called(device(case.given(case.dtype)))
            for path, leaf in tree.leaves_with_path(Tree(y=y)):
                if is_array(leaf) and get_device(leaf) != device:
                    wrong(f"{path}: expected an array on {device.name}, got one on {get_device(leaf).name}")
            apart = diff_devices(case.differentiated, case.given(case.dtype), device=device)
            if apart is not None:
                wrong(str(apart))
