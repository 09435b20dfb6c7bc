"""A stand-in for CuPy: the unchanged CuPy backend runs on it without a GPU.

Tests put this package in ``sys.modules["cupy"]`` through the fixture of `tests.standin_cupy.fixture`. It
has CuPy's names and refusals (no implicit way to the host, no mixing with NumPy arrays) over NumPy's
numbers, and fake devices whose streams are as asynchronous as real ones (see `runtime`). Raw kernels run
in the emulator of `culux.testing.cuda`. It does not show speed, nor CuPy's own kernels.
"""

from __future__ import annotations

from tests.standin_cupy import core, functions
from tests.standin_cupy import cuda as cuda
from tests.standin_cupy.cuda import get_default_memory_pool as get_default_memory_pool
from tests.standin_cupy.cuda import get_default_pinned_memory_pool as get_default_pinned_memory_pool
from tests.standin_cupy.errors import StandinError as StandinError
from tests.standin_cupy.errors import StreamRace as StreamRace
from tests.standin_cupy.kernels import RawKernel as RawKernel
from tests.standin_cupy.kernels import RawModule as RawModule
from tests.standin_cupy.runtime import machine as machine
from tests.standin_cupy.runtime import set_device_count as set_device_count

__version__ = "14.2.0"

_core = core
globals().update(functions.namespace())
