"""How many random mutants of the theorems and recoveries the tests notice.

python tests/mutants.py [--count 300] [--seed 0] [--workers 2] [--list]

A mutant is the package with one small change: another operator or comparison, another constant, a
dropped term, the other end of a slice, a condition negated, a transposition left out. Each runs its
own module's tests first, then those of the modules that use it; whatever fails or hangs kills it.
Tables of settings, messages, annotations and names are left alone. Results are kept in
`out/mutants/results.json` after each mutant, so that a run that was stopped goes on where it was;
a mutant of a file that has changed since is run anew.

Not mutmut, whose version 3 forks (unsafe beside JAX's threads) and knows no seeded sample; not
cosmic-ray, which runs one test command for all mutants.
"""

import argparse
import ast
import concurrent.futures
import copy
import dataclasses
import difflib
import hashlib
import json
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from scipy import stats

from lowrank_theory._files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "lowrank_theory"
MUTATED = ("theorems", "recovery")
LEFT_ALONE = {"__init__.py", "_regimes.py"}
TABLES = {
    "kind", "needs", "regimes", "control", "adversary", "sharp", "growth", "trials_per_mean",
}  # fmt: skip
WHOLE = {  # what tests every module of a folder
    "theorems": ("test_theorems.py",),
    "recovery": (
        "test_recovery.py",
        "test_guard_of_moments.py",
        "test_derivatives.py",
        "test_low_rank.py",
        "test_relu.py",
        "test_bad_input.py",
    ),
}
SLOW = (
    "test_cli.py",
    "test_cli_transfer.py",
    "test_experiments.py",
    "test_layer_study.py",
    "test_readme.py",
)
COPIED = (PACKAGE, "tests", "experiments", "figures", "paper_notes", "pyproject.toml", "README.md")
NEVER = 10**9  # seconds that no compilation takes: a mutant reads the shared cache, never writes it
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change: the bytes from `start` to `end` of a file, replaced."""

    path: str
    line: int
    start: int
    end: int
    new: str
    change: str

    @property
    def module(self) -> str:
        return Path(self.path).stem

    def source(self, original: bytes) -> bytes:
        return original[: self.start] + self.new.encode() + original[self.end :]

    def name(self, original: bytes) -> str:
        digest = hashlib.sha256(self.source(original)).hexdigest()[:12]
        return f"{self.path}:{self.line} {self.change} [{digest}]"

    def diff(self, original: bytes) -> str:
        old, new = (text.decode().splitlines() for text in (original, self.source(original)))
        lines = difflib.unified_diff(old, new, self.path, self.path, n=1, lineterm="")
        return "\n".join(list(lines)[2:])


# --- making mutants ------------------------------------------------------------------------------

BINARY: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
COMPARISONS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
PAIRS = (
    ("min", "max"),
    ("minimum", "maximum"),
    ("argmin", "argmax"),
    ("any", "all"),
    ("sum", "mean"),
    ("floor", "ceil"),
    ("log", "log1p"),
    ("cumsum", "cumprod"),
    ("zeros", "ones"),
    ("zeros_like", "ones_like"),
)
NAMES = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])} | {"sqrt": "abs"}


def _constants(value: float) -> Iterator[float]:
    """0, 1, 2 into each other, any other number into its neighbour; a sign; a factor."""
    yield from (other for other in (0, 1, 2) if other != value and value in (0, 1, 2))
    if value not in (0, 1, 2):
        yield value + 1
    if value != 0:
        yield -value
        yield 3 * value if value == 1 else 2 * value


def _changed(node: ast.AST, **fields: object) -> ast.AST:
    node = copy.deepcopy(node)
    for name, value in fields.items():
        setattr(node, name, value)
    return node


def _variants(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What a node may be changed into."""
    match node:
        case ast.BinOp(left=left, op=op, right=right):
            if other := BINARY.get(type(op)):
                yield f"{type(op).__name__} -> {other.__name__}", _changed(node, op=other())
            if isinstance(op, ast.Add | ast.Sub | ast.Mult | ast.Div):
                yield "drop the right operand", left
            if isinstance(op, ast.Add | ast.Mult):
                yield "drop the left operand", right
        case ast.Compare(ops=[op]):
            for other in COMPARISONS.get(type(op), ()):
                yield f"{type(op).__name__} -> {other.__name__}", _changed(node, ops=[other()])
        case ast.Constant(value=bool() as value):
            yield f"{value} -> {not value}", ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            for other in _constants(value):
                kind = type(value)(other)
                yield f"{value} -> {kind}", ast.Constant(kind)
        case ast.UnaryOp(op=ast.USub() | ast.Invert() | ast.Not() as op, operand=operand):
            yield f"drop {type(op).__name__}", operand
        case ast.Attribute(value=value, attr="T" | "mT"):
            yield "drop the transposition", value
        case ast.Attribute(attr=name) if name in NAMES:
            yield f"{name} -> {NAMES[name]}", _changed(node, attr=NAMES[name])
        case ast.Name(id="min" | "max" | "any" | "all" as name):
            yield f"{name} -> {NAMES[name]}", ast.Name(NAMES[name])
        case ast.Slice(lower=None, upper=ast.expr() as upper, step=None):
            yield "head -> tail", ast.Slice(upper)
        case ast.Slice(lower=ast.expr() as lower, upper=None, step=None):
            yield "tail -> head", ast.Slice(None, lower)
        case ast.BoolOp(op=op):
            other = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield f"{type(op).__name__} -> {type(other).__name__}", _changed(node, op=other)
        case ast.IfExp(test=test):
            negated = ast.UnaryOp(ast.Not(), test)
            yield "negate the condition", _changed(node, test=negated)
        case ast.Call(func=ast.Attribute(attr="where"), args=[test, yes, no]):
            yield "swap the cases", _changed(node, args=[test, no, yes])


