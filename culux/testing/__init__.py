"""Tools for tests: what code costs (`cost`), and the CUDA kernels of culux and its users (`culux.testing.cuda`)."""

from __future__ import annotations

from culux.testing.cost import Cost as Cost
from culux.testing.cost import cost as cost
