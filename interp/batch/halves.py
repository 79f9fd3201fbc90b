"""Halves of characters, which no text has: what bytes of another encoding on a command line become."""

from interp.errors import TaskError


def check_text(text: str) -> None:
    """Refuse a text with half a character in it, as bytes of another encoding on a command line become.

    Raises:
        TaskError: says where.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TaskError(f"the text is no Unicode: it has half a character at {error.start}") from error
