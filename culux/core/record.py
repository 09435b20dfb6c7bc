"""Records: small frozen values that describe something and can be called or applied (losses, rules, schedules)."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, dataclass_transform

from culux.core.fields import constructor_call
from culux.errors import CuluxError, LayerError, check_keywords

__all__ = ["Record"]


@dataclass_transform(frozen_default=True)
class _RecordMeta(type):
    """Explains a constructor call that does not fit."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except TypeError as error:
            if not isinstance(error, CuluxError):
                cls._explain(args, kwargs)
            raise

    def _explain(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]  # the class's own, as it was called
        try:
            signature.bind(None, *args, **kwargs)
        except TypeError as error:
            parameters = list(signature.parameters.values())[1:]
            check_keywords(cls.__name__, kwargs, [p.name for p in parameters])
            bare = [p.replace(annotation=p.empty) for p in parameters]
            form = str(signature.replace(parameters=bare, return_annotation=signature.empty))
            raise LayerError(f"{cls.__name__}: {error}; it is {cls.__name__}{form}") from error


class Record(metaclass=_RecordMeta):
    """A frozen dataclass by subclassing: it compares, hashes, pickles, and prints as its constructor call."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclass(frozen=True, repr=False)(cls)

    def __repr__(self) -> str:
        return constructor_call(self)
