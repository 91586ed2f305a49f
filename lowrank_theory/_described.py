"""Descriptions that show themselves as the call that makes them."""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer


class Described(eqx.Module):
    """A frozen description, shown as short as it can be written: without what is default, its
    first field without a name unless `named`.

    What is shown evaluates to the same description, for fields that are numbers, texts, tuples of
    them and other descriptions.
    """

    named: ClassVar[bool] = False

    def __repr__(self) -> str:
        """For example `Gaussian(0.1)` or `ExactRank(PowerLaw(2.0), scale=3.0)`."""
        shown = []
        for index, field in enumerate(dataclasses.fields(self)):
            text = _shown(getattr(self, field.name))
            if field.default is dataclasses.MISSING or text != _shown(field.default):
                shown.append(text if index == 0 and not self.named else f"{field.name}={text}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """The same, for printers that would list the fields: IPython's, and that of hypothesis."""
        printer.text(repr(self))


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({''.join(_shown(item) + ', ' for item in value).removesuffix(' ')})"
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        unreadable = isinstance(value, Tracer) or value.ndim
        return eqx.tree_pformat(value) if unreadable else repr(value.item())
    return repr(value)
