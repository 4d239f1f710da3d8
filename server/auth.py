"""Who is asking: bearer tokens and passwords.

Passwords are kept as argon2id hashes, tokens as SHA-256 digests of 256 random bits.  A verified credential is
remembered for a few seconds, under a keyed digest, because argon2 costs 30 ms on purpose.
"""

import base64
import hashlib
import secrets
import time

import argon2
import trio

from server.access import NOBODY, Subject, groups_of
from vosfs.errors import InvalidArgument, NotAuthenticated
from vosfs.metadata.store import Store

REMEMBER_S = 30.0
"""How long a revoked token or password, or a group, may still work."""
REMEMBER_MAX = 10_000
TOKEN_LIFE_S = 30 * 24 * 3600
VERIFY_THREADS_MAX = 2
"""argon2 takes 19 MiB and 30 ms of a core: a flood of wrong passwords may use this many, no more."""
CREDENTIAL_BYTES_MAX = 4096


HASHER = argon2.PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
"""19 MiB and two passes, as OWASP recommends: the library's 64 MiB would be most of the daemon."""


def hash_password(password: str) -> str:
    """The argon2id hash to store."""
    return HASHER.hash(password)


async def issue_token(store: Store, user: str, life_s: int = TOKEN_LIFE_S) -> str:
    """A new bearer token for a user; only its digest is kept."""
    # A prefix that secret scanners can look for, and that is no option on a command line.
    token = "vosfs_" + secrets.token_urlsafe(32)
    await store.put_token(hashlib.sha256(token.encode()).digest(), user, time.time_ns() + life_s * 1_000_000_000)
    return token


class Authenticator:
    """Turns an Authorization header into a Subject."""

    def __init__(self, store: Store) -> None:
        # Dependencies
        self._store = store
        # Constants
        self._key = secrets.token_bytes(32)
        # Mutable state
        self._users: dict[str, tuple[Subject, float]] = {}
        self._known: dict[bytes, tuple[Subject, float]] = {}
        self._verifying = trio.CapacityLimiter(VERIFY_THREADS_MAX)
        self._unknown_hash = hash_password(secrets.token_urlsafe(16))

    async def subject(self, authorization: bytes) -> Subject:
        """Who this is, by the header's value; NOBODY without.  NotAuthenticated if it is wrong or expired."""
        if not authorization:
            return NOBODY
        digest = hashlib.blake2s(authorization, key=self._key).digest()
        known = self._known.get(digest)
        if known and known[1] > time.monotonic():
            return known[0]
        if len(authorization) > CREDENTIAL_BYTES_MAX:
            raise NotAuthenticated("credentials are too long")
        scheme, _, credential = authorization.decode("latin-1").partition(" ")
        if scheme.lower() == "bearer":
            user = await self._bearer(credential.strip())
        elif scheme.lower() == "basic":
            user = await self._basic(credential.strip())
        else:
            raise NotAuthenticated(f"unknown authorization scheme {scheme[:20]!r}")
        subject = await self.known_user(user)
        if len(self._known) >= REMEMBER_MAX:
            self._known.clear()
        self._known[digest] = (subject, time.monotonic() + REMEMBER_S)
        return subject

    async def certified(self, names: tuple[str, ...]) -> Subject:
        """The user whose certificate bears one of these names.  NotAuthenticated if nobody's does."""
        for name in names:
            user = await self._store.certificate(name)
            if user is not None:
                return await self.known_user(user)
        raise NotAuthenticated(f"the certificate {names[0][:200]!r} is nobody's here")

    async def known_user(self, user: str) -> Subject:
        """The subject a user is now, or was up to REMEMBER_S ago."""
        if not user:
            return NOBODY
        known = self._users.get(user)
        if known and known[1] > time.monotonic():
            return known[0]
        account = await self._store.account(user)
        if account is None:
            raise NotAuthenticated("the user no longer exists")
        if len(self._users) >= REMEMBER_MAX:
            self._users.clear()
        subject = Subject(user, groups_of(account[1]))
        self._users[user] = (subject, time.monotonic() + REMEMBER_S)
        return subject

    async def _bearer(self, token: str) -> str:
        # Looked up by digest: the comparison's time says nothing about the token.
        row = await self._store.token(hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest())
        if row is None or row[1] < time.time_ns():
            raise NotAuthenticated("the token is unknown or has expired")
        return row[0]

    async def _basic(self, credential: str) -> str:
        try:
            user, colon, password = base64.b64decode(credential, validate=True).decode().partition(":")
        except ValueError:
            raise NotAuthenticated("malformed Basic credentials") from None
        if not colon:
            raise NotAuthenticated("malformed Basic credentials")
        try:
            account = await self._store.account(check_user(user))
        except InvalidArgument:
            account = None
        # An unknown user costs the same as a wrong password.
        stored = account[0] if account and account[0] else self._unknown_hash

        def verify() -> bool:
            try:
                return HASHER.verify(stored, password)
            except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
                return False

        if not await trio.to_thread.run_sync(verify, limiter=self._verifying) or account is None:
            raise NotAuthenticated("wrong user name or password")
        return user


def check_user(name: str) -> str:
    """InvalidArgument unless ``name`` can be a user's."""
    if not name or len(name) > 64 or not all(c.isalnum() or c in "-_.@" for c in name):
        raise InvalidArgument(f"{name[:80]!r} is not a user name: letters, digits, '-', '_', '.' and '@', at most 64")
    return name
