"""Where the objects of a lake lie: a folder of this machine, or a bucket of an object store.

A lake asks both the same few things: what is there, open it, replace it whole. On a disk an object is
written beside its place and renamed. An object store has no rename: the object is written on this machine
(`Lake.scratch`) and goes up in one PUT, which the store answers when all of it stands, or refuses; until
then the old object is what everybody reads. A PUT may name the version that it replaces (If-Match, or
If-None-Match for none): of two writers that read the same version, one is refused (`ReplacedError`).

Readers of an object store ask for ranges of one version (If-Match): an object that is replaced while it is
read raises `ReplacedError`, and is never read half and half.

Region and endpoint are AWS's own variables (AWS_REGION, AWS_ENDPOINT_URL_S3), credentials come from its
chain (AWS_ACCESS_KEY_ID, a shared file, a role), and never from the settings.
"""

from __future__ import annotations

import io
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import duckdb
import pyarrow as pa

from market.errors import DataError

#: Bytes that a reader of an object store asks for at least: a request costs as much time as a few of them.
_AHEAD: Final = 4 << 20
_TRIES: Final = 4
#: One PUT takes no more (bytes).
_MOST: Final = 5 << 30


class StoreError(DataError):
    """The object store cannot serve a request; the message names the object and what to do."""


class ReplacedError(StoreError):
    """An object is no longer of the version that was named."""


class Entry(NamedTuple):
    """An object: its path, bytes, when it was written, and on an object store its version."""

    path: str
    size: int
    written: datetime
    version: str = ""


