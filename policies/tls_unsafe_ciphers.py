"""Tells of TLS connections with a broken cipher: one that encrypts nothing, or that can be read by now.

The server chooses the cipher, so this is seen with its answer. A cipher is unsafe if a word of its name is in
`unsafe`: TLS_RSA_WITH_RC4_128_SHA for RC4. NULL does not encrypt, ANON does not say who the server is, EXPORT
has keys of 40 bits, and the others are broken. If `forward_secrecy` is true, a cipher is also unsafe if who
steals the server's key can read what was recorded before: TLS_RSA_… without a Diffie-Hellman exchange.

Default score: 30, an alert. Set `score = 100` to block such connections.
"""

from functools import lru_cache

from nedge.scripts import Conf, Flow, status_types

title = "Unsafe TLS cipher"
category = "security"
l4_proto = "tcp"
three_way_handshake_ok = True
needs = "isTLS"
default_value = {
    "unsafe": ["NULL", "ANON", "EXPORT", "RC2", "RC4", "DES", "DES40", "3DES", "MD5"],
    "forward_secrecy": False,
    "score": 30,
    "client_score": 10,
    "server_score": 10,
}


unsafe: frozenset[str] = frozenset()
forward_secrecy = False


def setup(conf: Conf) -> bool:
    global unsafe, forward_secrecy
    unsafe, forward_secrecy = frozenset(conf["unsafe"]), conf["forward_secrecy"]
    return True


@lru_cache(maxsize=512)  # there are not many more
def is_unsafe(cipher: str) -> bool:
    words = cipher.upper().split("_")
    return not unsafe.isdisjoint(words) or (forward_secrecy and words[1:2] == ["RSA"])


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    cipher = flow.getFacts().tls_cipher  # empty: the server has not answered yet
    if cipher and is_unsafe(cipher):
        flow.triggerStatus(
            status_types.status_tls_unsafe_ciphers,
            {"cipher": cipher},
            conf["score"],
            conf["client_score"],
            conf["server_score"],
        )


protocolUpdated = protocolDetected
