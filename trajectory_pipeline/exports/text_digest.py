"""What a run says, and its digest: runs with equal digests say the same, word by word."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from trajectory_pipeline.exports.source import ExportRun, images_in, text_of


def message_texts(run: ExportRun) -> Iterator[str]:
    """Yield what the messages of a run say, each after what kind of text it is; ids are no part of it."""
    quiet = replace(run, losses=Counter())
    for _, messages in quiet.turns():
        for message in messages:
            yield f"{message['role']}: {text_of(message, quiet.losses)}"
            for call in message["tool_calls"] or ():
                yield f"call {call['name']}: {call['arguments']}"
            for one in message["tool_returns"] or ():
                yield f"return: {one['text']}"


def _image_texts(run: ExportRun) -> Iterator[str]:
    """Yield the images of a run, each after the number of its message; one without its content as Letta stored it."""
    messages = (message for _, messages in replace(run, losses=Counter()).turns() for message in messages)
    for number, message in enumerate(messages):
        for part in (*(message["content"] or ()), *(message["tool_returns"] or ())):
            for image in images_in(part.get("json")):
                yield f"image {number}: {part['json'] if image is None else image.data_uri}"


def text_digest(run: ExportRun) -> str:
    """Return the SHA-256 (hex) of what a run was told and of what its messages say: equal for equal texts.

    Images are part of it where they are passed on: without them, runs that differ in nothing else give equal records.
    """
    digest = hashlib.sha256()
    for text in (f"told: {run.system_prompt}", *message_texts(run), *(_image_texts(run) if run.with_images else ())):
        encoded = text.encode(errors="surrogatepass")
        digest.update(b"%d " % len(encoded) + encoded)
    return digest.hexdigest()
