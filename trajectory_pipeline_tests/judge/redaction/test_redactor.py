"""Redaction: every secret of a known form is replaced, one value has one placeholder, and other text is unchanged.

``secret_samples`` lists the known forms. A secret without a form, and without a name before it, cannot be distinguished
from a word.
"""

import json
import re
from re import _constants as sre  # type: ignore[attr-defined]  # private, has no stub
from re._parser import parse  # type: ignore[import-not-found]  # private, has no stub
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.judge.redaction import (
    code_values,
    credentials,
    named_values,
    patterns,
    tables,
    values,
    visible_text,
)
from trajectory_pipeline.judge.redaction.literals import LiteralSet, occurrences
from trajectory_pipeline.judge.redaction.redactor import Redactor
from trajectory_pipeline_tests.judge.documents import sample_documents
from trajectory_pipeline_tests.judge.rendering import render
from trajectory_pipeline_tests.judge.secret_samples import (
    BY_NAME,
    FORMS,
    JWT,
    KEYS,
    NO_SECRETS,
    PASSWORD,
    PERSONAL,
    PRIVATE_KEY,
)

REPEAT, LAZY_REPEAT, BRANCH = sre.MAX_REPEAT, sre.MIN_REPEAT, sre.BRANCH
SUBPATTERN, ASSERT, ASSERT_NOT, MAXREPEAT = sre.SUBPATTERN, sre.ASSERT, sre.ASSERT_NOT, sre.MAXREPEAT

REDACT_SECRETS = Redactor("secrets", b"a key of tests")
REDACT_ALL = Redactor("personal", b"a key of tests")
PLACEHOLDER = re.compile(r"\[(secret|personal):([a-z_]+):[0-9a-f]{8}\]")
SECRETS_BY_FORM = [*KEYS.values(), JWT, PRIVATE_KEY]

PROSE = st.text(st.sampled_from("abc XYZ 019 .,:;\n\t\"'(){}[]<>/=é…\u2028-_"), max_size=40)


@pytest.mark.parametrize("secret", SECRETS_BY_FORM, ids=[*KEYS, "jwt", "private key"])
@pytest.mark.parametrize(
    "context",
    ["{}", "the key {} is", '"{}"', "(key: {})", "line\n{}\nline", "x={}&y=1", "Authorization: Bearer {}", "`{}`"],
)
def test_secret_of_a_known_form_is_redacted_in_any_context(secret: str, context: str) -> None:
    redacted = REDACT_SECRETS(context.format(secret))
    assert secret not in redacted
    assert not [piece for piece in re.findall(r"[A-Za-z0-9+/_-]{10,}", secret) if piece in redacted]
    assert PLACEHOLDER.search(redacted)


@pytest.mark.parametrize("form", BY_NAME)
@pytest.mark.parametrize("secret", [PASSWORD.replace("/", ""), "Tr0ub4dor&3"[:9], "correct-horse-battery"])
def test_secret_after_its_name_is_redacted(form: str, secret: str) -> None:
    redacted = REDACT_SECRETS(form.format(secret))
    assert secret not in redacted
    assert PLACEHOLDER.sub("", redacted) == form.format("")


@pytest.mark.parametrize("secret", SECRETS_BY_FORM, ids=[*KEYS, "jwt", "private key"])
def test_secret_in_nested_json_text_is_redacted(secret: str) -> None:
    text = json.dumps({"text": f"first\n{secret}\nlast"})
    for _ in range(3):
        redacted = REDACT_SECRETS(text)
        assert not [piece for piece in re.findall(r"[A-Za-z0-9+/_-]{10,}", secret) if piece in redacted]
        assert "last" in redacted
        text = json.dumps({"text": text})


def test_every_key_form_is_matched_by_its_own_sample() -> None:
    for form, (name, sample) in zip(patterns._KEY_FORMS, KEYS.items(), strict=True):
        assert re.fullmatch(form, sample), name


def test_forms_of_secrets_are_replaced_wholly() -> None:
    missed = [text for text, secrets in FORMS if leaked(REDACT_SECRETS(text), secrets)]
    assert len(FORMS) > 1_400
    assert missed == []


def leaked(redacted: str, secrets: tuple[str, ...]) -> list[str]:
    """The pieces of secrets that a text still has."""
    length = 6
    pieces = {secret[at : at + length] for secret in secrets for at in range(max(len(secret) - length, 0) + 1)}
    return [piece for piece in pieces if piece in PLACEHOLDER.sub("", redacted)]


@pytest.mark.parametrize("text", NO_SECRETS)
def test_text_that_resembles_a_secret_is_unchanged(text: str) -> None:
    for line in (text, text.replace("\\n", "\n"), json.dumps({"text": text})):
        assert REDACT_SECRETS(line) == line


