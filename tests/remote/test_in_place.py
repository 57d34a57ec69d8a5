"""Zarr behind an S3 server, read where it is: few bytes for few rows, the same rows, and what comes damaged or late."""

from __future__ import annotations

import json
import pickle
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from typer.testing import CliRunner

import bigconv
from bigconv.block import Block
from bigconv.cli.app import app
from bigconv.dataset import read
from bigconv.digest import Digester
from bigconv.errors import IncompleteStore, NotAStore, StoreError
from bigconv.manifest import Manifest
from bigconv.remote import urls
from bigconv.remote.ranges import Ranges
from bigconv.schema import Schema
from bigconv.stores.zarr import Zarr
from bigconv.testing import cases
from bigconv.view.opening import open_store
from bigconv.view.report import verify
from bigconv.view.table import StoreView
from tests.remote._given import BUCKET, occupied, put, system
from tests.remote._proxy import Proxy

CODECS = ["none", "lz4", "zstd"]
SOME = np.array([5, 2999, 17, 17, 1400, 0])


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "FIRST_PAUSE", 0.001)


def arrays(folder: Path, rows: int = 3000, width: int = 2000) -> Path:
    """`x.npy`: int32 `[rows, width]`, 24 MB, that compress by half; the first of each row is its number."""
    values = np.random.default_rng(0).integers(0, 1 << 12, (rows, width), np.int32)
    values[:, 0] = np.arange(rows)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "x.npy", values)
    return folder / "x.npy"


