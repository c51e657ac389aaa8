"""Datasets that lie in somebody's bucket: read by the worker, from buckets that the operator named, up to a size."""

from contextlib import closing

from botocore.exceptions import ClientError

from model_store.store import InvalidKey, NotFound
from workers.limits import InputTooLarge, UnusableSamples, human_bytes
from workers.settings import Settings

SCHEME = "s3://"


def split(uri: str) -> tuple[str, str]:
    """Return bucket and key of `s3://bucket/key`."""
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    return bucket, key


def fetch(uri: str, settings: Settings) -> bytes:
    """Return the file. Raises `InputError` for what the client can mend, `StoreUnavailable`."""
    bucket, key = split(uri)
    if bucket not in settings.dataset_buckets:  # the gateway looked too, with settings of its own
        raise UnusableSamples(f"Datasets cannot be read from the bucket {bucket!r}.")
    with closing(settings.open_bucket(bucket)) as store:
        try:
            with store.stream(key) as pieces:
                if pieces.info.size > settings.max_dataset_bytes:
                    raise InputTooLarge(
                        f"{uri} has {human_bytes(pieces.info.size)}; the limit is "
                        f"{human_bytes(settings.max_dataset_bytes)}."
                    )
                return b"".join(pieces)
        except (NotFound, InvalidKey):
            raise UnusableSamples(f"There is nothing at {uri}.") from None
        except ClientError as error:
            raise UnusableSamples(f"This service may not read {uri}.") from error
