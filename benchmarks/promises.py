"""Whether certificates keep their word: hostile layers in every dtype, by every route.

Run `python benchmarks/promises.py`; `--json` keeps the numbers, `--against` compares with kept
ones. A layer is what is stored, after rounding to its dtype. What is judged are the factors and the
bias that come back, by their true error, beside the true optimum of that layer (`_exact`).
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import json
import multiprocessing
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import _exact
import lowrank_theory as lrt
from _hostile import DTYPES, GROUPS, SEED, stack
from lowrank_theory.recovery import ASVD, COALA, DRONE, ESPACE, QERA, SVDLLM, CorDA, DiagonalQERA

FEW = 3  # groups of a quick run, and of those that also go alone
LANES = 64  # layers in one program
AT_HAND = 20  # of so many layers, one goes alone as well
NEGLIGIBLE = 1e-10  # of the target's norm, as `Certificate.certified` documents
EXCESS = 0.01  # of the squared error, that a sketch may cost


# --- routes ---------------------------------------------------------------------------------------

Stored = dict[str, Any]


def _rows(layer: Stored) -> dict[str, Any]:
    return {"activations": layer["activations"]}


def _moments(layer: Stored) -> dict[str, Any]:
    return _calibrated(lrt.Calibration, layer["activations"])


def _triangle(layer: Stored) -> dict[str, Any]:
    return _calibrated(lrt.TriangularCalibration, layer["activations"])


def _calibrated(kind: Any, activations: Any, *compressed: Any) -> dict[str, Any]:
    seen = kind.empty(activations.shape[1], compressed=bool(compressed))
    return {"calibration": seen.update(activations, *compressed)}


def _compressed_rows(layer: Stored) -> dict[str, Any]:
    return {"activations": layer["activations"], "compressed_activations": layer["compressed"]}


def _compressed_moments(layer: Stored) -> dict[str, Any]:
    return _calibrated(lrt.Calibration, layer["activations"], layer["compressed"])


def _compressed_triangle(layer: Stored) -> dict[str, Any]:
    return _calibrated(lrt.TriangularCalibration, layer["activations"], layer["compressed"])


def _outputs(layer: Stored) -> dict[str, Any]:
    return {"activations": layer["activations"], "outputs": layer["outputs"]}


def _outputs_compressed(layer: Stored) -> dict[str, Any]:
    return {**_compressed_rows(layer), "outputs": layer["outputs"]}


@dataclasses.dataclass(frozen=True)
class Route:
    """What is observed, by which method it is recovered, and what that is said to minimise.

    The objective is one of `OBJECTIVES`. Where the method depends on the numbers of a layer, all
    layers go alone. A triangle keeps in float64 what it has seen, whatever the dtype of the rows.
    """

    observe: Callable[[Stored], dict[str, Any]]
    method: Callable[[Stored], Any]
    objective: str = "outputs"
    sweep: bool = False
    alone: bool = False
    in_float64: bool = False

    def recover(self, layer: Stored, rank: int, affine: bool) -> Any:
        bias = {"bias": layer["bias"]} if affine else {}
        observed = lrt.Observed(weights=layer["weights"], **self.observe(layer), **bias)
        if self.sweep:
            return lrt.every_rank(observed, self.method(layer)).at(rank)
        return lrt.recover(observed, rank, self.method(layer))


def _seen(layer: Stored, affine: bool, **more: Any) -> _exact.Seen:
    bias = layer["bias"] if affine else None
    return _exact.Seen(layer["weights"], layer["activations"], bias=bias, affine=affine, **more)


OBJECTIVES: dict[str, Callable[[Stored, bool], _exact.Seen]] = {
    "outputs": _seen,
    "compressed": lambda layer, affine: _seen(layer, affine, compressed=layer["compressed"]),
    "given": lambda layer, affine: _seen(layer, affine, outputs=layer["outputs"]),
    "given, compressed": lambda layer, affine: _seen(
        layer, affine, compressed=layer["compressed"], outputs=layer["outputs"]
    ),
    "penalised": lambda layer, affine: _seen(layer, affine, penalty=layer["penalty"]),
    "bias kept": lambda layer, affine: dataclasses.replace(_seen(layer, affine), affine=False),
    "weights": lambda layer, _: _exact.Seen(layer["weights"]),
}


def routes() -> dict[str, Route]:
    def same(method: Any) -> Callable[[Stored], Any]:
        return lambda _: method

    def ridge(layer: Stored) -> Any:
        return lrt.Ridge(float(layer["penalty"]))

    best, sketch = lrt.ActivationWeighted(), lrt.Randomized(EXCESS, key=jax.random.key(SEED))
    plain = {"rows": _rows, "moments": _moments, "triangle": _triangle}
    found = {name: Route(observe, same(best)) for name, observe in plain.items()}
    found |= {
        "compressed rows": Route(_compressed_rows, same(best), "compressed"),
        "compressed moments": Route(_compressed_moments, same(best), "compressed"),
        "compressed triangle": Route(
            _compressed_triangle, same(best), "compressed", in_float64=True
        ),
        "given outputs": Route(_outputs, same(best), "given"),
        "given outputs, compressed": Route(_outputs_compressed, same(best), "given, compressed"),
    }
    for name, observe in plain.items():
        found |= {
            f"every rank, {name}": Route(observe, same(best), sweep=True),
            f"Randomized, {name}": Route(observe, same(sketch)),
            f"Ridge 0, {name}": Route(observe, same(lrt.Ridge(0.0))),
            f"Ridge, {name}": Route(observe, ridge, "penalised", alone=True),
        }
    found["TruncatedSVD"] = Route(lambda _: {}, same(lrt.TruncatedSVD()), "weights")
    found["every rank, TruncatedSVD"] = dataclasses.replace(found["TruncatedSVD"], sweep=True)
    for recipe in (ASVD(), COALA(), CorDA(), DRONE(), DiagonalQERA(), ESPACE(), QERA(), SVDLLM()):
        for name, observe in plain.items():
            takes = {"ASVD": {"rows"}, "COALA": {"rows", "triangle"}}
            kind = type(recipe).__name__
            if name in takes.get(kind, plain):
                found[f"{kind}, {name}"] = Route(observe, same(recipe), "bias kept")
    return found


# --- what came back -------------------------------------------------------------------------------


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=(
        "lanes",
        "left",
        "right",
        "bias",
        "optimal_error",
        "excess_bound",
        "finite",
        "certified",
    ),
    meta_fields=("tolerance",),
)
@dataclasses.dataclass(frozen=True)
class Returned:
    """Stacks of what came back, as NumPy arrays; a layer that was refused is not among them."""

    lanes: np.ndarray
    left: np.ndarray
    right: np.ndarray
    bias: np.ndarray | None
    optimal_error: np.ndarray
    excess_bound: np.ndarray
    finite: np.ndarray
    certified: np.ndarray
    tolerance: float


def _returned(lanes: np.ndarray, recovery: Any) -> Returned:
    certificate = recovery.certificate

    def numbers(array: Any) -> np.ndarray:
        return np.asarray(array).astype(np.float64)

    return Returned(
        lanes=lanes,
        left=numbers(recovery.factors.left),
        right=numbers(recovery.factors.right),
        bias=None if recovery.bias is None else numbers(recovery.bias),
        optimal_error=numbers(certificate.optimal_error),
        excess_bound=numbers(certificate.excess_bound),
        finite=np.asarray(certificate.finite),
        certified=np.asarray(certificate.certified),
        tolerance=certificate.tolerance,
    )


def together(
    route: Route, layers: Stored, rank: int, affine: bool
) -> tuple[Returned | None, list[str]]:
    """All layers in one program; or the words of the refusal, for each."""
    count = len(layers["weights"])
    padded = np.minimum(np.arange(LANES), count - 1)
    with jax.enable_x64(True):
        stacks = {name: jnp.asarray(value[padded]) for name, value in layers.items()}
    try:
        recovery = jax.vmap(lambda layer: route.recover(layer, rank, affine))(stacks)
    except (ValueError, TypeError) as refusal:
        return None, [str(refusal)] * count
    return _exact.part(_returned(np.arange(LANES), recovery), np.arange(count)), []


def alone(
    route: Route, layers: Stored, lanes: Iterable[int], rank: int, affine: bool
) -> tuple[Returned | None, list[str]]:
    """Layers one by one, their numbers at hand; and the words of the refusals."""
    found, refusals = [], []
    for lane in lanes:
        layer = {name: value[lane] for name, value in layers.items()}
        try:
            found.append(_returned(np.asarray(lane), route.recover(layer, rank, affine)))
        except (ValueError, TypeError) as refusal:
            refusals.append(str(refusal))
    return (jax.tree.map(lambda *each: np.stack(each), *found) if found else None), refusals


# --- the judgement --------------------------------------------------------------------------------

# A refusal at the door names the argument; other errors are failures.
_AT_THE_DOOR = re.compile("`(weights|(compressed_)?activations|outputs|bias|calibration)`")
COUNTS = (
    "cases",
    "refused",
    "failed",
    "certified",
    "right",
    "certified_wrong",
    "bound_violated",
    "finite_wrong",
    "error_off",
    "missed",
    "undecided",
    "beyond_dtype",
)
BROKEN = ("certified_wrong", "bound_violated", "finite_wrong", "error_off", "failed")


def judged(
    route: Route,
    seen: _exact.Seen,
    best: _exact.Optimum,
    returned: Returned,
    resolved: _exact.Optimum | None = None,
) -> dict[str, np.ndarray]:
    """Which layers kept which word. `seen` and `best` are those of the layers returned.

    A promise is made beside the optimum over the directions of the inputs that their dtype can tell
    from none, `resolved`; other directions are those of rounding.

    - `right`: the true excess is within what a certificate promises;
    - `bound_violated`: it is above `excess_bound`, though `finite` was said;
    - `finite_wrong`: `finite` is not what the returned numbers are;
    - `error_off`: certified, but `optimal_error` is further off than a promise allows;
    - `undecided`: rounding of the judge itself could tip the scales, which then favours the judged;
    - `beyond_dtype`: certified and right, but not beside the optimum over all directions, `best`.
    """
    bias = None if route.objective == "weights" else returned.bias
    error = _exact.error(seen, returned.left, returned.right, bias)
    known = best if resolved is None else resolved

    def beside(optimum: _exact.Optimum) -> tuple[Any, Any, Any]:
        allowed = np.maximum(returned.tolerance * optimum.value, NEGLIGIBLE * optimum.target)
        return error.value - optimum.value, error.doubt + optimum.doubt, allowed

    excess, doubt, allowed = beside(known)
    of_all, doubt_of_all, allowed_of_all = beside(best)
    stated = returned.optimal_error - known.value
    arrays = [each for each in (returned.left, returned.right, returned.bias) if each is not None]
    finite = np.all([np.isfinite(a).reshape(len(a), -1).all(axis=1) for a in arrays], axis=0)
    right = excess - doubt <= allowed
    return {
        "certified": returned.certified,
        "right": right,
        "certified_wrong": returned.certified & ~right,
        "bound_violated": returned.finite & ~(excess - doubt <= returned.excess_bound),
        "finite_wrong": returned.finite != finite,
        "error_off": returned.certified & ~(np.abs(stated) <= allowed + doubt),
        "missed": right & ~returned.certified,
        "beyond_dtype": returned.certified & right & ~(of_all - doubt_of_all <= allowed_of_all),
        "undecided": right & (excess + doubt > allowed),
        "ratio": np.asarray(excess / np.maximum(allowed, 1e-300), np.float64),
    }


@dataclasses.dataclass(frozen=True)
class Task:
    dtype: str
    group: int
    cases: tuple[int, ...]
    routes: tuple[str, ...]
    ways: tuple[str, ...] = ("together", "alone")
    spacing: int = AT_HAND  # of those that go alone


def measure(task: Task) -> list[dict[str, Any]]:
    """A row of counts for each route, of those in one program and of those that went alone."""
    _, _, _, rank, affine = GROUPS[task.group]
    layers = stack(list(task.cases), DTYPES[task.dtype])
    truths: dict[tuple[str, bool], tuple[_exact.Seen, _exact.Optimum, _exact.Optimum]] = {}
    found = []

    def record(name: str, way: str, returned: Returned | None, refusals: list[str]) -> None:
        row: dict[str, Any] = {"route": name, "dtype": task.dtype, "way": way}
        refused = sum(bool(_AT_THE_DOOR.search(words)) for words in refusals)
        row |= {**dict.fromkeys(COUNTS, 0), "cases": len(refusals), "refused": refused}
        row |= {"failed": len(refusals) - refused, "words": sorted(set(refusals))[:1], "broken": []}
        found.append(row)
        if returned is None:
            return
        route, lanes = routes()[name], returned.lanes
        key = route.objective, route.in_float64
        if key not in truths:
            # Half precision counts as float32, or hardly a direction would be left.
            coarsest = "float64" if route.in_float64 else "float32"
            dtypes = DTYPES[task.dtype], DTYPES[coarsest]
            resolution = min(float(jnp.finfo(each).eps) for each in dtypes)
            seen = OBJECTIVES[route.objective](layers, affine)
            best = _exact.optimum(seen, rank)
            resolved = _exact.optimum(seen, rank, resolution=resolution)
            truths[key] = seen, best, resolved
        seen, *optima = truths[key]
        best, resolved = (_exact.part(each, lanes) for each in optima)
        said = judged(route, _exact.part(seen, lanes), best, returned, resolved)
        row["cases"] += len(lanes)
        row |= {count: int(np.sum(said[count])) for count in COUNTS if count in said}
        row["broken"] = [
            [what, task.cases[lanes[place]], float(f"{said['ratio'][place]:.3g}")]
            for what in BROKEN
            if what in said
            for place in np.flatnonzero(said[what])[:3]
        ]

    for name in task.routes:
        route, every = routes()[name], range(len(task.cases))
        if "together" in task.ways and not route.alone:
            record(name, "together", *together(route, layers, rank, affine))
        if "alone" in task.ways and (route.alone or task.group < FEW):
            lanes = every if route.alone else every[:: task.spacing]
            record(name, "alone", *alone(route, layers, lanes, rank, affine))
    return found


def tasks(cases: int, chosen: list[str], dtypes: list[str], *, quick: bool) -> list[Task]:
    groups: dict[int, list[int]] = collections.defaultdict(list)
    count = FEW if quick else len(GROUPS)
    for case in range(cases):
        groups[case % count].append(case // count * len(GROUPS) + case % count)
    return [
        Task(dtype, group, tuple(numbers[start : start + LANES]), tuple(chosen))
        for group, numbers in groups.items()
        for dtype in dtypes
        for start in range(0, len(numbers), LANES)
    ]


def summed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each route, dtype and way."""
    sums: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        key = row["route"], row["dtype"], row["way"]
        if key not in sums:
            sums[key] = {**row, "broken": list(row["broken"])}
            continue
        into = sums[key]
        for count in COUNTS:
            into[count] += row[count]
        into["words"] = sorted({*into["words"], *row["words"]})[:1]
        into["broken"] = (into["broken"] + row["broken"])[:8]
    return list(sums.values())


