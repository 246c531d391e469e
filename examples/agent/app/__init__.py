"""The golden agent: a FastAPI program that is expensive to start and cheap to bring back. See ../README.md."""
