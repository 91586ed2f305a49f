"""Fit the rates that statements predict."""

import argparse
import functools
from typing import Any

import jax

from lowrank_theory._files import plain, to_json, write_atomically
from lowrank_theory.cli import _progress as showing
from lowrank_theory.cli._options import (
    OTHER_CODES,
    Refuse,
    add_common,
    check_json,
    refusing,
    selected,
    workplace,
)
from lowrank_theory.reports import tables
from lowrank_theory.theorems import AbstractStatement
from lowrank_theory.verification.sampling import by_name, reference
from lowrank_theory.verification.scaling import Fit, scale


def add(commands: Any) -> None:
    """The options of the command."""
    command = commands.add_parser(
        "scale",
        help="fit the rates of statements in samples, rank, size and noise",
        description="Fit log-log slopes of errors and bounds in samples, rank, size and noise, and "
        "hold them against the exponents that theory predicts.",
        epilog="Exit code: 0 if every slope is within 0.05 of its exponent, 1 if any is not, "
        f"{OTHER_CODES}.",
    )
    add_common(command, run)


def run(options: argparse.Namespace, refuse: Refuse) -> int:
    """Fit, and print the slopes."""
    chosen = {name: s for name, s in selected(options).items() if s.rates}
    if not chosen:
        refuse("none of these states a rate")
    with refusing(refuse):
        check_json(options.json)
    console = tables.make_console()
    jobs = {
        name: functools.partial(_fit, reference(statement), options.seed)
        for name, statement in chosen.items()
    }
    with workplace(options, refuse) as executor:
        found = dict(showing.jobs(jobs, executor, console))
    fits: list[Fit] = [fit for name in jobs for fit in found[name]]
    if options.json:
        write_atomically(options.json, to_json(plain([fit.row() for fit in fits])))
    console.print(tables.rates(fits))
    return 0 if all(fit.agrees for fit in fits) else 1


def _fit(statement: str | AbstractStatement, seed: int) -> tuple[Fit, ...]:
    return scale(by_name(statement), key=jax.random.key(seed))