@pytest.fixture(scope="module", params=CODECS)
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of several shards a field."""
    folder = tmp_path_factory.mktemp(request.param)
    bigconv.convert(arrays(folder), folder / "out.zarr", compress=request.param, workers=0)
    return folder / "out.zarr"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    bigconv.convert(arrays(folder, 500), folder / "out.zarr", workers=0)
    return folder / "out.zarr"


def of_shards(method: str, path: str) -> bool:
    return method == "GET" and "/x/c/" in path


def test_few_bytes_for_few_rows(s3: Proxy, stored: Path, cache: Path) -> None:
    url, local = put(stored, "out.zarr"), bigconv.open(stored)
    whole = sum(size for size, _ in local.roots[0].manifest.files.values())
    s3.reset()
    with bigconv.open(url) as view:
        assert len(view) == 3000
        assert s3.nbytes("/x/c/") == 0
        assert np.array_equal(view.take(SOME)["x"], local.take(SOME)["x"])
        assert 0 < s3.nbytes("/x/c/") < whole / 30
        assert s3.nbytes() < whole / 20
        s3.reset()
        view.take(SOME)
        assert s3.requests == []  # what has just been read is kept a while
        assert str(view.roots[0].told) == url
        assert view.roots[0].bytes() == local.roots[0].bytes()
    assert occupied(cache, "c/0") == 0


def test_the_same_rows_in_order_and_by_zarr_itself(s3: Proxy, stored: Path) -> None:
    view, local = bigconv.open(put(stored, "out.zarr")), bigconv.open(stored)
    assert np.array_equal(np.concatenate([block["x"] for block in view.blocks()]), local[:]["x"])
    reader = open_store(view.roots[0].told).reader()
    assert np.array_equal(reader.take(SOME, ("x",))["x"], local.take(SOME)["x"])
    reader.close()


@pytest.mark.parametrize("compress", CODECS)
@pytest.mark.parametrize("schema", [pytest.param(schema, id=name) for name, schema in cases.schemas()])
def test_every_kind_of_field(tmp_path: Path, schema: Schema, compress: str) -> None:
    """Small chunks, and shards of a few, so that rows lie across both."""
    block, path = cases.block(schema, 57), tmp_path / "odd.zarr"
    made(Zarr(chunk_bytes=300, shard_bytes=2000, compress=compress), path, block)
    system = fsspec.filesystem("memory")
    system.store.clear()
    for file in filter(Path.is_file, path.rglob("*")):
        system.pipe_file(f"/bucket/odd.zarr/{file.relative_to(path).as_posix()}", file.read_bytes())
    view = bigconv.open("memory://bucket/odd.zarr")
    assert view.ranged
    for rows in ([3], [56, 0, 31, 31], range(57), [], np.random.default_rng(1).permutation(57)):
        assert cases.same_block(view.take(np.array(rows, np.int64)), block.take(np.array(rows, np.int64)))
    assert cases.same_block(Block.concat(list(view.blocks(rows=10))), block)
    for f in schema:
        if f.ragged:
            assert np.array_equal(view.lengths(f.name, np.arange(57)), block.columns[f.name].lengths)


def made(store: Zarr, path: Path, block: Block) -> None:
    """A finished store of a block."""
    writer = store.create(path, block.schema)
    writer.append(block)
    writer.close()
    digester = Digester(block.schema)
    digester.update(block)
    recipe = {"to": "zarr", "options": asdict(store)}
    manifest = Manifest(block.schema, len(block), "zarr", digester.finish(), {}, recipe, "0")
    writer.seal(replace(manifest, files=store.files(path)))


def test_neighbours_come_together(s3: Proxy, plain: Path) -> None:
    url = urls.parsed(put(plain, "out.zarr"))
    assert isinstance(url, urls.Url)
    raw = (plain / "x/c/0/0").read_bytes()
    s3.reset()
    wanted = [("x/c/0/0", a, b) for a, b in [(100, 200), (0, 50), (500_000, 500_100), (200, 300), (7, 7)]]
    assert [bytes(data) for data in Ranges(url).fetch(wanted)] == [raw[a:b] for _, a, b in wanted]
    assert len(s3.gets("/x/c/")) == 2
    assert s3.nbytes("/x/c/") == 300 + 100


@pytest.mark.parametrize("kind", ["error", "slow", "truncated", "flipped", "stalled"])
def test_what_goes_wrong_once_is_fetched_again(s3: Proxy, plain: Path, kind: str) -> None:
    view = bigconv.open(put(plain, "out.zarr"))
    s3.reset()
    s3.inject(kind, of_shards, pause=0.001)
    assert view[123]["x"][0] == 123
    assert len(s3.gets("/x/c/")) == (1 if kind == "slow" else 2)


def test_what_stays_damaged_is_named(s3: Proxy, stored: Path) -> None:
    url = put(stored, "out.zarr")
    view = bigconv.open(url)
    s3.inject("flipped", of_shards, times=100)
    with pytest.raises(IncompleteStore, match=rf"{url}/x/c/0/0: .*damaged, as fetched 3 times"):
        view[7]
    s3.reset()
    assert view[7]["x"][0] == 7


def test_a_chunk_that_is_damaged_there_is_named_by_field_and_rows(s3: Proxy, plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "out.zarr")
    shard = tmp_path / "out.zarr/x/c/0/0"
    raw = bytearray(shard.read_bytes())
    raw[10 * (16000 + 4) + 9] ^= 1  # in chunk 10, of two rows
    shard.write_bytes(raw)
    view = bigconv.open(put(tmp_path / "out.zarr", "out.zarr"))
    with pytest.raises(IncompleteStore, match=r"x/c/0/0: field x, rows 20 to 21: damaged, as fetched 3 times"):
        view.take([3, 20])
    assert view[3]["x"][0] == 3
    assert view[22]["x"][0] == 22


def test_documents_that_come_damaged(s3: Proxy, plain: Path) -> None:
    url = put(plain, "out.zarr")
    for name in ("out.zarr/zarr.json", "x/zarr.json"):
        s3.inject("flipped", lambda method, path, name=name: method == "GET" and path.endswith(name))
    assert bigconv.open(url)[4]["x"][0] == 4
    s3.reset()
    shutil.rmtree(open_store(url).path)
    s3.inject("flipped", lambda method, path: method == "GET" and path.endswith("x/zarr.json"), times=100)
    with pytest.raises(StoreError, match=rf"{url}/x/zarr.json: damaged, as fetched 3 times"):
        bigconv.open(url)


def test_a_store_that_is_not_whole(s3: Proxy, stored: Path, tmp_path: Path) -> None:
    url = put(stored, "out.zarr")
    system().rm_file(f"{BUCKET}/out.zarr/x/c/0/0")
    with pytest.raises(IncompleteStore, match=rf"{url}: x/c/0/0 is missing"):
        bigconv.open(url)
    system().pipe_file(f"{BUCKET}/out.zarr/x/c/0/0", b"short")
    with pytest.raises(IncompleteStore, match=rf"{url}: x/c/0/0 has 5 bytes instead of"):
        bigconv.open(url)
    import zarr

    zarr.save(str(tmp_path / "other.zarr"), np.arange(9))
    with pytest.raises(NotAStore, match="not one of bigconv"):
        bigconv.open(put(tmp_path / "other.zarr", "other.zarr"))


def test_a_shard_that_goes_while_it_is_read(s3: Proxy, plain: Path) -> None:
    view = bigconv.open(put(plain, "out.zarr"))
    assert view[0]["x"][0] == 0
    system().rm(f"{BUCKET}/out.zarr", recursive=True)
    with pytest.raises(StoreError, match=r"out.zarr/x/c/0/0: no such bucket, folder or object"):
        view[400]


def test_parts_of_a_sharded_directory(s3: Proxy, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bigconv.convert(arrays(tmp_path), tmp_path / "train", shards=3, to="zarr", workers=0)
    monkeypatch.setenv("BIGCONV_CACHE_BYTES", str(10 << 20))  # less than all
    url = put(tmp_path / "train", "train")
    s3.reset()
    view = bigconv.open(url)
    assert view.take(SOME)["x"][:, 0].tolist() == SOME.tolist()
    assert s3.nbytes("/x/c/") < 24e6 / 30
    assert all(
        block["x"][0, 0] == start for block, start in zip(view.blocks(rows=500), range(0, 3000, 500), strict=True)
    )
    assert occupied(cache) == 0
    name = read(tmp_path / "train").parts[1].name
    s3.inject("flipped", lambda method, path: of_shards(method, path) and name in path, times=1000)
    with pytest.raises(IncompleteStore, match=rf"{url}/{name}/x/c/0/0: field x, rows \d+ to \d+: damaged"):
        bigconv.open(url)[1500]
    s3.reset()
    put(tmp_path / "train" / read(tmp_path / "train").parts[0].name, f"train/{name}")
    with pytest.raises(IncompleteStore, match=rf"{name}: holds other rows than the dataset lists"):
        bigconv.open(url)[1500]
    system().rm(f"{BUCKET}/train/{name}", recursive=True)
    with pytest.raises(IncompleteStore, match=rf"{name}: a part of the dataset is missing in the storage"):
        bigconv.open(url)[1500]


def test_what_is_read_in_full_comes_to_the_cache(s3: Proxy, tmp_path: Path, cache: Path) -> None:
    """Of a dataset that the cache can hold: then it is read without the network."""
    bigconv.convert(arrays(tmp_path, 600), tmp_path / "train", shards=2, to="zarr", workers=0)
    bigconv.convert(arrays(tmp_path, 600), tmp_path / "out.zarr", workers=0)
    for name, shards in (("train", 2), ("out.zarr", 1)):
        view = bigconv.open(put(tmp_path / name, name))
        for start in range(0, 600, 50):
            assert view[start : start + 50]["x"][:, 0].tolist() == list(range(start, start + 50))
        view.take([0, 599])
        end = time.monotonic() + 30
        while len(list(cache.glob("*/copy/*.zarr")) + list(cache.glob("*/copy/train/*.zarr"))) < shards:
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(0.1)
        s3.reset()
        assert view[:]["x"][:, 0].tolist() == list(range(600))
        assert s3.requests == []
        shutil.rmtree(cache)


def test_inspect_reads_what_it_shows(s3: Proxy, plain: Path) -> None:
    url = put(plain, "out.zarr")
    s3.reset()
    result = CliRunner().invoke(app, ["inspect", url, "--json", "--head", "2", "--row", "400"])
    assert result.exit_code == 0, result.output
    there, local = (
        json.loads(result.stdout),
        json.loads(CliRunner().invoke(app, ["inspect", str(plain), "--json"]).stdout),
    )
    assert 0 < s3.nbytes("/x/c/") < 200_000
    for key in ("rows", "bytes", "fields", "content_digest", "store"):
        assert there[key] == local[key]
    assert "x.npy" in result.stdout
    s3.reset()
    assert CliRunner().invoke(app, ["inspect", url, "--verify"]).exit_code == 0
    assert s3.nbytes("/x/c/") >= sum(p.stat().st_size for p in (plain / "x/c").rglob("*") if p.is_file())


def test_verify_in_python_reads_all(s3: Proxy, plain: Path) -> None:
    url = put(plain, "out.zarr")
    opened = open_store(url)
    assert opened.ranged
    s3.reset()
    assert verify(opened) == []
    assert s3.nbytes("/x/c/") > 4e6


def test_sharded_again_from_where_it_is(s3: Proxy, plain: Path, tmp_path: Path) -> None:
    made = bigconv.shard(put(plain, "out.zarr"), tmp_path / "parts", shards=3, to="hdf5", workers=2)
    assert made.content_digest == open_store(plain).manifest.content_digest


def test_a_view_travels(s3: Proxy, plain: Path, cache: Path) -> None:
    """Pickled, to where no cache is; and nothing in it is open."""
    view = bigconv.open(put(plain, "out.zarr"))
    assert view[9]["x"][0] == 9
    raw = pickle.dumps(view)
    assert len(raw) < 20_000
    assert pickle.loads(raw)[11]["x"][0] == 11


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_two_workers(s3: Proxy, plain: Path, method: str) -> None:
    torch = pytest.importorskip("torch")
    from bigconv.runtime import StoreDataset, StreamDataset

    url = put(plain, "out.zarr")
    dataset = StoreDataset(url)
    assert dataset[0]["x"][0] == 0  # the parent has talked to the storage before it forks
    s3.reset()
    for kind in ("error", "truncated", "flipped"):
        s3.inject(kind, of_shards)
    loader = torch.utils.data.DataLoader
    batches = loader(dataset, batch_size=32, shuffle=True, num_workers=2, multiprocessing_context=method)
    assert sorted(int(n) for batch in batches for n in batch["x"][:, 0]) == list(range(500))
    stream = StreamDataset(url, shuffle=True, batch_size=32)
    batches = loader(stream, batch_size=None, num_workers=2, multiprocessing_context=method)
    assert sorted(int(n) for batch in batches for n in batch["x"][:, 0]) == list(range(500))


def test_many_threads_one_request(s3: Proxy, plain: Path) -> None:
    """What several threads want at once is fetched once."""
    from concurrent.futures import ThreadPoolExecutor

    view = bigconv.open(put(plain, "out.zarr"))
    view[0]
    s3.reset()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: int(view[250]["x"][0]), range(16)))
    assert found == [250] * 16
    assert len(s3.gets("/x/c/")) == 1


def test_a_batch_of_many_chunks_is_asked_for_at_once(s3: Proxy, stored: Path) -> None:
    """Latency is waited for once, not row by row."""
    view = StoreView([put(stored, "out.zarr")])
    view[0]
    s3.inject("slow", of_shards, times=1000, pause=0.05)
    begun = time.monotonic()
    rows = np.arange(100, 2900, 80)
    assert view.take(rows)["x"][:, 0].tolist() == rows.tolist()
    assert time.monotonic() - begun < 0.5 * len(rows) * 0.05 + 1
    s3.reset()


def test_what_comes_next_is_fetched_meanwhile(s3: Proxy, plain: Path) -> None:
    view = bigconv.open(put(plain, "out.zarr"))
    view[0]
    rows = np.arange(100, 140)
    view.will_need(rows)
    end = time.monotonic() + 30
    while s3.nbytes("/x/c/") < 40 * 8000:
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.2)
    s3.reset()
    assert view.take(rows)["x"][:, 0].tolist() == rows.tolist()
    assert s3.requests == []
