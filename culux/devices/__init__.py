"""Devices: where arrays live, and how trees of them get there."""

from culux.devices.device import Device as Device
from culux.devices.device import cpu_device as cpu_device
from culux.devices.device import device as device
from culux.devices.device import get_device as get_device
from culux.devices.device import gpu_device as gpu_device
from culux.devices.device import synchronize as synchronize
from culux.devices.dtypes import bf16 as bf16
from culux.devices.dtypes import f16 as f16
from culux.devices.dtypes import f32 as f32
from culux.devices.dtypes import f64 as f64
from culux.devices.iterator import DeviceIterator as DeviceIterator
from culux.devices.leaves import to_numpy as to_numpy
