"""The node as a long-running process: its pools, kept filled, over HTTP on a socket that only root can open.

FastAPI and uvicorn are imported by nothing outside this package, so no other command waits for them.
"""
