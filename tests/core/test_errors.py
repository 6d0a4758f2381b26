"""The tree of errors."""

from core import errors


def _all(kind: type[errors.ImpastoError]) -> set[type[errors.ImpastoError]]:
    return {kind}.union(*(_all(child) for child in kind.__subclasses__()))


def test_every_code_is_its_own_and_every_class_says_something() -> None:
    kinds = _all(errors.ImpastoError)

    assert len({kind.code for kind in kinds}) == len(kinds)
    assert all(kind().message.endswith((".", ";")) for kind in kinds)


def test_the_docstring_draws_the_whole_tree() -> None:
    assert all(kind.__name__ in (errors.__doc__ or "") for kind in _all(errors.ImpastoError))


def test_an_interrupt_is_not_swallowed_as_an_error() -> None:
    assert not issubclass(errors.Interrupt, Exception)
