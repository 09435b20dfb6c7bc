"""CUDA kernels: raw arrays in, raw arrays out.

Every family of kernels is ``<name>.cu`` and ``<name>.py``: the CUDA source, and the functions that allocate
results and launch it. `culux.kernels.source` makes the text that is compiled, `culux.kernels.launcher` checks
arguments and launches. Nothing here knows the tape; `culux.nn`, `culux.optim` and `culux.random` call it for CuPy
arrays.
"""

from __future__ import annotations

from culux.kernels.launcher import Kernel as Kernel
from culux.kernels.launcher import contiguous as contiguous
from culux.kernels.launcher import empty as empty
from culux.kernels.launcher import get_kernel as get_kernel
from culux.kernels.source import IDENTITY as IDENTITY
from culux.kernels.source import ActivationCode as ActivationCode
from culux.kernels.source import supports as supports
