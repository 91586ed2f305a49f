r"""The sequences of other compressors, written anew from their formulas, and the float64 oracle.

All take the project's layout, `activations (samples, inputs) @ weights (inputs, outputs)`, and
return two factors of the compressed layer. `Library` lets one formula run in NumPy and SciPy or in
PyTorch. Nothing of `lowrank_theory` is used here.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg

Factors = tuple[Any, Any]
SHIFT = 1e-6  # what SVD-LLM adds beyond the least eigenvalue


@dataclasses.dataclass(frozen=True)
class Library:
    """The few operations that the sequences need; arrays are cast by `single` and `double`."""

    name: str
    single: Callable[[Any], Any]
    double: Callable[[Any], Any]
    eye: Callable[[int], Any]
    cholesky: Callable[[Any], Any]
    inverse: Callable[[Any], Any]
    svd: Callable[[Any], tuple[Any, Any, Any]]
    triangle: Callable[[Any], Any]
    eigvalsh: Callable[[Any], Any]
    eigh: Callable[[Any], tuple[Any, Any]]
    failure: type[Exception]
    finish: Callable[[], Any] = lambda: None


def numpy() -> Library:
    """NumPy and SciPy, whichever is faster for each operation."""
    fast = {"check_finite": False}
    return Library(
        "NumPy",
        single=lambda a: np.asarray(a, np.float32),
        double=lambda a: np.asarray(a, np.float64),
        eye=np.eye,
        cholesky=functools.partial(scipy.linalg.cholesky, lower=True, **fast),
        inverse=functools.partial(scipy.linalg.inv, **fast),
        svd=functools.partial(scipy.linalg.svd, full_matrices=False, **fast),
        triangle=functools.partial(np.linalg.qr, mode="r"),
        eigvalsh=functools.partial(scipy.linalg.eigvalsh, **fast),
        eigh=functools.partial(scipy.linalg.eigh, **fast),
        failure=np.linalg.LinAlgError,
    )


def torch() -> Library | None:
    """PyTorch, on its GPU where it has one; none where it is not installed."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch  # pyright: ignore[reportMissingImports]

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def cast(array: Any, dtype: Any) -> Any:
        if not isinstance(array, torch.Tensor):
            array = np.array(array)  # of its own: PyTorch wants to be able to write
        return torch.as_tensor(array, dtype=dtype, device=device)

    return Library(
        "PyTorch",
        single=lambda a: cast(a, torch.float32),
        double=lambda a: cast(a, torch.float64),
        eye=lambda n: torch.eye(n, dtype=torch.float64, device=device),
        cholesky=torch.linalg.cholesky,
        inverse=torch.linalg.inv,
        svd=functools.partial(torch.linalg.svd, full_matrices=False),
        triangle=lambda a: torch.linalg.qr(a, mode="r")[1],
        eigvalsh=torch.linalg.eigvalsh,
        eigh=torch.linalg.eigh,
        failure=torch.linalg.LinAlgError,
        finish=torch.cuda.synchronize if device == "cuda" else lambda: None,
    )


def svd_llm(library: Library, weights: Any, gram: Any, rank: int) -> Factors:
    r"""SVD-LLM (Wang et al. 2025), as its repository computes it: $G = LL^\top$ in float64, shifted
    by $10^{-6} - \lambda_{\min}$ where that fails; the SVD of $L^\top W$ in float32, cut to the
    rank; $L^{-\top}$ by explicit inversion.

    Raises the library's failure where the shifted Gram is not positive definite either.
    """
    gram = library.double(gram)
    try:
        lower = library.cholesky(gram)
    except library.failure:
        shift = SHIFT - library.eigvalsh(gram)[0]
        lower = library.cholesky(gram + shift * library.eye(gram.shape[0]))
    inverse = library.single(library.inverse(lower))
    left, values, right = library.svd(library.single(lower).T @ weights)
    roots = values[:rank] ** 0.5
    factors = inverse.T @ (left[:, :rank] * roots), roots[:, None] * right[:rank]
    library.finish()
    return factors


def svd_llm_v2(library: Library, weights: Any, gram: Any, rank: int) -> Factors:
    r"""SVD-LLM v2 (Wang et al. 2025): $G = US U^\top$, the SVD of $S^{1/2}U^\top W$, and
    $US^{-1/2}$, all in the dtype of the Gram.
    """
    eigenvalues, vectors = library.eigh(gram)
    roots = abs(eigenvalues) ** 0.5
    left, values, right = library.svd(roots[:, None] * (vectors.T @ weights))
    factors = (vectors / roots) @ (left[:, :rank] * values[:rank]), right[:rank]
    library.finish()
    return factors


def coala_from_triangle(library: Library, weights: Any, triangle: Any, rank: int) -> Factors:
    r"""COALA (Parkina and Rakhuba 2025), its triangular factor at hand: the SVD of $RW$, and $W$
    projected on its leading right singular vectors.
    """
    _, _, right = library.svd(triangle @ weights)
    factors = weights @ right[:rank].T, right[:rank]
    library.finish()
    return factors


def coala(library: Library, weights: Any, activations: Any, rank: int) -> Factors:
    r"""COALA from the activations, $X = QR$, in their dtype."""
    return coala_from_triangle(library, weights, library.triangle(activations), rank)


def randomized_svd(weights: Any, activations: Any, rank: int, seed: int) -> Factors:
    """Scikit-learn's randomized SVD of the outputs, with its own defaults; projects the weights."""
    from sklearn.utils.extmath import randomized_svd

    _, _, right = randomized_svd(activations @ weights, rank, random_state=seed)
    return weights @ right.T, right


def plain_svd(library: Library, weights: Any, rank: int) -> Factors:
    """The truncated SVD of the weights, which ignores the data."""
    left, values, right = library.svd(weights)
    return left[:, :rank] * values[:rank], right[:rank]


# --- the oracle ---


def dense(factors: Factors) -> np.ndarray:
    """The product of two factors, of any library, in float64."""
    left, right = (np.asarray(f.cpu() if hasattr(f, "cpu") else f, np.float64) for f in factors)
    return left @ right


def optimum(weights: np.ndarray, gram: np.ndarray, ranks: tuple[int, ...]) -> dict[int, float]:
    r"""$(\sum_{i>r}\lambda_i(W^\top GW))^{1/2}$ of each rank, in float64."""
    weights = weights.astype(np.float64)
    eigenvalues = scipy.linalg.eigvalsh(weights.T @ gram @ weights, check_finite=False)[::-1]
    return {rank: float(np.sqrt(np.sum(np.maximum(eigenvalues[rank:], 0)))) for rank in ranks}


def output_error(weights: np.ndarray, gram: np.ndarray, factors: Factors) -> float:
    r"""$\lVert X(W - Z)\rVert_F$ from $G = X^\top X$, in float64."""
    difference = weights.astype(np.float64) - dense(factors)
    return float(np.sqrt(np.sum(difference * (gram @ difference))))
