"""Rows S1 to S4 and S9: copies, against nbdcopy."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

from .contest import SFASYNC, Contest, Entrant, Place, synced
from .data import random_image
from .servers import fill, nbdkit, nbdkit_over_tls

DELAYS = (5, 10, 20, 50)  # milliseconds added to each read


async def plain(place: Place) -> AsyncGenerator[Contest, None]:
    """S1: from memory to nowhere."""
    async with nbdkit(place.sockets, "memory", str(place.size)) as uri:
        await fill(uri, await random_image(place.shared / f"random-{place.size}.raw", place.size))
        yield _reads(place, "copy NBD to null:, Unix socket, no extents", uri, "--no-extents")


async def encrypted(place: Place) -> AsyncGenerator[Contest, None]:
    """S2: the same over TLS and TCP."""
    async with nbdkit_over_tls(place.sockets, "memory", str(place.size)) as uri:
        await fill(uri, await random_image(place.shared / f"random-{place.size}.raw", place.size))
        yield _reads(place, "copy NBD to null:, TLS over TCP, no extents", uri, "--no-extents")


async def delayed(place: Place) -> AsyncGenerator[Contest, None]:
    """S9: from servers that take their time."""
    image = await random_image(place.shared / f"random-{place.size}.raw", place.size)
    for delay in DELAYS:
        filters = ("--filter=noextents", "--filter=delay")
        async with nbdkit(place.sockets, *filters, "memory", str(place.size), f"rdelay={delay}ms") as uri:
            await fill(uri, image)
            yield _reads(place, f"copy NBD to null:, {delay} ms added to each read", uri)


async def to_file(place: Place) -> AsyncGenerator[Contest, None]:
    """S3: to a new file, durable."""
    target = place.directory / "target.raw"
    anew = _without(target)
    durable = 'nbdcopy --flush "$1" "$2" && sync "$2"'
    direct = (sys.executable, "-P", "-m", "sfasync.cli.bench.direct", target, str(place.size))
    async with nbdkit(place.sockets, "memory", str(place.size)) as uri:
        await fill(uri, await random_image(place.shared / f"random-{place.size}.raw", place.size))
        entrants = place.with_peers(
            Entrant(name="sfasync", command=(*SFASYNC, "copy", "--quiet", uri, target), prepare=anew),
            {"nbdcopy": Entrant(name="nbdcopy", command=("sh", "-c", durable, "sh", uri, target), prepare=anew)},
        )
        entrants.append(Entrant(name="direct writes", command=direct, prepare=anew))
        yield Contest(work="copy NBD to a new raw file, durable", size=place.size, entrants=entrants)


async def from_file(place: Place) -> AsyncGenerator[Contest, None]:
    """S4: from a file."""
    image = await random_image(place.shared / f"random-{place.size}.raw", place.size)
    async with nbdkit(place.sockets, "memory", str(place.size)) as uri:
        entrants = place.with_peers(
            Entrant(name="sfasync", command=(*SFASYNC, "copy", "--quiet", image, uri)),
            {"nbdcopy": Entrant(name="nbdcopy", command=("nbdcopy", image, uri))},
        )
        yield Contest(work="copy a raw file to NBD", size=place.size, entrants=entrants)


def _reads(place: Place, work: str, uri: str, *options: str) -> Contest:
    entrants = place.with_peers(
        Entrant(name="sfasync", command=(*SFASYNC, "copy", "--quiet", *options, uri, "null:")),
        {"nbdcopy": Entrant(name="nbdcopy", command=("nbdcopy", *options, uri, "null:"))},
    )
    return Contest(work=work, size=place.size, entrants=entrants)


def _without(target: Path) -> Callable[[], Awaitable[None]]:
    async def remove() -> None:
        target.unlink(missing_ok=True)
        await synced()

    return remove
