from __future__ import annotations

import base64
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from urllib.parse import quote, quote_plus, urlencode

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from launch.hosts.redaction import ANYWHERE, PLAIN, Redactor, holds_secret, is_secret, redacted
from tests.canaries import AWKWARD, CANARIES, KEY_LINES, PIECES, PRIVATE_KEY, SECRETS, found_in
from tests.leaks import leaks_in

SPELLED: dict[str, Callable[[str], str]] = {
    "itself": str,
    "url": lambda secret: quote(secret),
    "url, slashes too": lambda secret: quote(secret, safe=""),
    "form": quote_plus,
    "query": lambda secret: urlencode({"a": secret}),
    "json": json.dumps,
    "json of unicode": lambda secret: json.dumps(secret, ensure_ascii=False),
    "json in json": lambda secret: json.dumps(json.dumps({"a": [secret]})),
    "repr": lambda secret: repr({"a": secret}),
    "shell": lambda secret: shlex.quote(secret),
    "shell in a command": lambda secret: shlex.join(["export", f"A={secret}", "&&", "x"]),
    "base64": lambda secret: base64.b64encode(secret.encode()).decode(),
    "base64 without padding": lambda secret: base64.b64encode(secret.encode()).decode().rstrip("="),
    "base64 of urls": lambda secret: base64.urlsafe_b64encode(secret.encode()).decode(),
    "bytes": lambda secret: repr(secret.encode()),
}
secrets = st.text(min_size=ANYWHERE).filter(lambda text: text.strip() == text and len(set(text)) > 3)
SENSIBLE = ["PATH", "HOME", "PWD", "OLDPWD", "KEYBOARD", "XKB_KEYBOARD_MODEL", "MONKEY", "COMPASS",
            "TOKENIZERS_PARALLELISM",
            "MAX_TOKENS", "NUM_TOKENS", "SSH_AUTH_SOCK", "GIT_AUTHOR_NAME", "GIT_ASKPASS", "PGPASSFILE", "KRB5_KEYTAB",
            "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "AWS_REGION", "AWS_SHARED_CREDENTIALS_FILE",
            "SSL_CERT_FILE", "HF_TOKEN_PATH", "SSH_PUBLIC_KEY", "NCCL_SOCKET_IFNAME", "SASH", "PATTERN", "XAUTHORITY",
            "PYTHONHASHSEED", "TOKEN_TTL", "", "_", "OUTPW", "PW_CUTOFF", "BYPASS", "COMPASSES", "SACRED", "CREDIT",
            "WEBHOOK_PORT", "PASSTHROUGH", "DOCKER_CRED_HELPER", "PGPASS_FILE", "NUM_PASSES"]  # fmt: skip
SECRET = ["HF_TOKEN", "hf_token", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MP_API_KEY", "WANDB_APIKEY", "apiKey",
          "PGPASSWORD", "MYSQL_PWD", "SSHPASS", "client-secret", "GOOGLE_APPLICATION_CREDENTIALS", "PROXY_AUTH",
          "AZURE_STORAGE_SAS_TOKEN", "AZURE_SAS", "AZURE_STORAGE_CONNECTION_STRING", "SESSION_COOKIE", "SSH_PASSPHRASE",
          "X-Amz-Signature", "sig", "HTTP_AUTHORIZATION", "MLFLOW_TRACKING_PASSWORD", "HFToken", "TOKEN2", "GCP_CREDS",
          "awsCreds", "REGISTRY_CRED", "DB_PW", "DBPW", "ADMINPW", "pw", "PASSKEY", "PGPASS", "SMTPPASS", "DBPASS",
          "SLACK_WEBHOOK_URL", "DISCORD_WEBHOOK"]  # fmt: skip


