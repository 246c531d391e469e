"""Photographs of the agent's page in headless Chromium, and how many of their pixels differ."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np

CHROMIUM = "/usr/lib/chromium/chromium"
_ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--font-render-hinting=none", "--force-color-profile=srgb", "--hide-scrollbars",
)  # fmt: skip
_SIZE = {"width": 1100, "height": 900}


class Photographer:
    """A browser that stays open for the block."""

    def __enter__(self) -> Self:
        from playwright.sync_api import sync_playwright

        with ExitStack() as undo:
            playwright = undo.enter_context(sync_playwright())
            self._browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_ARGUMENTS))
            undo.callback(self._browser.close)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def take(self, connect: Callable[[], socket.socket], path: Path, *, scheme: str) -> None:
        """A photograph of the whole page, its clock covered; `connect` gives connections to whoever serves it."""
        with _port_to(connect) as port:
            context = self._browser.new_context(
                viewport=_SIZE,  # type: ignore[arg-type]
                color_scheme="dark" if scheme == "dark" else "light", reduced_motion="reduce",
            )  # fmt: skip
            with contextlib.closing(context):
                page = context.new_page()
                page.goto(f"http://127.0.0.1:{port}/", wait_until="load", timeout=120_000)
                page.evaluate("document.fonts.ready.then(() => true)")
                page.screenshot(path=path, full_page=True, mask=[page.locator("#clock")], mask_color="#808080")


def differing_pixels(one: Path, other: Path) -> int:
    """How many pixels of two photographs differ; all of the larger one where their sizes do."""
    from PIL import Image

    first, second = (np.asarray(Image.open(path).convert("RGB")) for path in (one, other))
    if first.shape != second.shape:
        return max(first.shape[0] * first.shape[1], second.shape[0] * second.shape[1])
    return int((first != second).any(axis=2).sum())


@contextlib.contextmanager
def _port_to(connect: Callable[[], socket.socket]) -> Iterator[int]:
    """A port of this machine's loopback behind which `connect` leads, for as long as the block."""
    ending = threading.Event()

    def pass_on(caller: socket.socket) -> None:
        with caller, contextlib.suppress(OSError), connect() as served:
            ends = {caller: served, served: caller}
            while not ending.is_set():
                for end in select.select(list(ends), [], [], 0.2)[0]:
                    content = end.recv(1 << 16)
                    if not content:
                        return
                    ends[end].sendall(content)

    def accept() -> None:
        while not ending.is_set():
            if select.select([listening], [], [], 0.1)[0]:
                caller, _ = listening.accept()
                threads.append(threading.Thread(target=pass_on, args=(caller,)))
                threads[-1].start()

    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield listening.getsockname()[1]
        finally:
            ending.set()
            accepting.join()
            for thread in threads:
                thread.join()
