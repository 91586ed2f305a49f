"""What is left of a layer beside its truth, and how random it is."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from lowrank_theory._numerics import float64
from lowrank_theory.studies.layer_rows import LayerHypothesis, ResidualSpectrum
from lowrank_theory.theorems import planted_rank
from lowrank_theory.theorems.gaussian_noise import upper_edge
from lowrank_theory.theorems.white_residual import counted_share

POINTS = 60  # of a spectrum, for a picture
FALSE_ALARM = 0.01


@dataclasses.dataclass(frozen=True)
class Residual:
    r"""$E$ at one rank r, beside a white matrix.

    Of a white $PE$, in its $q \times K$ coordinates, a fit of rank r would leave about a white
    matrix of sides $L = \max(q, K)$ and $S = \min(q, K) - r$, with variance $\hat\sigma^2 = \lVert
    E\rVert_F^2/(LS)$. `squares`: the S squared singular values of $E$ over $\hat\sigma^2L$;
    `columns`: the norms of its columns, in the coordinates that the fit leaves, where $K
    \le q$.
    """

    longer: int
    shorter: int
    squares: Float[np.ndarray, " shorter"]
    columns: Float[np.ndarray, " rest"]

    @staticmethod
    def of(
        noise: Float[np.ndarray, "rest rest"], dimension: int, outputs: int, rank: int
    ) -> "Residual | None":
        r"""`noise` is $E^\top E$; `None` where nothing is left."""
        longer, shorter = max(dimension, outputs), min(dimension, outputs) - rank
        squares = np.maximum(np.linalg.eigvalsh(noise)[::-1], 0)[: max(shorter, 0)]
        total = float(np.sum(squares))
        if total <= 0:
            return None
        columns = np.zeros(0)
        if outputs <= dimension:
            columns = np.sqrt(np.maximum(np.diagonal(noise), 0))
        return Residual(longer, shorter, squares * shorter / total, columns)

    @property
    def ratio(self) -> float:
        """Of the sides."""
        return self.shorter / self.longer

    @property
    def edge_ratio(self) -> float:
        """The largest singular value over the edge of the law of Marchenko and Pastur."""
        return math.sqrt(self.squares[0]) / (1 + math.sqrt(self.ratio))

    def spectrum(self) -> ResidualSpectrum:
        """Its singular values beside the law of a white one."""
        root, count = math.sqrt(self.ratio), self.shorter
        cosines = np.clip((self.squares - 1 - self.ratio) / (2 * root), -1, 1)
        above = np.array([counted_share(angle, self.ratio) for angle in np.arccos(cosines)])
        steps = np.arange(count + 1) / count
        distance = max(np.max(np.abs(above - steps[1:])), np.max(np.abs(above - steps[:-1])))
        chosen = np.unique(np.linspace(0, count - 1, POINTS).round().astype(int))
        position = (chosen + 0.5) / count
        angles = np.linspace(0, math.pi, 1_001)
        shares = [counted_share(angle, self.ratio) for angle in angles]
        white = 1 + self.ratio + 2 * root * np.cos(np.interp(position, shares, angles))
        return ResidualSpectrum(
            edge_ratio=self.edge_ratio,
            distance=float(distance),
            position=tuple(position.tolist()),
            singular_value=tuple(np.sqrt(self.squares[chosen]).tolist()),
            marchenko_pastur=tuple(np.sqrt(np.maximum(white, 0)).tolist()),
        )

    def hypotheses(self, layer: str) -> Iterator[LayerHypothesis]:
        r"""What i.i.d. Gaussian noise would make of it.

        The largest singular value is bounded by `white_residual.gaussian`. The norms of n columns
        of length L, each about normal with relative deviation $1/\sqrt{2L}$, spread by at most $(1
        + t/\sqrt{n-1})/\sqrt{2L}$, $t = \sqrt{2\ln(1/\delta)}$, to first order in $1/L$.
        """
        t = math.sqrt(2 * math.log(1 / FALSE_ALARM))
        size = self.longer * self.shorter
        with float64():
            edge = float(upper_edge(self.longer, self.shorter, FALSE_ALARM))
        edge *= math.sqrt(size / (size - 0.5))
        yield LayerHypothesis.refutable(
            layer,
            planted_rank.gaussian,
            "the noise is i.i.d. Gaussian: its largest singular value",
            self.edge_ratio,
            edge / (math.sqrt(self.longer) + math.sqrt(self.shorter)),
        )
        if self.columns.size > 1:
            yield LayerHypothesis.refutable(
                layer,
                planted_rank.gaussian,
                "the noise is i.i.d. Gaussian: the spread of its columns",
                float(np.std(self.columns, ddof=1) / np.mean(self.columns)),
                (1 + t / math.sqrt(self.shorter - 1)) / math.sqrt(2 * self.longer),
            )
