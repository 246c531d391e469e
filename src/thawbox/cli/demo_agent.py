"""The program that `thawbox demo` freezes: standard library only, run inside a sandbox by the sandbox's own Python.

It answers on port 8000: to `word` with the next word of its sentence, to `facts` with all that tells whether it is
still the same: a nonce and 64 MiB made in memory alone, an open file, a child, a thread that counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import sys
import tempfile
import threading
import time

SENTENCE = "I know every word that I was about to say, because nobody told me that I was gone, and so I simply go on."


class Agent:
    def __init__(self, megabytes: int) -> None:
        self.to_child, self.from_child = self.start_child()  # first: it need not share our memory
        self.nonce = secrets.token_hex(4)
        self.state = os.urandom(megabytes << 20)
        self.words = 0
        self.ticks = 0
        self.notes = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open, and deleted, for as long as we live
        threading.Thread(target=self.tick, daemon=True).start()

    def tick(self) -> None:
        while True:
            time.sleep(0.01)
            self.ticks += 1

    @staticmethod
    def start_child() -> tuple[int, int]:
        """A child that counts how often it was asked; what it knows is in its own memory."""
        for_child, to_child = os.pipe()
        from_child, for_us = os.pipe()
        if os.fork() == 0:
            os.close(to_child)
            count = 0
            while os.read(for_child, 1):
                count += 1
                os.write(for_us, count.to_bytes(8, "little"))
            os._exit(0)
        return to_child, from_child

    def answer(self, question: str) -> dict[str, object]:
        if question == "facts":
            return {
                "nonce": self.nonce,
                "memory": hashlib.sha256(self.state).hexdigest()[:12],
                "ticks": self.ticks,
                "notes": self.noted(),
                "host": socket.gethostname(),
            }
        sentence = SENTENCE.split()
        word = sentence[self.words % len(sentence)]
        self.words += 1
        self.notes.write(f"{word}\n")
        self.notes.flush()
        os.write(self.to_child, b"?")
        return {"word": word, "asked": self.words, "child": int.from_bytes(os.read(self.from_child, 8), "little")}

    def noted(self) -> int:
        """Lines in the open file, which has no name any more."""
        self.notes.seek(0)
        return len(self.notes.readlines())


def main() -> None:
    agent = Agent(int(sys.argv[1]))
    with socket.create_server(("127.0.0.1", 8000)) as listening:
        while True:
            connection, _ = listening.accept()
            with connection:
                question = connection.recv(64).decode()
                if question:  # else somebody only looked whether we listen
                    connection.sendall(json.dumps(agent.answer(question)).encode())


if __name__ == "__main__":
    main()
