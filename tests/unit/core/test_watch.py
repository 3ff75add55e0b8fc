"""Every request of a plain HTTP connection (RFC 9112), every DNS query of a flow (RFC 1035), each once."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterable
from itertools import pairwise

import pytest
from core_kit import ACK, CLIENT, FIN, SERVER, SYN, answer, decoded, ip4, name, query, segment, udp
from hypothesis import given, settings
from hypothesis import strategies as st

from nedge.core.packet import Packet, decode
from nedge.core.watch import MAX_HEAD, DnsWatch, HttpWatch, Request, Watch, parse_dns_query

ISN = 5000


def cut(data: bytes, *at: int, isn: int = ISN) -> list[Packet]:
    """Data as segments, cut at these positions."""
    borders = [0, *sorted(at), len(data)]
    return [segment(data[start:end], isn + start) for start, end in pairwise(borders) if end > start]


def feed(watch: Watch, packets: Iterable[Packet]) -> list[Request]:
    return [request for packet in packets for request in watch.feed(packet)]


def http(data: bytes, *at: int) -> list[tuple[str, str]]:
    """Method and URL of each request."""
    return [(request.method, request.url) for request in feed(HttpWatch(), cut(data, *at))]


def get(host: str, path: str = "/", headers: str = "", method: str = "GET", body: bytes = b"") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}{length}\r\n".encode() + body


def chunked(*chunks: bytes, trailers: bytes = b"", extension: bytes = b"") -> bytes:
    """A body in chunks (RFC 9112, 7.1)."""
    parts = [b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks]
    return b"".join(parts) + b"0\r\n" + trailers + b"\r\n"


DECOY = b"GET /decoy HTTP/1.1\r\nHost: decoy.example\r\n\r\n"

# HTTP: one request


@pytest.mark.parametrize(
    ("head", "host", "url", "method"),
    [
        ("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", "a.example", "a.example/", "GET"),
        ("GET /x?y=z HTTP/1.1\r\nHost: A.Example\r\n\r\n", "a.example", "a.example/x?y=z", "GET"),
        ("HEAD / HTTP/1.0\r\nhost:a.example\r\n\r\n", "a.example", "a.example/", "HEAD"),
        ("GET / HTTP/1.1\r\nX: y\r\nHOST:   a.example  \r\n\r\n", "a.example", "a.example/", "GET"),
        ("GET / HTTP/1.1\r\nHost: a.example:8080\r\n\r\n", "a.example", "a.example/", "GET"),
        ("GET / HTTP/1.1\r\nHost: a.example.\r\n\r\n", "a.example", "a.example/", "GET"),
        ("GET / HTTP/1.1\r\nHost: 192.0.2.1:80\r\n\r\n", "192.0.2.1", "192.0.2.1/", "GET"),
        ("GET / HTTP/1.1\r\nHost: [2001:DB8::1]:80\r\n\r\n", "2001:db8::1", "2001:db8::1/", "GET"),
        ("GET / HTTP/1.0\r\n\r\n", "", "/", "GET"),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", "", "/", "GET"),
        ("OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n", "a.example", "a.example*", "OPTIONS"),
        ("M-SEARCH * HTTP/1.1\r\nHost: a.example\r\n\r\n", "a.example", "a.example*", "M-SEARCH"),
        # Absolute form (3.2.2)
        ("GET http://a.example/x HTTP/1.1\r\nHost: a.example\r\n\r\n", "a.example", "a.example/x", "GET"),
        ("GET http://u:p@A.example:8080/x HTTP/1.1\r\n\r\n", "a.example", "a.example/x", "GET"),
        ("GET http://a.example HTTP/1.1\r\nHost: A.example:80\r\n\r\n", "a.example", "a.example", "GET"),
        # Authority form (3.2.3)
        ("CONNECT a.example:443 HTTP/1.1\r\nHost: b.example\r\n\r\n", "a.example", "a.example", "CONNECT"),
        # Bare LF, and empty lines before the request (2.2)
        ("GET / HTTP/1.1\nHost: a.example\n\n", "a.example", "a.example/", "GET"),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: a.example\r\n\r\n", "a.example", "a.example/", "GET"),
    ],
)  # fmt: skip
def test_one_request(head: str, host: str, url: str, method: str) -> None:
    (request,) = feed(HttpWatch(), cut(head.encode()))
    assert (request.name, request.url, request.method) == (host, url, method)
    assert request.head.strip() == head.encode().strip()


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("/?u=http://b.example/", "a.example"),  # a URL inside of a path
        ("/http://b.example/", "a.example"),
        ("x?u=http://b.example/", "a.example"),
        ("http://b.example?u=/", "a.example b.example"),  # it ends before a query (RFC 3986, 3.2)
        ("http://b.example?u=@c.example/", "a.example b.example"),
        ("http://b.example#@c.example/", "a.example b.example"),
        ("http:///x", "a.example"),
        ("http://@/x", "a.example"),
        ("http://A.example:80/x", "a.example"),
    ],
)
def test_whose_a_target_is(target: str, host: str) -> None:
    """The target wins over Host (RFC 9112, 3.2.2), but not with every server: both count."""
    requests = feed(HttpWatch(), cut(f"GET {target} HTTP/1.1\r\nHost: a.example\r\n\r\n".encode()))
    assert " ".join(request.name for request in requests) == host


@pytest.mark.parametrize(
    "headers",
    [
        "Host:\r\n a.example\r\n",  # continued on the next line (RFC 9112, 5.2)
        "Host: \r\n\ta.example\r\n",
        "Host:\r\nHost: a.example\r\n",
        "X: y\r\n  z\r\nHost: a.example\r\nHost: b.example\r\n",
    ],
)
def test_the_host_of_odd_heads(headers: str) -> None:
    (request,) = feed(HttpWatch(), cut(f"GET / HTTP/1.1\r\n{headers}\r\n".encode()))
    assert request.name == "a.example"


@pytest.mark.parametrize(
    ("codings", "chunks"),
    [
        (("chunked",), True),
        (("identity", "chunked"), True),
        (("gzip, Chunked",), True),
        (("xchunked",), False),
        (("chunked, identity",), False),
    ],
)
def test_which_bodies_come_in_chunks(codings: tuple[str, ...], chunks: bool) -> None:
    headers = "".join(f"Transfer-Encoding: {coding}\r\n" for coding in codings)
    first = get("a.example", headers=f"{headers}Content-Length: 9999\r\n")
    assert len(http(first + chunked(b"x") + DECOY)) == (2 if chunks else 1)


@pytest.mark.parametrize("line", ["GET  /", "GET / ", "\r\nGET /"])
def test_request_lines_that_servers_forgive(line: str) -> None:
    odd = f"{line} HTTP/1.9\r\nHost: b.example\r\n\r\n".encode()
    assert [url for _, url in http(get("a.example") + odd)] == ["a.example/", "b.example/"]
    lost = get("a.example", headers="Upgrade: x\r\n") + b"\x00\x01\x02"
    assert [url for _, url in http(lost + odd, len(lost))] == ["a.example/", "b.example/"]


def test_user_agent() -> None:
    (request,) = feed(HttpWatch(), cut(get("a", headers="user-agent:  curl/8.0 (x; y)\t\r\n")))
    assert request.user_agent == "curl/8.0 (x; y)"


def test_names_of_any_bytes_are_text() -> None:
    (request,) = feed(HttpWatch(), cut(b"GET /\xff HTTP/1.1\r\nHost: \xe4\xff.example\r\n\r\n"))
    assert request.name.endswith(".example")
    assert request.url.endswith("/ÿ")


# HTTP: many requests, however they come

MANY = (
    get("one.example")
    + get("two.example", "/2", method="POST", body=DECOY * 2)
    + get("three.example", "/3", "Transfer-Encoding: chunked\r\n", "POST")
    + chunked(DECOY, b"x" * 300, b"\r\n\r\n", DECOY, extension=b";ext=1")
    + get("four.example", "/4", "Content-Length: 0\r\n", "PUT")
    + b"\r\n"
    + get("five.example", "/5")
)
EXPECTED = [
    ("GET", "one.example/"),
    ("POST", "two.example/2"),
    ("POST", "three.example/3"),
    ("PUT", "four.example/4"),
    ("GET", "five.example/5"),
]


def test_pipelined_in_one_segment() -> None:
    assert http(MANY) == EXPECTED


@pytest.mark.parametrize("position", range(1, len(MANY)))
def test_split_at_every_byte(position: int) -> None:
    assert http(MANY, position) == EXPECTED


def test_byte_by_byte() -> None:
    assert http(MANY, *range(1, len(MANY))) == EXPECTED


@settings(max_examples=200, deadline=None)
@given(st.sets(st.integers(1, len(MANY) - 1), max_size=12))
def test_split_anywhere(positions: set[int]) -> None:
    assert http(MANY, *positions) == EXPECTED


def test_request_is_given_with_the_segment_that_completes_it() -> None:
    watch = HttpWatch()
    head = get("a.example")
    first, last = cut(head + get("b.example")[:-1], len(head) - 1)
    assert watch.feed(first) == []
    assert [request.name for request in watch.feed(last)] == ["a.example"]


@pytest.mark.parametrize("step", [1, 7, 100, 1400])
def test_bodies_are_no_requests(step: int) -> None:
    """Segments that start with what looks like a request, inside a body."""
    data = get("a.example", method="POST", body=DECOY * 20) + get("b.example")
    head = len(get("a.example", method="POST", headers="Content-Length: 880\r\n"))
    assert len(DECOY) * 20 == 880
    assert [url for _, url in http(data, *range(head, len(data), step))] == ["a.example/", "b.example/"]


def test_wraparound() -> None:
    for isn in range(2**32 - 60, 2**32, 7):
        packets = cut(MANY, 20, 50, 90, isn=isn)
        assert [(r.method, r.url) for r in feed(HttpWatch(), packets)] == EXPECTED


@pytest.mark.parametrize("trailers", [b"X-Sum: 1\r\n", b"X-Sum: 1\r\nHost: decoy.example\r\n"])
def test_trailers_are_no_request(trailers: bytes) -> None:
    """RFC 9112, 7.1.2."""
    data = get("a.example", "/", "Transfer-Encoding: chunked\r\n", "POST") + chunked(b"x", trailers=trailers)
    assert http(data + get("b.example")) == [("POST", "a.example/"), ("GET", "b.example/")]


@pytest.mark.parametrize("value", ["chunked", "Chunked", "gzip, chunked"])
def test_transfer_encoding_wins_over_content_length(value: str) -> None:
    """RFC 9112, 6.3."""
    headers = f"Content-Length: 3\r\nTransfer-Encoding: {value}\r\n"
    data = get("a.example", "/", headers, "POST") + chunked(DECOY) + get("b.example")
    assert [url for _, url in http(data)] == ["a.example/", "b.example/"]


@pytest.mark.parametrize("digits", [20, 100, 4300, 4301, 20000])
def test_absurd_content_length(digits: int) -> None:
    headers = f"Content-Length: {'9' * digits}\r\n"
    assert http(get("a.example", "/", headers, "POST") + DECOY) == [("POST", "a.example/")]


@pytest.mark.parametrize("line", [b"-3", b"+3", b"0x3", b"1_0", b"zz", b"", b" "])
def test_chunk_sizes_that_are_none(line: bytes) -> None:
    """Not 1*HEXDIG: framing is lost; the next segment that starts a request is found."""
    broken = get("a.example", "/", "Transfer-Encoding: chunked\r\n", "POST") + line + b"\r\nGET"
    requests = http(broken + get("b.example"), len(broken))
    assert [url for _, url in requests] == ["a.example/", "b.example/"]


# HTTP: retransmissions, and bytes that are missing


def test_retransmissions_are_not_judged_twice() -> None:
    a, b, c = cut(MANY, 60, 140)
    requests = feed(HttpWatch(), [a, a, b, a, b, b, c, a, c])
    assert [(r.method, r.url) for r in requests] == EXPECTED


def test_overlapping_retransmission_has_new_bytes() -> None:
    data = get("a.example") + get("b.example")
    packets = [segment(data[:50], ISN), segment(data[20:], ISN + 20), segment(data, ISN)]
    assert [r.name for r in feed(HttpWatch(), packets)] == ["a.example", "b.example"]


@pytest.mark.parametrize("ahead", [0, 1, 100, 2**31 - 1])
@pytest.mark.parametrize("flags", [ACK, ACK | FIN, SYN])
def test_a_segment_without_payload_hides_nothing(ahead: int, flags: int) -> None:
    first, second = get("a.example"), get("b.example")
    watch = HttpWatch()
    assert len(watch.feed(segment(first, ISN))) == 1
    assert watch.feed(segment(b"", ISN + len(first) + ahead, flags)) == []
    (request,) = watch.feed(segment(second, ISN + len(first)))
    assert request.name == "b.example"


@pytest.mark.parametrize("extra", [b"\r\n", b"\r\n\r\n"])
def test_empty_lines_behind_a_chunked_body(extra: bytes) -> None:
    """RFC 9112, 2.2: old clients send one more; a server skips it."""
    data = get("a.example", "/", "Transfer-Encoding: chunked\r\n", "POST") + chunked(b"x") + extra
    assert [url for _, url in http(data + get("b.example"))] == ["a.example/", "b.example/"]


def test_keep_alive_probe() -> None:
    """RFC 9293, 3.8.4: one byte before the next, or none."""
    first, second = get("a.example"), get("b.example")
    end = ISN + len(first)
    packets = [segment(first, ISN), segment(b"", end - 1), segment(b"\0", end - 1), segment(second, end)]
    assert [r.name for r in feed(HttpWatch(), packets)] == ["a.example", "b.example"]


def test_lost_bytes_inside_a_body_are_skipped() -> None:
    post = get("a.example", method="POST", body=DECOY * 10)
    data = post + get("b.example")
    parts = cut(data, 100, 200, 300)
    assert [r.name for r in feed(HttpWatch(), [parts[0], parts[1], parts[3]])] == ["a.example", "b.example"]


def test_lost_bytes_that_reach_into_a_head() -> None:
    """The next segment that starts a request is found again."""
    one, two, three = get("a.example"), get("b.example"), get("c.example")
    start = ISN + len(one)
    packets = [
        segment(one, ISN),
        segment(two[10:] + b"tail", start + 10),  # its start was lost
        segment(three + get("d.example"), start + len(two) + 4),
    ]
    assert [r.name for r in feed(HttpWatch(), packets)] == ["a.example", "c.example", "d.example"]


def test_bytes_not_captured_inside_a_body() -> None:
    """A capture with a snap length: the IP header says how much there was."""
    post = get("a.example", method="POST", body=b"x" * 1000)
    whole = ip4(6, segment(post, ISN).data[20:])
    short = decode(whole[:200], 0, len(whole))
    assert isinstance(short, Packet)
    following = segment(get("b.example"), ISN + len(post))
    assert [r.name for r in feed(HttpWatch(), [short, following])] == ["a.example", "b.example"]


def test_bytes_not_captured_of_a_head() -> None:
    whole = segment(get("a.example", headers="X: " + "y" * 500 + "\r\n"), ISN)
    short = decode(whole.data[:100], 0, len(whole.data))
    assert isinstance(short, Packet)
    following = segment(get("b.example"), ISN + whole.payload_length)
    assert [r.name for r in feed(HttpWatch(), [short, following])] == ["b.example"]


# HTTP: other protocols, and heads without an end


def test_connect_is_followed_by_something_else() -> None:
    data = get("a.example:443", "a.example:443", method="CONNECT")
    tunnelled = [
        segment(b"\x16\x03\x01" + random.Random(1).randbytes(900), ISN + len(data) + n * 903)
        for n in range(5)
    ]
    assert [r.name for r in feed(HttpWatch(), [*cut(data), *tunnelled])] == ["a.example"]


@pytest.mark.parametrize("headers", ["", "Connection: Upgrade\r\nUpgrade: x\r\n"])
def test_a_long_tunnel(headers: str) -> None:
    method = "GET" if headers else "CONNECT"
    data = get("a.example:443", "/" if headers else "a.example:443", headers, method)
    watch = HttpWatch()
    assert len(feed(watch, cut(data))) == 1
    at = ISN + len(data)
    for number in range(200):
        assert watch.feed(segment(b"\x16\x03\x01" + random.Random(number).randbytes(1400), at)) == []
        at += 1403


def test_refused_connect_is_followed_by_a_request() -> None:
    connect, following = get("", "a.example:443", method="CONNECT"), get("b.example")
    assert [url for _, url in http(connect + following, len(connect))] == ["a.example", "b.example/"]


UPGRADE = get("a.example", headers="Connection: Upgrade\r\nUpgrade: h2c\r\n")


def test_ignored_upgrade_is_followed_by_a_request() -> None:
    """RFC 9110, 7.8: a server may ignore Upgrade and go on in HTTP/1.1."""
    data = UPGRADE + get("b.example")
    assert [url for _, url in http(data, len(UPGRADE))] == ["a.example/", "b.example/"]


@pytest.mark.parametrize("cut_at", [0, 1, 5, 14, 20])
def test_request_behind_an_ignored_upgrade_is_judged_however_it_comes(cut_at: int) -> None:
    data = UPGRADE + get("b.example", "/longer/path")
    positions = (len(UPGRADE), len(UPGRADE) + cut_at) if cut_at else ()
    assert [url for _, url in http(data, *positions)] == ["a.example/", "b.example/longer/path"]


def test_websocket_frames_are_no_requests() -> None:
    frames = [random.Random(n).randbytes(500) for n in range(5)]
    data = UPGRADE + b"".join(frames)
    assert len(http(data, *range(len(UPGRADE), len(data), 500))) == 1


def test_http2_with_prior_knowledge() -> None:
    """RFC 9113, 3.4: the preface ends HTTP/1."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    watch = HttpWatch()
    packets = cut(preface + bytes(9), len(preface))
    assert len(feed(watch, packets)) <= 1
    assert feed(watch, [segment(bytes(1000), ISN + len(preface) + 9)]) == []


