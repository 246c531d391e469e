"""The client for asyncio (and trio), written by hand: `sync` is made of it."""
