"""Takes secrets out of everything that is shown, logged or written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

HIDDEN = "***"

# names that end so: `access_token`, but not `tokenizer` or `max_tokens`
_SECRET_NAME = (
    r"[\w-]*(?:password|passwd|passphrase|secret|token|credentials?"
    r"|api[_-]?key|access[_-]?key|secret[_-]?key|pwd)"
)
# A password may itself hold '@' or ':', so everything up to the last '@' belongs to the login; one
# for a database may hold '/' too, which in a web address begins the path.
_LOGIN = re.compile(
    r"(?P<scheme>https?://)(?P<login>[^\s/?#'\"<>]+)@"
    r"|(?P<other_scheme>(?!https?:)\b[a-z][a-z0-9+.-]*://)(?P<other_login>[^\s:/'\"<>]+(?::[^\s'\"<>]*)?)@",
    re.IGNORECASE,
)
_QUERY = re.compile(
    rf"(?P<name>[?&;](?:{_SECRET_NAME}|sig|signature)=)[^&;#\s'\"<>]+", re.IGNORECASE
)
_KEY = re.compile(_SECRET_NAME, re.IGNORECASE)
# `key: value` and `key=value` in a word of a command line, the value up to the end of its mapping
_ASSIGNED = re.compile(
    rf"(?P<name>{_SECRET_NAME}['\"]?\s*[=:]\s*)(?:'[^']*'|\"[^\"]*\"|[^,{{}}\[\]]+)",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """`text` with passwords and tokens in URLs as `***`; the user's name stays: `user:***@host`."""
    return _QUERY.sub(rf"\g<name>{HIDDEN}", _LOGIN.sub(_hide_login, text))


def redact_word(word: str) -> str:
    """A word of a command line, also with what it assigns to a secret: `data.token=***`."""
    key, assigned, _ = word.partition("=")
    if assigned and _KEY.fullmatch(key.rpartition(".")[2].lstrip("+~")):
        return f"{key}={HIDDEN}"
    return redact(_ASSIGNED.sub(rf"\g<name>{HIDDEN}", word))


def redact_words(words: Iterable[str]) -> list[str]:
    """The words of a command line; see `redact_word`."""
    return [redact_word(word) for word in words]


def redact_tree(tree: Any) -> Any:
    """A redacted copy of nested mappings, lists and tuples.

    Any string under a key named like a secret is hidden. Values that are no strings or containers
    are handed through as they are.
    """
    if isinstance(tree, str):
        return redact(tree)
    if isinstance(tree, Mapping):
        return {key: _redact_entry(key, value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)([redact_tree(item) for item in tree])
    return tree


def _redact_entry(key: object, value: Any) -> Any:
    if isinstance(value, str) and value and isinstance(key, str) and _KEY.fullmatch(key):
        return HIDDEN
    return redact_tree(value)


def _hide_login(match: re.Match[str]) -> str:
    scheme = match["scheme"] or match["other_scheme"]
    user, colon, _ = (match["login"] or match["other_login"]).partition(":")
    if colon:
        return f"{scheme}{user}:{HIDDEN}@"
    # a login without a colon is a bare token on most services (`https://TOKEN@host`)
    return f"{scheme}{HIDDEN}@"
