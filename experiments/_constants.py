"""Constants of statements beside the best published ones, for the table in paper_notes/README.md.

Only what a note states with its source is published here. Where a bound has no single constant,
both are taken at the sizes that `of` names.
"""

import math
from typing import NamedTuple

from lowrank_theory._numerics import float64
from lowrank_theory.theorems._sketches import inverse_moment, inverse_norm, mean_inverse_norm
from lowrank_theory.theorems.gaussian_noise import leading_squares, lower_edge, upper_edge
from lowrank_theory.theorems.second_moment import relative_deviation


class Constant(NamedTuple):
    """A factor `of` something: `here`, and as `published` in a `source` of references.bib."""

    of: str
    here: float
    published: float | None = None
    source: str | None = None


def constants() -> dict[str, Constant]:
    """By statement."""
    q, outputs, delta = 24.0, 20.0, 0.05
    t, edges = math.sqrt(2 * math.log(1 / delta)), (math.sqrt(q), math.sqrt(outputs))
    with float64():
        above = float(upper_edge(q, outputs, delta)) - sum(edges)
        below = edges[0] - edges[1] - float(lower_edge(q, outputs, delta))
        square = float(leading_squares(q, outputs, 1)[0])
        deviation = float(relative_deviation(10.0, 60, delta))
    classical = (math.sqrt(10) + math.sqrt(2 * math.log(2 / delta))) / math.sqrt(60)
    units = 100
    found = {
        "singular_values.weyl": (r"$\lVert Z \rVert$", 1, 1, "weyl1912"),
        "singular_values.mirsky": (r"$\lVert Z \rVert_F$", 1, 1, "mirsky1960"),
        "singular_values.mirsky_nuclear": (r"$\lVert Z \rVert_\ast$", 1, 1, "mirsky1960"),
        "singular_subspaces.wedin": (
            r"$\max(\lVert ZV \rVert, \lVert Z^\top U \rVert)/\delta$", 1, 1, "wedin1972",
        ),
        "singular_subspaces.wedin_frobenius": (
            r"$(\lVert ZV \rVert_F^2 + \lVert Z^\top U \rVert_F^2)^{1/2}/\delta$",
            1, 1, "wedin1972",
        ),
        "singular_subspaces.gap": (
            r"$\lVert Z_{(r)} \rVert_F/(s_r - s_{r+1})$ at $s_1 = s_r = 2s_{r+1}$, weak $Z$",
            2, 8 / 3, "yu_wang_samworth2015",
        ),
        "singular_subspaces.gap_operator_norm": (r"$\lVert Z \rVert/(s_r - s_{r+1})$", 2),
        "singular_subspaces.both_sides": (r"$\lVert Z_{(2r)} \rVert_F/(s_r - s_{r+1})$", 2),
        "singular_subspaces.eigenvectors": (
            r"$\lVert Z \rVert_F/(l_r - l_{r+1})$", 2, 2, "yu_wang_samworth2015",
        ),
        "singular_subspaces.eigenvectors_operator_norm": (
            r"$\lVert Z \rVert/(l_r - l_{r+1})$", 2,
        ),
        "truncation_stability.frobenius": (
            r"$\lVert Z_{(r)} \rVert_F$, $r \le d/2$", math.sqrt(5),
        ),
        "truncation_stability.nuclear": (r"$\lVert Z_{(r)} \rVert_\ast$, $r \le d/2$", 3),
        "truncation_stability.schatten_4": (
            r"$\lVert Z_{(r)} \rVert_{S_4}$, $r \le d/2$", 17**0.25,
        ),
        "truncation_stability.operator_norm": (r"$\lVert Z \rVert$", 2),
        "truncation_stability.golden_ratio": (
            r"$\lVert Z_{(2r)} \rVert_F$ (published for vectors)",
            (1 + math.sqrt(5)) / 2, (1 + math.sqrt(5)) / 2, "shen_li2018",
        ),
        "gaussian_noise.largest": (
            r"added to $\sqrt q + \sqrt K$, 24 × 20, $\delta = 0.05$",
            above, t, "davidson_szarek2001",
        ),
        "gaussian_noise.smallest": (
            r"taken from $\sqrt L - \sqrt S$, 24 × 20, $\delta = 0.05$",
            below, t, "davidson_szarek2001",
        ),
        "gaussian_noise.leading": (
            r"$\mathbb E \lVert G \rVert^2$, 24 × 20", square, sum(edges) ** 2 + 1,
            "davidson_szarek2001",
        ),
        "subgaussian_noise.pac_bayes": (
            r"$\sigma \sqrt{q + K}$, equal clouds, leading order", 1.567,
        ),
        "subgaussian_noise.net": (r"$\sigma \sqrt{q + K}$, equal nets, leading order", 2.212),
        "heteroskedastic_noise.expected_norm": (
            r"$s_\ast \sqrt{\ln \min(m, K)/\ln(1 + \varepsilon)}$, to leading order",
            2, 5, "bandeira_van_handel2016",
        ),
        "second_moment.relative": (
            r"$e$ for 10 dimensions, 60 rows, $\delta = 0.05$",
            deviation, classical, "davidson_szarek2001",
        ),
        "second_moment.absolute": (
            r"$\lVert C \rVert$ for 10 dimensions, 60 rows, $\delta = 0.05$",
            (1 + deviation) ** 2 - 1, (1 + classical) ** 2 - 1, "davidson_szarek2001",
        ),
        "second_moment.leverage_above": (
            r"$\frac Rm \ln \frac k\delta$, in the exponent", 1, 1, "tropp2015",
        ),
        "second_moment.leverage_below": (
            r"$\frac Rm \ln \frac k\delta$, in the exponent", 1, 1, "tropp2015",
        ),
        "planted_rank.gaussian": (
            r"$r\sigma^2(\sqrt q + \sqrt K)^2$, $r \le d/2$, leading order", 5,
        ),
        "planted_rank.any_noise": (r"$\lVert (PE)_{(r)} \rVert_F$, $r \le d/2$", math.sqrt(5)),
        "planted_rank.weights": (
            r"$\lVert (PE)_{(r)} \rVert_F/s_N(\tilde X)$, $r \le d/2$", math.sqrt(5),
        ),
        "projected_truth.no_gap": (r"the noise of rank $r$ outside", math.sqrt(2)),
        "strong_signal.gaussian": (r"$r(q + K - r)\sigma^2$, strong signals in large layers", 1),
        "approximate_rank.oracle": (
            r"$\nu^2 \, \mathrm{rank}(F)$ at $\tau = \nu$",
            4, (1 + math.sqrt(2)) ** 2, "koltchinskii_lounici_tsybakov2011",
        ),
        "approximate_rank.gaussian": (r"$r\tau^2$", 4),
        "approximate_rank.nuclear_ball": (r"$R\nu$", 2),
        "approximate_rank.exact_radius": (r"$r\nu^2$, large layers", 4),
        "approximate_rank.golden_ratio": (
            r"$\lVert (PE)_{(2r)} \rVert_F$", (1 + math.sqrt(5)) / 2,
        ),
        "rank_penalty.exact_rank": (
            r"$r\nu^2$ at $\mu = 3\nu^2$", (1 + math.sqrt(3)) ** 2, 12,
            "bunea_she_wegkamp2011",
        ),
        "held_out_certificate.hoeffding": (r"$B\sqrt{L/(2n)}$", 1, 1, "hoeffding1963"),
        "held_out_certificate.empirical_bernstein": (
            r"$BL/n$, for 100 losses that are equal",
            math.sqrt(2 * units / (units // 2)) + 1 / 3, 7 * units / (3 * (units - 1)),
            "maurer_pontil2009",
        ),
        "held_out_certificate.clopper_pearson": (
            r"the limit of the binomial law", 1, 1, "clopper_pearson1934",
        ),
        "randomized_range.structural": (
            r"$\lVert \Sigma_2 \Omega_2 \Omega_1^+ \rVert_F^2$", 1, 1,
            "boutsidis_drineas_magdon_ismail2014",
        ),
        "randomized_range.frobenius": (
            r"$\min_k (1 + k/(\ell - k - 1)) \, \mathrm{tail}_k^2$", 1, 1, "tropp_webber2023",
        ),
        "randomized_range.spectral": (
            r"$\mathrm{tail}_r$ at $r = 3$, $p = 5$",
            mean_inverse_norm(3, 5), math.e * math.sqrt(8) / 5, "halko_martinsson_tropp2011",
        ),
        "randomized_range.frobenius_tail": (
            r"$t^2 r \, \mathrm{tail}_r^2$ at $p = 5$",
            inverse_moment(5), 3 / 6, "halko_martinsson_tropp2011",
        ),
        "randomized_range.spectral_tail": (
            r"$t' \, \mathrm{tail}_r$ at $r = 3$, $p = 5$",
            inverse_norm(3, 5), math.e * math.sqrt(8) / 6, "halko_martinsson_tropp2011",
        ),
    }  # fmt: skip
    return {name: Constant(*each) for name, each in found.items()}