@pytest.mark.parametrize("name", ["openai", "vault", "github", "hugging face"])
@pytest.mark.parametrize("broken_by", ["\n", "\r\n", "\n    ", "\\n", '"\n    "', "\\\n"])
@pytest.mark.parametrize("at", [12, 22, 30])
def test_key_broken_over_lines_is_redacted(name: str, broken_by: str, at: int) -> None:
    secret = KEYS[name]
    redacted = REDACT_SECRETS(f"export KEY={secret[:at]}{broken_by}{secret[at:]}\nand then it went on")
    assert secret[:at] not in redacted
    assert secret[at:] not in redacted
    assert redacted.endswith("\nand then it went on")


@pytest.mark.parametrize(
    "text",
    [
        "The password is required, and the token is invalid: ask for another.",
        '{"total_tokens": 4096, "max_tokens": 8000, "type": "string"}',
        "message-0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0 of run-12345678-1234-1234-1234-123456789012",
        "sk-learn-contrib-and-friends is a risk-assessment-framework-for-tasks",
        "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "https://example.org/path?query=words#fragment",
        "def authenticate(user, password): return check(user)",
    ],
)
def test_text_without_secrets_is_unchanged(text: str) -> None:
    assert REDACT_SECRETS(text) == text


def test_transcripts_of_the_sample_are_unchanged() -> None:
    for document in sample_documents():
        text = render(document).text
        assert REDACT_SECRETS(text) == text


def test_placeholder_depends_on_value_and_redaction_key() -> None:
    key = KEYS["openai"]
    first, second = PLACEHOLDER.findall(REDACT_SECRETS(f"api_key={key}\nBearer {key}"))
    assert first == second
    (first_match,), (second_match,) = (set(PLACEHOLDER.finditer(Redactor("secrets", k)(key))) for k in (b"one", b"two"))
    assert first_match.group() != second_match.group()
    assert REDACT_SECRETS(KEYS["aws"]) != REDACT_SECRETS(KEYS["aws"][:-1] + "A")


@pytest.mark.parametrize("kind", PERSONAL)
def test_personal_data_is_redacted_only_when_set(kind: str) -> None:
    text = f"It is {PERSONAL[kind]}, she said."
    assert REDACT_SECRETS(text) == Redactor("off")(text) == text
    assert PLACEHOLDER.sub("*", REDACT_ALL(text)) == "It is *, she said."


@pytest.mark.parametrize("text", ["4111 1111 1111 1112", "DE89 3704 0044 0532 0130 01", "version 1.2.3", "12:30:45"])
def test_number_that_resembles_personal_data_is_unchanged(text: str) -> None:
    assert REDACT_ALL(text) == text


# The digits of each pass the check of a card number.
IDS_LIKE_CARDS = ["a4111111-1111-1111-1abc-aaaaaaaaaaaa", "b4000000-0000-0000-2fed-123456789012"]


@given(st.uuids().map(str) | st.sampled_from(IDS_LIKE_CARDS), st.sampled_from(["run-{}", "{}", "message_{}", "({})"]))
def test_uuid_is_no_card_number_and_hides_none(uuid: str, form: str) -> None:
    text = form.format(uuid)
    assert REDACT_ALL(text) == text
    beside = REDACT_ALL(f"{text} 4111 1111 1111 1111")
    assert beside.startswith(f"{text} [personal:card:")


def test_redactor_that_is_off_changes_nothing() -> None:
    assert Redactor("off")(KEYS["openai"]) == KEYS["openai"]


# ---- properties ---------------------------------------------------------------------------------------------------


@given(st.lists(st.one_of(PROSE, st.sampled_from(SECRETS_BY_FORM)), max_size=8))
def test_redacting_twice_equals_redacting_once(parts: list[str]) -> None:
    for redaction in (REDACT_SECRETS, REDACT_ALL):
        once = redaction(" ".join(parts))
        assert redaction(once) == once


@given(PROSE, st.sampled_from(SECRETS_BY_FORM), PROSE)
def test_secret_in_any_prose_is_redacted(before: str, secret: str, after: str) -> None:
    redacted = REDACT_SECRETS(f"{before} {secret} {after}")
    assert secret not in redacted
    assert not [piece for piece in re.findall(r"[A-Za-z0-9+/_-]{16,}", secret) if piece in redacted]


# ---- hostile text -------------------------------------------------------------------------------------------------

LONG = 64
"""A repeat of more than this must not contain another: matching would try every way to divide a text."""


def nested_repeats(parsed: Any, *, inside: bool = False) -> list[str]:
    """Repeats of a parsed pattern that can take more than linear time at one position of the text."""
    faults = []
    for operation, argument in parsed:
        if operation in (REPEAT, LAZY_REPEAT):
            _, most, repeated = argument
            if most == MAXREPEAT:
                faults.append("a repeat without a bound")
            if inside and most > LONG:
                faults.append(f"up to {most} times within a repeat")
            faults += nested_repeats(repeated, inside=inside or most > LONG)
        elif operation is BRANCH:
            faults += [fault for branch in argument[1] for fault in nested_repeats(branch, inside=inside)]
        elif operation in (SUBPATTERN, ASSERT, ASSERT_NOT):
            faults += nested_repeats(argument[-1], inside=inside)
    return faults


