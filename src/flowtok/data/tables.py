"""Parquet tables with pictures and captions in their columns, as the Hub's image data sets have them.

A picture is a struct of bytes and path, plain bytes, or a file's path. Needs pyarrow, from the extra flowtok[data].
"""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowtok.data.refusals import Refusal, Refused
from flowtok.data.samples import PICTURE_ENDINGS, FieldsConfig, Item, labels_of, sample_of
from flowtok.errors import DataError

if TYPE_CHECKING:
    import pyarrow

_USUAL_COLUMNS = (
    "image",
    "img",
    "picture",
    "image_bytes",
    "bytes",
    *PICTURE_ENDINGS,
    "file_name",
    "image_path",
    "path",
)
_ROWS_AT_ONCE = 32


class TableSource:
    """Rows of Parquet files; each row group is a part."""

    def __init__(
        self, files: Sequence[Path], groups: Sequence[tuple[int, int]], num_rows: int, column: str, fields: FieldsConfig
    ) -> None:
        self.files, self.groups, self.column, self.fields = tuple(files), tuple(groups), column, fields
        self.name = self.files[0].stem
        self.kind = f"{len(self.files)} Parquet file{'s' * (len(self.files) != 1)}, pictures in the column {column}"
        labels = labels_of([str(file) for file in self.files])
        self.parts = tuple(f"{labels[file]}[{group}]" for file, group in self.groups)
        self.num_samples = num_rows

    def read(self, part: int) -> Iterator[Item]:
        import pyarrow
        from pyarrow.parquet import ParquetFile

        number, group = self.groups[part]
        row = 0
        try:
            with ParquetFile(self.files[number]) as file:
                for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=[group], use_threads=False):
                    for record in batch.to_pylist():
                        yield self._item(f"{self.parts[part]}/{row}", self.files[number].parent, record)
                        row += 1
        except (OSError, pyarrow.ArrowException) as error:
            detail = f"{self.files[number]}: {' '.join(str(error).split())}"
            yield Refusal(
                key=self.parts[part], reason="table that cannot be read to its end", detail=detail, whole_part=True
            )

    def _item(self, key: str, folder: Path, record: dict[str, Any]) -> Item:
        picture = record.pop(self.column, None)
        if isinstance(picture, Mapping):
            picture = picture.get("bytes") or picture.get("path")
        if not picture:
            return Refusal(key=key, reason="without a picture")
        if isinstance(picture, str):
            if "://" in picture:
                return Refusal(key=key, reason="with an address instead of a picture (fetch them with img2dataset)")
            picture = folder / picture
        try:
            return sample_of(key, picture, record, self.fields)
        except Refused as refused:
            return Refusal(key=key, reason=refused.reason)


def open_tables(files: Sequence[Path], fields: FieldsConfig | None = None) -> TableSource:
    """Reads the heads of Parquet files.

    Raises:
        DataError: pyarrow is not installed, a file is damaged or missing, they hold no rows, no column holds pictures,
            or a column that was chosen is not there.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise DataError(
            "reading Parquet tables needs pyarrow, which is not installed; run: pip install 'flowtok[data]'"
        )
    import pyarrow
    from pyarrow.parquet import ParquetFile

    fields = fields or FieldsConfig()
    groups: list[tuple[int, int]] = []
    num_rows, column = 0, ""
    for number, path in enumerate(files):
        try:
            with ParquetFile(path) as file:
                column = column or _picture_column(path, file.schema_arrow, fields)
                if column not in file.schema_arrow.names:
                    raise DataError(f"{path} has no column {column}, unlike {files[0]}; give tables of one kind")
                groups += [(number, group) for group in range(file.metadata.num_row_groups)]
                num_rows += file.metadata.num_rows
        except FileNotFoundError as error:
            raise DataError(f"there is no table {path}") from error
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{path} is damaged or no Parquet file ({' '.join(str(error).split())})") from error
    if not num_rows:
        raise DataError(f"{files[0] if files else 'the table'} holds no rows")
    return TableSource(files, groups, num_rows, column, fields)


def _picture_column(path: Path, schema: "pyarrow.Schema", fields: FieldsConfig) -> str:
    """The column of the pictures; all chosen columns must be there."""
    columns = ", ".join(schema.names)
    for chosen in (fields.text, fields.recaption, fields.image):
        if chosen is not None and chosen not in schema.names:
            raise DataError(f"{path} has no column {chosen!r}; it has {columns}")
    if fields.image is not None:
        return fields.image
    lower = {name.lower(): name for name in schema.names}
    for name in _USUAL_COLUMNS:
        if name in lower:
            return lower[name]
    raise DataError(f"{path} has no column that is known to hold pictures among {columns}; name it with fields.image")
