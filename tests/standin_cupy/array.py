"""The stand-in's `ndarray`: a wrapper of NumPy arrays, not a subclass, so that no host function takes it."""

from __future__ import annotations

import functools
import operator

import numpy as np

from tests.standin_cupy import capture, indexing, runtime
from tests.standin_cupy.errors import StandinError
from tests.standin_cupy.memory import MemoryPointer, alloc
from tests.standin_cupy.runtime import machine, root_of

SCALARS = (bool, int, float, complex, np.generic)
HOOK = "__cupy_override_elementwise_kernel__"


def wrap(result, inputs=()):
    """A NumPy result as a device array in new memory; a view of an input shares the input's memory."""
    if isinstance(result, tuple | list):
        return type(result)(wrap(item, inputs) for item in result)
    host = np.asarray(result)
    owner = root_of(host)
    for array in inputs:
        if array._host is host:
            return array
        if owner is root_of(array._host):
            return ndarray._of(host, array._allocation)
    strides = None if host.flags.c_contiguous else np.empty_like(host).strides
    made = ndarray(host.shape, host.dtype, alloc(host.nbytes), strides)
    made._host[...] = host
    return made


def unwrap(value, found):
    """The argument with NumPy arrays in place of device arrays, which are collected in `found`."""
    if isinstance(value, ndarray):
        found.append(value)
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if type(value) in (tuple, list):
        return type(value)(unwrap(item, found) for item in value)
    return value


def check_device(arrays):
    """Refuse arrays of another device than the current one."""
    device = runtime.current_device()
    for array in arrays:
        if array._allocation.memory.device != device:
            raise ValueError(
                f"The device where the array resides ({array._allocation.memory.device}) is different from the"
                f" current device ({device}). Peer access is unavailable between these devices."
            )


def run(function, args, kwargs, out=None, writes=(), counted=True):
    """Call a NumPy function as work on the current stream; it writes `out` and the arrays of `writes`."""
    found = []
    hosts = [unwrap(arg, found) for arg in args]
    named = {name: unwrap(value, found) for name, value in kwargs.items()}
    written = [*writes] if out is None else [*writes, out]
    check_device(found + written)
    if out is not None:
        named["out"] = out._host
    call = functools.partial(_quietly, function, hosts, named)
    reads, changed = memories(found), memories(written)
    stream = runtime.get_current_stream()
    if stream.capture is not None:
        return _recorded(stream, call, found, out, reads, changed)
    stream.begin(reads, changed)
    result = call()
    made = out if out is not None or result is None else wrap(result, found)
    new = [memory for memory in memories(capture.flat(made)) if memory not in reads]
    machine.library_calls += counted and bool(new or written)
    for memory in new:
        memory.use_on(stream, writing=True)
    return made


def _quietly(function, args, kwargs):
    with np.errstate(all="ignore"):  # a GPU raises no floating-point warnings
        return function(*args, **kwargs)


def _recorded(stream, call, found, out, reads, changed):
    """The result of an operation on a capturing stream: poison, until a graph is launched."""
    capture.refuse(call.args[0].__name__, [array._host for array in found])
    result = capture.preview(call, {*reads, *changed})
    made = out if out is not None or result is None else wrap(result, found)
    results = [None if array is out or array._allocation.memory in reads else array for array in capture.flat(made)]
    new = memories(array for array in results if array is not None)
    machine.library_calls += bool(new or changed)
    targets = [None if array is None else array._host for array in results]
    stream.capture.record(stream, capture.replayed(call, targets), reads, changed + new)
    return made


def memories(arrays):
    return [array._allocation.memory for array in arrays]


def view(function, array, *args, **kwargs):
    """Call a NumPy function that may return a view; a view is no work, and is made on any device."""
    host = function(array._host, *args, **kwargs)
    if isinstance(host, np.ndarray) and root_of(host) is root_of(array._host):
        return ndarray._of(host, array._allocation)
    return run(function, (array, *args), kwargs)


