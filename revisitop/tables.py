"""CSV files with a header, read row by row; what is wrong with one is told with file and line."""
import csv
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path


# Characters of a field; a list of all 762,000 index images of Google Landmarks v2 has 13 million
_LONGEST_FIELD = 1 << 26


class TableError(ValueError):
    """A CSV file that cannot be used; one line says where and what is wrong with it."""


def read_table(
    path: str | Path, required: Sequence[str], optional: Sequence[str] = (), others: bool = False
) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and {column: text} of each row, read as they are asked for.

    path: comma-separated UTF-8 text whose first line names the columns, in any order. All of
    `required` must be there; columns besides these and `optional` are refused, since a mistyped
    name would pass unseen, unless `others` says that there may be more. Empty lines are skipped.
    Raises TableError.
    """
    reader = None
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = _header(_next_row(reader) or [], path, required, optional, others)
            while (row := _next_row(reader)) is not None:
                if len(row) not in (0, len(header)):
                    raise TableError(f"{path}, line {reader.line_num}: it has {len(row)} fields, "
                                     f"and the header {len(header)}")
                if row:
                    yield reader.line_num, dict(zip(header, row))
    except OSError as error:
        raise TableError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TableError(f"{path} is not text in UTF-8") from None
    except csv.Error as error:
        raise TableError(f"{path}, line {reader.line_num}: {error}") from None


def sha256(path: str | Path) -> str:
    """Digest of a file. Raises TableError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TableError(f"cannot read {path}: {error.strerror}") from None


def _next_row(reader: Iterator[list[str]]) -> list[str] | None:
    """The next row, None at the end. csv has one limit for all that a program reads, lower than lists
    are long: it is another only as long as a row is read."""
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(before)


def _header(
    header: list[str], path: str | Path, required: Sequence[str], optional: Sequence[str],
    others: bool,
) -> list[str]:
    unknown = set(header) - {*required, *optional}
    if (set(required) - set(header) or len(set(header)) < len(header) or unknown and not others):
        found = ",".join(header)[:80] or "nothing"
        allowed = f" and perhaps {','.join(optional)}" if optional else ""
        raise TableError(f"{path}, line 1: it must name the columns {','.join(required)}{allowed}; "
                         f"it has {found}")
    return header
