"""An issuer of bearer tokens: its keys as a JWKS, and tokens that are good or wrong in one way."""

import base64
import json
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm

NAME = "https://login.test/"
AUDIENCE = "limner"


class Issuer:
    """Signs tokens with ES256."""

    def __init__(self, kid: str = "first") -> None:
        self.kid = kid
        self._key = ec.generate_private_key(ec.SECP256R1())

    def jwks(self) -> str:
        """Return the public key."""
        public = json.loads(ECAlgorithm.to_jwk(self._key.public_key()))
        return json.dumps({"keys": [{**public, "kid": self.kid, "use": "sig", "alg": "ES256"}]})

    def write_access(self, folder: Path, rest: str = "") -> Path:
        """Write an access file that trusts this issuer, and its keys beside it; `rest` is the remaining YAML."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "jwks.json").write_text(self.jwks())
        path = folder / "access.yaml"
        path.write_text(f"tokens: {{issuer: '{NAME}', audience: {AUDIENCE}, jwks: jwks.json}}\n{rest}")
        return path

    def token(self, subject: str = "ada", *roles: str, drop: str = "", kid: str | None = None, **changes: Any) -> str:
        """Return a token of an hour; `changes` are claims in place of its own, `drop` is one that it lacks."""
        now = int(time.time())
        claims = {"iss": NAME, "aud": AUDIENCE, "sub": subject, "iat": now, "exp": now + 3600, "roles": list(roles)}
        claims = {name: value for name, value in {**claims, **changes}.items() if name != drop}
        return jwt.encode(claims, self._key, algorithm="ES256", headers={"kid": kid or self.kid})

    def unsigned(self, subject: str, *roles: str) -> str:
        """Return a token that says it needs no signature."""
        claims = jwt.decode(self.token(subject, *roles), options={"verify_signature": False})
        return jwt.encode(claims, "", algorithm="none", headers={"kid": self.kid})

    def confused(self, subject: str, *roles: str) -> str:
        """Return a token whose signature is an HMAC by the public key, which everybody has."""
        public = self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        claims = jwt.decode(self.token(subject, *roles), options={"verify_signature": False})
        header = {"alg": "HS256", "typ": "JWT", "kid": self.kid}
        parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
        message = b".".join(parts)
        signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(message, public)
        return b".".join([message, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


def wrong_tokens(issuer: Issuer) -> dict[str, str]:
    """Values of `authorization` that prove nothing, by what is wrong with each. All claim to be of an admin."""
    now, who = int(time.time()), ("root", "admin")
    stranger = Issuer(issuer.kid)
    return {
        "expired": f"Bearer {issuer.token(*who, exp=now - 60)}",
        "not valid yet": f"Bearer {issuer.token(*who, nbf=now + 600)}",
        "another audience": f"Bearer {issuer.token(*who, aud='somebody-else')}",
        "another issuer": f"Bearer {issuer.token(*who, iss='https://evil.test/')}",
        "without expiry": f"Bearer {issuer.token(*who, drop='exp')}",
        "without audience": f"Bearer {issuer.token(*who, drop='aud')}",
        "without subject": f"Bearer {issuer.token(*who, drop='sub')}",
        "wrong signature": f"Bearer {stranger.token(*who)}",
        "unknown key": f"Bearer {issuer.token(*who, kid='unknown')}",
        "alg none": f"Bearer {issuer.unsigned(*who)}",
        "public key as a secret": f"Bearer {issuer.confused(*who)}",
        "no JWT": "Bearer garbage",
        "no bearer": f"Basic {issuer.token(*who)}",
    }
