"""`python -m app`: serve the agent; ends with status 1, and says why, when it cannot be loaded."""

from __future__ import annotations

import logging
import sys

import uvicorn

from app.main import create_app
from app.settings import read_settings


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    settings = read_settings()

    def end() -> None:
        server.should_exit = True

    app = create_app(settings, on_failure=end)
    server = uvicorn.Server(
        uvicorn.Config(app, host=settings.host, port=settings.port, log_level="warning", access_log=False)
    )
    server.run()
    if failure := app.state.agent.failure:
        sys.exit(f"the agent cannot be loaded: {failure}")


main()
