"""The test bench for CUDA kernels: right kernels pass every check, each planted defect is found and named."""

from __future__ import annotations

import types
from pathlib import Path

import numpy as np
import pytest

from culux.errors import KernelError
from culux.testing.cuda import EmulatedModule, check_kernel
from culux.testing.cuda.emulator import SCHEDULES
from tests.support import requires

KERNELS = Path(__file__).parent / "kernels"
LINE, BLOCK = (32,), (1,)  # 32 threads in one block
pytestmark = pytest.mark.usefixtures("kernel_cache")


@pytest.fixture(scope="module")
def dense(kernel_cache):
    requires("compiler")
    return EmulatedModule(KERNELS / "dense.cu").kernel()


@pytest.fixture(scope="module")
def samples(kernel_cache):
    requires("compiler")
    return EmulatedModule(KERNELS / "samples.cu", names=("axpy<float, 4>", "axpy<double, 1>"))


@pytest.fixture(scope="module")
def planted(kernel_cache):
    requires("compiler")
    return EmulatedModule(KERNELS / "planted.cu")


def normal(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def dense_case(rows=21, columns=19, inner=40):
    x, w, b = normal(rows, inner), normal(columns, inner, seed=1), normal(columns, seed=2)
    sizes = (np.int32(rows), np.int32(columns), np.int32(inner))
    return (x, w, b, np.zeros((rows, columns), np.float32), *sizes), (2, 2), (16, 16)


def dense_reference(x, w, b, y, *sizes):
    return np.maximum(x.astype(np.float64) @ w.T.astype(np.float64) + b, 0)


def softmax_reference(x, y, columns):
    exponentials = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def softmax_case(columns=70):
    x = normal(3, columns)
    return (x, np.zeros_like(x), np.int32(columns)), (3,), (128,)


def test_dense_passes_every_check(dense):
    report = check_kernel(dense, *dense_case(), reference=dense_reference)
    modes = [run.mode for run in report.runs]
    assert modes == ["bounds", "races", "uninitialised"] + ["schedule"] * 8
    assert str(report).startswith("kernel dense_relu: passed\n  bounds        in order")
    assert report.outputs[3].max() > 1


def test_arguments_are_not_written(dense):
    args, grid, block = dense_case()
    before = [np.copy(value) for value in args]
    check_kernel(dense, args, grid, block, races=False, schedules=["in order"])
    assert all(np.array_equal(value, old) for value, old in zip(args, before, strict=True))


def test_block_sum_with_dynamic_shared_memory(samples):
    x = normal(150)
    args = (x, np.zeros(3, np.float32), np.int32(150))
    padded = np.concatenate([x, np.zeros(42, np.float32)]).reshape(3, 64)
    check_kernel(
        samples.kernel("block_sum"), args, (3,), (64,), shared=256, reference=lambda *_: padded.sum(1, np.float64)
    )


def test_softmax(samples):
    check_kernel(samples.kernel("softmax_rows"), *softmax_case(), reference=softmax_reference)


@pytest.mark.parametrize("counter", [(0, 0, 0, 0), (2**64 - 2, 2**64 - 1, 5, 0), (2**64 - 1,) * 4])
def test_philox_has_the_words_of_numpy(samples, counter):
    key = np.array([0x123456789ABCDEF, 42], np.uint64)
    start = np.array(counter, np.uint64)
    words = np.zeros(101, np.uint64)
    check_kernel(
        samples.kernel("philox_words"),
        (words, key, start, np.int32(101)),
        (2,),
        (16,),
        reference=lambda *_: np.random.Philox(key=key, counter=start).random_raw(101),
    )


@pytest.mark.parametrize(("name", "dtype"), [("axpy<float, 4>", np.float32), ("axpy<double, 1>", np.float64)])
def test_templates(samples, name, dtype):
    x, y = normal(50, dtype=dtype), normal(50, dtype=dtype, seed=1)
    args = (dtype(3), x, y, np.int32(50))
    check_kernel(samples.kernel(name), args, (2,), (32,), inout=[2], reference=lambda a, x, y, n: y + a * x)


def test_16_bit_floats_round_as_numpy_does(samples):
    x = np.concatenate([np.arange(2**16, dtype=np.uint16).view(np.float16)[::7], [65504, 6e-8]]).astype(np.float16)
    u = np.float32([1, 1 / 3, -7.7, 1e30, 3e-39] * (x.size // 5 + 1))[: x.size]
    truncated = (u.view(np.uint32) >> 16).astype(np.uint16)
    y, v = np.empty_like(x), np.empty_like(truncated)
    samples.kernel("scale_16bit")((40,), (256,), (x, y, truncated, v, np.float16(1.7), np.int32(x.size)))
    with np.errstate(over="ignore", invalid="ignore"):
        expected = np.float16(1.7) * x
    np.testing.assert_array_equal(y, expected)
    ml_dtypes = pytest.importorskip("ml_dtypes")
    sums = (truncated.view(ml_dtypes.bfloat16).astype(np.float32) + 1).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(v, sums.view(np.uint16))


def test_votes_and_atomics(samples):
    x = normal(200, 4)
    x[32:64] = -1  # a block without a positive number
    args = (x, np.zeros(1, np.uint32), np.zeros(1, np.int32), np.int32(200))
    check_kernel(
        samples.kernel("count_positive"),
        args,
        (7,),
        (32,),
        inout=[1, 2],
        reference=lambda *_: (np.uint32([(x > 0).sum()]), np.int32([6])),
    )


def test_lanes_that_meet_in_halves_of_a_warp(samples):
    x = np.arange(64, dtype=np.float32)
    check_kernel(
        samples.kernel("rotate_halves"),
        (x, np.zeros_like(x)),
        BLOCK,
        (64,),
        reference=lambda x, y: np.roll(x.reshape(4, 16), -1, axis=1).reshape(-1),
    )


def test_coordinates_in_three_dimensions(samples):
    places = np.zeros((2, 3, 2, 3, 2, 4), np.int32)
    samples.kernel("coordinates")((2, 3, 2), (4, 2, 3), (places,), schedule="random")
    np.testing.assert_array_equal(places.reshape(-1), np.arange(places.size))


def test_shared_memory_does_not_survive_a_block(samples):
    seen = np.zeros((2, 2), np.float32)
    samples.kernel("left_behind")((2,), (1,), (seen,), shared_mem=4)
    assert np.isnan(seen).all()


def test_the_same_source_compiles_for_gpus(samples):
    requires("nvrtc")
    kernel, (args, grid, block) = samples.kernel("softmax_rows"), softmax_case()
    report = check_kernel(
        kernel, args, grid, block, architectures=["75", "90"], bounds=False, races=False, uninitialised=False
    )
    assert [run.detail for run in report.runs[:2]] == ["sm_75", "sm_90"]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_launch_as_of_a_raw_kernel(dense, schedule):
    args, grid, block = dense_case()
    dense(grid, block, args, schedule=schedule, seed=5)
    np.testing.assert_allclose(args[3], dense_reference(*args), rtol=1e-4, atol=1e-4)


def test_raw_kernel_objects_bring_source_name_and_options(samples):
    source = (KERNELS / "samples.cu").read_text()
    raw = types.SimpleNamespace(code=source, name="softmax_rows", options=("-DNO_MIDDLE_BARRIER", "--std=c++17"))
    with pytest.raises(KernelError, match=r"softmax_rows.*differs from the reference.*found by: schedule"):
        check_kernel(raw, *softmax_case(), reference=softmax_reference, bounds=False, races=False, uninitialised=False)


def place(name, file="planted.cu"):
    """Where the defect called `name` is marked."""
    lines = (KERNELS / file).read_text().splitlines()
    return f"{file}:{1 + next(i for i, line in enumerate(lines) if line.endswith(f'MARK {name}'))}"


def planted_case():
    return (normal(32), np.zeros(32, np.float32), np.int32(32))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out_of_bounds", r"write of 4 bytes, heap-buffer-overflow at {place}, 0 bytes after an array of 128 bytes"),
        ("shared_overrun", r"write of 4 bytes, heap-buffer-overflow at {place}, 0 bytes after an array of 128 bytes"),
        ("static_overrun", r"index 31 out of bounds for type 'float ?\[31\]' at {place}"),
        ("misaligned", r"misaligned address .* which requires 16 byte alignment at {place}"),
        ("unwritten_output", r"argument 1 \(float\*\) is never written at index \(31,\), 1 elements in all"),
        ("unwritten_shared", r"shared memory that no thread wrote at index \(31,\).*tile \({place}\)"),
        ("reads_output", r"what the output held before the launch.*pass inout=\(1,\)"),
        ("divergent_barrier", r"divergent barrier: thread \(0, 0, 0\) and 15 more wait in __syncthreads at {place}"),
        ("early_return", r"deadlock: .* 15 more wait in __syncthreads at {place}; .* \(16, 0, 0\) .* have ended"),
        ("half_warp", r"deadlock: .* in __shfl_down_sync at {place} \(mask 0xffffffff\); .* 15 more have ended"),
        ("no_syncwarp", r"data race on no_syncwarp::tile: .* 4 bytes at {place} and .* of 4 bytes at planted.cu:79"),
        (
            "warp_write_after_read",
            r"race on warp_write_after_read::tile: .* and write of 4 bytes at {place}",
        ),
        ("lost_update", r"data race on lost_update::sum: (read|write) of 4 bytes at {place} and write.* at {place}"),
    ],
)
def test_planted_defect_is_found_and_named(planted, name, message):
    marked = "{place}" in message
    message = message.replace("{place}", place(name)) if marked else message
    grid = (2,) if name == "out_of_bounds" else BLOCK
    with pytest.raises(KernelError, match=f"kernel {name}: .*{message}"):
        check_kernel(planted.kernel(name), planted_case(), grid, LINE, shared=128)


def test_deadlock_is_found_in_an_unchecked_launch_and_the_next_launch_works(planted):
    with pytest.raises(KernelError, match=r"early_return: deadlock.*block \(0, 0, 0\)\) \[schedule reversed, seed 0\]"):
        planted.kernel("early_return")(BLOCK, LINE, planted_case(), schedule="reversed")
    x, y, n = planted_case()
    planted.kernel("static_overrun")(BLOCK, (31,), (x, y, n))
    np.testing.assert_array_equal(y[:31], x[:31])


def test_kernel_that_never_ends(planted):
    with pytest.raises(KernelError, match=r"never_ends: did not end within 0\.5 s; does a loop never end"):
        check_kernel(planted.kernel("never_ends"), planted_case(), BLOCK, LINE, timeout=0.5)


def test_unwritten_output_that_the_reference_leaves_alone_too(planted):
    def copy_all_but_last(x, y, n):
        y[: n - 1] = x[: n - 1]

    check_kernel(planted.kernel("unwritten_output"), planted_case(), BLOCK, LINE, reference=copy_all_but_last)


@pytest.fixture(scope="module")
def missing_barrier(kernel_cache):
    requires("compiler")
    return EmulatedModule(KERNELS / "dense.cu", options=("-DNO_SECOND_BARRIER",)).kernel()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_missing_barrier_gives_wrong_results_in_every_schedule(missing_barrier, schedule):
    with pytest.raises(KernelError, match=rf"dense_relu: argument 3 .* differs from the reference .*{schedule}"):
        check_kernel(
            missing_barrier,
            *dense_case(),
            reference=dense_reference,
            schedules=[schedule],
            bounds=False,
            races=False,
            uninitialised=False,
        )


def test_missing_barrier_is_a_race_on_the_tile(missing_barrier):
    with pytest.raises(
        KernelError, match=r"data race on dense_relu::[xw]s: .* at dense.cu:1[346] and .* at dense.cu:1[346]"
    ):
        check_kernel(missing_barrier, *dense_case(), bounds=False, uninitialised=False, schedules=[])


@pytest.fixture(scope="module")
def subtle(kernel_cache):
    requires("compiler")
    return EmulatedModule(KERNELS / "samples.cu", options=("-DNO_MIDDLE_BARRIER",)).kernel("softmax_rows")


def test_write_after_read_is_found_by_unfair_schedules(subtle):
    checks = {"reference": softmax_reference, "bounds": False, "races": False, "uninitialised": False}
    with pytest.raises(KernelError, match=r"softmax_rows.*differs from the reference.*schedule unfair"):
        check_kernel(subtle, *softmax_case(), schedules=["unfair"], **checks)


def test_write_after_read_is_a_race(subtle):
    with pytest.raises(
        KernelError, match=r"data race on softmax_rows::red: write .*samples.cu:4\d and .*read .*samples"
    ):
        check_kernel(subtle, *softmax_case(), bounds=False, uninitialised=False, schedules=[])


def test_misaligned_input_array(samples):
    x = normal(5 * 4)[1:17].reshape(4, 4)
    args = (x, np.zeros(1, np.uint32), np.zeros(1, np.int32), np.int32(4))
    with pytest.raises(KernelError, match=r"count_positive: .*misaligned address .* 16 byte alignment at samples.cu"):
        check_kernel(samples.kernel("count_positive"), args, (1,), (32,), inout=[1, 2])


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (
            0,
            np.zeros((32, 2), np.float32)[:, 0],
            r"argument 0 of kernel \w+ \(const float\*\): expected a C-contiguous",
        ),
        (0, np.zeros(32), r"expected an array of float32, got float64 array of shape \(32,\)"),
        (0, np.float32(1), r"expected a NumPy array of float32 or None, got float32 array of shape \(\)"),
        (1, np.broadcast_to(np.float32(0), 1), r"argument 1 .* \(float\*\): expected an array that can be written"),
        (2, 32, r"argument 2 .* \(int\): got the Python number 32, which CuPy passes as int64; pass np.int32\(32\)"),
        (2, np.float32(32), r"argument 2 .* \(int\): expected a scalar of int32, got float32 32.0; pass np.int32"),
        (2, np.int64(32), r"expected a scalar of int32, got int64 32"),
        (2, "32", r"expected a NumPy scalar of int32, got str '32'"),
    ],
)
def test_arguments_that_a_gpu_would_misread(planted, position, value, message):
    args = list(planted_case())
    args[position] = value
    with pytest.raises(KernelError, match=message):
        planted.kernel("reads_output")(BLOCK, LINE, args)