# --- what is printed ------------------------------------------------------------------------------


def _table(rows: list[dict[str, Any]]) -> None:
    heads = "cases refused FAILED certif. right WRONG BOUND FINITE off missed ? beyond".split()  # noqa: SIM905
    print(f"{'route':28} {'dtype':14} " + " ".join(f"{head:>7}" for head in heads))
    merged = summed([{**row, "way": "all"} for row in rows])
    for row in merged:
        counts = " ".join(f"{row[count]:7}" for count in COUNTS)
        print(f"{row['route']:28} {row['dtype']:14} {counts}")
    print()
    for dtype in dict.fromkeys(row["dtype"] for row in merged):
        of = [row for row in merged if row["dtype"] == dtype]
        total = {count: sum(row[count] for row in of) for count in COUNTS}
        counts = " ".join(f"{total[count]:7}" for count in COUNTS)
        print(f"{'all routes':28} {dtype:14} {counts}")
    print("\nBroken, for example: the number of the layer, and its excess over what is allowed")
    for row in rows:
        said = ", ".join(f"{what} {case} ({ratio:.2g})" for what, case, ratio in row["broken"][:4])
        if said or row["failed"]:
            print(f"{row['route']:28} {row['dtype']:14} {row['way']:9} {said or row['words'][0]}")


