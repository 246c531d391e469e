"""The almanac of the Lantern Isles: passages about places that do not exist, the same on every machine.

Every choice is made by a hash of what is chosen for, so passage 77,777 can be written without the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

FACTS = 8
_FIRST = "Al Bar Cor Dun El Fen Gar Hal Ist Jor Kel Lor Mar Nor Or Pel Quen Ros Sor Tor Ul Ven Wes Yar Zel".split()
_MIDDLE = "a an ar be da de el en er i in la li mo na o ri ro sa ti".split()
_LAST = "dale den dor fell ford gan garth holm lin ley mere mont nock rel ren ric stan thorn ton wick".split()
_SHAPE = "Bay Cove Head Holm Isle Ness Point Quay Reach Rock Sands Skerry Sound Strand Tor Wharf".split()
_GIVEN = "Ada Bram Cyra Dov Edda Finn Greta Hugo Ines Jonas Kaia Lars Mira Nils Oona Piet Runa Sven Tilda Ulf".split()
_FAMILY = (
    "Ashworth Bergen Calloway Dahl Ekström Falk Grimsby Hallam Iversen Jorgen Kester Lindqvist Merrow Nyland Osgood "
    "Penrose Quist Ravn Sundby Thorne Ullman Voss Westergaard Yarrow"
).split()
_STONE = "basalt chalk flint gneiss granite limestone sandstone slate".split()
_GOODS = "amber cheese copper flax herring honey kelp oysters peat rope salt smoked-eel timber wool".split()
_COLOUR = "amber blue crimson green red violet white yellow".split()
_BIRD = "auks fulmars gannets guillemots kittiwakes petrels plovers puffins shearwaters terns".split()
_COAST = "fairs mills markets shipyards workshops".split()
_DAY = "Monday Tuesday Wednesday Thursday Friday Saturday".split()
_NUMBER = "two three four five six seven eight nine ten eleven twelve".split()


class Place(NamedTuple):
    """A place of the isles; its name is its own."""

    number: int
    name: str


class Fact(NamedTuple):
    """A passage, and a question that it answers."""

    question: str
    passage: str


def pick(options: Sequence[str], *key: object) -> str:
    """The option for a key: always the same one."""
    return options[number(len(options), *key)]


def number(below: int, *key: object) -> int:
    """A number below a limit for a key: always the same one."""
    digest = hashlib.blake2b("/".join(str(part) for part in key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % below


def place(at: int) -> Place:
    """The place of this number: names are told apart by all their parts, so none comes twice below 160,000."""
    parts = len(_FIRST), len(_MIDDLE), len(_LAST), len(_SHAPE)
    total = parts[0] * parts[1] * parts[2] * parts[3]
    mixed = at * 104_729 % total  # a prime that shares no factor with the total: neighbours look unlike
    names: list[str] = []
    for options in (_FIRST, _MIDDLE, _LAST, _SHAPE):
        mixed, one = divmod(mixed, len(options))
        names.append(options[one])
    return Place(at, f"{names[0]}{names[1]}{names[2]} {names[3]}")


def facts(at: Place) -> Iterator[Fact]:
    """What the almanac says of a place, always `FACTS` passages."""
    name, n = at.name, at.number
    builder = f"{pick(_GIVEN, n, 'given')} {pick(_FAMILY, n, 'family')}"
    keeper = f"{pick(_GIVEN, n, 'keeper')} {pick(_FAMILY, n, 'keeper')}"
    yield Fact(
        f"Who built the lighthouse at {name}?",
        f"The lighthouse at {name} was built of {pick(_STONE, n)} in {1700 + number(240, n, 'year')} by {builder}.",
    )
    yield Fact(
        f"How does the light of {name} flash?",
        f"The light of {name} flashes {pick(_COLOUR, n)} {pick(_NUMBER, n, 'times')} times in every "
        f"{20 + number(70, n, 'period')} seconds and carries {5 + number(20, n, 'miles')} miles.",
    )
    yield Fact(
        f"How deep is the harbour of {name} at low water?",
        f"At low water the harbour of {name} is {2 + number(30, n, 'depth')} feet deep over "
        f"{pick(('clay', 'gravel', 'mud', 'sand', 'shingle'), n)}; keep the {pick(_COLOUR, n, 'buoy')} buoy to port.",
    )
    yield Fact(
        f"What do ships load at {name}?",
        f"Ships load {pick(_GOODS, n, 1)} and {pick(_GOODS, n, 2)} at {name}, most of it bound for the mainland "
        f"{pick(_COAST, n)}.",
    )
    yield Fact(
        f"Which birds nest on the cliffs of {name}?",
        f"Some {10 + number(90, n, 'pairs')} hundred pairs of {pick(_BIRD, n)} nest on the cliffs of {name} in spring.",
    )
    yield Fact(
        f"Who keeps the pilot station of {name}?",
        f"{keeper} keeps the pilot station of {name} and answers on channel {1 + number(88, n, 'channel')}.",
    )
    yield Fact(
        f"When does the ferry from {name} sail?",
        f"The ferry from {name} sails at {5 + number(16, n, 'hour')}:{number(12, n, 'minute') * 5:02} on "
        f"{pick(_DAY, n)}s, weather permitting.",
    )
    yield Fact(
        f"Which wreck lies off {name}?",
        f"Off {name} lies the wreck of the {pick(_GOODS, n, 'ship').title()} {pick(_GIVEN, n, 'ship')}, lost in the "
        f"great storm of {1650 + number(280, n, 'storm')} with {3 + number(60, n, 'souls')} souls.",
    )
