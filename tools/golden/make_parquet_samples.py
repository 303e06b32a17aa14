#!/usr/bin/env python3
"""Writes tests/eval/data/sample_*.parquet with made-up rows, by pyarrow (an independent writer).

    python3 -m venv build/eval-venv && build/eval-venv/bin/pip install pyarrow
    build/eval-venv/bin/python tools/golden/make_parquet_samples.py

Every file holds the same rows in another way: compression, page version, dictionaries or none, several
row groups; `expected` below is what nibble eval convert gives for each.
"""
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

FOLDER = Path(__file__).resolve().parents[2] / "tests/eval/data"
ROWS = [
    {
        "question_id": i,
        "question": f"Made-up question {i}: né, \"quoted\", {'long ' * (i % 7)}",
        "options": None if i % 11 == 10 else [f"option {j}" if (i + j) % 9 else None for j in range(i % 5)],
        "answer": "ABCDE"[i % 5] if i % 6 else None,
        "score": i / 8,
        "flag": None if i % 7 == 3 else i % 2 == 0,
        "small": -i,
    }
    for i in range(40)
]
SCHEMA = pa.schema([
    ("question_id", pa.int64()), ("question", pa.string()), ("options", pa.list_(pa.string())),
    ("answer", pa.string()), ("score", pa.float64()), ("flag", pa.bool_()), ("small", pa.int32()),
])
WAYS = {
    "plain": dict(compression="none", use_dictionary=False),
    "snappy": dict(compression="snappy", row_group_size=15),
    "gzip_v2": dict(compression="gzip", data_page_version="2.0"),
    "zstd_v2_plain": dict(compression="zstd", data_page_version="2.0", use_dictionary=False),
    "zstd_pages": dict(compression="zstd", data_page_size=64, write_batch_size=4),
}


def main():
    table = pa.Table.from_pylist(ROWS, schema=SCHEMA)
    for name, options in WAYS.items():
        pq.write_table(table, FOLDER / f"sample_{name}.parquet", **options)
    brotli = pa.Table.from_pylist([{"x": 1}])
    pq.write_table(brotli, FOLDER / "unsupported_brotli.parquet", compression="brotli")
    nested = pa.Table.from_pylist([{"x": {"y": 1}}])
    pq.write_table(nested, FOLDER / "unsupported_struct.parquet")
    (FOLDER / "sample_parquet.json").write_text(json.dumps(ROWS, ensure_ascii=False, indent=0) + "\n")


if __name__ == "__main__":
    main()
