from __future__ import annotations

import pytest

from shards.urls import hidden_in, without_secrets


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://me:pass@host:8/a/b/?sig=1#x", "https://host:8/a/b"),
        ("s3://bucket/a", "s3://bucket/a"),
        ("file:///tmp/a", "file:///tmp/a"),
    ],
)
def test_a_url_is_recorded_without_secrets(url: str, kept: str) -> None:
    assert without_secrets(url) == kept


def test_urls_in_text_are_hidden_and_the_rest_stays() -> None:
    text = "http://u:p@h/x?a=b refused; is it there? models:/m@best, http://h/y"
    assert hidden_in(text) == "http://***@h/x?*** refused; is it there? models:/m@best, http://h/y"
