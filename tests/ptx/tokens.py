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
