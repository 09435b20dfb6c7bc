"""Tools for tests: checks of your own layers, primitives and backends, what code costs, where devices part.

The checks of CUDA kernels are in `culux.testing.cuda`.
"""

from __future__ import annotations

from culux.testing.checks_backend import check_backend as check_backend
from culux.testing.checks_layer import check_layer as check_layer
from culux.testing.checks_primitive import check_primitive as check_primitive
from culux.testing.cost import Cost as Cost
from culux.testing.cost import cost as cost
from culux.testing.devices import DeviceDifference as DeviceDifference
from culux.testing.devices import diff_devices as diff_devices
from culux.testing.report import CheckReport as CheckReport
