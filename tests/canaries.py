"""Secrets of many kinds that tests plant, and search all output for."""

from __future__ import annotations

import base64
import json
import random
import string

# spoils nothing but needs every kind of escape
AWKWARD = "p@ss w/o%20+&=\"'`$(id)\\;#é"
_RANDOM = random.Random(7)


def _drawn(count: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    return "".join(_RANDOM.choices(alphabet, k=count))


KEY_LINES = [base64.b64encode(_RANDOM.randbytes(48)).decode() for _ in range(4)]
PRIVATE_KEY = "\n".join(["-----BEGIN OPENSSH PRIVATE KEY-----", *KEY_LINES, "-----END OPENSSH PRIVATE KEY-----", ""])
URI_PASSWORD, DATABASE_PASSWORD, REDIS_PASSWORD, PROXY_PASSWORD = (_drawn(14) for _ in range(4))
S3_SIGNATURE, S3_SESSION, SAS_SIGNATURE = _drawn(64, string.hexdigits.lower()[:16]), _drawn(60), f"{_drawn(42)}+/="
ACCOUNT_KEY = base64.b64encode(_RANDOM.randbytes(64)).decode()
JSON_KEY = f"-----BEGIN PRIVATE KEY-----\n{_drawn(64)}\n{_drawn(64)}\n-----END PRIVATE KEY-----\n"
HEADER_TOKEN = _drawn(30)

PLAIN = {
    "MLFLOW_TRACKING_PASSWORD": AWKWARD,
    "MLFLOW_TRACKING_TOKEN": _drawn(40),
    "AWS_SECRET_ACCESS_KEY": f"/{_drawn(18)}+{_drawn(19)}/",
    "AWS_SESSION_TOKEN": base64.b64encode(_RANDOM.randbytes(150)).decode(),
    "HF_TOKEN": f"hf_{_drawn(34)}",
    "MP_API_KEY": _drawn(32),
    "WANDB_API_KEY": _drawn(40, "0123456789abcdef"),
    "GITHUB_TOKEN": f"ghp_{_drawn(36)}",
    "MY_SSH_PRIVATE_KEY": PRIVATE_KEY,
    "PGPASSWORD": "hunter2",
    "AZURE_STORAGE_SAS_TOKEN": f"sv=2026-01-01&ss=b&sig={SAS_SIGNATURE}",
    "CLIENT_COOKIE": f"session={_drawn(24)}; Path=/",
    "oauthClientSecret": _drawn(20),
}
EMBEDDED = {
    "MLFLOW_TRACKING_URI": (f"http://matloom:{URI_PASSWORD}@127.0.0.1:9/", URI_PASSWORD),
    "DATABASE_URL": (f"postgresql+psycopg2://loom:{DATABASE_PASSWORD}@db.local:5432/loom", DATABASE_PASSWORD),
    "REDIS_URL": (f"redis://:{REDIS_PASSWORD}@cache.local/0", REDIS_PASSWORD),
    "HTTPS_PROXY": (f"http://me:{PROXY_PASSWORD}@proxy.local:3128", PROXY_PASSWORD),
    "MATLOOM_DATA": (
        f"https://b.s3.amazonaws.com/set?X-Amz-Date=20261126T000000Z&X-Amz-Security-Token={S3_SESSION}"
        f"&X-Amz-Signature={S3_SIGNATURE}",
        S3_SIGNATURE,
    ),
    "AZURE_STORAGE_CONNECTION_STRING": (
        f"DefaultEndpointsProtocol=https;AccountName=loom;AccountKey={ACCOUNT_KEY};EndpointSuffix=core.windows.net",
        ACCOUNT_KEY,
    ),
    "GCP_SERVICE_ACCOUNT": (json.dumps({"type": "service_account", "private_key": JSON_KEY}), JSON_KEY),
    "OTEL_EXPORTER_OTLP_HEADERS": (f"Authorization=Bearer {HEADER_TOKEN}", HEADER_TOKEN),
}
# variables of an environment, and what may appear nowhere
CANARIES = {**PLAIN, **{name: value for name, (value, _) in EMBEDDED.items()}}
SECRETS = {**PLAIN, **{name: secret for name, (_, secret) in EMBEDDED.items()}, "S3_SESSION": S3_SESSION}
# of secrets with several lines, each one
PIECES = sorted(
    {
        line
        for secret in SECRETS.values()
        for line in [secret, *secret.splitlines()]
        if len(line) > 3 and not line.startswith("-----")
    }
)


def found_in(text: str) -> list[str]:
    """Return the canaries that stand in a text as they are, by the names of their variables."""
    return sorted(
        name
        for name, secret in SECRETS.items()
        if any(piece in text for piece in (secret, *secret.splitlines()) if not piece.startswith("-----") and piece)
    )
