"""Tokens that must not be believed, made without the server's help."""

import base64
import hashlib
import hmac
import json
import time

import pytest

from harness import jwt
from harness.client import Client

pytestmark = pytest.mark.usefixtures("others_go_on")

NOW = int(time.time())


@pytest.fixture
def forged(shared_server, users):
    """Makes tokens with the server's own secret, and these changes of header and claims."""
    secret = jwt.dev_secret(shared_server.data)

    def make(header=None, sign=None, claims=None, **changes):
        claims = claims or jwt.dev_claims(users[0], **changes)
        return jwt.signed(jwt.DEV_HEADER | (header or {}), claims, sign or jwt.hs256(secret))

    return make


def status_of(server, token):
    return server.request("GET", "/v1/conversations", token=token).status


def test_the_forger_can_make_an_honest_token(shared_server, forged):
    """Otherwise all the others would be refused for the wrong reason."""
    assert status_of(shared_server, forged()) == 200


@pytest.mark.parametrize(
    "changes",
    {
        "no expiry": {"exp": None},
        "expiry as text": {"exp": str(NOW + 3600)},
        "a huge expiry": {"exp": 1e300},
        "a large expiry": {"exp": 2**63},
        "a negative expiry": {"exp": -1},
        "expired": {"exp": NOW - 3600},
        "not yet": {"nbf": NOW + 3600},
        "another issuer": {"iss": "somebody"},
        "no issuer": {"iss": None},
        "another audience": {"aud": "another"},
        "no audience": {"aud": None},
        "no subject": {"sub": None},
        "a name for a subject": {"sub": "alice"},
        "a number for a subject": {"sub": 5},
        "a signed subject": {"sub": "-5"},
        "a subject with leading zeros": {"sub": "007"},
        "a device beyond numbers": {"device": "x"},
    }.items(),
    ids=lambda item: item[0],
)
def test_wrong_claims(shared_server, refused, forged, changes):
    with refused("auth_tokens_refused"):
        assert status_of(shared_server, forged(**changes[1])) == 401


@pytest.mark.parametrize(
    "header",
    {
        "no algorithm": {"alg": "none"},
        "no algorithm, shouted": {"alg": "NONE"},
        "HS384": {"alg": "HS384"},
        "unknown algorithm": {"alg": "XS256"},
        "a public-key algorithm": {"alg": "RS256"},
        "a path for a key": {"kid": "../../dev-key"},
        "an absolute path for a key": {"kid": "/dev/null"},
        "SQL for a key": {"kid": "x' UNION SELECT 'secret' --"},
        "a key that is a number": {"kid": 1},
        "an unknown extension": {"crit": ["exp"], "exp": 1},
    }.items(),
    ids=lambda item: item[0],
)
def test_wrong_headers(shared_server, refused, forged, header):
    with refused("auth_tokens_refused"):
        assert status_of(shared_server, forged(header[1])) == 401


def test_no_signature(shared_server, refused, forged):
    with refused("auth_tokens_refused"):
        for header in ({}, {"alg": "none"}):
            assert status_of(shared_server, forged(header, sign=jwt.unsigned)) == 401


def test_keys_that_the_token_brings_along_are_not_looked_at(shared_server, forged):
    """Signed with a secret of the forger's, which the header offers."""
    own = b"x" * 32
    key = {"kty": "oct", "k": base64.urlsafe_b64encode(own).rstrip(b"=").decode()}
    for header in ({"jwk": key}, {"jku": "http://127.0.0.1:1/keys"}, {"x5u": "http://127.0.0.1:1/cert"}):
        assert status_of(shared_server, forged(header, sign=jwt.hs256(own))) == 401
        assert status_of(shared_server, forged(header)) == 200, "and with the right secret they are just ignored"


def test_an_altered_token(shared_server, refused, forged):
    header, claims, signature = forged().split(".")
    for token in (
        f"{header}.{claims}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}",
        f"{header}.{jwt.base64url(json.dumps(jwt.dev_claims(1)).encode())}.{signature}",
        f"{header}.{claims}",
        f"{header}.{claims}.",
        f"{header}.{claims}.{signature}.{signature}",
        "..",
        "x",
    ):
        with refused("auth_tokens_refused"):
            assert status_of(shared_server, token) == 401
    assert status_of(shared_server, "\xff") in (400, 401)


def test_a_token_of_64_kib(shared_server, refused, forged):
    # As large as a request's head may be; over REST the head itself would be refused before.
    with refused("auth_tokens_refused"), Client(shared_server, 1, token="x", open=False) as mallory:
        mallory.say({"type": "open", "device": "1", "token": forged(padding="x" * 64_000)})
        assert mallory.expect("error")["code"] == "unauthorized"
        assert mallory.closed() == 4103
    assert status_of(shared_server, forged(padding="x" * 64_000)) in (401, 431)


