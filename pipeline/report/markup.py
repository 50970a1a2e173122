"""HTML and SVG that this project's commands write, fitted into a page with others of their kind."""

import posixpath
import re

from markupsafe import Markup

_IDS = re.compile(r'\b((?:xlink:)?href="#|url\(#|(?:id|for|headers|aria-\w+by)=")([^")]*)')
_LINKS = re.compile(r'\b(href|src)="(?!#|[a-z]+:)([^"]*)"')


def with_prefix(prefix: str, markup: str) -> Markup:
    """`markup` with `prefix` before its ids, wherever they are given or referred to."""

    def rename(match: re.Match[str]) -> str:
        return match[1] + " ".join(prefix + name for name in match[2].split())

    return Markup(_IDS.sub(rename, markup))


def moved_up(folder: str, markup: str) -> str:
    """`markup` of a file in `folder`, with its relative links as seen from the folder above."""

    def move(match: re.Match[str]) -> str:
        return f'{match[1]}="{posixpath.normpath(posixpath.join(folder, match[2]))}"'

    return _LINKS.sub(move, markup)
