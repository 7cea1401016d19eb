"""Hostile text: every pattern, and all of redaction, take a time that grows with the length of the text alone."""

import re
import time
from collections.abc import Callable, Iterator

import pytest

from trajectory_pipeline.judge import echoes
from trajectory_pipeline.judge.redaction import (
    code_values,
    credentials,
    named_values,
    patterns,
    personal_data,
    redactor,
    tables,
    values,
    visible_text,
)
from trajectory_pipeline.judge.redaction.redactor import Redactor
from trajectory_pipeline.judge.redaction.span import Span
from trajectory_pipeline.judge.transcript import truncate
from trajectory_pipeline.schema.enums import RedactionMode

MODULES = (
    code_values,
    credentials,
    echoes,
    named_values,
    patterns,
    personal_data,
    redactor,
    tables,
    truncate,
    values,
    visible_text,
)
PIECES = [
    *"a1A-_=.,;:/@%|'\"`\\ \n\t{}[]()<>$*+!~",
    *("eyJ", "eyJa.", "eyJhbGciOi", "eyJaaaaaaaaaaa.", "eyJaaaaaaaaaaa.a.", "sk-", "sk-a1\n", "SG.aaaaaaaaaaaaaaaa."),
    *(
        "-----BEGIN PRIVATE KEY-----",
        "-----END PRIVATE KEY-----",
        "-----BEGIN ",
        "Private-Lines: 1\n",
        "LS0tLS1CRUdJTi",
    ),
    *("password", "password=", "password:", 'password="', "password='", 'password=\\"', "password is ", "password (a"),
    *('password="aaaa\\"', "password: |\n ", "password:\n  - a\n", '"password":{', 'password={"value":', 'password",'),
    *("key", "key=", "key: ", "token [", "tokens = [", 'secrets: ["a', "--password a", "pass:", "authorization: a b"),
    *(
        "authorization: ",
        'authorization: x="',
        'name="password" x=y ',
        "name: password\n",
        "value: 'a', name: password",
    ),
    *(
        "<a ",
        "<password ",
        '<password a="',
        "<key>password</key>",
        "cookie:=a",
        "Set-Cookie: a=b; ",
        "://a:",
        "://a:b@",
    ),
    *("a:b@", "?sig=", "?sig=aaaaaaaa1&", "login: a / ", 'login("a",', "mysql -p", "docker login ", "echo a | "),
    *(
        "WIFI:S:a;",
        "h:5432:d:u:",
        "seed phrase: abc ",
        "| password |\n| a |\n",
        "user,password\na,b1\n",
        "password  a\n",
    ),
    *("(a) values (", "values ('a',", "basic ", "bearer a", "QUFB" * 6 + " ", "aa_key_", "live_", "bot123456789:AA"),
    *(
        "xprv1",
        "jdbc:oracle:thin:",
        "x.y@",
        "a\\\n",
        'a"\n"b',
        "密码",
        "пароль:",
        "\u200b",
        "pass\u200b",
        "\uff50",
        "%25",
    ),
    *(
        "<b>Password:</b> ",
        "<key>password</key><string>",
        'password="a" + "',
        "password = 'a' 'b1' ",
        "tokens:\n  a: b1\n",
    ),
    *(
        'secrets: {"a": "',
        'password="".join(["a1",',
        'set("password", "',
        "setPassword('",
        'password || "',
        "password 'a' ",
    ),
    *(
        "set x password ",
        "db_password a\n",
        "pin 4821 ",
        "my key ",
        "log in as a with ",
        "u: a p: ",
        "ssid a key ",
        "PASS ",
    ),
    *(
        "AUTH PLAIN QUFB ",
        "username a privilege 1 secret ",
        "token <<< ",
        'jwt.encode("',
        'Client("a", ',
        "put password ",
    ),
    *(
        "-U a%",
        "-u a -p ",
        "--name password --value ",
        "recovery codes: a1b2c-3d4e5 ",
        "app password abcd ",
        "use code ",
    ),
    *("QUFB" * 19 + "\n", "QUFB" * 19 + "\\n", "6162" * 10, "AKIA" + "A" * 16 + " ", '"kty" "d":"', "\tTRUE\t1\ta\t"),
    *(
        '"value":"' + "a1" * 8 + '",',
        "value: a\nname: password",
        "?p=%2F",
        "://a%40b:",
        "a:b1:1:1:",
        "x.y.z:a@1.1.1.1 ",
    ),
    *("\x1b[", "\x1b]", "[1;", "&amp;", "\\u001b", "\\u0022", "a" * 1_999 + " ", "1" * 11 + " ", "+1 ", "::", "1.1."),
]
CHARACTERS = 4_000
LEAST_SECONDS = 0.012
"""A shorter time says nothing about growth."""
GROWTH = 3
"""Twice the text may take so many times as long; quadratic time takes four."""

