"""What a client reads of an Arrow answer: whole, or not at all."""

import pyarrow as pa

from steval.errors import ServiceError
from steval.service.http.encoding import END_KEY


def whole_table(content: bytes) -> pa.Table:
    """The rows of an Arrow stream whose end marker is there and agrees."""
    cut_off = ServiceError("the service's answer was cut off before its end; ask again", status=502, code="cut_off")
    batches, num_rows, marker = [], 0, None
    try:
        reader = pa.ipc.open_stream(content)
        while True:
            try:
                batch, metadata = reader.read_next_batch_with_custom_metadata()
            except StopIteration:
                break
            end = dict(metadata or {}).get(END_KEY)
            marker = None if end is None else int(end)
            num_rows += batch.num_rows
            batches.append(batch)
        schema = reader.schema
    except (pa.ArrowInvalid, OSError) as error:
        raise cut_off from error
    if marker != num_rows:
        raise cut_off
    return pa.Table.from_batches(batches, schema)
