"""C source as tokens, and as the declarations, functions and preprocessor lines that it consists of.

Only what every compiler reads the same way is accepted: ASCII, no ``//`` (a division in C90), no trigraphs (part of
``-std=c99``, not of GNU C), no digraphs, and a backslash at a line's end in preprocessor lines alone. Comments and
white space then carry no meaning, and equal tokens mean equal code.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

SHOWN = 80  # characters of a text that a message shows

_APART = re.compile(r'"(?:[^"\\\n]|\\.)*"|/\*.*?\*/|/\*|//', re.DOTALL)
_DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n]*[ \t]\\\n)*[^\n]*$", re.MULTILINE)
_TOKEN = re.compile(r"""
    (?P<space>[ \t\n]+)
  | (?P<numbers>\{\s*-?\d[-\d,\s]*\})
  | (?P<string>"(?:[^"\\?\n]|\\[0-7]{3}|\\n)*")
  | (?P<name>[A-Za-z_][A-Za-z_0-9]*)
  | (?P<number>\.?\d(?:[eEpP][-+]|[A-Za-z_0-9.])*)
  | (?P<unwanted><:|:>|<%|%>|%:|\?\?[=/'()!<>-])
  | (?P<mark>\.\.\.|<<=|>>=|->|\+\+|--|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^]=|[-+*/%&|^!~<>=?:;,.(){}\[\]])
""", re.VERBOSE)  # fmt: skip


class CFault(Exception):
    """A text that is not explained.

    Args:
        file: where it is.
        line: from 1 on; 0 for the file as a whole.
        text: what is wrong.
    """

    def __init__(self, file: str, line: int, text: str) -> None:
        super().__init__(f"{file}:{line}: {text}" if line else f"{file}: {text}")


@dataclass(frozen=True)
class Item:
    """A declaration, a function, a preprocessor line, or all lines from an ``#if`` to its ``#endif``.

    Attributes:
        tokens: in order; a preprocessor line is one token, and so are the braces around plain integers.
        lines: the line of each token, from 1 on.
    """

    tokens: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)

    @property
    def line(self) -> int:
        """Where it begins."""
        return self.lines[0]

    @cached_property
    def text(self) -> str:
        """The tokens, a space between them."""
        return " ".join(self.tokens)

    @property
    def shown(self) -> str:
        """The text for a message, cut to `SHOWN` characters."""
        return shown(self.text)

    @property
    def sha256(self) -> str:
        """Digest of the tokens."""
        return digest([self])


def digest(items: list[Item]) -> str:
    """Return the SHA-256 of items' tokens, a line each."""
    tokens = (" ".join(token.split()) if token[0] == "{" else token for item in items for token in item.tokens)
    return hashlib.sha256("\n".join(tokens).encode()).hexdigest()


def shown(text: str) -> str:
    """Return a text for a message: in one line, short, what is not printable ASCII escaped."""
    line = ascii(" ".join(text.split()))[1:-1]
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"


def items(file: str, content: bytes, open_groups: tuple[str, ...] = ()) -> list[Item]:
    """Split a source file.

    Args:
        file: its name, for messages.
        content: the file.
        open_groups: ``#if`` lines whose contents are split as well, such as an include guard; the line and its
            ``#endif`` are then items of their own.

    Raises:
        CFault: it holds what compilers may read in different ways, or brackets or groups that are not closed.
    """
    return _Splitter(file, open_groups).split(_tokens(file, content))


class _Splitter:
    def __init__(self, file: str, open_groups: tuple[str, ...]) -> None:
        self._file = file
        self._open_groups = open_groups
        self._done: list[Item] = []
        self._begin()

    def _begin(self) -> None:
        self._item = Item()
        self._depth = self._groups = 0  # of brackets, of #if
        self._is_function = False

    def split(self, tokens: Iterator[tuple[str, int]]) -> list[Item]:
        for token, line in tokens:
            self._add(token, line)
        if self._item.tokens:
            raise CFault(self._file, self._item.line, f"without an end: {self._item.shown}")
        return self._done

    def _add(self, token: str, line: int) -> None:
        item = self._item
        before = item.tokens[-1] if item.tokens else ""
        item.tokens.append(token)
        item.lines.append(line)
        if token[0] == "#":
            self._directive(token)
            return
        if token in ("(", "[", "{"):
            self._is_function |= token == "{" and self._depth == 0 and before == ")"
            self._depth += 1
        elif token in (")", "]", "}"):
            self._depth -= 1
            if self._depth < 0:
                raise CFault(self._file, line, f"a bracket that nothing opened: {item.shown}")
        ends = token == ";" or (token == "}" and self._is_function)
        if ends and self._depth == self._groups == 0:
            self._finish()

    def _directive(self, token: str) -> None:
        alone = len(self._item.tokens) == 1
        if token.startswith("#if") and not (alone and token in self._open_groups):
            self._groups += 1
        elif token == "#endif" and not alone:
            self._groups -= 1
            if self._groups == self._depth == 0 and self._item.tokens[0].startswith("#if"):
                self._finish()
            return
        if self._groups == 0 and alone:
            self._finish()

    def _finish(self) -> None:
        self._done.append(self._item)
        self._begin()


def _tokens(file: str, content: bytes) -> Iterator[tuple[str, int]]:
    """Yield each token and its line; preprocessor lines as one."""
    text = _plain(file, content)
    at = 0
    for directive in [*_DIRECTIVE.finditer(text), None]:
        yield from _between(file, text, at, directive.start() if directive else len(text))
        if directive:
            # Any trigraph or other backslash is left in it, which no line of the known ones has.
            joined = " ".join(directive[0].replace("\\\n", " ").split())
            yield "#" + joined[1:].lstrip(), _line(text, directive.start())
            at = directive.end()


def _between(file: str, text: str, start: int, end: int) -> Iterator[tuple[str, int]]:
    line, counted = _line(text, start), start
    while start < end:
        found = _TOKEN.match(text, start, end)
        if found is None or found.lastgroup == "unwanted":
            at = _line(text, start)
            raise CFault(file, at, f"not explained: {shown(text[start : start + SHOWN + 1].partition(chr(10))[0])}")
        start = found.end()
        if found.lastgroup != "space":
            line += text.count("\n", counted, found.start())
            counted = found.start()
            yield found[0], line


def _plain(file: str, content: bytes) -> str:
    """Return the text with spaces in place of comments."""
    try:
        text = content.decode("ascii").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise CFault(file, content.count(b"\n", 0, error.start) + 1, "it is not plain ASCII") from error
    odd = re.search(r"[^\n\t -~]", text)
    if odd:
        raise CFault(file, _line(text, odd.start()), f"a control character, {odd[0]!a}")

    def spaces(found: re.Match[str]) -> str:
        part = found[0]
        if part[0] == '"':
            return part
        line = _line(text, found.start())
        if part in ("//", "/*"):
            raise CFault(file, line, "a comment that does not end" if part == "/*" else "a comment with //: use /* */")
        if re.search(r"(?:\\|\?\?/)[ \t]*\n", part):
            raise CFault(file, line, "a line in a comment ends with a backslash")
        begins = text.rfind("\n", 0, found.start()) + 1
        before = text[begins : found.start()]
        if "\n" in part and ("#" in before or text[:begins].endswith("\\\n")):
            raise CFault(file, line, "a comment goes on after a preprocessor line")
        return re.sub(r"[^\n]", " ", part)

    return _APART.sub(spaces, text) + "\n"


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1
