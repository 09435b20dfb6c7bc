"""The functions of the stand-in: an allow-list over NumPy, all of them names that CuPy has too."""

from __future__ import annotations

import numpy as np

from tests.standin_cupy import array as arrays
from tests.standin_cupy import indexing, runtime
from tests.standin_cupy.array import HOOK, SCALARS, ndarray, run

# NumPy's name of each elementwise function; CuPy's kernel is called cupy_<name>, and aliases share one.
UFUNCS = (
    "absolute add arccos arccosh arcsin arcsinh arctan arctan2 arctanh bitwise_and bitwise_or bitwise_xor cbrt ceil"
    " conjugate copysign cos cosh deg2rad equal exp exp2 expm1 fabs floor floor_divide fmax fmin fmod greater"
    " greater_equal heaviside hypot invert isfinite isinf isnan left_shift less less_equal log log10 log1p log2"
    " logaddexp logaddexp2 logical_and logical_not logical_or logical_xor maximum minimum multiply negative nextafter"
    " not_equal positive power rad2deg reciprocal remainder right_shift rint sign signbit sin sinh sqrt square"
    " subtract tan tanh true_divide trunc"
).split()
ALIASES = {
    "abs": "absolute", "acos": "arccos", "acosh": "arccosh", "asin": "arcsin", "asinh": "arcsinh", "atan": "arctan",
    "atan2": "arctan2", "atanh": "arctanh", "bitwise_invert": "invert", "bitwise_not": "invert",
    "bitwise_left_shift": "left_shift", "bitwise_right_shift": "right_shift", "conj": "conjugate",
    "degrees": "rad2deg", "divide": "true_divide", "mod": "remainder", "pow": "power", "radians": "deg2rad",
}  # fmt: skip

# Functions that CuPy 14.2 calls as methods of their first argument, so that other array types take part, and the
# form of the call: the parameters that it passes by place, then those by name.
METHODS = {
    "argmax": ({}, {"axis": None, "dtype": None, "out": None, "keepdims": False}),
    "argmin": ({}, {"axis": None, "dtype": None, "out": None, "keepdims": False}),
    "argsort": ({}, {"axis": -1, "kind": None}),
    "clip": ({"a_min": None, "a_max": None}, {"out": None}),
    "diagonal": ({"offset": 0, "axis1": 0, "axis2": 1}, {}),
    "dot": ({"b": None, "out": None}, {}),
    "max": ({}, {"axis": None, "out": None, "keepdims": False}),
    "mean": ({}, {"axis": None, "dtype": None, "out": None, "keepdims": False}),
    "min": ({}, {"axis": None, "out": None, "keepdims": False}),
    "prod": ({"axis": None, "dtype": None, "out": None, "keepdims": False}, {}),
    "ravel": ({"order": "C"}, {}),
    "repeat": ({"repeats": None, "axis": None}, {}),
    "reshape": ({"shape": None}, {"order": "C", "copy": None}),
    "squeeze": ({"axis": None}, {}),
    "std": ({}, {"axis": None, "dtype": None, "out": None, "ddof": 0, "keepdims": False}),
    "sum": ({"axis": None, "dtype": None, "out": None, "keepdims": False}, {}),
    "swapaxes": ({"axis1": None, "axis2": None}, {}),
    "take": ({"indices": None, "axis": None, "out": None}, {}),
    "trace": ({"offset": 0, "axis1": 0, "axis2": 1, "dtype": None, "out": None}, {}),
    "transpose": ({"axes": None}, {}),
    "var": ({}, {"axis": None, "dtype": None, "out": None, "ddof": 0, "keepdims": False}),
}
METHOD_ALIASES = {"amax": "max", "amin": "min", "permute_dims": "transpose"}

