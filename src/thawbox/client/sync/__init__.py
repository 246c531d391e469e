# Made by scripts/generate_client of client/aio: change that, not this.
"""The client for threads, made of `aio`."""
