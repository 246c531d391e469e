"""A FastAPI program that counts."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from fastapi import FastAPI

nonce = os.urandom(8).hex()
ticks = 0


async def tick() -> None:
    global ticks
    while True:
        await asyncio.sleep(0.001)
        ticks += 1


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    task = asyncio.create_task(tick())
    yield
    task.cancel()


app = FastAPI(lifespan=lifespan)
count = 0


@app.get("/")
async def state() -> list[object]:
    global count
    before = ticks
    while ticks <= before:
        await asyncio.sleep(0.001)
    count += 1
    return [[nonce, os.getpid()], count]
