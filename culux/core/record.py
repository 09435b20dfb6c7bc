"""Records: small frozen values that describe something and can be called or applied (losses, rules, schedules)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, dataclass_transform

from culux.core.fields import constructor_call, explain_call

__all__ = ["Record"]


@dataclass_transform(frozen_default=True)
class _RecordMeta(type):
    """Explains a constructor call that does not fit."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except TypeError as error:
            explain_call(cls, error, args, kwargs)
            raise


class Record(metaclass=_RecordMeta):
    """A frozen dataclass by subclassing: it compares, hashes, pickles, and prints as its constructor call."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclass(frozen=True, repr=False)(cls)

    def __repr__(self) -> str:
        return constructor_call(self)
