"""Nothing secret in arguments, logs, tables or reports."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from pipelines.errors import SettingsError

USER_INFO = re.compile(r"(?P<scheme>[a-zA-Z][\w+.-]*://)[^/\s@'\"]*:[^/\s@'\"]*@")
"""A user with a password in front of a URL's host."""
QUERY = re.compile(
    r"(?P<name>[?&](?:sig|signature|token|access_token|password|secret|key|api_key"
    r"|x-amz-[a-z-]+|x-goog-[a-z-]+|sv|se|sp)=)[^&\s'\"]+",
    re.IGNORECASE,
)
"""A signed URL's parts."""
SECRET_NAME = re.compile(
    r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|ACCOUNT_KEY|API_KEY|(^|_)SAS(_|$)|HEADERS"
)
SHORTEST, SURE = 8, 16
"""Characters of a value that is hidden, and of one whose mere presence is refused."""
HIDDEN = "***"


def secret_values(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The values of environment variables whose names say that they are secret; longest first.

    Paths (AWS_WEB_IDENTITY_TOKEN_FILE) are none, nor is what is too short to be one.
    """
    found = {
        value
        for name, value in environment.items()
        if SECRET_NAME.search(name.upper())
        and not name.upper().endswith(("_FILE", "_PATH"))
        and len(value) >= SHORTEST
    }
    return sorted(found, key=len, reverse=True)


def redacted(
    text: str, environment: Mapping[str, str] = os.environ, shortest: int = SHORTEST
) -> str:
    """The text without passwords and signatures in URLs, and without the environment's secrets
    of ``shortest`` characters or more."""
    text = USER_INFO.sub(rf"\g<scheme>{HIDDEN}@", text)
    text = QUERY.sub(rf"\g<name>{HIDDEN}", text)
    for value in secret_values(environment):
        if len(value) >= shortest:
            text = text.replace(value, HIDDEN)
    return text


def no_secrets(words: Sequence[str]) -> None:
    """SettingsError for words that hold a secret: process lists and logs show arguments."""
    for word in words:
        clean = redacted(word, shortest=SURE)
        if clean != word:
            raise SettingsError(
                f"the argument '{clean[:100]}' holds a secret (here ***), which process "
                "lists and logs would show; put credentials into the environment or a file"
            )