# Functions of device arrays only.
FUNCTIONS = (
    "all allclose any append array_equal argwhere around array_split astype atleast_1d atleast_2d atleast_3d "
    "average broadcast_arrays broadcast_to column_stack concat concatenate copyto count_nonzero cross cumprod "
    "cumsum diag diff dstack einsum expand_dims flip fliplr flipud hstack inner isclose kron matmul "
    "matrix_transpose median meshgrid moveaxis nan_to_num nanmax nanmean nanmin nansum nonzero outer pad real "
    "imag roll rollaxis rot90 round searchsorted sort split stack tensordot tile trapezoid tril triu unique vdot "
    "vstack where take_along_axis put_along_axis bincount full_like zeros_like ones_like ptp ediff1d interp"
).split()

VIEWS = ("broadcast_to expand_dims flip fliplr flipud imag matrix_transpose moveaxis real rollaxis rot90").split()

IN_PLACE = ("copyto", "put_along_axis")

# Functions that return no arrays, and those that make arrays of numbers alone.
PLAIN = (
    "broadcast_shapes can_cast common_type finfo iinfo isdtype isscalar issubdtype min_scalar_type ndim"
    " promote_types result_type shape size"
).split()
CREATORS = "arange eye full identity linspace logspace ones tri zeros indices".split()
CONSTANTS = (
    "bool bool_ complex128 complex64 dtype e euler_gamma float16 float32 float64 generic inexact inf int16 int32 int64"
    " int8 integer nan newaxis number pi signedinteger uint16 uint32 uint64 uint8 unsignedinteger floating"
    " complexfloating intp"
).split()


class ufunc:
    """An elementwise function; `name` is CuPy's name of the kernel."""

    def __init__(self, name):
        self._numpy = getattr(np, name)
        self.name = f"cupy_{name}"
        self.__name__ = name
        self.nin, self.nout = self._numpy.nin, self._numpy.nout

    def __call__(self, *args, out=None, **kwargs):
        for arg in args:
            if hasattr(arg, HOOK):
                return getattr(arg, HOOK)(self, *args, **({} if out is None else {"out": out}), **kwargs)
        if "where" in kwargs:
            raise TypeError("Wrong arguments {'where'}")
        for arg in args:
            if not isinstance(arg, (ndarray, *SCALARS)) and arg is not None:
                raise TypeError(f"Unsupported type {type(arg)}")
        if len(args) > self.nin:
            args, out = args[: self.nin], args[self.nin]
        return run(self._numpy, args, kwargs, out=out)

    def reduce(self, array, axis=0, dtype=None, out=None, keepdims=False):
        return run(self._numpy.reduce, (array,), {"axis": axis, "dtype": dtype, "keepdims": keepdims}, out=out)

    def accumulate(self, array, axis=0, dtype=None, out=None):
        return run(self._numpy.accumulate, (array,), {"axis": axis, "dtype": dtype}, out=out)

    def outer(self, a, b, **kwargs):
        return run(self._numpy.outer, (a, b), kwargs)

    def at(self, array, index, value=None):
        if self.__name__ not in ("add", "subtract", "maximum", "minimum"):
            raise NotImplementedError(f"`{self.__name__}.at` is not supported")

        prepared = indexing.on_host(index)

        def write(host, *values):
            self._numpy.at(host, prepared, *values)

        run(write, (array,) if value is None else (array, value), {}, writes=[array])

    def __repr__(self):
        return f"<ufunc '{self.name}'>"


def as_method(name):
    by_place, by_name = METHODS[name]

    def function(array, *args, **kwargs):
        # CuPy would call the method of a host array too, and compute on the host without a word.
        if isinstance(array, np.ndarray) or not hasattr(array, name):
            raise TypeError(f"Unsupported type {type(array)}")
        values = by_place | by_name
        given = dict(zip(values, args, strict=False)) | kwargs
        if len(args) > len(values) or not given.keys() <= values.keys():
            raise TypeError(f"{name}() got an unexpected argument: {args}, {kwargs}")
        values |= given
        return getattr(array, name)(*[values[key] for key in by_place], **{key: values[key] for key in by_name})

    function.__name__ = function.__qualname__ = name
    return function


