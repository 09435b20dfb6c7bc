"""Models of other frameworks as culux layers; torch is imported when a torch module comes, not before."""

from culux.interop.torch_layer import TorchLayer as TorchLayer
from culux.interop.transform import MissingTorchError as MissingTorchError
from culux.interop.transform import copy_to_torch as copy_to_torch
from culux.interop.transform import report as report
from culux.interop.transform import transform as transform
