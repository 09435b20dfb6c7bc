"""`native`: the layer that computes what a torch module computes, by the name of its class."""

from __future__ import annotations

from typing import Any

from culux.core import Layer
from culux.interop.from_torch import counterpart
from culux.interop.torch_basic import BASIC
from culux.interop.torch_norms import NORMS
from culux.interop.torch_recurrent import RECURRENT
from culux.interop.torch_spatial import SPATIAL
from culux.interop.torch_transformer import TRANSFORMERS

__all__ = ["native"]

# By the class's name in torch.nn, so that the tables need no torch.
_MAKERS = {**BASIC, **NORMS, **SPATIAL, **RECURRENT, **TRANSFORMERS}


def native(module: Any) -> Layer:
    """The native layer that computes what a torch module computes.

    Raises:
        NoCounterpart: where there is none; its text is the reason.
    """
    return counterpart(module, _MAKERS)