@pytest.mark.parametrize("size", [1000, MAX_HEAD - 200, MAX_HEAD + 1, MAX_HEAD * 3])
def test_huge_head(size: int) -> None:
    """A head that does not end is given as far as it came, once; and not kept."""
    data = get("a.example", headers="X: " + "y" * size + "\r\n")
    requests = feed(HttpWatch(), cut(data, *range(1400, len(data), 1400)))
    assert [r.name for r in requests] == ["a.example"]
    assert len(requests[0].head) <= MAX_HEAD + 1400


def test_endless_head_is_not_kept() -> None:
    watch = HttpWatch()
    found = []
    for number in range(200):
        found += watch.feed(segment(b"y" * 1400, ISN + number * 1400))
        assert len(watch._buffer) <= MAX_HEAD
    assert all(request.name == "" for request in found)
    later = watch.feed(segment(get("b.example"), ISN + 200 * 1400))
    assert [r.name for r in later] == ["b.example"]


def test_blanks_in_a_header_cost_no_more_than_other_bytes() -> None:
    def cost(filler: bytes) -> float:
        data = b"GET / HTTP/1.1\r\nHost: a.example\r\nX: a" + filler * 8000 + b"b\r\n\r\n"
        packets = cut(data, *range(1400, len(data), 1400))
        start = time.process_time()
        assert len(feed(HttpWatch(), packets)) == 1
        return time.process_time() - start

    assert min(cost(b" ") for _ in range(2)) < 100 * min(cost(b"y") for _ in range(3)) + 0.02


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.binary(max_size=40),
                st.sampled_from(
                    [get("a"), DECOY, chunked(b"x"), UPGRADE, b"Transfer-Encoding: chunked\r\n\r\n", b"\r\n",
                     b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", b"-1\r\n", b"0\r\n"]
                ),
            ),
            st.integers(-30, 30),
        ),
        max_size=12,
    )
)  # fmt: skip
def test_any_segments(steps: list[tuple[bytes, int]]) -> None:
    """Never an exception; nothing kept without bound."""
    for watch in (HttpWatch(), DnsWatch()):
        at = ISN
        for data, jump in steps:
            watch.feed(segment(data, at + jump))
            at += len(data) + jump
            assert len(watch._buffer) <= MAX_HEAD