class ndarray:
    """An array on a fake device, with the interface of `cupy.ndarray`."""

    __slots__ = ("__weakref__", "_allocation", "_host")
    __array_priority__ = 100
    __hash__ = None

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C"):
        dtype = np.dtype(dtype)
        shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
        if memptr is None:
            memptr = alloc(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        self._allocation = memptr.mem
        self._host = np.ndarray(shape, dtype, memptr.mem.memory.root, memptr.offset, strides, order)

    @classmethod
    def _of(cls, host, allocation):
        self = cls.__new__(cls)
        self._host, self._allocation = host, allocation
        return self

    # What CuPy refuses, and the ways to the host.

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array"
            " explicitly."
        )

    def get(self, stream=None, order="C", out=None, blocking=True):
        with self.device:
            stream = runtime.get_current_stream() if stream is None else stream
            stream.refuse_capture("D2H transfers")
            stream.begin(memories([self]), ())
            stream.synchronize()
        return np.array(self._host, order=order)

    def set(self, source, stream=None):
        if not isinstance(source, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if source.dtype != self.dtype or source.shape != self.shape:
            raise TypeError(f"{source.dtype} {source.shape} cannot be set to {self.dtype} {self.shape}")
        with self.device:
            pageable = stream is None
            stream = runtime.get_current_stream() if pageable else stream
            stream.refuse_capture("H2D transfers")
            if pageable:
                stream.begin((), memories([self]))
                self._host[...] = source
            else:
                runtime.copy_async(source, self._host, self._allocation, stream)

    def item(self, *args):
        return self.get().item(*args)

    def tolist(self):
        return self.get().tolist()

    def __float__(self):
        return float(self.get())

    def __int__(self):
        return int(self.get())

    def __index__(self):
        return operator.index(self.get())

    def __bool__(self):
        return bool(self.get())

    def __complex__(self):
        return complex(self.get())

    def __repr__(self):
        return repr(self.get())

    def __str__(self):
        return str(self.get())

    def __format__(self, spec):
        return format(self.get(), spec)

    def __reduce__(self):
        from tests.standin_cupy import asarray

        return asarray, (self.get(),)

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    # What it is.

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: self._host.flags)
    data = property(lambda self: MemoryPointer(self._allocation, _offset(self)))
    device = property(lambda self: runtime.Device(self._allocation.memory.device))
    T = property(lambda self: view(np.transpose, self))
    mT = property(lambda self: view(np.matrix_transpose, self))
    real = property(lambda self: view(np.real, self))
    imag = property(lambda self: view(np.imag, self))

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index):
        indexing.refuse_host_arrays(index)
        indexing.refuse_masks(index)
        used, prepared = indexing.arrays_in(index), indexing.on_host(index)
        if used:
            return run(lambda host, *_: host[prepared], (self, *used), {})
        return view(indexing.part, self, prepared)

    def __setitem__(self, index, value):
        if hasattr(value, "__culux_value__") or isinstance(value, np.ndarray):
            raise TypeError(f"Unsupported type {type(value)}")
        indexing.refuse_host_arrays(index)
        prepared = indexing.on_host(index)

        def write(host, new, *_):
            host[prepared] = new

        run(write, (self, value, *indexing.arrays_in(index)), {}, writes=[self])

    # Dispatch to other array types, as in CuPy: unknown ones get their turn, host arrays are refused.

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        import tests.standin_cupy as cupy

        if "out" in kwargs:
            (kwargs["out"],) = kwargs["out"]
        function = getattr(cupy, ufunc.__name__, None)
        if method != "__call__" or function is None:
            return NotImplemented
        for value in inputs:
            if not isinstance(value, (ndarray, np.ndarray, *SCALARS)):
                return NotImplemented
        return function(*inputs, **kwargs)

    def __array_function__(self, function, types, args, kwargs):
        import tests.standin_cupy as cupy

        mine = getattr(cupy, function.__name__, None)
        if mine is None or any(kind not in (ndarray, np.ndarray) for kind in types):
            return NotImplemented
        return mine(*args, **kwargs)


