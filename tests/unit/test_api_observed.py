"""The outermost layer of the application, where what is inside fails in a way that nobody foresaw."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
from fastapi import FastAPI

from thawbox.api.observing import Observed, Observing
from thawbox.audit import AUDIT_LOG, Audit


def test_a_change_that_failed_of_a_defect_is_audited_too(tmp_path: Path) -> None:
    with Audit(tmp_path) as audit:
        service: Any = SimpleNamespace(audit=audit, observing=Observing())
        app = FastAPI()
        app.add_middleware(Observed, service=service)

        @app.post("/v1/change")
        async def change() -> None:
            raise ZeroDivisionError

        async def ask() -> int:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
                return (await client.post("/v1/change")).status_code

        assert asyncio.run(ask()) == 500
    [line] = (tmp_path / AUDIT_LOG).read_text().splitlines()
    told = json.loads(line)
    assert (told["what"], told["status"], told["outcome"]) == ("POST /v1/change", 500, "defect")
