"""The command `thawbox`. Only this package prints and knows exit statuses."""

from __future__ import annotations

from thawbox.cli.app import main

__all__ = ["main"]