PATTERNS = {
    name: value
    for module in (patterns, code_values, credentials, named_values, tables, values, visible_text)
    for name, value in vars(module).items()
    if isinstance(value, re.Pattern) and name != "_WORDLIKE"
}
"""The one left out is tried at one position, over a length that the caller bounds."""


@pytest.mark.parametrize("name", PATTERNS)
def test_pattern_has_no_unbounded_or_nested_long_repeat(name: str) -> None:
    assert nested_repeats(parse(PATTERNS[name].pattern)) == []


@pytest.mark.parametrize("pattern", ["(a+)+b", "(?:[a-z]{1,200} ?){1,200}x", "a*"])
def test_nested_repeats_reports_dangerous_patterns(pattern: str) -> None:
    assert nested_repeats(parse(pattern))


@pytest.mark.parametrize(
    "unit",
    ["a", "A1", "sk-a1\n", "eyJa.", "://a:", "a@", 'password="', "\\", "-----BEGIN PRIVATE KEY-----", "cookie:=a"],
)
def test_long_hostile_text_is_redacted_to_its_end(unit: str) -> None:
    text = unit * (100_000 // len(unit))
    assert REDACT_ALL(f"{text} {KEYS['github']}").count(KEYS["github"]) == 0


# ---- an optimized pattern ------------------------------------------------------------------------------------------

PLAIN_BREAK = re.compile(
    r"(?<=[A-Za-z0-9_.+/=-])"
    r"""(?:\\{0,4}\r?\n[ \t]{0,80}|(?:\\{1,4}r)?\\{1,4}n[ \t]{0,80}"""
    r"""|["'][ \t]{0,8}\+?[ \t]{0,8}\\?\r?\n[ \t]{0,80}["'])"""
    r"(?=[A-Za-z0-9_.+/=-])"
)


@given(st.text("ab.\\\r\n\"' +\tnr", max_size=40))
def test_break_pattern_equals_its_plain_form(text: str) -> None:
    found = [match.span() for match in patterns._BREAK.finditer(text)]
    assert found == [match.span() for match in PLAIN_BREAK.finditer(text)]


FORM_TEXTS = [
    *(form for form, _ in FORMS),
    *(form.upper() for form, _ in FORMS),
    *("\n".join(form for form, _ in FORMS[at : at + 50]) for at in range(0, len(FORMS), 50)),
]
PIECES_OF_FORMS = sorted({piece for form, _ in FORMS for piece in re.findall(r"\w+|\W", form)})


CREDENTIALS = LiteralSet(credentials.LITERALS)


def found_otherwise(texts: list[str]) -> list[str]:
    """Return texts in which a costly pattern matches elsewhere than where its literals let it begin."""
    return [
        text
        for text in texts
        for literals in [CREDENTIALS.find(text)]
        for pattern, starts in credentials._STARTS.items()
        if [match.span() for match in literals.finditer(pattern, starts)]
        != [match.span() for match in pattern.finditer(text)]
    ]


def test_costly_patterns_match_only_where_their_literals_let_them_begin() -> None:
    assert found_otherwise(FORM_TEXTS) == []
    matched = {pattern for text in FORM_TEXTS for pattern in credentials._STARTS if pattern.search(text)}
    assert matched == credentials._STARTS.keys()


@given(st.lists(st.sampled_from([*PIECES_OF_FORMS, "\u017f", "\u212a", "\u0130"]), max_size=30).map("".join))
def test_costly_patterns_match_as_if_searched_in_any_text(text: str) -> None:
    assert found_otherwise([text]) == []


@given(
    st.lists(
        st.sampled_from(
            ["0a1b2c3d4e5f60718293", "Q2ZzT0pLdE5wV3hZ", "abcd", "\n", "\\n", "=", ":", "~", ".", "-", " "]
        ),
        max_size=20,
    ).map("".join)
)
def test_encoded_words_are_those_of_their_patterns(text: str) -> None:
    words = patterns._long_words(text)
    for matches, pattern in ((patterns._base64_matches, patterns._ENCODED), (patterns._hex_matches, patterns._HEX)):
        assert [match.span() for match in matches(text, words)] == [match.span() for match in pattern.finditer(text)]


@given(st.lists(st.sampled_from(["w" * 17, "w", "\u00e9", "\ud800", " ", "=", "\n", "/"]), max_size=12).map("".join))
def test_long_words_are_those_of_a_pattern(text: str) -> None:
    found = re.finditer(rf"[A-Za-z0-9_+/=.:~-]{{{patterns._SHORTEST_KEY},}}", text)
    assert patterns._long_words(text) == [match.span() for match in found]


@given(st.text("aAbB\u00e9\u0130\u017f \U0001f600", max_size=30))
def test_literals_are_found_where_they_stand(text: str) -> None:
    literals = ("a", "ab", "aba", "b\u00e9", "i", "sa")
    found = LiteralSet(literals).find(text)
    folded = "".join({"\u0130": "i", "\u017f": "s"}.get(c, c.lower()) for c in text)
    assert found.positions == {one: places for one in literals if (places := occurrences(folded, one))}
