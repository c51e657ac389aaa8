"""The process that reads one parquet: `python -m workers.parquet LIMITS`, the file on stdin, packed samples on stdout.

Alone with a stranger's file: pyarrow's C++ ends the process over some damaged metadata, and a page of a few kilobytes
may unpack to gigabytes. Here the first costs one request, and the second meets a limit on memory. A refusal is
`[error, detail]` as JSON and the exit status `REFUSED`. The layout is Hugging Face's: `image{bytes,path}`, `label`.
"""

import io
import json
import resource
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from workers.limits import CorruptInput, InputError, InputTooLarge, Limits, UnusableSamples, human_bytes
from workers.messages import pack_samples

if TYPE_CHECKING:  # imported by the worker for the constant alone
    import pyarrow as pa
    import pyarrow.parquet as pq

REFUSED = 3
_IMAGE_COLUMNS = ("image", "img")  # CIFAR-10 and its kin say `img`
_OWN_MEMORY = 2 * 2**30  # address space that Python and pyarrow take for themselves


def main(limits: Limits) -> int:
    """Read stdin, write stdout; returns the exit status."""
    memory = _OWN_MEMORY + 3 * limits.unpacked_bytes  # the file, a column, the packed samples
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    try:
        try:
            rows = list(_rows(sys.stdin.buffer.read(), limits))
            sys.stdout.buffer.write(pack_samples([image for image, _ in rows], [label for _, label in rows]))
        except MemoryError as error:
            raise InputTooLarge("The parquet unpacks to more than fits into memory; send fewer images.") from error
    except InputError as error:
        sys.stdout.write(json.dumps([type(error).__name__, str(error)]))
        return REFUSED
    return 0


def _rows(data: bytes, limits: Limits) -> Iterator[tuple[bytes, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(io.BytesIO(data), memory_map=False, pre_buffer=False)
        image_column = _check_table(table, limits)
        names = _class_names(table.schema_arrow)
        # One row at a time: a dictionary page lets a small file repeat one huge value in every row of a batch.
        rows = table.iter_batches(batch_size=1, columns=[image_column, "label"], use_threads=False)
        left = limits.unpacked_bytes
        for index, row in enumerate(rows):
            image = _encoded(index, row.column(image_column)[0].as_py(), limits)
            left -= len(image)
            if left < 0:
                raise InputTooLarge(f"The parquet unpacks to more than {human_bytes(limits.unpacked_bytes)}.")
            yield image, _label(index, row.column("label")[0].as_py(), names)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptInput(f"The parquet cannot be read: {error}.") from error


def _check_table(table: "pq.ParquetFile", limits: Limits) -> str:
    """Check what the footer declares; returns the name of the column of images."""
    import pyarrow.types as kinds

    metadata, schema = table.metadata, table.schema_arrow
    image = next((name for name in _IMAGE_COLUMNS if name in schema.names), None)
    if image is None or "label" not in schema.names:
        raise UnusableSamples(
            f"The parquet needs the columns `image` and `label`; it has {', '.join(schema.names[:20]) or 'none'}."
        )
    if metadata.num_rows > limits.samples:
        raise InputTooLarge(f"The parquet has {metadata.num_rows:,} rows; the limit is {limits.samples:,} samples.")
    kind, label = schema.field(image).type, schema.field("label").type
    fields = {field.name: field.type for field in kind} if kinds.is_struct(kind) else {"bytes": kind}
    if "bytes" not in fields or not (kinds.is_binary(fields["bytes"]) or kinds.is_large_binary(fields["bytes"])):
        raise UnusableSamples(f"The parquet's `{image}` is {kind}; it must be struct<bytes: binary, path: string>.")
    if not (kinds.is_integer(label) or kinds.is_string(label) or kinds.is_large_string(label)):
        raise UnusableSamples(f"The parquet's `label` is {label}; it must be whole numbers or strings.")
    return image


def _class_names(schema: "pa.Schema") -> list[str] | None:
    """Return the names that `datasets` keeps in the schema's metadata, None where there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features["label"]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _label(index: int, label: int | str | None, names: list[str] | None) -> str:
    if label is None:
        raise UnusableSamples(f"row {index} has no label.")
    if isinstance(label, str) or names is None:
        return str(label)
    if not 0 <= label < len(names):
        raise UnusableSamples(f"row {index} has the label {label}, outside the {len(names)} class names.")
    return names[label]


def _encoded(index: int, image: dict[str, Any] | bytes | None, limits: Limits) -> bytes:
    data = image.get("bytes") if isinstance(image, dict) else image
    if not data:
        raise UnusableSamples(f"row {index} has no image bytes; a path alone is not enough.")
    if len(data) > limits.item_bytes:
        raise InputTooLarge(f"row {index} has {human_bytes(len(data))}; the limit is {human_bytes(limits.item_bytes)}.")
    return data


if __name__ == "__main__":
    sys.exit(main(Limits(**json.loads(sys.argv[1]))))
