"""Tries several ways on from one moment: the work that all share is done once, and each way has a sandbox of its own.

thawbox serve &
python examples/client/fan_out.py
"""

from __future__ import annotations

import asyncio

from thawbox import AsyncClient

PREPARE = """
import random
data = [random.gauss(10, 3) for _ in range(10_000)]  # stands for an hour of loading
"""
WAYS = {
    "mean": "sum(data) / len(data)",
    "median": "sorted(data)[len(data) // 2]",
    "mistake": "data[10_000]",
}


async def main() -> None:
    async with AsyncClient() as client, client.run(("sleep", "infinity")) as sandbox:
        await sandbox.run_code(PREPARE)
        clones = await sandbox.fork(len(WAYS))

        async def follow(way: str, number: int) -> None:
            async with clones[number] as clone:
                done = await clone.run_code(WAYS[way], timeout=30)
                print(way, done.text if done.error is None else f"failed: {done.error.value}")

        await asyncio.gather(*(follow(way, number) for number, way in enumerate(WAYS)))


asyncio.run(main())
