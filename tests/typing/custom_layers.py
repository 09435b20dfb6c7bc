"""Read by mypy in test_layer_contract.py: what a user's typed layers look like to a type checker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any

import culux


class Mine(culux.Layer):
    width: int


class Named(culux.Layer):
    width: int
    _: KW_ONLY
    activation: Callable[[Any], Any] = abs
    deep: bool = False


class Wider(Mine):
    factor: float = 2.0


class ByHand(culux.Layer):
    def __init__(self, width: int) -> None:
        self.width: int = 2 * width


class Block(culux.ContainerLayer):
    conv: culux.Layer
    tail: tuple[culux.Layer, ...] = ()

    def forward(self, m: Any, x: Any) -> Any:
        return m.conv(x)


mine: Mine = Mine(3)
named: Mine = Mine(width=3)
keywords: Named = Named(3, activation=abs, deep=True)
wider: Wider = Wider(3, factor=1.5)
block: culux.Layer = Block(Mine(3), tail=(Mine(4),))
by_hand: int = ByHand(3).width
width: int = mine.width

# Each is an error: strict mypy complains of an ignore that nothing needs.
Mine("three")  # type: ignore[arg-type]
Mine()  # type: ignore[call-arg]
Named(3, abs)  # type: ignore[call-arg]
mine.width = 4  # type: ignore[misc]
