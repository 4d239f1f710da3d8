"""The control plane of a space: what a service offers and where (VOSI capabilities), and its slow, rare requests.

The only module that knows asks.  asks 3.0.0 pins anyio 3, whose trio backend names ``trio.MultiError``, gone since
trio 0.25: without the alias below every request raises AttributeError.  ``tests/unit/test_session.py`` says when it
can go.  Redirects are never followed by asks (it turns a redirected PUT into GET, and sends credentials on to
strangers), and no bulk data passes here.
"""

import contextlib
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec
import trio

if not hasattr(trio, "MultiError"):
    trio.MultiError = BaseExceptionGroup  # type: ignore[attr-defined]

import anyio  # noqa: E402  (asks raises its errors)
import asks  # noqa: E402  (after the alias)
import asks.errors  # noqa: E402

from vosfs.errors import (  # noqa: E402
    InvalidArgument,
    NotAuthenticated,
    PermissionDenied,
    ProtocolError,
    ServiceUnavailable,
    TimedOut,
    TooLarge,
)
from vosfs.metadata import xml  # noqa: E402
from vosfs.metadata.messages import PROTOCOL  # noqa: E402

CONNECTIONS_MAX = 4
ANSWER_BYTES_MAX = 64 << 20

NODES = "ivo://ivoa.net/std/VOSpace/v2.0#nodes"
SYNC = "ivo://ivoa.net/std/VOSpace#sync-2.1"
TRANSFERS = "ivo://ivoa.net/std/VOSpace/v2.0#transfers"


class Reply(msgspec.Struct):
    """An answer of the control plane."""

    status: int
    headers: dict[str, str]
    body: bytes


class Session:
    """Requests to one service, with its credentials sent to its own origin only."""

    def __init__(self, url: str, token: str, deadline_s: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidArgument(f"{url!r} is not an http or https URL")
        if parts.username or parts.password:
            raise InvalidArgument("credentials do not belong in a URL: use --token-file")
        # Dependencies
        self._asks = asks.Session(connections=CONNECTIONS_MAX)
        # Constants
        self.url = url.rstrip("/")
        self.origin = f"{parts.scheme}://{parts.netloc}"
        self._deadline_s = deadline_s
        # Mutable state
        self._token = token
        self.on_lost: Callable[[], None] = lambda: None
        """Told when the service does not answer."""
        self._spoke = False
        """Whether it ever answered."""

    def use_token(self, token: str) -> None:
        """Be whoever this names from now on."""
        self._token = token

    async def close(self) -> None:
        """Close the idle connections."""
        await self._asks.close()

    async def request(
        self, method: str, url: str, body: bytes = b"", content_type: str = "", params: dict[str, str] | None = None
    ) -> Reply:
        """One request; redirects are answers.  ServiceUnavailable, TimedOut, ProtocolError."""
        headers = {"Connection": "keep-alive", "Accept-Encoding": "identity"}
        if content_type:
            headers["Content-Type"] = content_type
        if self._token and url.startswith(self.origin + "/"):
            headers["Authorization"] = f"Bearer {self._token}"
        options: dict[str, object] = {"headers": headers, "follow_redirects": False}
        if body:
            options["data"] = body
        if params:
            options["params"] = params
        try:
            with trio.fail_after(self._deadline_s):
                answer = await self._answered(method, url, options)
        except trio.TooSlowError as exc:
            self.on_lost()
            raise TimedOut(f"{self.origin}: no answer within {self._deadline_s:.0f} s") from exc
        except asks.errors.BadHttpResponse as exc:
            if not self._spoke:
                raise ProtocolError(f"{self.origin} does not speak HTTP: {exc}") from exc
            # It does, but not now: its end of the connection was closed before the answer or in the middle of it.
            self.on_lost()
            raise ServiceUnavailable(f"{self.origin}: the connection broke") from exc
        except (OSError, asks.errors.AsksException, anyio.BrokenResourceError) as exc:
            self.on_lost()
            cause = exc.__cause__ if isinstance(exc.__cause__, OSError) else exc
            reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
            raise ServiceUnavailable(f"{self.origin}: {reason}") from exc
        self._spoke = True
        if len(answer.content) > ANSWER_BYTES_MAX:
            raise TooLarge("answer is too long")
        return Reply(answer.status_code, {k.lower(): v for k, v in answer.headers.items()}, answer.content)

    async def _answered(self, method: str, url: str, options: dict[str, object]) -> Any:
        # A kept connection that the service has closed looks like one that speaks no HTTP, and each in the pool may be
        # such a one.  What is sent here may be sent again (RFC 9110, section 9.2.2; POST makes a job that nobody runs).
        for _ in range(CONNECTIONS_MAX):
            with contextlib.suppress(asks.errors.BadHttpResponse):
                return await self._asks.request(method, url, **options)
        return await self._asks.request(method, url, **options)

    async def capabilities(self) -> dict[str, str]:
        """accessURL by standardID.  ProtocolError if this is not a VOSpace service."""
        reply = await self.request("GET", f"{self.url}/capabilities")
        if reply.status == 401:
            raise NotAuthenticated(f"{self.url} refuses the token")
        if reply.status == 403:
            raise PermissionDenied(f"{self.url} refuses access")
        if reply.status != 200:
            raise ProtocolError(f"{self.url}/capabilities answers {reply.status}: is this the URL of a VOSpace?")
        try:
            root = xml.parse(reply.body)
        except InvalidArgument:
            raise ProtocolError(f"{self.url}/capabilities is not XML: is this the URL of a VOSpace?") from None
        found = {}
        for element in root.iter("{*}capability"):
            url = element.find("{*}interface/{*}accessURL")
            if url is not None and url.text:
                found[element.get("standardID", "")] = url.text.strip().rstrip("/")
        if NODES not in found and PROTOCOL not in found:
            raise ProtocolError(f"{self.url} is not a VOSpace 2 service: its capabilities have no {NODES}")
        return found