# DNS: one message


@pytest.mark.parametrize(
    ("message", "found"),
    [
        (query("www.example.com"), ("www.example.com", 1)),
        (query("WWW.Example.COM", 28), ("www.example.com", 28)),
        (query("a", 65535), ("a", 65535)),
        (query("", 2), ("", 2)),  # the root
        (query(".".join(["x" * 63] * 3)), (".".join(["x" * 63] * 3), 1)),
        (query(".".join(["a"] * 127)), (".".join(["a"] * 127), 1)),  # 255 bytes, the longest
        (query(b"\x03a\x00b\x02\xff\x1f\x00"), ("a?b.??", 1)),
        (query(b"\x04\x7f\x80\n\r\x00"), ("????", 1)),
        (query("a.example", questions=2) + name("b.example") + b"\0\1\0\1", ("a.example", 1)),
        (query("a.example") + b"\0\0)\x10\0\0\0\0\0\0\0", ("a.example", 1)),  # EDNS
        # No queries
        (query("a.example", questions=0), None),
        (answer("a.example"), None),
        (query("a.example", flags=0x8000), None),
        (query(b"\xc0\x0c"), None),  # a compression pointer: to itself
        (query(b"\x01a\xc0\x0c"), None),
        (query(b"\xc0\x1a\x00"), None),
        (query(b"\x40aaa\x00"), None),  # label types 01 and 10 are reserved
        (query(b"\x80aaa\x00"), None),
        (b"", None),
        (bytes(12), None),
        (query("a.example")[:12], None),
        *[(query("a.example")[:size], None) for size in range(12, 12 + 11 + 1)],
        (query(b"\x3fabc"), None),  # a label that is longer than the message
    ],
)  # fmt: skip
def test_dns_query(message: bytes, found: tuple[str, int] | None) -> None:
    assert parse_dns_query(message) == found