def _expressions(node: ast.AST, *, top: bool = True) -> Iterator[ast.AST]:
    """The nodes that may be changed: no annotations, messages, assertions,
    or tables.
    """
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.keyword) and node.arg in ("strict", "static"):
        return
    if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        named = {target.id for target in targets if isinstance(target, ast.Name)}
        if not named & TABLES and (not top or isinstance(node.value, ast.Constant | ast.BinOp)):
            yield from _expressions(node.value, top=False)
        return
    if isinstance(node, ast.FunctionDef | ast.Lambda):
        defaults = [d for d in (*node.args.defaults, *node.args.kw_defaults) if d is not None]
        body = node.body if isinstance(node, ast.FunctionDef) else [node.body]
        children: Iterator[ast.AST] = iter([*defaults, *body])
    else:
        children = ast.iter_child_nodes(node)
        yield node
    inside = top and isinstance(node, ast.Module)
    for child in children:
        if not (isinstance(child, ast.expr) and child in getattr(node, "decorator_list", ())):
            yield from _expressions(child, top=inside)


def mutants_of(path: Path) -> list[Mutant]:
    """Every mutant of a file, in a fixed order."""
    source = path.read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for node in _expressions(ast.parse(source)):
        if isinstance(node, ast.If | ast.While):
            test = node.test
            options = [("negate the condition", test, ast.UnaryOp(ast.Not(), test))]
        else:
            options = [(change, node, new) for change, new in _variants(node)]
        for change, old, new in options:
            assert isinstance(old, ast.expr)
            assert old.end_lineno is not None
            assert old.end_col_offset is not None
            start = starts[old.lineno - 1] + old.col_offset
            end = starts[old.end_lineno - 1] + old.end_col_offset
            text = ast.unparse(ast.fix_missing_locations(new))
            bare = isinstance(new, ast.Slice | ast.Name | ast.Attribute)
            text = text if bare or _whole(new) else f"({text})"
            found.append(Mutant(str(path.relative_to(ROOT)), old.lineno, start, end, text, change))
    return [mutant for mutant in found if _compiles(mutant.source(source))]


def _whole(node: ast.AST) -> bool:
    """Whether the text of a node needs no parentheses anywhere."""
    positive = isinstance(node, ast.Constant) and not str(node.value).startswith("-")
    return positive or isinstance(node, ast.Call | ast.Subscript)


def _compiles(source: bytes) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


# --- running tests -------------------------------------------------------------------------------


def test_files() -> dict[str, str]:
    """Where in the checkout each file of tests is, by its name."""
    found = (ROOT / "tests").rglob("test_*.py")
    return {path.name: path.relative_to(ROOT).as_posix() for path in found}


def stages_of(module: str) -> list[list[str]]:
    """Test files in the order in which they may notice a mutant of the module: its own; then, in
    one run, those of the modules that use it, of its folder, and whatever else names it.
    """
    texts = {name: (ROOT / path).read_text() for name, path in test_files().items()}
    folder = next(f for f in MUTATED if (ROOT / PACKAGE / f / f"{module}.py").exists())
    mentions = {name: len(re.findall(rf"\b{module}\b", text)) for name, text in texts.items()}
    named = sorted((n for n in texts if mentions[n]), key=lambda n: (-mentions[n], n))
    users = sorted(
        f"test_{path.stem}.py"
        for path in (ROOT / PACKAGE).rglob("*.py")
        if re.search(rf"\b{module} import\b", path.read_text())
    )
    own = f"test_{module.lstrip('_')}.py"
    first = [own] if own in texts else list(WHOLE[folder][:1])
    candidates = dict.fromkeys((*users, *WHOLE[folder], *named))
    rest = [n for n in candidates if n in texts and n not in (*first, *SLOW)]
    return [first, rest] if rest else [first]


