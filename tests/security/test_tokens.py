"""Tokens: which are accepted, and which are not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from pathlib import Path
from typing import Any

import jwt
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from websockets.datastructures import Headers

from service.errors import StartupError, Unauthorized
from service.security.credentials import MAX_LENGTH, Credentials
from service.security.gate import bearer
from service.security.tokens import TokenRules, TokenVerifier, read_keys, secret_key
from service.settings import Settings

SECRET = "s" * 32
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    """The public key of a pair."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def claims(**changes: Any) -> dict[str, Any]:
    """Those of a token that is valid for a minute."""
    return {"sub": "anna", "exp": time.time() + 60} | changes


def verifier(**rules: Any) -> TokenVerifier:
    """One that knows the secret."""
    return TokenVerifier([secret_key(SECRET)], TokenRules(**rules))


def configured(**settings: Any) -> Credentials:
    """Those of a service that knows the secret."""
    return Credentials(Settings(auth="required", jwt_secret=SECRET, **settings))


def test_a_token_signed_with_the_secret_names_its_user_until_it_expires() -> None:
    """The identity ends when the token does, leeway included."""
    body = claims()
    identity = verifier(leeway=5.0).verify(jwt.encode(body, SECRET, "HS256"))
    assert identity.user == "anna"
    assert identity.expires == pytest.approx(body["exp"] + 5, abs=1)


@pytest.mark.parametrize(("key", "algorithm"), [(RSA, "RS256"), (EC, "ES256")])
def test_a_public_key_checks_tokens_of_its_own_kind(
    tmp_path: Path, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, algorithm: str
) -> None:
    """From a PEM file, RS256 for RSA and ES256 for P-256, whatever id the token names; no other key's signature."""
    path = tmp_path / "public.pem"
    path.write_bytes(pem(key))
    known = TokenVerifier(read_keys(path), TokenRules())
    for headers in (None, {"kid": "whatever"}):
        assert known.verify(jwt.encode(claims(), key, algorithm, headers=headers)).user == "anna"
    other = (
        rsa.generate_private_key(65537, 2048)
        if algorithm == "RS256"
        else ec.generate_private_key(ec.SECP256R1())
    )
    with pytest.raises(Unauthorized):
        known.verify(jwt.encode(claims(), other, algorithm))


def test_a_secret_and_public_keys_may_be_used_together(tmp_path: Path) -> None:
    """While one kind takes the place of the other, tokens of both are accepted."""
    path = tmp_path / "public.pem"
    path.write_bytes(pem(EC))
    credentials = configured(jwt_key_file=path)
    for token in (jwt.encode(claims(), SECRET, "HS256"), jwt.encode(claims(), EC, "ES256")):
        assert credentials.verify(token).user == "anna"


def test_a_key_set_chooses_by_key_id(tmp_path: Path) -> None:
    """Of a JWKS file's keys the one that the token names is used; what is for something else is left out."""
    rsa_jwk = jwt.algorithms.RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True) | {
        "kid": "r",
        "alg": "RS256",
    }
    ec_jwk = jwt.algorithms.ECAlgorithm.to_jwk(EC.public_key(), as_dict=True) | {
        "kid": "e",
        "alg": "ES256",
        "use": "sig",
    }
    path = tmp_path / "jwks.json"
    p384 = ec.generate_private_key(ec.SECP384R1()).public_key()
    others = [
        rsa_jwk | {"kid": "x", "use": "enc"},
        rsa_jwk | {"kid": "y", "alg": "RS512"},
        jwt.algorithms.ECAlgorithm.to_jwk(p384, as_dict=True),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "o"},
    ]
    path.write_bytes(b"\n" + orjson.dumps({"keys": [rsa_jwk, ec_jwk, *others]}))
    known = TokenVerifier(read_keys(path), TokenRules())
    for key, algorithm, key_id in (
        (RSA, "RS256", "r"),
        (EC, "ES256", "e"),
        (RSA, "RS256", None),
        (EC, "ES256", None),
    ):
        headers = None if key_id is None else {"kid": key_id}
        assert known.verify(jwt.encode(claims(), key, algorithm, headers=headers)).user == "anna"
    for key_id in ("x", "y"):
        with pytest.raises(Unauthorized):
            known.verify(jwt.encode(claims(), RSA, "RS256", headers={"kid": key_id}))


def test_while_one_key_replaces_another_both_are_accepted() -> None:
    """Of several keys of a kind, which have no id, each is tried."""
    known = TokenVerifier([secret_key("o" * 32), secret_key(SECRET)], TokenRules())
    for secret in ("o" * 32, SECRET):
        assert known.verify(jwt.encode(claims(), secret, "HS256")).user == "anna"


def test_a_token_cannot_choose_its_algorithm(tmp_path: Path) -> None:
    """Neither "none", nor a public key taken for a shared secret, nor HS512 with the secret of HS256."""
    path = tmp_path / "public.pem"
    path.write_bytes(pem(RSA))
    known = TokenVerifier([secret_key(SECRET), *read_keys(path)], TokenRules())
    header = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    body = base64.urlsafe_b64encode(orjson.dumps(claims())).rstrip(b"=").decode()
    # PyJWT refuses to sign with a public key; an attacker does not ask it.
    confused_header = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=").decode()
    mac = hmac.new(pem(RSA), f"{confused_header}.{body}".encode(), hashlib.sha256).digest()
    confused = f"{confused_header}.{body}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    for forged in (f"{header}.{body}.", confused, jwt.encode(claims(), "t" * 64, "HS512")):
        with pytest.raises(Unauthorized):
            known.verify(forged)


