"""A few small conversations, built here byte by byte, whose classification every release agrees on."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

CLIENT = "192.0.2.10"  # the documentation ranges of RFC 5737: no release lists an owner for them
SERVER = "198.51.100.20"
HTTP_HOST = SERVER  # a numeric host name is a risk in every release
HTTP_USER_AGENT = "nedge-selftest/1.0"
TLS_NAME = "selftest.example.org"
DNS_NAME = "selftest.example.net"
DNS_TYPE_AAAA = 28

_FLAG_SYN, _FLAG_SYN_ACK, _FLAG_ACK, _FLAG_PUSH = 0x02, 0x12, 0x10, 0x18
# As Linux sends them: MSS, SACK permitted, timestamps, no-operation, window scale.
_SYN_OPTIONS = bytes.fromhex("020405b4 0402 080a0000000100000000 01 030307")


def ipv4(protocol: int, source: str, destination: str, payload: bytes) -> bytes:
    """An IPv4 packet; checksums stay 0, as nDPI does not look at them."""
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0x4000, 64, protocol, 0)
    return header + IPv4Address(source).packed + IPv4Address(destination).packed + payload


def udp(source: tuple[str, int], destination: tuple[str, int], payload: bytes) -> bytes:
    """A UDP packet between two (address, port) pairs."""
    header = struct.pack("!HHHH", source[1], destination[1], 8 + len(payload), 0)
    return ipv4(17, source[0], destination[0], header + payload)


def tcp(
    source: tuple[str, int],
    destination: tuple[str, int],
    payload: bytes = b"",
    *,
    seq: int,
    ack: int,
    flags: int = _FLAG_PUSH,
) -> bytes:
    """A TCP packet between two (address, port) pairs."""
    options = _SYN_OPTIONS if flags & _FLAG_SYN else b""
    offset = (20 + len(options)) // 4 << 4
    header = struct.pack("!HHIIBBHHH", source[1], destination[1], seq, ack, offset, flags, 64240, 0, 0)
    return ipv4(6, source[0], destination[0], header + options + payload)


def tcp_request(port: int, request: bytes) -> list[bytes]:
    """A TCP handshake and the client's first data packet."""
    client, server = (CLIENT, 49152), (SERVER, port)
    return [
        tcp(client, server, seq=1000, ack=0, flags=_FLAG_SYN),
        tcp(server, client, seq=5000, ack=1001, flags=_FLAG_SYN_ACK),
        tcp(client, server, seq=1001, ack=5001, flags=_FLAG_ACK),
        tcp(client, server, request, seq=1001, ack=5001),
    ]


def http_request(port: int = 80) -> list[bytes]:
    """A request whose host is a numeric address."""
    request = f"GET /index.html HTTP/1.1\r\nHost: {HTTP_HOST}\r\nUser-Agent: {HTTP_USER_AGENT}\r\n\r\n"
    return tcp_request(port, request.encode())


HTTP_URL = "selftest.example.org/index.html"


def http_exchange(code: int, content_type: str, *, response_first: bool = False) -> list[bytes]:
    """A request for HTTP_URL and its answer."""
    host, path = HTTP_URL.split("/")
    request = f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {HTTP_USER_AGENT}\r\n\r\n".encode()
    response = f"HTTP/1.1 {code} Status\r\nContent-Type: {content_type}\r\nContent-Length: 0\r\n\r\n".encode()
    answer = tcp((SERVER, 80), (CLIENT, 49152), response, seq=5001, ack=1001 + len(request))
    *opening, asking = tcp_request(80, request)
    return [*opening, answer, asking] if response_first else [*opening, asking, answer]


