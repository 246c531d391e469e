"""A FastAPI program with hooks as routes."""

from __future__ import annotations

import asyncio
import os
import random
import sys

sys.path.insert(0, "/opt/thawbox")
from fastapi import FastAPI

from thawbox import guest
from thawbox.guest.web import mount_hooks

app = FastAPI()
mount_hooks(app)
told: list[str] = []


@guest.before_checkpoint
async def before() -> None:
    told.append(f"before in {type(asyncio.get_running_loop()).__name__}")


@guest.after_restore
async def restored(event: guest.Event) -> None:
    await asyncio.sleep(0.001)
    told.append(f"{event.what} {event.identity.name} {list(event.secrets)}")


@app.get("/")
async def state() -> dict[str, object]:
    return {"told": told, "random": random.random()}


@app.get("/given")
async def given() -> dict[str, object]:
    return {"secrets": {name: len(secret) for name, secret in guest.secrets.items()}, "who": os.environ.get("WHO")}


@app.post("/loaded")
async def loaded() -> None:
    guest.ready()
