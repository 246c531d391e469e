"""Credentials: given by the host after each start, clone and restore, kept out of every snapshot."""

from __future__ import annotations

from typing import Any

from app.settings import Settings
from thawbox import guest

TOKEN = "VERTEX_ACCESS_TOKEN"  # noqa: S105 - its name
"""The secret that carries an OAuth access token. Without it the SDK looks for what the machine itself has."""


def vertex_client(settings: Settings) -> Any:
    """A new client of Vertex AI with the credentials of this moment."""
    from google import genai
    from google.genai import types
    from google.oauth2.credentials import Credentials

    secret = guest.secrets.get(TOKEN)
    return genai.Client(
        vertexai=True, project=settings.project or None, location=settings.location,
        credentials=Credentials(token=secret.reveal()) if secret is not None else None,  # type: ignore[no-untyped-call]
        http_options=types.HttpOptions(base_url=settings.endpoint or None, timeout=20_000),
    )  # fmt: skip