@given(st.binary(max_size=300), st.binary(max_size=12))
def test_any_dns_message(body: bytes, head: bytes) -> None:
    for message in (body, b"\0\1\1\0\0\1\0\0\0\0\0\0" + body, head + body):
        found = parse_dns_query(message)
        if found:
            assert all(" " < char < "\x7f" for char in found[0])
            assert 0 <= found[1] <= 65535


# DNS over UDP


def datagram(payload: bytes) -> Packet:
    return decoded(ip4(17, udp(payload), CLIENT, SERVER))


def test_dns_over_udp_each_query_by_itself() -> None:
    watch = DnsWatch()
    for number, text in enumerate(("one.example", "two.example", "one.example")):
        (request,) = watch.feed(datagram(query(text, number + 1)))
        assert (request.name, request.query_type) == (text, number + 1)
        assert request.head == query(text, number + 1)
        assert watch.feed(datagram(answer(text))) == []


def test_dns_reply_code() -> None:
    watch = DnsWatch()
    assert watch.reply_code == 0
    watch.feed(datagram(answer("x.example", 3)))
    assert watch.reply_code == 3
    watch.feed(datagram(answer("x.example")))
    assert watch.reply_code == 0


@pytest.mark.parametrize("payload", [b"", b"\0", b"\0\0\x80", bytes(11), b"\xff" * 600])
def test_dns_over_udp_that_is_none(payload: bytes) -> None:
    assert DnsWatch().feed(datagram(payload)) == []


