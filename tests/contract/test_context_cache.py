"""Both context caches keep the protocol's promises; the one in the cloud over real HTTP, with Google's own SDK."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from app.context import CacheUnavailable, Context, ContextCache
from app.context.local import LocalCache
from app.context.vertex import VertexCache
from vertex_server import LOCATION, MODEL, PROJECT, Vertex, serving

CONTEXT = Context("You are Halden.", ("The lighthouse was built in 1927.", "The harbour is 3 feet deep."))
TTL = 100.0


@dataclass
class Clock:
    now: float = 1_000_000.0
    vertex: Vertex | None = None

    def move(self, seconds: float) -> None:
        self.now += seconds
        if self.vertex is not None:
            self.vertex.now = self.now


@dataclass
class Cloud:
    """A Vertex AI on the loopback, and agents that use it with a token which may change."""

    vertex: Vertex
    clock: Clock
    token: str = "first"
    clients: int = field(default=0)

    def client(self) -> object:
        from google import genai
        from google.genai import types
        from google.oauth2.credentials import Credentials

        self.clients += 1
        return genai.Client(
            vertexai=True, project=PROJECT, location=LOCATION, credentials=Credentials(token=self.token),
            http_options=types.HttpOptions(base_url=self.vertex.url, timeout=20_000),
        )  # fmt: skip

    def cache(self) -> VertexCache:
        return VertexCache(self.client, model=MODEL, ttl=TTL, now=lambda: self.clock.now)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cloud(clock: Clock) -> Iterator[Cloud]:
    with serving() as vertex:
        clock.vertex = vertex
        yield Cloud(vertex, clock)


@pytest.fixture(params=["local", "vertex"])
def make_cache(request: pytest.FixtureRequest, clock: Clock) -> Callable[[], ContextCache]:
    if request.param == "local":
        return lambda: LocalCache(ttl=TTL, now=lambda: clock.now)
    cloud: Cloud = request.getfixturevalue("cloud")
    return cloud.cache


def test_a_handle_is_of_its_context_and_good_for_a_while(make_cache: Callable[[], ContextCache], clock: Clock) -> None:
    cache = make_cache()
    with pytest.raises(CacheUnavailable):
        cache.handle()
    handle = cache.warm(CONTEXT)
    assert handle.digest == CONTEXT.digest
    assert handle.expires_at == clock.now + TTL
    assert cache.handle() == handle
    clock.move(TTL + 1)
    renewed = cache.handle()
    assert renewed.digest == CONTEXT.digest
    assert renewed.expires_at > clock.now


def test_after_a_snapshot_the_handle_has_its_whole_time_again(
    make_cache: Callable[[], ContextCache], clock: Clock
) -> None:
    cache = make_cache()
    cache.warm(CONTEXT)
    cache.suspend()
    clock.move(TTL / 2)
    cache.wake()
    assert cache.handle().expires_at == clock.now + TTL


def test_an_answer_is_given_from_the_passages(make_cache: Callable[[], ContextCache]) -> None:
    cache = make_cache()
    cache.warm(CONTEXT)
    assert "Lars Dahl" in cache.complete("Who built it?", ["It was built by Lars Dahl.", "It is deep."])


def test_agents_of_one_context_share_one_cache_in_the_cloud(cloud: Cloud) -> None:
    first, second = cloud.cache(), cloud.cache()
    made = first.warm(CONTEXT)
    assert second.warm(CONTEXT).name == made.name
    assert cloud.vertex.calls == ["list", "create", "list", "update"]
    other = Context("You are somebody else.", CONTEXT.passages)
    assert second.warm(other).name != made.name
    assert len(cloud.vertex.caches) == 2


def test_what_expired_while_the_agent_slept_is_made_anew(cloud: Cloud) -> None:
    cache = cloud.cache()
    before = cache.warm(CONTEXT)
    cache.suspend()
    cloud.clock.move(TTL * 3)
    cache.wake()
    assert cache.handle().name != before.name
    assert cloud.vertex.calls[-1] == "create"


def test_what_was_deleted_while_the_handle_looked_good_is_made_anew(cloud: Cloud) -> None:
    cache = cloud.cache()
    before = cache.warm(CONTEXT)
    cloud.vertex.caches.clear()
    cache.wake()
    assert cache.handle().name != before.name
    cloud.vertex.caches.clear()  # and now between the look and its use
    assert cache.complete("Who?", ["Lars Dahl."]) == "It was Lars Dahl."
    assert cloud.vertex.generated[-1]["cachedContent"] in cloud.vertex.caches


def test_a_handle_near_its_end_is_prolonged_and_one_far_from_it_asks_nobody(cloud: Cloud) -> None:
    cache = cloud.cache()
    cache.warm(CONTEXT)
    calls = len(cloud.vertex.calls)
    cache.handle()
    assert len(cloud.vertex.calls) == calls
    cloud.clock.move(TTL * 0.8)
    assert cache.handle().expires_at == cloud.clock.now + TTL
    assert cloud.vertex.calls[calls:] == ["update"]


def test_new_credentials_are_used_after_a_restore_and_old_ones_never_again(cloud: Cloud) -> None:
    cache = cloud.cache()
    cache.warm(CONTEXT)
    cache.suspend()
    cloud.vertex.token = cloud.token = "second"
    clients = cloud.clients
    cache.wake()
    cache.handle()
    assert cloud.clients == clients + 1


def test_a_cloud_that_is_away_or_refuses_us_is_said_and_forgiven_later(cloud: Cloud) -> None:
    cache = cloud.cache()
    cache.warm(CONTEXT)
    cache.wake()
    cloud.vertex.is_down = True
    with pytest.raises(CacheUnavailable, match="503"):
        cache.handle()
    cloud.vertex.is_down, cloud.vertex.token = False, "other"
    with pytest.raises(CacheUnavailable, match="401"):
        cache.handle()
    cloud.vertex.token = cloud.token
    assert cache.handle().digest == CONTEXT.digest
