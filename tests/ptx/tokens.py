"""The tokens of PTX text."""

from __future__ import annotations

import re
from typing import NamedTuple

from .errors import ParseError
from .syntax import Immediate

TOKEN = re.compile(
    r"""(?P<space>[ \t\r]+|//[^\n]*|/\*.*?\*/)|(?P<newline>\n)
    |(?P<string>"[^"]*")
    |(?P<number>-?(?:0[fF][0-9A-Fa-f]{8}|0[dD][0-9A-Fa-f]{16}|0[xX][0-9A-Fa-f]+U?|\d+U?))
    |(?P<word>[A-Za-z_$%.][\w$.%]*(?:::[\w$.]+)*)
    |(?P<mark>[{}\[\]();,:@!<>=+|-])""",
    re.VERBOSE | re.DOTALL,
)
WORD = re.compile(r"[\w$%.]")  # begins a word or a number
LINE_DIRECTIVES = (".loc", ".file", ".version", ".target", ".address_size")  # they end with their line


class Token(NamedTuple):
    text: str
    line: int


def tokens(text: str) -> list[Token]:
    """The tokens of the text; a newline is one only behind a directive that it ends."""
    found: list[Token] = []
    line, at, until_newline = 1, 0, False
    while at < len(text):
        match = TOKEN.match(text, at)
        if not match:
            raise ParseError(f"line {line}: no token of PTX begins at {text[at : at + 20]!r}")
        at = match.end()
        piece = match[0]
        if match.lastgroup == "newline":
            if until_newline:
                found.append(Token("\n", line))
                until_newline = False
        elif match.lastgroup != "space":
            if piece == ".section":
                return found  # debugging information, to the end
            until_newline |= piece in LINE_DIRECTIVES
            found.append(Token(piece, line))
        line += piece.count("\n")
    return found


def number(text: str) -> Immediate:
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
    kind = digits[1:2].lower()
    if kind in ("f", "d") and digits.startswith("0"):
        return Immediate(int(digits[2:], 16), 4 if kind == "f" else 8)
    digits = digits.rstrip("U")
    octal = len(digits) > 1 and digits.isdigit() and digits.startswith("0")
    return Immediate(sign * int(digits, 8 if octal else 0))


def joined(pieces: list[str]) -> str:
    """The tokens of an instruction as one text, with spaces where they read better."""
    text, before = "", ""
    for piece in pieces:
        apart = before == "," or (WORD.match(before) and (WORD.match(piece) or piece[0] in "[{(!"))
        text, before = text + (" " if apart else "") + piece, piece
    return text


class Reader:
    """Goes through the tokens of a text; `at` is the number of the next one."""

    def __init__(self, text: str) -> None:
        self.tokens = tokens(text)
        self.at = 0

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead].text if self.at + ahead < len(self.tokens) else ""

    def take(self, wanted: str | None = None) -> str:
        if self.at >= len(self.tokens):
            raise ParseError(f"the text ends where {wanted or 'more'} is expected")
        text, line = self.tokens[self.at]
        if wanted is not None and text != wanted:
            raise ParseError(f"line {line}: {wanted!r} is expected, not {text!r}")
        self.at += 1
        return text

    def took(self, text: str) -> bool:
        if self.peek() != text:
            return False
        self.at += 1
        return True

    def rest_of_line(self) -> list[str]:
        rest = []
        while (text := self.take()) != "\n":
            rest.append(text)
        return rest

    def integers(self) -> tuple[int, ...]:
        found = [number(self.take()).value]
        while self.took(","):
            found.append(number(self.take()).value)
        return tuple(found)
