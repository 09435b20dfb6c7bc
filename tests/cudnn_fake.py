"""Stands for NVIDIA's cuDNN frontend, the module `cudnn`: its graphs over the stand-in CuPy's memory.

It has the part of ``cudnn.pygraph`` that convolutions take, as it is documented, with both kinds of handles. What the
real one would refuse, forget or misread on the GPU is a `Complaint`. Products are made in double by one product per
tap, of inputs rounded to TF32 where the plan says so.
"""

from __future__ import annotations

import enum
import importlib.machinery
import itertools
import threading
import time
import types
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from tests.kernel_support import dtype_of
from tests.standin_cupy import runtime

data_type = enum.Enum("data_type", "NOT_SET FLOAT DOUBLE HALF BFLOAT16")
heur_mode = enum.Enum("heur_mode", "A B FALLBACK")
numerical_note = enum.Enum(
    "numerical_note", "TENSOR_CORE DOWN_CONVERT_INPUTS REDUCED_PRECISION_REDUCTION NONDETERMINISTIC WINOGRAD FFT"
)
DTYPES = {"FLOAT": "float32", "DOUBLE": "float64", "HALF": "float16", "BFLOAT16": "bfloat16"}
STEPS = ("validate", "build_operation_graph", "create_execution_plans", "check_support", "build_plans")


class Complaint(AssertionError):
    """What the real library would refuse, or do wrong without a word."""


def check(condition, why):
    if not condition:
        raise Complaint(why)


class cudnnGraphNotSupportedError(Exception):
    pass


class Engine(NamedTuple):
    name: str
    notes: frozenset = frozenset()
    workspace: int = 0


ENGINES = (
    *(Engine(note.name, frozenset([note])) for note in numerical_note if note.name in (
        "DOWN_CONVERT_INPUTS", "NONDETERMINISTIC", "REDUCED_PRECISION_REDUCTION"
    )),
    Engine("hungry", workspace=2**31),
    Engine("tensor cores", frozenset([numerical_note.TENSOR_CORE]), 1000),
    Engine("plain", frozenset([numerical_note.WINOGRAD]), 300),
)  # fmt: skip


class Handle:
    """The frontend's handle from 1.28 on; until then there is a number."""

    def __init__(self, number):
        self.number = number


class Execution(NamedTuple):
    operation: str
    engine: str
    handle: int
    stream: int
    device: int
    workspace: int


class FakeLibrary:
    """What tests set and ask of the stand-in.

    Attributes:
        handles_are_objects: which kind of handles there are.
        streams: whether work goes to the stand-in's streams, which are for one host thread.
        engines: what the heuristics propose, the best first.
        fail: by the name of a function, what its next call raises.
        graphs: those that were planned.
        executions: the calls that were executed.
    """

    def __init__(self, cupy, handles_are_objects, streams):
        self.cupy, self.handles_are_objects, self.streams = cupy, handles_are_objects, streams
        self.engines = ENGINES
        self.fail = {}
        self.graphs, self.executions = [], []
        self.devices, self.current = {}, {}  # the devices and the streams of handles
        self.memories = []
        self.busy = {}
        self.module = self._module()

    def _module(self):
        module = types.ModuleType("cudnn")
        module.__spec__ = importlib.machinery.ModuleSpec("cudnn", None)
        module.__version__ = "1.28.0" if self.handles_are_objects else "1.23.0"
        for item in (data_type, heur_mode, numerical_note, cudnnGraphNotSupportedError):
            setattr(module, item.__name__, item)
        module.backend_version_string = lambda: "9.10.2"
        module.create_handle, module.set_stream = self.create_handle, self.set_stream

        class pygraph(Graph):
            library = self

        module.pygraph = pygraph
        return module

    def enter(self, function):
        """Refuse what the stream's capture does not take, or what the test wants to fail."""
        capturing = self.cupy.cuda.get_current_stream().is_capturing()
        check(not capturing or function in ("execute", "set_stream"), f"{function} while the stream is captured")
        if function in self.fail:
            raise self.fail.pop(function)

    def create_handle(self):
        self.enter("create_handle")
        number = 1000 + len(self.devices)
        self.devices[number], self.current[number] = runtime.current_device(), 0
        return Handle(number) if self.handles_are_objects else number

    def set_stream(self, handle, stream):
        self.enter("set_stream")
        check(type(stream) is int, f"a stream is an address, not {stream!r}")
        self.current[self.number(handle)] = stream

    def number(self, handle):
        check(isinstance(handle, Handle) is self.handles_are_objects, f"{handle!r} is no handle of this version")
        number = handle.number if self.handles_are_objects else handle
        check(number in self.devices, f"nobody created the handle {handle!r}")
        check(self.devices[number] == runtime.current_device(), "the handle is of another device than the current one")
        return number

    def memory_at(self, address, nbytes):
        """The stand-in's memory that has these bytes, and where they begin in it."""
        check(type(address) is int, f"an array goes by its address, not as {type(address).__name__}")
        for memory in self.memories:
            offset = address - memory.root.ctypes.data
            if memory.in_use and 0 <= offset and offset + nbytes <= memory.asked:
                check(memory.device == runtime.current_device(), "memory of another device")
                return memory, offset
        raise Complaint(f"no array has the {nbytes} bytes at {address:#x}")

    @contextmanager
    def alone(self, *things):
        """A context that no second thread may be in for one of these."""
        locks = [self.busy.setdefault(thing, threading.Lock()) for thing in things]
        for lock in locks:
            check(lock.acquire(blocking=False), "a handle or a plan is used by two threads at once")
        try:
            yield
        finally:
            for lock in locks:
                lock.release()


