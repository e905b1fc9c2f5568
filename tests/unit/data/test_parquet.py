"""A small Parquet file that unpacks to gigabytes is refused by its name and the column's."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from multimodal.data.packing.layouts.find import items_of
from multimodal.data.packing.tables.reading import Reading
from multimodal.data.parquet import ParquetSizeError
from multimodal.inference.search.table import TableError, read_table

ROWS = 2_000_000


def repeated(value, rows=ROWS):
    """A column of one value, which Parquet keeps once."""
    return pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), pa.array([value]))


def compressed(path):
    """Pages of one letter, which compress to nothing."""
    schema = pa.schema([("caption", pa.string())])
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        for _ in range(4):
            writer.write_table(pa.table({"caption": ["x" * (20 << 20)]}))


def numbers(path):
    pq.write_table(pa.table({"caption": pa.array(np.zeros(20_000_000))}), path)


def one_long(path):
    table = pa.table({"caption": ["x" * (65 << 20)]})
    pq.write_table(table, path, compression="none")


def embeddings(path, **columns):
    count = len(next(iter(columns.values())))
    flat = pa.array(np.random.default_rng(0).standard_normal(2 * count).astype(np.float32))
    plain = {name: pa.array([""] * count) for name in ("key", "modality", "name", "preview_type")}
    previews = pa.array([b""] * count)
    vectors = pa.FixedSizeListArray.from_arrays(flat, 2)
    made = {**plain, "preview": previews, "embedding": vectors, **columns}
    pq.write_table(pa.table(made), path)


@pytest.mark.parametrize("write", [compressed, numbers, one_long])
def test_a_table_to_pack(write, tmp_path):
    path = tmp_path / "bomb.parquet"
    write(path)
    with pytest.raises(ParquetSizeError, match=rf"{path}: .*column 'caption'.*expected at most"):
        list(items_of(path, Reading(texts=["caption"])))


def test_a_long_text_that_many_rows_share_takes_no_memory_for_each(tmp_path):
    """Neither to read a batch nor to infer what the columns are: 16 GB for all rows."""
    path = tmp_path / "shared.parquet"
    pq.write_table(pa.table({"caption": repeated("y" * (16 << 20), 1000)}), path)
    tracemalloc.start()
    item = next(items_of(path, Reading(texts=["caption"])))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(item.metadata["caption"]) == 16 << 20
    assert 16 << 20 < most < 256 << 20


def test_a_table_of_embeddings(tmp_path):
    path = tmp_path / "bomb.parquet"
    embeddings(path, name=repeated("z" * 100_000, 100_000))
    with pytest.raises(ParquetSizeError, match=rf"{path}: .* 10,000,000,000 bytes .*'name'"):
        read_table(path)
    compressed(path)
    with pytest.raises(ParquetSizeError, match=rf"{path}: .*'caption'"):
        read_table(path)


def test_what_is_damaged_is_no_bomb(tmp_path):
    path = tmp_path / "damaged.parquet"
    path.write_bytes(b"PAR1" + b"?" * 60 + b"PAR1")
    with pytest.raises(TableError, match=str(path)):
        read_table(path)
    with pytest.raises(ValueError, match=rf"{path} cannot be read as Parquet"):
        list(items_of(path, Reading(texts=["caption"])))


def test_an_ordinary_table_reads_as_it_was_written(tmp_path):
    path = tmp_path / "ordinary.parquet"
    columns = {
        "caption": ["a", "b", None], "count": [1, 2, 3], "tags": [["x"], [], ["y", "z"]],
        "place": [{"city": "Bonn"}, {"city": "Ulm"}, None],
    }  # fmt: skip
    table = pa.table(columns)
    pq.write_table(table, path)
    kept = [item.metadata for item in items_of(path, Reading(optional=list(columns)))]
    expected = [{k: v for k, v in row.items() if v is not None} for row in table.to_pylist()]
    assert kept == expected
