"""A number that an option takes."""

import math
from typing import Any

import click


class Number(click.FloatRange):
    """One within bounds. What is no number, which no bounds keep out, is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Raises click.BadParameter."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value} is not a number.", param, ctx)
        return number
