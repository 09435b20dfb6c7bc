"""Checkpoints: trees in safetensors files, written whole or not at all, read without running code."""

from culux.serialization.checkpoint import load as load
from culux.serialization.checkpoint import read_metadata as read_metadata
from culux.serialization.checkpoint import save as save
