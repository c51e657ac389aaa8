"""Where webhooks may go: never to what a client must not reach."""

import asyncio
import ipaddress

import pytest

from service.webhooks.addresses import NotAllowed, Rules, is_public, system_resolver

INTERNAL = [
    "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.100.100.200", "0.0.0.0",
    "255.255.255.255", "224.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.9", "240.0.0.1",
    "192.0.0.192", "168.63.129.16",
    "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808", "2002:7f00:1::", "2002:808:808::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2", "fec0::1", "100::1", "3fff::1", "4000::1", "5f00::1",
]  # fmt: skip


@pytest.mark.parametrize("address", INTERNAL)
def test_internal_addresses_in_every_form(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_public_addresses(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        *(f"https://[{a}]/" if ":" in a else f"https://{a}/" for a in INTERNAL),
        "http://example.com/",
        "ftp://example.com/",
        "https://",
        "https:///path",
        "https://user:pass@example.com/",
        "https://example.com/#fragment",
        "https://example.com:0/",
        "https://example.com:99999/",
        "https://exa mple.com/",
        "file:///etc/passwd",
        "gopher://example.com",
        "javascript:alert(1)",
        "//example.com",
        "example.com",
        "https://example.com\r\nX: y/",
        "https://[::1/",
        "https://" + "a" * 1_990 + ".example",
        "",
    ],
)
def test_urls_that_are_refused_at_once(url: str) -> None:
    with pytest.raises(NotAllowed):
        Rules().parse(url)


@pytest.mark.parametrize(
    ("answers", "allowed"),
    [
        (["93.184.215.14"], True),
        (["127.0.0.1"], False),
        (["93.184.215.14", "10.0.0.1"], False),
        (["::1"], False),
        (["fe80::1%eth0"], False),
        (["nonsense"], False),
        ([], False),
    ],
)
def test_what_a_name_leads_to_decides(answers: list[str], allowed: bool) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        assert (host, port) == ("hooks.example.com", 443)
        return answers

    rules = Rules()
    url = rules.parse("https://hooks.example.com/x")
    if allowed:
        assert str(asyncio.run(rules.resolve(url, resolve))) == answers[0]
    else:
        with pytest.raises(NotAllowed):
            asyncio.run(rules.resolve(url, resolve))


@pytest.mark.parametrize("host", ["0x7f.1", "2130706433", "0177.0.0.1", "127.1", "localhost"])
def test_other_spellings_of_loopback_are_seen_through(host: str) -> None:
    rules = Rules()
    try:
        url = rules.parse(f"https://{host}/")
        with pytest.raises(NotAllowed):
            asyncio.run(rules.resolve(url, system_resolver))
    except (NotAllowed, OSError):
        pass


def test_the_operator_names_hosts_and_networks() -> None:
    named = Rules(hosts=("hooks.example.com", ".example.org"))
    for good in ("https://hooks.example.com/", "https://HOOKS.example.com/", "https://a.b.example.org/"):
        named.parse(good)
    for bad in (
        "https://example.com/",
        "https://evilexample.org/",
        "https://example.org.evil.com/",
        "https://8.8.8.8/",
    ):
        with pytest.raises(NotAllowed):
            named.parse(bad)
    inside = Rules(networks=(ipaddress.ip_network("10.1.0.0/16"),))
    inside.parse("http://10.1.2.3:8080/")
    for bad in ("http://10.2.0.1/", "https://10.2.0.1/", "http://8.8.8.8/"):
        with pytest.raises(NotAllowed):
            inside.parse(bad)