class Folder:
    """A copy of the checkout in which one mutant at a time lives."""

    def __init__(self, base: Path, cache: Path, number: int) -> None:
        self.path = base / f"worker{number}"
        self.cache = cache
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", ".*")
                shutil.copytree(source, self.path / name, ignore=ignored)
            elif source.exists():
                shutil.copy(source, self.path / name)

    def write(self, path: str, source: bytes) -> None:
        """Change a file, and forget its bytecode: two writes within a second look the same."""
        target = self.path / path
        target.write_bytes(source)
        for stale in target.parent.glob(f"__pycache__/{target.stem}.*"):
            stale.unlink()

    def run(self, files: list[str], limit: float, *, fill_cache: bool) -> tuple[int | None, str]:
        """Exit code of pytest, `None` if it ran out of time, and the tail of its output."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.path),
            "OPENBLAS_NUM_THREADS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0" if fill_cache else str(NEVER),
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        paths = test_files()
        command += ["-m", "not slow", *(paths[name] for name in files)]
        process = subprocess.Popen(
            command,
            cwd=self.path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return None, ""
        return process.returncode, output[-1500:]


def judge(mutant: Mutant, original: bytes, folder: Folder, limits: dict[str, float]) -> dict:
    """Run the stages until one kills the mutant."""
    folder.write(mutant.path, mutant.source(original))
    began, outcome, by = time.monotonic(), "survived", None
    try:
        for files in stages_of(mutant.module):
            limit = sum(limits[name] for name in files)
            code, output = folder.run(files, limit, fill_cache=False)
            if code not in (0, 5):  # 5: every test of the file is a slow one
                outcome = "timed out" if code is None else "killed"
                failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
                by = failed[1] if failed else files[0]
                break
    finally:
        folder.write(mutant.path, original)
    seconds = round(time.monotonic() - began, 1)
    return {"outcome": outcome, "by": by, "seconds": seconds, "diff": mutant.diff(original)}


def summary(results: dict[str, dict]) -> str:
    """Counts, the interval, and the survivors."""
    counts = {
        outcome: sum(row["outcome"] == outcome for row in results.values())
        for outcome in ("killed", "timed out", "survived")
    }
    total, noticed = len(results), counts["killed"] + counts["timed out"]
    lines = []
    for name, row in results.items():
        if row["outcome"] == "survived":
            lines += [name, row["diff"], ""]
    lines.append(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    if total:
        interval = stats.binomtest(noticed, total).proportion_ci(CONFIDENCE, method="exact")
        lines.append(
            f"noticed: {noticed} of {total} = {noticed / total:.1%}, "
            f"{CONFIDENCE:.0%} interval {interval.low:.1%} to {interval.high:.1%}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=300, help="mutants to sample")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    parser.add_argument("--only", default="", help="mutants of paths that contain this text")
    parser.add_argument("--list", action="store_true", help="print the sample and stop")
    options = parser.parse_args()

    paths = [path for folder in MUTATED for path in sorted((ROOT / PACKAGE / folder).glob("*.py"))]
    paths = [p for p in paths if p.name not in LEFT_ALONE and options.only in str(p)]
    originals = {str(path.relative_to(ROOT)): path.read_bytes() for path in paths}
    places: dict[tuple[str, int, int], list[Mutant]] = {}
    for path in paths:
        for mutant in mutants_of(path):
            places.setdefault((mutant.path, mutant.start, mutant.end), []).append(mutant)
    count = min(options.count, len(places))
    chance = random.Random(options.seed)
    sampled = [chance.choice(places[place]) for place in chance.sample(list(places), count)]
    names = {mutant.name(originals[mutant.path]): mutant for mutant in sampled}
    print(f"one mutant at each of {count} of {len(places)} places in {len(paths)} files")
    if options.list:
        for name, mutant in names.items():
            print(f"{name}\n{mutant.diff(originals[mutant.path])}\n")
        return

    out = ROOT / "out" / "mutants"
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "results.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    results = {name: row for name, row in results.items() if name in names}
    lock, waiting = threading.Lock(), [name for name in names if name not in results]

    with tempfile.TemporaryDirectory() as temporary:
        free: queue.Queue[Folder] = queue.Queue()
        for number in range(options.workers):
            free.put(Folder(Path(temporary), out / "cache", number))
        needed = {
            file for name in waiting for stage in stages_of(names[name].module) for file in stage
        }

        def baseline(file: str) -> tuple[str, float]:
            """The time limit of a test file: from a run on the package as it is."""
            folder, began = free.get(), 0.0
            for _ in range(2):  # the second one finds everything compiled
                began = time.monotonic()
                code, output = folder.run([file], 1800, fill_cache=True)
                if code not in (0, 5):
                    print(f"{file} fails without any mutant:\n{output}")
                    os._exit(1)
            free.put(folder)
            seconds = time.monotonic() - began
            print(f"{file}: {seconds:.0f} s", flush=True)
            return file, 60 + 4 * seconds

        def one(name: str) -> None:
            folder = free.get()
            row = judge(names[name], originals[names[name].path], folder, limits)
            free.put(folder)
            with lock:
                results[name] = row
                write_atomically(kept, json.dumps(results, indent=1).encode())
                print(
                    f"{len(results)}/{count} {row['outcome']} {row['seconds']} s {name}", flush=True
                )

        with concurrent.futures.ThreadPoolExecutor(options.workers) as pool:
            limits = dict(pool.map(baseline, sorted(needed)))
            list(pool.map(one, waiting))
    print(summary(results))


if __name__ == "__main__":
    main()
