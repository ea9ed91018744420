"""What a single value may be: its type, its range, its choices."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

Check = Callable[[object], str | None]  # value -> why it cannot be, None if it can


@dataclass(frozen=True)
class Rule:
    """Type, range and choices of one value."""

    kind: type = float
    low: float | None = None  # allowed itself, as is `high`; `above` and `below` are not
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple = ()
    optional: bool = False

    def __call__(self, value: object) -> str | None:
        if value is None and self.optional:
            return None
        if self.choices:
            listed = ", ".join(map(str, self.choices))
            fault = f"must be {'one of ' * (len(self.choices) > 1)}{listed}"
            return None if value in self.choices and not isinstance(value, bool) else fault
        fault = type_fault(value, self.kind)
        if fault or self.kind not in (int, float):
            return fault
        if self.low is not None and value < self.low:
            return f"must be at least {self.low:g}"
        if self.above is not None and value <= self.above:
            return f"must be more than {self.above:g}"
        if self.high is not None and value > self.high:
            return f"must be at most {self.high:g}"
        if self.below is not None and value >= self.below:
            return f"must be less than {self.below:g}"
        return None


@dataclass(frozen=True)
class Each:
    """A list of values that each follow a rule."""

    rule: Check = lambda value: None
    length: int | None = None
    shortest: int = 0
    optional: bool = False

    def __call__(self, value: object) -> str | None:
        if value is None and self.optional:
            return None
        if not isinstance(value, list):
            return "must be a list [a,b]"
        if self.length is not None and len(value) != self.length:
            return f"must be a list of {self.length}"
        if len(value) < self.shortest:
            return "must not be empty"
        return next((f"each {fault}" for item in value if (fault := self.rule(item))), None)


def type_fault(value: object, kind: type) -> str | None:
    """Why `value` is not of the kind; a whole number passes for a float, nothing else passes for anything else."""
    if value is None:
        return "needs a value"
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, (int, float) if kind is float else kind):
        return f"must be {KINDS.get(kind, kind.__name__)}"
    if kind is float and not math.isfinite(value):
        return "must be a finite number"
    return "must not be empty" if value == "" else None


KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text (a number as text: '\"5\"')"}


def format_value(value: object) -> str:
    """A value as it is written on a command line."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
