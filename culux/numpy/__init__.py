"""Differentiable array functions with NumPy's names, on NumPy, CuPy and traced arrays.

``culux.numpy.sin(x)`` computes with the library that `x` belongs to; inside a differentiated function it
is recorded. Functions that make arrays make NumPy ones, those with ``like`` in their name follow `x`.
"""

from __future__ import annotations

import sys as _sys
from inspect import isfunction as _isfunction
from inspect import ismodule as _ismodule

import numpy as _np

from culux.autodiff.tracer import Tracer as _Tracer
from culux.backends.registry import register_namespace as _register_namespace
from culux.numpy import linalg as linalg
from culux.numpy.elementwise import absolute as absolute
from culux.numpy.elementwise import add as add
from culux.numpy.elementwise import arccos as arccos
from culux.numpy.elementwise import arccosh as arccosh
from culux.numpy.elementwise import arcsin as arcsin
from culux.numpy.elementwise import arcsinh as arcsinh
from culux.numpy.elementwise import arctan as arctan
from culux.numpy.elementwise import arctan2 as arctan2
from culux.numpy.elementwise import arctanh as arctanh
from culux.numpy.elementwise import asarray as asarray
from culux.numpy.elementwise import astype as astype
from culux.numpy.elementwise import cbrt as cbrt
from culux.numpy.elementwise import copy as copy
from culux.numpy.elementwise import cos as cos
from culux.numpy.elementwise import cosh as cosh
from culux.numpy.elementwise import divide as divide
from culux.numpy.elementwise import exp as exp
from culux.numpy.elementwise import exp2 as exp2
from culux.numpy.elementwise import expm1 as expm1
from culux.numpy.elementwise import fmod as fmod
from culux.numpy.elementwise import hypot as hypot
from culux.numpy.elementwise import log as log
from culux.numpy.elementwise import log1p as log1p
from culux.numpy.elementwise import log2 as log2
from culux.numpy.elementwise import log10 as log10
from culux.numpy.elementwise import logaddexp as logaddexp
from culux.numpy.elementwise import maximum as maximum
from culux.numpy.elementwise import minimum as minimum
from culux.numpy.elementwise import mod as mod
from culux.numpy.elementwise import multiply as multiply
from culux.numpy.elementwise import negative as negative
from culux.numpy.elementwise import positive as positive
from culux.numpy.elementwise import power as power
from culux.numpy.elementwise import reciprocal as reciprocal
from culux.numpy.elementwise import sin as sin
from culux.numpy.elementwise import sinh as sinh
from culux.numpy.elementwise import sqrt as sqrt
from culux.numpy.elementwise import square as square
from culux.numpy.elementwise import subtract as subtract
from culux.numpy.elementwise import tan as tan
from culux.numpy.elementwise import tanh as tanh
from culux.numpy.indexing import diag as diag
from culux.numpy.indexing import diagonal as diagonal
from culux.numpy.indexing import diff as diff
from culux.numpy.indexing import getitem as getitem
from culux.numpy.indexing import sort as sort
from culux.numpy.indexing import take as take
from culux.numpy.indexing import take_along_axis as take_along_axis
from culux.numpy.indexing import trace as trace
from culux.numpy.indexing import tril as tril
from culux.numpy.indexing import triu as triu
from culux.numpy.operators import constant as _constant
from culux.numpy.operators import install_operators as _install_operators
from culux.numpy.products import dot as dot
from culux.numpy.products import einsum as einsum
from culux.numpy.products import inner as inner
from culux.numpy.products import matmul as matmul
from culux.numpy.products import outer as outer
from culux.numpy.products import tensordot as tensordot
from culux.numpy.products import vdot as vdot
from culux.numpy.reductions import cumsum as cumsum
from culux.numpy.reductions import max as max
from culux.numpy.reductions import mean as mean
from culux.numpy.reductions import min as min
from culux.numpy.reductions import prod as prod
from culux.numpy.reductions import std as std
from culux.numpy.reductions import sum as sum
from culux.numpy.reductions import var as var
from culux.numpy.selection import clip as clip
from culux.numpy.selection import where as where
from culux.numpy.shaping import atleast_1d as atleast_1d
from culux.numpy.shaping import atleast_2d as atleast_2d
from culux.numpy.shaping import broadcast_to as broadcast_to
from culux.numpy.shaping import concatenate as concatenate
from culux.numpy.shaping import expand_dims as expand_dims
from culux.numpy.shaping import flip as flip
from culux.numpy.shaping import hstack as hstack
from culux.numpy.shaping import matrix_transpose as matrix_transpose
from culux.numpy.shaping import moveaxis as moveaxis
from culux.numpy.shaping import ndim as ndim
from culux.numpy.shaping import pad as pad
from culux.numpy.shaping import ravel as ravel
from culux.numpy.shaping import repeat as repeat
from culux.numpy.shaping import reshape as reshape
from culux.numpy.shaping import roll as roll
from culux.numpy.shaping import shape as shape
from culux.numpy.shaping import size as size
from culux.numpy.shaping import split as split
from culux.numpy.shaping import squeeze as squeeze
from culux.numpy.shaping import stack as stack
from culux.numpy.shaping import swapaxes as swapaxes
from culux.numpy.shaping import tile as tile
from culux.numpy.shaping import transpose as transpose
from culux.numpy.shaping import vstack as vstack

