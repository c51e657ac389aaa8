"""Where webhooks may go: to public addresses, as resolved and checked once, and to what the operator lets in."""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence

import httpx

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

LONGEST_URL = 2_000
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?|[0-9a-f:.]+")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# What Python's tables leave out, or only newer ones have.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(text)
    for text in (
        "192.0.0.0/24",  # protocol assignments; Oracle's machines find their metadata there
        "192.88.99.0/24",  # 6to4 relays
        "168.63.129.16/32",  # Azure's host, as its machines see it
        "2001::/23",  # protocol assignments, Teredo among them, which holds an IPv4 address
        "2002::/16",  # 6to4, which holds one too
        "3fff::/20",  # documentation
    )
)


class NotAllowed(Exception):
    """A webhook may not go there; the text is for the client that named the address."""


def is_public(address: Address) -> bool:
    """Whether an address is one of the internet's, whatever form it comes in."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in _GLOBAL_UNICAST:
            return False
    if any(address in network for network in _NOT_PUBLIC):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


class Rules:
    """What the operator allows: `networks` although they are internal, and, if any are named, no `hosts` but these."""

    def __init__(self, networks: Sequence[Network] = (), hosts: Sequence[str] = ()) -> None:
        self._networks = networks
        self._hosts = tuple(host.lower() for host in hosts)

    def parse(self, text: str) -> httpx.URL:
        """Check what can be checked of a URL without asking a name server. Raises `NotAllowed`."""
        if len(text) > LONGEST_URL:
            raise NotAllowed(f"The URL is longer than {LONGEST_URL:,} characters.")
        try:
            url = httpx.URL(text)
            host = url.raw_host.decode("ascii").lower()
            port = url.port
        except (httpx.InvalidURL, ValueError, UnicodeError):
            raise NotAllowed("This is not a URL.") from None
        if url.scheme not in ("https", "http") or not _HOST.fullmatch(host):
            raise NotAllowed("The URL must start with https:// and name a host.")
        if port is not None and not 1 <= port <= 65_535:
            raise NotAllowed("There is no such port.")
        if url.userinfo or url.fragment:
            raise NotAllowed("The URL must hold neither a user name nor a fragment.")
        if self._hosts and not any(_matches(host, allowed) for allowed in self._hosts):
            raise NotAllowed("Webhooks may not be sent to this host.")
        if url.scheme == "http" and not self._networks:
            raise NotAllowed("The URL must start with https://.")
        literal = _address(host)
        if literal:
            self.check(url, [literal])
        return url

    def check(self, url: httpx.URL, addresses: Sequence[Address]) -> None:
        """Check where a host's name leads: all of its addresses must be allowed. Raises `NotAllowed`."""
        if not addresses:
            raise NotAllowed("The host has no address.")
        listed = [any(address in network for network in self._networks) for address in addresses]
        if not all(known or is_public(address) for known, address in zip(listed, addresses, strict=True)):
            raise NotAllowed("The host leads to an internal address.")
        if url.scheme == "http" and not all(listed):
            raise NotAllowed("The URL must start with https://.")

    async def resolve(self, url: httpx.URL, resolve: Resolve) -> Address:
        """Ask for a host's addresses, once, and return the one to connect to. Raises `NotAllowed`, OSError."""
        host = url.raw_host.decode("ascii")
        port = url.port or (443 if url.scheme == "https" else 80)
        found = [_address(text) for text in await resolve(host, port)]
        if None in found:
            raise NotAllowed("The host leads to an address that cannot be read.")
        addresses = [address for address in found if address]
        self.check(url, addresses)
        return addresses[0]


async def system_resolver(host: str, port: int) -> list[str]:
    """Return the addresses that the system's resolver gives for a name."""
    loop = asyncio.get_running_loop()
    answers = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(answer[4][0]) for answer in answers]


def _address(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None


def _matches(host: str, allowed: str) -> bool:
    return host == allowed or (allowed.startswith(".") and host.endswith(allowed))
