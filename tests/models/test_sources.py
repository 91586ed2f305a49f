"""Readers look before they unpack, and refuse in their own words."""

import gzip
import io
import json
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lowrank_theory.models import bert, character_lstm, mnist, resnet, texts
from lowrank_theory.models._sources import Source

MEGABYTES = 16  # that a bomb holds
LIMIT = 5_000_000  # bytes that a reader may take


def npy(shape: tuple[int, ...], size: int, descr: str = "<f4") -> bytes:
    header = io.BytesIO()
    described = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue() + bytes(size)


def packed(content: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("a.npy", content)
    return buffer.getvalue()


def picture(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


BOMB = bytes(MEGABYTES * 1_000_000)
LONG_HEADER = b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little")
NPZ = {
    "more than its shape": packed(npy((2, 2), len(BOMB))),
    "another shape": packed(npy((10**7,), len(BOMB))),
    "a long header": packed(LONG_HEADER + b" " * len(BOMB)),
    "packed in another way": packed(npy((2, 2), 16), zipfile.ZIP_LZMA),
    "a shape that is not there": packed(npy((10**15,), 16)),
    "a negative shape": packed(npy((-2, -2), 16)),
    "objects": packed(npy((2, 2), 32, "|O")),
    "a deep header": packed(b"\x93NUMPY\x01\x00\xd0\x07" + b"(" * 2_000),
    "too large for float32": packed(npy((2, 2), 0, "<f8") + np.full(4, 1e300).tobytes()),
}


def taken(read: Callable[[], object], match: str) -> None:
    """The reader refuses its file, and takes little memory to do so."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"(?s)is damaged or another file: .*{match}"):
            read()
        assert tracemalloc.get_traced_memory()[1] < LIMIT
    finally:
        tracemalloc.stop()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LOWRANK_DATA", str(tmp_path))
    for name in ("mnist", "cifar10", "char_lstm", "ag_news", "stsb", "bert"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize("name", NPZ)
def test_arrays(name, tmp_path):
    (tmp_path / "x.npz").write_bytes(NPZ[name])
    source = Source(tmp_path, "layout")
    taken(lambda: source.arrays("x.npz", {"a": (2, 2)}), "Get it again")


def test_a_network_whose_sizes_are_those_found(tmp_path):
    """Neither what unpacks to much more than the file, nor a shape that there cannot be."""
    source = Source(tmp_path, "layout")
    zeros = packed(npy((len(BOMB) // 4,), len(BOMB)))
    for content, match in (
        (zeros, "it unpacks to"),
        (NPZ["a shape that is not there"], "which its header does not say"),
        (NPZ["a negative shape"], r"a has shape \(-2, -2\)"),
        (NPZ["a long header"], "Get it again"),
        (NPZ["packed in another way"], "another way than NumPy's"),
    ):
        (tmp_path / "x.npz").write_bytes(content)

        def read() -> object:
            shapes = source.shapes("x.npz")
            shapes.size("a")
            return source.arrays("x.npz", shapes.found)

        taken(read, match)


def test_arrays_that_are_right(tmp_path):
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    for saved in (np.savez, np.savez_compressed):
        saved(tmp_path / "x.npz", a=array, more=np.zeros(100))
        found = Source(tmp_path, "layout").arrays("x.npz", {"a": (2, 3)})
        np.testing.assert_array_equal(found["a"], array)
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array(file, array, version=(2, 0))
    np.testing.assert_array_equal(Source(tmp_path, "layout").array("x.npy", (2, 3))[1], array)


def test_idx(folder):
    idx = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, *range(6)])
    file = folder / "mnist" / "x.gz"
    for content in (idx + BOMB, idx + b"0", idx[:-1]):
        file.write_bytes(gzip.compress(content, 1))
        taken(lambda: mnist._read_idx("x.gz", 2, 3), r"it is not an IDX file of \(2, 3\)")
    file.write_bytes(gzip.compress(idx) + gzip.compress(BOMB, 1))  # a second member
    taken(lambda: mnist._read_idx("x.gz", 2, 3), r"it is not an IDX file of \(2, 3\)")
    file.write_bytes(gzip.compress(idx)[:-5] + bytes(5))
    taken(lambda: mnist._read_idx("x.gz", 2, 3), "Get it again")
    file.write_bytes(gzip.compress(idx))
    np.testing.assert_array_equal(mnist._read_idx("x.gz", 2, 3), np.arange(6).reshape(2, 3))


@pytest.mark.parametrize("size", [(8_000, 10_000), (1_024, 1_000), (10_000, 10_000)])
def test_pictures(size, folder):
    (folder / "cifar10" / "cifar10_batch_0.png").write_bytes(picture(*size))
    np.save(folder / "cifar10" / "labels.npy", np.zeros(51_000, np.uint8))
    taken(lambda: resnet._strip(0), "Get it again")


def sparse(path: Path, size: int = 10**12) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def test_files_without_end(folder):
    for read, path, match in (
        (lambda: resnet._records("test_batch.bin", None), "cifar10/test_batch.bin", "bytes"),
        (character_lstm.shakespeare_text, "char_lstm/shakespeare.txt", "bytes"),
        (character_lstm.character_lstm_network, "char_lstm/vocab.json", "bytes"),
        (texts.stsb_data, "stsb/sts-train.csv", "bytes"),
        (texts.ag_news_data, "ag_news/train.csv", "bytes"),
    ):
        sparse(folder / path)
        taken(read, match)


@pytest.mark.parametrize("content", ["[" * 200_000, '{"a":' * 200_000, "9" * 10_000])
def test_json(content, folder):
    (folder / "char_lstm" / "vocab.json").write_text(content)
    taken(character_lstm.character_lstm_network, "Get it again")
    (folder / "bert" / "config.json").write_text(content)
    taken(lambda: bert.bert_network("bert"), "Get it again")


@pytest.mark.parametrize("row", ["", "a" * 200_000, '"a', "1,2,3,4", "\0"])
def test_rows(row, folder):
    (folder / "ag_news" / "train.csv").write_text(f'"1","a","b"\n{row}\n')
    taken(texts.ag_news_data, "Get it again")


def test_an_infinite_number_in_a_configuration(folder):
    config = {
        "model_type": "bert", "hidden_size": 4, "num_attention_heads": 2, "hidden_act": "gelu",
    }  # fmt: skip
    text = json.dumps(config)[:-1] + ', "layer_norm_eps": 1e999}'
    (folder / "bert" / "config.json").write_text(text)
    taken(lambda: bert.bert_network("bert"), "layer_norm_eps is inf")