# NumPy's other names, which CuPy's kernels and the array API use.
acos, acosh, asin, asinh, atan, atan2, atanh = arccos, arccosh, arcsin, arcsinh, arctan, arctan2, arctanh
abs, amax, amin, concat, permute_dims, pow = absolute, max, min, concatenate, transpose, power
remainder, true_divide = mod, divide

sign = _constant("sign")
floor = _constant("floor")
ceil = _constant("ceil")
trunc = _constant("trunc")
round = _constant("round")
rint = _constant("rint")
floor_divide = _constant("floor_divide")
argmax = _constant("argmax")
argmin = _constant("argmin")
argsort = _constant("argsort")
isnan = _constant("isnan")
isinf = _constant("isinf")
isfinite = _constant("isfinite")
equal = _constant("equal")
not_equal = _constant("not_equal")
less = _constant("less")
less_equal = _constant("less_equal")
greater = _constant("greater")
greater_equal = _constant("greater_equal")
logical_and = _constant("logical_and")
logical_or = _constant("logical_or")
logical_not = _constant("logical_not")
logical_xor = _constant("logical_xor")
isclose = _constant("isclose")
allclose = _constant("allclose")
array_equal = _constant("array_equal")
nonzero = _constant("nonzero")
count_nonzero = _constant("count_nonzero")
searchsorted = _constant("searchsorted")
result_type = _constant("result_type")
all = _constant("all")
any = _constant("any")
zeros_like = _constant("zeros_like")
ones_like = _constant("ones_like")
full_like = _constant("full_like")
empty_like = _constant("empty_like")

array = _np.array
zeros = _np.zeros
ones = _np.ones
full = _np.full
empty = _np.empty
arange = _np.arange
linspace = _np.linspace
eye = _np.eye
float16 = _np.float16
"""The dtype of half precision."""
float32 = _np.float32
"""The dtype of single precision, that of parameters."""
float64 = _np.float64
"""The dtype of double precision."""
int32 = _np.int32
"""The dtype of 32-bit integers."""
int64 = _np.int64
"""The dtype of 64-bit integers."""
uint64 = _np.uint64
"""The dtype of 64-bit unsigned integers."""
bool_ = _np.bool_
"""The dtype of truth values."""
pi = _np.pi
"""The circle's circumference over its diameter."""
e = _np.e
"""The base of the natural logarithm."""
inf = _np.inf
"""Positive infinity."""
nan = _np.nan
"""Not a number."""
newaxis = None
"""A new axis of length 1 in ``x[...]``."""

_creation = "array zeros ones full empty arange linspace eye".split()
__all__ = sorted(
    name
    for name, value in globals().items()
    if not name.startswith("_") and name != "annotations" and (value is linalg or not _ismodule(value))
)
_install_operators(
    {name: globals()[name] for name in __all__ if _isfunction(globals()[name]) and name not in _creation},
    {name: getattr(linalg, name) for name in linalg.__all__},
)
_register_namespace(_Tracer, _sys.modules[__name__])
