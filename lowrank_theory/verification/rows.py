"""The rows in which a verification speaks. `None` stands for what does not apply or is infinite."""

from lowrank_theory._rows import AbstractRow, column

RATIO = "of realised and bound (inverted for lower bounds), so that a violation has a ratio above 1"
CONSTANT = (
    "multiplied by any smaller factor, the bound would be refuted by these same trials; near 1, no "
    "smaller bound of this form is true"
)


class StatementRow(AbstractRow):
    """What was found of one statement."""

    name: str = column("statement", "its full name")
    kind: str = column("kind", "the direction and certainty of the claim")
    trials: int = column("trials", "random instances")
    applicable: int = column("applicable", "those whose hypotheses hold")
    violations: int | None = column(
        "violations",
        "applicable trials on the wrong side of the bound, beyond rounding; none are counted of a "
        "statement about a mean, where single trials may lie on either side",
    )
    allowed: float | None = column("allowed", "the share of trials that may violate the statement")
    verdict: str = column("verdict", "over all regimes and controls")
    critical_constant: float | None = column("critical constant", CONSTANT)
    refuted_below: float | None = column(
        "by theory",
        "what the critical constant is at least, over all instances, by an exact limit or a known "
        "instance, whatever these trials show; none where no such thing is known",
    )
    refuted_by: str | None = column("shown by", "that limit or instance")
    ratio_median: float | None = column("median ratio", RATIO)
    ratio_max: float | None = column("largest ratio", RATIO)


class RegimeRow(AbstractRow):
    """What was found in one regime of a statement."""

    name: str = column("regime", "its name")
    setting: str = column("setting", "on which instances were drawn")
    trials: int = column("trials", "random instances")
    applicable: int = column("applicable", "those whose hypotheses hold")
    violations: int = column(
        "violations", "applicable trials on the wrong side of the bound, beyond rounding"
    )
    ratio_max: float | None = column("largest ratio", RATIO)
    critical_constant: float | None = column("critical constant", CONSTANT)
    verdict: str = column("verdict", "of the regime")
