"""CSV files with a header; most of their mistakes are in test_gldv2.py and test_lists.py."""
import csv

import pytest

from revisitop.tables import TableError, read_table


def test_long_fields(tmp_path):
    """csv's own limit is 131,072 characters, fewer than 8,000 ids have; it is that of all readers."""
    ids = " ".join(f"{i:016x}" for i in range(8000))
    file, before = tmp_path / "t.csv", csv.field_size_limit()
    file.write_text(f"id,images\na,{ids}\nb,{ids}\n")
    for line, row in read_table(file, ("id", "images")):
        assert row["images"] == ids and csv.field_size_limit() == before
    assert line == 3 and csv.field_size_limit() == before
    next(read_table(file, ("id", "images")))        # a reader that is not read to the end
    assert csv.field_size_limit() == before


def test_the_limit_is_restored_after_a_mistake(tmp_path):
    file, before = tmp_path / "t.csv", csv.field_size_limit()
    file.write_text('id,images\na,"b" c\n')
    with pytest.raises(TableError, match="line 2: .*expected"):
        list(read_table(file, ("id", "images")))
    assert csv.field_size_limit() == before
    file.write_text("")
    with pytest.raises(TableError, match="it has nothing"):
        list(read_table(file, ("id", "images")))