def test_other_schemes_and_no_token_at_all(shared_server, refused, forged):
    for headers in ({}, {"Authorization": forged()}, {"Authorization": f"Basic {forged()}"}, {"Authorization": "Bearer"}):
        with refused("auth_missing"):
            assert shared_server.request("GET", "/v1/conversations", headers=headers).status == 401


def test_a_token_in_the_url_works_only_when_allowed(shared_server, make_server, users):
    from harness.raw import Raw

    for server, works in ((shared_server, False), (make_server(settings={"auth.token_in_url": "true"}).start(), True)):
        with Raw(server) as raw:
            from harness.raw import frame, upgrade

            raw.send(upgrade(f"/ws?token={server.token(users[0])}"))
            status, _, _ = raw.response()
            if not works and status != 101:
                assert status in (400, 401)
                continue
            raw.send(frame(b'{"type":"open","device":"1"}'))
            raw.frame()  # hello
            assert (b'"opened"' in raw.frame()[1]) is works


def test_a_bad_token_on_the_upgrade(shared_server, refused, forged):
    from harness.raw import Raw, upgrade

    with refused("auth_tokens_refused"), Raw(shared_server) as raw:
        raw.send(upgrade(Authorization=f"Bearer {forged(exp=NOW - 3600)}"))
        assert raw.response()[0] == 401


def test_a_bad_token_in_open(shared_server, refused, forged):
    for token in (forged(exp=NOW - 3600), forged({"alg": "none"}, sign=jwt.unsigned), ""):
        with refused("auth_tokens_refused"), Client(shared_server, 1, token="x", open=False) as mallory:
            mallory.say({"type": "open", "device": "1", "token": token})
            assert mallory.expect("error")["code"] == "unauthorized"
            assert mallory.closed() == 4103


def test_no_credentials_at_all(shared_server, refused):
    with refused("auth_missing"), Client(shared_server, 1, token="x", open=False) as mallory:
        mallory.say({"type": "open", "device": "1"})
        assert mallory.expect("error")["code"] == "unauthorized"
        assert mallory.closed() == 4103


def test_a_token_for_another_device(shared_server, forged, users):
    with Client(shared_server, users[0], token="x", open=False) as alice:
        alice.say({"type": "open", "device": "2", "token": forged()})
        assert alice.expect("error")["code"] in ("unauthorized", "bad_request")


def test_a_token_that_expires_ends_the_session(make_server, users):
    server = make_server(settings={"auth.leeway_s": 0}).start()
    with Client(server, users[0], token=server.token(users[0], ttl="2s")) as alice:
        assert alice.send(users[1], "while it lasts")["seq"] == 1
        assert alice.closed(60) == 4101


def test_a_new_token_in_time_keeps_the_session(make_server, users):
    server = make_server(settings={"auth.leeway_s": 0}).start()
    first = server.token(users[0], ttl="3s")
    with Client(server, users[0], token=first) as alice:
        alice.say({"type": "auth", "token": server.token(users[0])})
        alice.expect("auth")
        end = time.monotonic() + 5
        while time.monotonic() < end:
            time.sleep(0.5)
            alice.flush()
        assert alice.send(users[1], "beyond the first token")["seq"] == 1


def test_hs256_with_the_public_key_as_the_secret(make_server, directory, users):
    """The classic: the key is public, and a server that lets the token choose takes it for a secret."""
    key = jwt.RsaKey(directory)
    config = f"{directory}/ringway.toml"
    with open(config, "w") as file:
        file.write(
            f'[storage]\ndata = "{directory}/data"\n\n[auth]\nissuer = "https://issuer.example"\naudience = "chat"\n\n'
            f'[[auth.keys]]\nkid = "one"\nalgorithm = "RS256"\nfile = "{key.public}"\n'
        )
    server = make_server(config=config).start()
    claims = jwt.dev_claims(users[0], iss="https://issuer.example", aud="chat")
    honest = jwt.signed({"alg": "RS256", "kid": "one"}, claims, key.sign)
    assert status_of(server, honest) == 200

    def with_public_key(message):
        return hmac.new(key.public.read_bytes(), message, hashlib.sha256).digest()

    assert status_of(server, jwt.signed({"alg": "HS256", "kid": "one"}, claims, with_public_key)) == 401
    assert status_of(server, jwt.signed({"alg": "none", "kid": "one"}, claims, jwt.unsigned)) == 401
    assert status_of(server, jwt.signed({"alg": "RS256", "kid": "two"}, claims, key.sign)) == 401


def test_tokens_are_not_logged(shared_server, forged, users):
    token = forged()
    status_of(shared_server, token)
    status_of(shared_server, token[:-3] + "AAA")
    output = shared_server.output()
    for secret in (token, token.split(".")[2], jwt.base64url(jwt.dev_secret(shared_server.data))):
        assert secret not in output
