"""Where keys come from: new ones, and those that are not written into the URL."""

from __future__ import annotations

from collections.abc import Mapping

from nodepass.errors import ConfigError

ENVIRONMENT = "NODEPASS_KEY"

# 192 bits: far beyond guessing, whatever the attacker has recorded, and still one short line.
_KEY_BYTES = 24

# A key file holds one line. Anything this long is another file, given by mistake.
_MOST_BYTES = 4096


def new_key() -> str:
    """Return a new random key, 32 characters that need no quoting in a URL or a shell."""
    import secrets  # not at the top: it loads an OpenSSL of its own, and few runs make keys

    key = secrets.token_urlsafe(_KEY_BYTES)
    # A leading "-" would read as an option wherever the key is an argument of its own.
    return key if not key.startswith("-") else new_key()


def outside_key(key_file: str | None, environ: Mapping[str, str]) -> str | None:
    """Return the key for URLs that have none; None where nobody gave one, "" for an empty one.

    :param key_file: path of a file whose only line is the key; goes before the environment.
    :param environ: looked into for ``NODEPASS_KEY``.

    :raises ConfigError: the file can't be read or does not hold one line.
    """
    if key_file is None:
        return environ.get(ENVIRONMENT)
    try:
        with open(key_file, encoding="utf-8") as file:
            text = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"--key-file={key_file}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--key-file={key_file}: not a text file") from None
    lines = text.strip().splitlines()
    if len(lines) != 1 or len(text) > _MOST_BYTES:
        raise ConfigError(f"--key-file={key_file}: expected the key alone, on one line")
    return lines[0]
