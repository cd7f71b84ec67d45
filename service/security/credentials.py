"""Takes a credential of either kind, an API key or a token, and says whose it is.

The files behind it may be replaced while the service runs. Where one is wrong then, what was read before stays in
force, with an error in the log, until it is right.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from service.errors import StartupError, Unauthorized
from service.security.api_keys import PREFIX, ApiKeys
from service.security.files import WatchedFiles
from service.security.identity import Identity
from service.security.tokens import TokenKey, TokenRules, TokenVerifier, read_keys, secret_key
from service.settings import Settings

# A token with many claims has 2 KB. What is longer is not worth its base64.
MAX_LENGTH: Final = 8192


class Credentials:
    """What clients may prove themselves with.

    Raises:
        StartupError: there is no key at all, or one is wrong.
    """

    def __init__(self, settings: Settings) -> None:
        self.required = settings.auth == "required"
        self._settings = settings
        self._rules = TokenRules(
            audience=settings.jwt_audience,
            issuer=settings.jwt_issuer,
            user_claim=settings.jwt_user_claim,
            require_expiry=settings.jwt_require_expiry,
            leeway=settings.jwt_leeway_seconds,
        )
        if not (settings.jwt_secret or settings.jwt_key_file or settings.api_keys_file):
            raise StartupError(
                f"AUTH={settings.auth} needs JWT_SECRET, JWT_KEY_FILE or API_KEYS_FILE to know users by"
            )
        # Apart: a key that was deleted is gone, whatever is wrong with the other file.
        self._token_files = WatchedFiles("keys of tokens", _those_set(settings.jwt_key_file))
        self._api_key_files = WatchedFiles("API keys", _those_set(settings.api_keys_file))
        self._read_token_keys()
        self._read_api_keys()

    def _read_token_keys(self) -> None:
        settings = self._settings
        keys: list[TokenKey] = []
        if settings.jwt_secret:
            keys.append(secret_key(settings.jwt_secret))
        if settings.jwt_key_file is not None:
            keys += read_keys(settings.jwt_key_file)
        self._tokens = TokenVerifier(keys, self._rules)

    def _read_api_keys(self) -> None:
        path = self._settings.api_keys_file
        self._api_keys = ApiKeys({}) if path is None else ApiKeys.read(path)

    def refresh(self) -> bool:
        """Read the files again that were replaced. Returns whether other credentials hold now."""
        tokens = self._token_files.refresh(self._read_token_keys)
        return self._api_key_files.refresh(self._read_api_keys) or tokens

    def verify(self, credential: str) -> Identity:
        """Whose credential this is.

        Raises:
            Unauthorized: nobody's, or no longer.
        """
        if len(credential) > MAX_LENGTH or not credential.isascii():
            raise Unauthorized("the credential is neither a token nor an API key")
        if not credential.startswith(PREFIX):
            return self._tokens.verify(credential)
        identity = self._api_keys.verify(credential)
        if identity.expires < time.time():
            raise Unauthorized("the API key has expired")
        return identity

    def holds(self, identity: Identity) -> bool:
        """Whether an identity that was verified before may still be used, as far as the files say."""
        return identity.key is None or self._api_keys.users.get(identity.key) == identity


def _those_set(path: Path | None) -> list[Path]:
    return [] if path is None else [path]
