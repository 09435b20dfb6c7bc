from __future__ import annotations

import numpy as np
import pytest

import culux
from culux import Tree, optim, tree
from culux.kernels import optimise
from culux.kernels.source import program
from culux.optim import (
    Adam,
    AdamW,
    Descent,
    Lion,
    Momentum,
    Nesterov,
    RMSProp,
    chain,
    clip_norm,
    clip_value,
    groups,
    schedules,
    weight_decay,
)
from culux.testing import cost
from tests.kernel_support import note
from tests.optim_support import assert_close, by_hand, on, steps, uneven, uneven_gradients
from tests.support import requires

RULES = [
    Descent(0.1),
    Momentum(0.1),
    Nesterov(0.1, momentum=0.8),
    RMSProp(0.05),
    Adam(0.1),
    AdamW(0.1, betas=(0.8, 0.95), weight_decay=0.2),
    Lion(0.03),
    Adam(schedules.linear(0.1, 0.01, steps=2)),
    chain(weight_decay(0.1), Momentum(0.1)),
    chain(clip_value(0.5), weight_decay(0.3), Adam(0.1)),
    chain(clip_norm(0.7), clip_value(0.1), AdamW(0.1)),
    chain(clip_norm(1e4), Nesterov(0.1)),
    groups(
        {"*.bias": Descent(0.1), "deep.*": chain(clip_norm(1.0), Lion(0.1))}, default=chain(clip_norm(2.0), Adam(0.1))
    ),
]


# The kernels under every check. A checked run is a process of its own, so that addresses are told it as offsets.

CHECKED = """
extern "C" __global__ void checked_update(
    Table table, const P* gradients, const Chunk* chunks, bool loose, const double* partials, int count, const S* x,
    const T* m, const T* v, S* new_x, T* new_m, T* new_v) {
    for (int k = 0; k < 4; ++k) {
        table.address[k] += reinterpret_cast<unsigned long long>(gradients);
        table.address[TENSORS / 2 + k] += reinterpret_cast<unsigned long long>(x);
    }
    update_chunk(table, chunks, 0, loose, partials, count, x, m, v, new_x, new_m, new_v);
}
extern "C" __global__ void checked_norm(
    Table table, const P* gradients, const Chunk* chunks, Index count, double* partials) {
    for (int k = 0; k < 4; ++k) table.address[k] += reinterpret_cast<unsigned long long>(gradients);
    sum_squares(table, chunks, count, 0, 1, partials);
}
"""
SIZES, PLACES = (2070, 25, 20, 60), (0, 2071, 2096, 2116)  # segments padded alike to 16 and to 32; their gradients
STARTS, TOTAL = (0, 2080, 2112, 2144), 2208
WHICH = (1, 2, 0, 3)
RECIPES = {  # Adam after one update, Lion, and Adam without clipping after three
    1: {
        "rule": "adam",
        "norm": 1,
        "max_norm": 2.0,
        "rate": 0.1,
        "beta1": 0.9,
        "rest1": 0.1,
        "beta2": 0.99,
        "rest2": 0.01,
    },
    2: {
        "rule": "lion",
        "norm": 1,
        "max_norm": 2.0,
        "rate": 0.1,
        "beta1": 0.9,
        "rest1": 0.1,
        "beta2": 0.99,
        "rest2": 0.01,
    },
    3: {"rule": "adam", "rate": 0.2, "beta1": 0.8, "rest1": 0.2, "beta2": 0.9, "rest2": 0.1},
}


def checked_table(dtype, *, loose):
    fields = optimise.recipe_fields()
    rows = [(0,) * len(fields)]
    for recipe in RECIPES.values():
        full = {"max_value": np.inf, "coefficient": 0.5, "epsilon": 0.1} | recipe
        full["rule"] = optimise.RULES.index(full["rule"])
        rows.append(tuple(full.get(name, 0) for name in fields))
    size = np.dtype(dtype).itemsize
    found = [place * size for place in PLACES]
    return optimise.table(rows, WHICH, found, [s * size for s in STARTS] if loose else None, double=dtype == "float64")


def checked_rows():
    rows = [(start, 0, k, min(size, 2048)) for k, (start, size) in enumerate(zip(STARTS, SIZES, strict=True))]
    return np.array([*rows[:1], (2048, 2048, 0, 22), *rows[1:]], np.int64)


