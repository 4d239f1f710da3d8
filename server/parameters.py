"""Parameters of queries and forms, and the few kinds of value in them."""

from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import parse_qs

from vosfs.errors import InvalidArgument


def parameters(query: str) -> dict[str, str]:
    """Parameters of a query or a form: first values, names in lower case."""
    return dict(_first_values(query)) if len(query) <= QUERY_BYTES_KEPT else _first_of(all_parameters(query))


QUERY_BYTES_KEPT = 256
"""Queries up to this length are remembered as parsed: clients ask the same again and again."""


def _first_of(values: dict[str, list[str]]) -> dict[str, str]:
    return {name: found[0] for name, found in values.items()}


@lru_cache(1024)
def _first_values(query: str) -> dict[str, str]:
    return _first_of(all_parameters(query))


def all_parameters(query: str, most: int = 50) -> dict[str, list[str]]:
    """All values, names in lower case.  InvalidArgument over ``most`` of them."""
    try:
        pairs = parse_qs(query, keep_blank_values=True, max_num_fields=most)
    except ValueError:
        raise InvalidArgument("too many parameters") from None
    return {name.lower(): values for name, values in pairs.items()}


def is_count(text: str) -> bool:
    """Whether a text is a number of up to 18 digits."""
    return text.isascii() and text.isdigit() and len(text) <= 18


def instant_ns(text: str) -> int:
    """An ISO 8601 time; without a zone it is UTC."""
    try:
        moment = datetime.fromisoformat(text.strip())
        seconds = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        raise InvalidArgument(f"{text[:50]!r} is not an ISO 8601 time") from None
    # The year 2262 is the last that a database can hold, and nothing here is older than 1970.
    return max(0, min(seconds * 10**9 + moment.microsecond * 1000, 2**63 - 1))
