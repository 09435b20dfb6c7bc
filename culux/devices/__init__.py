"""Devices: where arrays live, and how trees of them get there."""

from culux.devices.device import Device as Device
from culux.devices.device import cpu_device as cpu_device
from culux.devices.device import device as device
from culux.devices.device import get_device as get_device
from culux.devices.device import gpu_device as gpu_device
from culux.devices.device import synchronize as synchronize
from culux.devices.iterator import DeviceIterator as DeviceIterator
from culux.devices.leaves import to_numpy as to_numpy
