"""Secrets are told by the names of variables, and are taken out of all text before anybody sees it.

What is out of reach: a secret whose pieces stand in two texts (a line cut in two), one that is in no variable and no
URL, and one that is written in a way that `spellings` does not know, for example encrypted or in another alphabet.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from urllib.parse import parse_qsl, unquote, urlsplit

from launch.hosts.spellings import spellings
from shards.urls import HIDDEN, hidden_in

ENDINGS = ("PASSWORD", "PASSWORDS", "PASSWD", "PASSPHRASE", "TOKEN", "TOKENS", "SECRET", "SECRETS", "CREDENTIAL",
           "CREDENTIALS", "CREDS", "COOKIE", "COOKIES", "APIKEY", "SIGNATURE", "AUTHORIZATION")  # fmt: skip
WORDS = {"KEY", "KEYS", "AUTH", "SAS", "SIG", "PASS", "PWD", "PASSCODE", "PSK", "JWT", "PAT", "BEARER", "DSN", "CRED",
         "WEBHOOK", "WEBHOOKS"}  # fmt: skip
# a plane wave too: PW_CUTOFF
LAST_WORDS = {"PW"}
KEYS = re.compile(r"(API|ACCESS|ACCOUNT|PRIVATE|SECRET|SHARED|SIGNING|ENCRYPTION|SSH|AUTH|MASTER|DEPLOY|USER|PASS)KEY")
# not COMPASS, BYPASS, OUTPW
PASSES = re.compile(
    r"(ADMIN|DB|FTP|HTTP|IMAP|LDAP|MAIL|MONGO|MYSQL|PG|POSTGRES|PROXY|REDIS|ROOT|SMTP|SQL|SSH|USER)(PASS|PW|PWD)"
)
CONNECTION = re.compile(r"CONN(ECTION)?_?(STRING|STR|URL|URI)")
# where a secret lies, how long it is or how long it lasts is none
HARMLESS_LAST = {"FILE", "FILES", "PATH", "DIR", "FOLDER", "SOCK", "SOCKET", "HOME", "TIMEOUT", "TTL", "COUNT",
                 "LENGTH", "SIZE", "LIMIT", "EXPIRY", "EXPIRATION", "EXPIRES", "TYPE", "METHOD", "MODE", "PROVIDER",
                 "ENABLED", "DISABLED", "PARALLELISM", "HELPER", "PROGRAM", "COMMAND", "HOST", "PORT"}  # fmt: skip
HARMLESS = {"PUBLIC", "MAX", "MIN", "NUM", "LONGEST"}
# switches and modes, which would spoil all text if they were taken for secrets
PLAIN = {"true", "false", "none", "null", "auto", "default", "basic", "bearer", "digest", "enabled", "disabled",
         "always", "never", "https", "http", "required", "optional", "token", "password", "secret"}  # fmt: skip
SHORTEST = 4
# a secret shorter than this is hidden where it stands alone, not inside of words
ANYWHERE = 8
HOOK = re.compile(r"(?i)^hooks\.|/webhooks?/")
HEADER = re.compile(r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?(?:bearer|basic|token|digest)\s+)[^\s'\"]+")
PAIR = re.compile(r"([\w.-]+)\s*[=:]\s*(\"[^\"]*\"|'[^']*'|[^;&,\s]+)")


def is_secret(name: str) -> bool:
    """Say whether a variable's name promises a secret: ``HF_TOKEN``, ``apiKey``; not ``KEYBOARD``, ``MAX_TOKENS``."""
    if name in ("PWD", "OLDPWD"):
        return False
    words = [word.upper() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    if not words or words[-1] in HARMLESS_LAST or HARMLESS & set(words):
        return False
    if CONNECTION.search(name.upper()):
        return True
    return words[-1] in LAST_WORDS or any(
        word in WORDS or word.endswith(ENDINGS) or KEYS.fullmatch(word) or PASSES.fullmatch(word) for word in words
    )


class Redactor:
    """Takes secrets out of text: values of secret variables in every spelling, user and query of every URL.

    Parameters
    ----------
    environment : mapping of str to str
        Variables whose values are looked through: those of secret names, and secrets that stand inside of others
        (passwords and signatures in URLs, paths of webhooks, fields of connection strings and of JSON).
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        secrets = {secret for name, value in environment.items() for secret in _secrets(name, value)}
        forms = {form for secret in secrets for form in spellings(secret) if not _plain(form)}
        self._inside = sorted(form for form in forms if len(form) >= ANYWHERE)
        # most lines hold none of them, which is soon seen
        self._heads = {form[:ANYWHERE] for form in self._inside}
        alone = sorted((re.escape(form) for form in forms if len(form) < ANYWHERE), key=len, reverse=True)
        self._alone = re.compile(rf"(?<![^\W_])(?:{'|'.join(alone)})(?![^\W_])") if alone else None

    def __call__(self, text: str) -> str:
        """Return ``text`` with ``***`` in place of every secret."""
        return HEADER.sub(rf"\g<1>{HIDDEN}", hidden_in(self._without_values(text)))

    def _without_values(self, text: str) -> str:
        # all are found before any is hidden: two that overlap would leave a piece of the second one
        parts: list[str] = []
        end = 0
        for start, stop in sorted(self._spans(text)):
            if start > end or not parts:
                parts += [text[end:start], HIDDEN]
            end = max(end, stop)
        return "".join(parts) + text[end:]

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        parts = () if not self._heads else (text[at : at + ANYWHERE] for at in range(len(text) - ANYWHERE + 1))
        for form in () if self._heads.isdisjoint(parts) else self._inside:
            at = text.find(form)
            while at >= 0:
                yield at, at + len(form)
                at = text.find(form, at + 1)
        if self._alone is not None:
            for found in self._alone.finditer(text):
                yield found.span()


def redacted(environment: Mapping[str, str]) -> dict[str, str]:
    """Return variables as they may be shown: in order of their names, ``***`` for secrets and within values."""
    hide = Redactor(environment)
    return {name: HIDDEN if value and is_secret(name) else hide(value) for name, value in sorted(environment.items())}


def holds_secret(name: str, value: str) -> bool:
    """Say whether a variable is secret, or has something secret inside of its value."""
    return bool(value) and (is_secret(name) or Redactor({name: value})(value) != value)


def _plain(value: str) -> bool:
    return len(value) < SHORTEST or value.lower() in PLAIN


def _secrets(name: str, value: str) -> Iterator[str]:
    """Yield what is secret of one variable."""
    if is_secret(name) and not (value.startswith("/") and os.path.exists(value)):
        yield value.strip()
        yield value
    yield from _of_urls(value)
    yield from _of_pairs(value)
    if value.lstrip().startswith(("{", "[")):
        try:
            yield from _of_json(json.loads(value))
        except (ValueError, RecursionError):
            return


def _of_urls(value: str) -> Iterator[str]:
    for url in re.findall(r"[\w.+-]+://\S+", value):
        rest = url.partition("://")[2]
        # urllib ends the host at the first slash, SQLAlchemy takes the password up to the @
        for user in (rest.partition("/")[0].rpartition("@")[0], rest.partition("@")[0] if "@" in rest else ""):
            password = user.partition(":")[2]
            if password and not re.match(r"\d+/", password):
                yield from (password, unquote(password))
        try:
            parts = urlsplit(url)
        except ValueError:
            continue
        for key, secret in parse_qsl(parts.query):
            if is_secret(key):
                yield secret
        path = parts.path.strip("/'\"")
        if "/" in path and HOOK.search(f"{parts.netloc}/{path}"):
            # who knows the path may post there
            yield path
            yield from (piece for piece in path.split("/")[-1:] if len(piece) >= ANYWHERE)


def _of_pairs(value: str) -> Iterator[str]:
    """Yield the secret fields of connection strings and headers: ``AccountKey=...;``, ``password=...``."""
    for key, secret in PAIR.findall(value):
        if is_secret(key):
            yield secret.strip("'\"")
    for scheme in ("Bearer", "Basic", "bearer", "basic"):
        yield from re.findall(rf"\b{scheme}(?:\s+|%20)([^\s,;'\"]+)", value)


def _of_json(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, str) and is_secret(key):
                yield inner
            else:
                yield from _of_json(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _of_json(inner)