@pytest.mark.parametrize("name", SENSIBLE)
def test_names_that_promise_no_secret(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize("name", SECRET)
def test_names_that_promise_a_secret(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    ("url", "pieces"),
    [
        ("https://hooks.slack.com/services/T0001/B0002/a8Zk3LmQ9rT1", ["a8Zk3LmQ9rT1", "T0001/B0002"]),
        ("https://discord.com/api/webhooks/123456/hQ9x-T2LmQ9rT1", ["hQ9x-T2LmQ9rT1"]),
    ],
)
def test_the_path_of_a_webhook_is_hidden_whatever_its_variable_is_called(url: str, pieces: list[str]) -> None:
    assert holds_secret("NOTIFY", url)
    shown = Redactor({"NOTIFY": url})(f"POST {url} {url.rpartition('/')[2]} to the host")
    assert shown.startswith("POST https://") and shown.endswith("to the host")
    assert not [piece for piece in pieces if piece in shown]


@pytest.mark.parametrize("url", ["https://hooks.example.org/", "https://example.org/data/set", "file:///git/hooks/x"])
def test_other_urls_hold_no_secret(url: str) -> None:
    assert not holds_secret("DATA", url)


def test_there_are_20_canaries_and_each_is_found_when_nothing_hides_it() -> None:
    assert len(SECRETS) >= 20
    assert found_in("\n".join(f"{name}={value}" for name, value in CANARIES.items())) == sorted(SECRETS)


@pytest.mark.parametrize("spelled", SPELLED)
@pytest.mark.parametrize("name", SECRETS)
def test_a_canary_appears_in_no_spelling(name: str, spelled: str) -> None:
    written = SPELLED[spelled](SECRETS[name])
    shown = Redactor(CANARIES)(f"before [{written}] after")
    assert "before" in shown
    assert "after" in shown
    assert "***" in shown
    if "base64" in spelled:
        # what is left of it decodes to less than a quarter of the secret
        assert len(shown) < len("before [***] after") + 8
    else:
        assert not [
            piece for piece in PIECES if len(piece) >= ANYWHERE and SPELLED[spelled](piece).strip("'\"") in shown
        ]
    assert not found_in(shown)


def test_what_shells_print_of_a_canary_is_hidden() -> None:
    script = 'set -x; : "$CANARY"; printf "%q\\n" "$CANARY"; export -p | grep CANARY; env | grep CANARY; set +x'
    for secret in SECRETS.values():
        done = subprocess.run(
            ["bash", "-c", script], env={"CANARY": secret}, capture_output=True, text=True, check=True
        )
        shown = Redactor({"CANARY_SECRET": secret})(done.stdout + done.stderr)
        assert secret not in shown, shown
        if secret == AWKWARD:
            assert "$(id)" not in shown


def test_basic_authentication_is_hidden_by_the_password_alone() -> None:
    for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        for user in ("", "a", "ab", "abc"):
            header = base64.b64encode(f"{user}:{SECRETS[name]}".encode()).decode()
            shown = Redactor(CANARIES)(f"sent {header} to the server")
            kept = shown.split()[1].replace("***", "")
            # three alignments, so 4 characters at most on either side beside those of the user
            assert len(kept) <= 8 + 4 * len(user) / 3, shown


def test_each_line_of_a_key_is_hidden_where_lines_are_shown_one_by_one() -> None:
    hide = Redactor(CANARIES)
    assert [hide(line) for line in PRIVATE_KEY.splitlines()[1:5]] == ["***"] * 4
    # a wrong variant, which hides values as a whole alone, shows them all
    assert all(line.replace(PRIVATE_KEY, "***") == line for line in KEY_LINES)


@given(
    secret=secrets, before=st.text(max_size=20), after=st.text(max_size=20), spelled=st.sampled_from(sorted(SPELLED))
)
@settings(max_examples=300, deadline=None)
@example(secret="a'b\"c\\d$e`f", before="", after="", spelled="shell")
def test_a_secret_is_hidden_in_any_text(secret: str, before: str, after: str, spelled: str) -> None:
    assume(secret.lower() not in PLAIN and "***" not in secret)
    shown = Redactor({"A_TOKEN": secret})(f"{before}{SPELLED[spelled](secret)}{after}")
    assume(secret not in before + after)
    assert secret not in shown
    assert "***" in shown


@given(values=st.lists(secrets, min_size=2, max_size=5), text=st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_of_secrets_that_overlap_no_piece_is_left(values: list[str], text: str) -> None:
    first, second = values[:2]
    # the last characters of the one are the first ones of the other
    second = first[-4:] + second
    shown = Redactor({"A_KEY": first, "B_KEY": second})(f"<{first}{second[4:]}>")
    assert shown == "<***>"


def test_a_secret_that_overlaps_itself_leaves_no_piece() -> None:
    assert Redactor({"A_KEY": "abcabcabc"})("<abcabcabcabc>") == "<***>"


@given(text=st.text())
@settings(max_examples=200, deadline=None)
def test_text_without_secrets_stays_as_it_is(text: str) -> None:
    assume("://" not in text and "?" not in text)
    quiet = {
        "A_TOKEN": "1",
        "B_KEY": "true",
        "C_KEY": "",
        "KEYBOARD": "us-intl",
        "PATH": "/usr/bin",
        "D_KEY_FILE": "/etc/k",
    }
    assert Redactor(quiet)(text) == text


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({"A_TOKEN": "1"}, "epoch 1 of 1, loss 0.111"),
        ({"A_TOKEN": "true"}, "shuffle = true"),
        ({"MLFLOW_TRACKING_AUTH": "basic"}, "a basic block of layers"),
        ({"PASSWORD": "loom"}, "matloom and its looms"),
        ({"MY_KEY": "/usr/bin"}, "no such file: /usr/bin/nvcc"),
        ({"MAX_TOKENS": "4096"}, "4096 tokens"),
        ({"A_TOKEN": ""}, "nothing"),
        ({}, "models:/name@champion is at hf://org/name and s3://bucket/a/b?c, https://127.0.0.1:5000/x@y"),
    ],
)
def test_what_is_no_secret_is_left_alone(environment: dict[str, str], text: str) -> None:
    assert Redactor(environment)(text) == text


