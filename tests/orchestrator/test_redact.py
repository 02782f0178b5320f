"""No secret reaches a screen, a log or a file."""

import pytest

from orchestrator.redact import redact, redact_tree, redact_words


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:pa55@db:5432/x", "postgresql://me:***@db:5432/x"),
        ("postgresql+psycopg2://me:p@:/55@db/x", "postgresql+psycopg2://me:***@db/x"),
        ("https://TOKEN@host/path", "https://***@host/path"),
        ("http://h/x?user=me&password=abc&b=1", "http://h/x?user=me&password=***&b=1"),
        ("http://h/x?access_token=abc#top", "http://h/x?access_token=***#top"),
        ("at 'http://a:b@h' and \"http://c:d@h\"", "at 'http://a:***@h' and \"http://c:***@h\""),
        ("http://h/?Api-Key=abc;sig=d%20e", "http://h/?Api-Key=***;sig=***"),
    ],
)
def test_secrets_in_urls_are_hidden(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///mlflow.db",
        "http://localhost:5000",
        "http://h:80/a@b",
        "mail me@there.org",
        "a: b@c",
        "http://h/a@b",
        "max_tokens=3",
        "",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_trees_are_redacted_by_value_and_by_key_and_left_as_they_were() -> None:
    tree = {
        "uri": "http://a:b@h",
        "deep": [
            ("http://a:b@h", 3),
            {"db_password": "x", "token": "t", "tokenizer": "bpe", "secret": None},
        ],
        1: True,
    }
    assert redact_tree(tree) == {
        "uri": "http://a:***@h",
        "deep": [
            ("http://a:***@h", 3),
            {"db_password": "***", "token": "***", "tokenizer": "bpe", "secret": None},
        ],
        1: True,
    }
    assert tree["uri"] == "http://a:b@h"


def test_words_of_a_command_line_are_redacted_by_key_and_within_mappings() -> None:
    words = [
        "+experiment=digits_small",
        "+tracking.api_key=abc,d",
        "study.storage=postgresql://me:pa55@db/x",
        "made_up={noise: .01}",
        "tracking={_target_: mine.Tracker, password: 'a, b', user: me}",
        "+model.max_tokens=3",
        "--config-dir=here",
    ]
    assert redact_words(words) == [
        "+experiment=digits_small",
        "+tracking.api_key=***",
        "study.storage=postgresql://me:***@db/x",
        "made_up={noise: .01}",
        "tracking={_target_: mine.Tracker, password: ***, user: me}",
        "+model.max_tokens=3",
        "--config-dir=here",
    ]
