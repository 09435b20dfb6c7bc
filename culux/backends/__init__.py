"""Backends: the array libraries that culux computes with, behind one protocol and one registry."""

from culux.backends.base import Array as Array
from culux.backends.base import Backend as Backend
from culux.backends.base import Memory as Memory
from culux.backends.base import Place as Place
from culux.backends.base import Timer as Timer
from culux.backends.base import Upload as Upload
from culux.backends.precision import current_matmul_precision as current_matmul_precision
from culux.backends.precision import matmul_precision as matmul_precision
from culux.backends.registry import array_namespace as array_namespace
from culux.backends.registry import backend_of as backend_of
from culux.backends.registry import get_backend as get_backend
from culux.backends.registry import installed as installed
from culux.backends.registry import is_array as is_array
from culux.backends.registry import is_float_array as is_float_array
from culux.backends.registry import register_backend as register_backend