def shares(rows: list[dict[str, Any]]) -> dict[str, float]:
    """In points of the cases: certified, and certified though wrong."""
    cases = max(1, sum(row["cases"] for row in rows))
    return {
        name: 100 * sum(row[name] for row in rows) / cases
        for name in ("certified", "certified_wrong")
    }


def _compare(rows: list[dict[str, Any]], before: list[dict[str, Any]]) -> None:
    """The share certified may fall by two points more than the share that was wrong."""

    def key(row: dict[str, Any]) -> tuple[str, str, str]:
        return row["route"], row["dtype"], row["way"]

    common = {key(row) for row in rows} & {key(row) for row in before}
    now, then = ([row for row in each if key(row) in common] for each in (rows, before))
    print(
        f"\n{'certified, points':28} {'dtype':14} {'before':>8} {'now':>8} {'fall':>7} {'wrong':>7}"
    )
    for dtype in dict.fromkeys(row["dtype"] for row in now):
        names = dict.fromkeys(row["route"] for row in now if row["dtype"] == dtype)
        for name in (None, *names):
            of = [
                shares([r for r in each if r["dtype"] == dtype and name in (None, r["route"])])
                for each in (then, now)
            ]
            fall, wrong = of[0]["certified"] - of[1]["certified"], of[0]["certified_wrong"]
            print(
                f"{name or 'all routes':28} {dtype:14} {of[0]['certified']:8.1f} "
                f"{of[1]['certified']:8.1f} {fall:7.1f} {wrong:7.1f}"
                + ("   <- more than two points" if fall > wrong + 2 else "")
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="48 cases of three shapes")
    parser.add_argument("--cases", type=int, help="cases for each route and dtype; 2400")
    parser.add_argument("--routes", nargs="*", help="these, or those whose name contains a word")
    parser.add_argument("--dtypes", nargs="*", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--json", type=Path, help="keep the numbers in this file")
    parser.add_argument("--against", type=Path, help="compare with the numbers of an earlier run")
    options = parser.parse_args()
    _exact.check_extended()
    names = list(routes())
    exactly = {part for part in options.routes or [] if part in names}
    wanted = set(options.routes or [""]) - exactly
    chosen = [name for name in names if name in exactly or any(part in name for part in wanted)]
    count = options.cases or (48 if options.quick else 2400)
    todo = tasks(count, chosen, options.dtypes, quick=options.quick)
    rows = summed([row for found in _run(todo, options.workers) for row in found])
    order = {name: place for place, name in enumerate([*chosen, *DTYPES])}
    rows.sort(key=lambda row: (order[row["route"]], order[row["dtype"]], row["way"]))
    _table(rows)
    if options.json:
        made = {"seed": SEED, "cases": count, "quick": options.quick, "groups": GROUPS}
        options.json.write_text(json.dumps({"made": made, "rows": rows}, indent=1) + "\n")
    if options.against:
        _compare(rows, json.loads(options.against.read_text())["rows"])
    if any(row[what] for row in rows for what in BROKEN):
        raise SystemExit("A promise was broken.")


def _run(todo: list[Task], workers: int) -> Iterable[list[dict[str, Any]]]:
    """By groups: the programs of one do not serve another, and too many do not fit in a process."""
    done = 0
    for _, group in itertools.groupby(todo, lambda task: task.group):
        for found in _run_group(list(group), workers):
            yield found
            done += 1
            print(f"\r{done} of {len(todo)} tasks", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def _run_group(group: list[Task], workers: int) -> Iterable[list[dict[str, Any]]]:
    if workers == 1:
        yield from map(measure, group)
        jax.clear_caches()
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(measure, group)


if __name__ == "__main__":
    main()
