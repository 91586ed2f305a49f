"""Rows that say whether a hypothesis holds of a layer."""

from typing import Any

from lowrank_theory.theorems import Standing

POINTS = 60  # of a spectrum, for a picture
FALSE_ALARM = 0.01

Row = dict[str, Any]


def trusted(statement: str, name: str) -> Row:
    """What only whoever made the layer could say, and nobody said."""
    return checked(statement, name, -1.0) | {"standing": Standing.TRUSTED.value}


def checked(statement: str, name: str, margin: float) -> Row:
    """What can be computed: it holds where the margin is not negative."""
    return {
        "statement": statement,
        "name": name,
        "standing": Standing.CHECKED.value,
        "holds": bool(margin >= 0),
        "margin": float(margin),
        "statistic": None,
        "allowed": None,
    }


def refutable(statement: str, name: str, statistic: float, allowed: float) -> Row:
    """What data can contradict: a statistic that exceeds what is allowed."""
    return {
        "statement": statement,
        "name": name,
        "standing": Standing.REFUTABLE.value,
        "holds": bool(statistic <= allowed),
        "margin": allowed - statistic,
        "statistic": statistic,
        "allowed": allowed,
    }
