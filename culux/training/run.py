"""`Run`: a `fit` under way, as its callbacks see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from culux.training.history import History
from culux.training.state import TrainState

__all__ = ["Run"]


@dataclass
class Run:
    """A `fit` under way.

    Args:
        train_state: the present one; `fit` may overwrite its arrays in the next step, so copy what is kept.
        epochs: how many epochs there will be.
        epoch: how many have ended.
        history: their rows.
        loss: the loss of the last step, on the device: reading it waits for the step.
        stopped: why no further epoch begins; empty while it goes on.
    """

    train_state: TrainState
    epochs: int
    epoch: int = 0
    history: History = field(default_factory=History)
    loss: Any = None
    stopped: str = ""

    def stop(self, reason: str = "a callback ended it") -> None:
        """End the training after this epoch, for a reason that is shown."""
        self.stopped = reason