def expected_update(x, m, v, g, partials):
    """What the recipes say, segment by segment, in float64."""
    new = [np.zeros(TOTAL) for _ in range(3)]
    factor = min(1, 2 / (np.sqrt(partials.sum()) + 1e-6))
    for start, size, place, which in zip(STARTS, SIZES, PLACES, WHICH, strict=True):
        at = slice(start, start + size)
        xs, ms, vs, gs = x[at], m[at], v[at], g[place : place + size]
        if which == 2:
            gs = factor * gs + 0.5 * xs
            xs = xs - 0.1 * np.sign(0.9 * ms + 0.1 * gs)
            ms = 0.99 * ms + 0.01 * gs
        elif which:
            b1, b2, rate = (0.9, 0.99, 0.1) if which == 1 else (0.8, 0.9, 0.2)
            gs = (factor if which == 1 else 1) * gs + 0.5 * xs
            ms, vs = b1 * ms + (1 - b1) * gs, b2 * vs + (1 - b2) * gs * gs
            xs = xs - rate * ms / (np.sqrt(vs) + 0.1)
        for array, value in zip(new, (xs, ms, vs), strict=True):
            array[at] = value
    return new


@pytest.mark.parametrize(("dtype", "loose"), [("float32", False), ("float64", True)])
def test_the_update_passes_every_check(dtype, loose):
    requires("compiler")
    from culux.testing.cuda import check_kernel

    rng = np.random.default_rng(0)
    x, m, v = (rng.standard_normal(TOTAL).astype(dtype) for _ in range(3))
    g, partials = rng.standard_normal(2176).astype(dtype), rng.random(700)
    v *= v
    out = [np.empty(TOTAL, dtype) for _ in range(3)]
    table = checked_table(dtype, loose=loose)[0]
    args = [table, g, checked_rows(), np.bool_(loose), partials, np.int32(700), x, m, v, *out]
    text = program("optimise", dtype, constants=optimise.CONSTANTS).text + CHECKED
    report = check_kernel(
        text, args, (5,), (64,), name="checked_update",
        reference=lambda *_: tuple(a.astype(dtype) for a in expected_update(x, m, v, g, partials)),
    )  # fmt: skip
    note("optimise", "optimise_update", report)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_norm_passes_every_check(dtype):
    requires("compiler")
    from culux.testing.cuda import check_kernel

    g = np.random.default_rng(0).standard_normal(2176).astype(dtype)
    text = program("optimise", dtype, constants=optimise.CONSTANTS).text + CHECKED
    args = [checked_table(dtype, loose=False)[0], g, checked_rows(), np.int64(5), np.empty(2)]
    squares = g.astype("float64") ** 2
    expected = [squares[:2048].sum() + squares[2071:2096].sum(), squares[2048:2070].sum()]
    reference = {"rtol": 1e-5, "reference": lambda *_: np.array(expected)}
    note("optimise", "optimise_norm", check_kernel(text, args, (2,), (64,), name="checked_norm", **reference))


def test_a_launch_has_no_more_parameters_than_every_gpu_takes():
    for double in (False, True):
        table = optimise.table([], [], [], None, double=double)
        assert table.nbytes + 16 * 8 <= 4096


# Every rule, against the rules as they are written and against PyTorch.


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-12), ("float32", 2e-5)])
def test_every_rule(rule, dtype, rtol, standin_cupy):
    ps, grads = uneven(dtype), uneven_gradients(4, dtype)
    state, expected = steps(rule, ps, grads)
    on_device, found = steps(rule, on(standin_cupy, ps), on(standin_cupy, grads))
    assert_close(found, expected, rtol)
    assert_close(on_device.moments, state.moments, rtol)
    for moment in culux.to_numpy(on_device.moments[dtype]):
        assert moment[2070:2080].tolist() == [0] * 10  # the padding


def test_adam_is_one_launch_and_with_clipping_two(standin_cupy):
    ps, grads = on(standin_cupy, uneven("float32")), on(standin_cupy, uneven_gradients(3, "float32"))
    for rule, launches in ((Adam(0.1), 1), (chain(clip_norm(1.0), AdamW(0.1)), 2)):
        state, mine = optim.update(optim.setup(rule, ps), ps, grads[0])
        for ps_now in (mine, ps):  # views of a flat buffer, loose ones
            standin_cupy.machine.library_calls = 0
            counted = cost(lambda state=state, ps_now=ps_now: optim.update(state, ps_now, grads[1]))
            assert (counted.launches, counted.transfers) == (launches, ())
            assert counted.allocations == 3 + (launches == 2)
            assert standin_cupy.machine.library_calls == 0


