"""A client of `thawbox serve`: `Client`, and `AsyncClient` with the same methods awaited.

`aio` is written by hand; `sync` is made of it by `scripts/generate_client`, and a test compares the two.
"""

from thawbox.client.aio.client import AsyncClient
from thawbox.client.results import CodeError, CommandResult, Entry, Event, Execution, Image
from thawbox.client.sync.client import Client

__all__ = ["AsyncClient", "Client", "CodeError", "CommandResult", "Entry", "Event", "Execution", "Image"]
