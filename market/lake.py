"""The lake: hive-partitioned Parquet under one root, a partition being one file, replaced whole.

    ROOT/lake.json                                  source of everything below, schema version
    ROOT/frames/date=YYYY-MM-DD/*.frames.zst        captures, the immutable truth
    ROOT/archive/date=YYYY-MM-DD/S.frames.zst       what the venue's archives of a date read as
    ROOT/TABLE/symbol=S/date=YYYY-MM-DD/part.parquet

ROOT is a folder, or ``s3://bucket/prefix``; `market.store` knows the difference (docs/storage.md).
Every file carries its schema version, the hash of the code that made it, its source and a
fingerprint of its inputs; `Lake.open`, `read` and `load` refuse a file whose code differs from what is
running, so a read never mixes two meanings (`connect`, for SQL, shows what is there). A write goes to a
temporary file and replaces the old partition whole: whoever looks sees the old one or the new one.

The module is the only one, besides the capture module, that touches market files.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import IO, Any, Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from market.errors import DataError, no_space
from market.locks import exclusive
from market.migration import steps_of
from market.place import home_of, unusable
from market.provenance import code_hash, declaration, is_current
from market.provenance import tables as declared
from market.store import Bucket, Entry, ReplacedError, Store, store_of
from market.units import days_between

#: Rows of a row group: two hours of seconds. A query of the last hour unpacks that and not the day,
#: and one of a month finds few enough groups to skip.
ROW_GROUP: Final = 7_200


class LakeError(DataError):
    """The lake cannot serve a request; the message names the file and what to do."""


class Lake:
    """One root. ``source`` (recorded or synthetic) is fixed when the root is first used."""

    def __init__(self, root: str | Path, source: str | None = None) -> None:
        self.uri = str(root)
        if wrong := unusable(self.uri):
            raise LakeError(f"root {wrong}")
        self.store: Store = store_of(self.uri)
        self.base = self.store.base
        #: This machine's folder of the lake: the root itself unless that is in an object store.
        self.home = home_of(self.uri).absolute()
        self.source = self._claim(source)
        self._scratch: Path | None = None

    def _claim(self, source: str | None) -> str:
        path = f"{self.base}/lake.json"
        asked = source or "recorded"
        # Of two that begin a lake at once one writes this, and the other reads it.
        content = json.dumps({"source": asked, "layout": 1}).encode() + b"\n"
        if self.store.stat(path) is None:
            with _naming(path):
                if self.store.create(path, content):
                    return asked
        held = str(json.loads(self.content(path))["source"])
        if source not in (None, held):
            raise LakeError(
                f"{self.uri}: holds {held} data, and {source} was asked for; use another root"
            )
        return held

    # -- paths ---------------------------------------------------------------------------------

    @property
    def is_local(self) -> bool:
        """Whether the tables lie on this machine."""
        return not isinstance(self.store, Bucket)

    def path(self, table: str, symbol: str, day: str) -> str:
        return f"{self.base}/{table}/symbol={symbol}/date={day}/part.parquet"

    def frames_dir(self, day: str) -> str:
        return f"{self.base}/frames/date={day}"

    def captures(self, day: str) -> list[str]:
        """Capture files whose first frame was received on that UTC date, in name order."""
        folder = self.frames_dir(day)
        names = sorted(self.store.children(folder))
        return [f"{folder}/{name}" for name in names if name.endswith(".frames.zst")]

    def capture_dates(self) -> list[str]:
        """Dates that have a folder of captures, sorted."""
        names = self.store.children(f"{self.base}/frames")
        return sorted(n.removeprefix("date=") for n in names if n.startswith("date="))

    def archive(self, symbol: str, day: str) -> str:
        """Where the capture made of the venue's archives of a symbol's date lies, if there is one."""
        return f"{self.base}/archive/date={day}/{symbol}.frames.zst"

    def archives(self) -> list[tuple[str, str]]:
        """(symbol, date) of every such capture, sorted."""
        found = []
        for info in self.store.below(f"{self.base}/archive"):
            *_, folder, name = info.path.split("/")
            if folder.startswith("date=") and name.endswith(".frames.zst"):
                found.append((name.removesuffix(".frames.zst"), folder.removeprefix("date=")))
        return sorted(found)

    def partitions(self, table: str) -> list[tuple[str, str]]:
        """(symbol, date) of every partition that stands, sorted."""
        return sorted(self.entries(table))

    def entries(self, table: str) -> dict[tuple[str, str], Entry]:
        """The object of every partition that stands, by (symbol, date)."""
        found = {}
        for info in self.store.below(f"{self.base}/{table}"):
            if info.path.endswith("/part.parquet"):
                *_, symbol, day, _ = info.path.split("/")
                found[symbol.removeprefix("symbol="), day.removeprefix("date=")] = info
        return found

    # -- reading -------------------------------------------------------------------------------

    def exists(self, table: str, symbol: str, day: str) -> bool:
        return self.store.stat(self.path(table, symbol, day)) is not None

    def content(self, path: str) -> bytes:
        """The bytes of a small file."""
        with self.store.open(path) as file:
            return bytes(file.read())

    def metadata(self, table: str, symbol: str, day: str) -> dict[str, str]:
        """What a partition says of itself: schema, code, source, inputs and what its maker added."""
        with self.store.open(self.path(table, symbol, day)) as file:
            return _notes(pq.ParquetFile(file))

    def rows(self, table: str, symbol: str, day: str) -> int:
        """Rows of a partition, from its footer."""
        return int(self.open(table, symbol, day).metadata.num_rows)

    def is_current(self, table: str, symbol: str, day: str, inputs: str = "") -> bool:
        """Whether the partition exists, was made by the present code, and from these inputs."""
        if not self.exists(table, symbol, day):
            return False
        notes = self.metadata(table, symbol, day)
        return is_current(table, notes.get("code")) and inputs in ("", notes.get("inputs"))

    def fingerprint(self, table: str, symbol: str, day: str) -> str:
        """A short name for a partition's content: what it was made from, and by what code."""
        found = self.metadata(table, symbol, day)
        text = f"{table} {symbol} {day} {found.get('code')} {found.get('inputs')}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def open(self, table: str, symbol: str, day: str) -> pq.ParquetFile:
        """A partition for streaming; LakeError when it is absent or made by other code."""
        try:
            return self._current(table, symbol, day, self.as_written(table, symbol, day))
        except FileNotFoundError:
            path = self.path(table, symbol, day)
            raise LakeError(
                f"{path}: no such partition; materialise {table} for {symbol} {day}"
            ) from None

    def read(
        self, table: str, symbol: str, day: str, columns: Sequence[str] | None = None
    ) -> pa.Table:
        wanted = list(columns) if columns else None
        try:
            return self.open(table, symbol, day).read(columns=wanted)
        except ReplacedError:  # while it was read: of a copy, which one request makes
            with self.file(table, symbol, day) as copy, pq.ParquetFile(copy) as file:
                return self._current(table, symbol, day, file).read(columns=wanted)

    def _current(self, table: str, symbol: str, day: str, file: pq.ParquetFile) -> pq.ParquetFile:
        """The file; LakeError when other code made it."""
        notes = _notes(file)
        code = notes.get("code")
        if not is_current(table, code):
            way = ", or run `l2 migrate`" if steps_of(table, notes) else ""
            raise LakeError(
                f"{self.path(table, symbol, day)}: made by other code ({code}, now {code_hash(table)}); "
                f"materialise {table} for {symbol} {day} again{way}"
            )
        return file

    def between(self, table: str, symbol: str, day: str, after_ns: int, until_ns: int) -> pa.Table:
        """Rows with ``after_ns`` < t_ns <= ``until_ns``; only row groups that may have some are read."""
        file = self.open(table, symbol, day)
        column = file.schema_arrow.get_field_index("t_ns")
        times = [
            file.metadata.row_group(n).column(column).statistics for n in range(file.num_row_groups)
        ]
        groups = [
            n for n, t in enumerate(times) if t is None or (t.max > after_ns and t.min <= until_ns)
        ]
        rows = file.read_row_groups(groups)
        t_ns = rows["t_ns"].to_numpy()
        return rows.filter((t_ns > after_ns) & (t_ns <= until_ns))

    def as_written(self, table: str, symbol: str, day: str) -> pq.ParquetFile:
        """A partition whatever code made it: for records, which cannot be made again, and to migrate."""
        # Buffered ahead, a reader keeps what it has read until it is closed: a day in memory.
        return pq.ParquetFile(self.store.open(self.path(table, symbol, day)), pre_buffer=False)

    def load(
        self,
        table: str,
        symbols: Iterable[str],
        first: str,
        last: str,
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """Rows of several symbols and dates (both ends included) with a ``symbol`` column.

        Partitions that do not exist are skipped; LakeError when none does.
        """
        parts = []
        for symbol in symbols:
            for day in days_between(first, last):
                if self.exists(table, symbol, day):
                    part = self.read(table, symbol, day, columns)
                    if "symbol" not in part.column_names:
                        name = pa.array([symbol]).dictionary_encode()
                        part = part.append_column(
                            "symbol",
                            pa.DictionaryArray.from_arrays(
                                pa.array([0] * part.num_rows, pa.int32()), name.dictionary
                            ),
                        )
                    parts.append(part)
        if not parts:
            raise LakeError(f"{self.uri}: {table} has nothing for {first} to {last}")
        return pa.concat_tables(parts, promote_options="default").unify_dictionaries()

    def tables(self) -> list[str]:
        """Names of the tables that have a folder here, sorted."""
        return sorted(self.store.children(self.base) & set(declared()))

    def freeze(
        self, folder: Path, tables: Iterable[str], first: str = "", last: str = "9999-12-31"
    ) -> str:
        """A snapshot: hard links under ``folder`` of partitions as they stand; the base to read from.

        DuckDB opens a file again for each of its threads: were it replaced in between, the footer of
        one version would be read with the data of another. A file system without hard links gives
        the lake itself. Of an object store it is a copy.
        """
        try:
            for table in tables:
                for symbol, day in self.partitions(table):
                    if first <= day <= last:
                        with suppress(FileNotFoundError):  # taken away since it was listed
                            self.fetch(table, symbol, day, folder)
        except OSError:
            if not self.is_local:
                raise
            return str(self.base)
        return str(folder)

    def fetch(self, table: str, symbol: str, day: str, folder: Path) -> Path:
        """A partition at its place below a local folder, as it stands now; its path there."""
        path = self.path(table, symbol, day)
        file = folder / path.removeprefix(f"{self.base}/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        self.store.fetch(path, file)
        return file

    @contextmanager
    def file(self, table: str, symbol: str, day: str) -> Iterator[str]:
        """A partition as a file of this machine, for what reads files alone, until the block ends."""
        if self.is_local:
            yield self.path(table, symbol, day)
            return
        with tempfile.TemporaryDirectory(dir=self.scratch()) as folder:
            yield str(self.fetch(table, symbol, day, Path(folder)))

    def connect(self, tables: Iterable[str] | None = None) -> duckdb.DuckDBPyConnection:
        """An in-memory DuckDB with one view per table that has a partition (default: all).

        The views are of the partitions as they stand now, until the connection is gone: whoever wants
        newer ones connects again. A view carries ``symbol`` and ``date`` from the path, both as text.
        Of an object store they are of the objects in place: DuckDB reads ranges, and a query whose object
        is replaced meanwhile fails.
        """
        tables = self.tables() if tables is None else list(tables)
        connection = duckdb.connect()
        connection.execute("set parquet_metadata_cache = true")
        self.store.attach(connection)
        base = self.base
        if self.is_local:
            with suppress(
                OSError
            ):  # a lake that may only be read: one does not write beside readers
                folder = self.scratch() / f"read-{uuid.uuid4().hex}"
                # Holds this lake too, whose end would remove all of its scratch.
                weakref.finalize(connection, _forget, self, folder)
                base = self.freeze(folder, tables)
        for table in tables:
            if self.partitions(table):
                files = f"{glob.escape(base)}/{table}/symbol=*/date=*/part.parquet"
                files = files.replace("'", "''")
                connection.execute(
                    f"create view {table} as select * from read_parquet('{files}', "
                    "hive_partitioning=true, hive_types={'symbol': varchar, 'date': varchar})"
                )
        return connection

    # -- writing -------------------------------------------------------------------------------

    def scratch(self) -> Path:
        """A folder of this process in `home`: removed at its end, or by a later run."""
        if self._scratch is None or not self._scratch.exists():
            folder = self.home / "staging" / uuid.uuid4().hex
            folder.mkdir(parents=True)
            held = (folder / "held").open("w")
            fcntl.flock(held, fcntl.LOCK_EX)  # until the process ends, however it ends
            weakref.finalize(self, _drop, folder, held)
            self._scratch = folder
        return self._scratch

    def _sweep(self, first: str, last: str) -> None:
        """Remove what killed runs left: their scratch folders, unfinished files of these dates."""
        for held in self.home.glob("staging/*/held"):
            with held.open("w") as file, suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(held.parent, ignore_errors=True)
        for day in days_between(first, last):
            for left in self.home.glob(f"*/symbol=*/date={day}/.*.tmp"):
                left.unlink(missing_ok=True)

    @contextmanager
    def working_on(self, first: str, last: str) -> Iterator[None]:
        """Lock these dates, both included, against other runs: who comes second waits, and says so.

        What killed runs left is removed. Of an object store the lock is between the runs of one machine;
        two machines make the same partitions twice, each whole. StoreError where it cannot be written.
        """
        self.store.require_writable()
        begin, end = (date.fromisoformat(day).toordinal() for day in (first, last))
        what = f"{first} to {last} in {self.uri}" if first != last else f"{first} in {self.uri}"
        with exclusive(self.home / "dates.lock", what, begin, end - begin + 1):
            self._sweep(first, last)
            yield

    def put(self, path: str, data: bytes) -> None:
        """Write a small file whole."""
        with self._replacing(path) as temporary:
            Path(temporary).write_bytes(data)

    def put_file(self, path: str, file: str | Path) -> None:
        """Copy a local file in, whole or not at all."""
        if isinstance(self.store, Bucket):
            self.store.put(path, file)
            return
        with self._replacing(path) as temporary:
            shutil.copyfile(file, temporary)

    @contextmanager
    def writer(
        self,
        table: str,
        symbol: str,
        day: str,
        schema: pa.Schema,
        inputs: str = "",
        extra: Mapping[str, Any] | None = None,
        dictionary: bool | Sequence[str] = True,
        encodings: Mapping[str, str] | None = None,
        version: str | None = None,
    ) -> Iterator[pq.ParquetWriter]:
        """A Parquet writer for one partition, which replaces the old one when the block ends well.

        ``inputs`` names what the content was made from (see `is_current`); ``extra`` goes into the
        file's metadata. A ``dictionary``, of all columns or of those named, costs time and space in
        columns that hardly repeat a value; ``encodings`` are Parquet's names for columns without one, by
        default `_encodings` where no column has one. ReplacedError when the partition is of another ``version``
        (`version`) by then.
        Writing the same rows in the same chunks gives the same bytes.
        """
        notes = {
            "schema": str(declaration(table).version),
            "code": code_hash(table),
            "source": self.source,
            "inputs": inputs,
            **{key: str(value) for key, value in (extra or {}).items()},
        }
        schema = schema.with_metadata({f"l2.{k}".encode(): v.encode() for k, v in notes.items()})
        split = encodings is None and dictionary is False
        if split:
            encodings = _encodings(schema)
        path = self.path(table, symbol, day)
        with (
            self._replacing(path, version) as temporary,
            pq.ParquetWriter(
                temporary,
                schema,
                # Of split floats zstd makes 4 % less than lz4, and a query takes a fifth longer.
                compression="lz4" if split else "zstd",
                use_dictionary=dictionary if isinstance(dictionary, bool) else list(dictionary),
                column_encoding=None if encodings is None else dict(encodings),
            ) as out,
        ):
            yield out

    def write(
        self,
        table: str,
        symbol: str,
        day: str,
        rows: pa.Table,
        inputs: str = "",
        extra: Mapping[str, Any] | None = None,
        dictionary: bool = True,
        version: str | None = None,
    ) -> str:
        """Write one partition from a table; returns its path. ReplacedError as `writer`."""
        schema = rows.schema.remove_metadata()
        with self.writer(
            table, symbol, day, schema, inputs, extra, dictionary, version=version
        ) as out:
            out.write_table(
                rows.replace_schema_metadata(out.schema.metadata), row_group_size=ROW_GROUP
            )
        return self.path(table, symbol, day)

    def version(self, table: str, symbol: str, day: str) -> str | None:
        """What to give `write` so that it replaces this version and no later one; None on a disk."""
        if self.is_local:
            return None
        found = self.store.stat(self.path(table, symbol, day))
        return "" if found is None else found.version

    def remove(self, table: str, symbol: str, day: str) -> None:
        """Take a partition away, if it stands."""
        self.store.delete(self.path(table, symbol, day))

    @contextmanager
    def _replacing(self, path: str, version: str | None = None) -> Iterator[str]:
        folder = Path(path).parent if self.is_local else self.scratch()
        temporary = folder / f".{uuid.uuid4().hex}.tmp"
        with _naming(path):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                yield str(temporary)
                self.store.replace(path, str(temporary), version)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Name the file that a full disk has no space for."""
    try:
        yield
    except OSError as error:
        if not no_space(error):
            raise  # else without its cause, which names no file and is all that a run's log would show
        text = "not written, and what was there stands: no space left on its disk"
        raise LakeError(f"{path}: {text}; free some and run it again") from None


def _notes(file: pq.ParquetFile) -> dict[str, str]:
    # The file's own: what became known while it was written is not in the schema's.
    raw = file.metadata.metadata or {}
    return {k.decode()[3:]: v.decode() for k, v in raw.items() if k.startswith(b"l2.")}


def _forget(_: Lake, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _drop(folder: Path, held: IO[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    held.close()


def _encodings(schema: pa.Schema) -> dict[str, str]:
    """Parquet encodings by type: sorted integers as differences, floats byte by byte of significance."""
    return {
        field.name: "BYTE_STREAM_SPLIT"
        if pa.types.is_floating(field.type)
        else "DELTA_BINARY_PACKED"
        for field in schema
        if pa.types.is_floating(field.type) or pa.types.is_integer(field.type)
    }
