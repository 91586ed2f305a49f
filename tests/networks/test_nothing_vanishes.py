"""Each selected leaf is replaced, left dense with a remark, or listed; and counted once."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lowrank_theory.networks import (
    Bytes,
    Compressed,
    LayerError,
    MultiplyAdds,
    Parameters,
    RankRule,
    compress,
    load_compressed,
    observe,
    survey,
)
from routes import normal

X = normal(9, 40, 12)


def arrays(tree: Any) -> list[Any]:
    """Each array once."""
    return list({id(leaf): leaf for leaf in jax.tree.leaves(tree)}.values())


def numbers(tree: Any) -> int:
    return sum(leaf.size for leaf in arrays(tree))


# --- what is not followed ------------------------------------------------------------------------


def experts(p, x):
    """Weights that are looked up, cut, complex, added, empty, in a `while` loop, and not used."""
    chosen = jnp.argmax(x @ p["router"], -1)
    x = jnp.einsum("td,tdf->tf", x, p["experts"][chosen]) + p["bias"]
    x = lax.while_loop(lambda v: jnp.sum(v) > 1e9, lambda v: v @ p["turned"], x)
    x = x @ p["cut"][:, :12] + x[:, :0] @ p["empty"]
    return jnp.abs(x @ p["complex"]) @ p["plain"], p["count"]


def of_experts() -> dict[str, Any]:
    shapes = {
        "router": (12, 6), "experts": (6, 12, 12), "bias": (12,), "turned": (12, 12),
        "cut": (12, 14), "complex": (12, 10), "plain": (10, 8), "unused": (4, 4), "empty": (0, 12),
    }  # fmt: skip
    p: dict[str, Any] = {name: normal(k, *shape) for k, (name, shape) in enumerate(shapes.items())}
    return {**p, "complex": p["complex"] * np.complex64(1 + 1j), "count": np.arange(3)}


@pytest.mark.parametrize("kind", [Parameters, Bytes, MultiplyAdds])
def test_shares_are_of_what_was_followed_and_of_all(kind):
    parameters = of_experts()
    compressed = compress(experts, parameters, [X], kind(0.8))
    assert set(compressed.layers) == {"['router']", "['plain']"}
    assert compressed.layers.keys() | compressed.not_followed.keys() == {
        f"['{name}']" for name in parameters
    }
    reasons = {
        "experts": "looked up", "turned": "`while` loop", "cut": "cut into parts", "bias": "added",
        "complex": "complex weights are not followed", "unused": "not used", "count": "int",
        "empty": "without any entries",
    }  # fmt: skip
    for name, reason in reasons.items():
        assert reason in compressed.not_followed[f"['{name}']"]
        assert f"['{name}']" in repr(compressed)
    check_printed(compressed, parameters)


def check_printed(compressed: Compressed, parameters: Any) -> None:
    """The shares are those of the arrays at hand."""
    parts, followed = compressed.parameters, compressed.layers
    kept, whole = numbers(parts), numbers(parameters)
    size, full = (sum(leaf.nbytes for leaf in arrays(tree)) for tree in (parts, parameters))
    others = whole - sum(layer.dense_parameters for layer in followed.values())
    printed = re.findall(
        r"([\d.]+)% of ([\d,]+) (\w+) in .*, ([\d.]+)% of all ([\d,]+)", repr(compressed)
    )
    (share, of, _, share_of_all, of_all), (*_, share_of_bytes, all_bytes) = printed
    assert (int(of.replace(",", "")), int(of_all.replace(",", ""))) == (whole - others, whole)
    assert float(share) == pytest.approx(100 * (kept - others) / (whole - others), abs=0.051)
    assert float(share_of_all) == pytest.approx(100 * kept / whole, abs=0.051)
    assert int(all_bytes.replace(",", "")) == full
    assert float(share_of_bytes) == pytest.approx(100 * size / full, abs=0.051)


def test_a_budget_that_cannot_be_met_names_what_stays():
    def function(p, tokens):
        return jnp.tanh(p["table"][tokens] @ p["thin"]), p["table"][tokens] @ p["table"].T

    parameters = {"table": normal(0, 20, 8), "thin": normal(1, 8, 1)}
    with pytest.raises(ValueError, match="cannot be met") as caught:
        compress(function, parameters, [np.arange(40) % 20], Parameters(0.7))
    assert "['table'] stays as it is: it cannot be replaced: its rows are looked up" in str(
        caught.value
    )
    assert "['thin'] stays as it is: no rank saves anything" in str(caught.value)


@pytest.mark.parametrize(
    "unused",
    [
        np.zeros((40, 0), np.float32),
        np.full((40, 2), np.nan, np.float32),
        np.full(3, np.nan, np.complex64),
        np.arange(3),
        jax.random.key(0),
        None,
    ],
    ids=["empty", "NaN", "complex NaN", "integers", "key", "none"],
)
def test_what_no_weight_meets_stops_nothing(unused):
    def function(p, batch):
        return jnp.tanh(batch["x"] @ p["w"]) + batch["x"][:, :0] @ p["empty"]

    parameters = {"w": normal(0, 12, 10), "empty": np.zeros((0, 10), np.float32)}
    batch = {"x": X, "unused": unused}
    assert list(survey(function, parameters, batch)) == ["['w']"]
    observed = observe(function, parameters, [batch])
    assert list(observed) == ["['w']"]
    assert observed.not_followed["['empty']"] == ("it is float32[0, 10], without any entries",)


# --- one array at several leaves -----------------------------------------------------------------


def siamese(p, x):
    return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["mix"]) @ p["b"]


def autoencoder(p, x):
    return jnp.tanh(x @ p["a"]) @ p["mix"] @ p["b"].T @ normal(5, 12, 3)


def language(p, x):
    tokens = jnp.argmax(x, -1)
    return jnp.tanh(p["a"][tokens] @ p["mix"][:, :10] @ p["mix"]) @ p["b"].T


def tied(mix):
    array = normal(0, 12, 10)
    return {"a": array, "b": array, "mix": normal(1, *mix)}


def test_one_array_stays_one_and_is_counted_once(tmp_path):
    parameters = tied((10, 12))
    compressed = compress(siamese, parameters, [X], Parameters(0.6))
    first, second = (compressed.parameters[name].approximation for name in "ab")
    assert first.left is second.left and first.right is second.right
    assert numbers(compressed.parameters) == compressed.parameter_count <= 0.6 * numbers(parameters)
    assert compressed.dense_parameter_count == numbers(parameters)
    assert "tied, one array with ['a']" in compressed.layers["['b']"].remark
    check_printed(compressed, parameters)

    seen = np.concatenate([X, np.tanh(np.tanh(X @ parameters["a"]) @ parameters["mix"])])
    alone = compress(
        lambda w, x: x @ w, parameters["a"], [seen],
        RankRule(lambda _: compressed.layers["['a']"].rank or 0),
    )  # fmt: skip
    for name in ("['a']", "['b']"):
        assert compressed.layers[name].relative_error == pytest.approx(
            alone.layers[""].relative_error, rel=1e-4
        )
    compressed.save(tmp_path / "network")
    loaded = load_compressed(tmp_path / "network", siamese, parameters)
    assert loaded.layers == compressed.layers
    np.testing.assert_array_equal(
        loaded.function(loaded.parameters, X), compressed.function(compressed.parameters, X)
    )


@pytest.mark.parametrize(
    ("function", "mix", "selected", "reason"),
    [
        (autoencoder, (10, 10), "abmix", "it also multiplies along other axes"),
        (language, (10, 10), "abmix", "its rows are looked up"),
        (siamese, (10, 12), "amix", "['b'] is not selected"),
        (siamese, (10, 12), "bmix", "['a'] is not selected"),
    ],
)
def test_an_array_that_is_needed_whole_is_left_and_said_to_be_tied(function, mix, selected, reason):
    def select(path):
        return path[2:-2] in selected

    parameters = tied(mix)
    compressed = compress(function, parameters, [X], LayerError(0.5), select=select)
    assert list(compressed.layers) == ["['mix']"]
    for name in {"a", "b"} & set(selected):
        other = "b" if name == "a" else "a"
        why = compressed.not_followed[f"['{name}']"]
        assert f"it is tied, one array with ['{other}']" in why and reason in why
    assert numbers(compressed.parameters) <= numbers(parameters)


# --- complex activations -------------------------------------------------------------------------

Z = (X + 3j * normal(8, 40, 12)).astype(np.complex64)
PARTS = np.concatenate([Z.real, Z.imag])

ROUTES = {
    "a product": (lambda p, z: jnp.abs(z @ p["w"]), (12, 10), PARTS),
    "a cast": (lambda p, z: z @ p["w"].astype(jnp.complex64), (12, 10), PARTS),
    "from the left": (lambda p, z: p["w"].T @ z.T, (12, 10), PARTS),
    "a spectrum": (
        lambda p, x: jnp.fft.rfft(x.real, axis=0) @ p["w"],
        (12, 10),
        np.concatenate([part(np.fft.rfft(Z.real, axis=0)) for part in (np.real, np.imag)]),
    ),
    "real and complex": (
        lambda p, z: (z @ p["w"], z.real @ p["w"]), (12, 10), np.concatenate([PARTS, Z.real])
    ),
    "a convolution": (
        lambda p, z: lax.conv_general_dilated(
            z[None], p["w"].astype(jnp.complex64), (1,), "VALID",
            dimension_numbers=("NWC", "WIO", "NWC"),
        ),
        (2, 12, 10),
        np.concatenate([np.hstack([part[:-1], part[1:]]) for part in (Z.real, Z.imag)]),
    ),
    "a loop": (
        lambda p, z: lax.scan(lambda _, x: (None, x @ p["w"]), None, z)[1], (12, 10), PARTS
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROUTES)
def test_real_and_imaginary_parts_are_rows(name):
    function, shape, rows = ROUTES[name]
    parameters = {"w": normal(0, *shape)}
    assert survey(function, parameters, Z)["['w']"].rows == len(rows)
    seen: Any = observe(function, parameters, [Z])["['w']"]
    assert int(seen.count) == len(rows)
    exact = rows.astype(float)
    scale = np.sum(exact**2)
    np.testing.assert_allclose(seen.gram(), exact.T @ exact, rtol=0, atol=1e-6 * scale)


def test_complex_outputs_are_compressed_whole():
    function, shape, rows = ROUTES["a cast"]
    parameters = {"w": normal(0, *shape)}
    for sequential in (False, True):
        compressed = compress(
            function, parameters, [Z], RankRule(lambda _: 3), sequential=sequential
        )
        layer = compressed.layers["['w']"]
        dense, other = function(parameters, Z), compressed.function(compressed.parameters, Z)
        error = np.linalg.norm(dense - other) / np.linalg.norm(dense)
        values = np.linalg.svd(rows @ parameters["w"], compute_uv=False)
        best = np.linalg.norm(values[3:]) / np.linalg.norm(values)
        assert layer.relative_error == pytest.approx(error, rel=1e-5)
        assert layer.relative_error == pytest.approx(best, rel=1e-5) and layer.certified
