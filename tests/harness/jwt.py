"""Tokens, honest and forged, made without the server's help: HS256 by hand, public keys by `openssl`."""

import base64
import hashlib
import hmac
import json
import subprocess
import time
from pathlib import Path


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(header, claims, sign):
    """A token of this header and these claims (or this text), however odd; `sign` turns bytes into a signature."""
    parts = [part if isinstance(part, str) else json.dumps(part) for part in (header, claims)]
    message = ".".join(base64url(part.encode()) for part in parts)
    return f"{message}.{base64url(sign(message.encode()))}"


def hs256(secret):
    return lambda message: hmac.new(secret, message, hashlib.sha256).digest()


def unsigned(_):
    return b""


class RsaKey:
    """A key pair of an issuer of one's own, in a directory of the test's."""

    def __init__(self, directory):
        self.private = Path(directory) / "issuer-key.pem"
        self.public = Path(directory) / "issuer.pem"
        openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", self.private)
        openssl("pkey", "-in", self.private, "-pubout", "-out", self.public)

    def sign(self, message):
        return openssl("dgst", "-sha256", "-sign", self.private, input=message)


def openssl(*arguments, input=None):
    done = subprocess.run(["openssl", *map(str, arguments)], input=input, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def dev_secret(data):
    """The secret with which `ringway dev` signs, from its data directory."""
    text = (Path(data) / "dev-key").read_text().strip()
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def dev_claims(user, device="1", **changes):
    """What a token of `ringway dev` claims; a change to `None` leaves a claim out."""
    claims = {
        "sub": str(user),
        "iss": "ringway-dev",
        "aud": "ringway",
        "iat": int(time.time()),
        "exp": int(time.time()) + 3600,
        "device": device,
    } | changes
    return {name: value for name, value in claims.items() if value is not None}


DEV_HEADER = {"alg": "HS256", "typ": "JWT", "kid": "dev"}
