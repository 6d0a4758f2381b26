"""Processes that train together: equal weights, averaged gradients, a clean end."""

from typing import Any


def test_two_processes_have_the_same_weights_and_gradients_and_leave_no_thread(
    run_cases: Any,
) -> None:
    """A thread of the group that outlives the interpreter can abort a complete run."""
    case = {"function": "compare_with_one_process", "arguments": {}, "processes": 2}

    assert run_cases([case]) == [[0, 0]]