@pytest.mark.parametrize(
    ("rules", "body"),
    [
        ({}, {"exp": time.time() - 60}),
        ({}, {"exp": None}),
        ({}, {"nbf": time.time() + 86_400}),
        ({}, {"sub": None}),
        ({}, {"sub": ""}),
        ({}, {"exp": "soon"}),
        ({}, {"exp": 10**400}),
        ({}, {"sub": "\ud800"}),
        ({}, {"sub": "a" * 256}),
        ({}, {"sub": "an\0na"}),
        ({"jwt_audience": "visionai"}, {"aud": "other"}),
        ({"jwt_audience": "visionai"}, {}),
        ({"jwt_issuer": "https://me"}, {"iss": "https://you"}),
        ({"jwt_issuer": "https://me"}, {}),
        ({"jwt_user_claim": "email"}, {}),
        ({"jwt_user_claim": "admin"}, {"admin": True}),
        ({"jwt_user_claim": "groups"}, {"groups": ["anna"]}),
    ],
)
def test_a_token_that_does_not_say_what_it_must_is_not_accepted(
    rules: dict[str, Any], body: dict[str, Any]
) -> None:
    """Expired, without an expiry, not valid yet, without a user or with one whom the store would not tell from
    another, for another audience, by another issuer."""
    merged = {name: value for name, value in claims(**body).items() if value is not None}
    with pytest.raises(Unauthorized):
        configured(**rules).verify(jwt.encode(merged, SECRET, "HS256"))


@pytest.mark.parametrize(
    ("rules", "body", "user"),
    [
        ({"jwt_audience": "visionai"}, {"aud": ["other", "visionai"]}, "anna"),
        ({"jwt_issuer": "https://me"}, {"iss": "https://me"}, "anna"),
        ({"jwt_user_claim": "email"}, {"email": "a@b.c"}, "a@b.c"),
        ({"jwt_user_claim": "user_id"}, {"user_id": 7}, "7"),
        ({}, {"sub": "á" * 255}, "á" * 255),
        ({}, {"aud": "anything"}, "anna"),
        ({"jwt_leeway_seconds": 86_400.0}, {"exp": time.time() - 60}, "anna"),
        ({"jwt_require_expiry": False}, {"exp": None}, "anna"),
    ],
)
def test_the_rules_are_settings(rules: dict[str, Any], body: dict[str, Any], user: str) -> None:
    """Audience, issuer, the user's claim, leeway, and tokens without an expiry."""
    merged = {name: value for name, value in claims(**body).items() if value is not None}
    assert configured(**rules).verify(jwt.encode(merged, SECRET, "HS256")).user == user


@pytest.mark.parametrize(
    "token", ["", ".", "..", "a.b.c", "x" * 5000, "eyJhbGciOiJIUzI1NiJ9.e30.", "é.é", "[].[].[]"]
)
def test_what_is_no_token_is_not_accepted(token: str) -> None:
    """Whatever it is, the error is the same."""
    with pytest.raises(Unauthorized):
        verifier().verify(token)


def test_a_credential_that_is_too_long_reaches_no_parser() -> None:
    """Of tokens that are right otherwise, those up to the bound are accepted, and none beyond it."""
    credentials = configured()
    body = {"sub": "anna", "exp": int(time.time()) + 60}
    lengths = set()
    for extra in range(6030, 6060):
        signed = jwt.encode(body | {"extra": "x" * extra}, SECRET, "HS256")
        lengths.add(len(signed))
        if len(signed) <= MAX_LENGTH:
            assert credentials.verify(signed).user == "anna"
        else:
            with pytest.raises(Unauthorized, match="neither a token nor an API key"):
                credentials.verify(signed)
    assert {MAX_LENGTH, MAX_LENGTH + 1} <= lengths


def test_keys_that_are_not_safe_are_told_at_the_start(tmp_path: Path) -> None:
    """A short secret, a private key, a short RSA key, another curve, a file that is no key."""
    with pytest.raises(StartupError, match="openssl rand"):
        secret_key("s" * 31)
    private = RSA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = tmp_path / "key"
    path.write_bytes(private)
    with pytest.raises(StartupError, match="openssl pkey -pubout"):
        read_keys(path)
    for content in (
        pem(rsa.generate_private_key(65537, 1024)),
        pem(ec.generate_private_key(ec.SECP384R1())),
        b"no key",
        b"{}",
        b'{"keys": []}',
        b'{"keys": [{"kty": "RSA"}]}',
        b'{"keys": [7]}',
        b'{"keys": [',  # read while it is written
        # An algorithm and a curve that nobody knows.
        b"-----BEGIN PUBLIC KEY-----\nMA8wBQYDKgMEAwYABAAAAAA=\n-----END PUBLIC KEY-----\n",
        b"-----BEGIN PUBLIC KEY-----\nMBgwDgYHKoZIzj0CAQYDKgMEAwYABAAAAAA=\n-----END PUBLIC KEY-----\n",
    ):
        path.write_bytes(content)
        with pytest.raises(StartupError, match="JWT_KEY_FILE"):
            read_keys(path)
    with pytest.raises(StartupError, match="JWT_KEY_FILE"):
        read_keys(tmp_path / "missing")


def test_a_header_has_one_credential_in_whatever_case_its_scheme_is() -> None:
    """Schemes are words without case (RFC 9110, section 11.1); of several headers none is believed."""
    assert bearer(Headers()) is None
    for value in ("Bearer a.b.c", "bearer a.b.c", "BEARER  a.b.c "):
        assert bearer(Headers([("Authorization", value)])) == "a.b.c"
    with pytest.raises(Unauthorized, match="several"):
        bearer(Headers([("Authorization", "Bearer a.b.c")] * 2))