def dns_query() -> list[bytes]:
    """A query for an IPv6 address."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in DNS_NAME.split("."))
    question = labels + b"\0" + struct.pack("!HH", DNS_TYPE_AAAA, 1)
    query = struct.pack("!HHHHHH", 0x1234, 0x0100, 1, 0, 0, 0) + question
    return [udp((CLIENT, 49153), (SERVER, 53), query)]


def client_hello(name: str = TLS_NAME) -> bytes:
    """A TLS 1.2 record with a ClientHello: server name, versions 1.3 and 1.2, ALPN h2 and http/1.1."""
    server_name = _vector(2, b"\0" + _vector(2, name.encode()))
    extensions = (
        (0, server_name),
        (10, _vector(2, struct.pack("!HH", 29, 23))),  # supported_groups: x25519, secp256r1
        (11, _vector(1, b"\0")),  # ec_point_formats: uncompressed
        (13, _vector(2, struct.pack("!HHH", 0x0403, 0x0804, 0x0401))),  # signature_algorithms
        (16, _vector(2, _vector(1, b"h2") + _vector(1, b"http/1.1"))),  # ALPN
        (43, _vector(1, struct.pack("!HH", 0x0304, 0x0303))),  # supported_versions
        (51, _vector(2, struct.pack("!H", 29) + _vector(2, bytes(range(32))))),  # key_share
    )
    body = (
        struct.pack("!H", 0x0303)
        + bytes(range(32))  # random
        + _vector(1, b"")  # session id
        + _vector(2, struct.pack("!HHHH", 0x1301, 0x1302, 0xC02B, 0xC02F))  # cipher suites
        + _vector(1, b"\0")  # compression: none
        + _vector(2, b"".join(struct.pack("!H", kind) + _vector(2, data) for kind, data in extensions))
    )
    return struct.pack("!BH", 22, 0x0301) + _vector(2, b"\x01" + _vector(3, body))


def _vector(length_size: int, data: bytes) -> bytes:
    return len(data).to_bytes(length_size) + data


CERT_NOT_BEFORE = 1_704_067_200  # 2024-01-01 00:00:00 UTC, and ten years later
CERT_NOT_AFTER = 2_019_686_400


def tls_certificate() -> list[bytes]:
    """A TLS 1.2 handshake up to the server's certificate, valid between the two dates above."""
    server_hello = (
        struct.pack("!H", 0x0303)
        + bytes(range(32))  # random
        + _vector(1, b"")  # session id
        + struct.pack("!HB", 0xC02B, 0)  # cipher suite, compression
        + _vector(2, b"")  # extensions
    )
    chain = _vector(3, _vector(3, certificate()))
    messages = b"\x02" + _vector(3, server_hello) + b"\x0b" + _vector(3, chain) + b"\x0e" + _vector(3, b"")
    answer = struct.pack("!BH", 22, 0x0303) + _vector(2, messages)
    hello = client_hello()
    return [
        *tcp_request(443, hello),
        tcp((SERVER, 443), (CLIENT, 49152), answer, seq=5001, ack=1001 + len(hello)),
    ]


def certificate() -> bytes:
    """A certificate in DER whose key and signature are only placeholders."""
    ecdsa_sha256 = _der(0x30, _der(0x06, bytes.fromhex("2a8648ce3d040302")))
    common_name = _der(0x30, _der(0x06, bytes.fromhex("550403")), _der(0x0C, TLS_NAME.encode()))
    name = _der(0x30, _der(0x31, common_name))
    validity = _der(0x30, _der(0x17, b"240101000000Z"), _der(0x17, b"340101000000Z"))
    ec_key = _der(
        0x30, _der(0x06, bytes.fromhex("2a8648ce3d0201")), _der(0x06, bytes.fromhex("2a8648ce3d030107"))
    )
    key = _der(0x30, ec_key, _der(0x03, b"\0\x04" + bytes(64)))
    alternatives = _der(0x04, _der(0x30, _der(0x82, TLS_NAME.encode())))
    extensions = _der(0xA3, _der(0x30, _der(0x30, _der(0x06, bytes.fromhex("551d11")), alternatives)))
    version, serial = _der(0xA0, _der(0x02, b"\x02")), _der(0x02, b"\x01")
    signed = _der(0x30, version, serial, ecdsa_sha256, name, validity, name, key, extensions)
    return _der(0x30, signed, ecdsa_sha256, _der(0x03, b"\0" + bytes(64)))


def _der(tag: int, *contents: bytes) -> bytes:
    data = b"".join(contents)
    if len(data) < 0x80:
        return bytes([tag, len(data)]) + data
    length = len(data).to_bytes((len(data).bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(length)]) + length + data