COMPILED = {
    f"{module.__name__.rpartition('.')[2]}.{name}": value
    for module in MODULES
    for name, value in vars(module).items()
    if isinstance(value, re.Pattern)
}


def seconds(work: Callable[[str], object], text: str) -> float:
    def once() -> float:
        started = time.thread_time()
        work(text)
        return time.thread_time() - started

    # The first time is enough where it is short.
    first = once()
    return first if first < LEAST_SECONDS else min(first, once())


def faults_of(work: Callable[[str], object]) -> list[str]:
    def grows_too_fast(text: str) -> bool:
        twice = seconds(work, text * 2)
        return twice > LEAST_SECONDS and twice > GROWTH * seconds(work, text)

    texts = {piece: piece * (CHARACTERS // len(piece)) for piece in PIECES}
    # One measurement may be of a machine that was busy just then.
    return [piece for piece, text in texts.items() if all(grows_too_fast(text) for _ in range(5))]


@pytest.mark.heavy
@pytest.mark.parametrize("name", COMPILED)
def test_pattern_takes_linear_time(name: str) -> None:
    assert faults_of(lambda text: list(COMPILED[name].finditer(text))) == []


@pytest.mark.heavy
def test_pattern_that_takes_cubic_time_is_reported() -> None:
    # Eight times as long for twice the text, which a busy machine cannot hide; of less text, which is slow enough.
    assert "a" in faults_of(lambda text: list(re.compile("a+a+b").finditer(text[: len(text) // 10])))


@pytest.mark.heavy
def test_redaction_of_hostile_text_takes_bounded_time_per_character() -> None:
    redact = Redactor(RedactionMode.PERSONAL, b"a key of tests")
    length = 4 * CHARACTERS
    microseconds = {piece: seconds(redact, piece * (length // len(piece))) / length * 1e6 for piece in PIECES}
    assert max(microseconds.values()) < 100, max(microseconds, key=lambda piece: microseconds[piece])


LONG_TEXTS = {
    piece: piece * (500_000 // len(piece)) for piece in ("a", "1", " ", "some words ", "eyJaaaaaaaaaaa.", "a:b@")
}
LONGEST_PIECE = 65_536


@pytest.mark.parametrize("search", [patterns.find_secrets, personal_data.find_personal_data])
@pytest.mark.parametrize("text", LONG_TEXTS.values(), ids=map(repr, LONG_TEXTS))
def test_long_text_is_searched_in_pieces(search: Callable[..., Iterator[Span]], text: str) -> None:
    """A search in all of it would hold the interpreter, and with it the loop that times calls, for seconds."""
    checkpoints = 0

    def checkpoint() -> None:
        nonlocal checkpoints
        checkpoints += 1

    list(search(text, checkpoint))
    assert checkpoints >= len(text) / LONGEST_PIECE


class Late(Exception):
    """The deadline has passed."""


@pytest.mark.parametrize("search", [patterns.find_secrets, personal_data.find_personal_data])
def test_search_ends_within_a_piece_after_the_deadline(search: Callable[..., Iterator[Span]]) -> None:
    left = 2

    def checkpoint() -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Late

    with pytest.raises(Late):
        list(search("some words " * 50_000, checkpoint))


@pytest.mark.parametrize("at", [0, 1, 65_500, 65_536 - 8, 65_535, 65_536, 131_000, 131_072])
def test_personal_data_is_found_wherever_a_long_text_is_cut(at: int) -> None:
    email, card, uuid = "ada.lovelace@analytical.example", "4111 1111 1111 1111", "00000000-4111-1111-1111-111111111111"
    for value, kinds in ((email, ["email"]), (card, ["card"]), (uuid, [])):
        text = "," * at + " " + value + " " + "." * 140_000
        found = [(text[span.start : span.end], span.kind) for span in personal_data.find_personal_data(text)]
        assert found == [(value, kind) for kind in kinds]