class Folder:
    """A store in a folder of this machine; paths are absolute."""

    def __init__(self, root: str | Path) -> None:
        self.base = str(Path(root).absolute()).rstrip("/")

    def children(self, folder: str) -> set[str]:
        """Names of what lies directly in a folder; none where it is absent."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return set(os.listdir(folder))
        return set()

    def below(self, folder: str) -> Iterator[Entry]:
        """Every object below a folder."""
        for top, _, names in os.walk(folder, followlinks=True):
            for name in names:
                if found := self.stat(f"{top}/{name}"):
                    yield found

    def stat(self, path: str) -> Entry | None:
        """An object, None where there is none."""
        with suppress(FileNotFoundError, NotADirectoryError):
            found = os.stat(path)
            if stat.S_ISREG(found.st_mode):
                return Entry(path, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))
        return None

    def open(self, path: str) -> io.BufferedReader | pa.NativeFile:
        """An object for reading, as it stands now whatever replaces it; FileNotFoundError."""
        return pa.OSFile(path, "rb")

    def replace(self, path: str, file: str, version: str | None = None) -> None:
        """Put a file of the same folder in an object's place."""
        os.replace(file, path)

    def create(self, path: str, data: bytes) -> bool:
        """Write a small object unless there is one; whether it was written."""
        temporary = Path(f"{path}.{uuid.uuid4().hex}.tmp")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError:  # without hard links the last of two writers at once stays
                temporary.rename(path)
            return True
        finally:
            temporary.unlink(missing_ok=True)

    def fetch(self, path: str, file: Path) -> None:
        """The object under another name of this machine: a hard link, OSError where there are none."""
        file.hardlink_to(path)

    def delete(self, path: str) -> None:
        """Remove an object, if it stands."""
        Path(path).unlink(missing_ok=True)

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Nothing: DuckDB reads files as it is."""

    def require_writable(self) -> None:
        """Nothing: a folder says so itself at the first write."""


class Bucket:
    """A store in ``s3://bucket/prefix``; paths are such URIs. Has the methods of `Folder`.

    Every method raises StoreError, in one line, for a bucket that is missing, refuses or cannot be reached.
    """

    def __init__(self, root: str) -> None:
        self.base = root.rstrip("/")
        self.bucket = urlsplit(root).netloc
        self._s3, self._credentials = _client(
            _endpoint(),
            os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
            os.environ.get("AWS_ACCESS_KEY_ID"),
        )

    def children(self, folder: str) -> set[str]:
        found = set()
        for page in self._pages(f"{folder}/", Delimiter="/"):
            found |= {each["Prefix"] for each in page.get("CommonPrefixes", ())}
            found |= {each["Key"] for each in page.get("Contents", ())}
        return {key.rstrip("/").rpartition("/")[2] for key in found}

    def below(self, folder: str) -> Iterator[Entry]:
        for page in self._pages(f"{folder}/"):
            for each in page.get("Contents", ()):
                path = f"s3://{self.bucket}/{each['Key']}"
                yield Entry(path, each["Size"], each["LastModified"], each["ETag"])

    def stat(self, path: str) -> Entry | None:
        with suppress(FileNotFoundError), self._asking(path):
            found = self._s3.head_object(**self._place(path))
            return Entry(path, found["ContentLength"], found["LastModified"], found["ETag"])
        return None

    def open(self, path: str) -> io.BufferedReader | pa.NativeFile:
        if (entry := self.stat(path)) is None:
            raise FileNotFoundError(f"{path}: no such object")
        return io.BufferedReader(_Ranges(self, entry), _AHEAD)

    def read(self, entry: Entry, start: int, size: int) -> bytes:
        """Bytes of one version of an object; ReplacedError when it is no longer that one."""
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        asked = {"Range": f"bytes={start}-{start + size - 1}", "IfMatch": entry.version}
        with self._asking(entry.path):
            for left in range(_TRIES, 0, -1):
                try:
                    answer = self._s3.get_object(**self._place(entry.path), **asked)
                    return bytes(answer["Body"].read())
                except (HTTPClientError, IncompleteReadError):  # cut off within its body
                    if left == 1:
                        raise
        raise AssertionError

    def replace(self, path: str, file: str, version: str | None = None) -> None:
        self.put(path, file, version)
        Path(file).unlink()

    def put(self, path: str, file: str | Path, version: str | None = None) -> None:
        """One PUT, which names what it replaces: a ``version``, "" for no object, None for any."""
        condition = {} if version is None else {"IfMatch": version} if version else _ABSENT
        if os.path.getsize(file) > _MOST:
            raise StoreError(f"{path}: over 5 GB, more than an object store takes in one request")
        with open(file, "rb") as body, self._asking(path):
            self._s3.put_object(**self._place(path), Body=body, **condition)

    def create(self, path: str, data: bytes) -> bool:
        with suppress(ReplacedError), self._asking(path):
            self._s3.put_object(**self._place(path), Body=data, **_ABSENT)
            return True
        return False

    def fetch(self, path: str, file: Path) -> None:
        """The object copied to this machine by one request, so that it is of one version."""
        with self._asking(path), file.open("wb") as out:
            for piece in self._s3.get_object(**self._place(path))["Body"].iter_chunks(1 << 20):
                out.write(piece)

    def delete(self, path: str) -> None:
        with self._asking(path):
            self._s3.delete_object(**self._place(path))

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Let a connection read this bucket: the extension of the installed wheel, nothing downloaded.

        The credentials are those of now: a role's end with it, and whoever goes on connects again.
        """
        import duckdb_extension_httpfs

        home = Path(duckdb_extension_httpfs.__file__).parent / f"extensions/v{duckdb.__version__}"
        for name in ("autoinstall_known_extensions", "autoload_known_extensions"):
            connection.execute(f"set {name} = false")
        connection.load_extension(str(home / "httpfs.duckdb_extension"))
        found, url = self._credentials.get_frozen_credentials(), urlsplit(_endpoint())
        parts = {"key_id": found.access_key, "secret": found.secret_key}
        parts |= {"region": self._s3.meta.region_name, "scope": f"s3://{self.bucket}"}
        parts |= {"session_token": found.token} if found.token else {}
        if url.netloc:
            parts |= {"endpoint": url.netloc, "url_style": "path"}
            parts |= {"use_ssl": str(url.scheme == "https").lower()}
        quoted = ", ".join(f"{key} '{str(each).replace(chr(39), chr(39) * 2)}'" for key, each in parts.items())  # fmt: skip
        connection.execute(f"create secret (type s3, {quoted})")

    def require_writable(self) -> None:
        """StoreError unless an object can be written and removed: asked before work begins, not after."""
        path = f"{self.base}/staging/{uuid.uuid4().hex}"
        self.create(path, b"")
        self.delete(path)

    def _pages(self, folder: str, **options: str) -> Iterator[dict[str, Any]]:
        place = self._place(folder)
        with self._asking(folder):
            yield from self._s3.get_paginator("list_objects_v2").paginate(
                Bucket=place["Bucket"], Prefix=place["Key"], **options
            )

    def _place(self, path: str) -> dict[str, str]:
        bucket, _, key = path.removeprefix("s3://").partition("/")
        return {"Bucket": bucket, "Key": key}

    @contextmanager
    def _asking(self, path: str) -> Iterator[None]:
        """Errors of the request within, in one line; FileNotFoundError for an object that is not there."""
        from botocore import exceptions as of
        from urllib3.exceptions import HTTPError

        try:
            yield
        except (of.NoCredentialsError, of.PartialCredentialsError) as error:
            raise StoreError(
                f"{self.base}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        except of.ClientError as error:
            code = error.response["Error"]["Code"]
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if code in ("NoSuchKey", "404"):
                raise FileNotFoundError(f"{path}: no such object") from error
            if status in (409, 412):
                raise ReplacedError(f"{path}: was replaced meanwhile; run it again") from error
            why = {
                403: f"bucket {self.bucket} refuses {error.operation_name} ({code}); check the "
                "credentials' rights",
                404: f"there is no bucket {self.bucket}; make it, or name another root",
                301: f"bucket {self.bucket} is of another region; set AWS_REGION",
            }.get(status, f"the store failed {error.operation_name} ({code}); run it again")
            raise StoreError(f"{path}: {why}") from error
        except (of.BotoCoreError, HTTPError) as error:
            where = self._s3.meta.endpoint_url
            raise StoreError(
                f"{path}: {where} does not answer ({type(error).__name__}); check the network and "
                "AWS_ENDPOINT_URL_S3"
            ) from error


Store = Folder | Bucket
_ABSENT: Final = {"IfNoneMatch": "*"}


class _Ranges(io.RawIOBase):
    """One version of an object as a file, read by ranges."""

    def __init__(self, store: Bucket, entry: Entry) -> None:
        self._store, self._entry, self._at = store, entry, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._entry.size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self._entry.size - self._at)
        if size <= 0:
            return 0
        buffer[:size] = self._store.read(self._entry, self._at, size)
        self._at += size
        return size


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