def test_python_float_for_float(samples):
    x = normal(4)
    with pytest.raises(KernelError, match=r"\(float\): got the Python number 2.0, .* float64; pass np.float32\(2.0\)"):
        samples.kernel("axpy<float, 4>")(BLOCK, LINE, (2.0, x, x.copy(), np.int32(4)))
    y = np.zeros(4)
    samples.kernel("axpy<double, 1>")(BLOCK, LINE, (2.0, x.astype(np.float64), y, np.int32(4)))  # as CuPy passes it
    np.testing.assert_array_equal(y, 2.0 * x)


def test_wrong_number_of_arguments(planted):
    with pytest.raises(KernelError, match=r"reads_output takes 3 arguments \(const float\*, float\*, int\), got 2"):
        check_kernel(planted.kernel("reads_output"), planted_case()[:2], BLOCK, LINE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": (2048,)}, r"expected block to be 1 to 3 integers .* and 1024 threads at most, got \(2048,\)"),
        ({"block": (32, 64)}, r"1024 threads at most, got \(32, 64\)"),
        ({"grid": (0,)}, r"expected grid to be 1 to 3 integers from 1 .* got \(0,\)"),
        ({"schedule": "unfare"}, r"no schedule 'unfare' \(did you mean 'unfair'\?\); there are: in order, reversed"),
        ({"shared_mem": 2**20}, r"expected 0 to 232448 bytes of shared memory, got 1048576"),
    ],
)
def test_launches_that_a_gpu_would_refuse(planted, changes, message):
    launch = {"grid": BLOCK, "block": LINE, "args": planted_case(), **changes}
    with pytest.raises(KernelError, match=message):
        planted.kernel("reads_output")(**launch)


def test_which_kernel(planted):
    with pytest.raises(KernelError, match=r"planted.cu has 14 kernels \(out_of_bounds, .*\): say which, with name="):
        planted.kernel()
    with pytest.raises(KernelError, match=r"has no kernel 'half_wrap' \(did you mean 'half_warp'\?\)"):
        planted.kernel("half_wrap")
    with pytest.raises(KernelError, match=r"takes CUDA source, the path of a .cu file, .* got int 3"):
        check_kernel(3, (), BLOCK, LINE)
    with pytest.raises(KernelError, match=r"cannot read the kernel source nowhere.cu: No such file"):
        check_kernel("nowhere.cu", (), BLOCK, LINE)


def test_reference_with_the_wrong_number_of_outputs(planted):
    with pytest.raises(KernelError, match=r"writes 1 arrays \(arguments \[1\].*but the reference returned 2"):
        check_kernel(
            planted.kernel("unwritten_output"),
            planted_case(),
            BLOCK,
            LINE,
            reference=lambda x, y, n: (x, y),
            bounds=False,
            races=False,
            uninitialised=False,
        )