def test_a_short_password_is_hidden_where_it_stands_alone() -> None:
    assert Redactor({"PASSWORD": "loom"})('login "loom" refused, loom') == 'login "***" refused, ***'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET http://me:hunter2@host:5000/api", "GET http://***@host:5000/api"),
        ("postgresql://u:p@ss@db/x", "postgresql://***@db/x"),
        ("postgresql://u:p/w@db/x", "postgresql://***@db/x"),
        ("https://token@host/x", "https://***@host/x"),
        ("https://host/x?X-Amz-Signature=abc&y=1 was refused", "https://host/x?*** was refused"),
        ("is it? a=b", "is it? a=b"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("{'Authorization': 'Basic dTpw'}", "{'Authorization': 'Basic ***'}"),
    ],
)
def test_urls_and_headers_are_hidden_though_no_variable_holds_them(text: str, shown: str) -> None:
    assert Redactor({})(text) == shown


def test_an_environment_is_shown_with_its_names_and_without_its_secrets() -> None:
    shown = redacted({**CANARIES, "OMP_NUM_THREADS": "1", "EMPTY_TOKEN": "", "SAID": f"it is {AWKWARD}"})
    assert not found_in(json.dumps(shown, ensure_ascii=False) + "\n".join(shown.values()))
    assert shown["HF_TOKEN"] == "***"
    assert shown["OMP_NUM_THREADS"] == "1"
    assert shown["EMPTY_TOKEN"] == ""
    assert shown["SAID"] == "it is ***"
    assert shown["MLFLOW_TRACKING_URI"] == "http://***@127.0.0.1:9/"
    assert list(shown) == sorted(shown)


def test_bytes_that_are_no_text_are_hidden_too() -> None:
    secret = b"\xff\xfesecret-bytes".decode(errors="surrogateescape")
    assert Redactor({"A_TOKEN": secret})(f"<{secret}>") == "<***>"


def test_a_wrong_variant_that_replaces_values_alone_is_caught() -> None:
    def naive(text: str) -> str:
        for secret in SECRETS.values():
            text = text.replace(secret, "***")
        return text

    written = [SPELLED["json"](AWKWARD), SPELLED["url"](AWKWARD), SPELLED["base64"](AWKWARD)]
    assert [naive(text) for text in written] == written
    assert all(Redactor(CANARIES)(text) != text for text in written)


def test_redaction_needs_no_heavy_import() -> None:
    heavy = ("torch", "numpy", "pydantic", "requests")
    code = f"import launch.hosts.redaction, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_lines_of_a_key_are_hidden_whatever_is_between_them_and_around() -> None:
    hide = Redactor(CANARIES)
    for written in (json.dumps(CANARIES), json.dumps(json.dumps(CANARIES)), urlencode(CANARIES), repr(CANARIES)):
        for start in range(3):
            shown = hide(base64.b64encode(f"{' ' * start}{written}".encode()).decode())
            assert not leaks_in(shown.encode())
