"""Text that strangers wrote (names of files and classes, cards), for a terminal that does what characters tell it."""


def plain(text: str) -> str:
    """The same with a mark in the place of whatever is not seen: escape sequences, ends of lines, turned directions."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