def of_arrays(name):
    numpy_function = getattr(np, name)

    def function(*args, out=None, **kwargs):
        if not _only_device_arrays(args):
            raise TypeError(f"cupy.{name}: expected cupy.ndarray, got {[type(arg).__name__ for arg in args]}")
        if name in VIEWS:
            return arrays.view(numpy_function, *args, **kwargs)
        return run(numpy_function, args, kwargs, out=out, writes=args[:1] if name in IN_PLACE else ())

    function.__name__ = function.__qualname__ = name
    return function


def _only_device_arrays(args):
    found = False
    for arg in args:
        if isinstance(arg, list | tuple):
            if any(hasattr(item, "__array_ufunc__") and not isinstance(item, (ndarray, np.generic)) for item in arg):
                return False
            found = found or any(isinstance(item, ndarray) for item in arg)
        elif isinstance(arg, ndarray):
            found = True
        elif hasattr(arg, "__array_ufunc__") and not isinstance(arg, np.generic):
            return False
    return found


def creator(name):
    numpy_function = getattr(np, name)

    def function(*args, **kwargs):
        return run(numpy_function, args, kwargs)

    function.__name__ = function.__qualname__ = name
    return function


def empty(shape, dtype=float, order="C"):
    return ndarray(shape, dtype, order=order)


def empty_like(array, dtype=None, order="K", subok=None, shape=None):
    return ndarray(array.shape if shape is None else shape, array.dtype if dtype is None else dtype)


def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    """A device array of a host array, of numbers, or of device arrays in a sequence."""
    if isinstance(obj, ndarray):
        return obj.astype(obj.dtype if dtype is None else dtype, copy=copy)
    if hasattr(obj, "__array_ufunc__") and not isinstance(obj, (np.ndarray, np.generic)):
        raise TypeError(f"Unsupported type {type(obj)}")
    if isinstance(obj, list | tuple) and any(isinstance(item, ndarray) for item in obj):
        made = run(np.stack, (list(obj),), {})
        return made if dtype is None else made.astype(dtype)
    runtime.get_current_stream().refuse_capture("H2D transfers")
    host = np.array(obj, dtype=dtype, order=order, ndmin=ndmin, copy=True)
    if host.dtype.kind not in "biufc" and host.dtype.name != "bfloat16":
        raise ValueError(f"Unsupported dtype {host.dtype}")
    return run(lambda: host.astype(host.dtype.newbyteorder("=")), (), {}, counted=False)


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    return array(a, dtype, copy=bool(copy))


def ascontiguousarray(a, dtype=None):
    a = asarray(a, dtype)
    return a if a.flags.c_contiguous else run(np.ascontiguousarray, (a,), {})


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    return a.get(stream, order) if isinstance(a, ndarray) else np.asarray(a)


def get_array_module(*args):
    import sys

    return sys.modules["cupy"] if any(isinstance(arg, ndarray) for arg in args) else np


def from_dlpack(array, device=None, copy=None):
    if isinstance(array, ndarray):
        return array
    raise TypeError("only CUDA and managed memory can be exported to CuPy through DLPack")


def namespace():
    """All functions by name."""
    found = {name: ufunc(name) for name in UFUNCS}
    found |= {alias: found[name] for alias, name in ALIASES.items()}
    found |= {name: as_method(name) for name in METHODS}
    found |= {alias: found[name] for alias, name in METHOD_ALIASES.items()}
    found |= {name: of_arrays(name) for name in FUNCTIONS}
    found |= {name: getattr(np, name) for name in (*PLAIN, *CONSTANTS)}
    found |= {name: creator(name) for name in CREATORS}
    own = (empty, empty_like, array, asarray, ascontiguousarray, asnumpy, get_array_module, from_dlpack)
    return found | {function.__name__: function for function in own} | {"ndarray": ndarray, "ufunc": ufunc}
