"""Make a network smaller where its data cannot be used, or not again."""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lowrank_theory._files import plain, to_json, write_atomically
from lowrank_theory._rows import AbstractRow
from lowrank_theory.cli import _progress as showing
from lowrank_theory.cli._options import (
    OTHER_CODES,
    Refuse,
    check_folder,
    check_json,
    check_there,
    count,
    refusing,
    seed,
    share,
)
from lowrank_theory.models.catalogue import find
from lowrank_theory.reports import tables
from lowrank_theory.studies import data_free, distilled, subspaces

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "share": {"type": share, "metavar": "SHARE", "help": "of the parameters"},
    "level": {"choices": list(subspaces.LEVELS), "help": "what it is made smaller by"},
    "kind": {"choices": subspaces.KINDS, "help": "the subspace that is trained"},
    "epochs": {"type": count, "metavar": "N", "help": "passes over the images"},
    "images": {"type": count, "metavar": "N", "help": "to which it is fitted, without labels"},
}


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A study of networks that `kind` says, and the defaults of its `SETTINGS`.

    `study(name, seed=..., progress=..., **settings)` returns the dense network's accuracy and the
    rows. What it `trains` is kept in a `folder`, from which the same call goes on.
    """

    study: Callable[..., tuple[float, Sequence[AbstractRow]]]
    networks: Sequence[str]
    kind: str
    settings: Mapping[str, Any]
    trains: bool
    help: str
    description: str

    def network(self, name: str) -> str:
        """The name of one of its networks."""
        if name not in self.networks:
            raise argparse.ArgumentTypeError(
                f"must be a network {self.kind}, of {', '.join(self.networks)}; got {name!r}"
            )
        return name


SCENARIOS: Mapping[str, Scenario] = {
    "data-free": Scenario(
        data_free.data_free,
        tuple(data_free.NETWORKS),
        data_free.KIND,
        {"share": 0.75},
        trains=False,
        help="low rank by calibrations made from batch normalisation, beside real ones",
        description="Make all layers of a network low rank: by the weights alone, by calibrations "
        "made from its batch normalisation, and by training data.",
    ),
    "distill": Scenario(
        distilled.distilled,
        distilled.NETWORKS,
        distilled.KIND,
        {"share": 0.1, "epochs": 20, "images": None},
        trains=True,
        help="low rank that learns again from the network itself, without labels",
        description="Make a network low rank, and let the factors learn from the answers of the "
        "network that it was, on images without labels.",
    ),
    "subspace": Scenario(
        subspaces.subspaces,
        subspaces.NETWORKS,
        subspaces.KIND,
        {"level": "sparsity", "kind": "point", "epochs": 30},
        trains=True,
        help="one network that is trained for every size, beside the dense one that is cut",
        description="Train one network to be accurate at every size, and compare it with the same "
        "network, trained as it is and cut when it is tested.",
    ),
}


def add(commands: Any) -> None:
    """The options of the command."""
    command = commands.add_parser(
        "constrained",
        help="make a network smaller where its data cannot be used",
        description="Make a network smaller without data, without labels, or after deployment, "
        "and say what that costs.",
    )
    scenarios = command.add_subparsers(required=True, metavar="SCENARIO")
    for name, scenario in SCENARIOS.items():
        parser = scenarios.add_parser(
            name,
            help=scenario.help,
            description=scenario.description,
            epilog=f"Exit code: 0 if all was measured, {OTHER_CODES}. Where the network or the "
            "images to judge it are not there, that is bad usage.",
        )
        parser.set_defaults(run=functools.partial(run, name), refuse=parser.error)
        parser.add_argument("network", type=scenario.network, metavar="NETWORK",
                            help=f"of {', '.join(scenario.networks)}")  # fmt: skip
        for setting, default in scenario.settings.items():
            said = dict(SETTINGS[setting])
            words = "all of its calibration" if default is None else default
            said["help"] = f"{said['help']} (default: {words})"
            parser.add_argument(f"--{setting}", default=default, **said)
        parser.add_argument("--seed", type=seed, default=0, metavar="N", help="default: 0")
        if scenario.trains:
            parser.add_argument(
                "--out", type=Path, metavar="DIR",
                help="folder in which the run is kept, to go on from there (default: "
                f"out/constrained/{name}/NETWORK)",
            )  # fmt: skip
        parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here as well")


def run(name: str, options: argparse.Namespace, refuse: Refuse) -> int:
    """Measure, and print the table."""
    scenario = SCENARIOS[name]
    check_there(find(options.network), refuse)
    settings = {setting: getattr(options, setting) for setting in scenario.settings}
    with refusing(refuse):
        check_json(options.json)
        if scenario.trains:
            folder = options.out or Path("out", "constrained", name, options.network)
            check_folder(folder, ())
            settings["folder"] = folder
    console = tables.make_console()
    try:
        with showing.steps(console) as step:
            exact, rows = scenario.study(
                options.network, seed=options.seed, progress=step, **settings
            )
    except ValueError as error:  # such as a share that cannot be met
        refuse(str(error))
    if options.json:
        write_atomically(options.json, to_json(plain({"accuracy": exact, "rows": rows})))
    console.print(tables.beside_dense(exact, rows))
    return 0
