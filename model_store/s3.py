"""A bucket as a store, through boto3, for AWS and for whatever else speaks S3 with conditional writes."""

import hashlib
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
)

from model_store.store import (
    CHUNK,
    AlreadyExists,
    Body,
    ChunkStream,
    Corrupt,
    InvalidKey,
    NotFound,
    ObjectEntry,
    ObjectInfo,
    RangeNotSatisfiable,
    StoreUnavailable,
    opened,
    validate_headers,
    validate_key,
    validate_prefix,
    validate_range,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PART = 8 << 20  # bytes; anything larger goes up in parts of this size, one in memory at a time
SHA256, WRITE = "sha256", "write-id"  # metadata of ours
_LONGEST_URL = 7 * 24 * 3600  # seconds, set by the signature's definition
_BY_STATUS = {404: NotFound, 412: AlreadyExists, 416: RangeNotSatisfiable}


def _code(error: ClientError) -> tuple[int, str]:
    return error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]


@contextmanager
def _translated(key: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        status, code = _code(error)
        if status >= 500 or status == 429 or code in {"NoSuchBucket", "NoSuchUpload", "RequestTimeout"}:
            raise StoreUnavailable(f"{key}: {code}") from error
        if status in _BY_STATUS:
            raise _BY_STATUS[status](key) from error
        raise
    except FlexibleChecksumError as error:
        raise Corrupt(f"{key}: {error}") from error
    except (HTTPClientError, ConnectionError, IncompleteReadError) as error:
        raise StoreUnavailable(f"{key}: {error}") from error


class S3Store:
    """An `ObjectStore` in `bucket`, under the folder `prefix`; times in seconds.

    URLs are signed for `public_endpoint_url`, since a signature covers the host and clients may not reach the
    endpoint that the service uses. Keys left out are looked for where botocore looks. Nothing is contacted here.
    """

    def __init__(
        self,
        bucket: str,
        *,
        prefix: str = "",
        endpoint_url: str | None = None,
        public_endpoint_url: str | None = None,
        region: str | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        connect_timeout: float = 3.0,
        read_timeout: float = 20.0,
        max_attempts: int = 3,
    ) -> None:
        self.bucket = bucket
        self._prefix = f"{validate_key(prefix)}/" if prefix else ""
        session = boto3.session.Session()

        def client(endpoint: str | None) -> "S3Client":
            return session.client(
                "s3",
                endpoint_url=endpoint,
                region_name=region or ("us-east-1" if endpoint else None),
                aws_access_key_id=access_key,
                aws_secret_access_key=secret_key,
                config=Config(
                    signature_version="s3v4",
                    s3={"addressing_style": "path" if endpoint else "auto"},
                    connect_timeout=connect_timeout,
                    read_timeout=read_timeout,
                    retries={"mode": "standard", "total_max_attempts": max_attempts},
                    max_pool_connections=32,
                ),
            )

        self._client = client(endpoint_url)
        self._signer = client(public_endpoint_url) if public_endpoint_url else self._client

    def ensure_bucket(self) -> None:
        """Make the bucket unless it is there. Raises `StoreUnavailable`."""
        with _translated(self.bucket):
            try:
                self._client.head_bucket(Bucket=self.bucket)
                return
            except ClientError as error:
                if _code(error)[0] != 404:
                    raise
            region = self._client.meta.region_name
            elsewhere: Any = {"LocationConstraint": region}
            options = {} if region in {"us-east-1", "aws-global"} else {"CreateBucketConfiguration": elsewhere}
            try:
                self._client.create_bucket(Bucket=self.bucket, **options)
            except ClientError as error:
                if _code(error)[1] != "BucketAlreadyOwnedByYou":  # another process was faster
                    raise

    def put(
        self,
        key: str,
        body: Body,
        *,
        content_type: str,
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
    ) -> ObjectInfo:
        """Store `body`; see `ObjectStore.put`.

        With `if_absent` it goes up in one request, so at most 5 GiB: not every server that decides a race between
        requests also decides one between the completions of uploads in parts.
        """
        name = self._name(key)
        given = validate_headers(content_type, metadata)
        with opened(body) as source, _measured(source) as (file, size, sha256):
            write = secrets.token_hex(16)
            where: dict[str, Any] = {"Bucket": self.bucket, "Key": name}
            headers: dict[str, Any] = {"ContentType": content_type, "Metadata": {**given, SHA256: sha256, WRITE: write}}
            for attempts_left in (2, 1, 0):
                file.seek(0)
                try:
                    with _translated(key):
                        if if_absent:
                            self._client.put_object(**where, **headers, Body=file, IfNoneMatch="*")
                        elif size <= PART:
                            self._client.put_object(**where, **headers, Body=file)
                        else:
                            self._put_parts(file, where, headers)
                    break
                except AlreadyExists:
                    # A retry inside botocore meets its own first attempt when only the answer was lost.
                    if not self._wrote(where, write):
                        raise
                    break
                except ClientError as error:
                    # 409: another write or delete of this key is under way; S3 asks to try again.
                    if _code(error)[0] != 409:
                        raise
                    if not attempts_left:
                        raise AlreadyExists(key) from error
        return ObjectInfo(key, size, datetime.now(UTC), sha256, content_type, given)

    def get(self, key: str, *, start: int | None = None, end: int | None = None) -> bytes:
        """Return the bytes; see `ObjectStore.get`."""
        with self.stream(key, start=start, end=end) as pieces:
            return b"".join(pieces)

    def stream(self, key: str, *, start: int | None = None, end: int | None = None, chunk: int = CHUNK) -> ChunkStream:
        """Open the object; see `ObjectStore.stream`."""
        wanted = validate_range(start, end)
        options: dict[str, Any] = {}
        if wanted:
            first, stop = wanted
            options["Range"] = f"bytes={first}-{'' if stop is None else stop - 1}"
        with _translated(key):
            answer = self._client.get_object(Bucket=self.bucket, Key=self._name(key), **options)
        length = answer["ContentLength"]
        size = int(answer["ContentRange"].rpartition("/")[2]) if wanted else length
        return ChunkStream(_info(key, size, answer), answer["Body"], length, chunk, _translated)

    def head(self, key: str) -> ObjectInfo:
        """Describe the object; see `ObjectStore.head`."""
        with _translated(key):
            answer = self._client.head_object(Bucket=self.bucket, Key=self._name(key))
        return _info(key, answer["ContentLength"], answer)

    def delete(self, key: str) -> None:
        """Remove the object; see `ObjectStore.delete`."""
        with suppress(NotFound), _translated(key):
            self._client.delete_object(Bucket=self.bucket, Key=self._name(key))

    def list(self, prefix: str, *, after: str | None = None, limit: int = 1000) -> list[ObjectEntry]:
        """Return the next entries; see `ObjectStore.list`.

        The order is the server's: S3's is by whole key, SeaweedFS's by folder (`a/b` before `a-b`).
        """
        found: list[ObjectEntry] = []
        where: dict[str, Any] = {"Bucket": self.bucket, "Prefix": self._prefix + validate_prefix(prefix)}
        last = self._prefix + validate_prefix(after or "")
        with _translated(prefix):
            while len(found) < limit:
                page = self._client.list_objects_v2(**where, StartAfter=last, MaxKeys=min(limit - len(found), 1000))
                for item in page.get("Contents", []):
                    last = item["Key"]
                    key = last.removeprefix(self._prefix)
                    with suppress(InvalidKey):  # folder markers and the like, made by other hands
                        found.append(ObjectEntry(validate_key(key), item["Size"], item["LastModified"]))
                if not page["IsTruncated"]:
                    break
        return found

    def presign(self, key: str, *, expires: int, filename: str | None = None) -> str | None:
        """Return a URL; see `ObjectStore.presign`. Raises ValueError unless it expires in 1 s to 7 days."""
        if not 1 <= expires <= _LONGEST_URL:
            raise ValueError(f"expires must lie between 1 and {_LONGEST_URL} seconds, not {expires}")
        wanted = {"Bucket": self.bucket, "Key": self._name(key)}
        if filename is not None:
            plain = re.sub(r"[^\w.-]", "_", filename, flags=re.ASCII)
            exact = quote(filename, safe="")
            wanted["ResponseContentDisposition"] = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{exact}"
        return self._signer.generate_presigned_url("get_object", Params=wanted, ExpiresIn=expires)

    def check(self) -> None:
        """Return if the bucket answers; see `ObjectStore.check`."""
        try:
            self._client.head_bucket(Bucket=self.bucket)
        except (BotoCoreError, ClientError) as error:
            raise StoreUnavailable(f"bucket {self.bucket}: {error}") from error

    def vacuum(self, older_than: timedelta) -> int:
        """Abort uploads whose parts nobody completed; see `ObjectStore.vacuum`."""
        oldest, removed = datetime.now(UTC) - older_than, 0
        with _translated(self._prefix):
            pages = self._client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self.bucket, Prefix=self._prefix):
                for upload in page.get("Uploads", []):
                    if upload["Initiated"] < oldest:
                        self._client.abort_multipart_upload(
                            Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )
                        removed += 1
        return removed

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._signer.close()

    def _name(self, key: str) -> str:
        return self._prefix + validate_key(key)

    def _put_parts(self, file: BinaryIO, where: Any, headers: Any) -> None:
        upload = {**where, "UploadId": self._client.create_multipart_upload(**where, **headers)["UploadId"]}
        try:
            parts: list[Any] = []
            while body := file.read(PART):
                number = len(parts) + 1
                answer = self._client.upload_part(**upload, PartNumber=number, Body=body)
                sums = {name: value for name, value in answer.items() if name.startswith("Checksum")}
                parts.append({"PartNumber": number, "ETag": answer["ETag"], **sums})
            self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        except BaseException:
            with suppress(BotoCoreError, ClientError):  # `vacuum` sees to what cannot be aborted now
                self._client.abort_multipart_upload(**upload)
            raise

    def _wrote(self, where: Any, write: str) -> bool:
        with _translated(where["Key"]):
            return self._client.head_object(**where)["Metadata"].get(WRITE) == write


@contextmanager
def _measured(source: BinaryIO) -> Iterator[tuple[BinaryIO, int, str]]:
    """The source as a file to be sent from its beginning, its size in bytes and its sha256, which goes first."""
    if source.seekable() and source.tell() == 0:
        digest = hashlib.sha256()
        while piece := source.read(CHUNK):
            digest.update(piece)
        yield source, source.tell(), digest.hexdigest()
    else:
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(source, copy, CHUNK)
            copy.seek(0)
            with _measured(copy) as measured:
                yield measured


def _info(key: str, size: int, answer: Any) -> ObjectInfo:
    metadata = {name: value for name, value in answer["Metadata"].items() if name not in {SHA256, WRITE}}
    return ObjectInfo(
        key=key,
        size=size,
        modified=answer["LastModified"],
        sha256=answer["Metadata"].get(SHA256),
        content_type=answer["ContentType"],
        metadata=metadata,
    )
