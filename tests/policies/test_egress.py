"""What is of this machine, by its text alone, and what a permit covers."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.egress import Permit, Purpose, stays_here


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
def test_this_machine(host):
    assert stays_here(host)


@pytest.mark.parametrize(
    "host",
    [
        "", "0.0.0.0", "::", "10.0.0.1", "169.254.169.254", "example.com", "localhost.example.com", "localhost.",
        "127.1", "2130706433", "0x7f000001", "::ffff:10.0.0.1", "127.0.0.1.nip.io", "[::1]", " 127.0.0.1",
        "127.0.0.1\n", "fe80::1",
    ],
)  # fmt: skip
def test_everything_else_is_elsewhere(host):
    assert not stays_here(host)


@given(st.ip_addresses())
def test_an_address_is_here_only_on_loopback(address):
    mapped = getattr(address, "ipv4_mapped", None) or address
    loopback = mapped in ipaddress.ip_network("127.0.0.0/8" if mapped.version == 4 else "::1/128")
    assert stays_here(str(address)) is loopback


def test_a_permit_is_for_one_host_and_port_and_for_tls():
    permit = Permit(Purpose.BROKER, "API.example.com", 443)
    assert permit.covers("api.example.com", 443, tls=True)
    assert permit.covers("Api.Example.Com", 443, tls=True)
    assert not permit.covers("api.example.com", 443, tls=False)
    assert not permit.covers("api.example.com", 80, tls=True)
    assert not permit.covers("evil.example.com", 443, tls=True)
    assert not permit.covers("api.example.com.evil.net", 443, tls=True)
    assert Permit(Purpose.REMOTE_RUNTIME, "box", 1, tls=False).covers("box", 1, tls=True)
