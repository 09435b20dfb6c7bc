"""CUDA kernels, tested on a machine without a GPU."""

from __future__ import annotations

from culux.testing.cuda.check import Report as Report
from culux.testing.cuda.check import Run as Run
from culux.testing.cuda.check import check_kernel as check_kernel
from culux.testing.cuda.emulator import EmulatedKernel as EmulatedKernel
from culux.testing.cuda.emulator import EmulatedModule as EmulatedModule
