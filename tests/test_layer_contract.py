"""The layer contract: custom layers, errors of the user's own code, and what a type checker sees."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import culux
from culux.errors import LayerError
from tests.core_examples import Affine, Block, ByHand, Plain, Raises, Wrap, X, block
from tests.support import requires

# Custom layers


def test_the_layer_of_the_readme():
    class LuxLinear(culux.Layer):
        init_A: Callable
        init_B: Callable

        def initial_parameters(self, rng):
            return {"B": self.init_B()}

        def initial_states(self, rng):
            return {"A": self.init_A()}

        def __call__(self, x, ps, st):
            return st.A @ ps.B @ x, st

    a, b = np.eye(3), np.full((3, 3), 2.0)
    model = LuxLinear(lambda: a, lambda: b)
    ps, st = culux.setup(0, model)
    y, new = model(np.ones(3), ps, st)
    np.testing.assert_array_equal(y, [6, 6, 6])
    assert new is st
    np.testing.assert_array_equal(culux.gradient(lambda ps: model(np.ones(3), ps, st)[0].sum(), ps).B, np.ones((3, 3)))


def test_fields_defaults_and_keywords():
    class Deep(culux.Layer):
        width: int
        _: KW_ONLY
        depth: int = 2
        names: list[str] = field(default_factory=list)
        count: ClassVar[int] = 7

    class Later(culux.Layer, kw_only=True):
        width: int

    assert (Deep(3).width, Deep(3).depth, Deep(3, names=["a"]).names) == (3, 2, ("a",))
    assert Deep(3, depth=4) != Deep(3)
    assert repr(Deep(3, depth=4)) == "Deep(3, depth=4)"
    with pytest.raises(LayerError, match=r"Deep: .*; it is Deep\(width, \*, depth=2, names="):
        Deep(3, 4)
    assert Later(width=2).width == 2
    with pytest.raises(LayerError, match="Later"):
        Later(2)


def test_subclass_of_a_subclass():
    class Wider(Affine):
        factor: float = 2.0

        def __call__(self, x, ps, st):
            y, st = super().__call__(x, ps, st)
            return self.factor * y, st

    class Same(Wider):
        pass

    for layer in (Wider(3, 0.0, 4.0), Same(3, offset=0.0, factor=4.0)):
        ps, st = culux.setup(0, layer)
        y, new = layer(X, ps, st)
        np.testing.assert_allclose(y, 4 * X * ps.w)
        assert new.calls == 1
    assert Wider(3) != Same(3)


def test_an_init_written_by_hand_runs_and_freezes_at_its_end():
    class WithConstant(ByHand):
        kind: ClassVar[str] = "constant"

    assert ByHand(3, twice=True).width == 6
    assert WithConstant(3, twice=True).width == 6
    with pytest.raises(LayerError, match=r"ByHand.* is frozen; make another one with the new width"):
        ByHand(3).width = 4
    with pytest.raises(LayerError, match="frozen"):
        del ByHand(3).width
    with pytest.raises(LayerError, match="adds the fields extra to ByHand, whose __init__ is written by hand"):

        class Lost(ByHand):
            extra: int


def test_lists_and_dicts_in_fields_cannot_change():
    layer = Block(Plain(), Plain(), tail=[Plain()], heads={"a": Plain()})
    assert type(layer.tail) is tuple
    assert type(layer.heads) is culux.Tree
    hash(layer)


@pytest.mark.parametrize("kind", [dict, culux.Tree])
def test_ps_and_st_come_as_dict_or_tree(kind):
    ps, st = culux.setup(0, block())
    as_given = kind(culux.tree.map(lambda leaf: leaf, ps)), kind(st)
    y, new = block()(X, *as_given)
    expected, _ = block()(X, ps, st)
    np.testing.assert_array_equal(y, expected)
    assert type(new) is culux.Tree
    assert type(new.conv) is culux.Tree


def test_nested_dicts_are_seen_as_trees():
    ps, st = culux.setup(0, Affine(3))
    y, new = culux.Chain(Affine(3))(X, {"layer_1": dict(ps)}, {"layer_1": dict(st)})
    np.testing.assert_array_equal(y, X * ps.w + 1)
    assert new.layer_1.calls == 1


def test_a_returned_state_has_the_keys_it_had():
    class Forgets(Affine):
        def __call__(self, x, ps, st):
            return x, {"calls": 1}

    class NoTree(Affine):
        def __call__(self, x, ps, st):
            return x, None

    class NoPair(Affine):
        def __call__(self, x, ps, st):
            return x

    message = r"expected the returned state to have the entries shift, calls, got calls; return st, or st.replace"
    with pytest.raises(LayerError, match=message):
        Forgets(3)(X, *culux.setup(0, Forgets(3)))
    with pytest.raises(LayerError, match="expected the returned state to be a Tree or a dict, got NoneType None"):
        NoTree(3)(X, *culux.setup(0, NoTree(3)))
    with pytest.raises(LayerError, match=r"expected __call__ to return \(y, st\), got float32 array of shape \(2, 3\)"):
        NoPair(3)(X, *culux.setup(0, NoPair(3)))


def test_a_returned_state_keeps_its_order():
    class Reorders(Affine):
        def __call__(self, x, ps, st):
            return x, {"calls": 1, "shift": st.shift}

    ps, st = culux.setup(0, Reorders(3))
    assert list(Reorders(3)(X, ps, st)[1]) == list(st)


def test_a_call_without_ps_and_st_says_the_call():
    for arguments in ((X,), (X, None, None), (X, np.ones(3), {}), (X, {}, 3)):
        with pytest.raises(LayerError, match=r"expected (ps|st) to be a Tree or a dict.*y, st = model\(x, ps, st\)"):
            Plain()(*arguments)


def test_a_layer_without_a_computation_says_so():
    class Nothing(culux.Layer):
        pass

    with pytest.raises(LayerError, match="Nothing defines neither __call__"):
        Nothing()(X, {}, {})


# Errors of the user's own code


class Shelf(Exception):
    __slots__ = ()


@dataclass(frozen=True)
class Sealed(Exception):
    text: str


@pytest.mark.parametrize("kind", [ValueError, KeyError, ZeroDivisionError, Shelf])
def test_an_exception_keeps_its_type_and_gets_the_path(kind):
    inner = culux.Chain(Plain(), Wrap(Raises(kind)))
    model = culux.Chain(Plain(), Block(Plain(), inner))
    with pytest.raises(kind) as caught:
        model(X, *culux.setup(0, model))
    assert type(caught.value) is kind
    assert caught.value.args == ("oh",)
    assert caught.value.__notes__ == [f"in layer_2.norm.layer_2 (Raises({kind.__name__}))"]


def test_an_exception_that_takes_no_attributes_goes_on():
    model = culux.Chain(Raises(Sealed))
    with pytest.raises(Sealed, match="oh"):
        model(X, *culux.setup(0, model))


def test_a_type_error_in_init_is_the_users():
    class Wrong(culux.Layer):
        def __init__(self, width):
            self.width = width + "x"

    with pytest.raises(TypeError, match="unsupported operand") as caught:
        Wrong(3)
    assert type(caught.value) is TypeError


# Types


def test_a_type_checker_reads_custom_layers():
    requires("mypy")
    root = Path(__file__).parents[1]
    arguments = ["--strict", "--follow-imports=silent", "--cache-dir", str(root / ".mypy_cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *arguments, str(root / "tests/typing/custom_layers.py")],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
