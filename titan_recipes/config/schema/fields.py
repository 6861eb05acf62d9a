"""What sections are made of: bounded numbers, and the decorator that makes a class a section."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, dataclass_transform

SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of a number, inclusive unless the name says otherwise; used inside `Annotated`."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    or_minus_one: bool = False
    """-1, "not set", is allowed besides."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        limits = {"ge": self.ge, "gt": self.gt, "le": self.le, "lt": self.lt}
        limits = {name: limit for name, limit in limits.items() if limit is not None}
        number = handler(source)
        if not self.or_minus_one:
            return number | limits
        kind = "an integer" if source is int else "a number"
        shown = " and ".join(f"{SIGNS[name]} {limit}" for name, limit in limits.items())
        return {
            "type": "union",
            "choices": [number | {"ge": -1, "le": -1}, number | limits],
            "custom_error_type": "neither_minus_one",
            "custom_error_message": f"must be -1, or {kind} {shown}",
        }


Positive = Annotated[int, Bounds(ge=1)]
NonNegative = Annotated[int, Bounds(ge=0)]
MinusOneOrMore = Annotated[int, Bounds(ge=-1)]
MinusOneOrPositive = Annotated[int, Bounds(ge=1, or_minus_one=True)]
PositiveFloat = Annotated[float, Bounds(gt=0)]
NonNegativeFloat = Annotated[float, Bounds(ge=0)]
Fraction = Annotated[float, Bounds(ge=0, le=1)]
MinusOneOrFraction = Annotated[float, Bounds(ge=0, le=1, or_minus_one=True)]


T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def section(cls: type[T]) -> type[T]:
    """A frozen dataclass that pydantic reads strictly: exact types, no unknown keys, no nan."""
    made = dataclass(frozen=True, slots=True, kw_only=True)(cls)
    made.__pydantic_config__ = {"extra": "forbid", "strict": True, "allow_inf_nan": False}  # type: ignore[attr-defined]
    return made