class Tensor:
    """A tensor of a graph; setters return it."""

    def __init__(self, name="", dim=None, stride=None, data_type=None, uid=None, output=False):
        self.name, self.dim, self.stride, self.data_type = name, dim, stride, data_type
        self.uid, self.output = uid, output

    def set_output(self, value):
        self.output = value
        return self

    def set_data_type(self, value):
        self.data_type = value
        return self

    def set_uid(self, value):
        self.uid = value
        return self

    def set_dim(self, value):
        self.dim = value
        return self

    def set_stride(self, value):
        self.stride = value
        return self

    @property
    def dtype(self):
        return dtype_of(DTYPES[self.data_type.name])

    def check(self):
        for numbers in (self.dim, self.stride):
            check(type(numbers) is list and all(type(n) is int and n > 0 for n in numbers), f"lengths: {numbers!r}")
        check(len(self.dim) == len(self.stride) in (4, 5), f"expected 2 or 3 spatial axes, got {self.dim}")
        row_major = np.cumprod([1, *self.dim[:0:-1]])[::-1].tolist()
        check(self.stride == row_major, f"expected strides in elements, {row_major}, got {self.stride}")
        check(type(self.uid) is int and self.uid > 0, f"uid {self.uid!r}")


class Graph:
    """``cudnn.pygraph``."""

    library = None

    def __init__(
        self, name="test_graph", io_data_type=data_type.NOT_SET, intermediate_data_type=data_type.NOT_SET,
        compute_data_type=data_type.NOT_SET, handle=None,
    ):  # fmt: skip
        self.io, self.intermediate, self.compute = io_data_type, intermediate_data_type, compute_data_type
        check(handle is not None, "without a handle the graph makes one of its own")
        self.handle = self.library.number(handle)
        self.tensors, self.done = [], []
        self.barred, self.limit = set(), None
        self.engine = None

    def tensor(
        self, dim, stride, data_type=data_type.NOT_SET, is_virtual=False, is_pass_by_value=False, ragged_offset=None,
        reordering_type=None, name="", uid=-1,
    ):  # fmt: skip
        self.tensors.append(Tensor(name, dim, stride, data_type, uid))
        return self.tensors[-1]

    def conv_fprop(self, image, weight, pre_padding, post_padding, stride, dilation, name=""):
        return self._add("fprop", image, weight, None, pre_padding, post_padding, stride, dilation)

    def conv_dgrad(self, loss, filter, pre_padding, post_padding, stride, dilation, name=""):
        return self._add("dgrad", None, filter, loss, pre_padding, post_padding, stride, dilation)

    def conv_wgrad(self, image, loss, pre_padding, post_padding, stride, dilation, name=""):
        return self._add("wgrad", image, None, loss, pre_padding, post_padding, stride, dilation)

    def _add(self, operation, image, weight, loss, *places):
        result = Tensor()
        self.operation, self.places = operation, places
        self.roles = [result if tensor is None else tensor for tensor in (image, weight, loss)]
        self.tensors.append(result)
        return result

    def _step(self, name):
        self.library.enter(name)
        check(self.done == list(STEPS[: STEPS.index(name)]), f"{name} after {self.done}")
        self.done.append(name)

    def validate(self):
        self._step("validate")
        for tensor in self.tensors:
            tensor.check()
        check(len({tensor.uid for tensor in self.tensors}) == 3, "two tensors of one uid")
        check([tensor.output for tensor in self.tensors] == [False, False, True], "the result is to be marked")
        check({tensor.data_type for tensor in self.tensors} == {self.io}, "tensors of several dtypes")
        wanted = data_type.DOUBLE if self.io is data_type.DOUBLE else data_type.FLOAT
        check(self.compute is self.intermediate is wanted, f"{self.io} is to be computed in {wanted}")
        x, weight, y = (tensor.dim for tensor in self.roles)
        axes = len(x) - 2
        check(all(type(p) is list and len(p) == axes for p in self.places), f"lists of {axes} numbers: {self.places}")
        check(all(type(n) is int and n >= 0 for n in itertools.chain(*self.places)), "no number may be negative")
        lengths = [
            (n + low + high - (k - 1) * d - 1) // s + 1
            for n, k, low, high, s, d in zip(x[2:], weight[2:], *self.places, strict=True)
        ]
        check(y == [x[0], weight[0], *lengths], f"expected y {[x[0], weight[0], *lengths]}, got {y}")
        check(x[1] % weight[1] == 0 and weight[0] % (x[1] // weight[1]) == 0, f"groups of {x} and {weight}")

    def build_operation_graph(self):
        self._step("build_operation_graph")

    def create_execution_plans(self, heuristics):
        self._step("create_execution_plans")
        check(heuristics == [heur_mode.A, heur_mode.FALLBACK], f"heuristics {heuristics}")

    def deselect_numeric_notes(self, notes):
        check("create_execution_plans" in self.done, "notes that no plan has yet are forgotten")
        check(all(isinstance(note, numerical_note) for note in notes), f"notes {notes}")
        self.barred.update(notes)

    def deselect_workspace_greater_than(self, limit):
        self.limit = limit

    def check_support(self):
        self._step("check_support")
        for engine in self.library.engines:
            if not engine.notes & self.barred and engine.workspace <= self.limit:
                self.engine = engine
                return
        raise cudnnGraphNotSupportedError("No execution plans support the graph.\nand more lines")

    def build_plans(self):
        self._step("build_plans")
        self.library.graphs.append(self)

    def get_workspace_size(self):
        check("build_plans" in self.done, "no plan yet")
        return self.engine.workspace

    def execute(self, tensor_to_device_buffer, workspace, handle=None):
        library = self.library
        library.enter("execute")
        check("build_plans" in self.done, "no plan yet")
        number = library.number(handle)
        stream = library.cupy.cuda.get_current_stream()
        with library.alone(number, self):
            time.sleep(0)  # where another thread may come in
            check(library.current[number] == stream.ptr, "the handle's stream is not the current one")
            check(number == self.handle, "the plan was made with another handle")
            check(set(tensor_to_device_buffer) == {t.uid for t in self.tensors}, f"{set(tensor_to_device_buffer)}")
            places = [self._place(tensor, tensor_to_device_buffer[tensor.uid]) for tensor in self.roles]
            scratch = [library.memory_at(workspace, self.engine.workspace)[0]] if self.engine.workspace else []
            written = [places[self.roles.index(self.tensors[-1])][0], *scratch]
            read = [memory for memory, _ in places if memory not in written]
            check(len(read) == 2, "the result or the workspace overlaps what is read")

            def work():
                for memory in scratch:
                    memory.root[: memory.asked] = 0xA5
                self._compute([array for _, array in places])

            if library.streams:
                stream.submit(work, read, written)
            else:
                work()
        library.executions.append(
            Execution(self.operation, self.engine.name, number, stream.ptr, runtime.current_device(), workspace)
        )

    def _place(self, tensor, address):
        """A tensor's memory, and the array there."""
        check(address % 16 == 0, f"the address {address:#x} is no multiple of 16, as the frontend promises")
        memory, offset = self.library.memory_at(address, int(np.prod(tensor.dim)) * tensor.dtype.itemsize)
        return memory, np.ndarray(tensor.dim, tensor.dtype, memory.root, offset)

    def _compute(self, arrays):
        """Write the third of x, weight and y from the two others."""
        result = self.roles.index(self.tensors[-1])
        tf32 = numerical_note.TENSOR_CORE in self.engine.notes and self.io is data_type.FLOAT
        x, weight, y = (
            np.zeros(array.shape) if i == result else to_tf32(array) if tf32 else array.astype(np.float64)
            for i, array in enumerate(arrays)
        )
        pre, post, stride, dilation = self.places
        groups = x.shape[1] // weight.shape[1]
        padded = apart(np.pad(x, [(0, 0), (0, 0), *zip(pre, post, strict=True)]), groups)
        factors, rows = weight.reshape(groups, -1, *weight.shape[1:]), apart(y, groups)
        for tap in np.ndindex(*weight.shape[2:]):
            axes = zip(tap, dilation, stride, y.shape[2:], strict=True)
            place = (..., *(slice(t * d, t * d + s * (n - 1) + 1, s) for t, d, s, n in axes))
            of_tap = (..., *tap)
            if result == 0:
                padded[place] += np.einsum("goc,ngo...->ngc...", factors[of_tap], rows)
            elif result == 1:
                factors[of_tap] += np.einsum("ngcp,ngop->goc", flat(padded[place]), flat(rows))
            else:
                rows += np.einsum("goc,ngc...->ngo...", factors[of_tap], padded[place])
        inside = (..., *(slice(low, low + n) for low, n in zip(pre, x.shape[2:], strict=True)))
        arrays[result][...] = (padded[inside], factors, rows)[result].reshape(arrays[result].shape)


def apart(array, groups):
    """An array (N, channels, ...) with an axis of groups before the channels."""
    return array.reshape(len(array), groups, -1, *array.shape[2:])


def flat(array):
    """An array (N, groups, channels, ...) with one axis in place of the spatial ones."""
    return array.reshape(*array.shape[:3], -1)


def to_tf32(array):
    """float32 with 10 bits of mantissa, in double."""
    bits = array.view(np.uint32) + np.uint32(0x1000)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
