"""The agent's page: one HTML file without anything from elsewhere; rendered here, kept fresh by its own script."""

from __future__ import annotations

from html import escape
from pathlib import Path
from string import Template
from typing import Any

_PAGE = Template(Path(__file__).with_name("page.html").read_text())


def render(state: dict[str, Any]) -> str:
    """The page of this state; all that changes by itself is within `#clock`."""
    dna, matrix, identity = state["dna"], state["matrix"], state["identity"]
    name = str(dna.get("name", "Not yet anybody"))
    return _PAGE.substitute(
        name=escape(name),
        initial=escape(name[:1]),
        role=escape(str(dna.get("role", "loading"))),
        state="ready" if state["ready"] else "loading",
        state_words=escape(_in_words(state)),
        facts=_facts([
            ("sandbox", identity["sandbox"], ""),
            ("host name", identity["hostname"], ""),
            ("machine id", identity["machine_id"][:12] or "—", "digits"),
            ("DNA", f"{dna['version']} · {dna['digest'][:12]}" if dna else "—", "digits"),
            ("Matrix", f"{matrix['rows']:,} × {matrix['dimensions']} · {matrix['digest'][:12]}" if matrix else "—",
             "digits"),
            ("cache", state["cache"] or "—", ""),
            ("nonce", state["nonce"][:16], "digits"),
        ]),
        turns=_turns(state["turns"], str(dna.get("greeting", ""))),
        conversation=escape(state["conversation"]),
        count=len(state["turns"]),
        uptime=_span(state["clock"]["uptime"]),
        woken=escape(_woken(state["clock"])),
    )  # fmt: skip


def _in_words(state: dict[str, Any]) -> str:
    if state["ready"]:
        return "ready"
    if state["failure"]:
        return "cannot be loaded"
    return "loading " + ", ".join(state["missing"])


def _facts(rows: list[tuple[str, str, str]]) -> str:
    return "".join(
        f'<div><dt>{escape(name)}</dt><dd class="{kind}" title="{escape(value)}">{escape(value)}</dd></div>'
        for name, value, kind in rows
    )


def _turns(turns: list[dict[str, Any]], greeting: str) -> str:
    parts = [f'<p class="said">{escape(greeting)}</p>'] if greeting else []
    for turn in turns:
        near = f" · {turn['score']:.2f}" if turn["score"] is not None else ""
        parts.append(
            f'<p class="asked">{escape(turn["question"])}</p>'
            f'<p class="said">{escape(turn["answer"])}<small>{escape(turn["skill"])}{near}</small></p>'
        )
    return "".join(parts)


def _span(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _woken(clock: dict[str, Any]) -> str:
    if not clock["wakings"]:
        return "up, never frozen"
    return f"up, woken {clock['wakings']} ×, last slept {clock['slept']:.1f} s"
