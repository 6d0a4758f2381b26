"""The tree of errors: codes, messages, docstring."""

from core import errors


def _all(kind: type[errors.ImpastoError]) -> set[type[errors.ImpastoError]]:
    return {kind}.union(*(_all(child) for child in kind.__subclasses__()))


def test_every_code_is_unique_and_every_message_is_a_sentence() -> None:
    kinds = _all(errors.ImpastoError)

    assert len({kind.code for kind in kinds}) == len(kinds)
    assert all(kind().message.endswith(".") for kind in kinds)


def test_the_docstring_shows_the_whole_tree() -> None:
    assert all(kind.__name__ in (errors.__doc__ or "") for kind in _all(errors.ImpastoError))


def test_an_interrupt_is_not_caught_as_an_exception() -> None:
    assert not issubclass(errors.Interrupt, Exception)