# DNS over TCP


def framed(*messages: bytes) -> bytes:
    """RFC 1035, 4.2.2: two bytes of length before each."""
    return b"".join(struct.pack("!H", len(message)) + message for message in messages)


QUERIES = framed(
    query("one.example"), query("two.example", 28), answer("no.example"), query("three.example", questions=0),
    b"", query("three.example", 16),
)  # fmt: skip
NAMES = [("one.example", 1), ("two.example", 28), ("three.example", 16)]


def dns(packets: Iterable[Packet]) -> list[tuple[str, int]]:
    return [(request.name, request.query_type) for request in feed(DnsWatch(), packets)]


def test_dns_over_tcp_several_in_a_segment() -> None:
    assert dns(cut(QUERIES)) == NAMES


@pytest.mark.parametrize("position", range(1, len(QUERIES)))
def test_dns_over_tcp_split_at_every_byte(position: int) -> None:
    assert dns(cut(QUERIES, position)) == NAMES


def test_dns_over_tcp_byte_by_byte() -> None:
    assert dns(cut(QUERIES, *range(1, len(QUERIES)))) == NAMES


def test_dns_over_tcp_retransmissions() -> None:
    a, b, c = cut(QUERIES, 20, 60)
    assert dns([a, a, b, a, b, c, c, a]) == NAMES


