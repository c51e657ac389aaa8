"""Signatures after Standard Webhooks, with secrets that are made and not kept.

A key's secret is derived from the service's `callback_secret`, the key's id and a version: nothing in the store signs.
"""

import base64
import hashlib
import hmac
from collections.abc import Iterable

PREFIX = "whsec_"


def secret_of(master: str, key_id: str, version: int) -> str:
    """Return the webhook secret of a key, as its user configures a receiver with it."""
    derived = hmac.digest(master.encode(), f"loomweight/webhook/{key_id}/{version}".encode(), hashlib.sha256)
    return PREFIX + base64.b64encode(derived).decode()


def sign(secrets: Iterable[str], message_id: str, timestamp: int, body: bytes) -> str:
    """Return the `webhook-signature`: one `v1,…` for each secret."""
    content = b".".join((message_id.encode(), str(timestamp).encode(), body))
    return " ".join(
        "v1,"
        + base64.b64encode(hmac.digest(base64.b64decode(s.removeprefix(PREFIX)), content, hashlib.sha256)).decode()
        for s in secrets
    )