@cache
def _client(endpoint: str, region: str, _: str | None) -> tuple[Any, Any]:
    """This process's client, which its threads share, and the credentials of its session."""
    import boto3
    from botocore.config import Config

    session = boto3.Session(region_name=region)
    config = Config(
        retries={"total_max_attempts": _TRIES, "mode": "standard"},
        connect_timeout=5,
        # Not every store that speaks S3 knows the newer checksums.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if endpoint else "auto"},
    )
    client = session.client("s3", config=config, endpoint_url=endpoint or None)
    return client, session.get_credentials()


def store_of(root: str | Path) -> Store:
    """The store of a lake's root, or of one of its paths."""
    return Bucket(str(root)) if "://" in str(root) else Folder(root)


def holds_lake(root: str | Path) -> bool:
    """Whether somebody has begun a lake there; asking begins none."""
    store = store_of(root)
    return store.stat(f"{store.base}/lake.json") is not None


def open_object(path: str | Path) -> io.BufferedReader:
    """A capture for reading, on this machine or in a bucket; OSError, StoreError."""
    if "://" in str(path):
        found: io.BufferedReader = store_of(path).open(str(path))
        return found
    return open(path, "rb")


def size_of(path: str | Path) -> int:
    """Bytes of a capture."""
    found = store_of(path).stat(str(path))
    if found is None:
        raise FileNotFoundError(f"{path}: no such file")
    return found.size