def test_dns_over_tcp_head_has_the_length_prefix() -> None:
    (request,) = feed(DnsWatch(), cut(framed(query("a.example")), 5))
    assert request.head == framed(query("a.example"))


@pytest.mark.parametrize("ahead", [0, 1, 100, 2**31 - 1])
def test_dns_over_tcp_a_segment_without_payload_hides_nothing(ahead: int) -> None:
    one, two = framed(query("one.example")), framed(query("two.example"))
    end = ISN + len(one)
    found = dns([segment(one, ISN), segment(b"", end + ahead), segment(two, end)])
    assert found == [("one.example", 1), ("two.example", 1)]


def test_dns_over_tcp_after_lost_bytes() -> None:
    """Borders are lost; the next segment that starts a message is understood."""
    one, two, three = (framed(query(f"{text}.example")) for text in ("one", "two", "three"))
    packets = [segment(one, ISN), segment(three, ISN + len(one) + len(two))]
    assert dns(packets) == [("one.example", 1), ("three.example", 1)]


def test_dns_over_tcp_keeps_at_most_one_message() -> None:
    watch = DnsWatch()
    for number in range(100):
        watch.feed(segment(b"\xff" * 1400, ISN + number * 1400))
        assert len(watch._buffer) <= 2 + 0xFFFF
