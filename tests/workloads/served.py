"""An ASGI program for uvicorn with several workers: each answers with its own nonce."""

from __future__ import annotations

import json
import os
import secrets
from typing import Any

nonce = secrets.token_hex(16)
memory = [os.urandom(1 << 20)]
answered = 0


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    global answered
    if scope["type"] != "http":
        return
    answered += 1
    body = json.dumps({"nonce": nonce, "answered": answered, "pid": os.getpid()}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
