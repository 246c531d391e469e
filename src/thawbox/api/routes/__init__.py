"""One module for each resource, each with `router(service) -> APIRouter`.

Rule 1: names and specs are validated by the core; here JSON is read and written, and scopes are demanded.
Rule 2: what takes longer than a look goes through `answers.carry_out` (a lane of its own) or `answers.Patience`. A
plain `def` that is no GET has a thread of its resource (`answers.SoundRoute`), so it may wait for a sandbox lock.
"""
