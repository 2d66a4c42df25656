"""Where a history lives, as a URL that never shows its password."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from nas.errors import ConfigError

VARIABLE = "NAS_STORAGE"
"""The environment variable that may hold the URL, password and all."""
SCHEMES = {
    "sqlite": "sqlite:///FILE",
    "postgresql+psycopg": "postgresql+psycopg://USER:PASSWORD@HOST/DATABASE",
}
_SECRETS = ("password", "sslpassword")
MASK = "***"


class Address(str):
    """The URL of a database, as text with its password masked; `secret` alone has the whole of it.

    It is safe in messages, logs and files. One that was read from such a file cannot be connected to; see
    `find_address`. The path of an SQLite file is made absolute.

    secret: the whole URL. passwords: what must not be shown.

    Raises:
        ConfigError: when it is no URL of a database that is known; no part of it is shown then.
    """

    secret: str
    passwords: tuple[str, ...]

    def __new__(cls, url: str) -> Self:
        """Reads a URL."""
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        scheme = url.partition("://")[0]
        scheme = "postgresql+psycopg" if scheme == "postgresql" else scheme
        if scheme not in SCHEMES:
            is_one = "://" in url and scheme.replace("+", "").isalnum()
            got = f"no kind of database {scheme!r}" if is_one else "this is no URL"
            raise ConfigError(f"storage: {got}; known: {', '.join(SCHEMES.values())}")
        try:
            parsed = make_url(url).set(drivername=scheme)
        except (ArgumentError, ValueError):
            parsed = None
        # Raised out here, so that no part of the URL is chained to it.
        if parsed is None or "@" in f"{parsed.host}{parsed.database}":
            raise ConfigError(
                f"the storage URL cannot be read; wanted {SCHEMES[scheme]}, in which the password must not "
                "hold any of :/?#[]@% as they are: write @ as %40, and so on (see urllib.parse.quote)"
            )
        if scheme == "sqlite":
            if not parsed.database or parsed.database == ":memory:" or parsed.database.startswith("file:"):
                raise ConfigError(
                    "the storage sqlite:///FILE needs the path of a file, which keeps the history"
                )
            parsed = parsed.set(database=str(Path(parsed.database).absolute()))
        hidden = {name: MASK for name in _SECRETS if name in parsed.query}
        self = super().__new__(cls, parsed.update_query_dict(hidden).render_as_string(hide_password=True))
        self.secret = parsed.render_as_string(hide_password=False)
        given = [parsed.password, *(parsed.query.get(name) for name in _SECRETS)]
        self.passwords = tuple(str(p) for p in given if p)
        return self

    def __getnewargs__(self) -> tuple[str]:
        """What a pickled or copied address is made of again: the whole URL."""
        return (self.secret,)

    def hide(self, text: str) -> str:
        """A text of others, such as an error of a driver, without the passwords."""
        for password in self.passwords:
            text = text.replace(password, MASK)
        return text


def find_address(address: Address | None, *, recorded: bool = False) -> Address | None:
    """The address to connect to: the one given, whole, or that of `NAS_STORAGE`; None is the journal.

    recorded: by a run's folder, which may be anybody's: it must be that of the variable then.

    Raises:
        ConfigError: when a password is masked, or the address recorded, and the variable does not have it.
    """
    given = os.environ.get(VARIABLE)
    if address is None:
        return Address(given) if given else None
    if MASK not in address.passwords and not recorded:
        return address
    if not given:
        why = "as the run's folder says, which may be anybody's" if recorded else "whose password is masked"
        way = "" if recorded else "with --storage, or "
        raise ConfigError(
            f"storage is {address}, {why}; give the whole URL {way}in the environment variable {VARIABLE}"
        )
    found = Address(given)
    if found != address:
        raise ConfigError(f"{VARIABLE} is {found}, but storage is {address}; they must be the same database")
    return found