def torch_rules(torch):
    return [
        (Descent(0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
        (Momentum(0.1), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        (Nesterov(0.1), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True)),
        (chain(weight_decay(0.2), Momentum(0.1)), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.2)),
        (RMSProp(0.01), lambda p: torch.optim.RMSprop(p, lr=0.01)),
        (Adam(0.1), lambda p: torch.optim.Adam(p, lr=0.1)),
        (AdamW(0.1, weight_decay=0.3), lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.3)),
    ]


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("clip", [None, 1.5])
def test_the_rules_are_those_of_torch(number, clip, standin_cupy):
    torch = pytest.importorskip("torch")
    rule, make = torch_rules(torch)[number]
    ps, grads = uneven(), uneven_gradients(5)
    tensors = [torch.tensor(leaf, requires_grad=True) for leaf in tree.leaves(ps)]
    optimiser = make(tensors)
    for g in grads:
        for tensor, leaf in zip(tensors, tree.leaves(g), strict=True):
            tensor.grad = torch.tensor(leaf)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(tensors, clip)
        optimiser.step()
    rule = rule if clip is None else chain(clip_norm(clip), *(rule.rules if isinstance(rule, chain) else (rule,)))
    _, found = steps(rule, on(standin_cupy, ps), on(standin_cupy, grads))
    assert_close(found, [tensor.detach().numpy() for tensor in tensors], 1e-12)


# Dtypes and places.


@pytest.mark.parametrize(("dtype", "rtol"), [("float16", 2e-3), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("wide", [False, True])
def test_half_precision_has_moments_in_float32(dtype, rtol, wide, standin_cupy):
    ps, grads = uneven(dtype), uneven_gradients(3, dtype)
    grads = [tree.map(lambda a: a.astype("float32") * 1.001, g) for g in grads] if wide else grads
    state, expected = steps(chain(clip_norm(3.0), Adam(0.1)), ps, grads)
    on_device, found = steps(chain(clip_norm(3.0), Adam(0.1)), on(standin_cupy, ps), on(standin_cupy, grads))
    assert_close(found, expected, rtol)
    assert_close(on_device.moments, state.moments, 1e-5)
    assert standin_cupy.machine.library_calls == 2  # the zeros of setup


def test_one_norm_over_several_dtypes(standin_cupy):
    ps = Tree(a=uneven("float32"), b=uneven("float64", 7), c=uneven("float16", 8))
    every = [uneven_gradients(2, dtype) for dtype in ("float32", "float64", "float16")]
    grads = [Tree(a=a, b=b, c=c) for a, b, c in zip(*every, strict=True)]
    rule = chain(clip_norm(1.0), Adam(0.1))
    _, expected = steps(rule, ps, grads)
    before = standin_cupy.machine.launches
    _, found = steps(rule, on(standin_cupy, ps), on(standin_cupy, grads))
    assert standin_cupy.machine.launches - before == 2 * 6
    for name, rtol in (("a", 1e-5), ("b", 1e-6), ("c", 2e-3)):  # NumPy's norm is of float32 sums
        assert_close(found[name], expected[name], rtol)


def test_strided_arrays_are_copied(standin_cupy):
    ps = Tree(a=np.arange(12.0).reshape(4, 3).T, b=np.ones(2))
    g = Tree(a=np.arange(12.0).reshape(3, 4), b=np.arange(8.0)[::4])
    _, expected = steps(Adam(0.1), ps, [g])
    wide = standin_cupy.asarray(np.arange(8.0))
    found_g, found_ps = Tree(a=standin_cupy.asarray(g.a), b=wide[::4]), on(standin_cupy, ps)
    state = optim.setup(Adam(0.1), found_ps)
    loose = found_ps.replace(a=standin_cupy.asarray(np.arange(12.0).reshape(4, 3)).T)
    assert not loose.a.flags.c_contiguous
    assert not found_g.b.flags.c_contiguous
    assert_close(optim.update(state, loose, found_g)[1], expected, 1e-12)


def test_other_dtypes_and_numbers_are_gathered(standin_cupy):
    ps = Tree(b=np.ones(2, "float32"), c=np.ones((), "float32"))
    g = Tree(b=np.arange(2.0), c=0.5)
    _, expected = steps(Adam(0.1), ps, [g])
    found_ps, found_g = on(standin_cupy, ps), Tree(b=standin_cupy.asarray(g.b), c=0.5)
    assert_close(steps(Adam(0.1), found_ps, [found_g])[1], expected, 1e-6)
    loose = found_ps.replace(b=standin_cupy.ones(2, "float32"))
    assert_close(optim.update(optim.setup(Adam(0.1), found_ps), loose, found_g)[1], expected, 1e-6)
    with pytest.raises(culux.errors.ShapeError, match=r"grads at b: expected an array of shape \(2,\), got"):
        steps(Adam(0.1), found_ps, [found_g.replace(b=standin_cupy.ones(3))])


def test_views_at_any_address(standin_cupy):
    ps, g = np.arange(100, dtype="float32"), np.linspace(-1, 1, 103, dtype="float32")
    on_device = standin_cupy.asarray(g)
    for offset in range(4):
        _, found = steps(Adam(0.1), standin_cupy.asarray(ps), [on_device[offset : offset + 100]] * 2)
        expected = by_hand(ps.astype("float64"), [g[offset : offset + 100].astype("float64")] * 2, 0.1)
        np.testing.assert_allclose(found.get(), expected, rtol=1e-5, atol=1e-5)
