"""JSON Web Tokens: the keys that they are checked with, and what must be in them.

An algorithm belongs to a key, never to a token: a shared secret checks HS256, an RSA key RS256, a P-256 key ES256.
So a token cannot choose how it is checked ("alg": "none", or a public key taken for a shared secret).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jwt
import orjson
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from service.errors import StartupError, Unauthorized
from service.security.files import refuse_endless
from service.security.identity import Identity

# RFC 7518, sections 3.2 and 3.3: an HS256 secret is as long as the hash, an RSA modulus has 2048 bits at least.
MIN_SECRET_BYTES: Final = 32
MIN_RSA_BITS: Final = 2048
# OpenID Connect Core 1.0, section 2: so long may a `sub` be. The database's column has room for as many.
MAX_USER_CHARACTERS: Final = 255

_PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A key, and the one algorithm that it is for. `id` is its `kid` in a key set; None takes tokens of any."""

    algorithm: str
    key: bytes | _PublicKey
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """What a token must say. `audience` and `issuer` are not looked at where they are None.

    `user_claim` names the claim that tells the user. `leeway` is how many seconds the issuer's clock may differ.
    """

    audience: str | None = None
    issuer: str | None = None
    user_claim: str = "sub"
    require_expiry: bool = True
    leeway: float = 10.0


class TokenVerifier:
    """Checks tokens.

    Args:
        keys: those of the issuers; several while one replaces another.
        rules: what a token must say.
    """

    def __init__(self, keys: list[TokenKey], rules: TokenRules) -> None:
        self._keys = keys
        self._rules = rules
        # An audience and an issuer that a token is compared with it must have anyway.
        required = [rules.user_claim] + (["exp"] if rules.require_expiry else [])
        # Without an audience of our own, a token may name any: it is then the issuer's keys alone that decide.
        self._options: Any = {"require": required, "verify_aud": rules.audience is not None}

    def verify(self, token: str) -> Identity:
        """Who the token says its bearer is.

        Raises:
            Unauthorized: it is not a token, not signed by a known key, expired, or not for this service.
        """
        try:
            header = jwt.get_unverified_header(token)
            algorithm, key_id = header.get("alg"), header.get("kid")
            for key in self._keys:
                if key.algorithm == algorithm and (key.id is None or key_id is None or key.id == key_id):
                    try:
                        return self._identity(self._decode(token, key))
                    except jwt.InvalidSignatureError:
                        continue  # another key of the set may have signed it
        except jwt.ExpiredSignatureError:
            raise Unauthorized("the token has expired") from None
        # The others: base64, numbers and texts that the library hands on to others.
        except (jwt.InvalidTokenError, ValueError, OverflowError) as exc:
            raise Unauthorized(f"the token is not accepted: {type(exc).__name__}") from None
        raise Unauthorized("the token is not accepted: no known key has signed it")

    def _decode(self, token: str, key: TokenKey) -> dict[str, Any]:
        return jwt.decode(
            token,
            key.key,
            algorithms=[key.algorithm],
            audience=self._rules.audience,
            issuer=self._rules.issuer,
            leeway=self._rules.leeway,
            options=self._options,
        )

    def _identity(self, claims: dict[str, Any]) -> Identity:
        user = claims[self._rules.user_claim]
        if isinstance(user, int) and not isinstance(user, bool):  # issuers that number their users
            user = str(user)
        if not isinstance(user, str) or not user:
            raise Unauthorized(f"the token's '{self._rules.user_claim}' does not name a user")
        user.encode()  # a lone surrogate could be neither told nor stored
        # The store cuts a name and leaves NUL out: two users would then see each other's predictions.
        if len(user) > MAX_USER_CHARACTERS or "\0" in user:
            raise Unauthorized(
                f"the token's '{self._rules.user_claim}' has more than {MAX_USER_CHARACTERS} characters, or NUL in it"
            )
        expires = claims.get("exp")
        return Identity(user) if expires is None else Identity(user, float(expires) + self._rules.leeway)


def secret_key(secret: str) -> TokenKey:
    """The key for HS256.

    Raises:
        StartupError: the secret could be guessed.
    """
    if len(secret.encode()) < MIN_SECRET_BYTES:
        raise StartupError(
            f"JWT_SECRET is shorter than {MIN_SECRET_BYTES} bytes; `openssl rand -hex 32` makes one that is not"
        )
    return TokenKey("HS256", secret.encode())


def read_keys(path: Path) -> list[TokenKey]:
    """The public keys in a PEM file or a JWKS file (RFC 7517).

    Raises:
        StartupError: it cannot be read, or holds no key for RS256 or ES256.
    """
    refuse_endless("JWT_KEY_FILE", path)
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise StartupError(f"JWT_KEY_FILE={path} cannot be read: {exc.strerror}") from None
    keys = _key_set(path, data) if data.lstrip().startswith(b"{") else [_pem_key(path, data)]
    if not keys:
        raise StartupError(f"JWT_KEY_FILE={path} holds no RSA or P-256 key for signatures")
    return keys


def _pem_key(path: Path, data: bytes) -> TokenKey:
    if b"PRIVATE KEY" in data:
        raise StartupError(
            f"JWT_KEY_FILE={path} holds a private key; the service needs the public one: openssl pkey -pubout"
        )
    try:
        return _token_key(path, load_pem_public_key(data), None)
    except (ValueError, UnsupportedAlgorithm):
        raise StartupError(f"JWT_KEY_FILE={path} is neither a PEM public key nor a JWKS file") from None


def _key_set(path: Path, data: bytes) -> list[TokenKey]:
    try:
        entries = orjson.loads(data)["keys"]
        # Sets hold keys for encryption and for other algorithms too.
        mine = [
            each
            for each in entries
            if (each["kty"] == "RSA" or (each["kty"] == "EC" and each.get("crv") == "P-256"))
            and each.get("use", "sig") == "sig"
            and each.get("alg") in (None, "RS256", "ES256")
        ]
        return [_token_key(path, jwt.PyJWK(each).key, each.get("kid")) for each in mine]
    except (ValueError, KeyError, TypeError, AttributeError, UnsupportedAlgorithm, jwt.PyJWTError) as exc:
        raise StartupError(f"JWT_KEY_FILE={path} is not a JWKS file: {exc}") from None


def _token_key(path: Path, key: object, key_id: str | None) -> TokenKey:
    match key:
        case rsa.RSAPublicKey() if key.key_size >= MIN_RSA_BITS:
            return TokenKey("RS256", key, key_id)
        case ec.EllipticCurvePublicKey() if isinstance(key.curve, ec.SECP256R1):
            return TokenKey("ES256", key, key_id)
    raise StartupError(
        f"JWT_KEY_FILE={path}: a key is public, and RSA of at least {MIN_RSA_BITS} bits or on the curve P-256"
    )