def _offset(array):
    """Bytes from the start of the memory to the first element."""
    start = array._allocation.memory.root.__array_interface__["data"][0]
    return array._host.__array_interface__["data"][0] - start


def _takes_over(array, other):
    """Whether Python should try the other operand's reflected operator first."""
    if hasattr(other, "__array_ufunc__"):
        return other.__array_ufunc__ is None
    return array.__array_priority__ < getattr(other, "__array_priority__", 0)


def _binary(name):
    function = getattr(np, name)

    def forward(self, other):
        return NotImplemented if _takes_over(self, other) else function(self, other)

    def reflected(self, other):
        return NotImplemented if _takes_over(self, other) else function(other, self)

    def in_place(self, other):
        import tests.standin_cupy as cupy

        return getattr(cupy, name)(self, other, self)

    return forward, reflected, in_place


_OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide", "floordiv": "floor_divide",
    "mod": "remainder", "pow": "power", "matmul": "matmul", "and": "bitwise_and", "or": "bitwise_or",
    "xor": "bitwise_xor", "lshift": "left_shift", "rshift": "right_shift",
}  # fmt: skip
for _name, _function in _OPERATORS.items():
    _forward, _reflected, _in_place = _binary(_function)
    setattr(ndarray, f"__{_name}__", _forward)
    setattr(ndarray, f"__r{_name}__", _reflected)
    if _name != "matmul":
        setattr(ndarray, f"__i{_name}__", _in_place)
for _name, _function in {
    "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal", "ne": "not_equal",
}.items():  # fmt: skip
    setattr(ndarray, f"__{_name}__", _binary(_function)[0])
for _name, _function in {"neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert"}.items():
    setattr(ndarray, f"__{_name}__", lambda self, _function=_function: getattr(np, _function)(self))


_UNKNOWN = {"argmax": ("dtype",), "argmin": ("dtype",), "reshape": ("copy",)}  # CuPy has them, NumPy's methods not
_VIEWS = frozenset("diagonal ravel reshape squeeze swapaxes transpose view".split())


def _method(name):
    function = getattr(np.ndarray, name)

    def method(self, *args, out=None, **kwargs):
        if {"where", "initial"} & kwargs.keys():
            raise TypeError(f"{name}() got an unexpected keyword argument")
        for unknown in _UNKNOWN.get(name, ()):
            if kwargs.pop(unknown, None) is not None:
                raise NotImplementedError(f"the stand-in's {name} has no {unknown}=")
        if name in _VIEWS:
            return view(function, self, *args, **kwargs)
        return run(function, (self, *args), kwargs, out=out)

    method.__name__ = name
    return method


for _name in (
    "all any argmax argmin argsort clip conj copy cumprod cumsum diagonal dot flatten max mean min nonzero prod ravel"
    " repeat reshape round searchsorted squeeze std sum swapaxes take trace transpose var view"
).split():
    setattr(ndarray, _name, _method(_name))


def _astype(self, dtype, order="K", casting=None, subok=None, copy=True):
    if not copy and self.dtype == dtype:
        return self
    return run(lambda host: host.astype(dtype, order=order), (self,), {})


def _fill(self, value):
    self[...] = value


def _scatter_add(self, index, value):
    from tests.standin_cupy import add

    add.at(self, index, value)


def _copy(self, order="C"):
    """A copy on the current device, wherever the array is."""
    if self.device.id == runtime.current_device():
        return run(lambda host: np.array(host, order=order), (self,), {})
    if runtime.get_current_stream().capture is not None:
        raise StandinError("the stand-in does not capture a copy between devices")
    with self.device:
        runtime.get_current_stream().begin(memories([self]), ())
    return run(lambda: np.array(self._host, order=order), (), {})


ndarray.astype, ndarray.fill, ndarray.scatter_add, ndarray.copy = _astype, _fill, _scatter_add, _copy
ndarray.__module__ = "cupy"
