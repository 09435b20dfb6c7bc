"""The stand-in's raw kernels: their source runs on the CPU, through `culux.testing.cuda.EmulatedModule`."""

from __future__ import annotations

import functools
import re
import weakref

import numpy as np

from tests.standin_cupy import runtime
from tests.standin_cupy.array import check_device, memories, ndarray
from tests.standin_cupy.errors import CompileException, CUDADriverError, StandinError
from tests.standin_cupy.runtime import machine

_DEFAULT_SHARED, _MOST_SHARED = 48 * 1024, 227 * 1024
_SCALARS = {np.dtype(code).type for code in "?bhilqBHILQefdFD"} | {bool, int, float, complex}  # no struct, no bfloat16
_modules = {}


class RawKernel:
    """A kernel as `cupy.RawKernel` makes it; compiled at the first launch on a device."""

    def __init__(self, code, name, options=(), backend="nvrtc", *, _expressions=None):
        if not isinstance(options, tuple):
            raise TypeError(f"Argument 'options' has incorrect type (expected tuple, got {type(options).__name__})")
        self.code, self.name, self.options, self.backend = code, name, options, backend
        self.name_expressions = _expressions
        self.__name__ = name
        self._functions = {}

    def __call__(self, grid, block, args, *, shared_mem=0):
        self.kernel(grid, block, args, shared_mem)

    @property
    def kernel(self):
        device = runtime.current_device()
        if device not in self._functions:
            self._functions[device] = Function(compiled(self), self.name)
        return self._functions[device]

    def compile(self, log_stream=None):
        self._functions.clear()
        return self.kernel and None

    @property
    def max_dynamic_shared_size_bytes(self):
        return self.kernel.most_shared

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size):
        if not 0 <= size <= _MOST_SHARED:
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        self.kernel.most_shared = size


class RawModule:
    """The kernels of a source; as in CuPy, `get_function` compiles it."""

    def __init__(self, *, code, options=(), backend="nvrtc", name_expressions=None):
        self.code, self.options, self.backend = code, options, backend
        self.name_expressions = None if name_expressions is None else tuple(name_expressions)

    def get_function(self, name):
        kernel = RawKernel(self.code, name, self.options, self.backend, _expressions=self.name_expressions)
        kernel.compile()
        return kernel


class Function:
    """A compiled kernel on one device."""

    def __init__(self, kernel, name):
        self.emulated, self.name = kernel, name
        self.most_shared = _DEFAULT_SHARED

    def __call__(self, grid, block, args, shared_mem=0, stream=None):
        for what, sizes in (("grid", grid), ("block", block)):
            if not isinstance(sizes, tuple):
                raise TypeError(f"Argument '{what}' has incorrect type (expected tuple, got {type(sizes).__name__})")
        from culux.testing.cuda.arguments import check_arguments

        named = tuple(weakref.proxy(arg) if isinstance(arg, ndarray) else arg for arg in args)  # the log keeps none
        machine.log.append(("launch", self.name, grid, block, named, shared_mem))
        values = [argument(arg) for arg in args]
        if shared_mem > self.most_shared:
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        check_device([arg for arg in args if isinstance(arg, ndarray)])
        parameters = self.emulated.parameters
        check_arguments(self.name, parameters, values)
        machine.launches += 1
        pairs = [pair for pair in zip(args, parameters, strict=True) if isinstance(pair[0], ndarray)]
        reads = [arg for arg, parameter in pairs if parameter.const]
        changed = [arg for arg, parameter in pairs if not parameter.const]
        sizes = [tuple(max(1, int(size)) for size in sizes) for sizes in (grid, block)]
        written = memories(changed)
        run = functools.partial(self.emulated, *sizes, values, shared_mem=shared_mem)
        work = functools.partial(run_within_bounds, self.name, run, [(memory, memory.asked) for memory in written])
        stream = runtime.get_current_stream() if stream is None else stream
        stream.submit(work, memories(reads), written)


def run_within_bounds(name, run, ends):
    """Run a kernel, and see that it wrote nothing right behind its arrays.

    A replayed graph comes back to blocks in which longer arrays have been since.
    """
    for memory, end in ends:
        memory.poison_behind(end)
    run()
    if any(memory.is_overrun(end) for memory, end in ends):
        raise StandinError(f"kernel {name} wrote past the end of an array")


def argument(value):
    """What a launch passes: memory, a null pointer, or the bytes of a number or a struct."""
    if isinstance(value, ndarray):
        return value._host
    if value is None or type(value) in _SCALARS:
        return value
    if isinstance(value, np.ndarray):
        if value.size == 1:
            return value.reshape(()).copy()[()]  # a struct would else be a view of the array
        raise TypeError(
            f"You are trying to pass a numpy.ndarray of shape {value.shape} as a kernel parameter. Only"
            " numpy.ndarrays of size one can be passed by value."
        )
    raise TypeError(f"Unsupported type {type(value)}")


def compiled(kernel):
    """The emulated kernel; one module per source, options and names in a process."""
    from culux.errors import KernelError
    from culux.testing.cuda import EmulatedModule

    names = kernel.name_expressions or ()
    key = (kernel.code, kernel.options, names)
    if key not in _modules:
        try:
            _modules[key] = EmulatedModule(kernel.code, names=names, options=kernel.options)
        except KernelError as error:
            if "does not compile for the emulator" not in str(error):
                raise
            raise CompileException(str(error), kernel.code, kernel.name, kernel.options) from error
    module = _modules[key]
    if kernel.name not in module.translation.kernels or not (kernel.name in names or _is_c(kernel)):
        raise CUDADriverError("CUDA_ERROR_NOT_FOUND: named symbol not found")
    return module.kernel(kernel.name)


def _is_c(kernel):
    """Whether the kernel's symbol is its bare name: it is declared `extern "C"`, alone or in a block."""
    declared = re.search(rf"__global__[^;{{}}]*\b{re.escape(kernel.name)}\s*\(", kernel.code)
    if declared is None:
        return False
    before = kernel.code[: declared.start()]
    in_block = any(
        before.count("{", start) > before.count("}", start)
        for start in (match.start() for match in re.finditer(r'extern\s*"C"\s*\{', before))
    )
    return in_block or re.search(r'extern\s*"C"[^;{}]*$', before) is not None
